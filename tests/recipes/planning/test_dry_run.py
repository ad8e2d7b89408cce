"""`--dry_run` of the training commands: nothing is loaded, what is printed fits or does not, and the exit code says which."""

import json

import pytest

from seodang.infer.checkpoint import load as loading
from seodang.recipes import dpo, grpo, kto, ppo, pretrain, reward, sft
from seodang.recipes.planning.options import PlanningOptions, parse_bytes

QUICK = ["--device", "cpu", "--dtype", "float32", "--report_to", "none"]
GIB = 2**30


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Whoever reads weights fails."""

    def refused(*args, **kwargs):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loading, "_load_weights", refused)


@pytest.fixture
def records(tmp_path):
    """`records(name)`: a file of each kind of record."""

    def write(kind):
        made = {
            "sft": [{"instruction": f"say {c}", "output": c * 20} for c in "abcdefgh"],
            "pairs": [{"prompt": f"say {c}", "chosen": c * 3, "rejected": "z"} for c in "abcdefgh"],
            "judged": [{"prompt": f"say {c}", "completion": c * 3, "label": i % 2 == 0} for i, c in enumerate("abcdefgh")],
            "prompts": [{"prompt": f"say {c}", "answer": c} for c in "abcdefghijklmnop"],
            "text": [{"text": "a text of some words " * 5} for _ in range(20)],
        }[kind]
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in made))
        return str(path)

    return write


def plan_of(verb, base, data, tmp_path, *words):
    """The plan as JSON, and the exit code."""
    path = tmp_path / "plan.json"
    model = ["--model", str(base)] if base is not None else []
    code = verb.main([*model, "--data", data, "--output_dir", str(tmp_path / "out"), "--dry_run", "--plan_file", str(path), *QUICK, *map(str, words)])
    return (json.loads(path.read_text()) if path.exists() else None), code


VERBS = [
    (sft, "sft", [], {"forward", "backward", "optimizer"}),
    (dpo, "pairs", ["--reference_time", "step"], {"forward", "backward", "optimizer"}),
    (kto, "judged", [], {"forward", "backward", "optimizer"}),
    (reward, "pairs", [], {"forward", "backward", "optimizer"}),
    (ppo, "prompts", ["--reward", "exact_answer", "--rollouts", 16, "--minibatches", 1, "--max_new_tokens", 8], {"forward", "backward", "optimizer", "rollout"}),
    (
        grpo, "prompts", ["--reward", "exact_answer", "--num_generations", 4, "--max_completion_length", 8, "--beta", 0.1],
        {"forward", "backward", "optimizer", "rollout"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "kind", "words", "moments"), VERBS, ids=[verb.__name__.rpartition(".")[2] for verb, *_ in VERBS])
def test_every_stage_is_planned_without_weights(base, records, tmp_path, capsys, verb, kind, words, moments):
    (base / "model.safetensors").unlink()
    plan, code = plan_of(verb, base, records(kind), tmp_path, *words)
    assert code == 0 and set(plan["moments"]) == moments
    weights = plan["weights"]["count"] * 4
    beside = {dpo: weights, kto: weights, ppo: weights, grpo: weights}.get(verb, 0)  # a copy that stays as it is
    for parts in plan["moments"].values():
        assert parts["parameters"] == pytest.approx(weights, abs=100)
        assert parts["optimizer state"] == pytest.approx(2 * weights, rel=0.01)
        assert parts["models beside"] == pytest.approx(beside, rel=0.01)
    assert plan["peak"] == max(sum(parts.values()) for parts in plan["moments"].values())
    printed = capsys.readouterr().out
    assert printed.count(f"{plan['peak'] / 2**30:.2f}, in {plan['peak_moment']}, beside Python") == 1 and "peak memory" not in printed  # said once
    assert "tokens a step" in printed and not (tmp_path / "out").exists()


def test_a_config_alone_is_enough_and_one_for_many_devices_says_the_other_ways(base, records, tmp_path, capsys):
    plan, code = plan_of(sft, base / "config.json", records("sft"), tmp_path, "--devices", 8)
    assert code == 2 and "beyond the model's vocabulary" in capsys.readouterr().err  # the default model's tokenizer reads the data, and 128 ids are too few
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": 49152}
    (base / "config.json").write_text(json.dumps(config))
    plan, code = plan_of(sft, base / "config.json", records("sft"), tmp_path, "--devices", 8)
    assert code == 0 and plan["layout"]["way"] == "fsdp" and set(plan["in_other_ways"]) == {"ddp", "zero1", "zero2", "zero3"}
    assert plan["moments"]["forward"]["optimizer state"] == pytest.approx(plan["weights"]["count"], rel=0.01)  # 8 bytes, an eighth


def test_pretraining_from_nothing_builds_nothing(records, tmp_path):
    words = ["--hidden_size", 64, "--layers", 2, "--heads", 4, "--vocab_size", 270, "--max_length", 64]
    plan, code = plan_of(pretrain, None, records("text"), tmp_path, *words)
    assert code == 0 and plan["weights"]["count"] == plan["weights"]["trained"] > 64 * 270


AS_GIVEN = ["--activation_checkpointing", "false", "--loss_chunk", 512]  # nothing is left to be chosen


def test_what_does_not_fit_says_what_to_change_first_and_leaves_with_1(base, records, tmp_path, capsys):
    data = records("sft")
    plan, code = plan_of(sft, base, data, tmp_path, "--device_memory", "1GiB")
    assert code == 0 and plan["fits"] and "GiB to spare" in capsys.readouterr().out
    least, code = plan_of(sft, base, data, tmp_path, "--device_memory", plan["peak"] - 1, *AS_GIVEN)
    printed = capsys.readouterr().out
    assert code == 1 and not least["fits"] and "does not fit" in printed and "change first    --activation_checkpointing true" in printed
    peaks = [change["peak"] for change in least["changes"]]
    assert peaks[-1] < plan["peak"]


def test_changes_come_to_what_they_promise(base, records, tmp_path):
    data = records("sft")
    hopeless, code = plan_of(sft, base, data, tmp_path, "--device_memory", "1KiB", *AS_GIVEN)
    assert code == 1 and hopeless["changes"][-1]["change"] == "or --lora_r 16 --qlora true"
    found = {change["change"]: change["peak"] for change in hopeless["changes"]}
    checkpointed, _ = plan_of(sft, base, data, tmp_path, "--activation_checkpointing", "true")
    assert found["--activation_checkpointing true"] == checkpointed["peak"]
    smallest, _ = plan_of(
        sft, base, data, tmp_path, "--activation_checkpointing", "true", "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8
    )
    assert found["and --per_device_train_batch_size 1 --gradient_accumulation_steps 8"] == smallest["peak"]


def test_qlora_is_planned_where_bitsandbytes_is_not(base, records, tmp_path, capsys):
    data = records("sft")
    full, _ = plan_of(sft, base, data, tmp_path, "--lora_r", 4)
    plan, code = plan_of(sft, base, data, tmp_path, "--lora_r", 4, "--qlora", "true")
    assert code == 0 and plan["weights"]["trained"] == full["weights"]["trained"]
    assert plan["moments"]["forward"]["parameters"] < 0.6 * full["moments"]["forward"]["parameters"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry_run", "--device_memory", "much"], "device_memory must be a size such as 80GiB or 24GB, got 'much'"),
        (["--dry_run", "--device_memory", "0GiB"], "device_memory must be a size"),
        (["--dry_run", "--device_memory", "0.5"], "device_memory must be a size"),
        (["--dry_run", "--device_memory", "9" * 400], "device_memory must be a size"),
        (["--dry_run", "--device_memory", "80"], "device_memory 80 is 80 bytes: name the unit, as 80GiB"),
        (["--dry_run", "--devices", "0"], "devices must be at least 1, got 0"),
        (["--dry_run", "--sharding", "fdsp"], "sharding must be one of ddp, zero1, zero2, zero3, fsdp, got 'fdsp'"),
        (["--dry_run", "--launch_file", "none.yaml"], "launch_file none.yaml: there is no such file"),
        (["--dry_run", "--launch_file", "none.yaml", "--devices", "4"], "drop --devices and --sharding, or the file"),
        (["--devices", "4"], "devices is what a dry run without weights plans for: add --dry_run"),
        (["--dry_run", "time", "--plan_file", "plan.json"], "plan_file is what a dry run without weights plans for"),
        (["--dry_run", "--loss_chunk", "-1"], "loss_chunk must be at least 1, or 0 to leave it open, got -1"),
        (["--dry_run", "--optim", "apollo_adamw"], "optim apollo_adamw: You need to install `apollo_torch`"),
        (["--dry_run", "now"], "dry_run must be memory or time, or true or false, got 'now'"),
    ],
)
def test_what_cannot_be_planned_for_is_refused(base, records, tmp_path, capsys, words, message):
    assert sft.main(["--model", str(base), "--data", records("sft"), "--output_dir", str(tmp_path / "out"), *QUICK, *words]) == 2
    assert message in capsys.readouterr().err


def test_ppo_holds_a_share_and_all_weights_once_while_it_rolls_out(base, records, tmp_path):
    words = ["--reward", "exact_answer", "--rollouts", 16, "--minibatches", 1, "--max_new_tokens", 8]
    one, _ = plan_of(ppo, base, records("prompts"), tmp_path, *words)
    plan, code = plan_of(ppo, base, records("prompts"), tmp_path, *words, "--devices", 2)
    assert code == 0 and plan["layout"]["way"] == "fsdp" and set(plan["in_other_ways"]) == {"ddp", "zero1", "zero2", "zero3"}
    whole, half = (each["moments"]["rollout"] for each in (one, plan))
    for part in ("parameters", "optimizer state"):
        assert half[part] == pytest.approx(whole[part] / 2, abs=1)
    assert half["gathered"] == whole["parameters"]  # policy and critic, for as long as they speak and judge
    assert half["models beside"] == whole["models beside"] > 0  # the reference, whole in each process
    assert half["cache"] == whole["cache"] / 2  # of 8 answers, not 16
    assert 0 < plan["moments"]["forward"]["gathered"] <= whole["parameters"]


@pytest.mark.parametrize(("verb", "kind", "words"), [(reward, "pairs", ["--device_memory", "1GiB"]), (kto, "judged", ["--loss_chunk", 64, "--dry_run"])])
def test_other_stages_choose_nothing(base, records, tmp_path, capsys, verb, kind, words):
    assert verb.main([*map(str, ["--model", base, "--data", records(kind), "--output_dir", tmp_path / "out", *QUICK, *words])]) == 2
    assert ("device_memory is what a dry run" if verb is reward else "loss_chunk 64 is of sft, dpo and decoders' pretrain") in capsys.readouterr().err


def test_a_launch_file_says_how_many_devices_there_are(base, records, tmp_path, capsys):
    path = tmp_path / "launch.yaml"
    path.write_text("{distributed_type: DEEPSPEED, num_processes: 4, mixed_precision: bf16, deepspeed_config: {zero_stage: 2}}")
    plan, code = plan_of(sft, base, records("sft"), tmp_path, "--launch_file", path)
    assert code == 0 and (plan["layout"]["devices"], plan["layout"]["way"]) == (4, "zero2")
    weights = plan["weights"]["count"]
    assert plan["moments"]["optimizer"]["gradients"] == weights and plan["moments"]["optimizer"]["optimizer state"] == pytest.approx(2 * weights, rel=0.01)
    assert "precision       bf16, as the launch file asks" in capsys.readouterr().out
    path.write_text(path.read_text().replace("bf16", "no"))
    full, _ = plan_of(sft, base, records("sft"), tmp_path, "--launch_file", path)
    given, _ = plan_of(sft, base, records("sft"), tmp_path, "--launch_file", path, "--bf16", "true")
    kept, in_32_bits, as_given = (each["moments"]["forward"]["activations"] for each in (plan, full, given))
    assert kept == as_given < in_32_bits  # what the run's own option does


def test_sizes_in_words():
    assert [parse_bytes(text) for text in ("80GiB", "24 GB", "1.5gib", "1024")] == [80 * GIB, 24 * 10**9, 3 * GIB // 2, 1024]
    assert PlanningOptions(device_memory="1MiB").memory == 2**20
