"""How much a model loses with its weights in 8 or 4 bits, or its cache in 8: perplexity and agreement with float32 on real text.

python benchmarks/quantised_quality.py --model default --data gsm8k_test.jsonl --tokens 5000

Every text is scored as the continuation of its first token: all tokens in long passes, `--steps` of them one position a pass too. In 8 bits by groups
(`seodang/infer/runners/native/grouped_linear.py`) both sum the same products in the same order; in 4 bits, and in 8 where the native kernels are not, a long
pass has another kernel (`seodang/infer/kernels/quantised_linear.py`), and so has bfloat16. `kv8` stands for keys and values in 8 bits (`kv_cache_dtype`), beside which
stands what its weights lose alone. With `--length` the texts are laid end to end and cut so long, for positions far behind.

python benchmarks/quantised_quality.py --data gsm8k_test.jsonl --kinds bfloat16 float32-kv8 bfloat16-kv8 --steps 1000
python benchmarks/quantised_quality.py --data gsm8k_test.jsonl --kinds bfloat16 float32-kv8 bfloat16-kv8 --steps 0 --tokens 6144 --length 2048
"""

import argparse
import json
import math
import time

import torch

from seodang.infer import load, open_runner
from seodang.infer.engine.scoring import chosen

ROWS = 8  # texts a pass
KV8 = {"kv_cache_dtype": "int8"}
KINDS = {
    "bfloat16": {"dtype": "bfloat16"}, "int8": {"weights": "int8"}, "int4": {"weights": "int4"},
    "float32-kv8": {"dtype": "float32", **KV8}, "bfloat16-kv8": {"dtype": "bfloat16", **KV8}, "int8-kv8": {"weights": "int8", **KV8}, "int4-kv8": {"weights": "int4", **KV8},
}  # fmt: skip


def texts_of(path: str, tokenizer, tokens: int, length: int | None = None) -> list[list[int]]:
    """Return the ids of records, all their strings joined, until there are `tokens` of them; laid end to end and cut into texts of a `length`, where one is given."""
    found, total = [], 0
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            ids = tokenizer("\n".join(value for value in record.values() if isinstance(value, str)))["input_ids"][:1024]
            if len(ids) > 1:
                found.append(ids)
                total += len(ids) - 1
            if total >= tokens:
                return found if length is None else cut([id for ids in found for id in ids], length)
    raise SystemExit(f"{path} has {total} tokens, fewer than --tokens {tokens}")


def cut(ids: list[int], length: int) -> list[list[int]]:
    """Cut ids into texts of one length; what is left over at the end is left out."""
    return [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]


def in_long_passes(model, texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's log-probability and the likeliest token in its place."""
    logprobs, picks, runner = [], [], open_runner(model)
    for start in range(0, len(texts), ROWS):
        some = texts[start : start + ROWS]
        rows = [runner.allocate() for _ in some]
        logits = runner.forward(rows, [ids[:-1] for ids in some], [len(ids) - 1 for ids in some])
        logprobs.append(chosen(logits, [id for ids in some for id in ids[1:]]))
        picks.append(logits.argmax(dim=-1))
        runner.release(rows)
    return torch.cat(logprobs), torch.cat(picks)


def in_steps(model, texts: list[list[int]], tokens: int) -> torch.Tensor:
    """Return the log-probabilities of the first `tokens` tokens, computed one a pass."""
    logprobs, runner = [], open_runner(model)
    for ids in texts:
        row = runner.allocate()
        for id, target in zip(ids, ids[1:]):
            if len(logprobs) == tokens:
                return torch.cat(logprobs)
            logprobs.append(chosen(runner.forward([row], [[id]], [1]), [target]))
        runner.release([row])
    return torch.cat(logprobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--data", required=True, help="JSON Lines; the strings of a record are its text")
    parser.add_argument("--tokens", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--length", type=int)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu", dtype="float32")
    texts = texts_of(args.data, tokenizer, args.tokens, args.length)
    exact, best = in_long_passes(model, texts)
    print(f"{len(exact)} tokens of {len(texts)} texts; float32 perplexity {math.exp(-exact.mean()):.4f}", flush=True)
    for kind in args.kinds:
        del model
        start = time.perf_counter()
        model, _ = load(args.model, device="cpu", **KINDS[kind])
        seconds = time.perf_counter() - start
        long, picks = in_long_passes(model, texts)
        steps = in_steps(model, texts, args.steps) if args.steps else long[:0]
        print(
            f"{kind:>12}: perplexity {percent(long, exact)} in long passes, "
            + (f"{percent(steps, exact[: len(steps)])} in {len(steps)} steps; " if args.steps else "")
            + f"a token's log-probability off by {(long - exact).abs().mean():.4f}; "
            + f"same likeliest token {100 * (picks == best).float().mean():.1f}%; loaded in {seconds:.1f} s",
            flush=True,
        )


def percent(logprobs: torch.Tensor, exact: torch.Tensor) -> str:
    return f"{100 * (math.exp(exact.mean() - logprobs.mean()) - 1):+.2f}%"


if __name__ == "__main__":
    main()
