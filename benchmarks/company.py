"""How many answers change with their company: each prompt is answered alone, and by an engine that others come to and leave, by the same seed.

python benchmarks/company.py                                                             greedy and sampling, 256 prompts each, float32
python benchmarks/company.py --strategies beam contrastive dola --prompts 32
python benchmarks/company.py --dtype bfloat16 --prompts 64
python benchmarks/company.py --weights int8 --prompts 64

The prompts are the records of the samples of geography and of Korean and English, one of each in turn. In company they come at random steps, about
`--in_flight` at a time, are read by parts of a random length, and share what is read of equal beginnings, as when served; alone none of this is so. With
`--alone N` only the first N are asked alone as well and compared, the others are company.
"""

import argparse
import json
import random
import time

import torch

from seodang.data import read, sample_path
from seodang.infer import Engine, Generation, PrefixCache, SamplingParams, generate, load
from seodang.infer.engine.pace import Pace
from seodang.infer.engine.prompts import new_requests

WAYS = {
    "greedy": {},
    "sampling": {"temperature": 1.0},
    "several": {"temperature": 1.0, "num_return_sequences": 3},
    "best_of_n": {"temperature": 1.0, "best_of": 3},
    "self_consistency": {"strategy": "self_consistency", "temperature": 1.0, "best_of": 3, "answer_of": str.strip},
    "minimum_bayes_risk": {"strategy": "minimum_bayes_risk", "temperature": 1.0, "best_of": 3},
    "beam": {"num_beams": 3},
    "beam_sampling": {"num_beams": 3, "do_sample": True},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained_beam": {"num_beams": 3, "force_words": ["city"]},
    "stochastic_beam": {"strategy": "stochastic_beam", "num_beams": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "high"},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "early_exit": {"assistant_early_exit": 15},
    "drafted": {},  # these two by the model itself with noise in its weights
    "amateur": {},
    "guided": {"guidance_scale": 1.5, "negative_prompt": "I do not know."},
    "json": {"regex": r'\{"answer": "[^"]{1,40}"\}', "temperature": 1.0},
}

PARTS = [3, 7, 16, 40, 512]  # how many positions of prompts a step takes


def questions(count: int) -> list[list[dict]]:
    """Return so many records as messages without their answers."""
    samples = [read(str(sample_path(name))) for name in ("geography", "korean_english")]
    mixed = [dialogue.messages[:-1] for pair in zip(*samples) for dialogue in pair]
    if len(mixed) < count:
        raise SystemExit(f"the samples have {len(mixed)} such prompts, fewer than --prompts {count}")
    return mixed[:count]


def noisy(model, share: float = 0.05):
    """Change each weight by about this share of itself, and return the model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share * torch.randn(parameter.shape, generator=generator))
    return model


def in_company(model, tokenizer, prompts: list, settings: list[SamplingParams], in_flight: int, draw: random.Random) -> list[list]:
    """Answer all by one engine, to which each comes at a random step; return the results of each prompt."""
    cache = PrefixCache(model)
    engine = Engine(cache.runner_for(model), prefix_cache=cache)
    coming = [Generation(request) for request in new_requests(model, tokenizer, prompts, settings, engine)]
    sent, going = [], True
    while coming or going:
        live = sum(not generation.done for generation in sent)
        while coming and live < in_flight and (not live or draw.random() < 0.5):
            sent.append(coming.pop(0))
            engine.submit(sent[-1])
            live += 1
        engine.pace = Pace(part=draw.choice(PARTS), stall=None)
        going = engine.step()
    return [[generation.results[choice] for choice in sorted(generation.results)] for generation in sent]


def compared(model, tokenizer, name: str, options: dict, args: argparse.Namespace) -> dict:
    """Return how many prompts of one strategy have other answers in company than alone."""
    prompts, draw = questions(args.prompts), random.Random(name)
    settings = [SamplingParams(seed=seed, max_new_tokens=args.tokens, **options) for seed in range(len(prompts))]
    began = time.perf_counter()
    together = in_company(model, tokenizer, prompts, settings, args.in_flight, draw)
    took, differ, tokens = time.perf_counter() - began, [], 0
    count = min(args.alone or len(prompts), len(prompts))
    for place in range(count):
        alone = generate(model, tokenizer, [prompts[place]], settings[place], on_error="result")
        said, expected = [result.ids for result in together[place]], [result.ids for result in alone]
        tokens += sum(map(len, expected))
        if said != expected:
            differ.append(place)
    dtype = str(model.dtype).removeprefix("torch.")
    told = {"strategy": name, "dtype": dtype, "weights": args.weights, "company": len(prompts), "compared": count, "differ": len(differ), "tokens": tokens}
    return {**told, "differing": differ, "seconds_together": round(took), "seconds": round(time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", help="float32, unless the weights are quantised")
    parser.add_argument("--weights", choices=["int8", "int4"])
    parser.add_argument("--strategies", nargs="+", choices=list(WAYS), default=["greedy", "sampling"])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--alone", type=int, help="how many are compared; all without")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--in_flight", type=int, default=32)
    args = parser.parse_args()
    args.dtype = args.dtype or ("auto" if args.weights else "float32")
    model, tokenizer = load(args.model, device="cpu", dtype=args.dtype, weights=args.weights)
    if {"drafted", "amateur"} & set(args.strategies):
        other = noisy(load(args.model, device="cpu", dtype="float32")[0])  # in float32, so that nothing of its own hangs on the batch
        WAYS["drafted"]["assistant_model"] = WAYS["amateur"]["amateur_model"] = other
    for name in args.strategies:
        options = WAYS[name]
        print(json.dumps(compared(model, tokenizer, name, options, args)), flush=True)


if __name__ == "__main__":
    main()
