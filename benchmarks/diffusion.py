"""Masked diffusion: what merged passes gain, and how long answers take beside the published loop and beside the same weights from left to right.

python benchmarks/diffusion.py --model runs/demo-diffusion/diffusion                    every case, 64 held-out cities
python benchmarks/diffusion.py --model FOLDER --cases published autoregressive-12 --thresholds 0.7 0.9 --questions 200

The model is a checkpoint of diffusion, as `seodang demo-diffusion` leaves it, and is asked about cities that it has not seen, with canvases of `--canvas` tokens,
greedily, in the order `--alg`; `--block_length` and `--cache_refresh` are those of our side. Cases, ours against theirs:

`merged-1`, `-8`, `-32`: so many requests in one call against a call each. `unequal`: eight, each behind none to three exchanges about other cities, so that the
longest prompts are some four times as long as the shortest.
`loop-16`, `loop-24`: one request at a time, a step for each position against Dream's loop of so many steps, as it was published (`compat="dream"`, which is the same bit for bit).
`published`: one request at a time, as many positions a pass as reach each of `--thresholds`, against that loop with a step for each position.
`drafted`: the same weights draft by diffusion and judge from left to right, against that loop, and against left to right alone (a checkpoint trained with a co-loss).
`autoregressive-12`: one request at a time, by those thresholds, against the same weights from left to right with their cache (a checkpoint trained with a co-loss).
`autoregressive-32`, `-64`: the same on canvases of so many tokens, which both sides fill to the end (`ignore_eos`); and of all three lengths, by a schedule of 1, 2, 4 and 8
tokens a pass, whatever they say: from which length and how many tokens a pass on diffusion is sooner done.

The two sides run in turn in one process, after a turn that is not counted. A JSON line a comparison tells the median and the
quartiles of the ratio of their speeds, ours over theirs, in wall and in CPU time (above 1: ours is faster), the tokens a second, the tokens of each of our passes over a
canvas, and how many answers are exact on each side.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from seodang.data import read, sample_path
from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate, load
from seodang.infer.engine.prompts import end_ids
from seodang.infer.runners.paradigm import diffusion_of

LENGTHS = (12, 32, 64)
CASES = ("merged-1", "merged-8", "merged-32", "unequal", "loop-16", "loop-24", "published", "drafted", *(f"autoregressive-{length}" for length in LENGTHS))
CONTEXT = 3  # exchanges before a question, at most
A_PASS = (1, 2, 4, 8)  # tokens


class Question(NamedTuple):
    """What is asked, and what is to be said."""

    messages: list[dict]
    answer: str


@dataclass
class Turn:
    """What one side did in one turn: its answers, their tokens and the passes that those took, its seconds, and its seconds of CPU time."""

    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    forwards: int = 0
    wall: float = 0.0
    cpu: float = 0.0


Side = Callable[[Sequence[Question]], Turn]


class Comparison(NamedTuple):
    """Two sides, what a line tells of them beside what was seen, how many questions a turn has, and behind how many exchanges at most."""

    ours: Side
    theirs: Side
    told: dict
    at_once: int = 1
    context: int = 0


def questions(count: int, context: int = 0) -> list[Question]:
    """The first held-out records, number i behind i % (context + 1) exchanges about cities that were trained."""
    held_out, trained = ([dialogue.messages for dialogue in read(str(sample_path(name)))] for name in ("cities_heldout", "cities"))
    if count > len(held_out):
        raise SystemExit(f"there are {len(held_out)} held-out cities, fewer than --questions {count}")
    return [Question([*before(trained, i, i % (context + 1)), *own[:-1]], own[-1]["content"]) for i, own in enumerate(held_out[:count])]


def before(dialogues: Sequence[list[dict]], number: int, exchanges: int) -> list[dict]:
    """So many exchanges, others for each number."""
    return [message for place in range(exchanges) for message in dialogues[(CONTEXT * number + place) % len(dialogues)]]


class Sides:
    """What the cases compare, on one model."""

    def __init__(self, model, tokenizer, args: argparse.Namespace):
        self.model, self.tokenizer, self.args = model, tokenizer, args
        self.params = SamplingParams(max_new_tokens=args.canvas, alg=args.alg, block_length=args.block_length, cache_refresh=args.cache_refresh)
        self.ends = end_ids(model, tokenizer)

    def comparisons(self, case: str) -> Iterator[Comparison]:
        """What is compared in a case."""
        name, _, number = case.partition("-")
        told = {"max_new_tokens": self.args.canvas}
        if name in ("merged", "unequal"):
            yield Comparison(self.ours(self.params), self.one_by_one(self.params), told, int(number or 8), CONTEXT if name == "unequal" else 0)
        elif name == "loop":
            yield Comparison(self.ours(self.params), self.published(int(number)), told)
        elif name == "published":
            for threshold in self.args.thresholds:
                ours = self.ours(replace(self.params, confidence_threshold=threshold))
                yield Comparison(ours, self.published(self.args.canvas), {**told, "threshold": threshold})
        elif name == "drafted":
            left_to_right = SamplingParams(max_new_tokens=self.args.canvas, strategy="sampling")
            ours = SamplingParams(max_new_tokens=self.args.canvas, assistant_model=self.model, num_assistant_tokens=self.args.canvas)
            yield Comparison(self.ours(ours), self.published(self.args.canvas), {**told, "beside": "published loop"})
            yield Comparison(self.ours(ours), self.ours(left_to_right), {**told, "beside": "left to right"})
        else:
            yield from self.beside_left_to_right(int(number))

    def beside_left_to_right(self, length: int) -> Iterator[Comparison]:
        """Thresholds, and schedules of so many tokens a pass; only the shortest answers end where they end."""
        whole = {"max_new_tokens": length, "ignore_eos": True}
        for threshold in self.args.thresholds:
            asked = {} if length == LENGTHS[0] else whole
            theirs = SamplingParams(**{"max_new_tokens": self.args.canvas, **asked}, strategy="sampling")
            told = {"max_new_tokens": self.args.canvas, "threshold": threshold, **asked}
            yield Comparison(self.ours(replace(self.params, **asked, confidence_threshold=threshold)), self.ours(theirs), told)
        for a_pass in A_PASS:
            ours = replace(self.params, **whole, steps=-(-length // a_pass))
            yield Comparison(self.ours(ours), self.ours(SamplingParams(**whole, strategy="sampling")), {"a_pass": a_pass, **whole})

    def ours(self, params: SamplingParams) -> Side:
        """Our engine, all in one call."""

        def side(asked: Sequence[Question]) -> Turn:
            results = generate(self.model, self.tokenizer, [each.messages for each in asked], params, on_error="raise")
            return Turn([each.text for each in results], sum(len(each.ids) for each in results), sum(each.forwards or len(each.ids) for each in results))

        return side

    def one_by_one(self, params: SamplingParams) -> Side:
        """Our engine, a call each."""
        one = self.ours(params)

        def side(asked: Sequence[Question]) -> Turn:
            turns = [one([each]) for each in asked]
            return Turn([answer for each in turns for answer in each.answers], sum(each.tokens for each in turns), sum(each.forwards for each in turns))

        return side

    def published(self, steps: int) -> Side:
        """Dream's loop, a call each; its answers end where ours would."""
        told = {"max_new_tokens": self.args.canvas, "steps": steps, "alg": self.args.alg, "temperature": 0, "top_p": None, "top_k": None}

        def side(asked: Sequence[Question]) -> Turn:
            turn = Turn(forwards=steps * len(asked))
            for each in asked:
                prompt = prompt_ids(self.tokenizer, each.messages)
                ids = self.model.diffusion_generate(torch.tensor([prompt], device=self.model.device), **told)[0, len(prompt) :].tolist()
                end = next((place for place, id in enumerate(ids) if id in self.ends), len(ids))
                turn.answers.append(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
                turn.tokens += min(end + 1, len(ids))
            return turn

        return side


def timed(side: Side, asked: Sequence[Question]) -> Turn:
    """Let one side answer."""
    began, began_cpu = time.perf_counter(), time.process_time()
    turn = side(asked)
    turn.wall, turn.cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return turn


def compared(comparison: Comparison, count: int) -> dict:
    """Run the two sides in turn, and tell how they did."""
    ours, theirs, told, at_once, context = comparison
    asked = questions(count, context)
    groups = [asked[begin : begin + at_once] for begin in range(0, count - count % at_once, at_once)]
    ours(groups[0]), theirs(groups[0])
    pairs = [(timed(ours, group), timed(theirs, group)) for group in groups]
    expected = [each.answer for group in groups for each in group]
    mine, others = ([pair[side] for pair in pairs] for side in (0, 1))
    said = [[answer for turn in turns for answer in turn.answers] for turns in (mine, others)]
    return {
        **told, "ratio": spread([other.wall / own.wall for own, other in pairs]), "cpu_ratio": spread([other.cpu / own.cpu for own, other in pairs]),
        "ours_s": median(own.wall / at_once for own in mine), "theirs_s": median(other.wall / at_once for other in others),
        "ours_tokens_per_s": median(own.tokens / own.wall for own in mine), "theirs_tokens_per_s": median(other.tokens / other.wall for other in others),
        "ours_tokens_per_pass": median([sum(own.tokens for own in mine) / sum(own.forwards for own in mine)]),
        "questions": len(expected), "ours_exact": exact(said[0], expected), "theirs_exact": exact(said[1], expected),
        "same_answers": sum(a == b for a, b in zip(*said, strict=True)),
    }  # fmt: skip


def median(values) -> float:
    """The median to four digits."""
    return float(f"{statistics.median(values):.4g}")


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}


