"""A file of results, killed at every point and gone on with: no answer that came is asked for again, none is lost, none is there twice."""

import json
import os
import random
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from seodang.data.errors import UserError
from seodang.infer import Result, SamplingParams
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run import journal, results_file
from seodang.recipes.run.following import InOrder
from seodang.recipes.run.results_file import ResultsFile, line_of

COUNT, EACH = 6, 2
ASKED = Prompts([f"say {n}" for n in range(COUNT)], [2 * n + 1 for n in range(COUNT)], "line")
OPTIONS = {"backend": "openai", "model": "pupil", "temperature": 0.5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def opened(folder, *, resume=True, ordered=True, asked=ASKED, each=EACH, **options) -> ResultsFile:
    line = line_of(asked, SamplingParams(num_return_sequences=each, temperature=1.0), False)
    return ResultsFile(str(folder / "answers.jsonl"), asked, each, ordered, {**OPTIONS, **options}, line, resume)


def result(index: int, choice: int = 0, error: str | None = None) -> Result:
    return Result(index, f"answer {index}.{choice} 수원\u2028 " + "x" * (7 * index), [], [], "error" if error else "eos", 3, 5, choice, error=error)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().decode().removesuffix("\n").split("\n")]


PLACES = [(index, choice) for index in range(COUNT) for choice in range(EACH)]
WHOLE = [line_of(ASKED, SamplingParams(), False)(result(*place)) for place in PLACES]


def finish(folder, ordered: bool, draw: random.Random) -> list[int]:
    """Go on from what is there to the end; return which prompts were asked."""
    with opened(folder, ordered=ordered) as file:
        todo = [*file.todo]
        file.begin()
        for index in draw.sample(todo, len(todo)):
            for choice in draw.sample(range(EACH), EACH):
                file(result(index, choice))
        file.finish()
    return todo


@contextmanager
def before_each_step(happens):
    """Have something called before every step by which a file or a folder is changed."""
    with pytest.MonkeyPatch.context() as context:
        for owner, name in ((os, "write"), (os, "ftruncate"), (Path, "replace")):
            step = getattr(owner, name)
            context.setattr(owner, name, lambda *given, step=step: (happens(), step(*given))[1])
        yield


def without_all(places) -> list[int]:
    """The prompts that do not have all of their answers among these."""
    return [index for index in range(COUNT) if not {(index, choice) for choice in range(EACH)} <= {*places}]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_step_also_of_going_on_it_comes_to_the_same_file(tmp_path, ordered, seed, monkeypatch):
    monkeypatch.setattr(journal, "LEAST_DEAD", 2)  # the journal is written anew ever so often
    draw, states, arrived, coming = random.Random(seed), [], [], []
    run = tmp_path / "run"
    run.mkdir()

    def keep():
        states.append((tmp_path / f"state {len(states)}", [*arrived], [*coming]))
        shutil.copytree(run, states[-1][0])

    def come(file, place):
        coming[:] = [place]
        file(result(*place))
        arrived.append(place)

    with before_each_step(keep):
        with opened(run, ordered=ordered) as file:
            file.begin()
            for place in draw.sample(PLACES, 9):
                come(file, place)
        keep()
        arrived[:] = [place for place in arrived if place[0] not in without_all(arrived)]  # the others are asked anew
        coming.clear()
        with opened(run, ordered=ordered) as file:
            file.begin()
            for index in draw.sample(file.todo, len(file.todo)):
                for choice in range(EACH):
                    come(file, (index, choice))
            keep()
            file.finish()
        keep()
    assert len(states) > 25
    for state, arrived, coming in states:
        if (state / "answers.jsonl.run").exists():  # in the middle of a line, perhaps
            with (state / draw.choice(["answers.jsonl", "answers.jsonl.run"])).open("ab") as file:
                file.write(json.dumps(WHOLE[0], ensure_ascii=False).encode()[: draw.randrange(0, 30)])
        assert finish(state, ordered, draw) in (without_all(arrived), without_all([*arrived, *coming]))
        found = lines(state)
        assert (found if ordered else sorted(found, key=WHOLE.index)) == WHOLE
        assert finish(state, not ordered, draw) == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("fails", ["truncate", "replace", "journal"])
