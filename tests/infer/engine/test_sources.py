"""What an encoder-decoder is given, languages, a forced first token, beginnings, against plain transformers; teacher-forced and step by step."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from translation_fixtures import LANGUAGES

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate, score, stream
from seodang.infer.engine.checkpoint_settings import checkpoint_params, from_generation_config
from seodang.infer.requests.events import Committed
from seodang.infer.runners.encoder_decoder import decoder_start
from seodang.infer.runners.open import open_runner

NEW = 10
GREEDY, BEAMS = {"num_beams": 1}, {"num_beams": 4}


def theirs(model, source: list[int], shown: list[int] | None = None, **how) -> list[int]:
    """What transformers generates behind what the decoder is shown."""
    more = {} if shown is None else {"decoder_input_ids": torch.tensor([shown])}
    ids = model.generate(torch.tensor([source]), do_sample=False, **{"max_new_tokens": NEW, **how, **more})[0].tolist()
    return ids[ids.index(shown[-1], len(shown) - 1) + 1 :] if shown else ids[1:]


def ours(model, tokenizer, prompt, **how) -> list[int]:
    [result] = generate(model, tokenizer, [prompt], SamplingParams(**{"max_new_tokens": NEW, **how}))
    return result.ids


@pytest.mark.parametrize("search", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", ["mbart50", "nllb", "m2m"])
def test_answers_in_a_language_are_those_of_transformers(translator, kind, search):
    model, tokenizer = translator(kind)
    source, target = LANGUAGES[kind]
    asked = copy.deepcopy(tokenizer)._build_translation_inputs("das Haus", return_tensors=None, src_lang=source, tgt_lang=target)
    forced, languages = asked["forced_bos_token_id"], {"source_lang": source, "target_lang": target}
    want = theirs(model, asked["input_ids"], forced_bos_token_id=forced, **search)
    assert ours(model, tokenizer, "das Haus", **languages, **search) == want and want[0] == forced
    shown = [tokenizer.eos_token_id, forced, 7, 8]  # the start, the language, a beginning
    want = theirs(model, asked["input_ids"], shown, **search)
    for given in (shown, shown[1:], shown[2:]):
        assert ours(model, tokenizer, "das Haus", decoder_input_ids=given, **languages, **search) == want
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == (copy.deepcopy(tokenizer).src_lang, None)


def test_the_first_mbart_starts_with_the_language_itself(translator):
    model, tokenizer = translator("mbart")
    start = tokenizer.convert_tokens_to_ids("ko_KR")
    want = theirs(model, tokenizer("das Haus")["input_ids"], decoder_start_token_id=start)
    assert ours(model, tokenizer, "das Haus", target_lang="ko_KR") == want != ours(model, tokenizer, "das Haus")
    [scored] = score(model, tokenizer, ["das Haus"], ["the house"], target_lang="ko_KR")
    target = [*tokenizer("the house", add_special_tokens=False)["input_ids"], 2, start]
    plain = model(torch.tensor([tokenizer("das Haus")["input_ids"]]), decoder_input_ids=torch.tensor([[start, *target[:-1]]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(scored, plain[range(len(target)), target], rtol=0, atol=1e-11)


def test_marian_reads_the_language_in_its_source(translator):
    model, tokenizer = translator("marian")
    want = theirs(model, tokenizer(">>deu<< das Haus")["input_ids"])
    assert ours(model, tokenizer, "das Haus", target_lang="deu") == want == ours(model, tokenizer, [{"role": "user", "content": ">>deu<< das Haus"}])
    with pytest.raises(UserError, match="prompt 1: the checkpoint speaks several languages"):
        ours(model, tokenizer, "das Haus")
    with pytest.raises(UserError, match="target_lang='deu': prompt 1 is in ids, which the encoder reads as they are"):
        ours(model, tokenizer, [4, 5], target_lang="deu")


def test_a_checkpoints_forced_first_token_holds_whatever_else_is_asked(translator):
    model, tokenizer = translator("mbart50")
    korean, german = tokenizer.convert_tokens_to_ids(["ko_KR", "de_DE"])
    model.generation_config.forced_bos_token_id = korean
    model.generation_config.max_new_tokens = 4
    for params in (None, SamplingParams(max_new_tokens=4), SamplingParams(max_new_tokens=4, num_beams=3), checkpoint_params(model, max_new_tokens=4)):
        [result] = generate(model, tokenizer, ["das Haus"], params)
        assert result.ids[0] == korean and result.text == tokenizer.decode(result.ids, skip_special_tokens=True)
    for params in (SamplingParams(max_new_tokens=4, target_lang="de_DE"), checkpoint_params(model, target_lang="de_DE")):
        assert generate(model, tokenizer, ["das Haus"], params)[0].ids[0] == german
    assert from_generation_config(model.generation_config, target_lang="de_DE").forced_bos_token_id is None
    [prefixed] = generate(model, tokenizer, ["das Haus"], checkpoint_params(model, prefix="the house", max_new_tokens=8))
    shown = [2, korean, *tokenizer("the house", add_special_tokens=False)["input_ids"]]
    assert prefixed.ids == [*shown[1:], *theirs(model, tokenizer("das Haus")["input_ids"], shown, max_new_tokens=8 - len(shown) + 1)]
    assert prefixed.text.startswith("the house")


def test_a_prefix_stands_behind_what_the_tokenizer_begins_a_target_with(fresh_tiny, byte_tokenizer, t5_tokenizer):
    tokenizer = byte_tokenizer(128)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 2)]
    )  # as BART's
    model, source = fresh_tiny("bart").double(), tokenizer("tree")["input_ids"]
    word = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert ours(model, tokenizer, "tree", prefix="ab") == [1, *word, *theirs(model, source, [2, 1, *word], max_new_tokens=NEW - 3)]
    assert ours(model, tokenizer, "tree", prefix="ab", forced_bos_token_id=9) == [9, *word, *theirs(model, source, [2, 9, *word], max_new_tokens=NEW - 3)]
    shown = [2, 1, 30]
    assert ours(model, tokenizer, "tree", prefix="ab", decoder_input_ids=shown) == [*word, *theirs(model, source, [*shown, *word], max_new_tokens=NEW - 2)]
    t5 = fresh_tiny("t5", vocab_size=len(t5_tokenizer)).double()
    first = t5_tokenizer.convert_tokens_to_ids("▁ab")  # not the letters that a text goes on with
    t5.generation_config.eos_token_id = 1
    source = t5_tokenizer("나무")["input_ids"]
    assert ours(t5, t5_tokenizer, "나무", prefix="ab") == [first, *theirs(t5, source, [0, first], max_new_tokens=NEW - 1)]


def test_a_decoder_puts_a_forced_first_token_before_a_prefix_too(tiny_llama, tiny_tokenizer):
    [alone] = generate(tiny_llama, tiny_tokenizer, [[5, 6, 9]], SamplingParams(max_new_tokens=4, prefix="a"))
    [forced] = generate(tiny_llama, tiny_tokenizer, [[5, 6]], SamplingParams(max_new_tokens=5, prefix="a", forced_bos_token_id=9))
    assert forced.ids == [9, *alone.ids]


GIVEN = [40, 41, 42]
STRATEGIES = {
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4}, "lookup": {"prompt_lookup_num_tokens": 3}, "beams": BEAMS,
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "num_return_sequences": 4},
    "words": {"num_beams": 4, "force_words_ids": [[50]]}, "sampling": {"temperature": 0.9, "seed": 3}, "stochastic": {"strategy": "stochastic_beam", "num_beams": 3, "seed": 3},
    "choice": {"choice": ["ab", "cd"]}, "penalty": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_on_from_the_given_ids(fresh_tiny, tiny_tokenizer, kind, strategy):
    """As transformers does, or a slow search of its own, where there is one; elsewhere by what it changes."""
    model, how = fresh_tiny(kind).double(), STRATEGIES[strategy]
    found = generate(model, tiny_tokenizer, [[5, 9, 7, 30]], SamplingParams(max_new_tokens=8, decoder_input_ids=GIVEN, **how))
    plain = generate(model, tiny_tokenizer, [[5, 9, 7, 30]], SamplingParams(max_new_tokens=8, **how))
    assert [each.ids for each in found] != [each.ids for each in plain] or strategy in ("choice", "lookup")
    if strategy in ("beams", "penalty"):
        assert found[0].ids == theirs(model, [5, 9, 7, 30], [*decoder_start(model), *GIVEN], max_new_tokens=8, **how)
    if strategy == "lookup":
        assert found[0].ids == theirs(model, [5, 9, 7, 30], [*decoder_start(model), *GIVEN], max_new_tokens=8)
    if strategy == "contrastive":
        assert found[0].ids == contrastive(model, [5, 9, 7, 30], [*decoder_start(model), *GIVEN], 8, 0.6, 4)
    if strategy == "sampling":  # what is drawn hangs on the place in the answer alone: greedy shows what it is drawn from
        assert ours(model, tiny_tokenizer, [5, 9, 7, 30], decoder_input_ids=GIVEN, max_new_tokens=8, top_k=1) == theirs(
            model, [5, 9, 7, 30], [*decoder_start(model), *GIVEN], max_new_tokens=8
        )
    told = list(stream(model, tiny_tokenizer, [5, 9, 7, 30], SamplingParams(max_new_tokens=8, decoder_input_ids=[*decoder_start(model), *GIVEN], **how)))
    assert [event.id for event in told if isinstance(event, Committed) and event.choice == 0] == found[0].ids


@torch.no_grad()
def contrastive(model, source: list[int], shown: list[int], new: int, alpha: float, k: int) -> list[int]:
    """Su et al. 2022, each candidate in a pass over everything."""
    ids = list(shown)

    def passed(some: list[int]):
        out = model(torch.tensor([source]), decoder_input_ids=torch.tensor([some]), output_hidden_states=True)
        return out.logits[0, -1].softmax(-1), torch.nn.functional.normalize(out.decoder_hidden_states[-1][0], dim=-1)

    for _ in range(new):
        probabilities, _ = passed(ids)
        best = []
        for p, candidate in zip(*probabilities.topk(k)):
            states = passed([*ids, int(candidate)])[1]
            best.append(((1 - alpha) * p - alpha * (states[:-1] @ states[-1]).max(), int(candidate)))
        ids.append(max(best)[1])
        if ids[-1] == 2:
            break
    return ids[len(shown) :]


def test_an_assistant_is_shown_the_given_ids_too(fresh_tiny, tiny_tokenizer):
    model, draft = fresh_tiny("t5").double(), fresh_tiny("t5", seed=1).double()
    settings = {"decoder_input_ids": GIVEN, "max_new_tokens": 8}
    want = theirs(model, [5, 9, 7, 30], [0, *GIVEN], max_new_tokens=8)
    assert ours(model, tiny_tokenizer, [5, 9, 7, 30], **settings, assistant_model=draft) == want
    [own] = generate(model, tiny_tokenizer, [[5, 9, 7, 30]], SamplingParams(**settings, assistant_model=model), trace=True)  # which guesses all of it
    assert own.ids == want and sum("Forward" in type(event).__name__ for event in own.trace) < 8


def test_lengths_count_what_the_decoder_is_shown_as_transformers_does(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("t5").double()
    want = theirs(model, [5, 9, 7], [0, *GIVEN], max_new_tokens=None, max_length=9)
    assert ours(model, tiny_tokenizer, [5, 9, 7], decoder_input_ids=GIVEN, max_length=9, max_new_tokens=None) == want and len(want) <= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source_lang": "de"}, "source_lang='de' is for encoder-decoders, but llama is a decoder"),
        ({"target_lang": "de"}, "target_lang='de' is for encoder-decoders, but llama is a decoder"),
        ({"decoder_input_ids": [5]}, r"decoder_input_ids=\[5\] is for encoder-decoders, but llama is a decoder"),
    ],
)
def test_a_decoder_refuses_what_only_an_encoder_decoder_has(tiny_llama, tiny_tokenizer, settings, message):
    with pytest.raises(UserError, match=message):
        ours(tiny_llama, tiny_tokenizer, [5], **settings)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([5], {"decoder_input_ids": [999]}, "decoder_input_ids has the id 999"),
        ([5], {"decoder_input_ids": [5] * 250, "max_new_tokens": 10}, "251 tokens, which with max_new_tokens=10 is more than the 256 positions"),
        ([5], {"target_lang": "de"}, "target_lang='de': the tokenizer of this encoder-decoder .* has no tokens of languages"),
        ("", {}, "prompt 1: the source is empty"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], {}, "of user, assistant, user"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(tiny, tiny_tokenizer, prompt, settings, message):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=message):
        ours(tiny("bart"), tokenizer, prompt, **settings)


@pytest.mark.parametrize("kind", ["t5", "bart", "nllb"])
@torch.no_grad()
def test_teacher_forced_equals_step_by_step_at_every_position(fresh_tiny, tiny_tokenizer, translator, kind):
    """`score` against the cached sequential pass, and against one plain pass over everything."""
    model, tokenizer = translator("nllb") if kind == "nllb" else (fresh_tiny(kind).double(), tiny_tokenizer)
    draw = torch.Generator().manual_seed(1)
    sources, answers = ([torch.randint(4, 50, (n,), generator=draw).tolist() for n in lengths] for lengths in ((7, 3, 12), (9, 12, 1)))
    scored = score(model, tokenizer, sources, answers)
    runner = open_runner(model)
    for source, answer, got in zip(sources, answers, scored):
        [start], step = decoder_start(model), []
        slot = runner.allocate(source)
        for shown, said in zip([start, *answer], answer):
            step.append(runner.forward([slot], [[shown]], [1])[0].log_softmax(-1)[said])
        plain = model(torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *answer[:-1]]])).logits[0].log_softmax(-1)
        torch.testing.assert_close(got, torch.stack(step), rtol=0, atol=1e-11)
        torch.testing.assert_close(got, plain[range(len(answer)), answer], rtol=0, atol=1e-11)
    given = score(model, tokenizer, sources[:2], answers[:2], beginnings=[answers[0][:4], [*decoder_start(model), *answers[1][:3]]])
    torch.testing.assert_close(given[0], scored[0][4:], rtol=0, atol=1e-11)
    torch.testing.assert_close(given[1], scored[1][3:], rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_score_of_a_text_is_transformers_loss_and_a_given_beginning_is_not_in_it(translator):
    model, tokenizer = translator("mbart50")
    how = {"source_lang": "de_DE", "target_lang": "ko_KR"}
    other = copy.deepcopy(tokenizer)
    other.src_lang, other.tgt_lang = "de_DE", "ko_KR"
    batch = other("das Haus", text_target="the house is small", return_tensors="pt")
    [whole] = score(model, tokenizer, ["das Haus"], ["the house is small"], **how)
    assert -whole.mean().item() == pytest.approx(model(**batch).loss.item(), abs=1e-10) and len(whole) == batch["labels"].shape[1]
    for beginning, given in (("the house", 3), ([tokenizer.convert_tokens_to_ids("ko_KR")], 1), (None, 0)):
        [rest] = score(model, tokenizer, ["das Haus"], ["the house is small"], beginnings=[beginning], **how)
        torch.testing.assert_close(rest, whole[given:], rtol=0, atol=1e-11)
    [ids] = score(model, tokenizer, ["das Haus"], [batch["labels"][0].tolist()], beginnings=["the house"], **how)
    torch.testing.assert_close(ids, whole[3:], rtol=0, atol=1e-11)
    for beginning, message in (("a house", "answer 1: the target 'the house is small' does not begin with 'a house'"), ([9], "does not begin with the ids")):
        with pytest.raises(UserError, match=message):
            score(model, tokenizer, ["das Haus"], ["the house is small"], beginnings=[beginning], **how)


def test_score_refuses_for_a_decoder_what_only_an_encoder_decoder_has(tiny_llama, tiny_tokenizer):
    for more in ({"beginnings": [[5]]}, {"target_lang": "ko"}):
        with pytest.raises(UserError, match=f"{next(iter(more))} is for encoder-decoders, but llama is a decoder"):
            score(tiny_llama, tiny_tokenizer, [[5]], [[5, 6]], **more)


def test_texts_that_answers_are_held_to_are_spelled_as_an_answer_begins(t5_tokenizer, fresh_tiny):
    model = fresh_tiny("t5", vocab_size=len(t5_tokenizer)).double()
    model.generation_config.eos_token_id = 1
    word = t5_tokenizer.convert_tokens_to_ids("▁ab")
    likely = {"logit_bias": {word: 50.0}, "max_new_tokens": 9}  # as of a model that was taught so
    for how in ({"choice": ["abbc", "나무"]}, {"regex": "ab(bc)?"}, {"trie": ["abbc"]}, {"grammar": 'start: "ab" start?'}, {"forced_text": {0: "ab"}},
                {"choice": ["abbc", "나무"], "prefix": "ab"}, {"choice": ["abbc"], "num_beams": 3}):  # fmt: skip
        [result] = generate(model, t5_tokenizer, ["나무"], SamplingParams(**likely, **how))
        assert result.ids[0] == word and result.text.startswith("ab"), how
    [schema] = generate(model, t5_tokenizer, ["나무"], SamplingParams(max_new_tokens=9, json_schema={"enum": [12]}))
    assert schema.text == "12"
    [other] = generate(model, t5_tokenizer, ["나무"], SamplingParams(max_new_tokens=9, choice=["abbc"], suppress_tokens=[word]))
    assert other.text == "abbc"
