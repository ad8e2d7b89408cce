"""The live engine under load, without HTTP: what it costs against the offline calls, and what a long prompt does to those that stream.

python benchmarks/engine_load.py                         everything, about half an hour on two cores
python benchmarks/engine_load.py --only load --in_flight 1 8
python benchmarks/engine_load.py --only gap parts prefix memory short --rounds 1

Each section runs its two sides in turn, as often as `--rounds` says, and prints a JSON line with the medians of both and of their ratio, beside what is
to be reached. `load`: so many requests in flight in a closed loop, sent by one thread, against `generate` of the same requests at the same rows.
`gap`: a prompt of 8,000 tokens comes while 8 others stream; their longest time between two tokens from then until its first token, over their usual one
before. `parts`: that prompt alone by parts, against one pass. `prefix`: a question behind a system prompt of 1,000 tokens that was read before, against
one behind a prompt that was not. `memory`: how far the memory grows beyond the loaded model, with a cache too small for all requests at once, against
what the engine said at its start. `short`: a short request that is sent after a long one's fifth token ends before it.
"""

import argparse
import json
import os
import queue
import random
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `seodang serve` has it; read when torch is imported

from seodang.data import read, sample_path  # noqa: E402
from seodang.infer import Committed, Finished, SamplingParams, generate, load, open_runner  # noqa: E402
from seodang.infer.engine.budget import pass_bytes  # noqa: E402
from seodang.infer.engine.core import MAX_ROWS  # noqa: E402
from seodang.infer.engine.live import LiveEngine  # noqa: E402
from seodang.infer.engine.pace import Pace  # noqa: E402

SYSTEM = "You answer questions on the countries of the world for pupils of ten years: briefly, in plain words, and you say so where you are not sure. "
LONG, STREAMS = 8_000, 8
CACHE = 600 * 10**6  # bytes, for `memory`: about 13,000 positions of the default model in float32


def running_text() -> str:
    """The sentences of the samples, one behind the other."""
    names = ("everyday", "korean_english", "plain", "geography")
    return " ".join(message["content"] for name in names for each in read(str(sample_path(name))) for message in each.messages)


class Texts:
    """Prompts of real language, of a wanted number of tokens and none twice."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.words = running_text().split()
        self.begin = 0

    def take(self, tokens: int, before: str = "") -> str:
        """Return a text of about so many tokens (of `before` too), which goes on where the last one ended."""
        text = before
        while self.count(text) < tokens:
            missing = max((tokens - self.count(text)) // 12, 1)  # a Korean word has as many
            words = [self.words[(self.begin + i) % len(self.words)] for i in range(missing)]
            self.begin += missing
            text = f"{text} {' '.join(words)}".strip()
        return text

    def count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])

    def mixed(self, count: int, draw: random.Random) -> list[str]:
        """Return so many prompts of 30 to 90 tokens, every third behind the same system prompt."""
        return [self.take(draw.randint(30, 90), SYSTEM if i % 3 == 0 else "") for i in range(count)]


class Clients:
    """Who sends to a live engine and hears what it says: the times of each request's tokens, and its end."""

    def __init__(self, engine: LiveEngine):
        self.engine = engine
        self.heard: queue.SimpleQueue = queue.SimpleQueue()
        self.tickets: list = []
        self.sent: list[float] = []
        self.times: list[list[float]] = []
        self.ended: dict[int, str] = {}

    def send(self, prompt, new: int, **options) -> int:
        """Send a request and return its number."""
        number = len(self.tickets)
        self.sent.append(time.perf_counter())
        self.times.append([])
        params = SamplingParams(max_new_tokens=new, ignore_eos=True, **options)
        self.tickets.append(self.engine.submit(prompt, params, on_event=lambda event: self.heard.put((number, time.perf_counter(), event))))
        return number

    def hear(self) -> tuple[int, object]:
        """Wait for what is said next, and return whose it is."""
        number, when, event = self.heard.get(timeout=600)
        if isinstance(event, Committed):
            self.times[number].append(when)
        elif isinstance(event, Finished):
            self.ended[number] = event.reason
            if event.reason == "error":
                raise RuntimeError(event.error)
        return number, event

    def until(self, reached) -> None:
        """Listen until `reached()` holds."""
        while not reached():
            self.hear()

    def first_token(self, prompt, new: int = 1) -> float:
        """Seconds from sending a request until its first token; it is heard to its end."""
        number = self.send(prompt, new)
        self.until(lambda: number in self.ended)
        return self.times[number][0] - self.sent[number]


