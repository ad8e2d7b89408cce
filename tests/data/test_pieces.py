"""Texts encoded piece by piece have the ids of the whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seodang.data import literal
from seodang.data.chat import end_of_turn_ids
from seodang.data.literal import encode
from seodang.data.template import remember, unchanged

PARTS = st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "나무", " is", "  ", "\n", "\t", "don't", "e\u0301", "\u1112\u1161\u11ab", "<|im_", "3.14", "🌲", "a"])
WORDS = ["the tree is 나무 and 강 don't 3.14 e\u0301 \u1112\u1161\u11ab"] * 3


def built(model=None, trainer=trainers.BpeTrainer, normalizer=None, pre=None, tokens=(), **how):
    backend = Tokenizer(model or models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator(WORDS, trainer(vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    backend.add_special_tokens([AddedToken(content, normalized=False, special=True, **how) for content in ("<|im_start|>", "<|im_end|>", *tokens)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def pieces_of(tokenizer):
    return remember(tokenizer, "pieces", lambda: literal._pieces(tokenizer), of_template=False)


SPLIT = pre_tokenizers.Sequence([pre_tokenizers.Split("3", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
ALIKE = {
    "as GPT-2": built(),
    "composed letters": built(normalizer=normalizers.NFC()),
    "one token begins as another does": built(tokens=["<|im_", "<|im_start|>x"]),
    "several splits": built(pre=SPLIT, normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])),
}


@pytest.mark.parametrize("name", ALIKE)
@settings(max_examples=25, deadline=None)
@given(parts=st.lists(PARTS, max_size=8))
def test_pieces_have_the_ids_of_the_whole(name, parts):
    tokenizer, text = ALIKE[name], "".join(parts)
    assert pieces_of(tokenizer) is not None
    assert encode(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=25, deadline=None)
@given(parts=st.lists(PARTS, max_size=12))
def test_the_default_models_tokenizer_is_one_of_them(parts, _tokenizer):
    text = "".join(parts)
    assert pieces_of(_tokenizer) is not None
    assert encode(_tokenizer, text) == _tokenizer(text, add_special_tokens=False)["input_ids"]


OTHERS = {
    "a token that takes the space before it": built(lstrip=True),
    "a token that stands as a word": built(single_word=True),
    "a space before what comes first": built(pre=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "as Llama 2": built(pre=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "noise": built(model=models.BPE(dropout=0.5)),
    "unigrams": built(model=models.Unigram(), trainer=lambda **how: trainers.UnigramTrainer(show_progress=False)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_where_it_is_not_certain_a_text_is_encoded_whole(name):
    tokenizer, text = OTHERS[name], "the tree <|im_end|> is<|im_start|> 나무"
    assert pieces_of(tokenizer) is None
    if name != "noise":
        assert encode(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_is_not_encoded_again_with_its_answer(tokenizer, monkeypatch):
    asked, pieces = [], pieces_of(tokenizer)
    monkeypatch.setattr(pieces, "_encoded", lambda piece, encoded=pieces._encoded: asked.append(piece) or encoded(piece))
    prompt = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert encode(tokenizer, prompt + "A<|im_end|>")[: len(ids)] == ids if (ids := encode(tokenizer, prompt)) else False
    assert asked == ["user\nQ", "\n", "assistant\n", "assistant\nA"]
    monkeypatch.setattr(pieces, "LONGEST", 3)
    encode(tokenizer, "much"), encode(tokenizer, "much")
    assert asked[4:] == ["much"] * 2  # what is long is not kept


def test_a_token_added_later_is_seen_and_not_while_nothing_is_to_change(tokenizer):
    before = encode(tokenizer, "a<|new|>")
    with unchanged(tokenizer):
        with unchanged(tokenizer):
            end_of_turn_ids(tokenizer)
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|new|>"]})
        assert encode(tokenizer, "a<|new|>") == before  # the promise was broken
    assert encode(tokenizer, "a<|new|>") == tokenizer("a<|new|>", add_special_tokens=False)["input_ids"] != before
