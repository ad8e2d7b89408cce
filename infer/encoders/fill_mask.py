"""What may stand at the masks of a text, by an encoder: the likeliest fillings, of several masks together."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ..filters.logits import logprobs
from .encoder import Encoder, Question, Reading

WAYS = ("jointly", "in_turn")


@dataclass(frozen=True)
class Candidate:
    """A token that may stand at a mask: its id, its text, and its log-probability (natural) over the whole vocabulary."""

    id: int
    token: str
    logprob: float

    @property
    def probability(self) -> float:
        """Between 0 and 1."""
        return math.exp(self.logprob)


@dataclass(frozen=True)
class Filling:
    """A text whose masks are filled in: a candidate for each, in the order of the text, and the text, without what the tokenizer puts around one."""

    candidates: list[Candidate]
    text: str

    @property
    def logprob(self) -> float:
        """Of all masks together, in nats."""
        return math.fsum(each.logprob for each in self.candidates)

    @property
    def probability(self) -> float:
        """Of all masks together, between 0 and 1."""
        return math.exp(self.logprob)


@dataclass(frozen=True)
class MaskedText:
    """What was found for a text: its fillings, the likeliest first, and for each mask the likeliest candidates while all are masked."""

    fillings: list[Filling]
    marginals: list[list[Candidate]]


def fill_mask(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    top_k: int = 5,
    *,
    how: str = "jointly",
    targets: Sequence[str] | None = None,
) -> list[MaskedText]:
    """Return for each text the `top_k` likeliest ways to fill in its masks, which are spelled as the tokenizer spells them.

    With how="jointly" the text is read once, and a filling is as likely as the product of what each mask's token is given there: the best
    combinations, exactly. Tokens that go together only because of one another are not found so. With "in_turn" the masks are filled one after
    another: in every reading the mask whose likeliest token is the likeliest of all masks comes next, its `top_k` likeliest tokens are tried, and of
    all the texts so made the `top_k` likeliest are read again; a filling is as likely as the product of what its tokens were given as they came.
    Of one mask both are the same.

    `targets` are the tokens to choose from, each by its name in the vocabulary or as a text of one token; probabilities stay those over the whole
    vocabulary. There are fewer fillings than `top_k` where there are no more. Texts of one length are read together, and none is padded.
    Raises UserError, before anything is computed, for a model without a masked-language head, a text without a mask, with one that other tokenizers
    have, or longer than the model's positions, for `top_k` out of range, and for targets that are no single tokens.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise UserError(f"texts must be a list of texts, got {type(texts).__name__}: put the one text in a list")
    filler = MaskFiller(Encoder(model, tokenizer), top_k, how, targets)
    return filler.fill([filler.read(text, f"text {number}") for number, text in enumerate(texts, 1)])


class MaskFiller:
    """Fills in masks by the settings of `fill_mask`, which are checked here."""

    def __init__(self, encoder: Encoder, top_k: int = 5, how: str = "jointly", targets: Sequence[str] | None = None):
        self.encoder, self.top_k = encoder, check_top_k(top_k)
        self.find = {"jointly": self._jointly, "in_turn": self._in_turn}[check_how(how)]
        if top_k > encoder.known:
            raise UserError(f"top_k={top_k} is more than the {encoder.known} tokens that there are: lower it")
        self.choices = None if targets is None else torch.tensor(target_ids(encoder.tokenizer, targets, encoder.known))

    def read(self, text: str, where: str) -> Reading:
        """A text's reading; raises UserError, which begins with `where`, for one whose masks cannot be filled in."""
        reading = self.encoder.read(text, where)
        self.encoder.refuse_other_mask(text, where)
        if not self.encoder.masks(reading):
            own = self.encoder.tokenizer.mask_token
            raise UserError(f"{where} has no mask: write {own} where a token is to be filled in")
        return reading

    def fill(self, readings: Sequence[Reading]) -> list[MaskedText]:
        """What is found for each reading, in their order."""
        found = self.find(readings)
        return [found[place] for place in range(len(readings))]

    def _jointly(self, readings: Sequence[Reading]) -> dict[int, MaskedText]:
        found = {}
        for place, columns in self._candidates(dict(enumerate(readings))):
            picked = best_combinations([[each.logprob for each in column] for column in columns], self.top_k)
            combinations = [[column[at] for column, at in zip(columns, each)] for each in picked]
            found[place] = MaskedText([self._filling(readings[place], each) for each in combinations], columns)
        return found

    def _in_turn(self, readings: Sequence[Reading]) -> dict[int, MaskedText]:
        masks = [self.encoder.masks(reading) for reading in readings]
        texts: dict[int, list[dict[int, Candidate]]] = {number: [{}] for number in range(len(readings))}  # what is filled in, by place
        marginals: dict[int, list[list[Candidate]]] = {}
        while asked := {
            (number, at): filled_in(readings[number], one)
            for number, some in texts.items() for at, one in enumerate(some) if len(one) < len(masks[number])
        }:  # fmt: skip
            made: dict[int, dict[tuple[int, ...], dict[int, Candidate]]] = {}
            for (number, at), columns in self._candidates(asked):
                marginals.setdefault(number, columns)
                one = texts[number][at]
                for grown in next_tokens(one, [place for place in masks[number] if place not in one], columns):
                    key = tuple(grown[place].id if place in grown else -1 for place in masks[number])
                    before = made.setdefault(number, {}).get(key)  # the same text may come about in several orders: its likeliest counts
                    if before is None or likelihood(grown) > likelihood(before):
                        made[number][key] = grown
            for number, some in made.items():
                texts[number] = sorted(some.values(), key=likelihood, reverse=True)[: self.top_k]
        found = {}
        for number, some in texts.items():
            fillings = [self._filling(readings[number], [one[place] for place in masks[number]]) for one in some]
            found[number] = MaskedText(fillings, marginals[number])
        return found

    def _candidates(self, readings: Mapping) -> list[tuple]:
        """For each reading, by its key, what is likeliest at each of its masks, the likeliest first."""
        keys = sorted(readings, key=lambda key: len(readings[key].ids))
        questions = [Question(readings[key], self.encoder.masks(readings[key])) for key in keys]
        return [(key, self._likeliest(logits)) for key, (_, logits) in zip(keys, self.encoder.answers(questions), strict=True)]

    def _likeliest(self, logits: Tensor) -> list[list[Candidate]]:
        """The likeliest candidates of each mask; logits is [masks, vocab]."""
        found = logprobs(logits)
        found = found[:, : self.encoder.known] if self.choices is None else found[:, self.choices.to(found.device)]
        values, places = found.topk(min(self.top_k, found.shape[1]), dim=1)
        ids = places.cpu() if self.choices is None else self.choices[places.cpu()]
        return [[self._candidate(id, value) for id, value in zip(*row)] for row in zip(ids.tolist(), values.tolist())]

    def _candidate(self, id: int, logprob: float) -> Candidate:
        return Candidate(id, self.encoder.tokenizer.decode([id]), logprob)

    def _filling(self, reading: Reading, candidates: list[Candidate]) -> Filling:
        whole = filled_in(reading, dict(zip(self.encoder.masks(reading), candidates)))
        return Filling(candidates, self.encoder.tokenizer.decode([id for id, around in zip(whole.ids, reading.around) if not around]))


