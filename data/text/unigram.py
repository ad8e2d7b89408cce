"""The unigram model of a text's words (Kudo 2018, "Subword regularization"; SentencePiece): which pieces there are, and how likely each is.

A word is as likely as all the ways to make it of pieces are together, a way as the product of its pieces' probabilities. From many pieces, found
by how often they come, those are thrown out again and again without which the words stay likeliest, and between the rounds what is left is
learned by expectation and maximisation. All sums run in one order, so that the same words give the same pieces, to the last bit of their scores.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for the space before a word
LONGEST = 16  # characters of a piece
SEED = 10  # times as many pieces as are asked for to begin with
SHRINK = 0.75  # what a round leaves of the pieces
EXCESS = 1.1  # times as many pieces as are asked for are left before the last choice
WORDS = 200_000  # different words that are looked at, the commonest: all parts of each are counted
WORD = 48  # characters of a word that are looked at together
BATCH = 20_000  # words at a time
RARE = 0.5  # how often a piece must be used in a round of learning to stay


def unigram(words: Mapping[str, int], size: int, alphabet: Sequence[str], min_frequency: int = 2) -> list[tuple[str, float]]:
    """The pieces of words that come so often, with the logarithms of their probabilities, the likeliest first; at most `size`.

    Each character of the alphabet is a piece, and so is the space; no piece has other characters. A piece of several characters comes at least
    `min_frequency` times. There are fewer than `size` where the words do not give so many. Of more than WORDS different words the rarest are not looked at.
    """
    commonest = dict(sorted(words.items(), key=lambda each: (-each[1], each[0]))[:WORDS])
    parts = _parted(commonest, frozenset(alphabet))
    letters = [SPACE, *alphabet]
    pieces, counts = _seed(parts, letters, SEED * size, min_frequency)
    scores = np.log(counts / counts.sum())
    text = Words(list(parts), np.array(list(parts.values()), dtype=np.float64), pieces)
    apart = Words(pieces, np.ones(len(pieces)), pieces)  # the pieces as words, of which others may take the place
    must = np.arange(len(pieces)) < len(letters)
    while True:
        for _ in range(2):
            scores = _learned(text.expected(scores), scores, must)
        left = int(np.isfinite(scores).sum())
        if left <= EXCESS * size:
            break
        scores = _pruned(text, apart, scores, must, max(int(SHRINK * left), int(EXCESS * size)))
    scores = _learned(text.expected(scores), scores, must)
    order = sorted(np.flatnonzero(np.isfinite(scores)), key=lambda i: (not must[i], -scores[i], pieces[i]))[:size]
    return sorted(((pieces[i], float(scores[i])) for i in order), key=lambda each: (-each[1], each[0]))


class Words:
    """Words that come so often, and at each place in them the pieces that end there."""

    def __init__(self, words: Sequence[str], counts: np.ndarray, pieces: Sequence[str]):
        number = {piece: i for i, piece in enumerate(pieces)}
        order = sorted(range(len(words)), key=lambda i: -len(words[i]))  # those that are as long as a place stand before the others
        self.order, self.size = np.array(order, dtype=np.int64), len(pieces)
        self.counts = counts
        self.lengths = np.array([len(words[i]) for i in order], dtype=np.int64)
        self.first = np.append(0, np.cumsum(self.lengths))
        self.ending = np.full((self.first[-1], LONGEST), len(pieces), dtype=np.int32)  # by length; what is no piece has a number behind all
        place = 0
        for i in order:
            word = words[i]
            for end in range(1, len(word) + 1):
                for length in range(1, min(end, LONGEST) + 1):
                    if (found := number.get(word[end - length : end])) is not None:
                        self.ending[place, length - 1] = found
                place += 1

    def expected(self, scores: np.ndarray) -> np.ndarray:
        """How often each piece is used, on average over all ways to make the words by their probabilities: [pieces]."""
        scores, found = np.append(scores, -np.inf), np.zeros(self.size + 1)
        for batch in self._batches():
            total, before = self._forward(scores, batch, np.logaddexp)
            rows, longest = len(total), before.shape[1] - 1
            behind = np.full((rows, longest + 1), -np.inf)
            behind[np.arange(rows), self.lengths[batch]] = 0
            for end in range(longest, 0, -1):
                ending = self._ending(batch, end)
                for length in range(1, min(end, LONGEST) + 1):
                    ids, here = ending[:, length - 1], slice(len(ending))
                    with_piece = behind[here, end] + scores[ids]
                    weights = np.exp(before[here, end - length] + with_piece - total[here]) * self.counts[self.order[batch]][here]
                    found += np.bincount(ids, weights, self.size + 1)
                    behind[here, end - length] = np.logaddexp(behind[here, end - length], with_piece)
        return found[:-1]

    def best(self, scores: np.ndarray, whole: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The likeliest way to make each word, without those of one piece where not `whole`: some words' numbers at a time, how likely it is, and the
        numbers of its pieces, [words, pieces], behind all where there are no more."""
        scores = np.append(scores, -np.inf)
        for batch in self._batches():
            total, before = self._forward(scores, batch, np.maximum, whole)
            rows = np.arange(len(total))
            end, used = self.lengths[batch].copy(), []
            while (end > 0).any():
                steps = np.minimum(np.arange(1, LONGEST + 1), end[:, None])  # [words, lengths]
                ending = self.ending[self.first[batch][:, None] + np.maximum(end - 1, 0)[:, None], np.arange(LONGEST)]
                ways = before[rows[:, None], end[:, None] - steps] + scores[ending]
                ways[np.arange(1, LONGEST + 1) > end[:, None]] = -np.inf
                if not whole:
                    ways[(np.arange(1, LONGEST + 1) == self.lengths[batch][:, None])] = -np.inf
                chosen = ways.argmax(axis=1)
                alive = (end > 0) & np.isfinite(total)
                used.append(np.where(alive, ending[rows, chosen], self.size))
                end = np.where(alive, end - chosen - 1, 0)
            yield self.order[batch], total, np.stack(used, axis=1)

    def _batches(self) -> Iterator[slice]:
        return (slice(start, min(start + BATCH, len(self.order))) for start in range(0, len(self.order), BATCH))

    def _ending(self, batch: slice, end: int) -> np.ndarray:
        """The pieces, by length, that end at a place of those words of a batch that are so long."""
        count = int(np.searchsorted(-self.lengths[batch], -end, side="right"))
        return self.ending[self.first[batch][:count] + end - 1]

    def _forward(self, scores: np.ndarray, batch: slice, join: Callable, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """How likely each word of a batch is, and each of its beginnings, by all ways (`join` adds them) or by the likeliest: [words] and [words, places]."""
        lengths = self.lengths[batch]
        before = np.full((len(lengths), int(lengths[0]) + 1), -np.inf)
        before[:, 0] = 0
        for end in range(1, int(lengths[0]) + 1):
            ending = self._ending(batch, end)
            for length in range(1, min(end, LONGEST) + 1):
                way = before[: len(ending), end - length] + scores[ending[:, length - 1]]
                if not whole and length == end:
                    way[lengths[: len(ending)] == end] = -np.inf
                before[: len(ending), end] = join(before[: len(ending), end], way)
        return before[np.arange(len(lengths)), lengths], before


def _parted(words: Mapping[str, int], alphabet: frozenset[str]) -> dict[str, int]:
    """Words behind their spaces in order, parted where they are long or have other characters, with how often each part comes."""
    found: Counter[str] = Counter()
    for word, count in words.items():
        part = SPACE
        for letter in word:
            if letter not in alphabet or len(part) == WORD:
                found[part] += count
                part = ""
            part += letter if letter in alphabet else ""
        found[part] += count
    return {part: found[part] for part in sorted(found) if part}


def _seed(parts: Mapping[str, int], letters: Sequence[str], most: int, min_frequency: int) -> tuple[list[str], np.ndarray]:
    """The letters, and of what else comes in the parts that with which most characters are told."""
    found: Counter[str] = Counter()
    single: Counter[str] = Counter()
    for part, count in parts.items():
        for begin in range(len(part)):
            single[part[begin]] += count
            for end in range(begin + 2, min(begin + LONGEST, len(part)) + 1):
                found[part[begin:end]] += count
    often = [piece for piece, count in found.items() if count >= min_frequency]
    often = sorted(often, key=lambda piece: (-found[piece] * len(piece), piece))[:most]
    return [*letters, *often], np.array([*(max(single[letter], 1) for letter in letters), *(found[piece] * len(piece) for piece in often)], dtype=np.float64)


def _learned(expected: np.ndarray, scores: np.ndarray, must: np.ndarray) -> np.ndarray:
    """Scores by how often pieces are used; digamma takes from the rare ones, as by a prior of few pieces. Those hardly used are out, letters aside."""
    kept = np.isfinite(scores) & (must | (expected >= RARE))
    counts = torch.from_numpy(np.where(kept, np.maximum(expected, RARE), RARE))
    total = torch.tensor(float(counts.numpy()[kept].sum()), dtype=torch.float64)
    return np.where(kept, (torch.digamma(counts) - torch.digamma(total)).numpy(), -np.inf)


def _pruned(text: Words, apart: Words, scores: np.ndarray, must: np.ndarray, left: int) -> np.ndarray:
    """The scores of those pieces that the words would miss most, letters among them; of others minus infinity."""
    used = np.zeros(len(scores) + 1)
    for words, _, pieces in text.best(scores):
        used += np.bincount(pieces.ravel(), np.repeat(text.counts[words], pieces.shape[1]), len(used))
    used = used[:-1]
    total = used.sum()
    loss = np.full(len(scores), -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):  # pieces that are not used fall out below
        for numbers, likely, pieces in apart.best(scores, whole=False):
            count = (pieces < len(scores)).sum(axis=1)
            mine = used[numbers]
            added = np.log(np.append(used, 0.0)[pieces] + mine[:, None], where=pieces < len(scores), out=np.zeros(pieces.shape)).sum(axis=1)
            others = added - count * np.log(total + mine * np.maximum(count - 1, 0))
            lost = mine / total * (np.log(mine) - np.log(total) - others)
            loss[numbers] = np.where(likely > scores[numbers], -np.inf, np.where(np.isfinite(likely), lost, np.inf))
    loss[~np.isfinite(scores) | (used == 0)] = -np.inf
    loss[must] = np.inf
    order = np.lexsort((np.arange(len(loss)), -loss))[: max(left, int(must.sum()))]
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[loss[order] > -np.inf]] = True
    return np.where(kept, scores, -np.inf)
