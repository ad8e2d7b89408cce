"""How many sampled answers change with their company: each prompt is answered alone and together with the others, by the same seed.

python benchmarks/seeded_company.py --dtype float32 --prompts 256

The prompts are the records of the samples of geography and of Korean and English, one of each in turn.
"""

import argparse
import time

from seodang.data import read, sample_path
from seodang.infer import SamplingParams, generate, load
from seodang.infer.engine.core import MAX_ROWS


def questions(count: int) -> list[list[dict]]:
    """Return so many records as messages without their answers."""
    samples = [read(str(sample_path(name))) for name in ("geography", "korean_english")]
    mixed = [dialogue.messages[:-1] for pair in zip(*samples) for dialogue in pair]
    if len(mixed) < count:
        raise SystemExit(f"the samples have {len(mixed)} such prompts, fewer than --prompts {count}")
    return mixed[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=1.0)
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu", dtype=args.dtype)
    prompts = questions(args.prompts)
    settings = [SamplingParams(temperature=args.temperature, seed=seed, max_new_tokens=args.tokens) for seed in range(len(prompts))]
    start = time.perf_counter()
    together = generate(model, tokenizer, prompts, settings)
    print(f"{len(prompts)} prompts together, at most {MAX_ROWS} at a time: {time.perf_counter() - start:.0f} s", flush=True)
    differ = tokens = 0
    for count, (prompt, own, result) in enumerate(zip(prompts, settings, together), 1):
        [alone] = generate(model, tokenizer, [prompt], own)
        differ += alone.ids != result.ids
        tokens += len(result.ids)
        if count % 16 == 0 or count == len(prompts):
            print(f"{args.dtype}: {differ} of {count} answers ({tokens} tokens) differ alone; {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