def exact(answers: Sequence[str], expected: Sequence[str]) -> int:
    """How many answers are what was expected, after white space is folded."""
    return sum(" ".join(answer.split()) == right for answer, right in zip(answers, expected, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a diffusion checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--canvas", type=int, default=12, help="tokens of an answer")
    parser.add_argument("--alg", default="entropy")
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.9], help="values of confidence_threshold")
    parser.add_argument("--block_length", type=int)
    parser.add_argument("--cache_refresh", type=int, help="of a bidirectional checkpoint")
    args = parser.parse_args()
    model, tokenizer = load(args.model, device=args.device, dtype=args.dtype)
    if not hasattr(model, "diffusion_generate"):
        parser.error(f"--model {args.model} is no diffusion checkpoint")
    of_both = [case for case in args.cases if case.startswith(("autoregressive", "drafted"))]
    if of_both and not diffusion_of(model.config).autoregressive:
        parser.error(f"{of_both[0]} asks for the same weights from left to right, which --model {args.model} was not trained for (--co_loss)")
    sides = Sides(model, tokenizer, args)
    comparisons = [(case, each) for case in args.cases for each in sides.comparisons(case)]
    if args.questions < (least := max(each.at_once for _, each in comparisons)):
        parser.error(f"--questions must be {least} or more, got {args.questions}")
    for case, each in comparisons:
        print(json.dumps({"case": case, "alg": args.alg, **compared(each, args.questions)}), flush=True)


if __name__ == "__main__":
    main()
