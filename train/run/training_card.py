"""The model card of a checkpoint: of what it was trained, by which settings, how far it came, and how it is run. The same run writes the same card."""

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.versions import installed_version
from ...infer.checkpoint.default_model import NAME
from ...infer.checkpoint.load import ADAPTER_CONFIG
from ...infer.runners.architecture import transformers_model
from .card import Exported, lines_to_run, task_of

LIBRARIES = ("torch", "transformers", "trl", "peft")
MEASURED_BY_THE_CLOCK = re.compile(r"runtime|per_second|seconds|time|memory|flos")  # another run of the same would say something else
NOT_OF_THE_MODEL = {"epoch", "learning_rate", "grad_norm", "step", "num_tokens"}
COMMANDS = {  # by the paradigm of what is no language model: what the hub calls its task, and the command that runs it
    "classification": ("text-classification", "seodang classify --model . --data texts.txt --predict"),
    "embedding": ("sentence-similarity", "seodang embed --model . --data texts.txt"),
    "masked": ("fill-mask", f"seodang fill-mask . {shlex.quote('The film was a [MASK].')}"),
    "diffusion_lm": (None, "seodang diffusion-lm-sample --model ."),
}


@dataclass
class Trained:
    """What a card tells of a run. `records` are the lines of what became of the data, `settings` the options that differ from their defaults."""

    name: str
    trainer: str
    base: str
    paradigm: str
    step: int
    steps: int
    fingerprint: str = ""
    data: Sequence[str] = ()
    records: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    adapter: bool = False


def write_card(trainer: Any, folder: Path) -> None:
    """Write the card of what a trainer has saved into a folder, in place of one that a library has left there."""
    origin, args = trainer.provenance, trainer.args
    data = (origin.options or {}).get("data") or ()
    about = Trained(
        name=Path(args.output_dir).resolve().name, trainer=type(trainer).__name__, base=origin.base, paradigm=origin.paradigm,
        step=trainer.state.global_step, steps=trainer.state.max_steps, fingerprint=origin.data if origin.options else "",
        data=[data] if isinstance(data, str) else [*data], records=origin.records, settings=origin.settings, log=trainer.state.log_history,
        adapter=(folder / ADAPTER_CONFIG).is_file(),
    )  # fmt: skip
    model = transformers_model(trainer.accelerator.unwrap_model(trainer.model))
    (folder / "README.md").write_text(training_card(about, model, trainer.processing_class), encoding="utf-8")


def training_card(about: Trained, model: Any, tokenizer: Any) -> str:
    """Return the README.md of a checkpoint; the lines that run the model do so in its folder.

    `model` is what was trained, as transformers has it beneath any adapter. No time, place or name of a machine stands in it.
    """
    local = bool(about.base) and Path(os.path.expanduser(about.base)).is_dir()
    base = f"HuggingFaceTB/{NAME}" if about.base == "default" else about.base
    told = Path(base).resolve().name if local else base
    task, command = COMMANDS.get(about.paradigm, (None, None))
    if about.trainer == "LatentClassifierTrainer":
        command = "seodang diffusion-lm-sample --model DIFFUSION_LM --classifier . --label LABEL"
    exported = Exported(about.name, about.base, about.step, None, model, tokenizer, adapter=about.adapter)
    if command is None:
        run = lines_to_run(exported)
        task = _task(about, model, tokenizer)
    else:
        run = ["## Seodang", "", "```sh", command, "```", ""]
    header = [f"library_name: {'peft' if about.adapter else 'transformers'}", *([f"pipeline_tag: {task}"] if task else [])]
    header += [f"base_model: {base}"] if base and not local else []
    versions = ", ".join(f"{name} {version}" for name in LIBRARIES if (version := installed_version(name)))
    what = f"{'An adapter of' if about.adapter else 'Trained from'} {told}" if told else "Trained from nothing"
    facts = f"{what}, by Seodang's {about.trainer}, {about.step:,} of {about.steps:,} steps ({versions})."
    name = " ".join(about.name.split())  # a folder's may have line breaks
    sections = [*_data(about), *_settings(about.settings), *_figures(about.log)]
    return "\n".join(["---", *header, "tags: [seodang]", "---", "", f"# {name}", "", facts, "", *sections, "The lines below run in this folder.", "", *run])


def _task(about: Trained, model: Any, tokenizer: Any) -> str:
    if about.paradigm == "tagging":
        return "token-classification"
    return "text-classification" if about.paradigm == "reward" else task_of(model.config, tokenizer)


def _data(about: Trained) -> list[str]:
    """Where the records came from, what became of them, and the fingerprint by which the manifest knows them."""
    lines = [f"- {' '.join(source.split())}" for source in about.data]
    if about.records:
        lines += ["", "```text", *about.records, "```"]
    lines += ["", f"Fingerprint: `{about.fingerprint}` (`data` in manifest.json)."] if about.fingerprint else []
    return ["## Data", "", *lines, ""] if lines else []


def _settings(settings: Mapping[str, Any]) -> list[str]:
    """The options that decide what is learned and differ from their defaults."""
    rows = [f"| `{name}` | `{_cell(value)}` |" for name, value in sorted(settings.items())]
    return ["## Settings that differ from their defaults", "", "| option | value |", "| --- | --- |", *rows, ""] if rows else []


def _figures(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """The last value of everything that was measured, and at which step; nothing that hangs on the clock."""
    last: dict[str, tuple[float, int]] = {}
    for entry in log:
        for name, value in entry.items():
            plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if plain and name not in NOT_OF_THE_MODEL and not MEASURED_BY_THE_CLOCK.search(name):
                last[name] = (value, entry.get("step", 0))
    rows = [f"| {name} | {value:.4g} | {step:,} |" for name, (value, step) in sorted(last.items())]
    return ["## Figures", "", "| figure | last value | at step |", "| --- | --- | --- |", *rows, ""] if rows else []


def _cell(value: Any) -> str:
    """A value in a cell of a table, on a line and without what would end it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())[:200]