def test_killed_while_it_is_made_ready_to_go_on_it_has_lost_nothing(tmp_path, ordered, fails, monkeypatch):
    with opened(tmp_path, ordered=ordered) as file:
        file.begin()
        for index in (0, 2, 4, 5):
            for choice in range(EACH):
                file(result(index, choice, "oh" if index == 4 else None))
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt), opened(tmp_path, ordered=ordered) as file:

        def killed(*_):
            raise KeyboardInterrupt

        target = {"truncate": (os, "ftruncate"), "replace": ("pathlib.Path.replace",), "journal": (journal, "flush_to_disk")}[fails]
        broken.setattr(*target, killed)
        file.begin()
    assert finish(tmp_path, ordered, random.Random(1)) == [1, 3, 4]
    found = lines(tmp_path)
    assert (found if ordered else sorted(found, key=WHOLE.index)) == WHOLE


def test_a_run_that_begins_anew_leaves_nothing_of_the_one_before_whenever_it_is_killed(tmp_path, monkeypatch):
    finish(tmp_path, True, random.Random(0))
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt), opened(tmp_path, resume=False, temperature=0.7) as file:
        broken.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        file.begin()
    with opened(tmp_path, resume=False, temperature=0.7) as file:
        assert file.todo == [*range(COUNT)]
        file.begin()
    with opened(tmp_path, temperature=0.7) as file:
        assert file.todo == [*range(COUNT)]


@pytest.mark.parametrize("ordered", [True, False])
def test_what_failed_is_asked_again_and_takes_its_place(tmp_path, ordered):
    with opened(tmp_path, ordered=ordered) as file:
        file.begin()
        for index in range(COUNT):
            for choice in range(EACH):
                file(result(index, choice, "HTTP 500: oh" if index in (1, 4) and choice else None))
        file.finish()
    assert [line["error"] for line in lines(tmp_path)].count("HTTP 500: oh") == 2
    assert finish(tmp_path, ordered, random.Random(0)) == [1, 4]
    assert sorted(lines(tmp_path), key=WHOLE.index) == WHOLE and (not ordered or lines(tmp_path) == WHOLE)


def test_what_waits_for_its_turn_is_on_the_disk_and_in_the_file_when_the_run_is_stopped(tmp_path):
    with opened(tmp_path) as file:
        file.begin()
        for index, choice in ((3, 0), (0, 0), (5, 1)):
            file(result(index, choice))
        assert [(line["line"], line["choice"]) for line in lines(tmp_path)] == [(1, 0)]
        assert (tmp_path / "answers.jsonl.run").read_bytes().count(b"\n") == 3 and file.shown == 3
        file.close()
    assert [(line["line"], line["choice"]) for line in lines(tmp_path)] == [(1, 0), (7, 0), (11, 1)]


def test_the_journal_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LEAST_DEAD", 50)
    asked = Prompts([f"say {n}" for n in range(400)], [*range(1, 401)], "line")
    with opened(tmp_path, asked=asked, each=1) as file:
        file.begin()
        largest = 0
        for index in range(0, 400, 2):  # each second answer waits for the one before it
            file(result(index + 1))
            file(result(index))
            largest = max(largest, (tmp_path / "answers.jsonl.run").stat().st_size)
    assert [line["line"] for line in lines(tmp_path)] == asked.numbers
    assert largest < (tmp_path / "answers.jsonl").stat().st_size / 2


def test_further_prompts_may_follow_those_of_the_first_run(tmp_path):
    finish(tmp_path, True, random.Random(0))
    more = Prompts([*ASKED.prompts, "say more"], [*ASKED.numbers, 99], "line")
    with opened(tmp_path, asked=more) as file:
        assert file.todo == [COUNT] and file.shown == COUNT * EACH
        file.begin()
        file(replace(result(COUNT), text="more"))
    assert [line["line"] for line in lines(tmp_path)][-2:] == [11, 99]


