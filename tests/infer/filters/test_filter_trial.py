"""A caller's filter is tried before anything is computed, and remembers nothing of its trial."""

import dataclasses
import functools
import random

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor, TemperatureLogitsWarper

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.filters.filter_trial import copied
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

PROMPT = [5, 6, 7]
HEARD = []
COUNT = 0


def of_transformers(input_ids, scores):
    scores[:, 33] = -torch.inf
    return scores


class Reversed:
    def __call__(self, ids, scores):
        return scores.index_fill(1, torch.tensor([33]), -torch.inf)


def only_likely(logits, ids):
    return logits.masked_fill(logits.softmax(dim=-1) < 0.5 * logits.softmax(dim=-1).max(), -torch.inf)


def counting(logits, ids):
    global COUNT
    COUNT += 1
    HEARD.append(ids.shape[1])
    return logits + 0.0 * torch.rand(1) + 0.0 * random.random() + 0.0 * float(np.random.rand())


def of_itself(logits, ids):
    of_itself.heard.append(ids.shape[1])
    return logits


of_itself.heard = []


class Remembering:
    def __init__(self, model):
        self.model, self.heard, self.seen = model, [], torch.zeros(1)

    def __call__(self, logits, ids):
        self.heard.append(ids.shape[1])
        self.seen += 1
        return logits

    def method(self, logits, ids):
        return self(logits, ids)


@pytest.fixture
def ask(tiny_llama, tiny_tokenizer):
    def ask(*filters, **settings):
        return generate(tiny_llama, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=3, ignore_eos=True, filters=filters, **settings))[0]

    return ask


@pytest.mark.parametrize(
    "own, message",
    [
        (lambda logits, ids: None, r"the filter <lambda> must return logits of shape \(1, 128\), got NoneType"),
        (lambda logits, ids: logits[0], r"must return logits of shape \(1, 128\), got \(128,\)"),
        (lambda logits, ids: logits > 0, "must return logits, floating-point numbers, got bool"),
        (lambda logits, ids: logits * torch.nan, "returned nan or infinity after 3 tokens"),
        (lambda logits, ids: logits - torch.inf, "left no token to choose after 3 tokens"),
        (lambda logits: logits, "the filter <lambda> raised TypeError"),
        (lambda logits, ids: [].pop(), "the filter <lambda> raised IndexError: pop from empty list"),
        (SuppressTokensLogitsProcessor, "the filter SuppressTokensLogitsProcessor raised|got SuppressTokensLogitsProcessor"),  # not an instance of it
        (of_transformers, r"the filter of_transformers raised .* it seems to take \(ids, logits\), but a filter is called with \(logits, ids\): exchange"),
        (Reversed(), r"the filter Reversed raised .* it seems to take \(ids, logits\).* derive it from transformers' LogitsProcessor"),
        (lambda input_ids, scores: scores, r"must return logits of shape \(1, 128\), got \(1, 3\): it seems to take \(ids, logits\)"),
    ],
)
def test_a_filter_that_cannot_work_is_refused_before_anything_is_computed(ask, tiny_llama, monkeypatch, own, message):
    open_runner(tiny_llama)  # which looks once whether its steps are right
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    with pytest.raises(UserError, match=message):
        ask(own)


def test_a_filter_is_tried_with_the_prompts_ids_and_logits_of_the_models_width(tiny_llama, byte_tokenizer, monkeypatch):
    heard = []

    class Refusing:
        def __deepcopy__(self, memo):
            return self  # to be heard of, which a copy is not

        def __call__(self, logits, ids):
            heard.append((logits, ids))
            raise LookupError("enough")

    with pytest.raises(UserError, match="the filter Refusing raised LookupError: enough"):
        generate(tiny_llama, byte_tokenizer(100), [PROMPT, [9]], SamplingParams(max_new_tokens=9, filters=[Refusing()]))
    logits, ids = heard[0]
    assert ids.tolist() == [PROMPT] and logits.shape == (1, 128) and logits.dtype == torch.float32
    assert logits.isfinite()[0].tolist() == [True] * 100 + [False] * 28  # the tokenizer has not the last
    assert 0.9 < logits.softmax(dim=-1).max() < 0.95


