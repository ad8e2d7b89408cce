"""How near a dry run's plan of memory is to what a run takes: each configuration is planned and then run, in a fresh process of its own, on the CPU.

python benchmarks/memory_plan.py --data data/samples/everyday.jsonl
python benchmarks/memory_plan.py --small
python benchmarks/memory_plan.py --rows
python benchmarks/memory_plan.py --published

What was taken is the most that lay in memory at once (VmHWM of /proc/self/status) less what the process had before, when a run of a tiny model and the plan had
imported all there is and touched every kernel. The longest records alone are read, so that each step is the dearest. glibc is told to give large
blocks back at once; --fragments leaves it as it is, which then keeps some of what was freed. --small takes random weights, 19 million, instead of the default
model's. With --rows it is one row of 32,768 tokens, all learned from, by random weights of a vocabulary of 49,152: of 2 layers of 64, and with --only of the size of
the default model, whose sums of attention are left out, for they would take hours, and what it holds is not. With --published nothing is run: three published
configurations are planned on 1, 8 and 64 devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 2**30
STEPS = ["--save_strategy", "no", "--report_to", "none", "--device", "cpu", "--disable_tqdm", "true"]
SFT = ["sft", "--per_device_train_batch_size", "4", "--max_steps", "2", *STEPS]
RUNS = {
    "all weights, float32": [*SFT, "--dtype", "float32"],
    "checkpointed": [*SFT, "--dtype", "float32", "--activation_checkpointing", "true"],
    "LoRA of rank 16": [*SFT, "--dtype", "float32", "--lora_r", "16"],
    "all weights, bfloat16": [*SFT, "--dtype", "bfloat16"],
    "PPO": [
        "ppo", "--columns", "prompt=instruction", "--reward", "length:32", "--per_device_train_batch_size", "4", "--rollouts", "16", "--minibatches", "2", "--epochs", "1",
        "--iterations", "2", "--max_new_tokens", "64", "--dtype", "bfloat16", *STEPS,
    ],
}  # fmt: skip
ROW = 32_768  # tokens
LLAMA = {"vocab_size": 49_152, "max_position_embeddings": ROW, "tie_word_embeddings": True}
TINY = {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL = {**LLAMA, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
LIKE_DEFAULT = {**LLAMA, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
PRETRAIN = ["pretrain", "--max_length", str(ROW), "--per_device_train_batch_size", "1", "--max_steps", "2", "--sample_tokens", "0", *STEPS]
ROWS = {  # of which the last is run where it is asked for by name
    "a long row": (TINY, [*PRETRAIN, "--dtype", "float32"]),
    "a long row, checkpointed": (TINY, [*PRETRAIN, "--dtype", "float32", "--activation_checkpointing", "true"]),
    "a long row, fitted": (TINY, [*PRETRAIN, "--dtype", "float32", "--device_memory", "250MiB"]),
    "a long row, default size": (LIKE_DEFAULT, [*PRETRAIN, "--dtype", "bfloat16", "--device_memory", "4GiB"]),
}
CONFIGS = Path(__file__).with_name("configs")
DEVICES = (1, 8, 64)
TOKENS = 4096  # of a row of those that are planned alone
RUN = """
import gc, importlib, json, sys, tempfile
from transformers import AutoModelForCausalLM, LlamaConfig
from seodang.infer.checkpoint.load import load_tokenizer
verb, without_attention, *words = sys.argv[1:]
recipe = importlib.import_module("seodang.recipes." + verb)
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
if without_attention == "yes":
    import torch
    from seodang.train.attention import packed_attention
    class Held(torch.autograd.Function):  # what the fused kernel makes and keeps, and no sums
        @staticmethod
        def forward(ctx, query, key, value):
            out = query.clone()
            ctx.save_for_backward(query, key, value, out, query.new_zeros(query.shape[:3], dtype=torch.float32))
            return out
        @staticmethod
        def backward(ctx, grad):
            return tuple(each.clone() for each in ctx.saved_tensors[:3])
    packed_attention.attend_records = lambda query, key, value, lengths, **settings: Held.apply(query, key, value)
with tempfile.TemporaryDirectory() as tiny:
    tokenizer = load_tokenizer(words[words.index("--model") + 1])
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tiny)
    tokenizer.save_pretrained(tiny)
    short = ["--max_length", "512"] if verb == "pretrain" else []
    recipe.main([*words, "--model", tiny, "--output_dir", tiny + "/out", *short])
