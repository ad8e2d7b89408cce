"""The notebooks run from top to bottom, on a tiny model in place of the default one and with fewer steps."""

import json
import re
from pathlib import Path

import pytest

from seodang.infer.strategies.registry import STRATEGIES

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
FEWER = {"STEPS": 2, "QUESTIONS": 4, "TOKENS": 6, "PAIRS": 16, "HELD_OUT": 4}  # the numbers that their first cells set
SLOW = {"finetune_and_compare", "align_with_dpo"}  # which train


def cells(name, kind="code"):
    book = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def run(small_defaults, tmp_path, monkeypatch, capsys):
    """`run(name)`: what a notebook's names are in the end, and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def execute(name):
        space = {"__name__": "__main__"}
        for number, cell in enumerate(cells(name), 1):
            source = re.sub(r"^([A-Z_]+) = \d+", lambda match: f"{match[1]} = {FEWER[match[1]]}", "".join(cell["source"]), flags=re.MULTILINE)
            exec(compile(source, f"{name} {number}", "exec"), space)
        return space, capsys.readouterr().out

    return execute


def test_every_strategy_is_there(run):
    space, printed = run("every_strategy")
    assert set(space["strategies"]) == {*STRATEGIES} - {"diffusion"}
    for name in space["strategies"]:
        assert re.search(rf"^{name} +0 ", printed, re.MULTILINE), name
    assert "is fine" not in printed and printed.count(" -> ") == 3


@pytest.mark.full
def test_fine_tune_and_compare(run):
    space, printed = run("finetune_and_compare")
    assert space["trainer"].state.global_step == 2 and "learned" in space
    assert space["tokenizer"].decode(space["learned"]).startswith(space["read_json_lines"](space["sample_path"]("everyday"))[0]["output"])
    assert space["likelihood_before"] != space["likelihood_after"] and "exact answers" in printed


@pytest.mark.full
def test_align_with_dpo(run):
    space, printed = run("align_with_dpo")
    assert space["trainer"].state.global_step == 2
    assert space["measured_before"]["margin"] == pytest.approx(0, abs=1e-6) and space["measured_before"]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert space["measured_after"]["margin"] != 0 and "in the form that was asked for" in printed


def test_notebooks_are_small_and_say_nothing_of_a_machine():
    assert {*NOTEBOOKS} == {"every_strategy", *SLOW}
    for name, path in NOTEBOOKS.items():
        text = path.read_text(encoding="utf-8")
        assert len(text) < 40_000 and not re.search(r"/(home|root|tmp|work|usr|Users)/|C:\\\\", text), name
        for number, cell in enumerate(cells(name), 1):  # each was run once, from top to bottom, without an error
            assert cell["execution_count"] == number and all(output["output_type"] == "stream" for output in cell["outputs"]), name
