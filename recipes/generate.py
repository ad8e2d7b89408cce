"""Let a model answer prompts, from the command line or from a file.

seodang generate MODEL "Which country is the city of Suwon located in?"
seodang generate MODEL --prompts questions.jsonl --output answers.jsonl --temperature 0.8 --seed 1

Answers in a file stand in the order of their prompts, each with its prompt's `line`, counted from 1 with empty ones (`record` in .json). Of
several prompts, one whose answer fails has its error in its place, and the exit code is 1. Ctrl-C and SIGTERM keep what is finished.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from seodang.data.columns import Columns
from seodang.data.errors import UserError
from seodang.data.files.sources import is_source_file, records_of
from seodang.data.files.text_files import lines_of
from seodang.data.formats import to_example
from seodang.data.json_text import parsed
from seodang.data.surrogates import refuse_surrogates
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.outputs import empty, open_output
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import FileOptions
from seodang.recipes.run.stopping import Stopping

FILES = "The prompts, or one file of them: .txt (one a line), or records with prompt, question, messages or instruction, as preview reads them."
ORDERS = ("prompts", "finished")
BATCHES_AHEAD = 16  # so many may be answered before one of their first prompts is, where answers wait for their place


@dataclass
class Generate(FileOptions):
    """What is answered, and where the answers go."""

    prompts: list[str] = field(default_factory=list, metadata={"help": FILES})
    output: str | None = option("Write the answers to this JSON Lines file, each as soon as it is there and those before it are.")
    order: str = option("prompts: the answers in the file stand in their order; finished: in that in which they are finished.", "prompts")
    token_ids: bool = option("Write each answer's token ids into the file too (ids).", False)
    raw: bool = option("Continue the prompts as they stand, without the chat template (for base models).", False)
    literal: bool | None = option("What looks like a control token in a prompt is text (true) or the token; text, but for --raw.")
    batch_size: int = option("Answers that grow at the same time; the others wait.", 64)

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.order not in ORDERS:
            raise UserError(f"order must be {' or '.join(ORDERS)}, got {self.order!r}")
        if self.token_ids and self.output is None:
            raise UserError("token_ids says what is written into a file: give --output too")


@dataclass
class Prompts:
    """Prompts as the engine takes them, each with the number by which whoever gave it finds it, of what `unit` says."""

    prompts: list[Any]
    numbers: list[int]
    unit: str = "prompt"  # of the command line; else line or record, of a file


@command
def main(argv: list[str] | None = None) -> int:
    model_options, decoding, options = parse(
        argv, SpeakingModel, Decoding, Generate, prog="seodang generate", positional=("model", "prompts"), description=__doc__
    )
    asked = read_prompts(options.prompts, options.raw, **options.reading())
    decoding.check(model_options)
    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else None
        model, tokenizer = model_options.open()
        decoding.take_over(model)
        from seodang.infer.engine.generate import answers, stream

        count = len(asked.prompts)
        params = [decoding.params(model_options, i) for i in range(count if decoding.seed is not None else 1)]
        each = params[0].num_return_sequences
        if output is None and count * each == 1:
            with Stopping():
                speak(stream(model, tokenizer, asked.prompts[0], params[0], literal=options.literal), tokenizer)
            return 0
        params *= 1 if decoding.seed is not None else count
        ordered = output is None or options.order == "prompts"
        ahead = BATCHES_AHEAD * options.batch_size if ordered else None
        how = {"literal": options.literal, "max_rows": options.batch_size, "ahead": ahead}
        results = answers(model, tokenizer, asked.prompts, params, **how)  # refuses what it cannot do
        if output:
            empty(output)
        show = recorder(asked, output, options, params) if output else Printer(asked, each, tokenizer)
        failed = follow(results, InOrder(show, each) if ordered else Straight(show), count * each, f"in {options.output}" if output else "printed")
    if failed:
        print(f"{len(failed)} of {count} prompts ended in an error", file=sys.stderr)
    return 1 if failed else 0


def read_prompts(given: list[str], raw: bool, encoding: str | None = None, columns: Mapping[str, str] | None = None) -> Prompts:
    """Return prompts as the engine takes them: messages, or with `raw` texts.

    A single argument that names a .txt, .jsonl or .json file, or any other file of records that there is, is read. Raises UserError for none at all.
    """
    found = Prompts(list(given), [*range(1, len(given) + 1)])
    if len(given) == 1 and (Path(given[0]).suffix in (".txt", ".jsonl", ".json") or is_source_file(given[0])):
        named = dict(columns or {})
        found = read_prompt_file(Path(given[0]), raw, encoding, Columns(named, ("prompt", "instruction", "messages"), dict.fromkeys(named, ())))
    if not found.prompts:
        raise UserError('no prompts: give some ("..."), or --prompts FILE')
    found.prompts = [prompt if raw or not isinstance(prompt, str) else [{"role": "user", "content": prompt}] for prompt in found.prompts]
    return found


def read_prompt_file(path: Path, raw: bool, encoding: str | None, columns: Columns) -> Prompts:
    """Read prompts from a file, empty lines passed over; raises UserError naming the line that is wrong."""
    if path.suffix in (".txt", ".jsonl", ".json") and not path.is_file():
        raise UserError(f"the prompts file {path} does not exist")
    if path.suffix not in (".txt", ".jsonl"):
        records = list(records_of(str(path), encoding, columns.named.values()))
        found = Prompts([prompt_of(record, where, raw, columns) for where, record in records], [*range(1, len(records) + 1)], "record")
    else:
        lines = [(n, line.removesuffix("\n")) for n, line in enumerate(lines_of(path, encoding), 1) if line.strip()]
        if path.suffix == ".jsonl":
            lines = [(n, prompt_of(parse_json(line, f"{path.name} line {n}"), f"{path.name} line {n}", raw, columns)) for n, line in lines]
        found = Prompts([line for _, line in lines], [n for n, _ in lines], "line")
    if not found.prompts:
        raise UserError(f"the prompts file {path} is empty")
    columns.refuse_absent()
    return found


def parse_json(text: str, where: str) -> Any:
    """Parse JSON or raise UserError saying where."""
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def prompt_of(record: Any, where: str, raw: bool, columns: Columns) -> Any:
    """Take the prompt out of a record of any known shape; the answer, if it has one, is left out. Raises UserError where there is none."""
    refuse_surrogates(record, where)
    if isinstance(record, dict):
        try:
            record, _ = columns.taken(record)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if isinstance(record, str):
        return record
    if isinstance(record, dict) and raw:
        for key in ("prompt", "text", "instruction"):
            if isinstance(record.get(key), str):
                return record[key]
    if isinstance(record, dict):  # a prompt needs no answer
        record = {**record, **{key: "-" for key, of in (("completion", "prompt"), ("output", "instruction")) if of in record}}
    try:
        example = to_example(record, where=where)
    except UserError:
        columns.refuse_absent()
        raise
    messages = getattr(example, "messages", None)
    if messages is None or raw:
        raise UserError(f"{where}: {'--raw needs' if raw else 'give'} a prompt" + (" text" if raw else ", an instruction or messages"))
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: there is no turn to answer")
    return messages


def recorder(asked: Prompts, output: TextIO, options: Generate, params: Sequence) -> Callable:
    """Return what writes a result as a line of JSON; `params` are each prompt's."""
    from seodang.recipes.run.token_logprobs import as_json

    unit = "line" if asked.unit == "line" else "record"
    names = ("choice", "text", "finish_reason", "prompt_length", "seed", "score", "error")
    names += ("ids",) * options.token_ids

    def write(result) -> None:
        told, own = {name: getattr(result, name) for name in names}, params[result.prompt_index]
        if own.logprobs is not None:
            told |= {"logprobs": result.logprobs, "top_logprobs": [as_json(each) for each in result.top_logprobs]}
        if own.prompt_logprobs is not None:
            told["prompt_logprobs"] = [each and as_json(each) for each in result.prompt_logprobs]
        place = {unit: asked.numbers[result.prompt_index], "prompt": asked.prompts[result.prompt_index]}
        output.write(json.dumps(place | told, ensure_ascii=False) + "\n")
        output.flush()

    return write


