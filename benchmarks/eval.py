r"""lm-eval on the default model: our engine, lm-eval's own `hf` backend and our server, in turn in one process tree, with the same threads.

python benchmarks/eval.py --data nsmc.jsonl jhe_koen.jsonl gsm8k_test.jsonl [--sides ours hf ours-bfloat16 ours-int8 server] [--limit 40] [--rounds 2] [--threads 2]

Needs seodang[lm-eval]. Tasks are made of what files have: {text, label} (few-shot sentiment, whose examples are the same for every question, or drawn for each, as is
lm-eval's default), {source, target} (which of four translations it is), {question, answer} (the perplexity of texts, and answers of 48 tokens behind three examples).
`hf` runs in the best of `--batch_sizes` of a first round of four questions. Told are the seconds inside the model's calls, those of the whole evaluation, and its CPU
seconds, which other work on the machine stretches less, the best of the rounds; their ratios to `hf`; and every figure, which must be equal where the weights are.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from sides import Calls, Side, serve

SHOTS, MAX_GEN = 5, 48
TASK = {"dataset_path": "json", "test_split": "test", "fewshot_split": "shots"}
CHOICE = {"output_type": "multiple_choice", "doc_to_target": "label", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
SENTIMENT = {"doc_to_text": "Review: {{text}}\nSentiment:", "doc_to_choice": ["negative", "positive"], "num_fewshot": SHOTS}
SAID = {"until": ["\n\n"], "max_gen_toks": MAX_GEN}
TASKS: dict[str, dict[str, Any]] = {
    "same examples": {**CHOICE, **SENTIMENT, "fewshot_config": {"sampler": "first_n"}},
    "drawn examples": {**CHOICE, **SENTIMENT},
    "long choices": {**CHOICE, "doc_to_text": "Korean: {{source}}\nEnglish:", "doc_to_choice": "{{choices}}"},
    "perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}\n{{answer}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "generation": {
        "output_type": "generate_until", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": "{{answer}}", "num_fewshot": 3,
        "fewshot_config": {"sampler": "first_n"}, "generation_kwargs": SAID, "metric_list": [{"metric": "exact_match"}],
        "filter_list": [{"name": "number", "filter": [{"function": "regex", "regex_pattern": "(-?[0-9]+)"}, {"function": "take_first"}]}],
    },
}  # fmt: skip
OF_COLUMNS = {("text", "label"): ["same examples", "drawn examples"], ("source", "target"): ["long choices"], ("question", "answer"): ["perplexity", "generation"]}
SIDES = ("ours", "hf", "ours-bfloat16", "hf-bfloat16", "ours-int8", "server")

# A side: it evaluates what it is told


def begin(name: str, model: str, folder: str) -> tuple[Calls, dict]:
    """Load a side's model; `evaluate` runs one task."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    lm, spent = opened(name, model), [0.0]
    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(lm, method, timed(getattr(lm, method), spent))
    manager = TaskManager(include_path=folder, include_defaults=False)

    def evaluate(task: str, limit: int, batch_size: int) -> dict:
        if name.startswith("hf"):
            lm.batch_size_per_gpu = batch_size
        spent[0], began, used = 0.0, time.perf_counter(), cpu_seconds()
        found = simple_evaluate(lm, tasks=[task.replace(" ", "_")], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False, verbosity="ERROR")
        seconds = {"model": spent[0], "whole": time.perf_counter() - began, "cpu": cpu_seconds() - used}
        [figures] = found["results"].values()
        return {**seconds, "figures": {key: value for key, value in figures.items() if isinstance(value, float) and "stderr" not in key}}

    return {"evaluate": evaluate}, {}


def opened(name: str, model: str) -> Any:
    kind, _, dtype = name.partition("-")
    if kind == "hf":
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=model, device="cpu", dtype=dtype or "float32")
    if kind == "server":
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        where = {"base_url": f"{served(model)}/v1/completions", "tokenizer_backend": "huggingface", "tokenizer": model}
        return LocalCompletionsAPI(model="default", num_concurrent=16, max_length=8192, timeout=600, **where)
    from seodang.recipes.evaluation.lm_eval_model import SeodangLM

    return SeodangLM(model, device="cpu", **({"weights": "int8"} if dtype == "int8" else {"dtype": dtype or "float32"}))