with tempfile.TemporaryDirectory() as folder:
    recipe.main([*words, "--dry_run", "--plan_file", folder + "/plan.json"])
    plan = json.load(open(folder + "/plan.json"))
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
code = recipe.main(words)
told = {"planned": plan["peak"], "moment": plan["peak_moment"], "taken": status("VmHWM") - before, "code": code, "chosen": plan["chosen"]}
print("\\nmeasured " + json.dumps(told))
"""


def longest_records(data: str, count: int, folder: Path) -> str:
    """A file of the longest records of another, by their letters."""
    lines = sorted(Path(data).read_text(encoding="utf-8").splitlines(), key=len, reverse=True)[:count]
    path = folder / "longest.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def measured(verb: str, words: list[str], fragments: bool, without_attention: bool = False) -> dict:
    """The peak, bytes, that is planned, and what the run took above what its process began with."""
    env = os.environ if fragments else {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    command = [sys.executable, "-c", RUN, verb, "yes" if without_attention else "no", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    line = next((line for line in done.stdout.splitlines() if line.startswith("measured ")), None)
    if line is None or json.loads(line.partition(" ")[2])["code"] != 0:
        raise SystemExit(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(line.partition(" ")[2])


def told(name: str, found: dict) -> None:
    """Print a line: planned, taken, their ratio."""
    chosen = f"; chosen {found['chosen']}" if found["chosen"] else ""
    print(f"{name:<26}{found['planned'] / GIB:9.3f}{found['taken'] / GIB:9.3f}  {found['planned'] / found['taken']:.3f}; {found['moment']}{chosen}", flush=True)


def written(sizes: dict, tokenizer: str, words: list[str], folder: str) -> str:
    """A folder of a Llama of such sizes with random weights, and a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from seodang.infer.checkpoint.load import load_tokenizer

    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.bfloat16 if "bfloat16" in words else torch.float32)
    model.save_pretrained(f"{folder}/model")
    load_tokenizer(tokenizer).save_pretrained(f"{folder}/model")
    return f"{folder}/model"


def compare(data: str, model: str, small: bool, only: str | None, fragments: bool) -> None:
    """Each configuration on the longest records."""
    for name, (verb, *words) in RUNS.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                place = written(SMALL, model, words, folder) if small else model
                words = ["--data", longest_records(data, 4, Path(folder)), "--model", place, "--output_dir", f"{folder}/out", *words]
                told(name, measured(verb, words, fragments))


def of_rows(data: str, tokenizer: str, only: str | None, fragments: bool) -> None:
    """The same of one row of 32,768 tokens, all learned from."""
    for name, (sizes, (verb, *words)) in ROWS.items():
        if only != name and (only is not None or sizes is LIKE_DEFAULT):
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = Path(data).read_text(encoding="utf-8")
            Path(folder, "text.jsonl").write_text(json.dumps({"text": text * (1 + 8 * ROW // len(text))}) + "\n", encoding="utf-8")
            words = ["--data", f"{folder}/text.jsonl", "--model", written(sizes, tokenizer, words, folder), "--output_dir", f"{folder}/out", *words]
            told(name, measured(verb, words, fragments, without_attention=sizes is LIKE_DEFAULT))


def published() -> None:
    """Print what SFT of three published configurations takes of each device, in bfloat16 with float32 masters, checkpointed, a row of 4,096 tokens at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from seodang.infer.checkpoint.load import load_tokenizer
    from seodang.infer.checkpoint.without_weights import load_without_weights, model_of_shapes
    from seodang.recipes.options.training import Arguments
    from seodang.train.memory.peak import measure, memory_plan, other_ways
    from seodang.train.memory.sharding import Layout
    from seodang.train.stages.sft import sft_trainer

    load_without_weights()
    rows = [{"input_ids": [1] * TOKENS, "labels": [1] * TOKENS}]
    args = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 1, "activation_checkpointing": True}
    for path in sorted(CONFIGS.glob("*.json")):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            model = model_of_shapes(str(path), AutoModelForCausalLM, torch.bfloat16, {})
            trainer = sft_trainer(model, load_tokenizer("default"), rows, Arguments(output_dir=folder, **args))
            measured = measure(trainer)
        for devices in DEVICES:
            plan = memory_plan(measured, Layout(devices))
            others = other_ways(measured, plan.layout) if devices > 1 else {}
            told = f" ({', '.join(f'{way} {peak / GIB:.1f}' for way, peak in others.items())})" if others else ""
            print(f"{path.stem:<14}{measured.count / 1e9:7.3f}B {devices:>3} devices{plan.peak / GIB:9.1f} GiB in {plan.peak_moment}{told}")
        print(f"{'':<14}found in {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/samples/everyday.jsonl")
    parser.add_argument("--model", default="default")
    parser.add_argument("--only", choices=[*RUNS, *ROWS])
    parser.add_argument("--fragments", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--published", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.published:
        published()
    else:
        print(f"{'configuration':<26}{'planned':>9}{'taken':>9}  GiB, ratio; the peak is in")
        if given.rows:
            of_rows(given.data, given.model, given.only, given.fragments)
        else:
            compare(given.data, given.model, given.small, given.only, given.fragments)
