"""Filling masks: what plain transformers gives each token, the best combinations by trying all, masks in turn by hand."""

import copy
import itertools
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, BertModel, MPNetConfig, MPNetModel, pipeline

from seodang.data.errors import UserError
from seodang.infer import fill_mask
from seodang.infer.encoders.classify import room_for
from seodang.infer.encoders.encoder import Encoder, Question
from seodang.infer.encoders.fill_mask import MaskFiller, best_combinations
from seodang.infer.runners.architecture import first_position, text_limit
from seodang.infer.runners.paradigm import Diffusion, declare

ONE, TWO, THREE = "the capital of [MASK] is seoul.", "[MASK] is the [MASK] of korea", "[MASK] [MASK] [MASK] , paris"


@torch.no_grad()
def plain(model, tokenizer, text: str) -> tuple[list[int], torch.Tensor, list[int]]:
    """By transformers alone: the ids of a text read by itself, the log-probabilities at its masks, and where they are."""
    inputs = tokenizer(text, return_tensors="pt")
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    return inputs["input_ids"][0].tolist(), model(**inputs).logits[0, places].log_softmax(-1), places


def test_one_mask_has_what_transformers_own_pipeline_finds(encoder, wordpiece):
    model = encoder("bert", vocab_size=25)
    [ours] = fill_mask(model, wordpiece, [ONE], top_k=7)
    theirs = pipeline("fill-mask", model=model, tokenizer=wordpiece, device="cpu")(ONE, top_k=7)
    for each, their in zip(ours.fillings, theirs, strict=True):
        [candidate] = each.candidates
        assert (candidate.id, candidate.token) == (their["token"], their["token_str"])
        assert each.text == (their["sequence"] if candidate.id > 4 else f"the capital of {candidate.token} is seoul.")  # a special token is seen
    assert [each.probability for each in ours.fillings] == pytest.approx([each["score"] for each in theirs], abs=1e-12)
    assert ours.marginals == [[each.candidates[0] for each in ours.fillings]]


def test_several_masks_jointly_are_the_best_of_all_products(encoder, wordpiece):
    model = encoder("bert", vocab_size=25)
    for text in (TWO, THREE):
        ids, logprobs, places = plain(model, wordpiece, text)
        every = sorted(((sum(row[id] for row, id in zip(logprobs.tolist(), some)), some) for some in itertools.product(range(25), repeat=len(places))), reverse=True)[:25]
        [found] = fill_mask(model, wordpiece, [text], top_k=25)
        assert [tuple(each.id for each in filling.candidates) for filling in found.fillings] == [some for _, some in every]
        assert [filling.logprob for filling in found.fillings] == pytest.approx([value for value, _ in every], abs=1e-10)
        best = ids.copy()
        for place, id in zip(places, every[0][1]):
            best[place] = id
        assert found.fillings[0].text == wordpiece.decode(best[1:-1])
        assert [[each.id for each in column[:3]] for column in found.marginals] == logprobs.topk(3, dim=-1).indices.tolist()


def test_best_combinations_are_those_of_trying_all_in_their_order():
    generator = torch.Generator().manual_seed(0)
    for sizes in ([4], [3, 5], [2, 1, 4], [3, 3, 3, 2]):
        columns = [torch.randn(size, generator=generator).sort(descending=True).values.tolist() for size in sizes]
        every = sorted(itertools.product(*map(range, sizes)), key=lambda some: -math.fsum(column[at] for column, at in zip(columns, some)))
        for count in (1, 3, len(every), len(every) + 5):
            assert best_combinations(columns, count) == every[:count]


def test_masks_in_turn_begin_with_the_surest_and_read_again_what_was_filled_in(encoder, wordpiece):
    model = encoder("bert", seed=3, vocab_size=25)

    def again(text: str, ids: list[int], width: int) -> list[tuple[float, list[int]]]:
        """A beam search by hand: in each text the mask whose best token is the best of all comes next."""
        beams, mask = [(0.0, ids)], wordpiece.mask_token_id
        while any(mask in own for _, own in beams):
            grown = {}
            for value, own in beams:
                places = [place for place, id in enumerate(own) if id == mask]
                with torch.no_grad():
                    logprobs = model(torch.tensor([own])).logits[0].log_softmax(-1)
                place = max(places, key=lambda each: logprobs[each].max().item())
                for id in logprobs[place].topk(width).indices.tolist():
                    new = (*own[:place], id, *own[place + 1 :])
                    grown[new] = max(value + logprobs[place, id].item(), grown.get(new, -math.inf))
            beams = sorted(((value, list(own)) for own, value in grown.items()), reverse=True)[:width]
        return beams

    differ = 0
    for text in (ONE, TWO, THREE):
        ids, _, places = plain(model, wordpiece, text)
        for width in (1, 4):
            [found] = fill_mask(model, wordpiece, [text], top_k=width, how="in_turn")
            expected = again(text, ids, width)
            assert [[each.id for each in filling.candidates] for filling in found.fillings] == [[own[place] for place in places] for _, own in expected]
            assert [filling.logprob for filling in found.fillings] == pytest.approx([value for value, _ in expected], abs=1e-10)
        [joint] = fill_mask(model, wordpiece, [text], top_k=4)
        differ += [each.text for each in joint.fillings] != [each.text for each in found.fillings]
        assert joint.marginals == found.marginals
    assert differ  # what is filled in changes what goes with it