@contextmanager
def clients(model, tokenizer, **options) -> Iterator[Clients]:
    """A live engine of its own, whose prefixes nobody has read, warm."""
    with LiveEngine(model, tokenizer, **options) as engine:
        mine = Clients(engine)
        mine.first_token("Warm.", 4)
        yield mine


def told(what: str, ours: list[float], theirs: list[float], reach: float, at_least: bool = False, **more) -> None:
    """Print a line: both medians, the median of the ratios, and whether it is what is to be reached."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    reached = ratio >= reach if at_least else ratio <= reach
    values = {"ours": rounded(statistics.median(ours)), "theirs": rounded(statistics.median(theirs)), "ratio": rounded(ratio)}
    ratios = [rounded(a / b) for a, b in zip(ours, theirs)]
    print(json.dumps({"what": what, **values, "to_reach": reach, "reached": reached, "ratios": ratios, **more}), flush=True)


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def turns(sides: list, rounds: int) -> list[list[float]]:
    """Call the sides in turn, each round in the other order, and return what each gave."""
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds):
        for place in sorted(range(len(sides)), reverse=turn % 2 == 1):
            found[place].append(sides[place]())
    return found


def load_section(model, tokenizer, texts: Texts, args) -> None:
    for in_flight in args.in_flight:
        prompts = texts.mixed(max(3 * in_flight, 6), random.Random(in_flight))
        params = SamplingParams(max_new_tokens=args.tokens, ignore_eos=True)

        def live() -> float:
            with clients(model, tokenizer, max_rows=in_flight) as mine:
                began, waiting = time.perf_counter(), list(prompts)
                for _ in range(in_flight):
                    mine.send(waiting.pop(0), args.tokens)
                done = len(mine.ended) + len(prompts)
                while len(mine.ended) < done:
                    _, event = mine.hear()
                    if isinstance(event, Finished) and waiting:
                        mine.send(waiting.pop(0), args.tokens)
                return len(prompts) * args.tokens / (time.perf_counter() - began)

        def offline() -> float:
            began = time.perf_counter()
            generate(model, tokenizer, prompts, params, max_rows=in_flight)
            return len(prompts) * args.tokens / (time.perf_counter() - began)

        ours, theirs = turns([live, offline], args.rounds)
        lengths = statistics.mean(map(texts.count, prompts))
        told(f"tokens/s, {in_flight} in flight", ours, theirs, 0.97, at_least=True, requests=len(prompts), prompt_tokens=rounded(lengths))


def gap_section(model, tokenizer, texts: Texts, args) -> None:
    usual, longest, seconds, during = [], [], [], []
    for turn in range(args.rounds):
        with clients(model, tokenizer) as mine:
            begun = [mine.send(prompt, 4_000) for prompt in texts.mixed(STREAMS, random.Random(turn))]
            mine.until(lambda: all(len(mine.times[number]) >= 32 for number in begun))
            long = mine.send(texts.take(args.long), 8)
            mine.until(lambda: mine.times[long])
            come, first = mine.sent[long], mine.times[long][0]
            before = [gap for number in begun for gap in gaps(mine.times[number][8:], 0, come)]
            while_read = [gap for number in begun for gap in gaps(mine.times[number], come, first)]
            usual.append(statistics.median(before))
            longest.append(max(while_read))
            during.append(statistics.median(while_read))
            seconds.append(first - come)
            for ticket in mine.tickets:
                ticket.cancel()
            mine.until(lambda: all(number in mine.ended for number in [*begun, long]))
    more = {"median_gap_while_read": rounded(statistics.median(during)), "long_prompts_first_token": rounded(statistics.median(seconds))}
    told(f"longest gap while {args.long} tokens are read", longest, usual, 4, **more)


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Seconds between tokens one after the other, of those gaps that reach into the time from `begin` to `end`."""
    return [after - before for before, after in zip(times, times[1:]) if after > begin and before < end]