CHANGED = [
    ({"temperature": 0.7}, "--temperature 0.5, now 0.7"), ({"temperature": None}, "--temperature 0.5, now not given"), ({"top_p": 0.9}, "--top_p not given, now 0.9"),
    ({"model": "teacher", "backend": "vllm"}, "--backend openai, now vllm; --model pupil, now teacher"), ({"a model whose files are": "ab"}, "a model whose files are not given, now ab"),
    ({"each": 3}, "has 2 answers to each prompt, now 3"), ({"asked": Prompts(ASKED.prompts[:5], ASKED.numbers[:5], "line")}, "has answers to 6 prompts, and now there are 5"),
    ({"asked": Prompts(["other", *ASKED.prompts[1:]], ASKED.numbers, "line")}, "has answers to other prompts than those of now"),
    ({"asked": Prompts(ASKED.prompts, [*range(1, 7)], "line")}, "has answers to other prompts than those of now"),
]  # fmt: skip


@pytest.mark.parametrize("changed, told", CHANGED, ids=[told for _, told in CHANGED])
def test_a_run_that_is_asked_something_else_is_refused_by_name_and_the_file_stays(tmp_path, changed, told):
    with opened(tmp_path) as file:
        file.begin()
        file(result(0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"{told}.*: use the same, name another --output, or begin anew, over them, with --resume false"):
        opened(tmp_path, **changed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_is_not_written_over_by_one_that_does_not_say_so(tmp_path):
    with opened(tmp_path, resume=None) as file:  # nothing is there
        file.begin()
        file(result(1))
    with pytest.raises(UserError, match="answers.jsonl has 1 answers of a run that was interrupted: --resume goes on from there, --resume false begins anew"):
        opened(tmp_path, resume=None)
    finish(tmp_path, True, random.Random(0))
    with opened(tmp_path, resume=None, temperature=0.7) as file:  # it is finished: as ever, it is written over
        assert file.todo == [*range(COUNT)]
        file.begin()
    assert not (tmp_path / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("name, content, told", [
    ("answers.jsonl", b'{"line": 1}\n', "answers.jsonl line 2 is no answer of this run"), ("answers.jsonl", b"\x00\x00\x00\n", "line 2 is no answer of this run"),
    ("answers.jsonl", b'{"line": 1, "choice": 0, "prompt": "else", "error": null}\n', "line 2 answers a prompt that line 1 of the prompts now is not"),
    ("answers.jsonl.run", b"what?\n", "answers.jsonl.run line 2 is no answer of this run"),
    *(("answers.jsonl", json.dumps(WHOLE[1] | {"choice": choice}).encode() + b"\n", "line 2 is no answer of this run") for choice in ("0", 0.5, True, 2, -1, None)),
])  # fmt: skip
def test_a_line_that_is_no_answer_is_told_and_not_repaired(tmp_path, name, content, told):
    with opened(tmp_path) as file:
        file.begin()
        file(result(0))
    with (tmp_path / name).open("ab") as file:
        file.write(content)
    with pytest.raises(UserError, match=told):
        opened(tmp_path)


def test_a_file_that_does_not_say_how_it_came_about_is_not_gone_on_with(tmp_path):
    (tmp_path / "answers.jsonl").write_text("precious\n", encoding="utf-8")
    with pytest.raises(UserError, match="does not say what it was asked, for there is no answers.jsonl.run beside it"):
        opened(tmp_path)
    (tmp_path / "answers.jsonl.run").write_text("mine\n", encoding="utf-8")
    with pytest.raises(UserError, match="answers.jsonl.run would say what is asked for the file beside it, and is something else"):
        opened(tmp_path, resume=False)
    assert (tmp_path / "answers.jsonl").read_text(encoding="utf-8") == "precious\n" and (tmp_path / "answers.jsonl.run").read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("header", [{}, {"options": 5}, {"options": {}, "prompts": "6", "fingerprint": "a", "answers_each": 2}])
def test_a_first_line_that_does_not_say_all_is_not_gone_on_with(tmp_path, header):
    (tmp_path / "answers.jsonl.run").write_text(json.dumps({"format": journal.FORMAT, **header}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="answers.jsonl.run would say what is asked for the file beside it, and is something else"):
        opened(tmp_path)


def test_where_no_file_can_be_made_beside_it_nothing_is_lost(tmp_path):
    finish(tmp_path, True, random.Random(0))
    (tmp_path / "answers.jsonl.run.partial").mkdir()  # as in a folder that may not be written
    with opened(tmp_path, resume=False) as file, pytest.raises(UserError, match=r"answers.jsonl.run cannot be written any further \(Is a directory\)"):
        file.begin()
    assert lines(tmp_path) == WHOLE
    (tmp_path / "answers.jsonl.run").unlink()
    (tmp_path / "answers.jsonl.run").mkdir()
    with pytest.raises(UserError, match=r"answers.jsonl.run cannot be written any further \(Is a directory\)"):
        opened(tmp_path)


def test_a_name_that_leaves_no_room_for_the_one_beside_it_is_refused_and_no_file_made(tmp_path):
    with pytest.raises(UserError, match="x, with what is written beside it, is a name too long for the file system"):
        ResultsFile(str(tmp_path / ("x" * 250)), ASKED, EACH, True, OPTIONS, print, None)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("place, is_one", [("/dev/shm/answers.jsonl", True), ("/dev/stdout", False), ("/dev/fd/1", False), ("/dev/null", False), ("/proc/self/fd/1", False)])
def test_what_is_a_file_of_its_own(place, is_one):
    assert results_file.is_regular(place) == is_one


def test_two_runs_do_not_write_one_file(tmp_path):
    with opened(tmp_path), pytest.raises(UserError, match="is being written by another process"):
        opened(tmp_path)


def test_a_full_disk_leaves_whole_lines_and_is_told(tmp_path, monkeypatch):
    write, left = os.write, [sum(len(json.dumps(line, ensure_ascii=False).encode()) + 1 for line in WHOLE[:2]) + 50]

    def filling(descriptor, content):
        if not left[0]:
            raise OSError(28, "No space left on device")
        count = write(descriptor, content[: left[0]])
        left[0] -= count
        return count

    with opened(tmp_path) as file:
        file.begin()
        monkeypatch.setattr(journal.os, "write", filling)
        with pytest.raises(UserError, match=r"answers.jsonl cannot be written any further \(No space left on device\)"):
            for index in range(COUNT):
                for choice in range(EACH):
                    file(result(index, choice))
    monkeypatch.undo()
    assert lines(tmp_path) == WHOLE[:2]
    assert finish(tmp_path, True, random.Random(0)) == [1, 2, 3, 4, 5] and lines(tmp_path) == WHOLE


def test_what_could_not_be_shown_for_once_is_shown_in_its_turn_and_nothing_twice():
    shown, fails = [], ["b"]

    def show(text):
        if text in fails:
            fails.clear()
            raise UserError("no room")
        shown.append(text)

    order = InOrder(show, 1)
    for place, text in ((1, "b"), (2, "c")):
        order.put(place, text)
    with pytest.raises(UserError, match="no room"):
        order.put(0, "a")
    order.put(0, "a")  # whoever follows saw it fail
    order.close()
    assert shown == ["a", "b", "c"]


def test_what_is_written_is_on_the_disk_soon_and_not_for_each_line(tmp_path, monkeypatch):
    synced, now = [], [0.0]
    monkeypatch.setattr(results_file.time, "monotonic", lambda: now[0])
    with opened(tmp_path) as file:
        file.begin()
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(now[0]))
        for index in range(4):
            now[0] += 0.6
            file(result(index))
    assert sorted({*synced}) == [1.2, pytest.approx(2.4)]