KINDS = {
    "bert": {}, "roberta": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}, "distilbert": {}, "electra": {}, "albert": {}, "mpnet": {"pad_token_id": 1},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}, "fnet": {}, "xlm": {"emb_dim": 32, "causal": False},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32}, "convbert": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_lengths_is_what_each_text_is_alone_and_what_the_whole_model_says(encoder, wordpiece, kind):
    model = encoder(kind, **KINDS[kind])
    texts = [ONE, "[MASK]", TWO, "paris is [MASK]", THREE, "korea is [MASK]", "the city of suwon is a [MASK] city of korea"]
    together, judge = fill_mask(model, wordpiece, texts, top_k=3), Encoder(model, wordpiece)
    for text, found in zip(texts, together):
        [alone] = fill_mask(model, wordpiece, [text], top_k=3)
        assert [[each.id for each in column] for column in found.marginals] == [[each.id for each in column] for column in alone.marginals]
        ids, logprobs, places = plain(model, wordpiece, text)
        for one in (found, alone):
            values = [[each.logprob for each in column] for column in one.marginals]
            torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), logprobs[:, :25].topk(3, dim=-1).values, atol=1e-9, rtol=0)
        [(_, logits)] = judge.answers([Question(judge.read(text, "it"), range(len(ids)))])  # the head at all places, too
        torch.testing.assert_close(logits[places].log_softmax(-1), logprobs, atol=1e-9, rtol=0)


def test_rows_of_one_length_share_a_pass_and_the_head_runs_at_masks_alone(encoder, wordpiece):
    model, seen = encoder("bert", vocab_size=25), []
    handles = [module.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape))) for module in (model.bert, model.cls)]
    fill_mask(model, wordpiece, [ONE, TWO, ONE, "[MASK]", ONE])
    for handle in handles:
        handle.remove()
    assert seen == [(1, 3), (1, 1, 32), (1, 8), (2, 1, 32), (3, 9), (3, 1, 32)]


def test_targets_are_chosen_from_at_their_own_probabilities(encoder, wordpiece):
    model = encoder("bert")  # of 40 ids, of which the tokenizer knows 25
    _, logprobs, _ = plain(model, wordpiece, ONE)
    [found] = fill_mask(model, wordpiece, [ONE], targets=["Paris", "##able", "seoul", "paris"])
    expected = sorted(((logprobs[0, id].item(), id) for id in wordpiece.convert_tokens_to_ids(["paris", "##able", "seoul"])), reverse=True)
    assert [(each.candidates[0].id, each.logprob) for each in found.fillings] == [(id, pytest.approx(value, abs=1e-12)) for value, id in expected]
    [two] = fill_mask(model, wordpiece, [TWO], top_k=25, targets=["paris", "seoul"])
    assert len(two.fillings) == 4  # there are no more
    [every] = fill_mask(model, wordpiece, [ONE], top_k=25)
    assert {each.candidates[0].id for each in every.fillings} == set(range(25))  # none that is padding of the vocabulary


