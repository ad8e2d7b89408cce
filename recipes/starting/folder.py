"""The files of a recipe: settings, commands, a sample of the data, and what a person should know of them. Nothing is ever written over."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seodang.data.errors import UserError
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.runners.paradigm import diffusion_of
from seodang.recipes.starting.checking import Checked
from seodang.recipes.starting.tasks import DIFFUSION, TASKS

FILES = ("README.md", "run.sh", "train.yaml", "sample.jsonl")
SETTINGS = Path(__file__).parents[1]  # where the commands' own YAML files lie
HELD_OUT, FEWEST = 0.1, 40  # the share that is held out of at least so many records
LONGEST = {DIFFUSION: 32}  # tokens of an answer; a canvas is filled in whole
MASK = "<|mask|>"


def refuse_existing(folder: Path) -> None:
    """Raise UserError for a folder in which a file of a recipe is already."""
    for name in FILES:
        if (folder / name).exists():
            raise UserError(f"{folder / name} is there already, and nothing is written over: name another folder, or move it away")


@dataclass(frozen=True)
class Recipe:
    """What is known of a recipe when it is written: all names as they hold in any folder."""

    task: str
    data: list[str]
    model: str
    encoding: str | None
    columns: list[str] | None
    text_column: str | None
    label_column: str | None
    found: Checked

    @property
    def verb(self) -> str:
        """The command that trains."""
        return TASKS[self.task].verb

    @property
    def out(self) -> str:
        """Where the trained model will lie, seen from the recipe's folder."""
        return f"runs/{self.task}"

    def settings(self) -> dict[str, Any]:
        """The command's own settings as `recipes/VERB.yaml` has them, with this model and data."""
        own = yaml.safe_load((SETTINGS / f"{self.verb}.yaml").read_text(encoding="utf-8"))
        first = {"model": self.model, "data": self.data, "encoding": self.encoding, "columns": self.columns}
        first |= {"text_column": self.text_column, "label_column": self.label_column}
        first["eval_fraction"] = HELD_OUT if self.found.kept >= FEWEST else 0.0
        if self.task == DIFFUSION and ((config := known_config(self.model)) is None or diffusion_of(config) is None):
            first["mask_token"] = MASK  # a model that speaks by diffusion has one of its own
        own = {name: value for name, value in own.items() if name not in first}
        return {**{name: value for name, value in first.items() if value is not None}, **own, "logging_steps": 5, "output_dir": self.out}

    def reading(self) -> str:
        """The options by which a command reads the sample."""
        words = ["--columns", *self.columns] if self.columns else []
        words += ["--text_column", self.text_column] if self.text_column else []
        return "".join(f" {shlex.quote(word)}" for word in words)

    def commands(self) -> dict[str, str]:
        """What is run in the folder, in its order, each with what it does."""
        after = TASKS[self.task].after.format(out=self.out, reading=self.reading(), length=LONGEST.get(self.task, 128))
        tried = "--data sample.jsonl --eval_fraction 0 --max_steps 2 --save_strategy no --output_dir runs/try"
        return {
            "The plan alone: records, steps, memory.": f"seodang {self.verb} --config train.yaml --dry_run",
            "Two steps on the sample, to see that all of it runs.": f"seodang {self.verb} --config train.yaml {tried}",
            "The training; started again, it goes on from its newest checkpoint.": f"seodang {self.verb} --config train.yaml",
            "What came of it, on the sample (which was trained on: it measures nothing).": after,
        }

    def readme(self, name: str) -> str:
        """What a person should know."""
        commands = [f"{what}\n\n    {command}\n" for what, command in self.commands().items()]
        few = f"Nothing is held out of so few records; give `eval_fraction` from {FEWEST} on."
        held = few if self.found.kept < FEWEST else "A tenth of the records is held out and measured."
        data = ", ".join(f"`{each}`" for each in self.data)
        return "\n".join([
            f"# {name}: {TASKS[self.task].what}", "",
            f"Written by `seodang init` for {data} and the model `{self.model}`. What was found there:", "",
            *(f"    {line}".rstrip() for line in self.found.lines), "",
            "`train.yaml` holds every setting, and options of the command line win over it; `sample.jsonl` has some of the records as they",
            f"stand, in UTF-8. {held}", "",
            "## Commands, in this folder", "", *commands,
            "`sh run.sh` does the last two; its options are those of the training (`sh run.sh --max_steps 20`).", "",
        ])  # fmt: skip

    def script(self) -> str:
        """The training and what follows, for a shell."""
        *_, training, after = self.commands().values()
        why = "# The training, then what came of it; options go to the training."
        return f'#!/bin/sh\n{why}\nset -e\ncd "$(dirname "$0")"\n{training} "$@"\n{after}\n'

    def files(self, name: str) -> dict[str, str]:
        """What is written, by file."""
        *_, training, _ = self.commands().values()
        settings = yaml.safe_dump(self.settings(), sort_keys=False, allow_unicode=True, width=1000)
        sample = "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in self.found.sample)
        texts = self.readme(name), self.script(), f"# {training}; options on the command line win.\n{settings}", sample
        return dict(zip(FILES, texts, strict=True))

    def write(self, folder: Path) -> None:
        """Write the files into a folder, which is made. Raises UserError for one that is there already."""
        refuse_existing(folder)
        written = self.files(folder.absolute().name)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
        (folder / "run.sh").chmod(0o755)
