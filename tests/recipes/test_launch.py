"""What a launcher's several processes train: the same as one, sharded or not, gone on with or not."""

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from seodang.infer.checkpoint.manifest import verify
from seodang.train.run.callbacks import read_log
from seodang.train.run.checkpoints import complete_checkpoints

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"
QUICK = ["--learning_rate", "1e-2", "--logging_steps", 1, "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu",
         "--lr_scheduler_type", "constant"]  # fmt: skip
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}  # fmt: skip
SHARDS = {**FSDP, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
GROUPS = ["--reward", "length:4:characters", "--num_generations", 4, "--max_completion_length", 8, "--temperature", 1.0, "--beta", 0.1]
# by verb: the data, and the options that make few tokens of it
STAGES = {
    "sft": ("texts", []),
    "dpo": ("pairs", ["--reference_time", "step"]),
    "kto": ("judged", ["--loss_type", "apo_zero_unpaired"]),
    "reward": ("pairs", []),
    "diffusion": ("texts", ["--mask_token", "<|mask|>"]),
    "mlm": ("plain", ["--documents", "line", "--max_length", 12]),
    "ppo": ("questions", ["--reward", "length:4:characters", "--rollouts", 8, "--minibatches", 1, "--epochs", 2, "--max_new_tokens", 6]),
    "grpo": ("questions", GROUPS),
    "rloo": ("questions", GROUPS),
}
LOGGED = ("loss", "grad_norm", "eval_loss", "eval_accuracy", "rewards/margins", "reward", "reward/mean", "kl", "policy_loss", "value_loss", "eval_reward")


@pytest.fixture
def data(tmp_path):
    """`data(name)`: 16 records of a kind, `data(name, held_out=True)` 5 others, which two processes cannot share evenly."""

    def written(name: str, held_out: bool = False) -> Path:
        letters = "qrstu" if held_out else "abcdefghijklmnop"
        said = [(f"say {letter}", letter * (1 + i % 5), "no" * (1 + i % 3)) for i, letter in enumerate(letters)]
        records = {
            "texts": [{"prompt": prompt, "completion": good} for prompt, good, _ in said],
            "pairs": [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in said],
            "judged": [{"prompt": prompt, "completion": text, "label": text == good} for prompt, good, bad in said for text in (good, bad)],
            "questions": [{"prompt": prompt} for prompt, _, _ in said],
        }
        path = tmp_path / f"{name}{'-held-out' * held_out}{'.txt' if name == 'plain' else '.jsonl'}"
        lines = [f"The little model learns {prompt}.\n" for prompt, _, _ in said] if name == "plain" else [json.dumps(record) + "\n" for record in records[name]]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return written


@pytest.fixture
def encoder(fresh_encoder, text_tokenizer, tmp_path):
    folder, tokenizer = tmp_path / "encoder", text_tokenizer("wordpiece")
    fresh_encoder("bert", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def deepspeed(tmp_path):
    """`deepspeed(stage)`: the environment that a launcher gives for ZeRO of this stage, with which few weights are shared, too: by itself it would leave them whole."""

    def environment(stage: int, **more) -> dict[str, str]:
        zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True, **more}
        zero |= {name: 0 for name in ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size")}
        path = tmp_path / f"zero{stage}.json"
        path.write_text(json.dumps({"zero_optimization": zero} | dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto")))
        return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path), "DS_ACCELERATOR": "cpu"}

    return environment


def steps(verb, count):
    return ["--iterations", count // 2] if verb == "ppo" else ["--max_steps", count]


def command(verb, model, data, *more):
    """The verb's words but for how long, where to and in which batches."""
    name, options = STAGES[verb]
    return ["--model", model, "--data", data(name), *options, *QUICK, *more]


def held_out_words(verb, base, encoder, data):
    """The same with records held out, of the stages whose figures of them are ours, and saved half way; and the batch of one process."""
    words = command(verb, encoder if verb == "mlm" else base, data, "--save_strategy", "steps", "--save_steps", 1 if verb == "ppo" else 2)
    if verb in ("dpo", "reward", "mlm", "ppo"):
        words += ["--eval_data", data(STAGES[verb][0], held_out=True), "--eval_strategy", "steps", "--eval_steps", 1, "--per_device_eval_batch_size", 1]
    return words, 8 if verb in ("grpo", "rloo") else 4


def train_one(verb, words, out, batch, count):
    """One process with the whole batch."""
    main = import_module(f"seodang.recipes.{verb}").main
    assert main([*map(str, [*words, "--output_dir", out, "--per_device_train_batch_size", batch, *steps(verb, count)])]) == 0


def assert_same(one, other, weights=1e-5):
    """The same losses and gradients at every step, and the same final weights."""
    first, second = (read_log(folder / "log.jsonl") for folder in (one, other))
    for name in LOGGED:
        ours, theirs = ({entry["step"]: entry[name] for entry in log if name in entry} for log in (first, second))
        assert ours == pytest.approx({step: theirs[step] for step in ours}, rel=1e-5, abs=1e-6), name  # one that goes on may measure before, too
    assert [entry["step"] for entry in first if "loss" in entry]
    verify(other)
    for name, value in (whole := load_file(one / "model.safetensors")).items():
        assert (value - load_file(other / "model.safetensors")[name]).abs().max() < weights, name
    assert whole.keys() == load_file(other / "model.safetensors").keys()


def test_sharded_weights_learn_what_whole_ones_do_and_measure_what_cannot_be_shared_evenly(base, data, tmp_path, run_script):
    """Five held-out rows on two processes, whose forward passes wait for each other; and answers to them, by whole weights."""
    words = command("sft", base, data, "--eval_data", data("texts", held_out=True), "--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 2,
                    "--per_device_eval_batch_size", 1)  # fmt: skip
    train_one("sft", words, tmp_path / "one", 4, 3)
    run_script("recipes/sft.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, "--max_steps", 2, processes=2, environment=SHARDS)
    run_script("recipes/sft.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, "--max_steps", 3, processes=2, environment=SHARDS)
    assert_same(tmp_path / "one", tmp_path / "two")
    first, second = ([e["eval_exact"] for e in read_log(tmp_path / name / "log.jsonl") if "eval_exact" in e] for name in ("one", "two"))
    assert first == second and len(first) == 3
    assert (tmp_path / "two" / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()  # in pieces indeed


@pytest.mark.full
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("verb", STAGES)
def test_every_stage_learns_the_same_gone_on_with_in_two_processes_and_in_four(verb, environment, base, encoder, data, tmp_path, run_script):
    words, batch = held_out_words(verb, base, encoder, data)
    train_one(verb, words, tmp_path / "one", batch, 4)
    run_script(f"recipes/{verb}.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", batch // 2, *steps(verb, 2), processes=2, environment=environment)
    run_script(f"recipes/{verb}.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", batch // 4, *steps(verb, 4), "--allow_changes", "all",
               processes=4, environment=environment, codes=[0] * 4)  # fmt: skip
    assert_same(tmp_path / "one", tmp_path / "two", weights=2e-2 if verb == "mlm" else 1e-3)


KILLED = """
import os, signal, sys
from seodang.recipes import sft
from seodang.train.run import checkpoints
from seodang.train.run.callbacks import RunLog

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def in_the_third_step(self, args, state, control, **kwargs):
    if state.global_step == 3:
        die()

def while_saving(folder, **facts):
    die() if facts["step"] == 3 else write_manifest(folder, **facts)

write_manifest = checkpoints.write_manifest
if sys.argv[1] == "step":
    RunLog.on_step_end = in_the_third_step
else:
    checkpoints.write_manifest = while_saving
sys.exit(sft.main(sys.argv[2:]))
"""


@pytest.mark.full
@pytest.mark.parametrize(("moment", "codes"), [("step", [-9, -9]), ("save", [-9, 2])])
@pytest.mark.parametrize("environment", [{}, FSDP, SHARDS], ids=["ddp", "fsdp", "shards"])
def test_killed_in_a_step_or_while_they_save_two_processes_go_on_to_what_one_learns(environment, moment, codes, base, data, tmp_path, run_script):
    script, two = tmp_path / "killed.py", tmp_path / "two"
    script.write_text(KILLED)
    words = command("sft", base, data, "--save_steps", 1, "--max_steps", 5)
    train_one("sft", words, tmp_path / "one", 4, 5)
    words += ["--output_dir", two, "--per_device_train_batch_size", 2]
    run_script(script, moment, *words, processes=2, environment=environment, codes=codes, patience=40)
    assert [folder.name for folder in complete_checkpoints(two)] == ["checkpoint-1", "checkpoint-2"] and not (two / "model.safetensors").exists()
    told = run_script("recipes/sft.py", *words, processes=2, environment=environment, codes=[0, 0])
    assert f"resume          from {two / 'checkpoint-2'}" in told
    assert_same(tmp_path / "one", two)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
@pytest.mark.parametrize("verb", ["sft", "dpo", "kto", "ppo", "grpo"])
def test_an_adapter_over_sharded_weights_learns_the_same(verb, engine, deepspeed, base, data, tmp_path, run_script):
    environment = FSDP if engine == "fsdp" else deepspeed(3)
    batch = 8 if verb == "grpo" else 4
    words = command(verb, base, data, "--lora_r", 4, "--save_strategy", "no")
    # a process of its own: an adapter begins from torch's own numbers
    run_script(f"recipes/{verb}.py", *words, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", batch, *steps(verb, 2))
    run_script(f"recipes/{verb}.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", batch // 2, *steps(verb, 2), processes=2, environment=environment, codes=[0, 0])
    first, second = ([e["loss"] for e in read_log(tmp_path / name / "log.jsonl") if "loss" in e] for name in ("one", "two"))
    assert first and first == pytest.approx(second, rel=1e-4, abs=1e-6)
    whole, gathered = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert whole.keys() == gathered.keys() and all((whole[name] - gathered[name]).abs().max() < 1e-3 for name in whole)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
@pytest.mark.parametrize("kind", ["gemma2", "tied"])
def test_heads_that_are_tied_or_more_than_one_layer_are_gathered_with_the_model(kind, engine, deepspeed, fresh_tiny, tiny_tokenizer, data, tmp_path, run_script):
    environment = FSDP if engine == "fsdp" else deepspeed(3)
    folder = tmp_path / "model"
    fresh_tiny(*(["llama"] if kind == "tied" else [kind]), tie_word_embeddings=True).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    words = command("sft", folder, data, "--save_strategy", "no")
    train_one("sft", words, tmp_path / "one", 4, 2)
    run_script("recipes/sft.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, "--max_steps", 2, processes=2, environment=environment, codes=[0, 0])
    assert_same(tmp_path / "one", tmp_path / "two", weights=2e-3)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["fsdp", *(pytest.param(stage, marks=needs_deepspeed) for stage in (2, 3))])
def test_what_is_measured_before_training_is_measured_by_whole_weights(engine, deepspeed, base, data, tmp_path, run_script, capsys):
    """trl's own loop would have the weights taken apart for its evaluation, and DeepSpeed set up without an optimizer."""
    words = command("grpo", base, data, "--save_strategy", "no", "--eval_data", data("questions"), "--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 2)
    train_one("grpo", [*words, "--per_device_eval_batch_size", 8], tmp_path / "one", 8, 2)
    told = run_script("recipes/grpo.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 4, "--per_device_eval_batch_size", 4, processes=2,
                      environment=FSDP if engine == "fsdp" else deepspeed(engine), codes=[0, 0])  # fmt: skip
    assert_same(tmp_path / "one", tmp_path / "two", weights=1e-3)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("held-out reward")]
    assert line in told  # before and after


@pytest.mark.full
def test_what_another_engine_saved_is_refused_and_16_bits_without_masters_are(base, data, tmp_path, run_script):
    words = command("sft", base, data, "--save_steps", 1, "--output_dir", tmp_path / "out", "--allow_changes", "all")
    refused = {"processes": 2, "environment": FSDP, "codes": [2, 2], "patience": 60}
    run_script("recipes/sft.py", *words, "--max_steps", 1)
    told = run_script("recipes/sft.py", *words, "--max_steps", 2, **refused)
    assert f"{tmp_path / 'out' / 'checkpoint-1'} was saved by plain processes, which FSDP cannot go on from" in told
    told = run_script("recipes/sft.py", *words, "--max_steps", 2, "--resume", "never", "--dtype", "bfloat16", **refused)
    assert "weights in 16 bits lose small steps, and under FSDP they have no float32 copies" in told
    told = run_script("recipes/sft.py", *words, "--max_steps", 2, "--resume", "never", **{**refused, "environment": {**FSDP, "FSDP_VERSION": "1"}})
    assert "FSDP version 1 is not run here: set fsdp_version: 2" in told


# DeepSpeed


@needs_deepspeed
@pytest.mark.full
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("verb", STAGES)
def test_every_stage_learns_the_same_by_deepspeed_and_gone_on_with(verb, stage, deepspeed, base, encoder, data, tmp_path, run_script):
    words, batch = held_out_words(verb, base, encoder, data)
    train_one(verb, words, tmp_path / "one", batch, 4)
    for count in (2, 4):
        run_script(f"recipes/{verb}.py", *words, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", batch // 2, *steps(verb, count), "--allow_changes", "all",
                   processes=2, environment=deepspeed(stage), codes=[0, 0])  # fmt: skip
    assert_same(tmp_path / "one", tmp_path / "two", weights=2e-2 if verb == "mlm" else 1e-3)


@needs_deepspeed
@pytest.mark.full
def test_zero3_checkpoints_in_pieces_are_gone_on_with_by_as_many_and_the_final_model_is_whole(deepspeed, base, data, tmp_path, run_script):
    words = command("sft", base, data, "--save_steps", 1, "--allow_changes", "all", "--per_device_train_batch_size", 2)
    train_one("sft", command("sft", base, data, "--save_steps", 1), tmp_path / "one", 4, 3)
    two, pieces = tmp_path / "two", deepspeed(3, stage3_gather_16bit_weights_on_model_save=False)
    for count in (2, 3):
        run_script("recipes/sft.py", *words, "--output_dir", two, "--max_steps", count, processes=2, environment=pieces, codes=[0, 0])
    assert_same(tmp_path / "one", two)
    verify(two / "checkpoint-2")
    assert not [*(two / "checkpoint-2").glob("*.safetensors")] and len([*(two / "checkpoint-2").glob("global_step2/zero_pp_rank_*_model_states.pt")]) == 2
    on = [*words, "--output_dir", two, "--max_steps", 4]
    for processes, stage, told in (
        (4, 3, "was saved by 2 processes, now 4: under DeepSpeed launch as many"),
        (2, 2, "was saved under ZeRO-3, which DeepSpeed cannot go on from"),
    ):
        said = run_script("recipes/sft.py", *on, processes=processes, environment=deepspeed(stage), codes=[2] * processes, patience=60)
        assert f"{two / 'checkpoint-3'} {told}" in said
    said = run_script("recipes/sft.py", *on, codes=[2])
    assert "was saved under ZeRO-3, which a run of plain processes cannot go on from" in said


# What vLLM would be handed

HANDED = """
import sys
from safetensors.torch import save_file
from trl.distributed import DistributedBackend
from trl.generation.vllm_generation import VLLMGeneration
from seodang.recipes import grpo
from seodang.train.stages.grpo import GrpoTrainer

begin, end = GrpoTrainer._prepare_for_training, GrpoTrainer.save_final

def handed_by(self):
    with self._by_vllm():
        return {name: value.detach().clone() for name, value in self.vllm_generation._iter_named_params()}

def prepare(self, *args):
    self.vllm_generation = given = object.__new__(VLLMGeneration)  # by trl, when the trainer is built
    given.model, given.accelerator, given._dist = self.model, self.accelerator, DistributedBackend(self.accelerator)
    first = self.accelerator.unwrap_model(self.model).get_input_embeddings().weight.detach().clone()
    assert any((value.shape == first.shape and (value == first).all()) for value in handed_by(self).values())
    return begin(self, *args)

def save(self):
    handed = handed_by(self)
    if self.args.should_save:
        save_file(handed, sys.argv[1])
    return end(self)

GrpoTrainer._prepare_for_training, GrpoTrainer.save_final = prepare, save
sys.exit(grpo.main(sys.argv[2:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
def test_trl_hands_over_the_whole_weights_of_what_is_shared(engine, rank, deepspeed, base, data, tmp_path, run_script):
    script, out = tmp_path / "handed.py", tmp_path / "out"
    script.write_text(HANDED)
    words = command("grpo", base, data, "--save_strategy", "no", "--lora_r", rank, "--max_steps", 2, "--per_device_train_batch_size", 4, "--output_dir", out)
    run_script(script, tmp_path / "handed", *words, processes=2, environment=FSDP if engine == "fsdp" else deepspeed(3), codes=[0, 0])
    model = AutoModelForCausalLM.from_pretrained(base if rank else out)
    if rank:
        model = PeftModel.from_pretrained(model, out).merge_and_unload()
    handed, whole = load_file(tmp_path / "handed"), dict(model.named_parameters())
    assert handed.keys() == whole.keys() and all((handed[name] - value).abs().max() < 1e-6 for name, value in whole.items())
    assert any((value != load_file(base / "model.safetensors")[name]).any() for name, value in handed.items())


# Launch files


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_launch_file_is_accelerates_and_says_when_and_by_which_line(path):
    text = path.read_text()
    assert f"accelerate launch --config_file recipes/launch/{path.name}" in text and text.startswith("# ")
    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines and yaml.safe_load(text)["distributed_type"] == config.distributed_type
    if path.stem in ("fsdp2", "machines"):
        assert config.fsdp_config["fsdp_version"] == 2 and not config.fsdp_config["fsdp_cpu_ram_efficient_loading"]
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])


def test_slurms_script_starts_a_launcher_on_each_machine_with_its_number(tmp_path):
    said = tmp_path / "said"
    for name, script in {
        "scontrol": "echo node1; echo node2",
        "srun": 'shift\nfor n in 0 1; do SLURM_NODEID=$n "$@"; done',
        "accelerate": f'printf "%s|" "$@" >>{said}; echo >>{said}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", LAUNCH / "slurm.sh", "dpo", "--output_dir", "a b"], check=True, env=environment)
    lines = [line.rstrip("|").split("|") for line in said.read_text().splitlines()]
    assert [line[line.index("--machine_rank") + 1] for line in lines] == ["0", "1"]
    for line in lines:
        given = dict(zip(line[1:-3:2], line[2:-3:2], strict=True))
        assert given["--num_processes"] == "8" and given["--main_process_ip"] == "node1" and given["--main_process_port"] == "23456"
        assert given["--config_file"] == "recipes/launch/machines.yaml" and line[-3:] == ["recipes/dpo.py", "--output_dir", "a b"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["ddp", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))])
def test_a_launch_file_trains_on_two_cpu_processes_what_one_does(name, base, data, tmp_path):
    words = command("sft", base, data, "--save_strategy", "no")
    train_one("sft", words, tmp_path / "one", 4, 2)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", LAUNCH / f"{name}.yaml", "--num_processes", 2, "--mixed_precision", "no"]
    words += ["--max_steps", 2, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "two"]
    script = LAUNCH.parent / "sft.py"
    done = subprocess.run([*map(str, [*launcher, script, *words])], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "SEODANG_START_SECONDS": "300", "DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "one", tmp_path / "two")
