"""Preferences to rows of ids: a prompt and the answers that branch from it, judged answers, prompts alone."""

import copy
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from transformers import PreTrainedTokenizerBase

from .accounting import EMPTY, UNUSABLE, Accounting, check_unusable, counted
from .chat import prompt_ids
from .conversation import Conversation, Turn
from .errors import UserError
from .preferences import PromptExample, RankedPreference, UnpairedPreference
from .surrogates import refuse_surrogates
from .truncation import shorten

IDENTICAL = "identical answers"
TIE, ALONE = "all answers rank the same", "fewer than two answers"
BETWEEN = "neither best nor worst"
PROMPT_TOO_LONG = "prompt longer than max_prompt_length"

Row = dict[str, Any]


@dataclass
class PreferenceCounts(Accounting):
    """What became of the records."""

    answers: int = 0
    pairs: int = 0
    good: int = 0  # judged answers
    bad: int = 0
    answer_tokens: int = 0

    def add(self, prompt: Sequence[int], turns: Sequence[Turn] = (), pair_count: int = 0, cut: bool = False) -> None:
        """Count what one row holds."""
        self.answers += len(turns)
        self.pairs += pair_count
        self.truncated += cut
        answered = sum(len(turn.answer_ids) for turn in turns)
        self.answer_tokens += answered
        self.tokens += len(prompt) + answered
        for turn in turns:
            self.count_notes(turn.notes)

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        what = f", {self.pairs:,} pairs of {self.answers:,} answers" if self.pairs else ""
        what = f", {self.good:,} good and {self.bad:,} bad answers" if self.good or self.bad else what
        share = f", {self.answer_tokens:,} of them in answers ({self.answer_tokens / self.tokens:.1%})" if self.answer_tokens else ""
        lines = [f"{self.records_line()}{what}", f"tokens          {self.tokens:,}{share}", *self.lost_lines()]
        cut = [counted("truncated", self.truncated, "prompts lost context on the left")] if self.truncated else []
        return [*lines, *cut, *self.note_lines()]


def preference_pairs(ranks: Sequence[float]) -> list[tuple[int, int]]:
    """The places of every better and worse answer; ties make no pair.

    >>> preference_pairs([1, 0, 1])
    [(1, 0), (1, 2)]
    """
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]]


