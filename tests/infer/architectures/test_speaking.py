"""Our own architectures speak through the engine: the runners' logits are the model's, every strategy runs or is refused by name."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate, load, score, stream
from seodang.infer.runners.encoder_decoder import EncoderDecoderRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.recurrent import RecurrentRunner
from seodang.infer.strategies.registry import STRATEGIES

MODELS = {
    "post-norm": ("transformer", {}), "pre-norm": ("transformer", {"norm_position": "pre", "decoder_layers": 3}),
    "context alone": ("lstm", {"attention": "none"}), "attention": ("lstm", {"attention": "dot", "bidirectional": True}),
}  # fmt: skip
LSTMS = ("context alone", "attention")
LEAST = {name: spec.least for name, spec in STRATEGIES.items()} | {
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]}, "contrastive": {"penalty_alpha": 0.4, "top_k": 3},
    "assisted": {"prompt_lookup_num_tokens": 3}, "beam": {"num_beams": 3, "num_return_sequences": 2},
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22], [9, 60, 33, 41, 5, 99, 100, 47, 3]]


@pytest.fixture(params=MODELS)
def named(request, own):
    """A name and its model."""
    kind, changes = MODELS[request.param]
    return request.param, own(kind, **changes)


@torch.no_grad()
def whole(model, source, answer):
    return model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer]), use_cache=False, output_hidden_states=True)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_rows_of_any_length_forked_and_copied_have_the_models_own_logits_and_states(named):
    name, model = named
    runner = open_runner(model)
    assert type(runner) is (RecurrentRunner if name in LSTMS else EncoderDecoderRunner)
    sources, answers = PROMPTS, [[0, 40, 41, 6, 99, 3, 8], [0, 7, 7, 50, 51, 52, 53], [0, 90, 91, 92, 93, 94, 95]]
    a, b = runner.allocate(sources[0]), runner.allocate(sources[1])
    [early] = runner.fork([b])  # before anything was read
    wanted = {slot: whole(model, sources[i], answers[i]) for slot, i in ((a, 0), (b, 1))}
    want = lambda slot, first, end: wanted[slot].logits[0, first:end]
    last = model.config.get_text_config(decoder=True).num_hidden_layers
    got = runner.observe([a, b], [answers[0][:2], answers[1][:3]], [2, 1], (0, 1, last))
    close(got.logits, torch.cat([want(a, 0, 2), want(b, 2, 3)]))
    for layer in (0, 1, last):
        close(got.states[layer], torch.cat([wanted[a].decoder_hidden_states[layer][0, :2], wanted[b].decoder_hidden_states[layer][0, :3]]))
    close(runner.head(got.states[last][:2]), got.logits[:2])
    c = runner.allocate(sources[2])
    wanted[c] = whole(model, sources[2], answers[2])
    close(runner.forward([c, b, a], [answers[2][:2], answers[1][3:4], answers[0][2:4]], [2, 1, 2]), torch.cat([want(c, 0, 2), want(b, 3, 4), want(a, 2, 4)]))
    [fork] = runner.fork([a])
    wanted[fork] = whole(model, sources[0], [*answers[0][:4], 77, 78])
    close(runner.forward([a, fork], [answers[0][4:5], [77]], [1, 1]), torch.cat([want(a, 4, 5), want(fork, 4, 5)]))
    runner.copy(b, fork)
    wanted[fork] = whole(model, sources[1], [*answers[1][:4], 88])
    runner.release([a])
    wanted[early] = whole(model, sources[1], answers[2])
    close(runner.forward([fork, b, early], [[88], answers[1][4:5], answers[2][:1]], [1, 1, 1]), torch.cat([want(fork, 4, 5), want(b, 4, 5), want(early, 0, 1)]))
    assert runner.live == 4 and runner.length(b) == 5
    if name in LSTMS:
        with pytest.raises(UserError, match="seodang_lstm carries a state, which cannot take back tokens"):
            runner.truncate(b, 3)
        with pytest.raises(UserError, match="seodang_lstm carries a state"):
            runner.copy(b, c, 0, 3)
        runner.truncate(b, 0)
        close(runner.forward([b], [answers[1][:1]], [1]), want(b, 0, 1))
    else:
        runner.truncate(b, 3)
        close(runner.forward([b], [answers[1][3:5]], [2]), want(b, 3, 5))


def test_the_memory_that_is_promised_is_enough(named):
    _, model = named
    runner = open_runner(model)
    promised = [runner.bytes_for(9, len(source)) for source in PROMPTS]
    slots = [runner.allocate(source) for source in PROMPTS]
    for _ in range(9):
        runner.forward(slots, [[5]] * 3, [1] * 3)
        assert 0 < runner.memory <= sum(promised)
    runner.release(slots)
    assert runner.memory == 0


def transformers_says(model, source, **settings):
    """The new ids that transformers finds, none of them twice: random weights like to repeat themselves."""
    found = model.generate(torch.tensor([source]), max_new_tokens=8, do_sample=False, no_repeat_ngram_size=1, **settings)
    return [row[1 : (row.index(2) if 2 in row else len(row)) + 1] for row in found.tolist()]


def test_greedy_and_beams_find_what_transformers_generate_finds(named, tiny_tokenizer):
    _, model = named
    said = [result.ids for result in generate(model, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=8, no_repeat_ngram_size=1))]
    assert said == [transformers_says(model, prompt)[0] for prompt in PROMPTS]
    assert len(set(map(tuple, said))) == 3
    params = SamplingParams(num_beams=4, num_return_sequences=3, max_new_tokens=8, no_repeat_ngram_size=1)
    said = [result.ids for result in generate(model, tiny_tokenizer, PROMPTS, params)]
    assert said == [ids for prompt in PROMPTS for ids in transformers_says(model, prompt, num_beams=4, num_return_sequences=3)]


def test_every_strategy_goes_on_from_the_right_past_or_is_refused_by_name(named, tiny_tokenizer):
    name, model = named
    for strategy, least in LEAST.items():
        params = SamplingParams(**{"strategy": strategy, "max_new_tokens": 7, "seed": 3, "logprobs": 1, "no_repeat_ngram_size": 1, **least})
        if strategy in ("dola", "diffusion"):
            with pytest.raises(UserError, match=f"strategy '{strategy}' is not made for encoder-decoder models"):
                generate(model, tiny_tokenizer, PROMPTS, params)
        elif strategy == "assisted" and name in LSTMS:
            with pytest.raises(UserError, match="strategy 'assisted' needs truncate, which this architecture's runner does not offer: choose another"):
                generate(model, tiny_tokenizer, PROMPTS, params)
        else:
            results = generate(model, tiny_tokenizer, PROMPTS, params)
            assert {result.prompt_index for result in results} == {0, 1, 2}
            for result in results:
                logprobs = whole(model, PROMPTS[result.prompt_index], [0, *result.ids[:-1]]).logits[0].log_softmax(dim=-1)
                want = logprobs.gather(-1, torch.tensor(result.ids)[:, None])[:, 0].tolist()
                assert [token.logprob for token in result.top_logprobs] == pytest.approx(want, abs=1e-9), strategy


def test_an_assistant_of_its_kind_helps_a_transformer_and_an_lstm_is_none(own, fresh_own, tiny_tokenizer):
    model = own("transformer")
    want = [result.ids for result in generate(model, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=8, no_repeat_ngram_size=1))]
    helped = SamplingParams(max_new_tokens=8, no_repeat_ngram_size=1, assistant_model=fresh_own("transformer", seed=1, encoder_layers=1))
    assert [result.ids for result in generate(model, tiny_tokenizer, PROMPTS, helped)] == want
    with pytest.raises(UserError, match=r"the assistant \(seodang_lstm\) has a state that keeps every guess"):
        generate(model, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=8, assistant_model=own("lstm")))


@torch.no_grad()
def test_words_may_be_given_in_place_of_ids(named):
    _, model = named
    source, target = torch.tensor(PROMPTS[:1]), torch.tensor([[0, 40, 41]])
    words = {"inputs_embeds": model.get_encoder().embed_tokens(source), "decoder_inputs_embeds": model.get_decoder().embed_tokens(target)}
    close(model(**words).logits, model(input_ids=source, decoder_input_ids=target).logits)


def test_scores_are_those_of_the_labels(named, tiny_tokenizer):
    _, model = named
    targets = [[40, 41, 2], [9, 2], [77, 50, 51, 52, 2]]
    got = score(model, tiny_tokenizer, PROMPTS, targets)
    for scores, source, labels in zip(got, PROMPTS, targets):
        loss = model(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).loss
        close(-scores.mean(), loss.detach())


@pytest.mark.parametrize("kind, changes", [("transformer", {"norm_position": "pre"}), ("lstm", {"attention": "dot"})], ids=["transformer", "lstm"])
def test_a_folder_is_loaded_as_any_and_streams_what_the_model_said(fresh_own, tiny_tokenizer, tmp_path, kind, changes):
    model = fresh_own(kind, torch.float32, **changes)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded, tokenizer = load(tmp_path, device="cpu", dtype="float32")
    assert type(loaded) is type(model)
    [said] = generate(model, tiny_tokenizer, ["Suwon"], SamplingParams(max_new_tokens=8))
    assert "".join(event.text for event in stream(loaded, tokenizer, "Suwon", SamplingParams(max_new_tokens=8)) if hasattr(event, "text")) == said.text


def test_refuses_ids_of_another_tokenizer_and_sources_beyond_learned_positions(own, byte_tokenizer):
    learned = own("transformer", positions="learned", max_encoder_position_embeddings=6, max_decoder_position_embeddings=5)
    tokenizer = byte_tokenizer(260)  # the models have 128 ids
    runner = open_runner(learned)
    assert (runner.limit, runner.source_limit) == (5, 6)
    assert (open_runner(own("transformer")).limit, open_runner(own("lstm")).source_limit) == (None, None)
    with pytest.raises(UserError, match="prompt 1 has 7 tokens.*6 positions of the encoder"):
        generate(learned, tokenizer, [[5] * 7], SamplingParams(max_new_tokens=2))
    with pytest.raises(UserError, match="max_new_tokens"):
        generate(learned, tokenizer, [[5] * 6], SamplingParams(max_new_tokens=9))
    for model in (own("transformer"), own("lstm")):
        with pytest.raises(UserError, match="id [0-9]+, but the model's ids are those from 0 to 127"):
            generate(model, tokenizer, ["수원"], SamplingParams(max_new_tokens=2))
        with pytest.raises(UserError, match="source is empty|prompt 1 is empty"):
            generate(model, tokenizer, [[]], SamplingParams(max_new_tokens=2))
