"""Print what completes `seodang` in a shell: verbs, their options, and files behind them.

seodang completion bash > ~/.local/share/bash-completion/completions/seodang
seodang completion zsh > ~/.zfunc/_seodang
seodang completion fish > ~/.config/fish/completions/seodang.fish

What is printed holds all words: no key that is pressed starts Python. (zsh looks into ~/.zfunc where ~/.zshrc says `fpath+=~/.zfunc` before `compinit`.)
"""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from seodang.data.errors import UserError
from seodang.recipes.options.known import known


@dataclass
class CompletionOptions:
    """Which shell it is for."""

    shell: str = field(metadata={"help": "bash, zsh or fish."})

    def __post_init__(self):
        if self.shell not in SHELLS:
            raise UserError(f"shell must be {', '.join(SHELLS)}, got {self.shell!r}")


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if len(words) == 1 and words[0] in SHELLS:
        print(SHELLS[words[0]](told_of_verbs(), {verb: options_of(verb) for verb in told_of_verbs()}))
        return 0
    from seodang.recipes.options.parser import command, parse  # which imports transformers, for help and mistakes alone

    @command
    def parsed(rest: list[str]) -> int:
        (options,) = parse(rest, CompletionOptions, prog="seodang completion", positional=("shell",), description=__doc__)
        return main([options.shell])

    return parsed(words)


def told_of_verbs() -> dict[str, str]:
    """What each verb does, in a line."""
    return {verb: told["description"].strip().partition("\n")[0] for verb, told in known().items() if verb != "versions"}


def options_of(verb: str) -> list[str]:
    """All options of a verb, as they are written."""
    return [f"--{name}" for name in known()[verb]["names"].split()]


def bash(verbs: Mapping[str, str], options: Mapping[str, list[str]]) -> str:
    """The function that bash calls for the words behind `seodang`."""
    cases = "\n".join(f"        {verb}) options={shlex.quote(' '.join(names))} ;;" for verb, names in options.items())
    return f"""_seodang() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" options=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W {shlex.quote(" ".join([*verbs, "--help", "--version"]))} -- "$current"))
        return
    fi
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
        --help) COMPREPLY=($(compgen -W "all json" -- "$current")); return ;;
        --version) COMPREPLY=($(compgen -W "--verbose" -- "$current")); return ;;
    esac
    if [[ "$current" != -* ]]; then  # a file, as -o default has it
        [ "${{COMP_WORDS[1]}}" != completion ] || COMPREPLY=($(compgen -W "{" ".join(SHELLS)}" -- "$current"))
        return 0
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$options" -- "$current"))
}}
complete -o default -F _seodang seodang"""


def zsh(verbs: Mapping[str, str], options: Mapping[str, list[str]]) -> str:
    """The function that zsh calls, which tells what each verb does beside it."""
    told = "\n".join(f"        {shlex.quote(verb + ':' + what.replace(':', chr(92) + ':'))}" for verb, what in verbs.items())
    cases = "\n".join(f"        {verb}) options=({' '.join(names)}) ;;" for verb, names in options.items())
    return f"""#compdef seodang
_seodang() {{
    local -a verbs options
    verbs=(
{told}
    )
    if (( CURRENT == 2 )); then
        _describe 'verb' verbs
        compadd -- --help --version
        return
    fi
    case "$words[CURRENT-1]" in
        --help) compadd -- all json; return ;;
        --version) compadd -- --verbose; return ;;
    esac
    case "$words[2]" in
{cases}
    esac
    if [[ "$words[CURRENT]" == -* ]]; then compadd -- $options; elif [[ "$words[2]" == completion ]]; then compadd -- {" ".join(SHELLS)}; else _files; fi
}}
if [ "$funcstack[1]" = _seodang ]; then _seodang "$@"; else compdef _seodang seodang; fi"""


def fish(verbs: Mapping[str, str], options: Mapping[str, list[str]]) -> str:
    """fish's rules: one for each verb, and one for each option behind it."""
    first = "__fish_use_subcommand"
    lines = [f"complete -c seodang -n {first} -l help", f"complete -c seodang -n {first} -l version"]
    lines += [f"complete -c seodang -f -n {first} -a {shlex.quote(verb)} -d {shlex.quote(what)}" for verb, what in verbs.items()]
    for verb, names in options.items():
        lines += [f"complete -c seodang -n '__fish_seen_subcommand_from {verb}' -l {name[2:]}" for name in names]
    lines.append(f"complete -c seodang -f -n '__fish_seen_subcommand_from completion' -a {shlex.quote(' '.join(SHELLS))}")
    return "\n".join(lines)


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
