"""Whenever requests come and go, and in whatever parts they are read: each is answered as alone, in float64 exactly, and nothing is left of any."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, PrefixCache, SamplingParams, Span, generate
from seodang.infer.engine import prefix_cache
from seodang.infer.engine.budget import Budget
from seodang.infer.engine.core import Engine, slots_of
from seodang.infer.engine.live import is_shareable
from seodang.infer.engine.pace import Pace
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.strategies import drafts
from seodang.infer.strategies.registry import STRATEGIES

BASE = [5, 6, 7, 8, 5, 6, 30, 31, 40, 5, 6, 7, 90, 91, 92, 93, 20, 21, 22, 23, 24, 25, 26, 5, 6, 60, 61, 62, 63, 64]
PROMPTS = [[70, 71, 72], BASE[:2], [*BASE[:12], 80], [*BASE[:12], 81, 82, 83, 84], BASE, [*BASE, 33], [*BASE[:29], 34, 35], [44]]


LATE = 60  # steps after which every request of a schedule is over
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4}
DEEP = {"num_hidden_layers": 4}
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
KINDS = {"llama": DEEP, "mistral": DEEP, "cohere": {}, "t5": {}, "bart": {}}  # one or two of each runner
FILLING = {  # speak by diffusion, some of them from left to right as well
    "bidirectional": Diffusion(127, 0, "bidirectional", autoregressive=True), "prompt_causal": Diffusion(127, 1, "prompt_causal", autoregressive=True),
    "block_causal": Diffusion(127, 1, "block_causal", 4),
}  # fmt: skip
OTHERS = {
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, **HEADS, **DYNAMIC}, "falcon": HEADS, "mamba": {"num_hidden_layers": 2, "state_size": 4},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


def fails_late(text: str) -> bool:
    """A condition of the caller's that has a defect."""
    if len(text) > 2:
        raise ValueError("not prepared for this")
    return False


def ways(other) -> dict[str, dict]:
    """Every strategy, with what changes how it is run: another model, several answers, an end by an error."""
    guided = {"guidance_scale": 1.5, "negative_prompt": [9, 10, 11]}
    may_end = {"logit_bias": {2: 4.0}}
    return {name: dict(spec.least) for name, spec in STRATEGIES.items()} | {
        "greedy": {}, "sampling": {"temperature": 1.2, "top_k": 40}, "several": {**may_end, "temperature": 1.0, "num_return_sequences": 3},
        "self_consistency": {"best_of": 3, "temperature": 1.0, "answer_of": lambda text: text[:1]}, "beam": {**may_end, "num_beams": 3, "num_return_sequences": 2},
        "beam_sampling": {"num_beams": 3, "do_sample": True}, "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
        "drafted": {"assistant_model": other}, "drafted_sampling": {"assistant_model": other, "temperature": 1.0, "num_return_sequences": 2},
        "early_exit": {"assistant_early_exit": 2}, "guided": guided, "guided_beam": {**guided, "num_beams": 2}, "guided_lookup": {**guided, "prompt_lookup_num_tokens": 3},
        "amateur": {"amateur_model": other}, "judged": {"prompt_logprobs": 1, "logprobs": 1, "temperature": 1.0}, "regex": {"regex": "[ab;<]{2,9}", "temperature": 1.0},
        "hidden": {"hide": [Span(0, 1)]}, "prefixed": {"prefix": "ab", "num_beams": 2}, "broken": {"stop_when": fails_late},
        "broken_beam": {"stop_when": fails_late, "num_beams": 2}, "filled": {**may_end, "temperature": 1.0, "steps": 3, "alg_temp": 0.5, "num_return_sequences": 3},
        "filled_by_chance": {"alg": "origin", "logprobs": 1, "temperature": 1.0}, "broken_filled": {"stop_when": fails_late, "alg": "maskgit_plus", "num_return_sequences": 2, "alg_temp": 1.0},
        "filled_over_kept": {"cache_refresh": 3, "temperature": 1.0, "num_return_sequences": 2}, "filled_within_kept": {"cache_refresh": 9, "block_length": 3, "dual_cache": True},
    }  # fmt: skip


NAMES = list(ways(None))


@dataclass(frozen=True)
class Asked:
    """A request of a schedule: in which way something is asked, and which of its prompts and lengths.

    It comes before the step `arrival`, is cancelled so many steps later, perhaps twice or after its end, and shares what is read with those of its salt.
    """

    way: str
    variant: int
    arrival: int = 0
    cancels: tuple[int, ...] = ()
    salt: str | None = None

    @property
    def prompt(self) -> list[int]:
        return PROMPTS[(NAMES.index(self.way) + 3 * self.variant) % len(PROMPTS)]

    @property
    def new(self) -> int:
        return 3 if self.variant % 3 == 1 else 9