def filled_in(reading: Reading, candidates: Mapping[int, Candidate]) -> Reading:
    """The reading with candidates at their places."""
    return reading.with_tokens({place: each.id for place, each in candidates.items()})


def next_tokens(text: dict[int, Candidate], left: Sequence[int], columns: Sequence[Sequence[Candidate]]) -> Iterator[dict[int, Candidate]]:
    """What is filled in, with each candidate of the mask that is surest; `columns` are the candidates, the likeliest first, of the masks `left`."""
    surest = max(range(len(left)), key=lambda number: columns[number][0].logprob)
    for candidate in columns[surest]:
        yield {**text, left[surest]: candidate}


def likelihood(candidates: Mapping[int, Candidate]) -> float:
    """The log-probability of candidates together."""
    return math.fsum(each.logprob for each in candidates.values())


def best_combinations(columns: Sequence[Sequence[float]], count: int) -> list[tuple[int, ...]]:
    """Which values to take, one of each column, that the sums be the greatest, the greatest first; each column's values are given in falling order.

    From a combination one steps to those with the next value in its last column that is not at its first, or in a later one: so each is reached once,
    from one that is no less.

    >>> best_combinations([[0.0, -1.0], [0.0, -3.0]], 3)
    [(0, 0), (1, 0), (0, 1)]
    """

    def entry(places: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return -math.fsum(column[place] for column, place in zip(columns, places)), places

    waiting, found = [entry((0,) * len(columns))], []
    while waiting and len(found) < count:
        _, places = heapq.heappop(waiting)
        found.append(places)
        last = max((at for at, place in enumerate(places) if place), default=0)
        for at in range(last, len(columns)):
            if places[at] + 1 < len(columns[at]):
                heapq.heappush(waiting, entry((*places[:at], places[at] + 1, *places[at + 1 :])))
    return found


def check_how(how: str) -> str:
    """A way to fill in several masks; raises UserError for one that there is not."""
    if how not in WAYS:
        raise UserError(f"how must be {' or '.join(WAYS)}, got {how!r}")
    return how


def check_top_k(top_k: int) -> int:
    """How many fillings are wanted; raises UserError for a number out of range."""
    if type(top_k) is not int or top_k < 1:
        raise UserError(f"top_k must be a whole number from 1 on, got {top_k!r}")
    return top_k


def target_ids(tokenizer: PreTrainedTokenizerBase, targets: Sequence[str], known: int) -> list[int]:
    """The ids of the tokens to choose from, each once; raises UserError for a target that is not one token."""
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets or not all(isinstance(each, str) for each in targets):
        raise UserError(f"targets must be a list of texts, one at least, got {targets!r}")
    vocabulary, ids = tokenizer.get_vocab(), []
    for target in targets:
        found = [vocabulary[target]] if target in vocabulary else tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
        if len(found) != 1 or found[0] == tokenizer.unk_token_id != vocabulary.get(target) or found[0] >= known:
            told = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(found))) or "none"
            raise UserError(f"targets: {target!r} is no single token of this tokenizer ({told}), and a mask stands for one: give others")
        ids += found
    return list(dict.fromkeys(ids))
