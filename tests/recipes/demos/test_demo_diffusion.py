import re

import pytest

from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.infer.runners.paradigm import Diffusion, diffusion_of
from seodang.recipes.demos import demo_diffusion
from seodang.recipes.demos.demo_diffusion import Speaker


def test_the_demo_shows_each_step_and_compares_the_two_and_the_same_weights_both_ways(base, tmp_path, capsys):
    """The whole demo on a tiny model; `make demo-diffusion` runs it on the real one."""
    out = tmp_path / "out"
    command = ["--model", base, "--heldout", 3, "--max_steps", 2, "--output_dir", out, "--device", "cpu", "--dtype", "float32",
               "--passes", 4]  # fmt: skip
    assert demo_diffusion.main([*map(str, command)]) == 0
    printed = capsys.readouterr().out
    assert "Which country is the city of Suwon located in?\nStep 1: " in printed and "<|mask|>" in printed
    lines = printed.splitlines()
    names = ["diffusion", "diffusion, a token after the other", "the same weights, left to right", "its twin, left to right"]
    assert [bool(re.fullmatch(rf"{name}: n=3 exact=\d\.\d{{3}} country=\d\.\d{{3}}", line)) for name, line in zip(names, lines[-5:-1], strict=True)] == [True] * 4
    assert lines[-1] == str(out / "diffusion")
    for name, paradigm in (("diffusion", "diffusion"), ("left_to_right", "causal")):
        verify(out / name)
        assert read_manifest(out / name)["paradigm"] == paradigm
    says = diffusion_of(load(out / "diffusion", device="cpu")[0].config)
    assert says == Diffusion(128, 1, "prompt_causal", autoregressive=True)
    assert diffusion_of(load(out / "left_to_right", device="cpu")[0].config) is None


def test_shares_come_with_their_error_and_figures_in_lines():
    speaker = Speaker("diffusion", ["a", "b"], [True, False], [True, True], 10.0, 2.0)
    assert demo_diffusion.share([True, False, False, False]) == "0.250 ± 0.217"  # the root of 3/16 over 4
    assert list(demo_diffusion.figures([speaker])) == ["diffusion: n=2 exact=0.500 country=1.000"]


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--heldout", "0"], "heldout must be above 0"), (["--weighting", "two"], "no weighting 'two'"), (["--max_steps", "-1"], "max_steps must be above 0")],
)
def test_values_that_make_no_sense_are_refused(words, told, capsys):
    assert demo_diffusion.main(words) == 2
    assert told in capsys.readouterr().err