@dataclass(frozen=True)
class Setting:
    """How an engine runs: its rows, whether it shares prefixes where its model can, how many positions of prompts a pass takes, how often the largest
    request fits its memory."""

    max_rows: int
    cached: bool
    part: int | None
    room: float | None

    def engine(self, model) -> Engine:
        runner = open_runner(model)
        cache = PrefixCache(model, sequences=3) if self.cached and is_shareable(runner) else None
        runner = runner if cache is None else cache.runner_for(model)
        return Engine(runner, self.max_rows, cache, pace=None if self.part is None else Pace(part=self.part, stall=None))


@dataclass
class Sent:
    """A request that the engine has, when it came, and what was told of it."""

    asked: Asked
    generation: Generation
    step: int
    cancelled: int | None = None  # before which step
    events: list = field(default_factory=list)


@dataclass
class House:
    """A tiny model with the answers that it gives alone, each found once."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    ways: dict[str, dict]
    _alone: dict[Asked, list | None]

    def params(self, asked: Asked) -> SamplingParams:
        return SamplingParams(**{"max_new_tokens": asked.new, "seed": asked.variant, **self.ways[asked.way]})

    def alone(self, asked: Asked) -> list[tuple] | None:
        """What is answered alone; None where the model does not take such a request."""
        key = Asked(asked.way, asked.variant)
        if key not in self._alone:
            try:
                results = generate(self.model, self.tokenizer, [asked.prompt], self.params(asked), on_error="result")
                self._alone[key] = [told(result) for result in results]
            except UserError:
                self._alone[key] = None
        return self._alone[key]

    def run(self, schedule: list[Asked], setting: Setting) -> None:
        """Let the requests come and go as they are scheduled, and hold the engine to what it promises."""
        engine = setting.engine(self.model)
        coming = sorted((asked for asked in schedule if self.alone(asked) is not None), key=lambda asked: asked.arrival)
        requests = [self.request(engine, asked) for asked in coming]
        if setting.room is not None:
            engine.scheduler.budget = Budget(int(setting.room * max([Budget(1).needs(request, engine) for request in requests], default=1)))
        sent: list[Sent] = []
        going, step = True, 0
        while len(sent) < len(coming) or going or step <= LATE + 12:
            for asked, request in zip(coming[len(sent) :], requests[len(sent) :]):
                if asked.arrival <= step:
                    sent.append(self.send(engine, asked, request, step))
            for each in sent:
                if step - each.step in each.asked.cancels:
                    self.cancel(engine, each, step)
            going = engine.step()
            step += 1
            self.check_step(engine, setting, sent, step)
            assert step < 600, [each.asked for each in sent if not each.generation.done]
        for each in sent:
            self.check_answers(each)
            of_its_salt = next(other for other in sent if other.asked.salt == each.asked.salt)
            assert each.generation.cached_tokens == 0 or each is not of_its_salt and engine.prefix_cache is not None, each.asked
        self.check_left(engine)

    def request(self, engine: Engine, asked: Asked) -> Request:
        [request] = new_requests(self.model, self.tokenizer, [asked.prompt], self.params(asked), engine)
        return replace(request, cache_salt=asked.salt)

    def send(self, engine: Engine, asked: Asked, request: Request, step: int) -> Sent:
        sent = Sent(asked, Generation(request), step)
        sent.generation.on_event = sent.events.append
        engine.submit(sent.generation)
        return sent

    def cancel(self, engine: Engine, sent: Sent, step: int) -> None:
        """Cancel a request, which says whether there was anything to cancel."""
        was_done = sent.generation.done
        assert engine.cancel(sent.generation) is not was_done and sent.generation.done, sent.asked
        if not was_done:
            sent.cancelled = step

    def check_step(self, engine: Engine, setting: Setting, sent: list[Sent], step: int) -> None:
        """What the requests hold is within bounds, and nothing is held by those that were cancelled before the step."""
        runner, generations = engine.runner, [each.generation for each in sent]
        held = sum(of is runner for generation in generations for of, _ in generation.slots_held)
        assert held <= max([setting.max_rows, *[slots_of(generation.request, runner) for generation in generations]])
        for each in sent:
            if each.cancelled is not None and step - each.cancelled >= 1:
                assert not each.generation.slots_held, each.asked
        if engine.scheduler.budget is not None:
            assert sum(runner.memory for runner in engine._runners.values()) <= engine.scheduler.budget.limit

    def check_answers(self, sent: Sent) -> None:
        """The answers are those given alone, or as far as they came a beginning of those, and the events say the same."""
        generation, alone, asked = sent.generation, self.alone(sent.asked), sent.asked
        assert generation.done and generation.cancelled is (sent.cancelled is not None), asked
        found = [told(generation.results[choice]) for choice in sorted(generation.results)]
        assert len(found) == len(alone), asked
        for (choice, ids, text, reason, error), expected in zip(found, alone):
            assert reason == "cancelled" and generation.cancelled or (choice, ids, text, reason, error) == expected, asked
            assert ids == expected[1][: len(ids)] and expected[2].startswith(text), asked
            own = [event for event in sent.events if isinstance(event, Committed | Finished) and event.choice == choice]
            assert [(event.position, event.id) for event in own[:-1]] == list(enumerate(ids)) and own[-1].reason == reason, asked

    def check_left(self, engine: Engine) -> None:
        """What is over holds nothing: only what is kept of prefixes is left."""
        kept = engine.prefix_cache.slots if engine.prefix_cache is not None else ()
        assert engine.runner.live == len(kept) and not engine.scheduler.admitted and not engine.scheduler.reserved
        others = [runner for runner in engine._runners.values() if runner is not engine.runner]
        assert all(runner.live == 0 and runner.memory == 0 for runner in others)
        if not kept:
            assert engine.runner.memory == 0


def told(result) -> tuple:
    """What is compared of an answer."""
    return result.choice, result.ids, result.text, result.finish_reason, result.error


@pytest.fixture(scope="module")
def alone_once():
    """The answers given alone, of all models, each found once."""
    return {}


@pytest.fixture
def house(tiny, tiny_tokenizer, alone_once, monkeypatch):
    """`house(kind)`: where the requests of a schedule go, to a model of its own."""
    monkeypatch.setattr(prefix_cache, "WORTH_WAITING", 6)  # the prompts are short
    monkeypatch.setattr(drafts, "PART", 7)

    def of_kind(kind: str = "llama") -> House:
        if kind not in alone_once:
            alone_once[kind] = build(tiny, kind, 29).double(), ways(build(tiny, "llama", 30).double()), {}
        model, found, alone = alone_once[kind]
        return House(model, tiny_tokenizer, found, alone)

    return of_kind


def build(tiny, kind: str, seed: int):
    """A tiny model that no other test has: it is made double in place."""
    if kind in FILLING:
        model = tiny("llama", seed=seed + 2 + [*FILLING].index(kind), **DEEP)
        declare(model.config, FILLING[kind])
        return model
    if kind in KINDS:
        return tiny(kind, seed=seed, **KINDS[kind])
    sizes = {"vocab_size": 128, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **OTHERS[kind])).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def schedules(variants: int):
    """Requests in any way, in so many variants of each."""
    cancels = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, LATE]), max_size=2).map(tuple)
    asked = st.builds(Asked, st.sampled_from(NAMES), st.integers(0, variants - 1), st.integers(0, 12), cancels, st.sampled_from([None, None, "a"]))
    return st.lists(asked, min_size=2, max_size=8)


SETTINGS = st.builds(
    Setting, st.sampled_from([1, 4, 12, 64]), st.booleans(), st.sampled_from([None, 1, 2, 5, 16]), st.sampled_from([None, 1.0, 1.5, 4.0])
)
SOME = settings(phases=(Phase.explicit, Phase.generate), deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(SOME, derandomize=True, max_examples=20)
@given(schedules(3), SETTINGS)
def test_whenever_requests_come_and_go_each_is_answered_as_alone(house, schedule, setting):
    house().run(schedule, setting)


@settings(SOME, derandomize=True, max_examples=10)
@given(schedules(2), SETTINGS, st.sampled_from([*FILLING]))
def test_so_it_is_with_models_that_fill_in_their_answers(house, schedule, setting, kind):
    house(kind).run(schedule, setting)


@pytest.mark.filterwarnings("ignore:openai-gpt has no memory")
@settings(SOME, derandomize=True, max_examples=10)
@given(schedules(2), SETTINGS, st.sampled_from([*KINDS, *OTHERS][1:]))
def test_so_it_is_with_every_kind_of_model(house, schedule, setting, kind):
    house(kind).run(schedule, setting)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:openai-gpt has no memory")
@pytest.mark.parametrize("kind", [*KINDS, *OTHERS, *FILLING])
@settings(SOME, max_examples=200)
@given(schedule=schedules(24), setting=SETTINGS)
def test_of_many_hundred_schedules_none_changes_an_answer(house, schedule, setting, kind):
    house(kind).run(schedule, setting)


@pytest.mark.parametrize("part", [None, 4])
def test_a_short_request_sent_after_a_long_ones_fifth_token_ends_before_it(tiny_llama, tiny_tokenizer, part):
    engine, events = Setting(64, False, part, None).engine(tiny_llama), {"long": [], "short": []}

    def submit(name: str, new: int) -> None:
        [request] = new_requests(tiny_llama, tiny_tokenizer, [BASE], SamplingParams(max_new_tokens=new, ignore_eos=True), engine)
        engine.submit(Generation(request, events[name].append))

    submit("long", 40)
    while len(events["long"]) < 5:
        engine.step()
    submit("short", 8)
    while not any(isinstance(event, Finished) for event in events["short"]):
        engine.step()
    assert len(events["short"]) == 9 and len(events["long"]) < 30
    engine.close()
