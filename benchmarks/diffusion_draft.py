"""A diffusion checkpoint as the draft of a model that speaks from left to right: what it gains over greedy decoding, and how often its guesses come true.

python benchmarks/diffusion_draft.py --target runs/demo-diffusion/left_to_right --draft runs/demo-diffusion/diffusion
python benchmarks/diffusion_draft.py --draft runs/demo-diffusion/diffusion      its own weights from left to right, and drafting for themselves

Both are checkpoints of `seodang demo-diffusion`, and are asked about cities that neither has seen. Sides: `greedy`, the target alone; `diffusion`, drafted by
the checkpoint; `lookup`, drafted by what the prompt says. Each question goes to all sides in turn, one at a time, after one that is not counted.

A JSON line a side: tokens a second, the seconds of greedy decoding over its own (above 1 is faster; median and quartiles, in wall and in CPU time, and of
medians), passes of the target and of another model an answer, how many answers are the very tokens of greedy decoding; and by the place of a token in its draft
how many guesses were judged there, and which share of these came true; `of_the_first` of drafts of the answer's first token, where nothing is said yet.
"""

import argparse
import json
import os
import statistics
import time
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffusion import questions, spread

from seodang.infer import Observed, SamplingParams, generate, load
from seodang.infer.engine.generate import prepare, run
from seodang.infer.requests.trace import DraftTrace
from seodang.infer.runners.paradigm import diffusion_of


class Turn(NamedTuple):
    """One answer: its seconds, those of CPU time, its ids, and how many passes of the target and of the draft it took."""

    wall: float
    cpu: float
    ids: list[int]
    passes: int
    drafting: int


def asked(model, tokenizer, messages: list[dict], params: SamplingParams) -> Turn:
    """Answer one question."""
    began, began_cpu = time.perf_counter(), time.process_time()
    engine, [request] = prepare(model, tokenizer, [messages], params, False, None, 1)
    for _ in run(engine, [request], raises=True):
        pass
    others = sum(runner.passes for runner in engine._runners.values() if runner is not engine.runner)
    return Turn(time.perf_counter() - began, time.process_time() - began_cpu, request.result.ids, engine.runner.passes, others)


def judged(model, tokenizer, dialogues: list[list[dict]], params: SamplingParams) -> dict:
    """How often guesses came true, by their place in the draft: of those that were judged, which all before them had to come true for."""
    drafts = [
        (event.position, event.what)
        for result in generate(model, tokenizer, dialogues, params, trace=True, on_error="raise")
        for event in result.trace if isinstance(event, Observed) and isinstance(event.what, DraftTrace)
    ]  # fmt: skip
    told = {"guesses": len(drafts), "accepted_a_guess": round(sum(each.accepted for _, each in drafts) / max(len(drafts), 1), 2)}
    for name, own in (("by_place", [each for _, each in drafts]), ("of_the_first", [each for position, each in drafts if position == 0])):
        rates = []
        for place in range(max((len(each.ids) for each in own), default=0)):
            reached = [each for each in own if len(each.ids) > place and each.accepted >= place]
            if reached:
                rates.append([len(reached), round(sum(each.accepted > place for each in reached) / len(reached), 2)])
        told[name] = rates
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="folder of the checkpoint that speaks from left to right; the draft's own weights without it")
    parser.add_argument("--draft", required=True, help="folder of the diffusion checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--max_new_tokens", type=int, default=16, help="of an answer; canvases have no more")
    parser.add_argument("--guess", type=int, default=12, help="tokens of the first draft")
    parser.add_argument("--threshold", type=float, default=0.4, help="a draft ends below this probability")
    args = parser.parse_args()
    draft, tokenizer = load(args.draft, device=args.device, dtype=args.dtype)
    if diffusion_of(draft.config) is None:
        parser.error(f"--draft {args.draft} is no diffusion checkpoint")
    target, tokenizer = load(args.target, device=args.device, dtype=args.dtype) if args.target else (draft, tokenizer)
    drafted = {"assistant_model": draft, "num_assistant_tokens": args.guess, "assistant_confidence_threshold": args.threshold}
    settings = {"greedy": {"strategy": "sampling"}, "diffusion": drafted, "lookup": {"prompt_lookup_num_tokens": 8}}
    sides = {name: SamplingParams(max_new_tokens=args.max_new_tokens, **each) for name, each in settings.items()}
    dialogues = [each.messages for each in questions(args.questions + 1)]
    turns = [{name: asked(target, tokenizer, messages, params) for name, params in sides.items()} for messages in dialogues][1:]
    for name, params in sides.items():
        own, base = [each[name] for each in turns], [each["greedy"] for each in turns]
        drafts = {} if name == "greedy" else judged(target, tokenizer, dialogues[1:], params)
        print(json.dumps({
            "side": name, "tokens_per_s": round(statistics.median(len(turn.ids) / turn.wall for turn in own), 1),
            "ratio": spread([other.wall / turn.wall for turn, other in zip(own, base)]),
            "cpu_ratio": spread([other.cpu / turn.cpu for turn, other in zip(own, base)]),
            "ratio_of_medians": round(statistics.median(turn.wall for turn in base) / statistics.median(turn.wall for turn in own), 2),
            "tokens": round(statistics.mean(len(turn.ids) for turn in own), 1), "passes": round(statistics.mean(turn.passes for turn in own), 1),
            "drafting": round(statistics.mean(turn.drafting for turn in own), 1), "same": sum(a.ids == b.ids for a, b in zip(own, base)), "of": len(own), **drafts,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