@dataclass(frozen=True)
class PreferenceTokenizer:
    """How ranked and judged answers become rows; the rules are those of `prepare_preferences`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    literal: bool = True
    unusable: str = "drop"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_unusable(self.unusable)
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length must be at least 2, got {self.max_length}")

    def rows(self, example: RankedPreference | UnpairedPreference, counts: PreferenceCounts) -> list[Row]:
        """The row of one example, or none. Raises UserError that begins with where the record stands."""
        return self._settled(self._ranked if isinstance(example, RankedPreference) else self._unpaired, example, counts)

    def unpaired_rows(self, example: RankedPreference | UnpairedPreference, counts: PreferenceCounts) -> list[Row]:
        """The same in judged answers: of ranked ones the best are good, the worst bad."""
        return self._settled(self._taken_apart if isinstance(example, RankedPreference) else self._unpaired, example, counts)

    def _settled(self, rows_of: Callable[..., list[Row]], example: RankedPreference | UnpairedPreference, counts: PreferenceCounts) -> list[Row]:
        reasons: Counter = Counter()
        try:
            refuse_surrogates(vars(example))
            rows = rows_of(example, counts, reasons)
            said = [*example.prompt, *(example.answers if isinstance(example, RankedPreference) else [example.answer])]
            counts.count_record(rows, reasons, self.unusable, asked=said, where=example.where, taken=example.taken)
        except UserError as error:
            raise _with_place(error, example) from error
        return rows

    def _ranked(self, example: RankedPreference, counts: PreferenceCounts, reasons: Counter) -> list[Row]:
        turns, cut = self._compared(example, reasons)
        if not turns:
            return []
        ranks = [example.ranks[place] for place in turns]
        prompts = {tuple(turn.prompt_ids) for turn in turns.values()}
        assert len(prompts) == 1, "a prompt is rendered without its answer, so all answers stand behind the same"
        prompt = list(prompts.pop())
        counts.add(prompt, list(turns.values()), len(preference_pairs(ranks)), cut)
        margin = {} if example.margin is None else {"margin": example.margin}
        branches = [turn.answer_ids for turn in turns.values()]
        return [{"prompt_ids": prompt, "branches": branches, "ranks": ranks, "where": example.where, **margin}]

    def _taken_apart(self, example: RankedPreference, counts: PreferenceCounts, reasons: Counter) -> list[Row]:
        """What lies between the best and the worst says neither, and is left out."""
        ends = {min(example.ranks), max(example.ranks)} if example.ranks else set()
        kept = [place for place, rank in enumerate(example.ranks) if rank in ends]
        extremes = replace(example, answers=[example.answers[i] for i in kept], ranks=[example.ranks[i] for i in kept])
        turns, cut = self._compared(extremes, reasons)
        if turns and len(kept) < len(example.answers):
            reasons[BETWEEN] += len(example.answers) - len(kept)
        return [self._one(turn, extremes.ranks[place] == min(ends), cut, example, counts) for place, turn in turns.items()]

    def _unpaired(self, example: UnpairedPreference, counts: PreferenceCounts, reasons: Counter) -> list[Row]:
        turns, cut = self._turns(example, [example.answer], [0.0], reasons)
        return [self._one(turn, example.label, cut, example, counts) for turn in turns.values()]

    def _one(self, turn: Turn, good: bool, cut: bool, example: RankedPreference | UnpairedPreference, counts: PreferenceCounts) -> Row:
        counts.add(turn.prompt_ids, [turn], cut=cut)
        counts.good += good
        counts.bad += not good
        return {"prompt_ids": turn.prompt_ids, "completion_ids": turn.answer_ids, "label": good, "where": example.where}

    def _compared(self, example: RankedPreference, reasons: Counter) -> tuple[dict[int, Turn], bool]:
        """As `_turns`, but none where no pair of a better and a worse answer is left."""
        if example.flaw or len(example.answers) < 2:
            reasons[example.flaw or ALONE] += 1
            return {}, False
        turns, cut = self._turns(example, example.answers, example.ranks, reasons)
        if not preference_pairs([example.ranks[place] for place in turns]):
            reasons[TIE] += 1  # the last: what made it a tie goes before
            return {}, False
        return turns, cut

    def _turns(self, example: RankedPreference | UnpairedPreference, answers: Sequence[dict], ranks: Sequence[float], left_out: Counter) -> tuple[dict[int, Turn], bool]:
        """By its place each usable answer's turn, all behind one prompt, and whether that lost context; `left_out` counts the other answers."""
        talk = Conversation(self.tokenizer, [*example.prompt, *answers], example.tools, self.literal, **self.template_kwargs)
        context, replies = talk.messages[: len(example.prompt)], dict(enumerate(talk.messages[len(example.prompt) :]))
        turns = {place: talk.turn(context, answer) for place, answer in replies.items() if not _is_empty(answer)}
        distinct = _distinct(turns, ranks)
        for reason, count in ((EMPTY, len(replies) - len(turns)), (IDENTICAL, len(turns) - len(distinct))):
            if count:
                left_out[reason] += count
        turns = {place: turns[place] for place in distinct}
        limit = sys.maxsize if self.max_length is None else self.max_length
        while turns:
            longest = max(turns, key=lambda place: len(turns[place].answer_ids))
            if len(turns[longest]) <= limit:
                return turns, False
            alone = copy.copy(talk)
            alone.messages = [*context, replies[longest]]
            cut = shorten(alone, 0, len(context), limit)  # what the longest answer needs is enough for all
            if not isinstance(cut, str):
                return {place: talk.turn(cut.context, replies[place]) for place in turns}, True
            left_out[cut] += 1
            del turns[longest]
        return {}, False


def _is_empty(answer: Mapping[str, Any]) -> bool:
    content = answer.get("content")
    return not answer.get("tool_calls") and not (content.strip() if isinstance(content, str) else content)


def _distinct(turns: Mapping[int, Turn], ranks: Sequence[float]) -> list[int]:
    """The places of different answers: of identical ones the first, and none of those whose ranks contradict each other."""
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, turn in turns.items():
        same[tuple(turn.answer_ids)].append(place)
    return [places[0] for places in same.values() if len({ranks[place] for place in places}) == 1]