class Printer:
    """Prints answers, several to one prompt with their numbers (`choice`); errors to stderr."""

    def __init__(self, asked: Prompts, each: int, tokenizer):
        self.asked, self.each, self.tokenizer = asked, each, tokenizer
        self._last: int | None = None  # the prompt whose answers are being printed
        self._failed: set[int] = set()

    def __call__(self, answer) -> None:
        prompt = self.asked.prompts[answer.prompt_index]
        if len(self.asked.prompts) > 1 and answer.prompt_index != self._last:
            print(f"> {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
        self._last = answer.prompt_index
        if answer.error is None:
            print(answer.text if self.each == 1 else f"[{answer.choice}] {answer.text}", flush=True)
            show_logprobs(answer.prompt_logprobs, answer.top_logprobs, self.tokenizer)
        elif answer.prompt_index not in self._failed:
            self._failed.add(answer.prompt_index)
            number = self.asked.numbers[answer.prompt_index]
            print(f"error: {self.asked.unit} {number}: {' '.join(answer.error.split())}", file=sys.stderr)


class Straight:
    """Shows results as they come."""

    def __init__(self, show: Callable):
        self._show, self.shown = show, 0

    def __call__(self, result) -> None:
        self._show(result)
        self.shown += 1

    def close(self) -> None:
        """Show what is held: nothing."""


class InOrder(Straight):
    """Shows results in the order of the prompts and of their `each` choices, and holds those whose turn is still to come."""

    def __init__(self, show: Callable, each: int):
        super().__init__(show)
        self._each, self._next = each, 0
        self._held: dict[int, Any] = {}

    def __call__(self, result) -> None:
        self._held[result.prompt_index * self._each + result.choice] = result
        while self._next in self._held:
            super().__call__(self._held.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Show what is held, in its order: what it waited for will not come."""
        for place in sorted(self._held):
            super().__call__(self._held.pop(place))


def show_logprobs(of_prompt: list, of_answer: list, tokenizer) -> None:
    """Print what the model thought of a prompt's tokens and an answer's, a line each, where that was asked for."""
    from seodang.recipes.run.token_logprobs import lines

    for line in lines(of_prompt, of_answer, tokenizer):
        print(line, flush=True)


def speak(events: Iterable, tokenizer) -> None:
    """Print a single answer as it grows, each piece at once, whoever reads it; then what the model thought of it, where that is told."""
    from seodang.infer.requests.events import Committed, PromptRead

    shown, of_prompt, of_answer = False, [], []
    try:
        for event in events:
            if isinstance(event, PromptRead):
                of_prompt = event.logprobs
            elif isinstance(event, Committed) and event.top_logprobs is not None:
                of_answer.append(event.top_logprobs)
            if isinstance(event, Committed) and event.text:
                shown = True
                print(event.text, end="", flush=True)
    except BaseException:
        if shown:
            print(flush=True)
        raise
    print(flush=True)
    show_logprobs(of_prompt, of_answer, tokenizer)


def follow(results: Iterable, show: Straight, total: int, where: str) -> set[int]:
    """Show each result, with a progress bar on stderr where there is someone to see it; return the prompts that ended in an error.

    Stopped by a signal it shows what is finished, and says on stderr how much that is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(file=sys.stderr)
    tokens, failed = 0, set()
    with Stopping() as stopping:
        try:
            with Progress(*columns, console=console, redirect_stdout=console.is_terminal) as progress:
                task = progress.add_task("", total=total, speed="")
                for result in results:
                    with stopping.whole():  # a line is written whole, and once
                        show(result)
                    if result.error is not None:
                        failed.add(result.prompt_index)
                    tokens += len(result.ids)
                    seconds = max(progress.tasks[task].elapsed or 0, 1e-9)
                    progress.update(task, advance=1, speed=f"{tokens / seconds:.0f} tokens/s")
                progress.refresh()
        except (KeyboardInterrupt, SystemExit):
            with stopping.whole():
                show.close()
            print(f"{show.shown} of {total} answers are {where}", file=sys.stderr)
            raise
    return failed


if __name__ == "__main__":
    sys.exit(main())
