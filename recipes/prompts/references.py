"""Answers beside those that they should be: measured at the end, and kept beside the file of answers."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.recipes.prompts.prompt_files import Prompts

ENDING = ".metrics.json"  # behind the name of the answers' file


@dataclass
class Measured:
    """The first answer of each prompt that has a reference, by the prompt's index; `path` is the file of answers, where they are in one."""

    asked: Prompts
    answers: dict[int, str] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    path: Path | None = None

    @classmethod
    def of_file(cls, path: str, asked: Prompts) -> "Measured":
        """What a finished file of answers holds, whichever run of the command wrote it."""
        found = cls(asked, path=Path(path))
        if asked.references:
            with open(path, encoding="utf-8") as lines:
                for line in map(json.loads, lines):
                    found._note(asked.index_of(line[asked.unit_written]), line["choice"], line["text"], line["error"])
        return found

    def beside(self, show: Callable[[Any], None]) -> Callable[[Any], None]:
        """What shows a result and takes note of it."""

        def shown(result: Any) -> None:
            self._note(result.prompt_index, result.choice, result.text, result.error)
            show(result)

        return shown

    def _note(self, index: int, choice: int, text: str, error: str | None) -> None:
        if choice == 0 and index in self.asked.references:
            if error is None:
                self.answers[index] = text
            else:
                self.failed.add(index)

    def values(self) -> dict[str, float]:
        """The metrics, and how many answers they are of."""
        from seodang.train.maths.text_metrics import text_metrics

        indices = sorted(self.answers)
        found = text_metrics([self.answers[index] for index in indices], [self.asked.references[index] for index in indices])
        return {**found, "measured": len(indices), "failed": len(self.failed), "without_reference": len(self.asked.prompts) - len(self.asked.references)}

    def tell(self) -> None:
        """Print the metrics where there are references, on stderr where the answers are printed, and keep those of a file beside it."""
        if not self.asked.references:
            return
        values = self.values()
        print(line_of(values), file=sys.stderr if self.path is None else sys.stdout)
        if self.path is not None:
            kept = self.path.with_name(f"{self.path.name}{ENDING}")
            kept.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def line_of(values: dict[str, float]) -> str:
    """The metrics for people, in a line."""
    told = ", ".join(f"{name} {value:.3f}" if name in ("exact", "contains") else f"{name} {value:.1f}" for name, value in values.items() if isinstance(value, float))
    beside = [f"{values[name]:,} {words}" for name, words in (("failed", "failed"), ("without_reference", "have no reference")) if values[name]]
    return f"references      {told} of {values['measured']:,} answers{' (' + ', '.join(beside) + ')' if beside else ''}"