def prepare_preferences(
    examples: Iterable[RankedPreference],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    literal: bool = True,
    unusable: str = "drop",
    **template_kwargs: Any,
) -> tuple[list[Row], PreferenceCounts]:
    """Turn ranked answers into rows of `prompt_ids`, `branches`, `ranks`, `where` and, where given, `margin`, and count what became of them.

    A branch is an answer's ids as the model will emit them behind the prompt, its end-of-turn token included; a row has at least one pair of
    different ranks. Empty answers, identical ones and those that cannot fit are left out; a record that keeps no pair is dropped and
    counted, or with `unusable` "error" refused by its place. Where the prompt and the longest answer have more than `max_length` tokens
    (None: no limit), the prompt loses context on the left, the same for all its answers; an answer is never cut. Empty questions and
    doubled records are kept and counted as warnings. Raises UserError where nothing is left.
    """
    return _rows_and_counts(examples, PreferenceTokenizer(tokenizer, max_length, literal, unusable, template_kwargs).rows)


def prepare_unpaired(
    examples: Iterable[RankedPreference | UnpairedPreference],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    literal: bool = True,
    unusable: str = "drop",
    **template_kwargs: Any,
) -> tuple[list[Row], PreferenceCounts]:
    """Turn judged answers into rows of `prompt_ids`, `completion_ids`, `label` and `where`, by the rules of `prepare_preferences`.

    Of ranked answers the best are good and the worst bad, a row each; what lies between says neither.
    """
    return _rows_and_counts(examples, PreferenceTokenizer(tokenizer, max_length, literal, unusable, template_kwargs).unpaired_rows)


def prepare_prompts(
    examples: Iterable[PromptExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    literal: bool = True,
    too_long: str = "error",
    **template_kwargs: Any,
) -> tuple[list[Row], PreferenceCounts]:
    """Turn prompts into rows of `prompt_ids`, `messages`, `columns` and `where`.

    A prompt of more than `max_prompt_length` tokens is refused by its place, or with `too_long` "drop" left out and counted.
    """
    if too_long not in UNUSABLE:
        raise UserError(f"too_long must be error or drop, got {too_long!r}")
    counts = PreferenceCounts(remembers=None)
    how = {"max_prompt_length": max_prompt_length, "literal": literal, "too_long": too_long, **template_kwargs}
    rows = [row for example in examples for row in prompt_rows(example, tokenizer, counts, **how)]
    counts.refuse_empty()
    return rows, counts


def prompt_rows(
    example: PromptExample,
    tokenizer: PreTrainedTokenizerBase,
    counts: PreferenceCounts,
    *,
    max_prompt_length: int,
    literal: bool,
    too_long: str,
    **template_kwargs: Any,
) -> list[Row]:
    """The row of one prompt, or none, by the rules of `prepare_prompts`; `counts` grows.

    Raises UserError for a prompt that is too long where `too_long` is "error".
    """
    try:
        refuse_surrogates(vars(example))
        ids = prompt_ids(tokenizer, example.prompt, example.tools, literal, **template_kwargs)
        if len(ids) > max_prompt_length and too_long == "error":
            remedy = "raise it, shorten the prompt, or leave such prompts out with --too_long drop"
            raise UserError(f"the prompt has {len(ids)} tokens, more than max_prompt_length {max_prompt_length}: {remedy}")
    except UserError as error:
        raise _with_place(error, example) from error
    if len(ids) > max_prompt_length:
        counts.count_record([], Counter({PROMPT_TOO_LONG: 1}))
        return []
    rows = [{"prompt_ids": ids, "messages": example.prompt, "columns": example.columns, "where": example.where}]
    counts.count_record(rows, Counter(), asked=example.prompt, where=example.where, taken=example.taken)
    counts.add(ids)
    return rows


def _rows_and_counts(examples: Iterable[RankedPreference | UnpairedPreference], rows_of: Callable[..., list[Row]]) -> tuple[list[Row], PreferenceCounts]:
    counts = PreferenceCounts(remembers=None)
    rows = [row for example in examples for row in rows_of(example, counts)]
    counts.refuse_empty()
    return rows, counts


def _with_place(error: UserError, example: RankedPreference | UnpairedPreference | PromptExample) -> UserError:
    return UserError(f"{example.where}: {error}" if example.where else str(error))
