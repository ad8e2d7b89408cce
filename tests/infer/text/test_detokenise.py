"""Incremental detokenisation: the pieces join to the whole, and no character is shown half, at the end neither."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.infer.text.detokenise import ByteLevelDetokeniser, WindowDetokeniser, detokeniser, whole_text

KOREAN = "훈장님, 나무는 영어로 tree입니다. 가족 👨‍👩‍👧‍👦 모두 안녕하세요! 🇰🇷 – naïve café"


def sentencepiece_like(kind: str) -> PreTrainedTokenizerFast:
    """Llama 2's way of decoding, or Metaspace's: a leading space per word, and bytes for what is not in the vocabulary."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁b", "a", "b", "▁나", "무", ".", "▁▁", "\ufffd"]
    vocabulary = {token: i for i, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    elif kind == "unknown":  # byte-level, and not to be recognised
        backend = Tokenizer(models.BPE({sign: id for id, sign in enumerate(["<unk>", "<s>", "</s>", *BYTES.values(), "ï¿½"])}, []))
        backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    else:
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


BYTES = bytes_to_unicode()  # what byte-level tokenizers write for each byte
BEGUN = {  # all bytes that begin a character and do not end it
    chr(code).encode()[:size] for code in range(0x80, 0x110000, 64) if not 0xD800 <= code < 0xE000 for size in range(1, len(chr(code).encode()))
}


def unfinished(data: bytes) -> int:
    """How many bytes at the end are the beginning of a character."""
    return next((size for size in (3, 2, 1) if data[-size:] in BEGUN and len(data) >= size), 0)


def slowly(tokenizer, ids: list[int]) -> str:
    """The text of ids: all at once, what is begun at the end left out."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    own = [id for id in ids if id not in special]
    names = [name or "" for name in tokenizer.convert_ids_to_tokens(own)]
    if tokenizer.convert_tokens_to_ids("<0xEC>") not in (None, tokenizer.unk_token_id):
        run = bytes()
        while len(run) < len(names) and names[-1 - len(run)].startswith("<0x"):
            run = bytes([int(names[-1 - len(run)][3:5], 16)]) + run
        return tokenizer.decode(own[: len(own) - unfinished(run)])
    of = {sign: byte for byte, sign in BYTES.items()}
    data = b"".join(bytes(of[sign] for sign in name) if set(name) <= set(of) else name.encode() for name in names)
    return data[: len(data) - unfinished(data)].decode(errors="replace")


SENTENCEPIECE = {kind: sentencepiece_like(kind) for kind in ("llama", "metaspace")}
UNKNOWN = sentencepiece_like("unknown")


SEOUL = "서울은 한국의 수도이다. 👨‍👩‍👧‍👦🇰🇷 끝"


def pieces(tokenizer, ids: list[int]) -> list[str]:
    stream = detokeniser(tokenizer)
    return [*(stream.push(id) for id in ids), stream.flush()]


def test_korean_and_emoji_never_show_as_replacement_characters(tokenizer):
    ids = tokenizer(KOREAN)["input_ids"]
    shown = pieces(tokenizer, ids)
    assert "".join(shown) == KOREAN
    assert not any("\ufffd" in piece for piece in shown)
    assert any(not piece for piece in shown)  # some characters do take several tokens
    assert shown[-1] == ""  # and nothing waits for the end


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_ids_of_the_real_tokenizer_join_to_the_full_decode(tokenizer, data):
    single_bytes = [id for id in range(400) if len(tokenizer.convert_ids_to_tokens(id)) == 1]
    id = st.one_of(st.integers(0, len(tokenizer) + 3), st.sampled_from(single_bytes), st.sampled_from(tokenizer.all_special_ids))
    ids = data.draw(st.lists(id, max_size=30))
    assert "".join(pieces(tokenizer, ids)) == whole_text(tokenizer, ids) == slowly(tokenizer, ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) in (whole_text(tokenizer, ids), whole_text(tokenizer, ids) + "\ufffd")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_ids_of_sentencepiece_like_tokenizers_join_to_the_full_decode(kind, data):
    tokenizer = SENTENCEPIECE[kind]
    bytes_of_korean = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "훈".encode()]
    piece = st.one_of(st.just(bytes_of_korean), st.integers(0, 12).map(lambda i: [i]), st.integers(0, len(tokenizer) - 1).map(lambda i: [i]))
    ids = [id for part in data.draw(st.lists(piece, max_size=15)) for id in part]
    assert "".join(pieces(tokenizer, ids)) == whole_text(tokenizer, ids) == slowly(tokenizer, ids)


def named(tokenizer, names) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


def test_a_text_cut_after_any_token_has_all_its_whole_characters_and_no_other(tokenizer):
    of_bytes = [(tokenizer, named(tokenizer, [BYTES[byte] for byte in SEOUL.encode()]))]
    of_bytes.append((UNKNOWN, named(UNKNOWN, [BYTES[byte] for byte in SEOUL.encode()])))
    of_bytes += [(each, named(each, [f"<0x{byte:02X}>" for byte in SEOUL.encode()])) for each in SENTENCEPIECE.values()]
    for each, ids in of_bytes:
        for count in range(len(ids) + 1):
            shown = pieces(each, ids[:count])
            assert "".join(shown) == SEOUL.encode()[:count].decode(errors="ignore") == whole_text(each, ids[:count])
    merged = tokenizer(SEOUL)["input_ids"]  # tokens that end one character and begin the next
    lengths = [len(tokenizer.convert_ids_to_tokens(id)) for id in merged]
    for count in range(len(merged) + 1):
        assert whole_text(tokenizer, merged[:count]) == SEOUL.encode()[: sum(lengths[:count])].decode(errors="ignore")


def test_bytes_that_are_no_character_stay_replaced_and_only_begun_ones_at_the_end_are_left_out(tokenizer):
    half = tokenizer("훈")["input_ids"][:-1]
    assert pieces(tokenizer, half) == [""] * (len(half) + 1)  # cut off at the very end
    broken = [*half, *tokenizer("a")["input_ids"]]
    assert "".join(pieces(tokenizer, broken)) == "\ufffda" == tokenizer.decode(broken)
    lone = named(tokenizer, [BYTES[0x80]])  # goes on from nothing
    assert "".join(pieces(tokenizer, [*broken, *lone])) == "\ufffda\ufffd"
    llama = SENTENCEPIECE["llama"]
    ids = named(llama, ["▁a", "<0xED>", "<0x9B>", "b", "<0x80>"])
    assert "".join(pieces(llama, ids)) == "a\ufffd\ufffdb\ufffd" == llama.decode(ids)


def test_the_replacement_character_itself_is_text_like_any_other(tokenizer):
    signs = [BYTES[byte] for byte in "a\ufffd".encode()]
    for each in (tokenizer, UNKNOWN):
        assert "".join(pieces(each, named(each, signs))) == "a\ufffd"
        assert "".join(pieces(each, named(each, signs[:-1]))) == "a"  # two of its three bytes
    assert "".join(pieces(UNKNOWN, named(UNKNOWN, ["a", "ï¿½"]))) == "a\ufffd"
    llama = SENTENCEPIECE["llama"]
    assert "".join(pieces(llama, named(llama, ["▁a", "<0xEF>", "<0xBF>", "<0xBD>"]))) == "a\ufffd"
    assert pieces(llama, named(llama, ["▁a", "\ufffd", "b"])) == ["a", "\ufffd", "b", ""]  # a piece of the vocabulary does not even wait


def test_byte_tokens_wait_until_their_run_is_over():
    tokenizer = SENTENCEPIECE["llama"]
    run = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "훈".encode()]
    ids = [4, *run, 6]  # "▁a", three bytes, "a"
    assert pieces(tokenizer, ids) == ["a", "", "", "", "훈a", ""]


def test_a_fork_goes_on_by_itself(tokenizer):
    ids = tokenizer("훈")["input_ids"]
    for kind in (ByteLevelDetokeniser, WindowDetokeniser):
        stream = kind(tokenizer)
        for id in ids[:-1]:
            stream.push(id)
        fork = stream.fork()
        assert fork.push(ids[-1]) == "훈"
        assert stream.push(tokenizer("!")["input_ids"][0]) + stream.flush() == "\ufffd!"


@pytest.mark.parametrize("kind", [ByteLevelDetokeniser, WindowDetokeniser])
def test_the_cost_of_a_token_does_not_grow_with_the_text(tokenizer, kind):
    ids = tokenizer(KOREAN * 20)["input_ids"]
    stream, decoded, of_one = kind(tokenizer), [], len(tokenizer(KOREAN)["input_ids"])
    decode, named = tokenizer.decode, tokenizer.convert_ids_to_tokens
    tokenizer.decode = lambda ids, **options: decoded.append(len(ids)) or decode(ids, **options)
    tokenizer.convert_ids_to_tokens = lambda ids: decoded.append(1 if isinstance(ids, int) else len(ids)) or named(ids)
    work = []
    for id in ids:
        decoded.clear()
        stream.push(id)
        work.append(sum(decoded))
    assert max(work[: 2 * of_one]) == max(work) <= 60 and sum(work[-of_one:]) <= 1.1 * sum(work[of_one : 2 * of_one])
    waiting = [value for value in vars(stream).values() if isinstance(value, bytes | list)]
    assert waiting and all(len(value) <= 8 for value in waiting)  # the text that is out is let go


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_sentinels_are_shown_where_a_span_begins_and_other_special_tokens_are_not(kind):
    size = {"bpe": 366, "unigram": 117, "wordpiece": 129}[kind]
    tokenizer = train_tokenizer(["read a big book"] * 2, TokenizerSettings(kind, size, family="encoder-decoder"))
    ids = tokenizer("<extra_id_0> a big<extra_id_1> book <extra_id_2>")["input_ids"]
    shown = tokenizer.decode(ids[:-1])
    assert [part.split() for part in shown.split("<extra_id_")] == [[], ["0>", "a", "big"], ["1>", "book"], ["2>"]] and ids[-1] == tokenizer.eos_token_id
    assert whole_text(tokenizer, [tokenizer.pad_token_id, *ids]) == shown
