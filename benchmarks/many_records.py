"""Records made rows: tokenised, masked and packed, by `prepared_rows` beside trl's SFTTrainer, two processes each; and how long a million takes, in how much memory.

python benchmarks/many_records.py                          20,000 records, each side in turn, medians of the ratios
python benchmarks/many_records.py --sources                ours alone, from JSON Lines, Parquet and a stream
python benchmarks/many_records.py --rows 1000000 --ours    ours alone, with the memory of all processes on the way

Records are synthetic triplets of the samples' sentences, Korean and English. trl gets them as conversational prompt-completion pairs (completion_only_loss), packed by bfd
(or, with --no_packing, truncated), already in Arrow and mapped: what is timed is its own preparation, and of ours all of it, the reading of the file included.
"""

import argparse
import json
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import psutil
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from seodang.data import prepared_rows, read
from seodang.data.formats import to_example
from seodang.data.json_text import read_json_lines
from seodang.data.sample_data import sample_path
from seodang.infer.checkpoint.load import load_tokenizer

MAX_LENGTH = 1024


def triplets(rows: int) -> Iterator[dict[str, str]]:
    """Synthetic records: some hundred characters each, the same ones every time."""
    said = [record for name in ("everyday", "korean_english", "geography") for record in read_json_lines(sample_path(name))]
    texts = sorted({" ".join(text.split()) for record in said for text in record.values() if isinstance(text, str) and len(text) > 12})
    draw = random.Random(0)
    for number in range(rows):
        some = draw.choices(texts, k=6)
        yield {"instruction": f"{number}: {some[0]}", "input": " ".join(some[1 : draw.randint(1, 3)]), "output": " ".join(some[3 : draw.randint(4, 6)])}


def seconds() -> float:
    """Seconds that this process has computed, and those that it has waited for the end of."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(run: Callable[[], int], rows: int) -> dict[str, float]:
    """Records a second by the clock, microseconds of computing a record, and how many rows came of them."""
    wall, cpu = time.perf_counter(), seconds()
    made = run()
    wall, cpu = time.perf_counter() - wall, seconds() - cpu
    return {"records_a_second": rows / wall, "cpu_us_a_record": cpu / rows * 1e6, "wall_s": wall, "made": made}


class Trl:
    """trl's preparation of a data set, as its trainer calls it."""

    def __init__(self, records: Path, folder: Path, tokenizer, packing: bool, processes: int):
        def pairs() -> Iterator[dict]:
            for record in read_json_lines(records):
                question, answer = to_example(record).messages
                yield {"prompt": [question], "completion": [answer]}

        datasets.Dataset.from_list([*pairs()]).save_to_disk(folder / "pairs")
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
        self.tokenizer, self.args = tokenizer, SFTConfig(
            str(folder / "trl"), dataset_num_proc=processes, max_length=MAX_LENGTH, packing=packing, report_to="none", use_cpu=True, bf16=False,
            completion_only_loss=True,
        )  # fmt: skip
        self.trainer = SFTTrainer(LlamaForCausalLM(config), self.args, train_dataset=datasets.load_from_disk(folder / "pairs").select(range(8)), processing_class=tokenizer)
        self.pairs = folder / "pairs"

    def __call__(self) -> int:
        records = datasets.load_from_disk(self.pairs)
        return len(self.trainer._prepare_dataset(records, self.tokenizer, self.args, self.args.packing, None, "train"))


def sources(records: Path, folder: Path) -> dict[str, Callable]:
    """The records as a file of JSON Lines, of Parquet, and as a stream."""
    table = folder / "records.parquet"
    datasets.Dataset.from_list(read_json_lines(records)).to_parquet(table)
    stream = datasets.load_dataset("json", data_files=str(records), split="train", streaming=True)
    return {"jsonl": lambda: read(records, lazy=True), "parquet": lambda: read(table, lazy=True), "stream": lambda: stream}


class Course:
    """The resident memory of this process and of those it has started, at shares of the way."""

    def __init__(self, rows: int):
        self.rows, self.done, self.left, self.began = rows, 0, [0.1, 0.25, 0.5, 0.75, 1.0], time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        while self.left and self.done >= self.left[0] * self.rows:
            self.say(f"{self.left.pop(0):.0%}")

    def say(self, when: str) -> None:
        here = psutil.Process()
        workers = [f"{child.memory_info().rss / 2**20:.0f}" for child in here.children() if "seodang.data.prepared.worker" in " ".join(child.cmdline())]
        spent = time.monotonic() - self.began
        print(f"{when:>6}  {self.done:>9,} records  {spent:6.0f} s  parent {here.memory_info().rss / 2**20:.0f} MiB, workers {' and '.join(workers) or 'none'} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no_packing", action="store_true")
    parser.add_argument("--sources", action="store_true", help="ours alone, from each kind of source")
    parser.add_argument("--ours", action="store_true", help="ours alone, with the course of memory")
    parser.add_argument("--folder", help="where all lies; a temporary folder by default, taken away at the end")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = load_tokenizer("default")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        records = folder / "records.jsonl"
        with records.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in triplets(options.rows))
        print(f"{options.rows:,} records, {records.stat().st_size / 2**20:.1f} MiB", flush=True)
        packing = not options.no_packing

        def ours(examples: Callable = lambda: read(records, lazy=True), **more) -> int:
            shutil.rmtree(folder / "rows", ignore_errors=True)
            return len(prepared_rows(examples(), tokenizer, folder / "rows", packing=packing, processes=options.processes, max_length=MAX_LENGTH, **more)[0])

        if options.ours:
            course = Course(options.rows)
            course.say("begin")
            print(json.dumps(timed(lambda: ours(advance=course), options.rows)), flush=True)
            course.say("packed")
            return
        if options.sources:
            for kind, examples in sources(records, folder).items():
                print(kind, json.dumps(timed(lambda examples=examples: ours(examples), options.rows)), flush=True)
            return
        trl = Trl(records, folder, tokenizer, packing, options.processes)
        ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
        for turn in range(options.turns):
            sides = [("ours", ours), ("trl", trl)]
            found = {side: timed(run, options.rows) for side, run in (sides if turn % 2 == 0 else reversed(sides))}
            print(json.dumps(found), flush=True)
            ratios["wall"].append(found["trl"]["wall_s"] / found["ours"]["wall_s"])
            ratios["cpu"].append(found["trl"]["cpu_us_a_record"] / found["ours"]["cpu_us_a_record"])
        print(json.dumps({f"{name}_ratio": statistics.median(each) for name, each in ratios.items()} | {"ranges": {n: [min(e), max(e)] for n, e in ratios.items()}}))


if __name__ == "__main__":
    sys.exit(main())
