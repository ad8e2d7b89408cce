"""Requests that are ended from outside, and defects that end what they belong to: nobody else is touched, nothing is left."""

import pytest

from seodang.infer import Finished, Observed, SamplingParams, generate
from seodang.infer.engine.core import Engine
from seodang.infer.engine.pace import Pace
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.trace import PassTrace
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies import beam

PROMPT = [5, 6, 7, 8, 5, 6]
LONG = [5 + at % 90 for at in range(60)]
WAYS = {
    "greedy": {}, "several": {"temperature": 1.0, "num_return_sequences": 3, "seed": 1}, "best of": {"temperature": 1.0, "best_of": 3, "seed": 1},
    "beams": {"num_beams": 3}, "contrastive": {"penalty_alpha": 0.6, "top_k": 3}, "dola": {"dola_layers": "low"}, "lookup": {"prompt_lookup_num_tokens": 3},
    "guided": {"guidance_scale": 1.5, "negative_prompt": [9, 10, 11]}, "draft": {"assistant_model": None},
}  # fmt: skip


class Room:
    """An engine over a tiny model in float64, with a way to ask it."""

    def __init__(self, double, tokenizer, part: int = 10_000, max_rows: int = 64):
        self.model, self.tokenizer, self.draft = double(), tokenizer, double(seed=1)
        self.engine = Engine(open_runner(self.model), max_rows, pace=Pace(part, stall=None))
        self.events = []

    def params(self, **settings) -> SamplingParams:
        if "assistant_model" in settings:
            settings["assistant_model"] = self.draft
        return SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True, **settings})

    def ask(self, prompt: list[int], traced: bool = False, **settings) -> Generation:
        [request] = new_requests(self.model, self.tokenizer, [prompt], self.params(**settings), self.engine, traced)
        generation = Generation(request, self.events.append)
        self.engine.submit(generation)
        return generation

    def alone(self, prompt: list[int], **settings) -> list[int]:
        return generate(self.model, self.tokenizer, [prompt], self.params(**settings))[0].ids

    def run(self, steps: int = 10_000) -> None:
        while steps and self.engine.step():
            steps -= 1

    @property
    def live(self) -> int:
        """Slots of all models."""
        return self.engine.runner.live + self.engine.runner_of(self.draft).live


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_cancelled_request_ends_as_far_as_it_was_told_and_its_slots_are_free_within_a_step(double, tiny_tokenizer, way, steps):
    room = Room(double, tiny_tokenizer)
    whole = room.alone(PROMPT, **WAYS[way])
    other, ended = room.ask([20, 21, 22]), room.ask(PROMPT, **WAYS[way])
    room.run(steps)
    assert room.engine.cancel(ended) and ended.done and ended.cancelled
    assert not room.engine.cancel(ended)  # twice is once
    count = ended.request.params.num_return_sequences
    assert [event.choice for event in room.events if isinstance(event, Finished) and event.reason == "cancelled"] == [*range(count)]
    told = ended.results[0].ids
    assert told == whole[: len(told)] and ended.results[0].error is None
    if way in ("greedy", "several", "dola", "guided"):
        assert len(told) == steps  # a token a step
    room.run(1)
    assert room.live == 1 and not ended.slots_held
    room.run()
    assert other.result.ids == room.alone([20, 21, 22]) and room.live == 0
    assert not room.engine.cancel(other)  # its end has come
    assert other.result.finish_reason == "length"


def test_a_request_is_cancelled_while_its_prompt_is_read_by_parts(double, tiny_tokenizer):
    room = Room(double, tiny_tokenizer, part=7)
    other, ended = room.ask([20, 21, 22]), room.ask(LONG, num_beams=2)
    room.run(3)
    assert room.engine.runner.positions == 3 + 3 * 7 + 2 and ended.results == {}
    room.engine.cancel(ended)
    room.run(1)
    assert room.engine.runner.live == 1
    room.run()
    assert other.result.ids == room.alone([20, 21, 22]) and ended.results[0].ids == []


def test_a_cancelled_request_gives_its_place_to_the_one_that_waits(double, tiny_tokenizer):
    room = Room(double, tiny_tokenizer, max_rows=1)
    first, second, third = (room.ask([id]) for id in (5, 6, 7))
    room.run(2)
    room.engine.cancel(second)  # which never came in
    room.engine.cancel(first)
    room.run()
    assert third.result.ids == room.alone([7]) and second.results[0].ids == [] and len(first.results[0].ids) == 2


@pytest.mark.parametrize("way", ["greedy", "contrastive", "beams", "guided", "guided contrastive", "several", "draft"])
def test_a_prompt_read_by_parts_is_answered_as_at_once(double, tiny_tokenizer, way):
    room = Room(double, tiny_tokenizer, part=7)
    settings = {**WAYS["contrastive"], **WAYS["guided"]} if way == "guided contrastive" else dict(WAYS[way])
    if "negative_prompt" in settings:
        settings["negative_prompt"] = LONG[::-1]
    asked = room.ask(LONG, **settings)
    sizes, before = [], 0
    while room.engine.step():
        sizes.append(room.engine.runner.positions - before)
        before = room.engine.runner.positions
    assert max(sizes[: 18 if "negative_prompt" in settings else 8]) == 7  # no pass takes more
    assert asked.result.ids == room.alone(LONG, **settings) and room.live == 0


