"""Incremental detokenisation: the pieces join to the whole, and no character is shown half."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seodang.infer.text.detokenise import ByteLevelDetokeniser, WindowDetokeniser, detokeniser, whole_text

KOREAN = "훈장님, 나무는 영어로 tree입니다. 가족 👨‍👩‍👧‍👦 모두 안녕하세요! 🇰🇷 – naïve café"


def sentencepiece_like(kind: str) -> PreTrainedTokenizerFast:
    """Llama 2's way of decoding, or Metaspace's: a leading space per word, and bytes for what is not in the vocabulary."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁b", "a", "b", "▁나", "무", ".", "▁▁"]
    vocabulary = {token: i for i, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    if kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SENTENCEPIECE = {kind: sentencepiece_like(kind) for kind in ("llama", "metaspace")}


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
    assert "".join(pieces(tokenizer, ids)) == whole_text(tokenizer, ids)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_ids_of_sentencepiece_like_tokenizers_join_to_the_full_decode(kind, data):
    tokenizer = SENTENCEPIECE[kind]
    bytes_of_korean = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "훈".encode()]
    piece = st.one_of(st.just(bytes_of_korean), st.integers(0, 11).map(lambda i: [i]), st.integers(0, len(tokenizer) - 1).map(lambda i: [i]))
    ids = [id for part in data.draw(st.lists(piece, max_size=15)) for id in part]
    assert "".join(pieces(tokenizer, ids)) == whole_text(tokenizer, ids)


def test_bytes_that_are_no_character_are_shown_as_the_full_decode_shows_them(tokenizer):
    half = tokenizer("훈")["input_ids"][:-1]
    assert pieces(tokenizer, half) == [*([""] * len(half)), "\ufffd"]  # cut off at the very end
    broken = [*half, *tokenizer("a")["input_ids"]]
    assert "".join(pieces(tokenizer, broken)) == "\ufffda" == whole_text(tokenizer, broken)


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
