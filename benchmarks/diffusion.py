"""Masked diffusion: what merged passes gain over one request after another, and a schedule without waste over Dream's published loop.

python benchmarks/diffusion.py --model runs/demo-diffusion/diffusion                    every case, 64 held-out cities
python benchmarks/diffusion.py --model FOLDER --cases loop-16 loop-24 --questions 200

The model is a checkpoint of diffusion, as `seodang demo-diffusion` leaves it, and is asked about cities that it has not seen, with canvases of `--canvas` tokens.
`merged`: eight requests in one call against a call each. `unequal`: the same, each behind none to three exchanges about other cities, so that the longest
prompts are some four times as long as the shortest. `loop-16`, `loop-24`: one request at a time, our schedule of a step for each position against Dream's loop
of so many steps, as it was published (`compat="dream"`, which is the same bit for bit); both greedily in the order `--alg`.

The two sides run in turn in one process, eight requests or one at a time, after a turn that is not counted. A JSON line a case tells the median and the
quartiles of the ratio of their speeds, ours over theirs, in wall and in CPU time, the tokens of canvases a second, and how many answers are exact on each side.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from seodang.data import read, sample_path
from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate, load
from seodang.infer.engine.prompts import end_ids

CASES = ("merged", "unequal", "loop-16", "loop-24")
ROWS = 8
CONTEXT = 3  # exchanges before a question, at most


class Question(NamedTuple):
    """What is asked, and what is to be said."""

    messages: list[dict]
    answer: str


class Turn(NamedTuple):
    """What one side did in one turn: its seconds, its seconds of CPU time, its answers."""

    wall: float
    cpu: float
    answers: list[str]


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

    def __init__(self, model, tokenizer, canvas: int, alg: str):
        self.model, self.tokenizer, self.canvas, self.alg = model, tokenizer, canvas, alg
        self.params = SamplingParams(max_new_tokens=canvas, alg=alg)
        self.ends = end_ids(model, tokenizer)

    def together(self, asked: Sequence[Question]) -> list[str]:
        """Our engine, all in one call."""
        prompts = [each.messages for each in asked]
        return [result.text for result in generate(self.model, self.tokenizer, prompts, self.params, on_error="raise")]

    def one_by_one(self, asked: Sequence[Question]) -> list[str]:
        """Our engine, a call each."""
        return [answer for each in asked for answer in self.together([each])]

    def published(self, asked: Sequence[Question], steps: int) -> list[str]:
        """Dream's loop, a call each; its answers end where ours would."""
        told = {"max_new_tokens": self.canvas, "steps": steps, "alg": self.alg, "temperature": 0, "top_p": None, "top_k": None}
        answers = []
        for each in asked:
            prompt = self.ids(each)
            ids = self.model.diffusion_generate(torch.tensor([prompt], device=self.model.device), **told)[0, len(prompt) :].tolist()
            end = next((place for place, id in enumerate(ids) if id in self.ends), len(ids))
            answers.append(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        return answers

    def ids(self, question: Question) -> list[int]:
        return prompt_ids(self.tokenizer, question.messages)


def turn(side: Callable[[Sequence[Question]], list[str]], asked: Sequence[Question]) -> Turn:
    """Let one side answer."""
    began, began_cpu = time.perf_counter(), time.process_time()
    answers = side(asked)
    return Turn(time.perf_counter() - began, time.process_time() - began_cpu, answers)


def compared(case: str, sides: Sides, count: int) -> dict:
    """Run the two sides of a case in turn, and tell how they did."""
    asked = questions(count, CONTEXT if case == "unequal" else 0)
    if case.startswith("loop-"):
        steps, at_once = int(case.removeprefix("loop-")), 1
        ours, theirs = sides.one_by_one, lambda each: sides.published(each, steps)
    else:
        at_once, ours, theirs = ROWS, sides.together, sides.one_by_one
    groups = [asked[begin : begin + at_once] for begin in range(0, count - count % at_once, at_once)]
    ours(groups[0]), theirs(groups[0])
    pairs = [(turn(ours, group), turn(theirs, group)) for group in groups]
    lengths = [len(sides.ids(each)) for each in asked]
    expected = [each.answer for group in groups for each in group]
    said = [[answer for pair in pairs for answer in pair[side].answers] for side in (0, 1)]
    tokens = sides.canvas * at_once
    return {
        "case": case, "alg": sides.alg, "canvas": sides.canvas, "prompt_tokens": [min(lengths), max(lengths)],
        "ratio": spread([theirs.wall / ours.wall for ours, theirs in pairs]),
        "cpu_ratio": spread([theirs.cpu / ours.cpu for ours, theirs in pairs]),
        "ours_tokens_per_s": round(statistics.median(tokens / ours.wall for ours, _ in pairs), 1),
        "theirs_tokens_per_s": round(statistics.median(tokens / theirs.wall for _, theirs in pairs), 1),
        "questions": len(expected), "ours_exact": exact(said[0], expected), "theirs_exact": exact(said[1], expected),
        "same_answers": sum(a == b for a, b in zip(*said, strict=True)),
    }  # fmt: skip


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
    args = parser.parse_args()
    if args.questions < ROWS:
        parser.error(f"--questions must be {ROWS} or more, got {args.questions}")
    model, tokenizer = load(args.model, device=args.device, dtype=args.dtype)
    if not hasattr(model, "diffusion_generate"):
        parser.error(f"--model {args.model} is no diffusion checkpoint")
    sides = Sides(model, tokenizer, args.canvas, args.alg)
    for case in args.cases:
        print(json.dumps(compared(case, sides, args.questions)), flush=True)


if __name__ == "__main__":
    main()
