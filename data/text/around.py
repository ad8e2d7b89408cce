"""What a tokenizer puts around a text, asked of the tokenizer."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..errors import UserError

_PROBES = ("a", "0", "\n", "가")


@dataclass(frozen=True)
class Around:
    """Ids before a text and behind it: [CLS] and [SEP], <s>, or nothing."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def around(tokenizer: PreTrainedTokenizerBase) -> Around:
    """What the tokenizer puts around one text by itself. Raises UserError where that depends on the text.

    The same for each text, so that it may be put around pieces of ids: `build_inputs_with_special_tokens`, which fast tokenizers no longer have.
    """
    for probe in _PROBES:
        bare, whole = (tokenizer(probe, add_special_tokens=special, verbose=False)["input_ids"] for special in (False, True))
        if len(bare) and len(whole) - len(bare) == tokenizer.num_special_tokens_to_add():
            for start in range(len(whole) - len(bare) + 1):
                if whole[start : start + len(bare)] == bare:
                    return Around(tuple(whole[:start]), tuple(whole[start + len(bare) :]))
    raise UserError(f"{type(tokenizer).__name__} puts something around a text that is not the same for each: use another tokenizer")


def around_documents(tokenizer: PreTrainedTokenizerBase) -> Around:
    """What stands around a document that is read from left to right: what the tokenizer puts there, and behind it the end of text, once."""
    puts, end = around(tokenizer), tokenizer.eos_token_id
    return puts if end is None or end in puts.after else Around(puts.before, (*puts.after, end))
