"""Long texts are refused by a beginning of theirs, and nothing that fits is: by many kinds of tokenizers, with texts right at the limit."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seldom import full_but
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seodang.data import literal, long_text
from seodang.data.chat import prompt_ids, text_ids
from seodang.data.long_text import TooManyTokens

CORPUS = ["나는 오늘 학교에 갔다. ", "The cat sat on the mat, and ", " " * 64, "\n" * 16, "ab" * 16, "=" * 32, "\t" * 8, "café naïve 123456789 "] * 4
PIECES = [*CORPUS[:8], "a", " ", "\n", "é", "e\u0301", "\u0301", "👩‍👩‍👧", "<mask>", "<end>", " <mask>", "x" * 40, "unbelievable", "\u200b", "한", "a b", "  b"]
PATTERN = Regex(r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def fast(backend: Tokenizer, **known) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<end>"], **known)


def byte_level(**known) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.decoder = normalizers.NFC(), decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(PATTERN, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return fast(backend, **known)


def swallowing() -> PreTrainedTokenizerFast:
    """With a token that takes in all blanks around it."""
    return byte_level(mask_token=AddedToken("<mask>", lstrip=True, rstrip=True, special=True))


def merges_over_blanks() -> PreTrainedTokenizerFast:
    """Llama 2's way: the whole text is one word."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>"]))
    return fast(backend, unk_token="<unk>")


def likeliest_pieces() -> PreTrainedTokenizerFast:
    """T5's way: runs of blanks are one, and what is unknown is one token however long."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=120, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"))
    return fast(backend, unk_token="<unk>")


def word_pieces() -> PreTrainedTokenizerFast:
    """BERT's way: a word of more than 100 characters is unknown."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]"]))
    return fast(backend, unk_token="[UNK]")


KINDS = {each.__name__: each() for each in (byte_level, swallowing, merges_over_blanks, likeliest_pieces, word_pieces)}


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 120)), min_size=1, max_size=6), as_text=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_fits_is_refused_and_what_is_refused_does_not_fit(monkeypatch, kind, parts, as_text):
    """Beginnings are tried from 256 characters on, and every token counts."""
    for name, value in (("SURE", 256), ("JOINED", 0), ("LIKELY", 0)):
        monkeypatch.setattr(long_text, name, value)
    tokenizer, text = KINDS[kind], "".join(piece * times for piece, times in parts)
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert text_ids(tokenizer, text, most=count) == text_ids(tokenizer, text)
    if as_text:
        raw = text_ids(tokenizer, text, literal=True)
        assert text_ids(tokenizer, text, literal=True, most=len(raw)) == raw
    for most in (0, count // 3, count - 1):
        try:
            assert text_ids(tokenizer, text, most=most) == text_ids(tokenizer, text)
        except TooManyTokens as found:
            assert count > most and str(found) == f"more than {most} tokens"


LONG = {
    "letters": "a" * 100_000, "korean": "나는 오늘 학교에 갔다. " * 4_000, "english": "The cat sat on the mat, and then " * 2_000, "blanks": " " * 400_000,
    "lines": "\n" * 100_000, "special": "<|im_start|>" * 5_000, "blanks and letters": (" " * 300 + "a") * 800,
}  # fmt: skip


OFTEN = ("korean", "special", "blanks and letters", "parts")  # what is cut by words, at special tokens, and hardly at all


@pytest.mark.parametrize("text", full_but(OFTEN, LONG))
def test_a_long_text_is_encoded_as_ever_where_it_fits_and_refused_far_beyond(tokenizer, text):
    for as_text in (False, True):
        ids = text_ids(tokenizer, text, as_text)
        assert text_ids(tokenizer, text, as_text, most=len(ids)) == ids
        with pytest.raises(TooManyTokens, match=f"^more than {len(ids) // 20} tokens$"):
            text_ids(tokenizer, text, as_text, most=len(ids) // 20)


@pytest.mark.parametrize("content", full_but(OFTEN, {**LONG, "specials": "<|im_end|>a" * 1_000, "parts": " " * 100_000 + "<|im_end|>" + "나" * 20_000}))
def test_messages_at_the_limit_are_encoded_as_ever(tokenizer, content):
    messages = [{"role": "user", "content": content}]
    ids = prompt_ids(tokenizer, messages)
    assert prompt_ids(tokenizer, messages, most=len(ids)) == ids
    with pytest.raises(TooManyTokens, match=f"^more than {len(ids) // 20} tokens$"):
        prompt_ids(tokenizer, messages, most=len(ids) // 20)


@pytest.mark.parametrize("text, most, characters", [("a" * 2_000_000, 2048, 16_000), ("나" * 600_000, 2048, 16_000), (" " * 2_000_000, 2048, 180_000)])
def test_what_is_encoded_of_a_text_that_is_refused_hangs_on_what_may_be_read_and_not_on_its_length(tokenizer, monkeypatch, text, most, characters):
    """A blank's longest token has 64 of them, so that 131,072 may be read."""
    encoded, offsets = [], literal._offsets
    monkeypatch.setattr(literal, "_offsets", lambda tokenizer, as_text, text: (encoded.append(len(text)), offsets(tokenizer, as_text, text))[1])
    with pytest.raises(TooManyTokens):
        text_ids(tokenizer, text, most=most)
    assert 0 < sum(encoded) < characters
