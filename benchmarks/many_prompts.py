"""What the driver of `seodang generate --backend ray` holds in memory, by how many prompts there are; the workers' model answers at once.

python benchmarks/many_prompts.py                   100,000 short prompts, two workers: half a minute, and Ray's own start
python benchmarks/many_prompts.py --prompts 10000

The prompts are read from a file, kept in shards, answered by Ray's actors, written and joined by the command's own code; only what stands in for the
model is of this script. Prints a JSON line: the process's resident memory in MiB once Ray is there, after each mark of answered prompts and at the end, the
most that it was, and the seconds of each part.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from seodang.recipes.many.answering import ManyRun
from seodang.recipes.many.dispatch import Heard
from seodang.recipes.many.ray_pool import RayPool, Resources
from seodang.recipes.many.worker import Answered
from seodang.recipes.prompts.prompt_files import Reading

MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)


class Stub:
    """Answers each prompt by itself, in capitals."""

    said = ""

    def check(self, first: int, lines: bytes) -> None:
        pass

    def answer(self, first: int, lines: bytes) -> Answered:
        told = []
        for record in map(json.loads, lines.splitlines()):
            line = {"line": record["number"], "prompt": record["prompt"], "choice": 0, "text": record["prompt"][0]["content"].upper(), "error": None}
            told.append(json.dumps(line).encode() + b"\n")
        return Answered(b"".join(told), len(told))


class Watched(RayPool):
    """A pool that notes how much memory the process has as answers come."""

    def __init__(self, prompts: int, workers: int, seen: dict[str, float]):
        super().__init__(Stub, workers, Resources(cpus=1))
        self._marks, self._done, self._seen = [int(prompts * mark) for mark in MARKS], 0, seen

    def __enter__(self) -> "Watched":
        super().__enter__()
        self._seen["ray is there"] = memory("VmRSS")
        return self

    def wait(self) -> list[Heard]:
        heard = super().wait()
        self._done += sum(each.value.tokens for each in heard if isinstance(each.value, Answered))
        while self._marks and self._done >= self._marks[0]:
            self._seen[f"{self._marks.pop(0):,} answered"] = memory("VmRSS")
        return heard


def memory(which: str) -> float:
    """A figure of this process's memory, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(which))
    return round(int(line.split()[1]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard_rows", type=int, default=256)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "prompts.jsonl"), Path(folder, "answers.jsonl")
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": f"Which number follows {number}?"}) + "\n" for number in range(given.prompts))
        seen = {"at the beginning": memory("VmRSS")}
        options = SimpleNamespace(
            prompts=[str(source)], output=str(output), resume=None, raw=False, references=False, max_source_length=None,
            reading=lambda: {"encoding": None, "columns": None},
        )  # fmt: skip
        run = ManyRun(options, Reading(), given.shard_rows, 1, {"backend": "stub"}, lambda *_: Watched(given.prompts, given.workers, seen))
        begun = time.monotonic()
        code = run.through()
        seconds = time.monotonic() - begun
        seen["joined"] = memory("VmRSS")
        with output.open(encoding="utf-8") as lines:
            right = sum(json.loads(line)["text"] == f"WHICH NUMBER FOLLOWS {number}?" for number, line in enumerate(lines))
    print(json.dumps({"prompts": given.prompts, "exit code": code, "right": right, "seconds": round(seconds, 1), "MiB": seen, "most": memory("VmHWM")}))


if __name__ == "__main__":
    main()
