"""Bidirectional masked diffusion with an approximate cache: how far its passes are from full ones, what that does to answers, and what it saves.

python benchmarks/diffusion_drift.py --model FOLDER                                    refresh 1, 2, 4, 8 and never, 64 held-out cities
python benchmarks/diffusion_drift.py --model FOLDER --block_length 4 --dual --context 3

The model is a bidirectional checkpoint of diffusion (`seodang demo-diffusion --attention bidirectional`), asked about cities that it has not seen, each behind up to `--context`
exchanges about others: the longer the prompts, the more there is to save. A JSON line for each `cache_refresh` (`never`: but at the beginning of a block) tells of what became certain the mean divergence
of the pass from a full one over the same canvas in nats and the share where another token is the likeliest, how many answers are exact, how many are those without a cache, which share of the passes was not full, and
the ratio of the speeds, with the cache over without, one request at a time in turn.
"""

import argparse
import json
from dataclasses import replace

from diffusion import CONTEXT, Question, Sides, exact, questions, spread, timed  # it sets OMP_WAIT_POLICY before torch is imported

from seodang.data.chat import prompt_ids
from seodang.infer import load
from seodang.infer.explain.drift import drift
from seodang.infer.runners.paradigm import is_bidirectional


def line(sides: Sides, asked: list[Question], refresh: int | None, dual: bool) -> dict:
    """What there is to tell of one refresh, None for never, beside full passes."""
    full = replace(sides.params, cache_refresh=None, confidence_threshold=sides.args.threshold)
    cached = replace(full, cache_refresh=refresh or full.max_new_tokens, dual_cache=dual or None)
    prompts = [prompt_ids(sides.tokenizer, each.messages) for each in asked]
    _, found = drift(sides.model, sides.tokenizer, prompts, cached)
    with_cache, without = sides.ours(cached), sides.ours(full)
    with_cache(asked[:1]), without(asked[:1])
    pairs = [(timed(with_cache, [each]), timed(without, [each])) for each in asked]
    said = [[answer for pair in pairs for answer in pair[side].answers] for side in (0, 1)]
    return {
        "cache_refresh": refresh or "never", "block_length": full.block_length, "dual_cache": dual, "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
        "divergence": float(f"{found.divergence:.3g}"), "changed": round(found.changed, 4), "tokens": found.tokens, "cached_passes": round(found.cached / found.forwards, 2),
        "exact": exact(said[0], [each.answer for each in asked]), "exact_without": exact(said[1], [each.answer for each in asked]),
        "same_answers": sum(a == b for a, b in zip(*said, strict=True)), "questions": len(asked),
        "ratio": spread([other.wall / own.wall for own, other in pairs]), "cpu_ratio": spread([other.cpu / own.cpu for own, other in pairs]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a bidirectional diffusion checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--refresh", nargs="+", default=["1", "2", "4", "8", "never"], help="values of cache_refresh")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--context", type=int, default=CONTEXT, help="exchanges before a question, at most")
    parser.add_argument("--canvas", type=int, default=12, help="tokens of an answer")
    parser.add_argument("--alg", default="entropy")
    parser.add_argument("--threshold", type=float, help="confidence_threshold; without it a pass for each position")
    parser.add_argument("--block_length", type=int)
    parser.add_argument("--dual", action="store_true", help="dual_cache: do not read what stands behind the block either")
    args = parser.parse_args()
    args.cache_refresh = None
    model, tokenizer = load(args.model, device=args.device, dtype=args.dtype)
    if not is_bidirectional(model.config):
        parser.error(f"--model {args.model} is no bidirectional diffusion checkpoint: the caches of others are exact")
    sides, asked = Sides(model, tokenizer, args), questions(args.questions, args.context)
    for refresh in args.refresh:
        print(json.dumps(line(sides, asked, None if refresh == "never" else int(refresh), args.dual)), flush=True)


if __name__ == "__main__":
    main()
