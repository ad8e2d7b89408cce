import json
import re
import signal
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import verify
from seodang.recipes import rlhf
from seodang.recipes.options.rankers import name_ranker
from seodang.recipes.options.sections import as_arguments, split_sections
from seodang.recipes.run.rounds import share_out
from seodang.train.rewards.ranking import FunctionRanker, JudgeRanker, PersonRanker
from seodang.train.run.callbacks import read_log
from seodang.train.stages import ppo, reward

RANKER = """
def small_letters(prompts, completions):
    return [sum(letter.islower() for letter in text) / 8 for text in completions]
"""


@pytest.fixture
def arguments(base, tmp_path):
    """`arguments(out, *more)`: two rounds that take seconds."""
    data, ranker = tmp_path / "prompts.jsonl", tmp_path / "ranker.py"
    data.write_text("".join(json.dumps({"prompt": f"number {n}"}) + "\n" for n in range(14)), encoding="utf-8")
    ranker.write_text(RANKER, encoding="utf-8")
    quick = "--disable_tqdm true --report_to none --logging_steps 1 --save_steps 1".split()

    def build(out, *more):
        common = f"--model {base} --data {data} --ranker {ranker}:small_letters --output_dir {out} --device cpu --dtype float32"
        common += " --samples 3 --ranked_prompts 6 --heldout_prompts 4 --reward_heldout 0.2"
        own = "--ppo.iterations 2 --ppo.rollouts 4 --ppo.minibatches 2 --ppo.epochs 1 --ppo.max_new_tokens 6 --ppo.per_device_train_batch_size 2"
        own += " --ppo.learning_rate 1e-3 --reward.learning_rate 1e-3 --reward.per_device_train_batch_size 2"
        sections = [word.replace("--", f"--{name}.") for name in ("reward", "ppo") for word in quick]
        return [*common.split(), *own.split(), *sections, *map(str, more)]

    return build


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(torch.equal(weights(one)[name], weights(other)[name]) for name in weights(other))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_rounds_leave_what_each_phase_made_and_a_plain_checkpoint(arguments, base, tmp_path, capsys):
    out = tmp_path / "out"
    assert rlhf.main(arguments(out)) == 0
    asked = {json.dumps(each["prompt"]) for number in (1, 2) for each in lines(out / f"round-{number}" / "samples.jsonl")}
    for number in (1, 2):
        folder = out / f"round-{number}"
        for record in lines(folder / "rankings.jsonl"):
            counts = [sum(letter.islower() for letter in text) for text in record["responses"]]
            assert len(set(record["responses"])) == len(counts) > 1
            assert [[a < b for b in record["ranks"]] for a in record["ranks"]] == [[a > b for b in counts] for a in counts]
        for part in ("reward", "ppo"):
            verify(folder / part)
        assert [entry["step"] for entry in read_log(folder / "ppo" / "log.jsonl") if "reward/mean" in entry] == [2, 4]
        assert (folder / "ppo" / "curves.png").is_file()
    first, second = (lines(out / f"round-{number}" / "samples.jsonl") for number in (1, 2))
    assert {json.dumps(each["prompt"]) for each in first} != {json.dumps(each["prompt"]) for each in second}  # other prompts, other answers
    held = json.loads((out / "heldout.json").read_text(encoding="utf-8"))
    assert len(held["answers"]) == 4 and held["rewards"] == [sum(letter.islower() for letter in text) / 8 for text in held["answers"]]
    assert len(asked) <= 10  # none of the four
    assert same(out, out / "round-2" / "ppo") and not same(out, base) and not same(out / "round-1" / "ppo", out)
    verify(out)
    load(out, device="cpu", dtype="float32")
    page = (out / "page.html").read_text(encoding="utf-8")
    assert "round 1, sampled" in page and "round 2, sampled" in page and "after round 2" in page
    printed = capsys.readouterr().out
    assert len(re.findall(r"reward model  right on [\d.]+% of held-out pairs", printed)) <= 2 and printed.splitlines()[-1].endswith(str(out))


class Killed(Exception):
    pass


def kill_at(monkeypatch, target, name, count, number=None):
    """Let the `count`-th call of a method raise instead, or where a signal's number is given send that first."""
    original, calls = getattr(target, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == count and number is None:
            raise Killed
        if len(calls) == count:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, dying)


