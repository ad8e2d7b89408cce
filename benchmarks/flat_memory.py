"""Does memory stay flat? One call that answers thousands of requests, and a training of thousands of steps, of a tiny random model.

python benchmarks/flat_memory.py --requests 2000 --steps 10000

Prints a JSON line for each of the two: the resident memory in MiB at twenty moments, and by how much a straight line through those behind the first
fifth (until then caches fill) rises over the whole. Exits by 1 where that is more than --most MiB. A tiny model makes leaks large beside the rest: its
weights take 0.2 MiB, so what is left behind by each request or step shows.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from seodang.infer import SamplingParams
from seodang.infer.engine.generate import answers
from seodang.train import sft

MOMENTS = 20
VOCABULARY = 512


def resident() -> float:
    """The memory that this process has, in MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def built() -> tuple[AutoModelForCausalLM, PreTrainedTokenizerFast]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, eos_token_id=0
    )
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), eos_token="<eos>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return AutoModelForCausalLM.from_config(config).eval(), tokenizer


def of_requests(count: int, watch: Callable[[int], None]) -> None:
    """One call for so many prompts of 4 to 60 tokens: sampled, searched by beams, with copied drafts, under penalties, with stops, with log-probabilities."""
    model, tokenizer = built()
    chance = random.Random(0)
    prompts = [" ".join(f"w{chance.randrange(1, VOCABULARY)}" for _ in range(chance.randrange(4, 60))) for _ in range(count)]
    kinds = [
        {"temperature": 1.0, "top_p": 0.9}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {"repetition_penalty": 1.2}, {"stop": ["w7", "w9 w3"]},
        {"temperature": 0.8, "min_p": 0.1, "logprobs": 2, "num_return_sequences": 2},
    ]  # fmt: skip
    asked = [kinds[number % len(kinds)] for number in range(count)]
    params = [SamplingParams(max_new_tokens=16, **each, **({"seed": number} if "temperature" in each else {})) for number, each in enumerate(asked)]
    left = [each.num_return_sequences for each in params]
    done = 0
    for result in answers(model, tokenizer, prompts, params, max_rows=16):
        left[result.prompt_index] -= 1
        if not left[result.prompt_index]:
            done += 1
            watch(done)


def of_steps(count: int, watch: Callable[[int], None]) -> None:
    """So many steps of fine-tuning, a checkpoint at each tenth of them."""
    model, tokenizer = built()
    chance = random.Random(0)
    rows = [[chance.randrange(1, VOCABULARY) for _ in range(chance.randrange(8, 40))] for _ in range(512)]
    rows = [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in rows]

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            watch(state.global_step)

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=count, per_device_train_batch_size=4, save_steps=max(count // 10, 1), save_total_limit=2, logging_steps=10, use_cpu=True,
            report_to="none", disable_tqdm=True, learning_rate=1e-3,
        )  # fmt: skip
        sft(model, tokenizer, rows, args, callbacks=[Watch()])


def measured(what: str, work: Callable[[int, Callable[[int], None]], None], count: int) -> float:
    """Do the work, print how the memory went, and return its rise in MiB over the whole."""
    every, seen, began = max(count // MOMENTS, 1), [], time.monotonic()
    work(count, lambda done: seen.append(resident()) if done % every == 0 else None)
    rise = rise_of(seen[len(seen) // 5 :]) * len(seen)
    print(json.dumps({what: count, "mib": [round(each, 1) for each in seen], "rise_mib": round(rise, 2), "seconds": round(time.monotonic() - began)}), flush=True)
    return rise


def rise_of(values: Sequence[float]) -> float:
    """The slope of the straight line through values, by least squares, from one to the next."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    spread = sum((place - middle) ** 2 for place in range(len(values)))
    return sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread if spread else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--most", type=float, default=8.0, help="MiB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rises = [measured("requests", of_requests, options.requests), measured("steps", of_steps, options.steps)]
    return 1 if max(rises) > options.most else 0


if __name__ == "__main__":
    sys.exit(main())
