"""Parts of a prompt that nothing sees: found by tokens, characters and messages, and without any influence."""

import pytest
import torch
from tokenizers.normalizers import Lowercase

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.infer import PrefixCache, SamplingParams, Span, generate
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.text.spans import positions_to_mask

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "A secret: 하늘"}, {"role": "user", "content": "Hello?"}]


def reference(model, ids: list[int], positions: list[int], new: int) -> list[int]:
    """Greedy search without a cache over tokens that keep their positions, through transformers' own forward."""
    ids, positions = list(ids), list(positions)
    for _ in range(new):
        logits = model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions])).logits
        ids.append(int(logits[0, -1].argmax()))
        positions.append(positions[-1] + 1)
    return ids[-new:]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma"])
def test_what_is_hidden_has_exactly_no_influence(fresh_tiny, tokenizer, kind):
    model = fresh_tiny(kind).double()
    params = SamplingParams(max_new_tokens=12, hide=[Span(2, 4), Span(6, 7)], ignore_eos=True)
    visible = [0, 1, 4, 5, 7]
    [result] = generate(model, tokenizer, [PROMPT], params)
    assert result.ids == reference(model, [PROMPT[i] for i in visible], visible, 12)
    other = [99 if i in (2, 3, 6) else id for i, id in enumerate(PROMPT)]
    [changed] = generate(model, tokenizer, [other], params)
    assert changed.ids == result.ids and changed.logprobs == result.logprobs
    [seen] = generate(model, tokenizer, [PROMPT], SamplingParams(max_new_tokens=12, ignore_eos=True))
    assert seen.logprobs != result.logprobs


def test_a_mask_with_holes_hides_as_spans_do_and_a_batch_changes_nothing(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    spans = SamplingParams(max_new_tokens=9, hide=[Span(1, 3)])
    mask = SamplingParams(max_new_tokens=9, attention_mask=[1, 0, 0, 1, 1, 1, 1, 1])
    plain = SamplingParams(max_new_tokens=9)
    together = generate(model, tokenizer, [PROMPT, PROMPT, PROMPT[:3]], [spans, mask, plain])
    assert together[0].ids == together[1].ids == generate(model, tokenizer, [PROMPT], spans)[0].ids
    assert together[2].ids == generate(model, tokenizer, [PROMPT[:3]], plain)[0].ids


def test_several_answers_share_a_prompt_with_holes(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    params = SamplingParams(max_new_tokens=6, hide=[Span(0, 2)], temperature=1.0, seed=3, num_return_sequences=3)
    results = generate(model, tokenizer, [PROMPT], params)
    for result in results:
        alone = SamplingParams(max_new_tokens=6, hide=[Span(0, 2)], temperature=1.0, seed=result.seed)
        assert generate(model, tokenizer, [PROMPT], alone)[0].ids == result.ids
    assert len({tuple(result.ids) for result in results}) > 1


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 4}, {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}],
    ids=["greedy", "beams", "contrastive", "lookup", "groups"],
)
def test_a_shift_of_all_positions_changes_nothing_under_rotation(fresh_tiny, tokenizer, options):
    """Also where rows are copied onto each other and cut back: there the places in the cache are fewer than the ids."""
    model = fresh_tiny("llama").double()
    params = SamplingParams(max_new_tokens=12, **options)
    hidden = SamplingParams(max_new_tokens=12, hide=[Span(0, 40)], **options)
    [plain] = generate(model, tokenizer, [PROMPT], params)
    [shifted] = generate(model, tokenizer, [[3] * 40 + PROMPT], hidden)
    assert shifted.ids == plain.ids
    torch.testing.assert_close(torch.tensor(shifted.logprobs), torch.tensor(plain.logprobs), atol=1e-5, rtol=0)  # the angles are float32


def hidden_text(tokenizer, prompt, ids, span) -> str:
    return tokenizer.decode([ids[i] for i in positions_to_mask(tokenizer, prompt, ids, [span], None, "it")])


def test_characters_and_messages_are_found_among_the_tokens(tokenizer):
    text = "The sky is 파랗다 today"
    ids = tokenizer(text)["input_ids"]
    assert hidden_text(tokenizer, text, ids, Span(11, 14, "characters")) == " 파랗다"  # the space is part of a token that is named
    assert hidden_text(tokenizer, text, ids, Span(5, 6, "characters")) == " sky"
    ids = prompt_ids(tokenizer, TALK)
    assert hidden_text(tokenizer, TALK, ids, Span(1, 2, "messages")) == "<|im_start|>user\nA secret: 하늘<|im_end|>\n"