@pytest.mark.full
def test_killed_in_and_between_all_phases_it_ends_as_if_it_had_not_been(arguments, tmp_path, monkeypatch):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    seed = ["--seed", 1]  # its samples tie seldom, so that every reward model takes two steps or more
    assert rlhf.main(arguments(whole, *seed)) == 0
    from seodang.recipes.run import rounds as rlhf_rounds

    deaths = [
        (rlhf_rounds, "sample_n", 1),  # before anything is there
        (rlhf_rounds, "write_atomically", 1),  # with the samples made but not written
        (FunctionRanker, "__call__", 3),  # with two prompts ranked
        (reward.RewardModelTrainer, "training_step", 1, signal.SIGINT),  # inside the first reward model
        (reward.RewardModelTrainer, "training_step", 1),  # inside its second step, one checkpoint written
        (reward.RewardModelTrainer, "save_final", 1),  # after its last step
        (ppo.PpoTrainer, "training_step", 2),  # inside the first iteration
        (ppo.PpoTrainer, "training_step", 4),  # inside the second: one checkpoint is there
        (ppo.PpoTrainer, "_experience_of", 1, signal.SIGTERM),  # where its answers are sampled
        (rlhf_rounds, "sample_n", 1),  # between the rounds
        (ppo.PpoTrainer, "save_final", 1),
        (rlhf_rounds, "copy_model", 1),  # at the very end
    ]
    for target, name, count, *number in deaths:
        with monkeypatch.context() as patched:
            kill_at(patched, target, name, count, *number)
            with nullcontext() if number else pytest.raises(Killed):
                assert rlhf.main(arguments(torn, *seed)) == 128 + number[0]
    assert not (torn / "manifest.json").exists()
    assert rlhf.main(arguments(torn, *seed)) == 0
    for number in (1, 2):
        for name in ("samples.jsonl", "rankings.jsonl", "heldout.json"):
            assert (whole / f"round-{number}" / name).read_bytes() == (torn / f"round-{number}" / name).read_bytes()
        for part in ("reward", "ppo"):
            assert same(whole / f"round-{number}" / part, torn / f"round-{number}" / part), (number, part)
    assert same(whole, torn)


def test_ranking_goes_on_with_the_next_prompt(arguments, tmp_path, monkeypatch):
    """A person stops after two prompts, then goes on; nothing is asked twice."""
    out, typed, shown = tmp_path / "out", iter(["2 1", "s", "q"]), []
    monkeypatch.setattr("builtins.input", lambda prompt: shown.append(prompt) or next(typed))
    argv = arguments(out, "--ranker", "person", "--rounds", 1, "--samples", 2)
    assert rlhf.main(argv) == 0  # stopped, not failed
    folder = out / "round-1"
    assert [each["ranks"] for each in lines(folder / "rankings.partial.jsonl")] == [[1, 0], [0, 0]] and not (folder / "reward").exists()
    typed = iter(["1 2", "2 1", "d"])
    assert rlhf.main(argv) == 0
    assert [each["ranks"] for each in lines(folder / "rankings.jsonl")] == [[1, 0], [0, 0], [0, 1], [1, 0]]
    assert len(shown) == 6
    verify(out)


