"""Text corrupted for a model to mend (Devlin et al. 2019, "BERT"): what is hidden, what stands there instead, what is to be said.

A corruption is a function of a row and of what the seed, the epoch and the row's number draw, and of nothing else: a run that is resumed, other
batches and another number of processes see the same. Rows are corrupted before they become a batch, so that another corruption may change their lengths.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..labels import IGNORE_INDEX


@dataclass
class MaskingOptions:
    """How much of a text is hidden, and how."""

    mlm_probability: float = field(default=0.15, metadata={"help": "The share of tokens that are to be predicted."})
    mask_share: float = field(default=0.8, metadata={"help": "Of these, the share that the mask token stands for."})
    random_share: float = field(default=0.1, metadata={"help": "The share that another token, any, stands for; the others stay as they are."})
    whole_words: bool = field(default=False, metadata={"help": "Choose words instead of tokens, as the tokenizer parts words."})

    def __post_init__(self):
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"mlm_probability must be between 0 and 1, got {self.mlm_probability}: 0.15 is BERT's, 0.3 ModernBERT's")
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise UserError(
                f"mask_share {self.mask_share} and random_share {self.random_share} come to more than 1: what is left of 1 is the share of tokens that stay"
            )


@dataclass(frozen=True)
class Masking:
    """A row with some of its tokens hidden, each of them with its label."""

    options: MaskingOptions
    mask_token_id: int
    special_ids: np.ndarray  # never chosen, never put in another's place
    ordinary_ids: np.ndarray  # what may stand in another's place

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, options: MaskingOptions, vocab_size: int | None = None) -> "Masking":
        """By a tokenizer; its ids from `vocab_size` on, which the model has no embedding for, stand nowhere. Raises UserError where it has no mask token."""
        if tokenizer.mask_token_id is None:
            raise UserError(
                "the tokenizer has no mask token, by which masked text is taught: use an encoder's tokenizer (BERT, RoBERTa, ModernBERT), "
                "or teach from left to right, `seodang pretrain` or `seodang sft`"
            )
        if vocab_size is not None and tokenizer.mask_token_id >= vocab_size:
            raise UserError(f"the mask token {tokenizer.mask_token} ({tokenizer.mask_token_id}) is beyond the model's vocabulary of {vocab_size}: the tokenizer belongs to another model")
        special = np.unique(tokenizer.all_special_ids)
        known = np.unique(list(tokenizer.get_vocab().values()))
        ordinary = np.setdiff1d(known if vocab_size is None else known[known < vocab_size], special)
        return cls(options, tokenizer.mask_token_id, special, ordinary)

    def __call__(self, row: dict[str, Any], noise: np.random.Generator) -> dict[str, Any]:
        """The row with other `input_ids` and with `labels`, -100 where nothing is to be said; `word_starts`, which whole words need, are taken out."""
        ids = np.array(row["input_ids"])
        if self.options.whole_words and "word_starts" not in row:
            raise UserError("whole_words needs rows that know where words begin: encode the text with words=True")
        starts = np.array(row["word_starts"]) if self.options.whole_words else None
        seen = row.get("attention_mask")  # of a row that was padded before
        corrupted, labels = self.corrupt(ids, noise, starts, None if seen is None else np.array(seen, dtype=bool))
        kept = {name: value for name, value in row.items() if name not in ("word_starts", "input_ids")}
        return {"input_ids": corrupted.tolist(), "labels": labels.tolist(), **kept}

    def corrupt(
        self, ids: np.ndarray, noise: np.random.Generator, word_starts: np.ndarray | None = None, seen: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Other ids and labels, [tokens] both, of a row's ids.

        With `word_starts` a word is chosen whole, its special tokens aside; what becomes of each chosen token is drawn for it alone, as in BERT. Where
        `seen` is false nothing is chosen. A row that has a text has a label at least.
        """
        options = self.options
        choosing, replacing, which = noise.random((3, len(ids)))
        eligible = ~np.isin(ids, self.special_ids)
        if seen is not None:
            eligible &= seen
        begins = np.ones(len(ids), dtype=bool) if word_starts is None else np.append(True, word_starts[1:])[: len(ids)]
        drawn = choosing[begins][np.cumsum(begins) - 1]  # of each token's word
        chosen = eligible & (drawn < options.mlm_probability)
        if eligible.any() and not chosen.any():
            chosen = eligible & (drawn == drawn[eligible].min())
        labels = np.where(chosen, ids, IGNORE_INDEX)
        corrupted = np.where(chosen & (replacing < options.mask_share), self.mask_token_id, ids)
        randomly = chosen & (replacing >= options.mask_share) & (replacing < options.mask_share + options.random_share)
        corrupted[randomly] = self.ordinary_ids[(which[randomly] * len(self.ordinary_ids)).astype(np.int64)]
        return corrupted, labels


def noise_of(seed: int, epoch: int, row: int) -> np.random.Generator:
    """What is drawn for a row in an epoch; it hangs on nothing else. Seeds, epochs and numbers are not negative."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, row])))


def held_out_noise(row: int) -> np.random.Generator:
    """What is drawn for a held-out row, the same at each evaluation and for each seed."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([0x68656C64, row])))
