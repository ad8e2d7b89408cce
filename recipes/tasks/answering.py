"""`seodang generate --tasks`: records of several tasks answered in the layout that the model was taught, by whoever answers prompts."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from seodang.data.columns import Columns
from seodang.data.errors import UserError
from seodang.data.files.sources import at_a_time, is_source_file
from seodang.data.surrogates import refuse_surrogates
from seodang.data.tasks.asking import Lockstep, TaskAnswer, TaskQuestion, questions_each
from seodang.data.tasks.layouts import Layout
from seodang.data.tasks.records import TaskRecord, task_record, with_common_kinds
from seodang.infer.constraints.grammar import GRAMMARS
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.engine.several_tasks import accepted, answer_of, cache_of, takes_grammar
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.options.tasks import refuse_turns
from seodang.recipes.prompts.prompt_files import Prompts, numbered_records
from seodang.recipes.run.backends import OwnBackend, backend_for
from seodang.recipes.run.following import Straight, follow, in_turn
from seodang.recipes.run.results_file import is_regular, writes_to
from seodang.recipes.tasks.measuring import TasksMeasured
from seodang.recipes.tasks.results import RecordAnswers, TaskResultsFile, TasksPrinter, line_of

ROUNDS = ("sequence", "cumulative")  # layouts in which a task waits for those before it


def answer_tasks(where: Any, model: Any, decoding: Any, options: Any, layout: Layout) -> int:
    """Answer the records of the prompts' file; return the exit code: 1 where a prompt was not answered. Answers that cannot be read are counted."""
    records, asked = read_records(options)
    rows = options.batch_size if where.backend == "seodang" else max(options.batch_size, 4 * where.at_a_time)
    run = TasksRun(records, asked, layout, options, rows)
    run.backend = backend = backend_for(where, model, decoding, options, run.prompts)
    refuse_settings(backend.params, options, layout)
    if where.backend == "seodang" and (config := known_config(model.model)) is not None and config.is_encoder_decoder:
        refuse_turns(layout)
    measured = TasksMeasured(records, options.references)
    try:
        with ExitStack() as stack:
            failed = answered(run, options, asked, measured, stack)
    except GivenUp as reason:
        print(f"error: {where.base_url or 'vLLM'}: {reason}", file=sys.stderr)
        return 1
    measured.tell(options.output if is_file(options) else None)
    if failed:
        print(f"of {len(failed)} of {len(records)} records a prompt was not answered", file=sys.stderr)
    return 1 if failed else 0


def read_records(options: Any) -> tuple[list[TaskRecord], Prompts]:
    """The records of the file of prompts, and what is asked of them, with their numbers. Raises UserError naming the line that is wrong."""
    if len(options.prompts) != 1 or not is_source_file(options.prompts[0]):
        told = "tasks: give one file of records, --prompts FILE.jsonl, each with {input, tasks: [{instruction, name}, ...]}"
        raise UserError(f"{told}, got {' '.join(options.prompts)[:80]!r}" if options.prompts else told)
    how, path = options.reading(), Path(os.path.expanduser(options.prompts[0]))
    columns = Columns(dict(how["columns"]), ("tasks",), dict.fromkeys(how["columns"], ()))
    unit, numbers, located = numbered_records(path, how["encoding"], columns.named.values())
    records = [record_of(record, place, columns) for place, record in located]
    columns.refuse_absent()
    if options.references and not any(task.output is not None for record in records for task in record.tasks):
        raise UserError("references: no task has the output that it should have: give outputs, or leave --references out")
    return with_common_kinds(records), Prompts([record.asked for record in records], numbers, unit)


def record_of(record: Any, place: str, columns: Columns) -> TaskRecord:
    """A record of the file, its columns under their keys. Raises UserError with its place."""
    refuse_surrogates(record, place)
    try:
        if not isinstance(record, Mapping):
            raise UserError(f"a record must be an object of keys and values, got {type(record).__name__}")
        return task_record(columns.taken(record)[0], outputs=False)
    except UserError as error:
        columns.refuse_absent()
        raise UserError(f"{place}: {error}") from None


def refuse_settings(params: Any, options: Any, layout: Layout) -> None:
    """Raise UserError for what does not go with several tasks."""
    if options.raw:
        raise UserError("raw: tasks are asked as messages, which the chat template renders: leave --raw out")
    if params.num_return_sequences != 1:
        raise UserError(f"num_return_sequences {params.num_return_sequences}: a task has one result, leave it out")
    for name in ("show_steps", "token_ids"):
        if getattr(options, name):
            raise UserError(f"{name} is of single answers, and tasks have results: leave --{name} out")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(params, name) is not None:
            raise UserError(f"{name} is of single answers, and tasks have results: leave --{name} out")
    constrained = next((name for name in GRAMMARS if getattr(params, name)), None)
    if constrained and options.task_grammar is not False and (layout.task_format == "json" or layout.name != "together"):
        raise UserError(f"{constrained} beside the grammar that answers of tasks have where they are JSON: leave it out, or say --task_grammar false")


