"""A small tokenizer for Korean beside English: each Hangul syllable, digit and sign is a token, Latin words are pieces, and text comes back as it was."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import UserError

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
WITHIN = r"[a-z]+>[a-z]+: | ?[\p{Latin}\p{M}]+|."  # tokens lie within the name of a task, a Latin word with the space before it, or any one character


def syllable_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Learn the characters of texts and, by BPE, pieces of their Latin words, at most so many tokens; each text ends with `</s>`.

    `<s>` is there to begin an answer with. Decoding gives the text back, spaces included; a character that was not in the texts is `<unk>`. Raises
    UserError where there are too many of them.
    """
    texts = list(texts)
    alphabet = sorted(set().union(*texts))
    if len(SPECIAL) + len(alphabet) > vocab_size:
        raise UserError(f"vocab_size {vocab_size}: the text has {len(alphabet)} different characters, give {len(SPECIAL) + len(alphabet)} or more")
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WITHIN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    end = SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.token_to_id(end))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
