"""Where an answer ends: end tokens, stop strings and patterns, and what must be held back until they are judged."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import regex

from ...data.errors import UserError
from ..text.detokenise import Detokeniser
from .user_functions import called

ORDINARY_SECONDS = 0.001  # of computing, for a token's searches with a `stop_regex`: they take microseconds
SEARCH_SECONDS = 0.25  # beyond, for all answers of a request together: nobody else gets a token meanwhile
LONGEST_PATTERN = 256  # characters: `regex` looks for long texts, as beginnings of a match, in a time that no timeout ends
MOST_REPEATS = 10_000  # the counts of all repetitions ({1,3}), multiplied: `regex` writes them out, which takes time and memory


class StopPattern:
    """A `stop_regex`, compiled, and the time that its searches may still take: all answers of a request share it.

    `regex` backtracks, so that a pattern can take ever so long; within `search` none takes longer than what is left.
    """

    def __init__(self, pattern: regex.Pattern):
        self.pattern, self.left = pattern, SEARCH_SECONDS
        self._until = math.inf

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Count the searches within against the time that is left; one too many raises TimeoutError."""
        began = time.thread_time()
        self._until = began + ORDINARY_SECONDS + max(self.left, 0.0)
        try:
            yield
        finally:
            self.left -= max(time.thread_time() - began - ORDINARY_SECONDS, 0.0)

    @property
    def timeout(self) -> float:
        """Seconds that the next search may take; raises TimeoutError where there are none."""
        if (left := self._until - time.thread_time()) <= 0:
            raise TimeoutError
        return left