@pytest.mark.full
def test_more_rounds_can_follow_but_other_options_cannot(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert rlhf.main(arguments(out, "--rounds", 1)) == 0
    first = weights(out)
    for changed, told in [(["--samples", 2], "--samples 3, now 2: "), (["--ppo.learning_rate", "1e-4"], "--ppo.learning_rate 0.001, now 0.0001: ")]:
        assert rlhf.main(arguments(out, *changed)) == 2
        assert f"{out} was trained with {told}use the same" in capsys.readouterr().err
    assert rlhf.main(arguments(out, "--rounds", 2, "--samples", 2, "--allow_changes", "samples", "--ppo.logging_steps", 2)) == 0
    assert json.loads((out / "rlhf.json").read_text(encoding="utf-8"))["options"]["samples"] == 2
    assert same(out, out / "round-2" / "ppo") and not torch.equal(first["lm_head.weight"], weights(out)["lm_head.weight"])


@pytest.mark.full
def test_with_lora_every_round_leaves_a_whole_model(arguments, base, tmp_path):
    out = tmp_path / "out"
    assert rlhf.main(arguments(out, "--lora_r", 4)) == 0
    assert (out / "round-1" / "ppo" / "adapter_config.json").is_file() and not (out / "adapter_config.json").exists()
    assert weights(out).keys() == weights(base).keys() and not same(out, base) and same(out, out / "round-2" / "policy")


@pytest.mark.full
def test_reward_models_can_go_on_from_the_previous_round(arguments, tmp_path):
    started, went_on = tmp_path / "started", tmp_path / "went_on"
    assert rlhf.main(arguments(started)) == 0 and rlhf.main(arguments(went_on, "--reward_from", "previous")) == 0
    assert same(started / "round-1" / "reward", went_on / "round-1" / "reward")
    assert not same(started / "round-2" / "reward", went_on / "round-2" / "reward")
    made = [json.loads((out / "round-2" / "reward" / "manifest.json").read_text(encoding="utf-8"))["base"] for out in (started, went_on)]
    assert made == [str(tmp_path / "base"), str(went_on / "round-1" / "reward")]


def test_a_dry_run_touches_nothing(arguments, tmp_path, capsys):
    assert rlhf.main(arguments(tmp_path / "out", "--dry_run", "true")) == 0
    assert "10 to rank answers to, 10 for PPO, 4 held out" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ranker", "nobody"], "ranker 'nobody' is unknown: give rule:REWARD"),
        (["--ranker", "rule:lenght:8"], "did you mean length?"),
        (["--ranker", "missing.py:f"], "there is no file missing.py"),
        (["--samples", "1"], "samples must be at least 2, got 1"),
        (["--heldout_prompts", "13"], "14 prompts are too few where 13 are held out"),
        (["--policy_prompts", "some"], "policy_prompts must be one of all, half"),
        (["--ppo.lerning_rate", "1"], "did you mean learning_rate"),
        (["--pop.rollouts", "1"], "there are the sections reward, ppo"),
        (["--reward.output_dir", "x"], "--reward.output_dir is set by the rounds: give --output_dir"),
        (["--ppo.rollouts", "5"], "rollouts 5 cannot be cut into 2 equal minibatches"),
        (["--lora_r", "4", "--reward_from", "previous"], "reward_from previous would put one adapter on another"),
        (["--config", "missing.yaml"], "there is no such file"),
        (["--ppo.temperature", "1e-6"], "the same answer every time"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(arguments, tmp_path, capsys, more, message):
    assert rlhf.main(arguments(tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


def test_sections_of_the_command_line_and_of_a_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("rounds: 3\nreward:\n  learning_rate: 1e-5\nppo:\n  bf16: true\n  report_to: [none, wandb]\n  seed: null\n", encoding="utf-8")
    main, sections = split_sections(["--ppo.seed=4", "--config", str(path), "--model", "a.b", "--reward.epochs", "2", "3"], ["reward", "ppo"])
    assert main == ["--rounds", "3", "--model", "a.b"]
    assert sections == {"reward": ["--learning_rate", "1e-5", "--epochs", "2", "3"], "ppo": ["--bf16", "true", "--report_to", "none", "wandb", "--seed=4"]}
    assert as_arguments({"a": 1.5, "b": None, "c": {"d": 1}}) == ["--a", "1.5", "--c", '{"d": 1}']
    with pytest.raises(UserError, match="ppo must be a block"):
        path.write_text("ppo: 3\n", encoding="utf-8")
        split_sections(["--config", str(path)], ["ppo"])


def test_the_recipes_yaml_is_understood(arguments, tmp_path):
    from pathlib import Path

    path = Path(rlhf.__file__).with_suffix(".yaml")
    assert rlhf.main(arguments(tmp_path / "out", "--config", path, "--dry_run", "true")) == 0


def test_held_out_prompts_are_nobodys_and_halves_do_not_meet():
    rows = [{"n": n} for n in range(21)]
    for kind, sizes in (("all", (16, 16, 5)), ("half", (8, 8, 5))):
        split = share_out(rows, 5, kind, seed=1)
        ranked, policy, held = ({row["n"] for row in some} for some in (split.ranked, split.policy, split.heldout))
        assert tuple(map(len, (ranked, policy, held))) == sizes and not held & (ranked | policy)
        assert (ranked == policy) if kind == "all" else not ranked & policy
    assert share_out(rows, 5, "half", 1) == share_out(rows, 5, "half", 1) != share_out(rows, 5, "half", 2)


def test_rankers_by_name(base):
    assert isinstance(name_ranker("rule:length:8").open("cpu", "float32"), FunctionRanker) and name_ranker("rule:length:2").reward([[]], ["a b"]) == [1.0]
    assert isinstance(name_ranker("person").open("cpu", "float32"), PersonRanker) and name_ranker("person").reward is None
    assert isinstance(name_ranker(f"judge:{base}").open("cpu", "float32"), JudgeRanker)
