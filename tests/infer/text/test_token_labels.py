"""Names of tokens: what cannot be seen is written out."""

import pytest

from seodang.infer.text.token_labels import TokenLabels, seen, spelled


@pytest.mark.parametrize(
    "text, shown",
    [
        (" a b", "␣a␣b"), ("\n\n", "⏎⏎"), ("\t\r", "⇥␍"), ("수원", "수원"), ("\u200b", "<U+200B>"), ("\x07", "<U+0007>"), ("\u3000", "<U+3000>"),
        ("e\u0301", "e\u0301"), (" \u0301", "␣<U+0301>"), ("\ufe0f", "<U+FE0F>"), ("\u202e", "<U+202E>"), ("😀", "😀"), ("", ""),
    ],
)  # fmt: skip
def test_what_leaves_no_ink_gets_a_sign(text, shown):
    assert seen(text) == shown


@pytest.mark.parametrize(
    "text, shown",
    [(b"ab", "ab"), ("수".encode(), "수"), ("수".encode()[:2], "<0xEC><0x88>"), ("수".encode()[2:] + "원".encode(), "<0x98>원"), (b"\xff!", "<0xFF>!")],
)
def test_bytes_of_half_a_character_are_written_out(text, shown):
    assert spelled(text) == shown


def test_tokens_of_korean_are_bytes_alone_and_characters_together(tokenizer):
    names = TokenLabels(tokenizer)
    ids = tokenizer(" 수원은\n", add_special_tokens=False)["input_ids"]
    assert "".join(names(id) for id in ids) != names.of(ids) == "␣수원은⏎"
    assert any(names.unfinished(id) and names(id).startswith(("<0x", "␣<0x")) for id in ids)
    assert all(names(id) for id in range(len(tokenizer)))  # never empty


def test_special_tokens_have_their_own_names_and_ids_beyond_the_tokenizer_a_number(tokenizer):
    names = TokenLabels(tokenizer)
    assert names(tokenizer.convert_tokens_to_ids("<|im_end|>")) == "<|im_end|>"
    assert names(len(tokenizer) + 3) == f"<{len(tokenizer) + 3}>" and not names.unfinished(len(tokenizer) + 3)
    assert names.of([tokenizer.convert_tokens_to_ids("<|im_end|>"), len(tokenizer)]) == f"<|im_end|><{len(tokenizer)}>"
