"""Prompts to answers: transformers' tokens, whatever the batch, and a stream that joins to the whole."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationMixin

from seodang.data.chat import prompt_ids, text_ids
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue
from seodang.infer import Committed, Finished, SamplingParams, answers, generate, score, stream
from seodang.infer.engine import generate as calls
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.text.detokenise import whole_text

QUESTIONS = ["Which country is the city of Suwon located in?", "Name three colours.", "안녕하세요? 😀", "Why?"]


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [ids(n, n) for n in (3, 11, 1, 20, 7)]


def asked(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def their_greedy(model, prompt: list[int], new: int, **settings) -> list[int]:
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    out = model.generate(torch.tensor([prompt]), attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0, **settings)
    return out[0, len(prompt) :].tolist()


@pytest.fixture
def opened(monkeypatch):
    """Every runner that is opened in the test."""
    runners = []

    def open_and_remember(model):
        runners.append(RaggedRunner(model))
        return runners[-1]

    monkeypatch.setattr(calls, "open_runner", open_and_remember)
    return runners


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma", "gemma2", "mistral"])
def test_greedy_equals_transformers_on_a_batch_of_unequal_lengths(tiny, tokenizer, kind):
    model = tiny(kind)
    results = generate(model, tokenizer, PROMPTS, SamplingParams(max_new_tokens=30))
    for result, prompt in zip(results, PROMPTS):
        assert result.ids == their_greedy(model, prompt, 30)
        assert result.finish_reason == ("eos" if result.ids[-1] == 2 else "length")


def test_greedy_with_a_repetition_penalty_equals_transformers(tiny, tokenizer):
    model = tiny("llama")
    results = generate(model, tokenizer, PROMPTS, SamplingParams(max_new_tokens=30, repetition_penalty=1.4))
    for result, prompt in zip(results, PROMPTS):
        assert result.ids == their_greedy(model, prompt, 30, repetition_penalty=1.4)


def test_the_real_model_answers_as_transformers_does_and_stops_by_itself(real_model, tokenizer):
    prompts, lengths = [asked(question) for question in QUESTIONS], [20, 8, 8, 8]  # the first answer ends by itself
    results = generate(real_model, tokenizer, prompts, [SamplingParams(max_new_tokens=length) for length in lengths])
    for result, prompt, length in zip(results, prompts, lengths):
        expected = their_greedy(real_model, prompt_ids(tokenizer, prompt), length)
        assert result.ids == expected
        assert result.text == whole_text(tokenizer, expected)
    assert results[0].text == "The city of Suwon is located in the Republic of Korea."
    assert results[0].finish_reason == "eos"


def test_everything_speaks_without_transformers_generate(tiny, tokenizer, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("transformers' generate was called")

    monkeypatch.setattr(GenerationMixin, "generate", refuse)
    model = tiny("llama")
    params = SamplingParams(max_new_tokens=5, temperature=1.0, seed=1)
    assert len(generate(model, tokenizer, PROMPTS, params)) == 5
    assert isinstance(list(stream(model, tokenizer, PROMPTS[0], params))[-1], Finished)
    assert len(score(model, tokenizer, [PROMPTS[0]], [[5, 6]])[0]) == 2


def test_eight_prompts_take_the_passes_of_the_longest_and_no_position_twice(tiny, tokenizer, opened):
    model = tiny("llama")
    prompts = [ids(n, n) for n in (3, 9, 27, 1, 5, 14, 2, 8)]
    lengths = [4, 12, 7, 20, 1, 9, 20, 3]
    params = [SamplingParams(max_new_tokens=n) for n in lengths]
    results = generate(model, tokenizer, prompts, params)
    for prompt, own in zip(prompts, params):
        generate(model, tokenizer, [prompt], own)
    together, *alone = opened
    assert together.passes <= max(runner.passes for runner in alone)
    # every position once, and none for the last token, which nothing follows
    assert together.positions == sum(len(p) + len(r.ids) - 1 for p, r in zip(prompts, results))
    assert together.live == 0


SETTINGS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 9), "seed": st.integers(0, 2**40)},
    optional={
        "temperature": st.sampled_from([0.5, 1.0, 2.0]), "top_k": st.sampled_from([2, 30]), "top_p": st.sampled_from([0.3, 0.95]),
        "min_p": st.just(0.05), "repetition_penalty": st.sampled_from([0.8, 1.5]),
    },
)  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), SETTINGS), min_size=2, max_size=8), st.integers(1, 8))
def test_in_float64_a_row_says_the_same_whoever_shares_its_batch(fresh_tiny, tokenizer, rows, max_rows):
    model = fresh_tiny("llama").double()
    prompts, params = [ids(n, n) for n, _ in rows], [SamplingParams(**own) for _, own in rows]
    together = generate(model, tokenizer, prompts, params, max_rows=max_rows)
    for prompt, own, result in zip(prompts, params, together):
        [alone] = generate(model, tokenizer, [prompt], own)
        assert (alone.ids, alone.text, alone.finish_reason) == (result.ids, result.text, result.finish_reason)
        assert alone.logprobs == pytest.approx(result.logprobs, abs=1e-9)


def test_a_seed_repeats_an_answer_alone_and_among_eight(tiny, tokenizer):
    model, params = tiny("llama"), SamplingParams(max_new_tokens=12, temperature=1.0, seed=5)
    others = [SamplingParams(max_new_tokens=12, temperature=1.3, seed=seed) for seed in range(7)]
    [alone] = generate(model, tokenizer, [PROMPTS[0]], params)
    among = generate(model, tokenizer, [PROMPTS[0], *[ids(n, n) for n in range(1, 8)]], [params, *others])
    assert among[0].ids == alone.ids
    assert alone.seed == 5


def test_without_a_seed_a_fresh_one_is_drawn_and_reported(tiny, tokenizer):
    model, params = tiny("llama"), SamplingParams(max_new_tokens=12, temperature=2.0)
    first, second = generate(model, tokenizer, [PROMPTS[0]] * 2, params)
    assert first.seed != second.seed and first.ids != second.ids
    [again] = generate(model, tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=12, temperature=2.0, seed=first.seed))
    assert again.ids == first.ids


@pytest.mark.full
def test_sampled_tokens_follow_the_filtered_distribution(tiny, tokenizer):
    model, n = tiny("llama"), 1500
    params = [SamplingParams(max_new_tokens=1, temperature=3.0, top_k=5, seed=seed) for seed in range(n)]
    results = generate(model, tokenizer, [PROMPTS[0]] * n, params, max_rows=n)
    with torch.no_grad():
        top = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 3.0).topk(5)
    probs = dict(zip(top.indices.tolist(), top.values.softmax(dim=-1).tolist()))
    counts = {id: sum(result.ids[0] == id for result in results) for id in probs}
    assert sum(counts.values()) == n
    assert sum((counts[id] - n * p) ** 2 / (n * p) for id, p in probs.items()) < 18.47  # p = 0.001 at 4 degrees of freedom
    for result in results[:20]:
        assert result.logprobs[0] == pytest.approx(torch.tensor(probs[result.ids[0]]).log().item(), abs=1e-4)


def test_greedy_logprobs_are_the_models_own(tiny, tokenizer):
    model = tiny("qwen3")
    [result] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=8))
    [expected] = score(model, tokenizer, [PROMPTS[1]], [result.ids])
    assert result.logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def test_streamed_pieces_join_to_the_answer_token_by_token(real_model, tokenizer):
    params = SamplingParams(max_new_tokens=14, temperature=1.0, seed=22)
    [result] = generate(real_model, tokenizer, [asked(QUESTIONS[2])], params)
    *committed, finished = stream(real_model, tokenizer, asked(QUESTIONS[2]), params)
    assert [event.id for event in committed] == result.ids
    assert [event.position for event in committed] == list(range(len(result.ids)))
    assert "".join(event.text for event in committed) == result.text
    assert finished == Finished(0, result.finish_reason)
    shown = [event.text for event in committed]
    assert not all(shown[:-1]) and "\ufffd" not in "".join(shown)  # emoji over several tokens; the last is cut by the length


def test_an_answer_cut_within_a_character_ends_before_it_whoever_reads_it(tiny, byte_tokenizer):
    model, tokenizer, wanted = tiny("llama", vocab_size=260), byte_tokenizer(260), "도 👩"
    ids, heard = tokenizer(wanted)["input_ids"], []

    def spelled(logits, history):
        kept = torch.full_like(logits, -torch.inf)
        kept[:, ids[history.shape[1] - 1]] = 0.0
        return kept

    for count in range(1, len(ids) + 1):
        whole = wanted.encode()[:count].decode(errors="ignore")
        one, chosen = {"max_new_tokens": count, "filters": [spelled]}, {"best_of": 2, "temperature": 1.0}
        ways = [SamplingParams(**one), SamplingParams(**one, num_beams=2), SamplingParams(**one, **chosen, reward=lambda prompt, text: heard.append(text) or 0.0)]
        results = generate(model, tokenizer, [[5]] * 3, ways)
        assert [(result.ids, result.text, result.finish_reason) for result in results] == [(ids[:count], whole, "length")] * 3
        assert heard[-2:] == [whole] * 2
        *committed, _ = stream(model, tokenizer, [5], ways[0])
        assert "".join(event.text for event in committed) == whole


def test_a_word_is_shown_with_the_token_that_says_it(real_model, tokenizer):
    events = stream(real_model, tokenizer, asked(QUESTIONS[0]), SamplingParams(max_new_tokens=7))
    shown = [event.text for event in events if isinstance(event, Committed)]
    assert shown == ["The", " city", " of", " Su", "won", " is", " located"]


def test_a_stop_string_is_never_shown_and_ends_the_answer(real_model, tokenizer):
    [plain] = generate(real_model, tokenizer, [asked(QUESTIONS[0])], SamplingParams(max_new_tokens=30))
    params = SamplingParams(max_new_tokens=30, stop=["won is loc"])  # begins inside one token and ends inside another
    events = list(stream(real_model, tokenizer, asked(QUESTIONS[0]), params))
    shown = [event.text for event in events if isinstance(event, Committed)]
    assert "".join(shown) == "The city of Su" == plain.text[: plain.text.index("won is loc")]
    assert events[-1] == Finished(0, "stop")
    [result] = generate(real_model, tokenizer, [asked(QUESTIONS[0])], params)
    assert (result.text, result.finish_reason) == ("The city of Su", "stop")
    assert result.ids == plain.ids[: len(result.ids)] and len(result.ids) < len(plain.ids)


def test_what_was_held_back_for_a_stop_string_is_shown_at_the_end(real_model, tokenizer):
    params = SamplingParams(max_new_tokens=30, stop=["Korea. And more"])
    [result] = generate(real_model, tokenizer, [asked(QUESTIONS[0])], params)
    assert result.text == "The city of Suwon is located in the Republic of Korea."
    assert result.finish_reason == "eos"


def test_a_stop_id_of_the_callers_ends_the_answer(tiny, tokenizer):
    model = tiny("llama")
    [plain] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=10))
    [result] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=10, stop_token_ids=[plain.ids[4]]))
    assert result.ids == plain.ids[: plain.ids.index(plain.ids[4]) + 1]
    assert result.finish_reason == "stop"


def test_every_end_token_of_the_checkpoint_ends_an_answer(fresh_tiny, tokenizer):
    model = fresh_tiny("llama")
    [plain] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=10))
    model.generation_config.eos_token_id = [2, plain.ids[3]]
    [result] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=10))
    assert result.finish_reason == "eos" and result.ids[-1] == plain.ids[3]


def test_a_text_is_continued_as_it_stands(real_model, tokenizer):
    [raw] = generate(real_model, tokenizer, ["The capital of France is"], SamplingParams(max_new_tokens=3))
    assert raw.ids == their_greedy(real_model, tokenizer("The capital of France is")["input_ids"], 3)
    assert raw.text.startswith(" Paris")
    assert raw.prompt_length == 5


def test_a_dialogue_brings_its_tools(real_model, tokenizer):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}:"
    params = SamplingParams(max_new_tokens=1)
    with_tools, without = generate(real_model, tokenizer, [Dialogue(asked("abc"), [tool]), Dialogue(asked("abc"))], params)
    assert with_tools.prompt_length == len(tokenizer("fabc:")["input_ids"])
    assert without.prompt_length == len(tokenizer("abc:")["input_ids"])


def test_a_callers_filter_rules_its_own_row_alone(tiny, tokenizer):
    def never_even(logits, history):
        return logits.masked_fill(torch.arange(logits.shape[-1]) % 2 == 0, -torch.inf)

    model = tiny("llama")
    params = [SamplingParams(max_new_tokens=9, filters=[never_even]), SamplingParams(max_new_tokens=9)]
    odd, free = generate(model, tokenizer, PROMPTS[:2], params)
    assert all(id % 2 == 1 for id in odd.ids)
    assert free.ids == their_greedy(model, PROMPTS[1], 9)


def test_answers_come_as_they_finish(tiny, tokenizer):
    params = [SamplingParams(max_new_tokens=n) for n in (9, 2, 5)]
    order = [result.prompt_index for result in answers(tiny("llama"), tokenizer, PROMPTS[:3], params)]
    assert order == [1, 2, 0]


def test_a_model_in_training_speaks_without_dropout_and_goes_on_training(fresh_tiny, tokenizer):
    model = fresh_tiny("llama", attention_dropout=0.5)
    expected = their_greedy(model, PROMPTS[1], 10)
    model.train()
    [result] = generate(model, tokenizer, [PROMPTS[1]], SamplingParams(max_new_tokens=10))
    assert result.ids == expected
    assert model.training and model.config._attn_implementation == "sdpa"
    model(input_ids=torch.tensor([PROMPTS[1]]), labels=torch.tensor([PROMPTS[1]])).loss.backward()


def test_a_stream_that_is_left_early_gives_its_memory_back(tiny, tokenizer, opened):
    events = stream(tiny("llama"), tokenizer, PROMPTS[0], SamplingParams(max_new_tokens=50))
    next(events)
    assert opened[0].live == 1
    events.close()
    assert opened[0].live == 0


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[5] * 200], {"max_new_tokens": 57}, "prompt 1 has 200 tokens, which with max_new_tokens=57 is more than the 256 positions"),
        ([[5], []], {}, "prompt 2 is empty"),
        ([""], {}, "prompt 1 is empty"),
        ([[5, 6]], {"trie": [5]}, "trie must be a list of texts or of lists of ids, got the entry 5"),
        ([[5, 6]], {"attention_mask": ["a", 1]}, "attention_mask of prompt 1 must be a list of 2 numbers"),
        ([[5, 6]], {"min_new_tokens": 6}, "min_new_tokens=6 leaves no room: prompt 1 may have 5 new tokens"),
        ([[5, 6]], {"min_length": 8}, "min_length=8 leaves no room: prompt 1 may have 5 new tokens"),
        ([[5, 6]], {"min_new_tokens": 3, "max_length": 4}, "min_new_tokens=3 leaves no room: prompt 1 may have 2 new tokens"),
        ([[5, 70000]], {}, "prompt 1 has the id 70000"),
        ([[5], [6, 128]], {}, "prompt 2 has the id 128, but the model's ids are those from 0 to 127"),
        ([[5]], {"guidance_scale": 1.5, "negative_prompt": [128]}, "the negative prompt of prompt 1 has the id 128"),
        ("text", {}, "prompts must be a list"),
    ],
    ids=str,
)
def test_a_prompt_that_cannot_be_answered_is_refused_before_any_compute(tiny, tokenizer, monkeypatch, prompts, settings, message):
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    with pytest.raises(UserError, match=message):
        generate(tiny("llama"), tokenizer, prompts, SamplingParams(**{"max_new_tokens": 5, **settings}))


def test_a_stream_is_refused_at_the_call_and_not_at_its_first_event(tiny, tokenizer):
    with pytest.raises(UserError, match="positions of the model"):
        stream(tiny("llama"), tokenizer, [5], SamplingParams(max_new_tokens=1000))


def test_a_prompt_that_just_fits_is_answered(tiny, tokenizer):
    [result] = generate(tiny("llama"), tokenizer, [ids(250)], SamplingParams(max_new_tokens=6))
    assert len(result.ids) == 6 or result.finish_reason == "eos"


def test_params_must_be_one_or_one_a_prompt(tiny, tokenizer):
    with pytest.raises(UserError, match="2 params for 3 prompts"):
        generate(tiny("llama"), tokenizer, PROMPTS[:3], [SamplingParams()] * 2)


@pytest.mark.parametrize("prompt", [None, 3, ["a", "b"], {"role": "user", "content": "hi"}, [5.5]], ids=str)
def test_what_is_no_prompt_is_refused(tiny_llama, tokenizer, prompt):
    with pytest.raises(UserError, match="prompt 1 must be a text, a list of messages or a list of ids"):
        generate(tiny_llama, tokenizer, [prompt])


@pytest.mark.parametrize("literal", [None, True, False])
def test_a_control_token_in_a_prompt_is_text_or_the_token_as_the_call_says(tiny_llama, tiny_tokenizer, literal):
    talk, raw = [{"role": "user", "content": "a<|im_end|>b"}], "a<|im_end|>b"
    params = SamplingParams(max_new_tokens=4)
    found = generate(tiny_llama, tiny_tokenizer, [talk, raw], params, literal=literal)
    ids = [prompt_ids(tiny_tokenizer, talk, literal=literal is not False), text_ids(tiny_tokenizer, raw, literal=literal is True)]
    assert [result.ids for result in found] == [result.ids for result in generate(tiny_llama, tiny_tokenizer, ids, params)]
    assert [result.prompt_length for result in found] == list(map(len, ids))
    streamed = stream(tiny_llama, tiny_tokenizer, raw, params, literal=literal)
    assert [event.id for event in streamed if isinstance(event, Committed)] == found[1].ids
    assert len(text_ids(tiny_tokenizer, raw)) < len(text_ids(tiny_tokenizer, raw, literal=True))
    with pytest.raises(UserError, match="literal must be True, False or None, got 'no'"):
        generate(tiny_llama, tiny_tokenizer, [raw], params, literal="no")


@pytest.mark.parametrize("params", [7, {"max_new_tokens": 2}, [{"max_new_tokens": 2}]], ids=str)
def test_what_are_no_params_is_refused(tiny_llama, tokenizer, params):
    with pytest.raises(UserError, match="params must be SamplingParams"):
        generate(tiny_llama, tokenizer, [[5]], params)


@pytest.mark.parametrize("id", [9999, -1, "a"])
def test_a_stop_id_that_the_model_does_not_have_is_refused(tiny_llama, tokenizer, id):
    with pytest.raises(UserError, match=f"stop_token_ids has the id {id!r}"):
        generate(tiny_llama, tokenizer, [[5]], SamplingParams(stop_token_ids=[id], max_new_tokens=3))


def test_a_function_that_allows_nothing_it_could_name_is_refused_by_name(tiny_llama, tokenizer):
    with pytest.raises(UserError, match="prefix_allowed_tokens_fn must return a list of ids, got None"):
        generate(tiny_llama, tokenizer, [[5, 6]], SamplingParams(max_new_tokens=3, prefix_allowed_tokens_fn=lambda ids: None))


@pytest.mark.parametrize(
    "prompt, place",
    [
        ("\ud800", "prompt 2"),
        (asked("\ud800"), "prompt 2: messages[0].content"),
        (Dialogue(asked("fine"), [{"name": "\ud800"}]), "prompt 2: tools[0].name"),
    ],
    ids=["text", "messages", "tools"],
)
def test_half_a_character_in_a_prompt_or_a_scored_answer_is_refused_by_its_place(tiny_llama, tiny_tokenizer, prompt, place):
    with pytest.raises(UserError) as refused:
        generate(tiny_llama, tiny_tokenizer, ["fine", prompt], SamplingParams(max_new_tokens=2))
    assert str(refused.value).startswith(f"{place} has the lone surrogate U+D800 as character 1")
    with pytest.raises(UserError, match="^prompt 1 with its answer: the answer has the lone surrogate"):
        score(tiny_llama, tiny_tokenizer, ["fine"], ["\ud800"])