def test_filters_of_transformers_are_called_in_their_own_order_alone_or_in_their_list(ask):
    plain = ask().ids
    banned = SuppressTokensLogitsProcessor(plain[:1])
    one, listed = ask(banned), ask(LogitsProcessorList([TemperatureLogitsWarper(2.0), banned]))
    assert one.ids == listed.ids and plain[0] not in one.ids
    assert ask(only_likely).ids == plain  # made-up logits are such that a threshold leaves a token


def test_a_threshold_for_logits_themselves_is_no_mistake(ask):
    plain = ask()  # greedy: the likeliest tokens have logits above zero, of the made-up ones none has
    assert ask(lambda logits, ids: logits.masked_fill(logits <= 0.0, -torch.inf)).ids == plain.ids


def test_what_a_filter_remembers_begins_with_the_answer(ask, tiny_llama):
    counted, seen = 0, []

    def closing(logits, ids, heard=[], *, more={}):
        nonlocal counted
        counted += 1
        heard.append(more.setdefault("calls", []).append(ids.shape[1]))
        seen.append(ids.shape[1])
        return logits

    stateful, bound = Remembering(tiny_llama), Remembering(tiny_llama)
    noise = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(UserError):  # nothing is computed, and nothing is disturbed
        ask(counting, closing, stateful, bound.method, functools.partial(bound.method), lambda logits, ids: None)
    assert torch.equal(noise[0], torch.random.get_rng_state()) and noise[1] == random.getstate() and noise[2] == np.random.get_state()[1].tolist()
    assert (COUNT, HEARD, counted, seen, closing.__defaults__, closing.__kwdefaults__) == (0, [], 0, [], ([],), {"more": {}})
    assert stateful.heard == bound.heard == [] and stateful.seen == bound.seen == 0
    ask(counting, closing, stateful, bound.method)
    assert (COUNT, counted) == (3, 3) and HEARD == seen == stateful.heard == bound.heard == [3, 4, 5] and stateful.seen == 3


def test_a_function_may_remember_in_its_own_attributes(ask):
    def within(logits, ids):
        within.calls += 1
        return logits

    within.calls = 0
    ask(of_itself, within)
    assert of_itself.heard == [3, 4, 5] and within.calls == 3


def test_a_partial_is_a_function_with_its_arguments(ask, tiny_llama):
    heard = []

    def judged(model, more, logits, ids):
        heard.append((model, ids.shape[1]))
        more.append(None)
        return logits

    own = functools.partial(judged, tiny_llama, [])
    ask(own)
    assert heard == [(tiny_llama, 3), (tiny_llama, 4), (tiny_llama, 5)] and len(own.args[1]) == 3
    assert copied(own).args[0] is tiny_llama and copied([own])[0].args[0] is tiny_llama


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_filter_may_give_floating_point_numbers_of_any_width(ask, dtype):
    plain = ask().ids
    assert plain[0] not in ask(lambda logits, ids, banned=plain[0]: logits.index_fill(1, torch.tensor([banned]), -torch.inf).to(dtype)).ids


def test_a_copy_shares_models_and_what_cannot_be_copied_is_not_tried(ask, tiny_llama):
    assert copied(Remembering(tiny_llama)).model is tiny_llama
    slim = dataclasses.make_dataclass("Slim", [("model", object), ("counts", list)], slots=True)(tiny_llama, [])
    assert copied(slim).model is tiny_llama and copied(slim).counts is not slim.counts
    judge = {"models": [tiny_llama]}
    assert copied(lambda logits, ids: judge).__closure__[0].cell_contents["models"][0] is tiny_llama
    numbers = (number for number in range(3))  # a generator has no copy
    heard = []

    class Dealing(LogitsProcessor):
        def __init__(self):
            self.numbers = numbers

        def __call__(self, input_ids, scores):
            heard.append(next(self.numbers))
            return scores

    ask(Dealing())
    assert heard == [0, 1, 2]
