"""What is published of a request's answers, and its results: by hand."""

from dataclasses import FrozenInstanceError, replace

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.requests.events import Answer, Committed, Finished, Observed
from seodang.infer.requests.generation import Generation, Stage
from seodang.infer.requests.request import Request, derived


def generation(select=None, traced=False, **settings) -> tuple[Generation, list]:
    """A request behind a prompt of two tokens, and the list of its events."""
    request = Request(4, [5, 6], SamplingParams(**settings), 7, frozenset(), lambda: None, select=select, traced=traced)
    events = []
    return Generation(request, events.append), events


def answer(*ids: int, grown_as: int = 0, seed: int = 7) -> Answer:
    """A finished answer whose tokens have the texts of their codes and the log-probabilities -id."""
    return Answer(list(ids), [-float(id) for id in ids], [chr(id) for id in ids], "length", seed, grown_as)


def test_each_token_is_published_once_and_the_rest_with_the_end():
    found, events = generation()
    found.publish(0, [65], [-65.0], ["A"])
    found.publish(0, [65], [-65.0], ["A"])
    assert events == [Committed(4, 0, 65, -65.0, "A")] and not found.done
    found.finish(answer(65, 66, 67), 0)
    assert events[1:] == [Committed(4, 1, 66, -66.0, "B"), Committed(4, 2, 67, -67.0, "C"), Finished(4, "length")]
    assert found.result.text == "ABC" and found.result.prompt_length == 2 and found.done


def test_a_request_that_selects_publishes_the_selected_answers_under_their_ranks():
    best_first = lambda answers: [replace(each, score=1.0) for each in sorted(answers, key=lambda each: -len(each.ids))][:2]
    found, events = generation(best_first, best_of=3, num_return_sequences=2, temperature=1.0)
    for grown_as, ids in ((1, [65]), (0, [66, 66]), (2, [67, 67, 67])):
        assert events == []
        found.publish(grown_as, ids, [0.0] * len(ids), ["?"] * len(ids))
        found.finish(answer(*ids, grown_as=grown_as, seed=derived(7, grown_as)), grown_as)
    assert [(found.results[rank].text, found.results[rank].grown_as, found.results[rank].choice) for rank in (0, 1)] == [("CCC", 2, 0), ("BB", 0, 1)]
    assert found.results[0].seed == derived(7, 2) and found.results[0].score == 1.0
    assert [event.choice for event in events] == [0] * 4 + [1] * 3


def test_an_error_leaves_what_was_published_and_ends_the_others():
    found, events = generation(num_return_sequences=3, temperature=1.0)
    found.finish(answer(65), 1)
    found.publish(2, [66], [-1.0], ["B"])
    with found.contained():
        raise UserError("no more")
    assert found.stage is Stage.DONE
    assert [(found.results[i].finish_reason, found.results[i].text) for i in range(3)] == [("error", ""), ("length", "A"), ("error", "B")]
    assert [found.results[i].seed for i in (0, 2)] == [7, derived(7, 2)]
    told = len(events)
    found.publish(0, [66], [-1.0], ["B"])
    found.finish(answer(65), 0)
    found.fail(UserError("again"))
    assert len(events) == told and str(found.error) == "no more"


def test_only_a_traced_request_passes_on_what_is_observed():
    silent, heard = generation()
    silent.trace("record", 3)
    traced, events = generation(traced=True)
    traced.trace("record", 3, 1)
    assert heard == [] and events == [Observed(4, 3, "record", 1)]


def test_a_request_never_changes():
    found, _ = generation()
    with pytest.raises(FrozenInstanceError):
        found.request.seed = 8
