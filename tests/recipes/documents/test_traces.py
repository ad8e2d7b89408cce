"""The traces of the documents are what the default model says: each command is run anew, and its lines must be among what it prints."""

import re

import pytest
from markdown_blocks import PAGES, Block, blocks

from seodang.__main__ import main as seodang

TRACED = "prints, among other things"
TIMES = re.compile(r"(?:  \d+\.\d ms.*|, seed \d{6,}.*)$")  # which hang on the machine


def pairs() -> list[tuple[Block, Block]]:
    """Each command with the trace that follows it."""
    return [
        (command, trace)
        for page in PAGES
        for command, trace in zip(blocks(page), blocks(page)[1:], strict=False)
        if trace.title == TRACED and command.language == "bash"
    ]


def kept(line: str) -> str:
    """A line without times, and digits behind the third of a number: another machine rounds otherwise."""
    return re.sub(r"(\d\.\d\d)\d+", r"\1", TIMES.sub("", line)).rstrip()


def test_traces_are_there_for_the_strategies():
    assert len(pairs()) > 10 and all(command.commands[0][:3] == ["seodang", "explain", "default"] for command, _ in pairs())


@pytest.mark.full
@pytest.mark.parametrize(("command", "trace"), [pytest.param(*pair, id=pair[0].where) for pair in pairs()])
def test_a_trace_is_what_the_command_prints(command, trace, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    [words] = command.commands
    assert seodang([*words[1:], "--device", "cpu", "--dtype", "float32"]) == 0
    printed = iter([kept(line) for line in capsys.readouterr().out.splitlines()])
    for line in trace.text.splitlines():
        assert line == "..." or kept(line) in printed, line  # in this order: `in` goes on where it found the last one
