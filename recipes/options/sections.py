"""Options of several stages on one command line: `--reward.learning_rate 1e-5`, and in a YAML file a block `reward:`."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from seodang.data.errors import UserError


def split_sections(argv: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The options of the command itself, and those of each named section without its name; those on the command line come last and win.

    Raises UserError for a section that there is not.

    >>> split_sections(["--rounds", "3", "--ppo.iterations", "5"], ["ppo", "reward"])
    (['--rounds', '3'], {'ppo': ['--iterations', '5'], 'reward': []})
    """
    argv, path = _without_config(list(argv))
    main, sections = _from_file(path, names)
    into = main
    for word in argv:
        if word.startswith("--"):
            name, dot, rest = word[2:].partition(".")
            belongs = dot and "=" not in name  # a dot in a value parts nothing
            if belongs and name not in sections:
                raise UserError(f"unknown option {word!r}: there are the sections {', '.join(names)}")
            into = sections[name] if belongs else main
            word = f"--{rest}" if belongs else word
        into.append(word)
    return main, sections


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """A YAML file's values as words of a command line; what is null is left to its default."""
    found = []
    for name, value in values.items():
        if value is None:
            continue
        items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict | bool) else value]
        found += [f"--{name}", *map(str, items)]
    return found


def _without_config(argv: list[str]) -> tuple[list[str], str | None]:
    for place, word in enumerate(argv):
        if word == "--config":
            if place + 1 == len(argv):
                raise UserError("--config needs a file: --config FILE.yaml")
            return argv[:place] + argv[place + 2 :], argv[place + 1]
        if word.startswith("--config="):
            return argv[:place] + argv[place + 1 :], word.removeprefix("--config=")
    return argv, None


def _from_file(path: str | None, names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    if path is None:
        return [], {name: [] for name in names}
    if not os.path.isfile(path):
        raise UserError(f"--config {path}: there is no such file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold `name: value` lines, not a {type(values).__name__}")
    blocks = {name: values.pop(name, None) or {} for name in names}
    for name, block in blocks.items():
        if not isinstance(block, dict):
            raise UserError(f"--config {path}: {name} must be a block of `name: value` lines, got {block!r}")
    return as_arguments(values), {name: as_arguments(block) for name, block in blocks.items()}
