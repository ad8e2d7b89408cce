"""Records to rows of input_ids and labels: trained is what the assistant says, masked is the rest."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from .accounting import EMPTY, Accounting, check_unusable, counted
from .chat import text_ids
from .conversation import Conversation, Turn
from .errors import UserError
from .formats import Dialogue, Text, systems
from .surrogates import refuse_surrogates
from .template import unchanged
from .truncation import shorten

IGNORE_INDEX = -100
TRAIN_ON = ("assistant", "last", "all")
EMPTY_ANSWERS = ("error", "drop")

Row = dict[str, list[int]]  # input_ids and labels, of one length


@dataclass
class Counts(Accounting):
    """What became of the records."""

    trained_tokens: int = 0
    split_dialogues: int = 0  # dialogues of several rows because the template rewrites history or a merge crosses a boundary
    chunked_texts: int = 0  # texts longer than a row

    def add(self, rows: list[Row]) -> None:
        """Count what some rows hold."""
        self.tokens += sum(len(row["input_ids"]) for row in rows)
        self.trained_tokens += sum(len(row["labels"]) - row["labels"].count(IGNORE_INDEX) for row in rows)

    def lines(self) -> list[str]:
        """The counts for people: what there is always, what had to be done only where it was."""
        share = self.trained_tokens / self.tokens if self.tokens else 0.0
        lines = [
            self.records_line(),
            f"tokens          {self.tokens:,}, {self.trained_tokens:,} of them trained ({share:.1%})",
            *self.lost_lines(),
        ]
        done = [
            ("truncated", self.truncated, "rows lost context on the left"),
            ("long texts", self.chunked_texts, "went into several rows"),
            ("split dialogues", self.split_dialogues, "have a row for each form of their history"),
        ]
        return [*lines, *(counted(*each) for each in done if each[1]), *self.note_lines()]


@dataclass(frozen=True)
class Labeller:
    """How records become rows; the rules are those of `prepare`."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    train_on: str = "assistant"
    literal: bool = True
    empty_answers: str = "error"
    unusable: str = "drop"
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in (("train_on", TRAIN_ON), ("empty_answers", EMPTY_ANSWERS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_unusable(self.unusable)
        if self.max_length < 2:
            raise UserError(f"max_length must be at least 2, got {self.max_length}")

    def rows(self, example: Dialogue | Text, counts: Counts) -> list[Row]:
        """The rows of one record. Raises UserError that begins with where the record stands."""
        reasons: Counter = Counter()  # answer by answer, why there is nothing to learn
        try:
            refuse_surrogates(vars(example))
            rows = self._text(example, counts, reasons) if isinstance(example, Text) else self._dialogue(example, counts, reasons)
            asked = example.messages if isinstance(example, Dialogue) else [{"content": example.text}]
            counts.count_record(rows, reasons, self.unusable, asked=asked, where=example.where, taken=example.taken)
        except UserError as error:
            raise UserError(f"{example.where}: {error}" if example.where else str(error)) from error
        counts.add(rows)
        return rows

    def _text(self, example: Text, counts: Counts, reasons: Counter) -> list[Row]:
        if not example.text.strip():
            reasons["empty text"] += 1
            return []
        ids = text_ids(self.tokenizer, example.text, self.literal)
        if (eos := self.tokenizer.eos_token_id) is not None and ids[-1] != eos:
            ids = [*ids, eos]
        return self._chunks(ids, counts)

    def _chunks(self, ids: list[int], counts: Counts, untrained: set[int] = frozenset()) -> list[Row]:
        """Rows of at most max_length; each begins with the last id of the one before, so that every id but the first is predicted once."""
        counts.chunked_texts += len(ids) > self.max_length
        labels = [IGNORE_INDEX if at in untrained else id for at, id in enumerate(ids)]
        rows = []
        for start in range(0, max(len(ids) - 1, 1), self.max_length - 1):
            end = start + self.max_length
            rows.append({"input_ids": ids[start:end], "labels": [IGNORE_INDEX, *labels[start + 1 : end]]})
        return [row for row in rows if _trains(row)]

    def _dialogue(self, example: Dialogue, counts: Counts, reasons: Counter) -> list[Row]:
        talk = Conversation(self.tokenizer, example.messages, example.tools, self.literal, **self.template_kwargs)
        trained = [index for index in self._trained(talk.messages) if self._says_something(talk.messages[index], reasons)]
        if self.train_on == "all":
            return self._whole(talk, trained, counts)
        return self._answers(talk, trained, counts, reasons)

    def _trained(self, messages: list[dict]) -> list[int]:
        """Which assistant turns are trained; a turn that opens the dialogue answers nothing and is context."""
        answers = [index for index, message in enumerate(messages) if message.get("role") == "assistant" and index > 0]
        chosen = answers[-1:] if self.train_on == "last" else answers
        return [index for index in chosen if messages[index].get("train", True)]

    def _says_something(self, message: dict, reasons: Counter) -> bool:
        content = message.get("content")
        if message.get("tool_calls") or (content.strip() if isinstance(content, str) else content):
            return True
        if self.empty_answers == "error":
            raise UserError("the answer is empty: fill it in, or leave such answers out with --empty_answers drop")
        reasons[EMPTY] += 1
        return False

    def _answers(self, talk: Conversation, trained: list[int], counts: Counts, reasons: Counter) -> list[Row]:
        """Rows for the trained turns: one holds as many as follow from each other by the ids that generation sees."""
        rows: list[Row] = []
        row: Row | None = None
        kept, split = 0, False  # the first message that still fits
        for index in trained:
            message = talk.messages[index]
            turn = talk.turn(_window(talk.messages, kept, index), message)
            if len(turn) > self.max_length:
                cut = shorten(talk, kept, index, self.max_length)
                if isinstance(cut, str):
                    reasons[cut] += 1
                    continue
                turn, kept, row = cut.turn, cut.kept, None
                counts.truncated += 1
            elif row is not None and turn.prompt_ids[: len(row["input_ids"])] != row["input_ids"]:
                row, split = None, True
            if row is None:
                rows.append(row := {"input_ids": [], "labels": []})
            _extend(row, turn)
            counts.count_notes(turn.notes)
        counts.split_dialogues += split
        return [row for row in rows if _trains(row)]

    def _whole(self, talk: Conversation, trained: list[int], counts: Counts) -> list[Row]:
        """Every token of the dialogue, as generation would have seen and written its last turn."""
        messages = talk.messages
        last = len(messages) - 1
        ends_in_answer = last > 0 and messages[last].get("role") == "assistant"
        turn = talk.turn(messages[:last], messages[last]) if ends_in_answer else None
        ids = turn.prompt_ids + turn.answer_ids if turn else talk.rendering_ids()
        untrained: set[int] = set()
        for index, message in enumerate(messages):
            answers = message.get("role") == "assistant" and index > 0
            if message.get("train", True) and (index in trained or not answers):
                continue
            left_out = talk.turn(messages[:index], message) if answers else None
            if left_out is None or ids[: len(left_out)] != left_out.prompt_ids + left_out.answer_ids:
                raise UserError("with train_on all only an assistant turn that the template does not rewrite can be left out: use train_on assistant")
            untrained |= set(range(len(left_out.prompt_ids), len(left_out)))
        return self._chunks(ids, counts, untrained)


def _window(messages: list[dict], kept: int, index: int) -> list[dict]:
    """The messages before `index` without those dropped between the system turn and `kept`."""
    first = systems(messages)
    return messages[:first] + messages[max(kept, first) : index]


def _extend(row: Row, turn: Turn) -> None:
    """Put the turn behind the row, which its prompt begins with."""
    row["labels"] += [IGNORE_INDEX] * (len(turn.prompt_ids) - len(row["input_ids"])) + turn.answer_ids
    row["input_ids"] = turn.prompt_ids + turn.answer_ids
    row["labels"][0] = IGNORE_INDEX  # nothing comes before it to predict it from


def _trains(row: Row) -> bool:
    return row["labels"].count(IGNORE_INDEX) < len(row["labels"])


def prepare(
    examples: Iterable[Dialogue | Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on: str = "assistant",
    literal: bool = True,
    empty_answers: str = "error",
    unusable: str = "drop",
    **template_kwargs: Any,
) -> tuple[list[Row], Counts]:
    """Turn records into rows to train on, and count what became of them.

    A dialogue's row is the ids that generation will see, then the answer's ids as the model will emit them, its end-of-turn token
    included. `train_on`: `assistant` trains every assistant turn, `last` the last one only, `all` every token of the dialogue, prompts too;
    `"train": false` in a message leaves an assistant turn out. Turns share a row while each prompt begins with the row so far; where
    the template rewrites history they do not, and the dialogue has several rows. Plain text is trained whole.

    A row longer than `max_length` loses its oldest exchanges, then the last user's text on the left; an answer is never cut: it has a
    row of its own or, too long even so, is left out and counted. Text is split into rows. `empty_answers` is `error` or `drop`.
    A record that keeps no row is dropped and counted, or with `unusable` "error" refused by its place. Empty questions and doubled records
    are kept and counted as warnings. Raises UserError naming the record, or where nothing is left to learn.
    """
    counts = Counts(remembers=None)
    settings = {"max_length": max_length, "train_on": train_on, "literal": literal, "empty_answers": empty_answers, "unusable": unusable}
    with unchanged(tokenizer):
        rows = list(stream_rows(examples, tokenizer, counts, **settings, **template_kwargs))
    counts.refuse_empty()
    return rows, counts


def stream_rows(
    examples: Iterable[Dialogue | Text],
    tokenizer: PreTrainedTokenizerBase,
    counts: Counts | None = None,
    *,
    max_length: int,
    train_on: str = "assistant",
    literal: bool = True,
    empty_answers: str = "error",
    unusable: str = "drop",
    **template_kwargs: Any,
) -> Iterator[Row]:
    """The rows of `prepare` one after another, for a stream; `counts` grows as they are drawn, doubled records being looked for as it `remembers`."""
    labeller = Labeller(tokenizer, max_length, train_on, literal, empty_answers, unusable, template_kwargs)
    counts = Counts(remembers=0) if counts is None else counts
    for example in examples:
        yield from labeller.rows(example, counts)
