"""Options of records of several tasks, the same in training, preview and generation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError
from seodang.data.tasks.layouts import Layout, TaskShapes


@dataclass
class TaskOptions:
    """How several tasks of one input are laid out."""

    tasks: str | None = field(
        default=None, kw_only=True, metadata={"help": "Records {input, tasks}: together, sequence, cumulative or apart."}
    )
    task_format: str | None = field(
        default=None, kw_only=True, metadata={"help": "With --tasks, several results in a text: json (default), text or keyed."}
    )
    task_language: str | None = field(
        default=None, kw_only=True, metadata={"help": "With --tasks: en or ko, what is said around them; by default as the instructions."}
    )

    def layout(self) -> Layout | None:
        """The layout that is asked for; None for none. Raises UserError for what there is not, and for an option that needs --tasks."""
        if self.tasks is not None:
            return Layout(self.tasks, self.task_format or "json", self.task_language)
        for name in ("task_format", "task_language"):
            if getattr(self, name) is not None:
                raise UserError(f"{name} {getattr(self, name)} says how several tasks are laid out: give --tasks too")
        return None

    def shapes(self, shapes: Any, makes: Any = None) -> Any:
        """The shapes that records may have: those given, and with --tasks records of several tasks too, which `makes` turns into what those give."""
        if (layout := self.layout()) is None:
            return shapes
        return TaskShapes(layout, shapes, *([makes] if makes else []))


def refuse_turns(layout: Layout | None) -> None:
    """Raise UserError for a layout that an encoder-decoder does not have."""
    if layout is not None and layout.name == "sequence":
        raise UserError("tasks sequence is a dialogue of several answers, and an encoder-decoder learns one a record: use cumulative, which sees the same results")


def read_to_tasks(shapes: Any, examples: Iterable[Any], read: int) -> None:
    """Where records of several tasks were asked for, read a stream, of which so many examples were `read`, on until there was one."""
    if isinstance(shapes, TaskShapes) and not shapes.records:
        for number, _ in enumerate(examples, read):
            if shapes.records:
                shapes.behind = number
                break


def task_lines(shapes: Any) -> list[str]:
    """What became of records of several tasks, where these were asked for, in lines. Raises UserError where there were none."""
    return [shapes.line()] if isinstance(shapes, TaskShapes) else []
