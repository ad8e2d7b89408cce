"""Let a model answer prompts, from the command line or from a file.

seodang generate MODEL "Which country is the city of Suwon located in?"
seodang generate MODEL --prompts questions.jsonl --output answers.jsonl --temperature 0.8 --seed 1

Answers in a file stand in the order of their prompts, each with its prompt's `line`, counted from 1 with empty ones (`record` in .json). Of
several prompts, one whose answer fails has its error in its place, and the exit code is 1. What is finished is kept, and --resume goes on from it.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.options.asking import AskingOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.many import AnsweringOptions
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.tasks import TaskOptions
from seodang.recipes.prompts.prompt_files import Prompts, Reading, read_prompts
from seodang.recipes.prompts.references import Measured
from seodang.recipes.run.backends import OwnBackend, backend_for
from seodang.recipes.run.following import Straight, follow, in_turn
from seodang.recipes.run.printing import Printer, by_steps, speak
from seodang.recipes.run.results_file import ResultsFile, is_regular, line_of, writes_to
from seodang.recipes.run.stopping import Stopping

FILES = "The prompts, or one file of them: .txt (one a line), or records. These have prompt, question, messages, instruction or source."
ORDERS = ("prompts", "finished")


@dataclass
class Generate(TaskOptions, AskingOptions):
    """What is answered, and where the answers go."""

    prompts: list[str] = field(default_factory=list, metadata={"help": FILES})
    output: str | None = option("Write the answers to this JSON Lines file, each once its turn has come.")
    order: str = option("prompts: the answers in the file stand in their order; finished: in that in which they are finished.", "prompts")
    resume: bool | None = field(
        default=None,
        metadata={
            "help": "Go on from the answers in the output file; false: begin anew, over them. Those that failed are asked again.", "nargs": "?", "const": True,
        },
    )
    token_ids: bool = option("Write each answer's token ids into the file too (ids).", False)
    show_steps: bool = option("Print the canvas of a diffusion answer after each step, a line each, before the answer.", False)
    references: bool = option("Measure the answers by the records' own: exact match, chrF, BLEU, ROUGE.", False)
    task_grammar: bool | None = option("With --tasks: answers that are JSON are held to that, and to the tasks' names; by default where they can be.")

    def __post_init__(self):
        super().__post_init__()
        if self.order not in ORDERS:
            raise UserError(f"order must be {' or '.join(ORDERS)}, got {self.order!r}")
        for name in ("token_ids", "resume"):
            if getattr(self, name) and self.output is None:
                raise UserError(f"{name} says what is written into a file: give --output too")
        if self.task_grammar is not None and self.tasks is None:
            raise UserError("task_grammar is of several tasks of one input: give --tasks too")
        if self.show_steps and self.output is not None:
            raise UserError("show_steps prints the steps of an answer, and output writes answers into a file: leave one of them out")


@command
def main(argv: list[str] | None = None) -> int:
    model, decoding, options, where = parse(
        argv, SpeakingModel, Decoding, Generate, AnsweringOptions, prog="seodang generate", positional=("model", "prompts"), description=__doc__
    )
    if where.backend == "ray":
        from seodang.recipes.many.answering import answer_many

        return answer_many(where, model, decoding, options)
    if (layout := options.layout()) is not None:
        from seodang.recipes.tasks.answering import answer_tasks

        return answer_tasks(where, model, decoding, options, layout)
    reading = Reading(options.raw, options.references, decoding.source_lang, decoding.target_lang)
    asked = read_prompts(options.prompts, options.raw, **options.reading(), reading=reading)
    backend = backend_for(where, model, decoding, options, asked)
    try:
        with ExitStack() as stack:
            failed = answered(backend, options, asked, stack)
    except GivenUp as reason:
        print(f"error: {where.base_url or 'vLLM'}: {reason}", file=sys.stderr)
        return 1
    if failed:
        print(f"{len(failed)} of {len(asked.prompts)} prompts ended in an error", file=sys.stderr)
    return 1 if failed else 0


def answered(backend: Any, options: Generate, asked: Prompts, stack: ExitStack) -> set[int]:
    """Have the prompts answered and the answers shown; return the prompts that ended in an error."""
    stays = options.output is not None and is_regular(options.output)
    if options.resume and not stays:
        raise UserError(f"resume: {options.output} holds nothing that could be gone on with, it is no file")
    file = stack.enter_context(file_of(backend, options, asked)) if stays else None
    count, indices = len(asked.prompts), file.todo if file else [*range(len(asked.prompts))]
    each, own = backend.params.num_return_sequences, isinstance(backend, OwnBackend)
    if options.show_steps and not (count * each == 1 and own):
        raise UserError("show_steps prints the steps of one answer of a model in this process: give one prompt, and ask for one answer of it here")
    if file and not indices:
        file.begin()  # the last of them may still wait for their turn
        file.finish()
        print(f"all {count} prompts have their answers in {options.output} (--resume false asks them anew)", file=sys.stderr)
        Measured.of_file(options.output, asked).tell()
        return set()
    backend.open(stack)
    if options.output is None and count * each == 1 and own and not asked.references:
        with Stopping():
            events = backend.spoken(options.show_steps)
            tell(backend)
            speak(by_steps(events, backend.tokenizer) if options.show_steps else events, backend.tokenizer)
        return set()
    ordered = options.output is None or options.order == "prompts"
    results = backend.answers(indices, ordered)  # refuses what it cannot do
    stack.callback(results.close)
    if file:
        file.begin()
    measured = Measured(asked)
    show: Straight = file or in_turn(measured.beside(streamed(backend, options, asked, stack)), each, ordered)
    tell(backend)
    where = f"in {options.output} (--resume goes on from there)" if file else f"in {options.output}" if options.output else "printed"
    failed = follow(results, show, count * each, where)
    if file:
        file.finish()
        measured = Measured.of_file(options.output, asked)
    measured.tell()
    return failed


def tell(backend: Any) -> None:
    """Say on stderr what there is to say of the prompts."""
    for line in getattr(backend, "said", list)():
        print(line, file=sys.stderr)


def file_of(backend: Any, options: Generate, asked: Prompts) -> ResultsFile:
    """The file of results, opened and as it was."""
    params = backend.params
    line = line_of(asked, params, options.token_ids)
    return ResultsFile(options.output, asked, params.num_return_sequences, options.order == "prompts", backend.identity, line, options.resume)


def streamed(backend: Any, options: Generate, asked: Prompts, stack: ExitStack) -> Callable:
    """What prints a result, or writes it to a pipe or a device."""
    if options.output is None:
        return Printer(asked, backend.params.num_return_sequences, backend.tokenizer)
    return writes_to(options.output, line_of(asked, backend.params, options.token_ids), stack)


if __name__ == "__main__":
    sys.exit(main())
