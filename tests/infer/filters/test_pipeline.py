"""The chain of filters: each row its own settings, in transformers' order or its own."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, SuppressTokensLogitsProcessor

from seodang.data.errors import UserError
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.filters import logits as shapes
from seodang.infer.filters.logits import XTC_DRAW
from seodang.infer.filters.mirostat import mirostat
from seodang.infer.filters.pipeline import DEFAULT_ORDER, FILTERS, Filters, check_filters, order_of, uses
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.rng import uniform
from seodang.infer.requests.sequence import TokenSequence

VOCAB, END = 300, 2


def row(prompt: list[int], answer: list[int] = (), seed: int = 0, source=None, breakers=frozenset(), **settings) -> TokenSequence:
    request = Request(
        0, prompt, SamplingParams(**settings), seed, frozenset([END]), lambda: None, source_ids=source, breaker_ids=breakers
    )
    return TokenSequence(Generation(request), None, 0, [*prompt, *answer], None)


def logits(rows: int, vocab: int = VOCAB) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


def even(history) -> list[int]:
    return list(range(len(history) % 2, VOCAB, 2))


def bonus(scores, history):
    return scores + torch.linspace(0, 1, scores.shape[-1])


# each setting with a few of its values; their order here is of no account
CHOICES = {
    "temperature": [0.7, 1.6], "top_k": [3, 40, 280], "top_p": [0.4, 0.9], "min_p": [0.01, 0.2], "typical_p": [0.3, 0.9],
    "top_h": [0.2, 0.7], "epsilon_cutoff": [1e-3, 0.02], "eta_cutoff": [1e-3, 0.05],
    "repetition_penalty": [0.8, 1.3], "encoder_repetition_penalty": [0.8, 1.5],
    "no_repeat_ngram_size": [1, 2, 3], "encoder_no_repeat_ngram_size": [1, 2], "bad_words_ids": [[[5], [7, 8]], [[4, 5, 6]]],
    "min_length": [3, 12], "min_new_tokens": [2, 5], "prefix_allowed_tokens_fn": [even], "forced_eos_token_id": [END],
    "exponential_decay_length_penalty": [(1, 1.3)], "suppress_tokens": [[9, 10]], "begin_suppress_tokens": [[11, 12]],
    "sequence_bias": [{(5,): 2.5, (7, 9): -4.0}], "filters": [[bonus]],
}  # fmt: skip


def theirs(model, each: TokenSequence, scores: torch.Tensor) -> torch.Tensor:
    """transformers' own chain, as `generate` would build it for this row alone."""
    params, prompt = each.request.params, each.request.prompt_ids
    own = dict(params.given)
    allowed, mine = own.pop("prefix_allowed_tokens_fn", None), own.pop("filters", ())
    own["max_length"] = len(prompt) + own.pop("max_new_tokens")
    config = GenerationConfig(**own, do_sample=params.samples, num_beams=1, num_return_sequences=1, eos_token_id=END)
    config._eos_token_tensor = torch.tensor([END])
    chain = model._get_logits_processor(
        config, len(prompt), torch.tensor([prompt]), (lambda batch, ids: allowed(ids)) if allowed else None
    )
    if mine:  # where generate puts a caller's processors: before the warpers
        first = next((i for i, processor in enumerate(chain) if type(processor).__name__.endswith("Warper")), len(chain))
        chain.insert(first, lambda ids, values: mine[0](values, ids))
    return chain(torch.tensor([each.ids]), scores[None].clone())[0]


def unlike_rows(seed: int) -> list[TokenSequence]:
    """40 rows, each with some of the settings."""
    pick = random.Random(seed)
    rows = []
    for _ in range(40):
        names = pick.sample(list(CHOICES), pick.choice([0, 1, 3, 6]))
        settings = {name: pick.choice(CHOICES[name]) for name in names}
        prompt, answer = ([pick.randrange(3, 14) for _ in range(pick.randint(1, 6))] for _ in range(2))
        longest = pick.choice([2, 7, 50])
        rows.append(row(prompt, answer[: pick.choice([0, 1, longest - 1])], max_new_tokens=longest, **settings))
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_rows_with_unlike_settings_are_filtered_together_as_transformers_would_each_alone(seed, tiny):
    rows = unlike_rows(seed)
    scores = logits(len(rows))
    got = Filters(rows)(scores)
    for each, before, after in zip(rows, scores, got):
        torch.testing.assert_close(after, theirs(tiny("llama"), each, before), rtol=0, atol=2e-6, msg=str(each.request.params.given))
    torch.testing.assert_close(Filters(rows)(scores, watch=lambda *what: None), got, rtol=0, atol=0)


