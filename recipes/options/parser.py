"""The command line: dataclasses to options, a YAML file beneath them, mistakes to one line and exit code 2.

On transformers' HfArgumentParser; trl's TrlParser does the same without a guess at what a mistyped option was meant to be.
"""

import argparse
import functools
import json
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from seodang.data.errors import UserError
from seodang.data.surrogates import refuse_surrogates
from seodang.data.versions import versions_named
from seodang.recipes.options.known import described, help_asked, unknown_option
from seodang.recipes.options.outputs import OUTPUTS, check_outputs


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Make `main(argv)` a command: a UserError becomes one line on stderr and exit code 2, Ctrl-C 130, the text of `sys.exit` stderr and 1.

    Where nobody reads what it prints any more (`| head -1`) it ends silently with 141, as the shell counts that.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            with versions_named():
                code = copy_context().run(main, list(sys.argv[1:] if argv is None else argv)) or 0  # what a dry run settles ends with it
            sys.stdout.flush()  # here, and not at the interpreter's end, it shows that nobody reads
            return code
        except UserError as error:
            return _refused(" ".join(str(error).split()))
        except BrokenPipeError:
            if not nobody_reads():
                raise
            return 128 + 13
        except KeyboardInterrupt as stop:
            if not stop.args:  # training has said what it saved
                print("interrupted", file=sys.stderr)
            return 130
        except SystemExit as stop:  # --help, and what libraries and a user's own file say
            if stop.code is None or isinstance(stop.code, int):
                return stop.code or 0
            print(stop.code, file=sys.stderr)
            return 1
        except Exception as error:
            ranks = _ranks()
            if ranks is not None and (lost := ranks.lost()):  # what this process has met with comes of another's end
                return _refused(lost)
            if ranks is not None:
                ranks.leave(f"{type(error).__name__}: {' '.join(str(error).split())}")
            raise
        finally:
            if (ranks := _ranks()) is not None:
                ranks.leave()

    return run


def _refused(words: str) -> int:
    """The exit code of a command that says why it does nothing, or no more; the other processes are told."""
    print("error: " + words, file=sys.stderr)
    if (ranks := _ranks()) is not None:
        ranks.leave(words)
    return 2


def _ranks() -> ModuleType | None:
    """What several processes that train together know of each other; None where nothing has asked for it, to import which takes its time."""
    return sys.modules.get("seodang.train.run.ranks")


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone; what is still to be written to it is then thrown away."""
    asked = select.poll()
    asked.register(sys.stdout, select.POLLOUT)  # macOS tells of errors only where something is asked for
    if gone := any(told & (select.POLLERR | select.POLLHUP) for _, told in asked.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class Repeated(argparse.Action):
    """A list that may be given in several goes; what the command line gives replaces what a file gave."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = vars(namespace).setdefault("_given", set())
        before = getattr(namespace, self.dest) if self.dest in given else []
        given.add(self.dest)
        setattr(namespace, self.dest, [*before, *values])


_PLACE = "positional_"  # before the names of arguments given by their place


class _Parser(HfArgumentParser):
    """argparse's errors as UserError, with the nearest option named."""

    def error(self, message: str) -> None:
        bare = [each for each in self._actions if each.option_strings and each.nargs == "?"]
        if any(message.startswith(f"argument {'/'.join(each.option_strings)}: ") for each in bare):  # --logprobs "a prompt"
            message += ": the word behind an option is its value, so put what is not before it"
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(
    argv: Sequence[str], *classes: type, prog: str, positional: Sequence[str] = (), description: str | None = None
) -> tuple[Any, ...]:
    """Read the dataclasses' fields from `--config FILE.yaml` and from options, which win; one instance a class.

    Fields named in `positional` may also be given without their option, in that order; the last may be a list. Hyphens count as
    underscores. Unknown options and keys raise UserError with the nearest known name, as does an output that cannot be written; the `~` of
    one is the home folder.
    `--help` prints the options that matter most, `--help all` every one and `--help json` the same for programs.
    """
    if (text := help_asked(prog.removeprefix("seodang "), argv)) is not None:
        print(text)
        sys.exit(0)
    parser = _Parser(
        classes, prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="Options from a YAML file; those on the command line win.")
    if list(argv[-2:]) in (["--help", "json"], ["-h", "json"]):
        print(json.dumps(described(parser, positional), ensure_ascii=False))
        sys.exit(0)
    required = _add_positional(parser, positional)
    argv = [_underscored(word) for word in argv]
    given = _apply_config(parser, _config_path(argv), classes) | {word[2:].partition("=")[0] for word in argv if word.startswith("--")}
    namespace, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise UserError(_unknown_option(unknown[0], parser))
    values = vars(namespace)
    values |= {name: values[_PLACE + name] for name in positional if values[_PLACE + name]}
    for name, value in values.items():
        refuse_surrogates({name.removeprefix(_PLACE): value})
    for name in required:
        if values[name] is None:
            raise UserError(f"{name} is missing: give it first, or as --{name} (see {prog} --help)")
    check_outputs(values)
    values |= {name: os.path.expanduser(values[name]) for name in OUTPUTS if values.get(name)}
    try:
        built = _joined(classes, values) if _is_one_of_several(classes) else tuple(_build(cls, values) for cls in classes)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        if _is_refusal(error):
            raise UserError(str(error)) from None
        raise
    for each in built:
        vars(each)["given"] = given  # what was written down, whatever the value
    return built


