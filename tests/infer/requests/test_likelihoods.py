"""What the model itself thinks of tokens: a plain forward pass of transformers says the same, whatever chose them."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Committed, PrefixCache, PromptRead, SamplingParams, Span, generate, stream
from seodang.infer.engine import reading
from seodang.infer.requests.likelihoods import Likelihoods

PROMPT, OTHER = [5, 6, 7, 8, 5, 6], [20, 21, 22]
MAMBA_ERROR = 1e-6  # its logits are float32 in any case
WAYS = {
    "greedy": {}, "sampling": {"temperature": 1.3, "top_k": 9, "repetition_penalty": 1.2}, "several": {"do_sample": True, "num_return_sequences": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 2}, "sampled beam": {"num_beams": 3, "do_sample": True},
    "stochastic": {"strategy": "stochastic_beam", "num_beams": 3}, "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 3.0},
    "constrained": {"num_beams": 3, "force_words_ids": [[30, 31]]}, "contrastive": {"penalty_alpha": 0.4, "top_k": 3}, "dola": {"dola_layers": [0, 1]},
    "lookup": {"prompt_lookup_num_tokens": 3, "num_assistant_tokens_schedule": "constant"}, "best": {"best_of": 4, "do_sample": True},
    "guided": {"guidance_scale": 2.0, "negative_prompt": [9, 10]}, "prefix": {"prefix": "abc"}, "guided prefix": {"guidance_scale": 2.0, "prefix": "abc"},
    "hidden": {"hide": [Span(1, 3)], "prefix": "ab"}, "own filter": {"filters": [lambda logits, history: logits.neg_()]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny):
    import copy

    return copy.deepcopy(tiny("llama")).double()


@pytest.fixture
def ways(tiny):
    """The settings of every way to choose, those with a further model too, each sampling from a seed."""
    draft = {"assistant_model": tiny("llama", seed=1), "do_sample": True, "assistant_confidence_threshold": 0.0}
    amateur = {"amateur_model": tiny("llama", seed=1)}
    return {name: {"seed": 3, "max_new_tokens": 8, **each} for name, each in {**WAYS, "draft": draft, "amateur": amateur}.items()}


def plain(model, ids: list[int], hidden: tuple[int, ...] = (), **source) -> torch.Tensor:
    """The log-probabilities behind every id, by one forward pass of transformers: [ids, vocab]."""
    mask = torch.tensor([[place not in hidden for place in range(len(ids))]]).long()
    with torch.no_grad():
        if source:
            return model(**source, decoder_input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        return model(torch.tensor([ids]), attention_mask=mask, position_ids=torch.arange(len(ids))[None]).logits[0].log_softmax(dim=-1)


def check(told: list, ids: list[int], expected: torch.Tensor, count: int, error: float = 1e-9) -> None:
    """Each of the ids with its log-probability and the likeliest, as rows of expected, [ids, vocab], have them."""
    assert [each.id for each in told] == ids
    for each, row in zip(told, expected):
        assert each.logprob == pytest.approx(float(row[each.id]), abs=error)
        best = row.topk(count)
        assert [top.id for top in each.top] == best.indices.tolist()
        assert [top.logprob for top in each.top] == pytest.approx(best.values.tolist(), abs=error)


def test_every_way_to_choose_tells_what_a_plain_forward_pass_says_in_one_batch(model, ways, tiny_tokenizer):
    counts = [n % 4 for n in range(len(ways))]
    params = [SamplingParams(**each, logprobs=n) for each, n in zip(ways.values(), counts)]
    results = generate(model, tiny_tokenizer, [PROMPT] * len(ways), params)
    assert {result.prompt_index for result in results} == set(range(len(ways)))
    for result in results:
        hidden = (1, 2) if params[result.prompt_index].hide else ()
        expected = plain(model, PROMPT + result.ids, hidden)[len(PROMPT) - 1 : -1]
        check(result.top_logprobs, result.ids, expected, counts[result.prompt_index])
        assert result.prompt_logprobs == []
    asked_nothing = generate(model, tiny_tokenizer, [PROMPT] * len(ways), [SamplingParams(**each) for each in ways.values()])
    assert [result.ids for result in asked_nothing] == [result.ids for result in results]
    assert all(result.top_logprobs == result.prompt_logprobs == [] for result in asked_nothing)


def test_the_prompts_tokens_too_whatever_a_cache_knows_of_it_and_in_passes_of_bounded_size(model, ways, tiny_tokenizer, monkeypatch):
    del ways["hidden"]
    cache = PrefixCache(model)
    generate(model, tiny_tokenizer, [PROMPT[:4]], SamplingParams(max_new_tokens=1), prefix_cache=cache)
    params = [SamplingParams(**each, prompt_logprobs=2, logprobs=n % 2 or None) for n, each in enumerate(ways.values())]
    cold = generate(model, tiny_tokenizer, [PROMPT] * len(ways), params)
    monkeypatch.setattr(reading, "MAX_LOGITS", 2)
    for results in (cold, generate(model, tiny_tokenizer, [PROMPT] * len(ways), params, prefix_cache=cache)):
        for result in results:
            expected = plain(model, PROMPT + result.ids)
            assert result.prompt_logprobs[0] is None
            check(result.prompt_logprobs[1:], PROMPT[1:], expected[: len(PROMPT) - 1], 2)
            if params[result.prompt_index].logprobs:
                check(result.top_logprobs, result.ids, expected[len(PROMPT) - 1 : -1], 1)
        assert [result.ids for result in results] == [result.ids for result in cold]
    assert generate(model, tiny_tokenizer, [[7]], SamplingParams(max_new_tokens=1, prompt_logprobs=1))[0].prompt_logprobs == [None]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_tells_of_its_answer_and_refuses_the_source(fresh_tiny, tiny_tokenizer, kind):
    model, ways = fresh_tiny(kind).double(), [{"num_beams": 3}, {"prefix": "abc"}, {"temperature": 1.0, "seed": 1}]
    results = generate(model, tiny_tokenizer, [OTHER] * 3, [SamplingParams(max_new_tokens=6, logprobs=2, **each) for each in ways])
    start = model.config.decoder_start_token_id
    for result in results:
        check(result.top_logprobs, result.ids, plain(model, [start, *result.ids], input_ids=torch.tensor([OTHER]))[:-1], 2)
    with pytest.raises(UserError, match="prompt_logprobs=1: the encoder"):
        generate(model, tiny_tokenizer, [OTHER], SamplingParams(max_new_tokens=2, prompt_logprobs=1))


def test_a_model_whose_state_cannot_be_cut_back_tells_the_same(tiny_tokenizer):
    from transformers import AutoModelForCausalLM, MambaConfig

    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    model = AutoModelForCausalLM.from_config(MambaConfig(**sizes)).double().eval()
    [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=4, logprobs=2, prompt_logprobs=1, ignore_eos=True))
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT + result.ids])).logits[0].log_softmax(dim=-1)
    check(result.top_logprobs, result.ids, expected[len(PROMPT) - 1 : -1], 2, MAMBA_ERROR)
    check(result.prompt_logprobs[1:], PROMPT[1:], expected, 1, MAMBA_ERROR)


def test_the_stream_tells_the_prompt_first_and_then_each_token(model, tiny_tokenizer):
    params = SamplingParams(max_new_tokens=5, num_beams=3, logprobs=2, prompt_logprobs=1)
    [result] = generate(model, tiny_tokenizer, [PROMPT], params)
    first, *events = stream(model, tiny_tokenizer, PROMPT, params)
    assert first == PromptRead(0, result.prompt_logprobs)
    assert [event.top_logprobs for event in events if isinstance(event, Committed)] == result.top_logprobs
    plain_events = stream(model, tiny_tokenizer, PROMPT, SamplingParams(max_new_tokens=2))
    assert [event.top_logprobs for event in plain_events if isinstance(event, Committed)] == [None, None]


def test_bytes_join_to_the_text_where_a_character_is_spread_over_tokens(byte_tokenizer):
    known = Likelihoods(torch.zeros(1, 512), 0)
    tokenizer = byte_tokenizer(260)
    ids = tokenizer.encode("a나😀", add_special_tokens=False)
    told = [known.at(0, id, 0, tokenizer) for id in ids]
    assert b"".join(each.bytes for each in told).decode() == "a나😀" and len(told) > 3 and "\ufffd" in told[1].text
    end = known.at(0, tokenizer.eos_token_id, 0, tokenizer)
    assert (end.text, end.bytes) == (tokenizer.eos_token, None) and known.at(0, 400, 0, tokenizer).text == "<400>"


def test_hand_arithmetic_in_float32_from_bfloat16():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log().add(3).bfloat16()
    told = Likelihoods(logits, 2).at(0, 3, 1, None)
    assert told.logprob == pytest.approx(float(logits.float().log_softmax(-1)[0, 3]), abs=1e-7) and [each.id for each in told.top] == [0]


@pytest.mark.parametrize("wrong", [-1, True, 2.0, "2"])
def test_a_number_of_tokens_that_is_none_is_refused(wrong):
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(UserError, match=f"{name} must be a whole number from 0"):
            SamplingParams(**{name: wrong})


def test_hidden_spans_have_no_likelihood(model, tiny_tokenizer):
    with pytest.raises(UserError, match="prompt_logprobs=0 tells of all tokens of the prompt, of which some are hidden"):
        generate(model, tiny_tokenizer, [PROMPT], SamplingParams(hide=[Span(1, 2)], prompt_logprobs=0, max_new_tokens=2))