def test_every_setting_that_filters_is_tested_against_transformers_or_here():
    here = {
        "dynatemp_range", "dynatemp_exponent", "top_n_sigma", "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta",
        "presence_penalty", "frequency_penalty", "bad_words", "logit_bias", "forced_bos_token_id",
    }  # fmt: skip
    elsewhere = {"dry", "constraints"} | {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {"mirostat"}
    fields = {field for name, spec in FILTERS.items() if name not in elsewhere for field in spec.fields}
    assert fields == here | set(CHOICES)
    assert {field for spec in FILTERS.values() for field in spec.fields} <= {each.name for each in dataclasses.fields(SamplingParams)}


def test_the_filters_that_transformers_lacks_apply_with_each_rows_own_values():
    scores = logits(9)
    rows = [
        row([1], temperature=1.2, dynatemp_range=0.5, dynatemp_exponent=0.8), row([1], top_n_sigma=1.5),
        row([1], seed=4, xtc_probability=1.0, xtc_threshold=0.01), row([1, 2], [3, 3, 4], presence_penalty=0.5, frequency_penalty=0.25),
        row([1], logit_bias={7: 5.0, 8: -1.0}), row([1, 6], forced_bos_token_id=9), row([1, 6], [3], forced_bos_token_id=9),
        row([5, 6, 7, 5, 6], dry_multiplier=2.0), row([1], mirostat_tau=2.0),
    ]  # fmt: skip
    got = Filters(rows)(scores)
    one = lambda value: torch.full((1, 1), value)  # noqa: E731
    expected = scores.clone()
    expected[0] = shapes.dynamic_temperature(scores[:1], one(1.2), one(0.5), one(0.8))
    expected[1] = shapes.top_n_sigma(scores[1:2], one(1.5))
    expected[2] = shapes.xtc(scores[2:3], one(1.0), one(0.01), one(0.5))
    expected[3, 3] -= 0.5 + 2 * 0.25
    expected[3, 4] -= 0.5 + 0.25
    expected[4, 7] += 5
    expected[4, 8] -= 1
    expected[5] = -torch.inf
    expected[5, 9] = 0
    expected[7, 7] -= 2.0
    expected[8] = mirostat(scores[8:], one(4.0))
    torch.testing.assert_close(got, expected)
    assert (got != scores).any(dim=-1).tolist() == [True] * 6 + [False] + [True] * 2


def test_dry_does_not_reach_across_breakers_and_looks_no_further_back_than_asked():
    ids = [5, 6, 7, 4, 5, 6]
    broken = row(ids, breakers=frozenset([6]), dry_multiplier=2.0)
    near, nearer = (row(ids, dry_multiplier=2.0, dry_penalty_last_n=n) for n in (6, 5))  # the earlier 5 is the sixth from the end
    rows = [row(ids, dry_multiplier=2.0), broken, near, nearer]
    got = Filters(rows)(torch.zeros(4, 10))
    assert got[:, 7].tolist() == [-2.0, 0.0, -2.0, 0.0]


def test_what_may_not_begin_the_answer_is_dropped_behind_a_forced_beginning():
    settings = {"begin_suppress_tokens": [7], "forced_bos_token_id": 5}
    rows = [row([1], begin_suppress_tokens=[7]), row([1], [5], begin_suppress_tokens=[7]), row([1], **settings), row([1], [5], **settings), row([1], [5, 6], **settings)]
    kept = Filters(rows)(torch.zeros(5, 10)).isfinite()
    assert kept[:, 7].tolist() == [False, True, False, False, True]
    assert kept[2].nonzero().flatten().tolist() == [5]  # forced, and nothing else


def test_xtc_draws_the_rows_own_number():
    scores, seeds = torch.tensor([[2.0, 1.9, -1, -2]]), range(60)
    rows = [row([1], seed=seed, xtc_probability=0.5) for seed in seeds]
    done = (Filters(rows)(scores.repeat(60, 1)) == -torch.inf).any(dim=-1).tolist()
    assert 15 < sum(done) < 45
    assert done == [uniform(seed, 0, XTC_DRAW) < 0.5 for seed in seeds]


def test_mirostat_remembers_in_the_row_and_a_fork_goes_on_by_itself():
    each = row([1], mirostat_tau=2.0)
    got = Filters([each])(logits(1))
    twin = each.states["mirostat"].fork()
    id = int(got[0].argmax())
    each.states["mirostat"].accept(id)
    surprise = -float(got.log_softmax(dim=-1)[0, id]) / torch.log(torch.tensor(2.0)).item()
    assert each.states["mirostat"].mu == pytest.approx(4 - 0.1 * (surprise - 2))
    assert twin.mu == 4


def test_rows_that_take_the_likeliest_are_not_warped_but_penalised():
    assert uses(SamplingParams(temperature=0.0, top_k=3, repetition_penalty=1.2)) == {"repetition_penalty"}
    assert uses(SamplingParams(top_k=3, top_p=1.0, temperature=1.0, repetition_penalty=1.0)) == {"top_k"}


def test_rows_that_ask_for_nothing_cost_nothing():
    scores = logits(2)
    assert Filters([row([1]), row([2], max_new_tokens=9)])(scores) is scores
    assert Filters([row([1], [3], min_new_tokens=1), row([2], forced_bos_token_id=3)])(scores[:1].repeat(2, 1)).shape == (2, VOCAB)
    assert Filters([row([1], [3], min_new_tokens=1)])(scores[:1]).data_ptr() == scores.data_ptr()  # its time has passed


@pytest.mark.parametrize("seed", range(4, 7))
def test_a_row_does_not_depend_on_its_mates(seed):
    rows = unlike_rows(seed)
    scores = logits(len(rows)).double()
    together = Filters(rows)(scores)
    for each, before, after in zip(rows, scores, together):
        assert torch.equal(Filters([each])(before[None])[0], after)


def test_half_precision_is_filtered_in_float32():
    assert Filters([row([1])])(logits(1).bfloat16()).dtype == torch.float32


def test_filters_apply_in_the_order_that_the_row_asks_for():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    settings = dict(temperature=0.5, min_p=0.1, repetition_penalty=3.0)  # penalty: 3 becomes 1
    rows = [
        row([0], **settings),  # penalty [1 2 1 0], temperature [2 4 2 0], min_p 4 - 2.3
        row([0], **settings, filter_order=("min_p", "temperature", "repetition_penalty")),  # min_p 3 - 2.3, then [6 4 2], then [2 4 2]
        row([0], **settings, filter_order=["repetition_penalty", "min_p", "temperature"]),  # [1 2 1 0], min_p 2 - 2.3, [2 4 2 0]
    ]
    inf = torch.inf
    assert Filters(rows)(scores).tolist() == [[2, 4, 2, -inf], [2, 4, 2, -inf], [2, 4, 2, 0]]


@pytest.mark.parametrize(
    "order, message",
    [
        (("top_k",), "filter_order leaves out top_p"),
        (("top_k", "topp"), "'topp', which is no filter: did you mean top_p"),
        (("top_p", "top_k", "top_k"), "'top_k' twice"),
    ],
)
def test_a_wrong_order_is_refused(order, message):
    params = SamplingParams(top_k=3, top_p=0.5, filter_order=order)
    with pytest.raises(UserError, match=message):
        order_of(params)
    with pytest.raises(UserError, match=message):
        check_filters(params, VOCAB)


def test_controls_that_an_order_does_not_name_come_before_the_first_warper():
    params = SamplingParams(top_k=3, presence_penalty=1.0, filter_order=("presence_penalty", "top_k"))
    assert order_of(params) == ("presence_penalty", "constraints", "top_k")
    assert order_of(SamplingParams()) == DEFAULT_ORDER


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": [300]}, {"begin_suppress_tokens": [-1]}, {"logit_bias": {300: 1.0}}, {"sequence_bias": {(1, 300): 1.0}},
        {"bad_words_ids": [[300]]}, {"forced_bos_token_id": 300}, {"forced_eos_token_id": [2, 300]}, {"bad_words_ids": [[]]},
    ],
)  # fmt: skip
def test_ids_that_the_model_lacks_are_refused_by_name(settings):
    check_filters(SamplingParams(suppress_tokens=[299], logit_bias={0: 1.0}), VOCAB)
    with pytest.raises(UserError, match=next(iter(settings))):
        check_filters(SamplingParams(**settings), VOCAB)


