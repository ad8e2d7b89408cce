"""Rows as a model speaks by diffusion: a prompt, and an answer that is filled up with end-of-text tokens to the length of its canvas."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.chat import end_of_turn_ids
from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX, Row
from ...data.packing import records_of
from ...infer.runners.paradigm import Diffusion

CANVAS = 32  # answers are filled up to a multiple of so many tokens, unless it is said
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")  # where the tokenizer's eos is what ends a turn, and a text ends otherwise


@dataclass(frozen=True)
class Canvas:
    """How answers are filled up: with `filling`, behind one of the ids that end an answer, to a multiple of so many tokens."""

    filling: int
    ends: tuple[int, ...]
    multiple: int = 1

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, multiple: int, end_of_text: str | None = None) -> "Canvas":
        """As the tokenizer's texts end, filled up with `end_of_text`, see `end_of_text_id`, which raises UserError."""
        filling = end_of_text_id(tokenizer, end_of_text)
        return cls(filling, ends_of_answers(tokenizer, filling), multiple)

    def rows(self, rows: Iterable[Row], max_length: int | None = None) -> Iterator[Row]:
        """Each trained stretch of each row as a row of its own: what stands before it is its prompt, what follows is left out.

        No row is filled up beyond `max_length`. A stretch that ends in none of the ids that end an answer, a part of a longer text say, is
        not filled up at all: nothing ends there.

        >>> [row] = Canvas(filling=0, ends=(2,), multiple=4).rows([{"input_ids": [5, 6, 7, 2, 8], "labels": [-100, -100, 7, 2, -100]}])
        >>> row
        {'input_ids': [5, 6, 7, 2, 0, 0], 'labels': [-100, -100, 7, 2, 0, 0]}
        """
        for row in rows:
            for start, end in stretches(row["labels"]):
                prompt = row["input_ids"][:start]
                answer = self.answer(prompt, row["input_ids"][start:end], max_length)
                yield {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * start + answer}

    def answer(self, prompt: list[int], answer: list[int], max_length: int | None = None) -> list[int]:
        """An answer's ids behind its prompt's, filled up as in `rows`.

        >>> Canvas(filling=0, ends=(2,), multiple=4).answer([5, 6], [7, 2])
        [7, 2, 0, 0]
        """
        fill = -len(answer) % self.multiple if answer[-1] in self.ends else 0
        room = fill if max_length is None else max(max_length - len(prompt) - len(answer), 0)
        return [*answer, *[self.filling] * min(fill, room)]

    def ranked(self, row: dict[str, Any], max_length: int | None = None) -> dict[str, Any]:
        """A row of `prompt_ids` and `branches` with each of these filled up."""
        return {**row, "branches": [self.answer(row["prompt_ids"], branch, max_length) for branch in row["branches"]]}

    def filled(self, ids: list[int]) -> int:
        """How many of the last ids are what the answer was filled up with."""
        count = next((place for place, id in enumerate(reversed(ids)) if id != self.filling), len(ids))
        ended = count < len(ids) and ids[-count - 1] in self.ends
        return count if ended else max(count - 1, 0)  # else the first of them is what ends the answer


def stretches(labels: list[int]) -> list[tuple[int, int]]:
    """Where the trained tokens stand together, each stretch as its start and end: [-100, 5, 6, -100, 7] has (1, 3) and (4, 5)."""
    found, place = [], 0
    for trained, same in groupby(labels, key=lambda label: label != IGNORE_INDEX):
        end = place + len(list(same))
        if trained:
            found.append((place, end))
        place = end
    return found


def prompt_length(record: Row, where: str = "a record") -> int:
    """How many of a record's tokens are its prompt. Raises UserError where its labels are not those of one answer that ends it."""
    found = stretches(record["labels"])
    if len(found) != 1 or found[0][1] != len(record["labels"]) or not found[0][0]:
        raise UserError(f"{where} is not one prompt and one answer behind it: make its rows with `Canvas.rows`")
    return found[0][0]


def denoised_size(row: Row, where: str) -> tuple[int, int]:
    """The tokens of a row's longest record, and the highest id. Raises UserError for one that is no prompt and its answer."""
    records = list(records_of(row))
    for record in records:
        prompt_length(record, where)
    return max(len(record["input_ids"]) for record in records), max(row["input_ids"])


def refuse_mask(rows: Iterable[Row], mask_token_id: int, mask_token: str) -> None:
    """Raise UserError where an answer says the mask token, which a model that fills in masks can never say."""
    if any(mask_token_id in row["labels"] for row in rows):
        raise UserError(f"answers contain the mask token {mask_token}, which could not be said any more: name another --mask_token")


def end_of_text_id(tokenizer: PreTrainedTokenizerBase, named: str | None = None) -> int:
    """The id that answers are filled up with: the token that is named, else the one that ends a text.

    That is the tokenizer's eos where turns end with another token (<|im_end|>, say), else a token by one of the usual names, else eos itself, as
    in LLaDA. Raises UserError for a name that is no token, and where there is none at all.
    """
    vocabulary = tokenizer.get_vocab()
    if named is not None:
        if named not in vocabulary:
            raise UserError(f"end_of_text {named!r} is no token of the tokenizer: name one that is")
        return vocabulary[named]
    eos = tokenizer.eos_token_id
    usual = next((vocabulary[name] for name in END_OF_TEXT if name in vocabulary), None)
    if eos is not None and set(end_of_turn_ids(tokenizer)) - {eos}:
        return eos
    if usual is None and eos is None:
        raise UserError("the tokenizer has no token that ends a text: name one, --end_of_text '</s>' say")
    return eos if usual is None else usual


def canvas_length(diffusion: Diffusion, asked: int | None = None) -> int:
    """To a multiple of how many tokens answers are filled up: what is asked for, else a block, or CANVAS. Raises UserError for parts of blocks."""
    block = diffusion.block_length
    length = (block or CANVAS) if asked is None else asked
    if block is not None and length % block:
        raise UserError(f"canvas {length} is not made of whole blocks of block_length {block}: make it a multiple, or leave it out")
    return length


def ends_of_answers(tokenizer: PreTrainedTokenizerBase, filling: int) -> tuple[int, ...]:
    """Every id that ends an answer: those that end a turn, and what it is filled up with."""
    return tuple(dict.fromkeys([*end_of_turn_ids(tokenizer), filling]))


def longest_canvas(rows: Iterable[Row]) -> int:
    """How many tokens the longest answer of some rows has, what it is filled up with included."""
    return max(len(record["labels"]) - prompt_length(record) for row in rows for record in records_of(row))