def served(model: str) -> str:
    """The address of our server of a model, in a process that ends with this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "seodang", "serve", model, "--dtype", "float32", "--device", "cpu", "--port", str(port), "--served_model_name", "default"]
    subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=1)
            return address
        time.sleep(0.1)
    raise RuntimeError("the server did not come up within a minute")


def cpu_seconds() -> float:
    """Those of this process and of the server that it has begun."""
    each = psutil.Process()
    return sum(process.cpu_times().user + process.cpu_times().system for process in (each, *each.children(recursive=True)))


def timed(method: Any, spent: list[float]) -> Any:
    def run(requests: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(requests, *args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - began

    return run


# The benchmark


def write_tasks(paths: list[str], folder: Path) -> list[str]:
    """Write a YAML file for each task that the data have records for; return their names."""
    names = []
    for path in paths:
        records = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        columns = next((each for each in OF_COLUMNS if set(each) <= set(records[0])), None)
        if columns is None:
            raise SystemExit(f"{path} has {', '.join(records[0])}: give files of {' or '.join(' and '.join(each) for each in OF_COLUMNS)}")
        if columns == ("source", "target"):
            records = list(with_choices(records))
        files = {"shots": records[:SHOTS] if columns != ("text", "label") else records[:100], "test": records[100:]}
        for name, some in files.items():
            (folder / f"{columns[0]}_{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in some), encoding="utf-8")
        data = {"dataset_kwargs": {"data_files": {name: str(folder / f"{columns[0]}_{name}.jsonl") for name in files}}}
        for name in OF_COLUMNS[columns]:
            task = {"task": name.replace(" ", "_"), **TASK, **data, **TASKS[name]}
            (folder / f"{name.replace(' ', '_')}.yaml").write_text(json.dumps(task), encoding="utf-8")
            names.append(name)
    return names


def with_choices(records: list[dict]) -> Iterator[dict]:
    """Translations as questions: its own among those of three others."""
    generator = random.Random(0)
    for record in records:
        others = [record["target"], *(each["target"] for each in generator.sample(records, 3))]
        generator.shuffle(others)
        yield {**record, "choices": others, "label": others.index(record["target"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--model", default="default")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "hf", "ours-bfloat16", "ours-int8", "server"])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--limit", type=int, default=40, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8], help="that hf is tried in")
    parser.add_argument("--side", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from seodang.infer.checkpoint.load import resolve

    model = resolve(options.model)
    if options.side:
        serve(lambda: begin(options.side[0], model, options.side[1]))
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        tasks = [name for name in write_tasks(options.data, Path(folder)) if name in options.tasks]
        sides = []
        for name in options.sides:
            command = [sys.executable, __file__, "--model", options.model, "--side", name, folder]
            sides.append(Side(name, command, {"OMP_NUM_THREADS": str(options.threads), "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}))
            stack.callback(sides[-1].close)
        for task in tasks:
            compare(task, sides, options)


def compare(task: str, sides: list[Side], options: argparse.Namespace) -> None:
    """Run a task on all sides in turn, and print what each took, beside hf of the same dtype."""
    sizes, few = {}, min(options.limit, 4) if len(options.batch_sizes) > 1 else 1
    for side in sides:  # a first round, which also warms what is compiled or cached
        tried = {size: side.ask("evaluate", task=task, limit=few, batch_size=size) for size in options.batch_sizes[: 1 + side.name.startswith("hf")]}
        sizes[side.name] = min(tried, key=lambda size: tried[size]["model"])
    runs: dict[str, list[dict]] = {side.name: [] for side in sides}
    for turn in range(options.rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            runs[side.name].append(side.ask("evaluate", task=task, limit=options.limit, batch_size=sizes[side.name]))
    best = {name: {key: min(run[key] for run in each) for key in ("model", "whole", "cpu")} for name, each in runs.items()}
    print(f"\n{task}, {options.limit} questions")
    for name, found in best.items():
        figures = ", ".join(f"{key.removesuffix(',none')} {value:.4f}" for key, value in runs[name][0]["figures"].items())
        beside = "".join(f"  {best['hf'][key] / found[key]:5.2f}x" for key in ("model", "whole", "cpu")) if "hf" in best else ""
        batch = f" (batches of {sizes[name]})" if name.startswith("hf") else ""
        print(f"  {name:14} {found['model']:7.2f} s {found['whole']:7.2f} s {found['cpu']:7.2f} s CPU {beside}  {figures}{batch}", flush=True)


if __name__ == "__main__":
    main()