def is_file(options: Any) -> bool:
    """Whether results go into a file that stays."""
    return options.output is not None and is_regular(options.output)


class TasksRun:
    """The records and the prompts that they come to: those of a round are put into `prompts` before the backend is asked for them.

    Where tasks wait for others, `rows` records go through their rounds together.
    """

    backend: Any

    def __init__(self, records: Sequence[TaskRecord], asked: Prompts, layout: Layout, options: Any, rows: int) -> None:
        self.records, self.layout, self._options, self._rows = records, layout, options, rows
        self.grammar = options.task_grammar is not False
        self.first: list[int] = []  # by record, the index of its first prompt
        self.of: list[tuple[int, int]] = []  # by prompt, its record and its place there
        for index, record in enumerate(records):
            self.first.append(len(self.of))
            self.of += [(index, place) for place in range(questions_each(record, layout))]
        self.prompts = Prompts([None] * len(self.of), [asked.numbers[index] for index, _ in self.of], asked.unit)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the results."""
        told = {"tasks": self.layout.name, "task_format": self.layout.task_format, "task_language": self.layout.task_language}
        return {**self.backend.identity, **told, "task_grammar": self._options.task_grammar}

    def settle(self) -> None:
        """Decide what hangs on the model, once it is loaded here: whether a grammar is used, and what is kept from one round to the next."""
        if not isinstance(self.backend, OwnBackend):
            return
        if self._options.task_grammar is None and not takes_grammar(self.backend.model, self.backend.params):
            self.grammar = False
            print("task_grammar    off: the model fills its answers in, in no order that a grammar could follow", file=sys.stderr)
        if self.layout.name in ROUNDS:
            self.backend.prefix_cache = cache_of(self.backend.model, self._rows)

    def check(self, todo: Sequence[int]) -> None:
        """Raise UserError where the backend refuses all of the first prompts: it is not they that are wrong."""
        questions = Lockstep(self._chosen(todo[: self._rows]), self.layout, self.grammar).questions()
        results, _, _ = accepted(self._put([*questions]), lambda some: self.backend.answers(some, False), raises=True)
        results.close()

    def results(self, todo: Sequence[int], ordered: bool) -> Iterator[RecordAnswers]:
        """What becomes of these records, as they are done."""
        waiting = self.layout.name in ROUNDS

        def ask(questions: list[tuple[int, TaskQuestion]]) -> Iterator[tuple[int, int, TaskAnswer]]:
            found, _, refused = accepted(self._put(questions), lambda some: self.backend.answers(some, ordered and not waiting), raises=False)
            with closing(found) as results:
                for at, error in refused.items():
                    yield *self.of[at], TaskAnswer("", error=error)
                for result in results:
                    yield *self.of[result.prompt_index], answer_of(result)

        for some in at_a_time(todo, self._rows) if waiting else [todo]:
            for index, answers in Lockstep(self._chosen(some), self.layout, self.grammar).run(ask):
                yield RecordAnswers(index, answers)

    def _chosen(self, todo: Sequence[int]) -> list[tuple[int, TaskRecord]]:
        return [(index, self.records[index]) for index in todo]

    def _put(self, questions: Sequence[tuple[int, TaskQuestion]]) -> list[int]:
        """Put the questions among the prompts; return where they stand."""
        indices = []
        for index, question in questions:
            indices.append(at := self.first[index] + question.place)
            self.prompts.prompts[at] = question.messages
            if question.schema is not None:
                self.prompts.schemas[at] = question.schema
        return sorted(indices)


def answered(run: TasksRun, options: Any, asked: Prompts, measured: TasksMeasured, stack: ExitStack) -> set[int]:
    """Have the records answered and their results shown; return those of which a prompt ended in an error."""
    stays, count = is_file(options), len(run.records)
    if options.resume and not stays:
        raise UserError(f"resume: {options.output} holds nothing that could be gone on with, it is no file")
    line = line_of(asked, run.records, options.references)
    file = None
    if stays:
        file = stack.enter_context(TaskResultsFile(options.output, asked, 1, options.order == "prompts", run.identity, line, options.resume))
    todo = file.todo if file else [*range(count)]
    if not todo:
        file.begin()  # the last of them may still wait for their turn
        file.finish()
        print(f"all {count} records have their results in {options.output} (--resume false asks them anew)", file=sys.stderr)
        measured.read(options.output, asked)
        return set()
    run.backend.open(stack)
    run.settle()
    run.check(todo)
    ordered = options.output is None or options.order == "prompts"
    results = run.results(todo, ordered)
    stack.callback(results.close)
    if file:
        file.begin()
    printed = TasksPrinter(asked, run.records) if options.output is None else None
    show: Straight = file or in_turn(measured.beside(printed or writes_to(options.output, line, stack)), 1, ordered)
    where = f"in {options.output} (--resume goes on from there)" if file else f"in {options.output}" if options.output else "printed"
    failed = follow(results, show, count, where)
    for said in getattr(run.backend, "said", list)():
        print(said, file=sys.stderr)
    if file:
        file.finish()
        measured.read(options.output, asked)
    return failed
