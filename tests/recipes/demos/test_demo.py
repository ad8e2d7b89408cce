import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from safetensors.torch import load_file

from seodang.infer.checkpoint.manifest import verify
from seodang.recipes.demos import demo
from seodang.recipes.demos.demo import Answered, Question
from seodang.train.stages.plan import Plan

SUWON = Question([{"role": "user", "content": "Where is Suwon?"}], "South Korea", None, ("South Korea", "Korea"), ("North Korea",))


def asked(task, expected):
    return Question([{"role": "user", "content": f"Question of {task}, {expected}"}], expected, task)


def test_the_demo_ends_with_its_figures_and_the_checkpoint(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    """The whole demo on a tiny model; `make demo` runs it on the real one."""
    base, out = tmp_path / "base", tmp_path / "out"
    fresh_tiny("llama", max_position_embeddings=2048).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    code = demo.main(["--model", str(base), "--heldout", "10", "--tokens", "2000", "--output_dir", str(out), "--device", "cpu", "--dtype", "float32"])
    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"suwon           before=(True|False) after=(True|False)", printed[-4])
    assert re.fullmatch(r"plain           n=32 before=\d+ after=\d+ lost=\d+", printed[-3])
    assert re.fullmatch(r"heldout n=10 exact before=\d\.\d{3} after=\d\.\d{3} contains before=\d\.\d{3} after=\d\.\d{3}", printed[-2])
    assert printed[-1] == str(out)
    assert sum(bool(re.fullmatch(r"(training|answering) +\d+ s, \d+ s of CPU time", line)) for line in printed) == 3
    verify(out)
    assert (out / "loss.png").is_file()
    then, now = (load_file(folder / "model.safetensors") for folder in (base, out))
    assert then.keys() == now.keys()
    kept = {name for name in then if then[name].equal(now[name])}
    assert kept == {name for name in then if ".mlp." in name or "embed_tokens" in name or "lm_head" in name}  # facts stay, attention and norms learn


def test_plain_questions_come_first_with_suwon_and_then_as_many_of_the_tasks_as_asked_for():
    questions = demo.choose_questions(200)
    assert questions[0].prompt[-1]["content"] == "Which country is the city of Suwon located in?"
    assert [q.task is None for q in questions] == [True] * 33 + [False] * 200
    assert {q.task for q in questions} - {None} == set(demo.TASKS)


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (asked("list", "pen, cup"), " pen,\n cup ", True),
        (asked("list", "pen, cup"), "The list is pen, cup", False),
        (SUWON, "The city of Suwon is located in the Republic of Korea.", True),
        (SUWON, "It is in korea", True),
        (SUWON, "It lies in North Korea.", False),
        (SUWON, "It is a Korean city.", False),  # a part of a word is no answer
        (SUWON, "", False),
    ],
)
def test_a_task_wants_the_answer_itself_and_a_plain_question_that_it_is_said(question, answer, right):
    assert question.right(answer) is right


@pytest.mark.parametrize(
    ("tokens", "seconds", "steps"),
    [
        (27_000, 100, 54),  # all of it
        (9_000, 100, 18),  # as many as asked for
        (27_000, 300, 43),  # 240 of 300 seconds: 21,600 tokens, 43.2 steps
        (27_000, 10_000, 38),  # the floor: 19,000 tokens
        (9_000, 10_000, 18),  # the floor makes nobody train on more than was asked for
        (90_000, 100, 54),  # an epoch at most
    ],
)
def test_the_budget_is_in_tokens_and_a_slow_machine_stops_at_the_floor(tokens, seconds, steps):
    whole = Plan(rows=432, tokens=27_000, steps=54, memory=0, checkpoint=0, disk=0, step_seconds=seconds / 54, seconds=seconds)
    trainer = SimpleNamespace(args=SimpleNamespace(max_steps=-1))
    cut = demo.within(demo.DemoOptions(tokens=tokens, minutes=4), trainer, whole)
    assert trainer.args.max_steps == steps
    assert cut == replace(whole, steps=steps, tokens=27_000 * steps / 54, seconds=pytest.approx(seconds * steps / 54))


def test_the_figures_count_right_answers_and_those_that_were_lost():
    plain = [Question([], word, None, (word,)) for word in ("a", "b", "c", "d")]
    answered = [
        Answered(SUWON, "Korea", "South Korea"),
        *(Answered(question, *answers) for question, answers in zip(plain, [("a", "a"), ("b", "x"), ("x", "c"), ("x", "x")], strict=True)),
        Answered(asked("list", "1"), "the 1", "1"),
        Answered(asked("form", "2"), "0", "a 2"),
    ]
    assert list(demo.figures(answered)) == [
        "suwon           before=True after=True",
        "plain           n=4 before=2 after=2 lost=1",
        "heldout n=2 exact before=0.000 after=0.500 contains before=0.500 after=1.000",
    ]


def drawn(table):
    console = Console(width=200)
    with console.capture() as written:
        console.print(table)
    return [[cell.strip() for cell in line.strip("│┃|").split("│")] for line in written.get().splitlines() if "│" in line]


ANSWERED = [
    Answered(SUWON, "Korea", "Korea"),
    Answered(asked("korean_date", "2001-02-03"), "2001-02-03", "2001-02-03"),
    Answered(asked("korean_date", "2001-02-04"), "2001", "2001-02-04"),
    Answered(asked("list", "a"), "", ""),
    Answered(asked("list", "b"), "b", "b"),
    Answered(asked("list", "c"), "x", "x"),
    Answered(asked("list", "d"), "x", "x"),
]


def test_the_table_has_a_line_for_each_task_with_shares_before_and_after():
    assert drawn(demo.tasks(ANSWERED)) == [
        ["a list from a sentence", "4", "0.25", "0.25"],
        ["a Korean date as ISO 8601", "2", "0.50", "1.00"],
        ["all tasks", "6", "0.33", "0.50"],
        ["plain questions", "1", "1.00", "1.00"],
    ]


def test_the_samples_show_what_became_right_what_is_wrong_still_and_what_was_unlearned():
    unlearned, kept = (Question([{"role": "user", "content": word}], word, None, (word,)) for word in ("Titanic", "Pacific"))
    prompts = [row[0] for row in drawn(demo.samples([*ANSWERED, Answered(unlearned, "Titanic", "x"), Answered(kept, "Pacific", "Pacific")])) if row[0]]
    became, wrong = ["Question of list, a", "Question of korean_date, 2001-02-04"], ["Question of list, c", "Question of list, d"]
    assert prompts == ["Where is Suwon?", *became, *wrong, "Titanic"]


@pytest.mark.parametrize("option", ["--heldout", "--minutes", "--tokens"])
def test_values_that_make_no_sense_are_refused(option, capsys):
    assert demo.main([option, "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err