def test_a_byte_level_encoder_counts_its_positions_from_behind_padding(encoder, bytelevel):
    model = encoder("roberta", vocab_size=len(bytelevel), pad_token_id=1, bos_token_id=0, eos_token_id=2)
    text = "in <mask>"
    [found] = fill_mask(model, bytelevel, [text], top_k=4)
    theirs = pipeline("fill-mask", model=model, tokenizer=bytelevel, device="cpu")(text, top_k=4)
    assert [(each.candidates[0].token, each.text) for each in found.fillings] == [(each["token_str"], each["sequence"]) for each in theirs]
    assert text_limit(model) == 38  # of 40 embeddings, two lie before the first position
    fill_mask(model, bytelevel, ["a" * 35 + "<mask>"])
    with pytest.raises(UserError, match="text 1 has 39 tokens, more than the 38 positions of the encoder"):
        fill_mask(model, bytelevel, ["a" * 36 + "<mask>"])
    with pytest.raises(UserError, match=r"text 1 has \[MASK\], but this checkpoint's mask is spelled <mask>: write <mask>"):
        fill_mask(model, bytelevel, ["in [MASK]"])
    [targeted] = fill_mask(model, bytelevel, [text], targets=[" seo", "Ġs"])
    assert {each.candidates[0].token for each in targeted.fillings} == {" seo", " s"}


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["no mask here"], {}, r"text 1 has no mask: write \[MASK\] where a token is to be filled in"),
        ([ONE, "paris <mask>"], {}, r"text 2 has <mask>, but this checkpoint's mask is spelled \[MASK\]: write \[MASK\]"),
        (["[MASK] or <mask>"], {}, "text 1 has <mask>"),
        (["the [mask]"], {}, r"text 1 has \[mask\]"),
        (["a <|MASK|>"], {}, r"text 1 has <\|MASK\|>"),
        (["a " * 40 + "[MASK]"], {}, "text 1 has 43 tokens, more than the 40 positions of the encoder"),
        (["a " * 90_000 + "[MASK]"], {}, "text 1 has more than 40 tokens, more than the 40 positions"),
        (["a \ud800 [MASK]"], {}, "lone surrogate"),
        ("[MASK]", {}, "texts must be a list of texts, got str"),
        ([3], {}, "text 1 must be a text, got int"),
        ([ONE], {"top_k": 0}, "top_k must be a whole number from 1 on, got 0"),
        ([ONE], {"top_k": 2.5}, "got 2.5"),
        ([ONE], {"top_k": 26}, "top_k=26 is more than the 25 tokens that there are"),
        ([ONE], {"how": "together"}, "how must be jointly or in_turn, got 'together'"),
        ([ONE], {"targets": ["unbelievable"]}, "'unbelievable' is no single token of this tokenizer .'un', '##believ', '##able'."),
        ([ONE], {"targets": ["tokyo"]}, "'tokyo' is no single token"),
        ([ONE], {"targets": []}, "targets must be a list of texts, one at least"),
        ([ONE], {"targets": "paris"}, "targets must be a list of texts"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_any_compute(encoder, wordpiece, monkeypatch, texts, options, message):
    model = encoder("bert")
    monkeypatch.setattr(Encoder, "_logits", lambda *_: pytest.fail("computed something"))
    with pytest.raises(UserError, match=message):
        fill_mask(model, wordpiece, texts, **options)


def test_what_fills_in_no_masks_is_refused_by_name(encoder, wordpiece, bytelevel, tiny, tiny_tokenizer, fresh_tiny):
    masked = fresh_tiny("llama")
    declare(masked.config, Diffusion(127))
    decoder = BertLMHeadModel(BertConfig(is_decoder=True, hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=25, intermediate_size=8))
    for model, tokenizer, message in (
        (tiny("llama"), tiny_tokenizer, "llama is a decoder, which reads from left to right and fills in no masks: use `seodang generate`"),
        (decoder, wordpiece, "bert is a decoder"),
        (tiny("bart"), wordpiece, "bart is an encoder-decoder model"),
        (masked, tiny_tokenizer, "this llama is a masked-diffusion model"),
        (BertModel(encoder("bert").config), wordpiece, "BertModel has no masked-language head, it is an encoder .* use a checkpoint saved as BertForMaskedLM, or train such a head on this one by `seodang mlm`"),
        (AutoModelForCausalLM.from_config(encoder("electra").config), wordpiece, "has no masked-language head"),
        (encoder("bert"), tiny_tokenizer, "the tokenizer has no mask token"),
        (torch.nn.Linear(2, 2), wordpiece, "expected a transformers model"),
    ):
        with pytest.raises(UserError, match=message):
            fill_mask(model, tokenizer, [ONE])


def test_an_adapter_and_a_model_in_training_are_computed_as_they_are(wordpiece, encoder):
    model = copy.deepcopy(encoder("bert", vocab_size=25))
    model.config.hidden_dropout_prob = 0.5
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"])).double()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    _, logprobs, _ = plain(adapted.eval(), wordpiece, ONE)
    adapted.train()
    [found] = fill_mask(adapted, wordpiece, [ONE], top_k=3)
    assert [each.logprob for each in found.fillings] == pytest.approx(logprobs[0].topk(3).values.tolist(), abs=1e-10)
    assert adapted.training and not any(module._forward_hooks for module in adapted.modules())
    assert fill_mask(encoder("bert"), wordpiece, []) == []
    assert MaskFiller(Encoder(encoder("bert"), wordpiece)).fill([]) == []


@pytest.mark.parametrize("how", ["jointly", "in_turn"])
def test_a_model_whose_scores_are_no_numbers_is_refused(encoder, wordpiece, how):
    model = encoder("bert", vocab_size=25)
    with torch.no_grad():
        next(model.parameters())[5] = math.nan  # of one token's embedding
    with pytest.raises(UserError, match="BertForMaskedLM gives nan for what stands at a mask: its weights are damaged"):
        fill_mask(model, wordpiece, [TWO], how=how)


def test_mpnets_positions_begin_behind_their_padding_too(bytelevel):
    config = {"vocab_size": len(bytelevel), "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    model = MPNetModel(MPNetConfig(**config, max_position_embeddings=40, pad_token_id=1)).eval()
    assert first_position(model) == 2 and room_for(model, bytelevel) == 38
    model(torch.full((1, 38), 5))
    with pytest.raises(IndexError):
        model(torch.full((1, 39), 5))
    assert first_position(BertModel(BertConfig(**config))) == 0