def test_a_hidden_message_is_not_read(real_model, tokenizer):
    [result] = generate(real_model, tokenizer, [TALK], SamplingParams(max_new_tokens=5, hide=[Span(1, 2, "messages")]))
    told = [dict(message) for message in TALK]
    told[1]["content"] = "A secret: 구름"  # as many tokens
    assert len(prompt_ids(tokenizer, told)) == len(prompt_ids(tokenizer, TALK))
    [other] = generate(real_model, tokenizer, [told], SamplingParams(max_new_tokens=5, hide=[Span(1, 2, "messages")]))
    assert result.ids == other.ids and result.logprobs == other.logprobs


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hide": [Span(0, 9)]}, "counts tokens, of which there are 8"),
        ({"hide": [Span(7, 8)]}, "the last token of prompt 1 is hidden"),
        ({"hide": [Span(0, 1, "messages")]}, "has no messages"),
        ({"attention_mask": [1, 1]}, "must be 8 numbers, 0 or 1, got 2"),
        ({"attention_mask": [1, 1, 1, 1, 2, 1, 1, 1]}, "must be 8 numbers"),
    ],
    ids=str,
)
def test_a_part_that_is_not_there_is_refused_before_any_compute(tiny, tokenizer, monkeypatch, settings, message):
    model = tiny("llama")
    open_runner(model)  # which is tried when it is first opened
    monkeypatch.setattr(RaggedRunner, "observe", lambda *args: pytest.fail("computed something"))
    with pytest.raises(UserError, match=message):
        generate(model, tokenizer, [PROMPT], SamplingParams(max_new_tokens=5, **settings))


@pytest.mark.parametrize("span", [(3, 3), (-1, 2)])
def test_a_span_without_length_is_refused(span):
    with pytest.raises(UserError, match="runs from a start of at least 0"):
        Span(*span)


def test_a_window_and_an_architecture_without_holes_are_refused_by_name(tiny, tokenizer):
    with pytest.raises(UserError, match="mistral attends in a sliding window of 6"):
        generate(tiny("mistral"), tokenizer, [PROMPT], SamplingParams(max_new_tokens=5, hide=[Span(0, 1)]))


def test_the_next_turn_costs_only_what_is_new(tiny, tokenizer):
    model = tiny("llama")
    cache = PrefixCache(model)
    params = SamplingParams(max_new_tokens=10)
    [first] = generate(model, tokenizer, [PROMPT], params, prefix_cache=cache)
    longer = PROMPT + first.ids + [20, 21, 22]
    before = cache.runner.positions
    [second] = generate(model, tokenizer, [longer], params, prefix_cache=cache)
    assert cache.runner.positions - before == len(longer) - (len(PROMPT) + len(first.ids) - 1) + len(second.ids) - 1
    assert second.ids == generate(model, tokenizer, [longer], params)[0].ids
    assert second.logprobs == pytest.approx(generate(model, tokenizer, [longer], params)[0].logprobs, abs=1e-5)
    before = cache.runner.positions
    [branch] = generate(model, tokenizer, [PROMPT + [30]], params, prefix_cache=cache)  # another end of the same beginning
    assert branch.ids == generate(model, tokenizer, [PROMPT + [30]], params)[0].ids
    assert cache.runner.positions - before == 1 + len(branch.ids) - 1
    cache.clear()
    assert cache.runner.live == 0


def test_a_cache_keeps_as_many_talks_as_it_is_told_and_knows_its_model(tiny, fresh_tiny, tokenizer):
    cache = PrefixCache(tiny("llama"), sequences=2)
    for start in (5, 15, 25, 35):
        generate(tiny("llama"), tokenizer, [[start, start + 1]], SamplingParams(max_new_tokens=3), prefix_cache=cache)
    assert cache.runner.live == 2
    with pytest.raises(UserError, match="made for another model"):
        generate(fresh_tiny("llama"), tokenizer, [[5]], SamplingParams(max_new_tokens=3), prefix_cache=cache)
    with pytest.raises(UserError, match="sequences must be at least 1"):
        PrefixCache(tiny("llama"), sequences=0)
    assert open_runner(tiny("llama")).live == 0


def test_a_text_that_the_tokenizer_rewrites_is_not_searched_by_characters(tiny_tokenizer):
    tiny_tokenizer.backend_tokenizer.normalizer = Lowercase()
    ids = tiny_tokenizer("Abcd")["input_ids"]
    assert positions_to_mask(tiny_tokenizer, "abcd", ids, [Span(0, 2, by="characters")], None, "prompt 1") == (0, 1)
    with pytest.raises(UserError, match="rewrites the text of prompt 1"):
        positions_to_mask(tiny_tokenizer, "Abcd", ids, [Span(0, 2, by="characters")], None, "prompt 1")
