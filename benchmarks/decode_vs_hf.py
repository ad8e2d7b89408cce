"""Decoding: tokens a second, ours against transformers' generate on the same prompts, in turn in one process.

python benchmarks/decode_vs_hf.py                         every case, medians of the ratios
python benchmarks/decode_vs_hf.py --cases one-float32 one-int4 --rounds 7

Cases: `one-*`, `eight-*`, `many-*` are 1, 8 and 32 prompts of 32 random tokens with 64 new ones; `mixed` is 32 prompts of 16 to 160 tokens with 8 to 64
new ones against padded generate and against transformers' continuous batching; `beams-*` four beams; `copy` and `random` are prompt lookup
against our own greedy; `filters-*` and `grammar` what they add to a step of ours; `context` what a step costs as the context grows.
Quantised cases are compared with generate in float32.
"""

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from bandwidth import read_bandwidth

from seodang.infer import SamplingParams, generate, load

NEW = 64
PAD = 2
Answers = list[list[int]]  # the new ids of each prompt


def prompts(count: int, length: int = 32, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(100, 40_000, (length,), generator=generator).tolist() for _ in range(count)]


class Ours:
    """Our side of a case: a model in a dtype or with quantised weights."""

    def __init__(self, dtype: str = "float32", weights: str | None = None):
        self.model, self.tokenizer = load("default", device="cpu", dtype=dtype, weights=weights)

    def __call__(self, asked: list[list[int]], new: int | list[int] = NEW, **settings) -> Answers:
        lengths = [new] * len(asked) if isinstance(new, int) else new
        params = [SamplingParams(**{"max_new_tokens": n, "ignore_eos": True, **settings}) for n in lengths]
        return [result.ids for result in generate(self.model, self.tokenizer, asked, params)]


class Theirs:
    """transformers' generate, prompts padded on the left; it runs until the longest answer is done."""

    def __init__(self, dtype: str = "float32"):
        self.model, _ = load("default", device="cpu", dtype=dtype)

    def __call__(self, asked: list[list[int]], new: int | list[int] = NEW, **settings) -> Answers:
        lengths = [new] * len(asked) if isinstance(new, int) else new
        width = max(map(len, asked))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in asked])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in asked])
        with torch.inference_mode():
            found = self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=max(lengths), min_new_tokens=max(lengths), pad_token_id=PAD,
                eos_token_id=None, **settings,
            )  # fmt: skip
        return [answer[width : width + length] for answer, length in zip(found.tolist(), lengths)]


class Continuous(Theirs):
    """transformers' continuous batching."""

    def __call__(self, asked: list[list[int]], new: int | list[int] = NEW) -> Answers:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        lengths = [new] * len(asked) if isinstance(new, int) else new
        config = GenerationConfig(do_sample=False, max_new_tokens=max(lengths), eos_token_id=-1, pad_token_id=PAD)
        batching = ContinuousBatchingConfig(num_blocks=512, max_batch_tokens=1024)
        done: Answers = []
        with torch.no_grad(), self.model.continuous_batching_context_manager(generation_config=config, continuous_batching_config=batching) as manager:
            for prompt, length in zip(asked, lengths):
                manager.add_request(prompt, max_new_tokens=length)
            while len(done) < len(asked):
                if (result := manager.get_result(timeout=1)) is not None and result.is_finished():
                    done.append(result.generated_tokens)
        return done


def timed(call: Callable[[], Answers]) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    tokens = sum(map(len, call()))
    return tokens / (time.perf_counter() - began)


