"""The texts of encoder-decoders' tokenizers as they are streamed: no space is lost or doubled, wherever the text is cut."""

import codecs
import random

import pytest
from tokenizers import decoders
from transformers import T5Tokenizer
from translation_fixtures import FIRST, LANGUAGES, UNIGRAM

from seodang.data.seq2seq.encoding import beginning_ids, target_ids
from seodang.infer.text.detokenise import detokeniser, special_ids, whole_text
from seodang.infer.text.vocabulary import Vocabulary, leaves_out_first_space

KOREAN = "나무가  자란다. das ab , the small house 훈장님"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def with_bytes(falls_back: bool) -> T5Tokenizer:
    """T5's tokenizer with tokens for bytes, which it decodes as such, or, as T5's and mT5's own decoder, as the text of their names."""
    tokenizer = T5Tokenizer(vocab=[*FIRST, *UNIGRAM, *((name, -9.0) for name in BYTES)], extra_ids=2)
    if falls_back:
        tokenizer._tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


@pytest.fixture
def streamed_tokenizer(translation_tokenizer, t5_tokenizer):
    made = {"t5": lambda: t5_tokenizer, "bytes": lambda: with_bytes(True), "names": lambda: with_bytes(False)}
    return lambda kind: made[kind]() if kind in made else translation_tokenizer(kind)


def slowly(tokenizer, ids: list[int], falls_back: bool) -> str:
    """The text of ids decoded at once, sentinels shown, without the bytes of a character that is begun at its end."""
    own = [id for id in ids if id not in special_ids(tokenizer) or "extra_id" in tokenizer.convert_ids_to_tokens(id)]
    names, run = tokenizer.convert_ids_to_tokens(own), b""
    while falls_back and len(run) < len(names) and names[-1 - len(run)] in BYTES:
        run = bytes([BYTES.index(names[-1 - len(run)])]) + run
    waiting = codecs.getincrementaldecoder("utf-8")("replace")
    waiting.decode(run)
    begun = len(waiting.getstate()[0])
    return tokenizer.decode(own[: len(own) - begun], clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["t5", "bytes", "names", *LANGUAGES, "marian"])
def test_pieces_of_any_ids_join_to_the_whole_at_every_cut(streamed_tokenizer, kind):
    tokenizer, draw = streamed_tokenizer(kind), random.Random(0)
    for _ in range(60):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 12))]
        stream, text = detokeniser(tokenizer), ""
        for end, id in enumerate(ids, 1):
            text += stream.push(id)
            assert text + stream.fork().flush() == slowly(tokenizer, ids[:end], kind == "bytes"), tokenizer.convert_ids_to_tokens(ids[:end])


@pytest.mark.parametrize("kind", ["t5", "bytes", *LANGUAGES, "marian"])
def test_a_text_streams_as_it_is_decoded_behind_a_language_and_a_prefix(streamed_tokenizer, kind):
    tokenizer = streamed_tokenizer(kind)
    language = LANGUAGES.get(kind, (None, None))[1]
    ids = target_ids(tokenizer, KOREAN, target_lang=language)
    want = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stream = detokeniser(tokenizer)
    pieces = [*map(stream.push, ids), stream.flush()]
    assert "".join(pieces) == want and not want.startswith(" ") and "자란다. das ab" in want
    given = beginning_ids(tokenizer, "나무가", language)
    assert ids[: len(given)] == given and whole_text(tokenizer, given) == "나무가"
    assert "".join(pieces[len(given) :]) == want.removeprefix("나무가")


def test_half_characters_by_bytes_wait_for_their_other_half():
    tokenizer = with_bytes(True)
    ids = tokenizer.convert_tokens_to_ids(["▁das", "▁", *(f"<0x{byte:02X}>" for byte in "훈장".encode()), "▁Haus"])
    stream = detokeniser(tokenizer)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.flush() == "das 훈장 Haus" == tokenizer.decode(ids)
    assert all(not piece or "\ufffd" not in piece for piece in pieces)
    assert whole_text(tokenizer, ids[:-2]) == "das 훈" and whole_text(tokenizer, ids[:4]) == "das "  # half of one is no text
    assert Vocabulary.of(tokenizer).tokens[ids[2]] == "훈".encode()[:1]


def test_a_byte_that_the_decoder_writes_by_its_name_is_that_text():
    tokenizer = with_bytes(False)
    [das, byte] = tokenizer.convert_tokens_to_ids(["▁das", "<0xEC>"])
    assert whole_text(tokenizer, [das, byte]) == tokenizer.decode([das, byte]) == "das<0xEC>"
    assert Vocabulary.of(tokenizer).tokens[byte] == b"<0xEC>"


def test_which_tokenizers_leave_out_the_space_of_a_first_word(t5_tokenizer, tiny_tokenizer, tokenizer):
    assert leaves_out_first_space(t5_tokenizer)
    assert not leaves_out_first_space(tiny_tokenizer) and not leaves_out_first_space(tokenizer)