class Only:
    """A constraint that allows some ids."""

    name = "only"

    def __init__(self, *ids):
        self.ids = list(ids)

    def mask(self, row, scores):
        mask = torch.full_like(scores, -torch.inf)
        mask[:, self.ids] = 0
        return scores + mask


def test_controls_touch_their_own_row_between_bans_and_warpers():
    rows = [row([1]), row([1], logit_bias={4: 2.0}, temperature=0.5)]
    rows[1].constraints = [Only(4, 5)]
    got = Filters(rows)(torch.ones(2, 8))
    assert torch.equal(got[0], torch.ones(8))
    assert got[1].tolist() == [-torch.inf] * 4 + [6.0, 2.0] + [-torch.inf] * 2


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"suppress_tokens": list(range(10))}, "suppress_tokens"),
        ({"prefix_allowed_tokens_fn": lambda ids: []}, "prefix_allowed_tokens_fn"),
        ({"prefix_allowed_tokens_fn": lambda ids: [3], "bad_words_ids": [[3]]}, "prefix_allowed_tokens_fn"),
        ({"logit_bias": {id: -torch.inf for id in range(10)}}, "logit_bias"),
    ],
)
def test_what_leaves_no_token_is_named_with_its_step(settings, name):
    with pytest.raises(UserError, match=f"{name} left no token to choose at step 2 of prompt 1"):
        Filters([row([1]), row([1], [4, 5], **settings)])(torch.zeros(2, 10))


