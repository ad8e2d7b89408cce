"""A file of results that grows a line an answer, and goes on where it was interrupted.

Beside `answers.jsonl` lies `answers.jsonl.run`: its first line says what the run was asked, the others are answers that wait for their turn. So
whatever ends the process, an answer that has come is in one of the two.
"""

import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.remote.answers import RemoteResult
from seodang.recipes.options.outputs import refuse_long_name
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.following import InOrder, Straight
from seodang.recipes.run.journal import Journal, append, lines_in, partial_of, write_whole, writing
from seodang.recipes.run.one_writer import refuse_second_writer
from seodang.recipes.run.same_run import header_of, refuse_other_run

FLUSH_SECONDS = 1.0  # what came in the last so many may be lost with the machine's power, and is asked again


@dataclass
class Kept:
    """What a file has of a run: by their places the whole answers, each with the file and the offset of its line; `first` of them, `length` bytes, stay."""

    places: dict[int, tuple[BinaryIO, int]]
    first: int = 0
    length: int = 0


class ResultsFile(Straight):
    """A file of results, to which whoever follows a run shows them; those of an earlier part of the run count as shown.

    Opened, it changes nothing: `todo` says which prompts are to be asked. With `begin`, what was there and is not of this run is gone. `line` makes a
    result's, `each` is how many answers a prompt has. With `ordered`, the lines stand in the order of the prompts. `resume`: True goes on with the
    same run, False begins anew, and None does too where no interrupted run would be lost by it.
    Raises UserError for another run's answers, for a file that another process is writing, and for lines that are no answers.
    """

    def __init__(self, path: str, asked: Prompts, each: int, ordered: bool, identity: Mapping[str, Any], line: Callable[[Any], dict], resume: bool | None):
        super().__init__(self._append)
        self.path, self._asked, self._each, self._ordered, self._line = Path(path), asked, each, ordered, line
        refuse_long_name(partial_of(journal_of(self.path)), f"{path}, with what is written beside it,")
        self._file, self._reader = open(path, "ab", buffering=0), open(path, "rb")
        self._synced = time.monotonic()
        try:
            refuse_second_writer(self._file.fileno(), self.path, "name another --output")
            self._journal = Journal(journal_of(self.path), lambda: os.fsync(self._file.fileno()))
            self._header = header_of(identity, asked, each)
            self._kept = Kept({})
            if then := self._earlier_run(resume):
                refuse_other_run(self.path, then, self._header, asked)
                self._kept = self._found()
        except BaseException:
            self._file.close()
            self._reader.close()
            raise
        whole = {place // each for place in self._kept.places}
        self.todo = [index for index in range(len(asked.prompts)) if index not in whole]
        self.shown = len(self._kept.places)
        self._order: InOrder | None = None

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._file.close()
        self._reader.close()

    def begin(self) -> None:
        """Make the file ready: the answers that it keeps stand at its beginning, or in the journal until their turn."""
        kept = self._kept
        rest = {place: (file, offset) for place, (file, offset) in kept.places.items() if file is not self._reader or offset >= kept.length}
        # another run's lines must not lie beneath what this one is asked, and those of this one be in the journal before they are cut from here
        self._journal.begin(self._header, rest, before=lambda: kept.places or self._cut(0))
        self._cut(kept.length)
        if not self._ordered:
            for place in rest:
                self._append(self._journal.pop(place))
        else:
            self._order = InOrder(self._append, self._each, self._journal, kept.first)
            self._order.go_on()

    def __call__(self, result: Any) -> None:
        line = json.dumps(self._line(result), ensure_ascii=False).encode() + b"\n"
        if self._order is None:
            self._append(line)
        else:
            self._order.put(result.prompt_index * self._each + result.choice, line)
        self.shown += 1
        if time.monotonic() - self._synced > FLUSH_SECONDS:
            self._sync()

    def close(self) -> None:
        """Write what waits for its turn: what it waited for will not come."""
        if self._order is not None:
            self._order.close()
        self._sync()
        self._journal.begin(self._header, {})

    def finish(self) -> None:
        """Say that every prompt has been asked."""
        self._sync()
        self._journal.begin(self._header | {"finished": True}, {})

    def _cut(self, length: int) -> None:
        with writing(self.path):
            os.ftruncate(self._file.fileno(), length)
            os.fsync(self._file.fileno())
        self._size = length

    def _append(self, line: bytes) -> None:
        self._size += append(self._file, self._size, line, self.path)

    def _sync(self) -> None:
        with writing(self.path):
            os.fsync(self._file.fileno())
        self._journal.sync()
        self._synced = time.monotonic()

    def _earlier_run(self, resume: bool | None) -> dict[str, Any] | None:
        """What the run was asked that is to be gone on with; None where a new one begins."""
        if resume is False:
            return None
        then, size = self._journal.header, os.fstat(self._reader.fileno()).st_size
        if resume and then is None and size:
            raise UserError(f"{self.path} does not say what it was asked, for there is no {self._journal.path.name} beside it: --resume false begins anew, over it")
        if resume or then is None or then.get("finished"):
            return then if resume else None
        answers = sum(1 for _ in lines_in(self._reader)) + sum(1 for _ in self._journal.lines())
        if answers:
            raise UserError(f"{self.path} has {answers} answers of a run that was interrupted: --resume goes on from there, --resume false begins anew, over them")
        return None

    def _found(self) -> Kept:
        """The answers of prompts that have all of theirs; one that ended in an error is asked again."""
        places: dict[int, tuple[BinaryIO, int]] = {}
        written: list[tuple[int | None, int]] = []  # of each line here the place, None without an answer, and where it ends
        for number, (offset, line) in enumerate(lines_in(self._reader), 1):
            place = self._place(line, f"{self.path} line {number}")
            fresh = place is not None and place not in places
            written.append((place if fresh else None, offset + len(line)))
            if fresh:
                places[place] = (self._reader, offset)
        self._journal.scan(self._place)
        for place, offset in self._journal.places.items():
            places.setdefault(place, (self._journal.reader, offset))
        count = Counter(place // self._each for place in places)
        kept = Kept({place: where for place, where in places.items() if count[place // self._each] == self._each})
        for place, end in written:
            if place not in kept.places or self._ordered and place != kept.first:
                break
            kept.first, kept.length = kept.first + 1, end
        return kept

    def _told(self, record: Mapping[str, Any]) -> tuple[int, Any, Any]:
        """The choice and the prompt of a line, and what went wrong, None for nothing. Raises KeyError for what is no line of ours."""
        return record["choice"], record["prompt"], record["error"]

    def _place(self, line: bytes, where: str) -> int | None:
        """The place of a line's answer among all, None where it is an error; raises UserError for what is no answer to one of the prompts."""
        unit = self._asked.unit_written
        try:
            record = json.loads(line)
            index, (choice, prompt, error) = self._asked.index_of(record[unit]), self._told(record)
            if choice not in range(self._each) or type(choice) is not int:
                raise ValueError(f"{choice} is no choice")
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{where} is no answer of this run: take the line out, or begin anew with --resume false") from None
        if index is None or prompt != self._asked.prompts[index]:
            raise UserError(f"{where} answers a prompt that {unit} {record[unit]} of the prompts now is not: give the same prompts, another --output, or --resume false")
        return None if error is not None else index * self._each + choice


def line_of(asked: Prompts, params: SamplingParams, token_ids: bool) -> Callable[[Any], dict[str, Any]]:
    """Return what makes a result the object that a line of the file has; `params` say what is told beside the text."""
    from seodang.recipes.run.token_logprobs import as_json

    names = ("choice", "text", "finish_reason", "prompt_length", "seed", "score", "error")
    names += ("ids",) * token_ids

    def line(result: Any) -> dict[str, Any]:
        told = {name: getattr(result, name) for name in names}
        if params.logprobs is not None:
            told |= {"logprobs": result.logprobs, "top_logprobs": [as_json(each) for each in result.top_logprobs]}
        if params.prompt_logprobs is not None:
            told["prompt_logprobs"] = [each and as_json(each) for each in result.prompt_logprobs]
        if isinstance(result, RemoteResult):
            told |= {"logprobs": None} if params.logprobs is not None else {}  # those after every filter: no server tells them
            told |= {"thinking": result.thinking} if result.thinking else {}
        index = result.prompt_index
        if asked.references:
            told["reference"] = asked.references.get(index)
        return {asked.unit_written: asked.numbers[index], "prompt": asked.prompts[index], **told}

    return line


def writes_to(path: str, line: Callable[[Any], dict[str, Any]], stack: ExitStack) -> Callable[[Any], None]:
    """What writes the line of a result to a pipe or a device, which the stack closes."""
    output = stack.enter_context(open(path, "ab", buffering=0))

    def write(result: Any) -> None:
        try:
            write_whole(output, json.dumps(line(result), ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            if isinstance(error, BrokenPipeError) and os.path.sameopenfile(output.fileno(), 1):
                raise  # /dev/stdout ends as what is printed does
            raise UserError(f"{path} cannot be written any further ({error.strerror}): name another --output") from None

    return write


def journal_of(path: Path) -> Path:
    """What lies beside a results file."""
    return path.with_name(f"{path.name}.run")


def is_regular(path: str) -> bool:
    """Whether what is written there is a file of its own; a pipe or a device holds nothing, and /dev/stdout is somebody else's, whatever it leads to."""
    if os.path.abspath(path).startswith(("/dev/std", "/dev/fd/", "/proc/")):  # a file in /dev/shm is one as others
        return False
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
