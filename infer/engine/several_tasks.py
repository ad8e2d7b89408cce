"""Several tasks of one input, answered by a model: a result a task, in the layout that the model was taught."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.files.sources import at_a_time
from ...data.tasks.asking import Lockstep, TaskAnswer, TaskAnswers, TaskQuestion
from ...data.tasks.layouts import Layout
from ...data.tasks.records import TaskRecord, task_record, with_common_kinds
from ..requests.events import Result
from ..runners.architecture import transformers_model
from ..runners.paradigm import diffusion_of
from ..strategies.registry import choose
from .checkpoint_settings import from_generation_config
from .core import MAX_ROWS
from .generate import answers
from .params import SamplingParams
from .prefix_cache import PrefixCache

Asked = TypeVar("Asked", bound=Hashable)
CUT = ("length", "time", "cancelled")  # why an answer may be over that is not whole


def generate_tasks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Mapping[str, Any] | TaskRecord],
    layout: str,
    task_format: str = "json",
    params: SamplingParams | None = None,
    *,
    task_language: str | None = None,
    grammar: bool | None = None,
    max_rows: int = MAX_ROWS,
) -> list[TaskAnswers]:
    """Answer the tasks of records {input, tasks: [{instruction, name, output}, ...]}; outputs may be missing, of those that are there the kinds alone are used.

    The layouts and formats are those of `Layout`. Without `params` the checkpoint's own settings hold. What cannot be read, or is refused (a prompt too long
    for the model), is its task's error, and later tasks are asked without it. With `grammar` an answer that is JSON is held to the names of the tasks; by
    default that of a model that goes from left to right. A text that a model thinks before its answer is taken for a part of it.
    Raises UserError for records that are none, for settings that cannot be honoured, and where the model can be asked none of the prompts.
    """
    how = Layout(layout, task_format, task_language)
    read = with_common_kinds([each if isinstance(each, TaskRecord) else task_record(each, outputs=False) for each in records])
    cache = cache_of(model, max_rows) if how.name in ("sequence", "cumulative") else None
    own = from_generation_config(model.generation_config) if params is None else params
    grammar = takes_grammar(model, own) if grammar is None else grammar

    def ask(questions: Sequence[int], of: Sequence[tuple[int, TaskQuestion]]) -> Iterator[Result]:
        asked = [of[at][1] for at in questions]
        each = [own if question.schema is None else replace(own, json_schema=question.schema) for question in asked]
        return answers(model, tokenizer, [question.messages for question in asked], each, prefix_cache=cache, max_rows=max_rows, on_error="result")

    def ask_all(questions: Sequence[tuple[int, TaskQuestion]]) -> Iterator[tuple[int, int, TaskAnswer]]:
        results, taken, refused = accepted([*range(len(questions))], lambda some: ask(some, questions), raises=not found)
        for at, error in refused.items():
            yield questions[at][0], questions[at][1].place, TaskAnswer("", error=error)
        for result in results:
            index, question = questions[taken[result.prompt_index]]
            yield index, question.place, answer_of(result)

    found: dict[int, TaskAnswers] = {}
    for some in at_a_time(enumerate(read), max_rows):
        found |= Lockstep(some, how, grammar).run(ask_all)
    return [found[index] for index in range(len(read))]


def cache_of(model: nn.Module, rows: int) -> PrefixCache | None:
    """What keeps as many prompts as are asked together, for the next round; None for a model that has no use for it."""
    try:
        return PrefixCache(model, sequences=rows)
    except UserError:
        return None


def takes_grammar(model: nn.Module, params: SamplingParams) -> bool:
    """Whether the model's answers can be held to a grammar: they grow from left to right."""
    return choose(params, diffusion_of(transformers_model(model).config)).in_order(params)


def accepted(
    asked: Sequence[Asked], ask: Callable[[list[Asked]], Any], raises: bool
) -> tuple[Any, list[Asked], dict[Asked, str]]:
    """The results of the prompts that can be asked, these prompts, and why each other is refused; with `raises` UserError where that is all of them.

    `ask` computes nothing before its first result is wanted, and refuses all where it refuses one.
    """
    try:
        return ask([*asked]), [*asked], {}
    except UserError:
        refused = {}
        for each in asked:
            try:
                ask([each]).close()
            except UserError as error:
                refused[each] = str(error)
        if len(refused) == len(asked) and raises:
            raise
        taken = [each for each in asked if each not in refused]
        return ask(taken) if taken else (each for each in ()), taken, refused


def answer_of(result: Result) -> TaskAnswer:
    """A result as an answer to tasks."""
    return TaskAnswer(result.text, result.finish_reason not in CUT, result.tokens, result.error)
