"""Adapters in one batch: what rows of several adapters cost over as many rows of one model that an adapter was merged into.

python benchmarks/many_adapters.py                        the default model, 8 rows, adapters of rank 8 and 16 on all linear layers

Random adapters, written by peft, are loaded over the model; `--rows` requests of `--tokens` tokens each are answered together, once by a merged model
and once by rows of 8 adapters, of one, and of none, in turn, as often as `--rounds` says. A JSON line a case tells the medians of seconds and of the ratio to the
merged model, and how many of the answers are those of the merged model of their adapter where that was tried (`--check`).
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from seodang.infer import LiveEngine, SamplingParams, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--targets", nargs="+", default=["all-linear"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="Compare the answers with those of merged models, one at a time.")
    args = parser.parse_args()
    model, tokenizer = load(args.model, dtype=args.dtype)
    for rank in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            measure(model, tokenizer, rank, Path(folder), args)


def measure(model, tokenizer, rank: int, folder: Path, args) -> None:
    """Measure the cases of one rank."""
    targets = args.targets[0] if args.targets == ["all-linear"] else args.targets
    names = [f"adapter{n}" for n in range(8)]
    for seed, name in enumerate(names):
        write(model, folder / name, seed, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=targets))
    merged = merged_with(model, folder / names[0])
    cases = {"8 adapters": names, "1 adapter": names[:1], "4 adapters and the model": [*names[:4], None], "the model alone": [None]}
    with LiveEngine(merged, tokenizer, reuse_prefixes=False) as one, LiveEngine(model, tokenizer, reuse_prefixes=False) as many:
        for name in names:
            many.load_adapter(name, folder / name)
        answered(one, tokenizer, [None], args), answered(many, tokenizer, names, args)
        seconds = {case: [] for case in cases}
        ratios, cpus = {case: [] for case in cases}, {case: [] for case in cases}
        for _ in range(args.rounds):
            base, base_cpu, _ = answered(one, tokenizer, [None], args)
            for case, who in cases.items():
                took, cpu, _ = answered(many, tokenizer, who, args)
                seconds[case].append(took)
                ratios[case].append(took / base)
                cpus[case].append(cpu / base_cpu)
        told = answered(many, tokenizer, names, args)[2]
    for case in cases:
        line = {"rank": rank, "targets": targets, "case": case, "seconds": round(statistics.median(seconds[case]), 2)}
        over = {"over_merged": round(statistics.median(ratios[case]), 3), "cpu_over_merged": round(statistics.median(cpus[case]), 3)}
        print(json.dumps({**line, **over, "rounds": args.rounds}), flush=True)
    if args.check:
        equal = 0
        for place in range(min(args.rows, len(names))):
            with LiveEngine(merged_with(model, folder / names[place]), tokenizer, reuse_prefixes=False) as own:
                equal += answered(own, tokenizer, [None], args)[2][place] == told[place]
        print(json.dumps({"rank": rank, "equal": equal, "of": min(args.rows, len(names))}), flush=True)


def write(model, folder: Path, seed: int, config: LoraConfig) -> None:
    """Save a random adapter that changes what the model says."""
    adapted = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)
    adapted.save_pretrained(folder)


def merged_with(model, folder: Path):
    """The model that an adapter makes of it."""
    return PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload().eval()


def answered(engine, tokenizer, adapters, args) -> tuple[float, float, list[list[int]]]:
    """Seconds and CPU seconds that the rows take, the adapters dealt round, and the ids of the answers."""
    params = SamplingParams(max_new_tokens=args.tokens, ignore_eos=True)
    prompts = [f"Here are {n + 3} things that a school of {n + 20} children needs:" for n in range(args.rows)]
    began, began_cpu = time.perf_counter(), time.process_time()
    tickets = [engine.submit(prompt, params, adapter=adapters[n % len(adapters)]) for n, prompt in enumerate(prompts)]
    found = [ticket.results()[0].ids for ticket in tickets]
    return time.perf_counter() - began, time.process_time() - began_cpu, found


if __name__ == "__main__":
    main()
