import re
from time import monotonic
from types import SimpleNamespace

import pytest

from seodang.__main__ import VERBS
from seodang.__main__ import main as seodang
from seodang.infer.checkpoint.manifest import verify
from seodang.recipes.demos import demo_rlhf
from seodang.train.run.callbacks import TimeLimit, read_log

NUMBERS = r"-?\d+\.\d{3} -?\d+\.\d{3}"
GAIN = NUMBERS + r" \(gain [+-]\d+\.\d{3} ± \d+\.\d{3}\)"


@pytest.mark.full
def test_the_demo_runs_its_four_stages_and_ends_with_its_figures_and_the_page(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    """The whole demo on a tiny model; `make demo-rlhf` runs it on the real one."""
    base, out = tmp_path / "base", tmp_path / "out"
    fresh_tiny("llama", max_position_embeddings=2048).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    argv = f"--model {base} --output_dir {out} --minutes 0.01 --heldout 6 --rollouts 8 --device cpu --dtype float32"
    assert seodang(["demo-rlhf", *argv.split()]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(out / "page.html")
    figures = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in printed[-8:-1])
    for name, pattern in {
        "reward model, accuracy on held-out pairs": r"[01]\.\d{3}",
        "PPO, learned reward, before and after": GAIN,
        "PPO, form as asked for, before and after": GAIN,
        "DPO, learned reward, before and after": GAIN,
        "DPO, form as asked for, before and after": GAIN,
        "DPO, held-out accuracy, before and after": NUMBERS,
        "DPO, held-out margin, before and after": NUMBERS,
    }.items():
        assert re.fullmatch(pattern, figures[name]), name
    for stage in ("sft", "reward", "ppo", "dpo"):
        verify(out / stage)
        assert any("loss" in entry for entry in read_log(out / stage / "log.jsonl")), stage
    assert (out / "ppo" / "curves.png").is_file()
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "reward model, train" in page and "KL to the reference" in page and page.count("<h2>Held-out prompts") == 2


def test_a_gain_comes_with_the_standard_error_of_the_differences():
    """Differences 1, 0, 1, 0: mean 0.5, variance 1/3, standard error sqrt(1/3) / 2."""
    assert demo_rlhf.gain([0, 1, 0, 0], [1, 1, 1, 0]) == "+0.500 ± 0.289"


@pytest.mark.parametrize("options", [["--heldout", "1"], ["--minutes", "0"], ["--rollouts", "6"]])
def test_values_that_make_no_sense_are_refused(options, capsys):
    assert demo_rlhf.main(options) == 2
    assert "heldout must be 2 or more, minutes above 0 and rollouts a multiple of 4" in capsys.readouterr().err


def test_a_verb_with_a_hyphen_is_a_module_with_an_underscore(capsys):
    assert "demo-rlhf" in VERBS and seodang(["demo-rlhf", "--help"]) == 0
    assert "usage: seodang demo-rlhf" in capsys.readouterr().out


def test_time_ends_training_where_an_iteration_ends():
    limit = TimeLimit(seconds=100, every=4)
    control = SimpleNamespace(should_training_stop=False, should_log=False)

    def step(number):
        limit.on_step_end(None, SimpleNamespace(global_step=number), control)
        return control.should_training_stop

    limit.on_train_begin(None, None, None)
    assert not step(4)
    limit.started = monotonic() - 101
    assert not step(5) and not step(7) and step(8) and control.should_log
