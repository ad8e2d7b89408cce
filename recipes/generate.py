"""Let a model answer prompts, from the command line or from a file.

seodang generate MODEL "Which country is the city of Suwon located in?"
seodang generate MODEL --prompts questions.jsonl --output answers.jsonl --temperature 0.8 --seed 1

Of several prompts, one whose answer fails (a grammar or filter that leaves no token) has its error in its place, and the exit code is 1.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from seodang.data.errors import UserError
from seodang.data.formats import to_example
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.parser import command, parse

FILES = "The prompts, or one file of them: .txt (one a line), .jsonl (prompt, messages or instruction) or .json (a list of such, or one)."


@dataclass
class Generate:
    """What is answered, and where the answers go."""

    prompts: list[str] = field(default_factory=list, metadata={"help": FILES})
    output: str | None = option("Write the answers to this JSON Lines file, each as soon as it is there.")
    raw: bool = option("Continue the prompts as they stand, without the chat template (for base models).", False)
    batch_size: int = option("Answers that grow at the same time; the others wait.", 64)

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")


@command
def main(argv: list[str] | None = None) -> int:
    model_options, decoding, options = parse(
        argv, SpeakingModel, Decoding, Generate, prog="seodang generate", positional=("model", "prompts"), description=__doc__
    )
    prompts = read_prompts(options.prompts, options.raw)
    decoding.check()
    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else None
        model, tokenizer = model_options.open()
        from seodang.infer.engine.generate import answers

        params = [decoding.params(model_options, i) for i in range(len(prompts))]
        results = answers(model, tokenizer, prompts, params, max_rows=options.batch_size)  # which refuses what it cannot do
        if output:
            output.truncate(0)
        show = recorder(prompts, output) if output else Printer(prompts, decoding.num_return_sequences)
        failed = follow(results, len(prompts) * decoding.num_return_sequences, show, bar=output is not None or len(prompts) > 1)
    if failed:
        print(f"{len(failed)} of {len(prompts)} prompts ended in an error", file=sys.stderr)
    return 1 if failed else 0


def read_prompts(given: list[str], raw: bool) -> list[Any]:
    """Return prompts as the engine takes them: messages, or with `raw` texts.

    A single argument that names a .txt, .jsonl or .json file is read. Raises UserError for none at all.
    """
    if len(given) == 1 and Path(given[0]).suffix in (".txt", ".jsonl", ".json"):
        given = read_prompt_file(Path(given[0]), raw)
    if not given:
        raise UserError('no prompts: give some ("..."), or --prompts FILE')
    return [prompt if raw or not isinstance(prompt, str) else [{"role": "user", "content": prompt}] for prompt in given]


def read_prompt_file(path: Path, raw: bool) -> list[Any]:
    """Read prompts from a file, empty lines passed over; raises UserError naming the line that is wrong."""
    if not path.is_file():
        raise UserError(f"the prompts file {path} does not exist")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"the prompts file {path} is not UTF-8: {error}") from None
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"the prompts file {path} is empty")
    if path.suffix == ".txt":
        return [line for _, line in lines]
    if path.suffix == ".json":
        records = parse_json(text, path.name)
        records = records if isinstance(records, list) else [records]
        return [prompt_of(record, f"{path.name} record {n}", raw) for n, record in enumerate(records, 1)]
    return [prompt_of(parse_json(line, f"{path.name} line {n}"), f"{path.name} line {n}", raw) for n, line in lines]


def parse_json(text: str, where: str) -> Any:
    """Parse JSON or raise UserError saying where."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def prompt_of(record: Any, where: str, raw: bool) -> Any:
    """Take the prompt out of a record of any known shape; the answer, if it has one, is left out. Raises UserError where there is none."""
    if isinstance(record, str):
        return record
    if isinstance(record, dict) and raw:
        for key in ("prompt", "text", "instruction"):
            if isinstance(record.get(key), str):
                return record[key]
    if isinstance(record, dict):  # a prompt needs no answer
        record = {**record, **{key: "-" for key, of in (("completion", "prompt"), ("output", "instruction")) if of in record}}
    example = to_example(record, where=where)
    messages = getattr(example, "messages", None)
    if messages is None or raw:
        raise UserError(f"{where}: {'--raw needs' if raw else 'give'} a prompt" + (" text" if raw else ", an instruction or messages"))
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: there is no turn to answer")
    return messages


def open_output(path: str) -> TextIO:
    """Open the file before anything is computed; what it holds stays until it is certain that there will be answers.

    Raises UserError where it cannot be written.
    """
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from None


def recorder(prompts: list, output: TextIO) -> Callable:
    """Return what writes a result as a line of JSON."""

    def write(result) -> None:
        output.write(json.dumps({"prompt": prompts[result.prompt_index], **asdict(result)}, ensure_ascii=False) + "\n")
        output.flush()

    return write


class Printer:
    """Prints answers in the order of the prompts, several to one prompt with their numbers (`choice`); errors to stderr."""

    def __init__(self, prompts: list, each: int = 1):
        self.prompts, self.each = prompts, each
        self._early: dict[int, Any] = {}
        self._failed: set[int] = set()
        self._next = 0

    def __call__(self, result) -> None:
        self._early[result.prompt_index * self.each + result.choice] = result
        while self._next in self._early:
            answer = self._early.pop(self._next)
            if len(self.prompts) > 1 and answer.choice == 0:
                prompt = self.prompts[answer.prompt_index]
                print(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
            if answer.error is None:
                print(answer.text if self.each == 1 else f"[{answer.choice}] {answer.text}", flush=True)
            elif answer.prompt_index not in self._failed:
                self._failed.add(answer.prompt_index)
                print(f"error: prompt {answer.prompt_index + 1}: {' '.join(answer.error.split())}", file=sys.stderr)
            self._next += 1


def follow(results, total: int, show: Callable, bar: bool) -> set[int]:
    """Hand on each result, with a progress bar on stderr where there is someone to see it; return the prompts that ended in an error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not bar, redirect_stdout=console.is_terminal) as progress:
        task, tokens = progress.add_task("", total=total, speed=""), 0
        failed: set[int] = set()
        for result in results:
            show(result)
            if result.error is not None:
                failed.add(result.prompt_index)
            tokens += len(result.ids)
            seconds = max(progress.tasks[task].elapsed or 0, 1e-9)
            progress.update(task, advance=1, speed=f"{tokens / seconds:.0f} tokens/s")
        progress.refresh()
    return failed


if __name__ == "__main__":
    sys.exit(main())
