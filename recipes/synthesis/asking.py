"""Rounds of prompts put to one model, whose answers are kept: whatever ends a run, the next one asks no answered prompt again."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.backends import backend_for
from seodang.recipes.run.following import follow
from seodang.recipes.run.journal import header_in
from seodang.recipes.run.results_file import ResultsFile, journal_of, line_of

KINDS = MADE, AGAIN = "made", "again"  # of prompts: those that ask for records, and those that ask about one


@dataclass(frozen=True)
class Said:
    """An answer, with its seed, and the tokens of its prompt and of itself; None where nobody tells how many they are."""

    text: str
    error: str | None
    seed: int | None
    tokens: int | None


class Asker:
    """Puts rounds of prompts to a backend, opened when the first is asked. The answers of each round are a results file in `folder`."""

    def __init__(self, where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, folder: Path, stack: ExitStack):
        """Raises UserError for settings that the backend cannot honour."""
        self._options, self._folder, self._stack, self._decoding = options, folder, stack, decoding
        self._backend = backend_for(where, model, decoding, options, Prompts([], []))
        self._opened = False
        self.round = "00000"  # whose files are named by it
        self.spent, self.untold = 0, 0  # tokens of all that was answered so far, and how many answers they are not known of

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers, but for each round's prompts."""
        return self._backend.identity

    def finished(self, kind: str) -> int | None:
        """How many prompts of a kind the round had that were asked to the end; None where they were not."""
        path = journal_of(self._file(kind))
        header = header_in(path.read_bytes().partition(b"\n")[0]) if path.exists() else None
        return header["prompts"] if header and header.get("finished") else None

    def ask(self, kind: str, prompts: Sequence[str], first: int, **settings: Any) -> list[Said]:
        """The answers to the round's prompts of a kind, the seeds counted on from that of attempt `first`; `settings` replace those of the run.

        What the round's file has is not asked again; of a round that was asked to its end that goes for its errors too, for later rounds were made of
        what it gave. Raises UserError for a file of other prompts, and GivenUp for a server that answers no more.
        """
        path, asked = self._file(kind), self._asked(prompts, first)
        if self.finished(kind) != len(prompts):
            self._answer(path, asked, first, settings)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        if [line["prompt"] for line in lines] != asked.prompts:
            raise UserError(f"{path} has answers to other prompts than those of now: begin anew with --resume false")
        said = [Said(line["text"] or "", line["error"], line["seed"], line["tokens"]) for line in lines]
        self.spent += sum(each.tokens or 0 for each in said)
        self.untold += sum(each.tokens is None for each in said)
        return said

    def open(self) -> None:
        """Have the model loaded, or the server found; from then on the checkpoint's own settings hold too."""
        if not self._opened:
            self._backend.open(self._stack)
            self._opened = True

    def _answer(self, path: Path, asked: Prompts, first: int, settings: dict[str, Any]) -> None:
        self.open()
        backend = self._backend.again(self._settings(first, settings), asked)
        line = line_of(asked, backend.params, False)

        def told(result: Any) -> dict[str, Any]:
            return {**line(result), "tokens": _tokens(result)}

        with ResultsFile(str(path), asked, 1, True, backend.identity, told, True) as file:
            if file.todo:
                results = backend.answers(file.todo, True)  # refuses what it cannot do
                try:
                    file.begin()
                    follow(results, file, len(asked.prompts), f"in {path} (--resume goes on from there)")
                finally:
                    results.close()
            else:
                file.begin()
            file.finish()

    def _asked(self, prompts: Sequence[str], first: int) -> Prompts:
        put = list(prompts) if self._options.raw else [[{"role": "user", "content": each}] for each in prompts]
        return Prompts(put, [*range(first + 1, first + 1 + len(prompts))])

    def _settings(self, first: int, changed: dict[str, Any]) -> Decoding:
        decoding = copy(self._decoding)
        for name, value in changed.items():
            setattr(decoding, name, value)
        decoding.seed = self._decoding.seed + first
        return decoding

    def _file(self, kind: str) -> Path:
        return self._folder / f"{self.round}-{kind}.jsonl"


def _tokens(result: Any) -> int | None:
    """The tokens of a prompt and its answer together; of an answer that failed none, whatever it may have taken elsewhere."""
    if result.error is not None:
        return 0
    return None if result.prompt_length is None or not result.tokens and result.text else result.prompt_length + result.tokens