def test_a_control_that_leaves_no_token_is_named():
    each = row([1], suppress_tokens=[4])
    each.constraints = [Only(4)]
    with pytest.raises(UserError, match="only left no token"):
        Filters([each])(torch.zeros(1, 8))


def test_an_allowed_id_that_the_model_lacks_is_refused():
    with pytest.raises(UserError, match="prefix_allowed_tokens_fn allowed the id 10"):
        Filters([row([1], prefix_allowed_tokens_fn=lambda ids: [10])])(torch.zeros(1, 10))


def test_the_watch_hears_of_each_filter_that_changed_a_row():
    rows = [row([0], repetition_penalty=2.0, temperature=0.5, top_k=2, top_p=0.999), row([1]), row([3], min_new_tokens=0, top_k=9)]
    heard = []
    scores = torch.tensor([[2.0, 1.5, 0.0, -1.0]] * 3)
    got = Filters(rows)(scores, watch=lambda i, name, values: heard.append((i, name, values.tolist())))
    assert heard == [
        (0, "repetition_penalty", [1.0, 1.5, 0.0, -1.0]),
        (0, "temperature", [2.0, 3.0, 0.0, -2.0]),
        (0, "top_k", [2.0, 3.0, -torch.inf, -torch.inf]),
    ]
    assert torch.equal(got, Filters(rows)(scores))


def test_a_callers_filters_touch_their_own_row_before_the_temperature():
    seen = []

    def only_even(logits, history):
        seen.append((tuple(logits.shape), history.tolist()))
        return logits.masked_fill(torch.arange(logits.shape[-1]) % 2 == 1, -torch.inf)

    rows = [row([3]), row([4, 5], filters=[only_even, SuppressTokensLogitsProcessor([0])], temperature=0.5)]
    scores = logits(2, 200)
    got = Filters(rows)(scores)
    assert torch.equal(got[0], scores[0])
    assert seen == [((1, 200), [[4, 5]])]
    expected = scores[1] / 0.5
    expected[1::2] = expected[0] = -torch.inf
    torch.testing.assert_close(got[1], expected)


def test_a_filter_that_returns_nonsense_is_named():
    def forgetful(logits, history):
        return None

    def merciless(logits, history):
        return logits - torch.inf

    with pytest.raises(UserError, match="forgetful must return logits of shape"):
        Filters([row([1], filters=[forgetful])])(logits(1))
    with pytest.raises(UserError, match="merciless left no token"):
        Filters([row([1], filters=[merciless])])(logits(1))


@pytest.mark.parametrize("settings", [{}, {"penalty_alpha": 0.6, "top_k": 2}, {"num_beams": 2}], ids=str)
def test_a_callers_filter_that_turns_what_was_dropped_into_infinity_is_refused_by_name(tiny_llama, tiny_tokenizer, settings):
    def contrary(logits, history):
        return -logits

    params = SamplingParams(suppress_tokens=[33], filters=[contrary], max_new_tokens=3, **settings)
    with pytest.raises(UserError, match="the filter contrary returned nan or infinity after 2 tokens"):
        generate(tiny_llama, tiny_tokenizer, [[5, 6]], params)


def test_bad_words_that_nobody_made_ids_of_are_refused():
    with pytest.raises(UserError, match="bad_words=.*'tea'.*give bad_words_ids"):
        Filters([row([1], bad_words=["tea"])])(torch.zeros(1, 10))