class Stops:
    """Cuts a stream of text before the first stop string or match of the pattern that is completed in it.

    What could still become one is held back, so no part of it is ever shown. It judges character by character: how the text
    is cut into pieces changes nothing. A stop whose last character lies in a piece that is not `judged` does not count; one that only
    begins there does.
    """

    def __init__(self, stops: Sequence[str] = (), pattern: StopPattern | None = None):
        self.stops = tuple(stops)
        self.pattern = pattern
        self.found: str | None = None
        self._text = ""  # what is held, and with a pattern all before it, which lookbehinds see
        self._safe = 0  # where the held text begins
        self._spared = 0  # no stop ends before here

    def push(self, piece: str, judged: bool = True) -> str:
        """Return the text that is now safe to show; after a stop, nothing more. Raises UserError for a pattern that takes too long."""
        if self.found is not None:
            return ""
        if not self.stops and self.pattern is None:
            return piece
        if self.pattern is None:
            return self._push(piece, judged)
        try:
            with self.pattern.searching():
                return self._push(piece, judged)
        except TimeoutError:
            raise UserError(
                f"stop_regex={self.pattern.pattern.pattern!r} takes more than {SEARCH_SECONDS:g} s behind {len(self._text)} characters and before: "
                "write it so that a text can match in one way only, without a repetition inside a repetition"
            ) from None

    def _push(self, piece: str, judged: bool) -> str:
        text, known = self._text + piece, len(self._text)
        first = self._first(text, known) if judged else None
        if first is not None:
            at, end = first
            shown, self.found, self._text, self._safe = text[self._safe : at], text[at:end], "", 0
            return shown
        if not judged:
            self._spared = len(text)
        safe = len(text) - max((overlap(text, stop) for stop in self.stops), default=0)
        if self.pattern is not None:
            safe = min(safe, self._unmatched(text))
        safe = max(safe, self._safe)
        shown = text[self._safe : safe]
        self._text, self._safe = (text[safe:], 0) if self.pattern is None else (text, safe)
        if self.pattern is None:
            self._spared = max(self._spared - safe, 0)
        return shown

    def _unmatched(self, text: str) -> int:
        """Return up to where nothing can become part of a match."""
        if self._safe >= self._spared:
            partial = self.pattern.pattern.search(text, self._safe, partial=True, timeout=self.pattern.timeout)
            return len(text) if partial is None else partial.start()
        # a match that was spared stands in the way of those that begin behind it
        places = range(self._safe, len(text))
        whole = self.pattern.pattern.fullmatch
        return next((at for at in places if whole(text, at, partial=True, timeout=self.pattern.timeout)), len(text))

    def _match(self, text: str, end: int) -> regex.Match | None:
        """Return the first match within the text up to `end` that is not spared."""
        matches = self.pattern.pattern.finditer(text, self._safe, end, overlapped=True, timeout=self.pattern.timeout)
        return next((match for match in matches if match.end() > self._spared or not self._spared), None)

    def _first(self, text: str, known: int) -> tuple[int, int] | None:
        """Return from where to where the stop that is completed first reaches, of several the one that begins first."""
        begins = {stop: text.find(stop, max(self._safe, self._spared + 1 - len(stop))) for stop in self.stops}
        complete = [(at + len(stop), at) for stop, at in begins.items() if at >= 0]
        if self.pattern is not None:
            last = min((end for end, _ in complete), default=len(text))
            for end in range(known + 1, last + 1):
                if match := self._match(text, end):
                    complete.append((end, match.start()))
                    break
        if not complete:
            return None
        end, at = min(complete)
        return at, end

    def flush(self) -> str:
        """Return what was held back: the text has ended without a stop."""
        held, self._text, self._safe = self._text[self._safe :], "", 0
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def stop_pattern(source: str) -> StopPattern:
    """Return a `stop_regex` compiled, in the syntax of Python and `regex`, for one request.

    Raises UserError for one that is wrong, too long, repeats too much or matches the empty text.
    """
    if len(source) > LONGEST_PATTERN:
        raise UserError(f"stop_regex has {len(source)} characters, more than the {LONGEST_PATTERN} that it may have: shorten it")
    counts = [max(int(count) for count in each if count) for each in re.findall(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}", source) if any(each)]
    if (repeats := math.prod(max(count, 1) for count in counts)) > MOST_REPEATS:
        raise UserError(f"stop_regex={source!r} has repetitions of {repeats:g} times, more than the {MOST_REPEATS} there may be: lower the counts")
    try:
        pattern = regex.compile(source, cache_pattern=False)
        if pattern.search("", timeout=SEARCH_SECONDS):
            raise UserError(f"stop_regex={source!r} matches the empty text, so that every answer would end at once: let it ask for a character")
    except regex.error as error:
        raise UserError(f"stop_regex={source!r} is no regular expression: {error}") from None
    except TimeoutError:
        raise UserError(f"stop_regex={source!r} takes more than {SEARCH_SECONDS:g} s for an empty text: write it in another way") from None
    return StopPattern(pattern)


class AnswerText:
    """The text of one answer, growing by ids: detokenised, cut before a stop, ended where the caller's own judge says so.

    `stop_when` is asked after every token with the text so far, what is held back included. The first `skip` characters are left out.
    A token that is not `judged` comes too early to end the answer: it completes no stop, and `stop_when` is not asked.
    """

    def __init__(
        self,
        detokeniser: Detokeniser,
        stops: Sequence[str] = (),
        pattern: StopPattern | None = None,
        stop_when: Callable[[str], bool] | None = None,
        skip: int = 0,
    ):
        self._detokeniser = detokeniser
        self._stops = Stops(stops, pattern)
        self._stop_when, self._ended, self._whole = stop_when, False, ""
        self._skip = skip

    @property
    def stopped(self) -> bool:
        """Whether a stop was found."""
        return self._stops.found is not None or self._ended

    def push(self, id: int, judged: bool = True) -> str:
        """Return the text that this id makes safe to show."""
        piece = self._own(self._detokeniser.push(id))
        shown = self._stops.push(piece, judged)
        if self._stop_when is not None and not self.stopped:
            self._whole += piece
            self._ended = judged and self._is_enough()
            shown += self._stops.flush() if self._ended else ""
        return shown

    def _is_enough(self) -> bool:
        said = called("stop_when", self._stop_when, self._whole)
        try:
            return bool(said)
        except Exception:  # whatever it returned
            raise UserError(f"stop_when must return true or false, got {said!r}") from None

    def finish(self, judged: bool = True) -> str:
        """Return what was held back, the answer being over."""
        return self._stops.push(self._own(self._detokeniser.flush()), judged) + self._stops.flush()

    def fork(self) -> AnswerText:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._detokeniser, other._stops = self._detokeniser.fork(), copy.copy(self._stops)
        return other

    def endless(self) -> AnswerText:
        """Return one that goes on from here without stops."""
        other = self.fork()
        other._stops, other._stop_when = Stops(), None
        return other

    def _own(self, piece: str) -> str:
        """The piece without what belongs to the prompt."""
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        return piece[skipped:]