def _is_refusal(error: Exception) -> bool:
    """Whether a library's dataclass has refused its values (`TrainingArguments` does so by plain errors); else it is a defect of ours.

    So it is where the last frame of ours has built a dataclass, or called what a library's does in that place.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    ours = max(place for place, package in enumerate(packages) if package in ("seodang", "__main__"))  # a recipe may be run as a script
    return len(frames) > ours + 1 and frames[ours + 1].f_code.co_name in ("__init__", "__post_init__")


def _is_one_of_several(classes: Sequence[type]) -> bool:
    """Whether a launcher has started this process beside others, to train."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and any("ddp_timeout" in cls.__dataclass_fields__ for cls in classes)


def _joined(classes: Sequence[type], values: dict[str, Any]) -> tuple[Any, ...]:
    """The instances of the dataclasses, one of which joins the processes; from then on they watch each other."""
    import torch

    from seodang.train.run import ranks
    from seodang.train.run.sharding import refuse_context_parallel

    refuse_context_parallel(os.environ)
    on_cpu = values.get("use_cpu") or values.get("device") == "cpu"
    ranks.check_devices(0 if on_cpu else torch.accelerator.device_count())
    with ranks.beginning():
        built = tuple(_build(cls, values) for cls in classes)
    ranks.watch()
    return built


def _build(cls: type, values: dict[str, Any]) -> Any:
    return cls(**{name: values[name] for name, field in cls.__dataclass_fields__.items() if field.init and name in values})


def _underscored(word: str) -> str:
    """`--learning-rate=1e-5` to `--learning_rate=1e-5`; values and negative numbers stay."""
    if not word.startswith("--") or len(word) == 2:
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {name.lstrip("-").replace("-", "_"): action for name, action in parser._option_string_actions.items()}


def _add_positional(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[str]:
    """Let options be given by their place too; the names of those that one way or the other must be there."""
    options = _options(parser)
    required = [name for name in names if options[name].required]
    for name in names:
        option = options[name]
        option.required = False
        parser.add_argument(_PLACE + name, nargs="*" if option.nargs in ("+", "*") else "?", type=option.type, metavar=name)
    return required


def _config_path(argv: list[str]) -> str | None:
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("--config")
    try:
        return reader.parse_known_args(argv)[0].config
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None


def _apply_config(parser: argparse.ArgumentParser, path: str | None, classes: Sequence[type]) -> set[str]:
    """Make a YAML file's values the parser's defaults, and return their names."""
    if path is None:
        return set()
    if not os.path.isfile(path):
        raise UserError(f"--config {path}: there is no such file")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold `name: value` lines, not a {type(values).__name__}")
    options = _options(parser)
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise UserError(f"--config {path}: " + _unknown_option("--" + str(key), parser))
        if value is None and not _takes_none(name, classes):
            raise UserError(f"--config {path}: {name} has no value: give it one, or leave its line out")
        if isinstance(value, list) and _takes_one(name, classes):
            raise UserError(f"--config {path}: {name} takes one value, got {value}")
        action = options[name]
        action.required = False
        parser.set_defaults(**{name: _converted(action, value, path)})
    return {str(key).replace("-", "_") for key, value in values.items() if value is not None}


def _takes_none(name: str, classes: Sequence[type]) -> bool:
    """Whether an option may be nothing."""
    owners = [cls for cls in classes if name in cls.__dataclass_fields__]
    return all(cls.__dataclass_fields__[name].default is None or type(None) in get_args(get_type_hints(cls)[name]) for cls in owners)


def _takes_one(name: str, classes: Sequence[type]) -> bool:
    """Whether an option is a text, a number or a yes or no, and never a list."""
    hints = [get_type_hints(cls)[name] for cls in classes if name in cls.__dataclass_fields__]
    kinds = {kind for hint in hints for kind in (get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint])}
    return bool(kinds) and kinds <= {str, int, float, bool, type(None)}


def _converted(action: argparse.Action, value: Any, path: str) -> Any:
    """A YAML value as the option itself would have read it (YAML takes 1e-5 for a text)."""
    if value is None or action.type is None:
        return value
    try:
        if isinstance(value, bool) and action.type in (int, float):  # which yes is not
            raise ValueError
        if isinstance(value, list):
            return [action.type(str(item)) for item in value]
        value = action.type(value if isinstance(value, (bool, dict)) else str(value))
        return [value] if action.nargs in ("+", "*") else value
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise UserError(f"--config {path}: {action.dest}: {value!r} is not a valid value") from None


def _unknown_option(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}: put a value with spaces in quotes (see {parser.prog} --help)"
    return unknown_option(word, _options(parser), parser.prog)