def parts_section(model, tokenizer, texts: Texts, args) -> None:
    prompt = texts.take(args.long)
    ids = tokenizer(prompt)["input_ids"]

    def by_parts() -> float:
        with clients(model, tokenizer) as mine:
            return mine.first_token(prompt)

    def at_once() -> float:
        runner = open_runner(model)
        runner.forward([runner.allocate()], [ids[:4]], [1])
        began = time.perf_counter()
        runner.forward([runner.allocate()], [ids], [1]).argmax().item()
        return time.perf_counter() - began

    ours, theirs = turns([by_parts, at_once], args.rounds)
    told(f"seconds to the first token of {len(ids)} by parts", ours, theirs, 1.15)


def prefix_section(model, tokenizer, texts: Texts, args) -> None:
    found = {"finished": [], "live": [], "unread": []}
    for turn in range(max(args.rounds, 3)):
        with clients(model, tokenizer) as mine:
            system, other = texts.take(1_000), texts.take(1_000)
            found["unread"].append(mine.first_token(f"{system} Where is Suwon?"))
            found["finished"].append(mine.first_token(f"{system} And where is Busan?"))
            number = mine.send(f"{other} Where is Suwon?", 2_000)
            mine.until(lambda: len(mine.times[number]) > 2)
            found["live"].append(mine.first_token(f"{other} And where is Busan?"))
            mine.tickets[number].cancel()
            mine.until(lambda: number in mine.ended)
    told("seconds to the first token behind a prefix that was read", found["finished"], found["unread"], 1 / 3)
    told("the same, of a request that still streams", found["live"], found["unread"], 1 / 3)


def memory_section(model, tokenizer, texts: Texts, args) -> None:
    generate(model, tokenizer, ["Warm."], SamplingParams(max_new_tokens=2))  # a file's weights are in memory once they were read
    before = resident()
    with clients(model, tokenizer, cache_bytes=CACHE) as mine:
        print(json.dumps({"what": "what the engine says at its start", "says": mine.engine.describe()}), flush=True)
        runner = mine.engine.prefix_cache.runner
        printed = CACHE + pass_bytes(runner, Pace().part, MAX_ROWS, mine.engine.budget.positions(runner))
        for prompt in texts.mixed(64, random.Random(0)):
            mine.send(prompt, 32)
        mine.send(texts.take(args.long), 8)
        for _ in range(4):  # with the others more than the cache holds
            mine.send(texts.take(1_000), 16, num_beams=4)
        mine.until(lambda: len(mine.ended) == len(mine.tickets))
        grown = (peak() - before) * 2**20
    more = {"MB_before": round(before), "MB_cache": CACHE // 10**6}
    told("MB of memory beside the model at its peak", [grown / 1e6], [printed / 1e6], 1, **more)


def resident() -> float:
    """MB that the process holds now; what `peak` tells begins anew where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return status("VmRSS")


def peak() -> float:
    """The most MB that the process has held."""
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status(name: str, pid: int | str = "self") -> float:
    """MB that a line of a process' status tells, 0 where the system has none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(name)), 0.0)


def short_section(model, tokenizer, texts: Texts, args) -> None:
    with clients(model, tokenizer) as mine:
        long = mine.send(texts.take(60), 200)
        mine.until(lambda: len(mine.times[long]) >= 5)
        short = mine.send(texts.take(60), 8)
        mine.until(lambda: short in mine.ended)
        assert long not in mine.ended, "the short request ended after the long one"
        print(json.dumps({"what": "a short request after a long one's fifth token ends before it", "long_had": len(mine.times[long])}), flush=True)
        mine.tickets[long].cancel()
        mine.until(lambda: long in mine.ended)


SECTIONS = {
    "memory": memory_section, "load": load_section, "gap": gap_section, "parts": parts_section, "prefix": prefix_section, "short": short_section,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--in_flight", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--long", type=int, default=LONG)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu", dtype=args.dtype)
    for name in args.only:
        SECTIONS[name](model, tokenizer, Texts(tokenizer), args)


if __name__ == "__main__":
    main()
