import re

import pytest

from seodang.__main__ import main as seodang
from seodang.data.seq2seq.written_forms import TASKS
from seodang.infer import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes.demos import demo_seq2seq

HELD = [
    {"task": "iso>ko", "source": "iso>ko: 2024-03-05", "target": "2024년 3월 5일"}, {"task": "iso>ko", "source": "iso>ko: 2024-03-06", "target": "2024년 3월 6일"},
    *({"task": task, "source": f"{task}: {word}", "target": "x"} for task in TASKS if task != "iso>ko" for word in "ab"),
]  # fmt: skip


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_the_demo_trains_a_transformer_and_counts_right_answers_of_three_strategies(tmp_path, capsys, monkeypatch, norm_position):
    """The whole demo on a tiny model and two of the tasks; `make demo-seq2seq` trains on all of them."""
    monkeypatch.setattr(demo_seq2seq, "TASKS", some := {"digits>ko": 1, "ko>digits": 1})
    monkeypatch.setattr(demo_seq2seq, "KINDS", {"numbers": tuple(some)})
    out = tmp_path / "out"
    argv = f"--d_model 32 --layers 1 --num_heads 2 --rows 600 --heldout 5 --max_steps 12 --norm_position {norm_position} --device cpu --output_dir {out}"
    assert seodang(["demo-seq2seq", *argv.split()]) == 0
    printed = capsys.readouterr().out
    assert f"norms           {norm_position}: " in printed and ("label_smoothing_factor 0.1" in printed) is (norm_position == "post")
    found = re.findall(r"^heldout (\w+) n=10 exact=(\S+) numbers=(\S+)$", printed, re.MULTILINE)
    assert [name for name, *_ in found] == ["greedy", "beams", "diverse"] and all(exact == numbers for _, exact, numbers in found)
    verify(out)
    assert read_manifest(out)["paradigm"] == "seq2seq"
    model, tokenizer = load(out)
    assert model.config.norm_position == norm_position and model.config.decoder_start_token_id == tokenizer.bos_token_id


def test_right_answers_by_hand():
    answers = ["2024년 3월 5일", "2024년 3월 5일", *["x", "y"] * 9]
    assert demo_seq2seq.right(HELD, answers, ("iso>ko",)) == 0.5 and demo_seq2seq.right(HELD, answers, tuple(TASKS)) == 0.5
    [line] = demo_seq2seq.figures(HELD, {"greedy": ["2024년 3월 5일", "2024년 3월 6일", *["x", "y"] * 9]})
    assert line == "heldout greedy n=20 exact=0.550 dates=0.625 numbers=0.500 sentences=0.500"  # 11 of 20, 5 of 8, 4 of 8, 2 of 4


def test_one_answer_of_each_task_is_shown_and_then_those_that_are_wrong():
    drawn = demo_seq2seq.samples(HELD, ["2024년 3월 5일", "2024년 3월 7일", *["x", "y"] * 9], wrong=1)
    sources, said, expected = (list(column.cells) for column in drawn.columns)
    assert len(sources) == 11 and [str(cell) for cell in (sources[-1], said[-1], expected[-1])] == ["iso>ko: 2024-03-06", "2024년 3월 7일", "2024년 3월 6일"]
    assert not any(str(cell) for cell in expected[:-1])


def test_the_papers_recipe_goes_with_norms_behind_the_sum():
    options = demo_seq2seq.DemoOptions(norm_position="post")
    assert options.recipe()["learning_rate"] == pytest.approx((128 * demo_seq2seq.WARMUP) ** -0.5) and options.recipe()["label_smoothing_factor"] == 0.1
    assert demo_seq2seq.DemoOptions().recipe()["learning_rate"] == 2e-3 and "label_smoothing_factor" not in demo_seq2seq.DemoOptions().recipe()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--norm_position middle", "norm_position must be pre or post, got 'middle'"),
        ("--minutes 0", "minutes must be above 0"),
        ("--rows 0", "got 0 and 100"),
        ("--rows 200 --num_heads 5", "d_model 128 cannot be shared out among 5 heads"),
    ],
)
def test_values_that_make_no_sense_are_refused(words, told, capsys, tmp_path):
    assert demo_seq2seq.main([*words.split(), "--output_dir", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
