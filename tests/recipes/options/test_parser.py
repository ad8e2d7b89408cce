import subprocess
import sys
from dataclasses import dataclass, field
from types import FunctionType

import pytest

from seodang.__main__ import VERBS, main
from seodang.data.errors import UserError
from seodang.recipes.dpo import DpoArguments
from seodang.recipes.options.parser import command, parse


@dataclass
class Options:
    model: str = field(metadata={"help": "Needed."})
    words: list[str] = field(default_factory=list, metadata={"help": "Many."})
    rate: float = field(default=0.5, metadata={"help": "A number."})
    raw: bool = field(default=False, metadata={"help": "A switch."})

    def __post_init__(self):
        if self.rate > 1:
            raise ValueError(f"rate must be at most 1, got {self.rate}")


def read(*argv):
    return parse(argv, Options, prog="test", positional=("model", "words"))[0]


def test_positional_arguments_options_and_hyphens():
    assert read("m", "a", "b", "--rate", "0.1") == Options("m", ["a", "b"], 0.1)
    assert read("--model", "m", "--raw") == Options("m", raw=True)
    assert read("--rate=1e-5", "m") == Options("m", rate=1e-5)


def test_yaml_beneath_options(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: m\nwords: [x, y]\nrate: 1e-5\nraw: true\n")
    assert read("--config", str(path)) == Options("m", ["x", "y"], 1e-5, True)
    assert read("--config", str(path), "--rate", "0.25") == Options("m", ["x", "y"], 0.25, True)
    assert read("other", "--config", str(path)).model == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat: 1", "did you mean rate"), ("rate:", "rate has no value"), ("words: null", "words has no value"), ("rate: [", "not YAML"), ("- 1", "name: value"),
        ("rate: fast", "'fast' is not a valid value"), ("rate: yes", "True is not a valid value"), ("rate: [0.1, 0.2]", r"rate takes one value, got \[0.1, 0.2\]"),
        ("model: [a]", "model takes one value"), ("raw: [true]", "raw takes one value"),
    ],
)  # fmt: skip
def test_yaml_mistakes(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read("m", "--config", str(path))


def test_the_home_folder_of_an_output_is_found_whoever_writes_it(tmp_path, monkeypatch):
    @dataclass
    class Writing:
        output_dir: str = field(default="runs/x", metadata={"help": "A folder."})
        output: str | None = field(default=None, metadata={"help": "A file."})

    monkeypatch.setenv("HOME", str(tmp_path))
    [given] = parse(["--output_dir=~/a/b", "--output", "~/c"], Writing, prog="test")
    assert given == Writing(f"{tmp_path}/a/b", f"{tmp_path}/c")
    assert parse([], Writing, prog="test") == (Writing(),)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["m", "--rat", "1"], "did you mean rate"), (["m", "--rate", "x"], "rate"), (["m", "--rate", "2"], "rate must be at most 1, got 2.0")],
)
def test_option_mistakes(argv, message):
    with pytest.raises(UserError, match=message):
        read(*argv)


def test_a_word_behind_an_option_that_needs_no_value_is_said_to_be_taken_for_it():
    with pytest.raises(UserError, match="'?a prompt'?.*: the word behind an option is its value, so put what is not before it"):
        read("m", "--raw", "a prompt")
    with pytest.raises(UserError) as raised:
        read("m", "--rate", "fast")
    assert "the word behind" not in str(raised.value)


def test_a_missing_required_option_is_named():
    with pytest.raises(UserError, match="model"):
        read()


def test_a_command_prints_one_line_and_returns_two(capsys):
    @command
    def fails(argv=None):
        raise UserError("top_p must be in (0, 1],\n got 7")

    assert fails([]) == 2
    assert capsys.readouterr().err == "error: top_p must be in (0, 1], got 7\n"


def test_defects_of_ours_keep_their_traceback():
    @command
    def fails(argv=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails([])


@pytest.mark.parametrize(("said", "code", "printed"), [("no licence", 1, "no licence\n"), (3, 3, ""), (None, 0, ""), (0, 0, "")])
def test_what_sys_exit_says_is_shown_and_is_no_success(capsys, said, code, printed):
    assert command(lambda argv=None: sys.exit(said))([]) == code
    assert capsys.readouterr().err == printed


def refusing(error: type[Exception], base: type = object, module: str = "seodang.recipes.made_up") -> type:
    """A dataclass of ours whose check of its values breaks."""

    def check(self):
        if base is not object:
            super(made, self).__post_init__()
        raise error("it broke")

    check = FunctionType(check.__code__, {**globals(), "__name__": module}, "__post_init__", None, check.__closure__)
    made = dataclass(type("Made", (base,), {"__post_init__": check, "__module__": module}))
    return made


@pytest.mark.parametrize("error", [ValueError, TypeError, ImportError])
def test_a_defect_in_a_check_of_ours_is_no_mistake_of_the_users(error):
    with pytest.raises(error, match="it broke") as raised:
        parse([], refusing(error), prog="test")
    assert not isinstance(raised.value, UserError)
    with pytest.raises(UserError, match="it broke"):
        parse([], refusing(error, module="somewhere.else"), prog="test")


def test_what_a_library_refuses_is_the_users_mistake_through_a_class_of_ours_too(tmp_path):
    with pytest.raises(UserError, match="load_best_model_at_end"):
        parse(["--output_dir", str(tmp_path), "--load_best_model_at_end", "--eval_strategy", "no"], DpoArguments, prog="test")


def test_help_lists_every_verb_and_imports_nothing_heavy(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    code = "import sys, seodang.__main__ as m; m.main(['--help']); print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()[-1] == "False False"


def test_an_unknown_verb_gets_a_suggestion(capsys):
    assert main(["gnerate"]) == 2
    assert "did you mean generate" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [*VERBS])
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "usage: seodang " + verb in capsys.readouterr().out