def compare(ours: Callable[[], Answers], theirs: Callable[[], Answers], rounds: int) -> dict:
    """Run the two in turn; the median of the ratios of their speeds, ours over theirs."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "ours_tokens_per_s": round(statistics.median(a for a, _ in pairs), 1), "theirs_tokens_per_s": round(statistics.median(b for _, b in pairs), 1),
    }  # fmt: skip


def _seconds(call: Callable) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def weight_bytes(dtype: str, weights: str | None) -> float:
    """Bytes of weights that a token reads: 134.5 million, each in its width (scales of quantised groups included)."""
    return 134.5e6 * {"int8": 1 + 2 / 32, "int4": 0.5 + 4 / 32}.get(weights, {"float32": 4, "bfloat16": 2}[dtype])


def plain(count: int, dtype: str, weights: str | None, peer: str, rounds: int) -> dict:
    ours, theirs, asked = Ours(dtype, weights), Theirs(peer), prompts(count)
    result = compare(lambda: ours(asked), lambda: theirs(asked), rounds)
    if count == 1:
        result["share_of_bandwidth"] = round(weight_bytes(dtype, weights) * result["ours_tokens_per_s"] / 1e9 / read_bandwidth(), 2)
    return result


def mixed(rounds: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 161, (32,), generator=generator).tolist()
    new = torch.randint(8, 65, (32,), generator=generator).tolist()
    asked = [prompts(1, length, seed)[0] for seed, length in enumerate(lengths)]
    ours = Ours()
    found = {"padded": compare(lambda: ours(asked, new), lambda side=Theirs(): side(asked, new), rounds)}
    found["continuous"] = compare(lambda: ours(asked, new), lambda side=Continuous(): side(asked, new), rounds)
    return found


def beams(dtype: str, weights: str | None, peer: str, rounds: int) -> dict:
    ours, theirs, asked = Ours(dtype, weights), Theirs(peer), prompts(1)
    return compare(lambda: ours(asked, num_beams=4), lambda: theirs(asked, num_beams=4), rounds)


def lookup(text: str | None, rounds: int) -> dict:
    """Prompt lookup against our own greedy; without a text, on random tokens that go on at random, against our own sampling."""
    ours = Ours()
    if text is None:
        asked, settings = prompts(1, 128), {"temperature": 2.0, "seed": 1}
    else:
        asked, settings = [ours.tokenizer(text)["input_ids"]], {}
    settings["new"] = 2 * NEW  # the prompt is long and costs both the same
    return compare(lambda: ours(asked, prompt_lookup_num_tokens=10, **settings), lambda: ours(asked, **settings), rounds)


def added(count: int, rounds: int, **settings) -> dict:
    """What settings cost beside the plain step: the ratio of speeds with and without them."""
    ours, asked = Ours(), prompts(count)
    return compare(lambda: ours(asked, **settings), lambda: ours(asked), rounds)


def grammar(rounds: int) -> dict:
    """What a mask costs: the language is too long to end, and the other side is kept from ending by a minimum length."""
    ours, asked = Ours(), prompts(1)
    masked = {"ignore_eos": False, "regex": r"[A-Za-z ,.]{400,}"}
    return compare(lambda: ours(asked, **masked), lambda: ours(asked, ignore_eos=False, min_new_tokens=NEW), rounds)


def context(rounds: int) -> dict:
    """Milliseconds of a step at a context, ours and transformers' own forward with its cache."""
    from transformers import DynamicCache

    from seodang.infer import open_runner

    side, found = Ours(), {}
    runner = open_runner(side.model)
    for length in (128, 512, 2048, 7936):
        asked = prompts(1, length)[0]
        row = runner.allocate()
        runner.forward([row], [asked], [1])
        cache = DynamicCache()
        with torch.inference_mode():
            side.model(torch.tensor([asked]), past_key_values=cache, logits_to_keep=1)
            own, their = [], []
            for _ in range(5 * rounds):
                own.append(_seconds(lambda: runner.forward([row], [[5]], [1])))
                their.append(_seconds(lambda: side.model(torch.tensor([[5]]), past_key_values=cache)))
        runner.release([row])
        found[length] = {"ours_ms": round(1e3 * statistics.median(own), 1), "theirs_ms": round(1e3 * statistics.median(their), 1)}
    return found


COPY = (
    "Repeat the list twice.\n" + (names := "".join(f"{n}. The quick brown fox number {n} jumps over the lazy dog named Rex.\n" for n in range(1, 9))) + names
    + "1. The quick brown fox number 1"
)  # fmt: skip
ALL_FILTERS = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 1}
CASES: dict[str, Callable[[int], dict]] = {
    f"{name}-{weights or dtype}": lambda rounds, count=count, dtype=dtype, weights=weights: plain(
        count, dtype, weights, "bfloat16" if dtype == "bfloat16" and weights is None else "float32", rounds
    )
    for name, count in (("one", 1), ("eight", 8), ("many", 32))
    for dtype, weights in (("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "int4"))
}
CASES |= {
    "mixed": mixed,
    "beams-float32": lambda rounds: beams("float32", None, "float32", rounds),
    "beams-bfloat16": lambda rounds: beams("bfloat16", None, "bfloat16", rounds),
    "beams-int8": lambda rounds: beams("bfloat16", "int8", "float32", rounds),
    "copy": lambda rounds: lookup(COPY, rounds),
    "random": lambda rounds: lookup(None, rounds),
    "filters-one": lambda rounds: added(1, rounds, **ALL_FILTERS),
    "filters-many": lambda rounds: added(32, rounds, **ALL_FILTERS),
    "grammar": grammar,
    "context": context,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(json.dumps({"threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), **torch.cpu.get_capabilities()}))
    for name in options.cases:
        print(json.dumps({"case": name, **CASES[name](options.rounds)}), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
