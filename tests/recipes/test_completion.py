"""What completes `seodang` in each shell completes it: asked of the shells themselves, where they are installed."""

import shlex
import shutil
import subprocess
import sys

import pytest

from seodang.__main__ import VERBS, main
from seodang.recipes.options.known import known

ASKED = {  # by what is typed, the words that must be offered and those that must not be
    "seodang sf": ({"sft"}, {"serve"}), "seodang ": ({*VERBS}, set()), "seodang sft --lora_": ({"--lora_r", "--lora_alpha"}, {"--model"}),
    "seodang serve --po": ({"--port"}, {"--lora_r"}), "seodang diffusion-lm --": ({"--config", "--embedding_size"}, {"--lora_r"}),
    "seodang completion ": ({"bash", "zsh", "fish"}, {"--shell"}), "seodang completion --": ({"--shell"}, {"bash"}),
}  # fmt: skip


@pytest.fixture
def script(capsys, tmp_path):
    def of(shell):
        assert main(["completion", shell]) == 0
        path = tmp_path / f"completion.{shell}"
        path.write_text(capsys.readouterr().out, encoding="utf-8")
        return path

    return of


def ask_bash(path, line):
    words = line.split(" ")
    code = f"source {path}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _seodang; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def ask_zsh(path, line):
    """zsh's own functions, which want a terminal, say here what they are given."""
    words = line.split(" ")
    stubs = 'compdef() { :; }; _files() { :; }; compadd() { shift; print -l -- "$@"; }; _describe() { print -l -- ${${(P)2}%%:*}; }'
    code = f"{stubs}; source {path}; words=({' '.join(map(shlex.quote, words))}); CURRENT={len(words)}; _seodang"
    said = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return [word for word in said if word.startswith(words[-1])]  # which is zsh's own work


def ask_fish(path, line):
    said = subprocess.run(["fish", "--no-config", "-c", f"source {path}; complete -C {shlex.quote(line)}"], capture_output=True, text=True, check=True).stdout
    return [each.partition("\t")[0] for each in said.splitlines()]


@pytest.mark.parametrize(("shell", "ask"), [("bash", ask_bash), ("zsh", ask_zsh), ("fish", ask_fish)])
def test_a_shell_completes_verbs_and_the_options_of_each(script, shell, ask):
    path = script(shell)
    text = path.read_text(encoding="utf-8")
    assert all(name in text for verb in VERBS for name in known()[verb]["names"].split())
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    for line, (there, not_there) in ASKED.items():
        offered = {*ask(path, line)}
        assert there <= offered and not not_there & offered, (line, there - offered, not_there & offered)


def test_it_imports_nothing_that_takes_long_and_names_the_shells():
    code = "import sys; from seodang.__main__ import main; code = main(['completion', 'bash']); sys.exit(code or 'torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "shell must be bash, zsh, fish, got 'tcsh'" in capsys.readouterr().err