@pytest.mark.parametrize("way", ["contrastive", "beams"])  # the one reads its prompt itself, the other has it read
def test_a_short_request_does_not_wait_for_a_long_prompt_to_be_read(double, tiny_tokenizer, way):
    room = Room(double, tiny_tokenizer, part=7)
    long = room.ask(LONG, **WAYS[way])
    room.run(1)
    short = room.ask(PROMPT, max_new_tokens=3)
    room.run(3)
    assert short.done and not long.forked and room.engine.runner.positions == 4 * 7 + len(PROMPT) + 2


@pytest.mark.parametrize("way, positions", [("greedy", 60), ("contrastive", 60), ("guided", 60 + 2)])
def test_the_passes_that_read_a_prompt_by_parts_are_told_apart_from_those_of_its_tokens(double, tiny_tokenizer, way, positions):
    room = Room(double, tiny_tokenizer, part=7)
    room.ask(LONG, traced=True, max_new_tokens=4, **WAYS[way])
    room.run()
    passes = [event.what for event in room.events if isinstance(event, Observed) and isinstance(event.what, PassTrace)]
    reading = [each for each in passes if each.prefill]
    assert passes[: len(reading)] == reading and sum(each.positions for each in reading) == positions
    assert len(passes) - len(reading) == (4 if way == "contrastive" else 3)  # whose candidates run before one is chosen


@pytest.mark.parametrize("way", ["greedy", "several", "lookup", "draft"])
def test_nothing_is_told_of_a_request_behind_its_end(double, tiny_tokenizer, way):
    room = Room(double, tiny_tokenizer)
    room.ask([20, 21, 22])
    ended = room.ask(PROMPT, traced=True, **WAYS[way])
    events: list = []
    ended.on_event = events.append
    room.run(4)
    room.engine.cancel(ended)
    room.run()
    count = ended.request.params.num_return_sequences
    assert len(events) > 4 and all(isinstance(event, Finished) for event in events[-count:])


def test_a_prompt_is_judged_by_parts_as_at_once(double, tiny_tokenizer):
    room = Room(double, tiny_tokenizer, part=7)
    settings = {"prompt_logprobs": 2, "logprobs": 1}
    asked = room.ask(LONG, **settings)
    room.run()
    [alone] = generate(room.model, tiny_tokenizer, [LONG], room.params(**settings))
    assert [each and (each.id, each.top[0].id) for each in asked.result.prompt_logprobs] == [each and (each.id, each.top[0].id) for each in alone.prompt_logprobs]
    assert [each.logprob for each in asked.result.prompt_logprobs[1:]] == pytest.approx([each.logprob for each in alone.prompt_logprobs[1:]], abs=1e-12)


def test_a_hidden_part_of_a_long_prompt_stays_hidden(double, tiny_tokenizer):
    room = Room(double, tiny_tokenizer, part=7)
    mask = [int(not 5 <= at < 30) for at in range(60)]
    asked = room.ask(LONG, attention_mask=mask)
    room.run()
    assert asked.result.ids == room.alone(LONG, attention_mask=mask) != room.alone(LONG)


def test_a_defect_in_a_strategy_ends_its_request_alone_where_someone_is_told(double, tiny_tokenizer, monkeypatch):
    room, told = Room(double, tiny_tokenizer), []
    room.engine.on_defect = told.append
    other, faulty = room.ask(PROMPT), room.ask(PROMPT, num_beams=2)
    room.run(1)
    monkeypatch.setattr(beam, "publish_agreed", lambda *_: 1 / 0)
    room.run()
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert faulty.results[0].error == "internal error: ZeroDivisionError: division by zero" and room.live == 0
    assert other.result.ids == room.alone(PROMPT)


def test_a_pass_that_fails_ends_those_that_were_in_it_and_no_later_one(double, tiny_tokenizer, monkeypatch):
    room, told = Room(double, tiny_tokenizer, max_rows=2), []
    room.engine.on_defect = told.append
    first, second, third = room.ask(PROMPT), room.ask([9], num_beams=1), room.ask([8])
    room.run(2)
    with monkeypatch.context() as patched:
        patched.setattr("seodang.infer.engine.core.run_forwards", lambda forwards: 1 / 0)
        assert room.engine.step()
    room.run()
    assert [each.result.finish_reason for each in (first, second, third)] == ["error", "error", "length"]
    assert third.result.ids == room.alone([8]) and len(told) == 1 and room.live == 0


def test_a_defect_ends_all_where_nobody_is_told(double, tiny_tokenizer, monkeypatch):
    room = Room(double, tiny_tokenizer)
    room.ask(PROMPT)
    monkeypatch.setattr("seodang.infer.engine.core.run_forwards", lambda forwards: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        room.run()
    room.engine.close()
    assert room.live == 0


@pytest.mark.parametrize("fails", ["engine.core.run_forwards", "strategies.sampling.still_going"])
def test_who_was_cancelled_before_a_shared_strategy_failed_holds_nothing_either(double, tiny_tokenizer, monkeypatch, fails):
    room, told = Room(double, tiny_tokenizer), []
    room.engine.on_defect = told.append
    cancelled, failed = room.ask(PROMPT), room.ask([9])
    room.run(2)
    room.engine.cancel(cancelled)
    monkeypatch.setattr(f"seodang.infer.{fails}", lambda *_: 1 / 0)
    room.engine.step()
    assert [each.result.finish_reason for each in (cancelled, failed)] == ["cancelled", "error"] and len(told) == 1 and room.live == 0
