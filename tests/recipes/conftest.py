"""What recipes begin from, and how a cluster runs them: several processes, by accelerate's command or forked."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from seodang.__main__ import main as seodang
from seodang.infer.checkpoint import load as loading
from seodang.infer.runners.paradigm import Diffusion, declare


@pytest.fixture(autouse=True)
def _quick(unpainted):
    pass


@pytest.fixture
def base(fresh_tiny, tiny_tokenizer, tmp_path):
    """A tiny language model's folder."""
    folder = tmp_path / "base"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def declared(base):
    """`declared(shift=1)`: the same folder, whose config says that it is of masked diffusion, by mask 127 unless another is given."""

    def say(mask: int = 127, **diffusion) -> Path:
        config = AutoConfig.from_pretrained(base)
        declare(config, Diffusion(mask, **diffusion))
        config.save_pretrained(base)
        return base

    return say


@pytest.fixture
def launch():
    """`launch(verb, *argv)`: run `accelerate launch recipes/<verb>.py` on two CPU processes to its end, each of which imports everything."""

    def run(verb: str, *argv) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1,
                   "--main_process_port", 0, "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1,
                   Path(__file__).parents[2] / "recipes" / f"{verb}.py", *argv]  # fmt: skip
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture
def on_two(run_script):
    """`on_two(verb, *argv)`: the same in two forked processes, without the command and the imports."""
    return lambda verb, *argv: run_script(f"recipes/{verb}.py", *argv, processes=2)


@pytest.fixture(scope="module")
def small_defaults(tmp_path_factory, tiny, _tokenizer):
    """A folder of tiny models that stand in for `default`, with its own tokenizer, and for `default-encoder`; "qwen" beside them is laid out like Qwen3."""
    from encoder_fixtures import build_encoder, train_text_tokenizer

    folder = tmp_path_factory.mktemp("models")
    for name, kind in {"default": "llama", "qwen": "qwen3"}.items():
        tiny(kind, vocab_size=len(_tokenizer), max_position_embeddings=512, num_hidden_layers=1).save_pretrained(folder / name)
        _tokenizer.save_pretrained(folder / name)
    tokenizer = train_text_tokenizer("wordpiece")
    build_encoder(vocab_size=len(tokenizer)).save_pretrained(folder / "default-encoder")
    tokenizer.save_pretrained(folder / "default-encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "default_model", lambda: folder / "default")
        patch.setattr(loading, "default_encoder", lambda: folder / "default-encoder")
        yield folder


ON_CPU = "--device cpu --dtype float32"
LEARNING = f"{ON_CPU} --report_to none --disable_tqdm true"
STEPS = f"{LEARNING} --max_steps 2 --per_device_train_batch_size 4"
FEW = {  # what is added to a training command's words, that it takes a second or two
    **dict.fromkeys(("sft", "dpo", "kto", "diffusion"), f"{STEPS} --eval_samples 1"), "reward": STEPS, "classify": f"{LEARNING} --max_steps 2",
    "pretrain": f"{STEPS} --sample_tokens 0", "seq2seq": f"{STEPS} --eval_samples 1 --eval_new_tokens 4",
    "ppo": f"{LEARNING} --iterations 1 --epochs 1 --rollouts 4 --minibatches 2 --per_device_train_batch_size 2 --eval_samples 1 --max_new_tokens 4",
    "grpo": f"{LEARNING} --max_steps 1 --per_device_train_batch_size 4 --num_generations 2 --max_completion_length 4",
    **dict.fromkeys(("preview", "prepare", "tokenizer", "init"), ""),
    **dict.fromkeys(("pretrain", "seq2seq", "mlm", "contrastive", "tag"), f"{LEARNING} --max_steps 2 --per_device_train_batch_size 4"), "export": "",
    "explain": f"{ON_CPU} --max_new_tokens 4",
    "rlhf": f"{ON_CPU} --rounds 1 --samples 2 --ranked_prompts 4 --heldout_prompts 2 --ppo.iterations 1 --ppo.rollouts 4 --ppo.minibatches 2 --ppo.epochs 1 "
    "--ppo.max_new_tokens 4 --ppo.per_device_train_batch_size 2 --ppo.report_to none --reward.per_device_train_batch_size 2 --reward.report_to none",
    "eval": f"{ON_CPU} --limit 3 --max_new_tokens 4", "generate": f"{ON_CPU} --max_new_tokens 4",
}  # fmt: skip


@pytest.fixture
def quickly():
    """`quickly(command)`: run a command line of `seodang` with few steps, in this process and the current folder; it must succeed."""

    def run(command: str) -> None:
        program, *words = shlex.split(command)
        assert program == "seodang"
        few = ON_CPU if {"--predict", "--template"} & {*words} else FEW.get(words[0], ON_CPU)
        spoken = words[0] in ("generate", "explain", "eval")  # whose own length holds: it may go with others of its settings
        assert seodang([words[0], *few.split(), *words[1:]] if spoken else [*words, *few.split()]) == 0, command

    return run
