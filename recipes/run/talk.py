"""A talk in the terminal: what was said so far, the settings in force, and the lines that are commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.options.parser import parse

OF_THE_START = {"checkpoint_settings", "num_return_sequences"}  # settings that a talk does not change on its way


@dataclass
class Talk:
    """A model, the messages so far, and how the next answer is made."""

    model: Any
    tokenizer: Any
    options: SpeakingModel
    decoding: Any
    cache: Any = None
    messages: list[dict] = field(default_factory=list)
    turn: int = 0  # answers asked for: each has a seed of its own

    def take(self, line: str) -> bool:
        """Answer a line, or do what it says as a command; return whether the talk goes on. What is wrong is told on stderr."""
        if not line.startswith("/"):
            if line:
                self.say(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name == "exit":
            return False
        if name not in COMMANDS:
            guess = get_close_matches(name, COMMANDS, 1)
            tell(f"unknown command /{name}: " + (f"did you mean /{guess[0]}?" if guess else "/help names them all"))
            return True
        try:
            COMMANDS[name](self, rest.strip())
        except UserError as error:
            tell(f"error: {error}")
        return True

    def say(self, line: str) -> None:
        """Ask the model, and print its answer as it grows."""
        params = self.decoding.params(self.options, self.turn)
        self.turn += 1
        self.messages = answer(self.model, self.tokenizer, self.messages, line, params, self.cache)

    def reset(self, rest: str) -> None:
        """forget the talk, but for what the model was told before it"""
        self.messages = self.messages[: self._beginning]
        tell("(forgotten)")

    def undo(self, rest: str) -> None:
        """take back the last question and its answer"""
        tell(f"(taken back: {shortened(self._take_back())})")

    def retry(self, rest: str) -> None:
        """ask the last question again, by the settings as they are now and with other chances"""
        before, line = self.messages, self._take_back()
        left = len(self.messages)
        self.say(line)
        if len(self.messages) == left:  # there was none: what there was is better
            self.messages = before

    def system(self, rest: str) -> None:
        """TEXT: tell the model this before the talk, which begins anew; without a text, nothing"""
        self.messages = [{"role": "system", "content": rest}] if rest else []
        tell("(the talk begins anew)")

    def set(self, rest: str) -> None:
        """NAME VALUE: change a setting of the command line (NAME default: as at first); without a name, tell those in force"""
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise UserError(f"/set {rest}: {error}") from None
        if not words:
            given = self.decoding.params(self.options).given
            tell(", ".join(f"{name} {value!r}" for name, value in given.items()) or "nothing is set: the likeliest tokens")
            return
        self.decoding = self._changed(words[0].removeprefix("--").replace("-", "_"), words[1:])

    def save(self, rest: str) -> None:
        """FILE.jsonl: write the talk as a record that sft takes, behind those that the file has"""
        if not rest:
            raise UserError("/save needs a file to write to: /save talks.jsonl")
        if len(self.messages) == self._beginning:
            raise UserError("nothing has been said yet: ask first")
        try:
            with Path(os.path.expanduser(rest)).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"{rest} cannot be written ({error.strerror}): name another file") from None
        tell(f"({len(self.messages)} messages written to {rest})")

    def help(self, rest: str) -> None:
        """name the commands"""
        for name, does in COMMANDS.items():
            tell(f"/{name} {does.__doc__}" if does.__doc__[0].isupper() else f"/{name}: {does.__doc__}")
        tell("/exit: end the talk, as Ctrl-D does; Ctrl-C cuts an answer short")

    @property
    def _beginning(self) -> int:
        """How many messages stand before the talk."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _take_back(self) -> str:
        """Drop the last question and its answer, and return the question."""
        asked = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise UserError("nothing has been asked yet: ask first")
        line = self.messages[asked[-1]]["content"]
        self.messages = self.messages[: asked[-1]]
        return line

    def _changed(self, name: str, words: list[str]) -> Any:
        """The settings with another value of one, as the command line reads it; raises UserError where they do not hold together."""
        known = {each.name: each for each in fields(Decoding)}
        if name in OF_THE_START:
            raise UserError(f"/set {name}: that is said at the start alone, by --{name}")
        if words == ["default"] and name in known:
            [fresh] = parse([], Decoding, prog="/set")
            changed, given = replace(self.decoding, **{name: getattr(fresh, name)}), self.decoding.given - {name}
        else:
            [read] = parse([f"--{name}", *words], Decoding, prog="/set")
            changed, given = replace(self.decoding, **{name: getattr(read, name)}), self.decoding.given | {name}
        changed.given, changed.checkpoint, changed.diffusion = given, self.decoding.checkpoint, self.decoding.diffusion
        changed.check(self.options)
        changed.params(self.options)
        return changed


COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "set": Talk.set, "retry": Talk.retry, "undo": Talk.undo, "system": Talk.system, "save": Talk.save, "reset": Talk.reset, "help": Talk.help,
}  # fmt: skip


def answer(model, tokenizer, talk: list[dict], line: str, params, cache=None) -> list[dict]:
    """Print the answer as it grows and return the talk with it; one that cannot be given leaves the talk as it was.

    In a terminal it is drawn as markdown; elsewhere it is written as it is.
    """
    from seodang.infer.engine.generate import stream
    from seodang.infer.requests.events import Committed, PromptRead
    from seodang.recipes.run.token_logprobs import lines

    messages = [*talk, {"role": "user", "content": line}]
    text, of_prompt, of_answer = "", [], []
    seen = [message for message in talk if message["role"] == "system"] + messages[-1:] if answers_single_turns(model, tokenizer) else messages
    try:
        with growing() as write:
            for event in stream(model, tokenizer, seen, params, prefix_cache=cache):
                if isinstance(event, PromptRead):
                    of_prompt = event.logprobs
                if isinstance(event, Committed):
                    write(event.text)
                    text += event.text
                    of_answer += [event.top_logprobs] * (event.top_logprobs is not None)
    except UserError as error:
        print("\n" if text else "", end="", flush=True)
        tell(f"error: {error} (or /reset)")
        return talk
    except KeyboardInterrupt:
        print(" (cut short)", end="")
    print()
    for told in lines(of_prompt, of_answer, tokenizer):
        print(told)
    return [*messages, {"role": "assistant", "content": text}] if text else talk


def answers_single_turns(model, tokenizer) -> bool:
    """Whether a model reads each question by itself: an encoder-decoder without a chat template, to whom a question is a source."""
    return transformers_model(model).config.is_encoder_decoder and not tokenizer.chat_template


@contextmanager
def growing() -> Iterator[Callable[[str], None]]:
    """Give what prints the next words of an answer: as markdown in a terminal, else as they are."""
    if not sys.stdout.isatty():
        yield lambda words: print(words, end="", flush=True)
        return
    from rich.console import Console

    from seodang.recipes.run.markdown import GrowingMarkdown

    with GrowingMarkdown(Console()) as drawn:
        yield drawn.add


def tell(words: str) -> None:
    """Print what is no answer."""
    print(words, file=sys.stderr)


def shortened(line: str) -> str:
    """A line, cut where it is long."""
    return line if len(line) <= 60 else f"{line[:60]}..."
