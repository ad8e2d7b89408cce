"""Texts, alone or in pairs, to what an encoder reads: special tokens where the tokenizer puts them, and no more tokens than there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import UserError

CUTS = ("right", "middle", "left")


@dataclass(frozen=True)
class EncodedText:
    """What the model reads, and how many tokens the text would have had in whole."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    whole: int

    @property
    def truncated(self) -> bool:
        """Whether something was cut away."""
        return self.whole > len(self.input_ids)


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer, at most how many tokens a text may have (None: any number), and where a longer one is cut.

    `cut` is the side that is lost: right, left, or the middle, so that beginning and end stay (Sun et al. 2019, "How to Fine-Tune BERT for Text
    Classification", head+tail). Of a pair the longer text is cut first, as transformers' longest_first. Raises UserError for another cut, and
    for no room beside the special tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    cut: str = "right"

    def __post_init__(self):
        if self.cut not in CUTS:
            raise UserError(f"cut must be {', '.join(CUTS[:-1])} or {CUTS[-1]}, got {self.cut!r}")
        if self.max_length is not None and self.max_length <= (least := self.tokenizer.num_special_tokens_to_add(pair=True)):
            raise UserError(f"max_length must be more than the {least} special tokens of a pair, got {self.max_length}")
        if not self.tokenizer.is_fast:
            raise UserError(f"{type(self.tokenizer).__name__} does not tell which tokens are special: use a fast tokenizer")

    def check_pairs(self) -> None:
        """Raise UserError where the tokenizer puts nothing between the texts of a pair."""
        add = self.tokenizer.num_special_tokens_to_add
        if add(pair=True) == add(pair=False):
            raise UserError("this model's tokenizer puts nothing between the two texts of a pair: use an encoder, or join the texts in one column yourself")

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[EncodedText]:
        """Encode texts, each with its pair where there are any."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), None if pairs is None else list(pairs), verbose=False)
        kinds = found.get("token_type_ids")
        return [self._cut(ids, kinds and kinds[place], found.sequence_ids(place)) for place, ids in enumerate(found["input_ids"])]

    def _cut(self, ids: list[int], kinds: list[int] | None, sides: list[int | None]) -> EncodedText:
        whole = len(ids)
        if self.max_length is None or whole <= self.max_length:
            return EncodedText(ids, kinds, whole)
        places = [[place for place, side in enumerate(sides) if side == which] for which in (0, 1)]
        first, second = shared_room(len(places[0]), len(places[1]), self.max_length - (whole - len(places[0]) - len(places[1])))
        lost = {*lost_places(places[0], first, self.cut), *lost_places(places[1], second, self.cut)}
        kept = [place for place in range(whole) if place not in lost]
        return EncodedText([ids[place] for place in kept], kinds and [kinds[place] for place in kept], whole)


def shared_room(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens each of two texts keeps, which together are too long: the longer is cut until both are of a length, and of two alike the first.

    >>> shared_room(10, 3, 8), shared_room(10, 9, 9)
    ((5, 3), (5, 4))
    """
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (longer, shorter) if first > second else (shorter, longer)


def lost_places(places: Sequence[int], keep: int, cut: str) -> Sequence[int]:
    """Which of a text's places go where so many are kept."""
    if cut == "left":
        return places[: len(places) - keep]
    begin = keep if cut == "right" else keep - keep // 2
    return places[begin : len(places) - (keep - begin)]
