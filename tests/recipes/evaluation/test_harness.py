"""What the verb makes of lm-eval's arguments, and what it says without lm-eval."""

import sys

import pytest

from seodang.__main__ import main
from seodang.recipes.evaluation.harness import with_ours


@pytest.mark.parametrize(
    "asked, given",
    [
        (["--tasks", "a"], ["run", "--model", "seodang", "--tasks", "a"]),
        (["run", "--tasks", "a"], ["run", "--model", "seodang", "--tasks", "a"]),
        (["--tasks", "a", "--model", "hf"], ["--tasks", "a", "--model", "hf"]),
        (["--tasks", "a", "-M", "hf"], ["--tasks", "a", "-M", "hf"]),
        (["--model=hf"], ["--model=hf"]),
        (["--model_args", "pretrained=x"], ["run", "--model", "seodang", "--model_args", "pretrained=x"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "a"], ["validate", "--tasks", "a"]),
        (["run"], ["run"]),
        ([], []),
    ],
)
def test_a_run_is_of_our_models_unless_others_are_named(asked, given):
    assert with_ours(asked) == given


@pytest.mark.parametrize("text, ours", [("model: hf\n", False), ("tasks: [a]\n", True), (": [", True), ("", True)])
def test_a_configuration_may_name_another_model(tmp_path, text, ours):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    assert (with_ours(["--config", str(path)])[:3] == ["run", "--model", "seodang"]) is ours


def test_without_lm_eval_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    assert main(["lm-eval", "--tasks", "a", "--num_fewshot", "3"]) == 2
    assert capsys.readouterr().err == "error: lm-eval is not installed: pip install 'seodang[lm-eval]'\n"
