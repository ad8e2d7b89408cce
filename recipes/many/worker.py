"""What a worker does: it loads the model once, and answers shards as `seodang generate` does in one process."""

import io
import json
import os
import re
import sys
from contextlib import ExitStack, redirect_stderr
from copy import copy
from dataclasses import dataclass
from typing import Any

from seodang.data.errors import UserError
from seodang.recipes.many.shards import prompts_in
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.backends import OwnBackend, backend_for
from seodang.recipes.run.results_file import line_of


@dataclass(frozen=True)
class Job:
    """What every worker has to know: the options of the command, and what the prompts are; `file` is what to call where they are from."""

    where: BackendOptions
    model: SpeakingModel
    decoding: Decoding
    options: Any  # those of `seodang generate`
    unit: str
    file: str
    references: bool
    translated: bool
    folder: str  # where the command runs, which its paths begin from


@dataclass(frozen=True)
class Answered:
    """The lines of a shard's answers, in the order of their prompts and choices, how many tokens these have, and which sources lost their end."""

    lines: bytes
    tokens: int
    truncated: tuple[int, ...] = ()  # of how many tokens each is


class Answerer:
    """A model that answers shards."""

    def __init__(self, job: Job):
        """Load the model; `said` is what that said on stderr."""
        if os.path.isdir(job.folder):
            os.chdir(job.folder)
        self._job, self._stack = job, ExitStack()
        heard = _Heard()
        with redirect_stderr(heard):
            self._backend = backend_for(job.where, job.model, job.decoding, job.options, Prompts([], []))
            self._backend.open(self._stack)
        self.said = heard.getvalue()

    def check(self, first: int, lines: bytes) -> None:
        """Raise UserError, naming a prompt's place, where the model cannot be asked one of the prompts; nothing is computed. Of a server nothing is known."""
        if isinstance(self._backend, OwnBackend):
            self._answers(*self._asked(first, lines)).close()

    def answer(self, first: int, lines: bytes) -> Answered:
        """Answer the prompts of a shard, the first of which has that index among all."""
        asked, backend = self._asked(first, lines)
        each, told = backend.params.num_return_sequences, line_of(asked, backend.params, self._job.options.token_ids)
        found, tokens = {}, 0
        for result in self._answers(asked, backend):
            line = told(result)
            if self._job.references:
                line.setdefault("reference", None)  # this shard may have none
            found[result.prompt_index * each + result.choice] = json.dumps(line, ensure_ascii=False).encode() + b"\n"
            tokens += result.tokens
        truncated = backend.truncated if isinstance(backend, OwnBackend) else {}
        return Answered(b"".join(found[place] for place in range(len(asked.prompts) * each)), tokens, tuple(truncated.values()))

    def close(self) -> None:
        """Let go of what was opened: vLLM ends."""
        self._stack.close()

    def _asked(self, first: int, lines: bytes) -> tuple[Prompts, Any]:
        """The prompts of a shard, and who answers them: each by the seed that its index among all gives it."""
        asked = prompts_in(lines, self._job.unit)
        asked.translated = self._job.translated
        decoding = copy(self._job.decoding)  # with which the backend was opened
        if decoding.seed is not None:
            decoding.seed += first
        backend = self._backend.again(decoding, asked)
        backend.on_error = "result"
        return asked, backend

    def _answers(self, asked: Prompts, backend: Any) -> Any:
        try:
            return backend.answers(range(len(asked.prompts)), True)
        except UserError as error:
            raise UserError(placed(str(error), asked, self._job.file)) from None


class _Heard(io.StringIO):
    """What is written on stderr, which gets it too: it may be the last that a process says."""

    def write(self, text: str) -> int:
        sys.__stderr__.write(text)
        return super().write(text)


def placed(message: str, asked: Prompts, file: str) -> str:
    """What is said of one of the prompts of a shard, by its place among all that were given."""

    def place(found: re.Match) -> str:
        index = int(found[1]) - 1
        return f"{file} {asked.unit} {asked.numbers[index]}".strip() if 0 <= index < len(asked.numbers) else found[0]

    if file and re.match(rf"{asked.unit} \d", message):
        return f"{file} {message}"
    return re.sub(r"\bprompt (\d+)\b", place, message, count=1)
