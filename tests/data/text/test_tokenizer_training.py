import unicodedata

import pytest
from transformers import AutoTokenizer, BartConfig, BertConfig, LlamaConfig, T5Config

from seodang.data.errors import UserError
from seodang.data.literal import literal_encodings
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer

TEXTS = [
    "한국어 문장을 배우는 작은 모형입니다. 문장을 자주 읽으면 문장을 씁니다.",
    "def read(path):\n\treturn open(path).read()  # reads the whole file\n",
    "The teacher reads, the pupils read; reading is what the readers do. Éclair 😀 한국어",
] * 3
HARD = [
    "안녕하세요, 서당입니다! 가나다 뷁 힣", "😀👩‍👩‍👧🇰🇷 ✊🏽", "for i in range(3):\r\n\tx[i] **= 2  # ½\n\n\n", "\x00\x07\x1b[0m\x7f\x85\u200b\u2028",
    "  two  spaces, a tab\t, <|endoftext|> [MASK] ## Ġ", "é e\u0301 한글 ﬁ ＡＢＣ", "",
]  # fmt: skip
KINDS = {
    "bpe": TokenizerSettings(vocab_size=300), "bpe of an encoder": TokenizerSettings(vocab_size=300, family="encoder"),
    "wordpiece": TokenizerSettings("wordpiece", 150), "uncased": TokenizerSettings("wordpiece", 150, cased=False),
    "wordpiece of a decoder": TokenizerSettings("wordpiece", 150, family="decoder"), "unigram": TokenizerSettings("unigram", 181),
    "bpe of an encoder-decoder": TokenizerSettings(vocab_size=400, family="encoder-decoder"),
    "wordpiece of an encoder-decoder": TokenizerSettings("wordpiece", 250, family="encoder-decoder"), "unigram of a decoder": TokenizerSettings("unigram", 82, family="decoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_trained_twice_is_the_same_file_and_loads_as_any_architectures(tmp_path, name):
    files = []
    for time in ("one", "two"):  # the library hashes by another key each time
        tokenizer = train_tokenizer(TEXTS, KINDS[name])
        tokenizer.save_pretrained(tmp_path / time)
        files.append({path.name: path.read_bytes() for path in (tmp_path / time).iterdir()})
    assert files[0] == files[1]
    assert len(tokenizer) == KINDS[name].vocab_size and tokenizer.chat_template is None
    for config in (LlamaConfig(), BertConfig(), T5Config(), BartConfig()):
        config.save_pretrained(tmp_path / "one")
        loaded = AutoTokenizer.from_pretrained(tmp_path / "one")
        assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str() and loaded.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize("text", HARD)
def test_byte_level_decodes_what_it_encoded_exactly(text):
    tokenizer = train_tokenizer(TEXTS, KINDS["bpe"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *ids]


def test_with_a_prefix_space_the_first_word_is_as_one_behind_a_space():
    tokenizer = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=300, add_prefix_space=True))
    first, later = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the", "so the"))
    assert later[-len(first) :] == first and tokenizer.decode(first) == " the"


@pytest.mark.parametrize("cased", [True, False])
def test_word_pieces_decode_up_to_berts_normalisation_and_the_spaces_around_punctuation(cased):
    tokenizer = train_tokenizer(TEXTS, TokenizerSettings("wordpiece", 150, cased=cased))

    def folded(text):
        text = text if cased else "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        return "".join(unicodedata.normalize("NFC", text).split())

    for text in TEXTS[:2]:
        encoded = tokenizer(text)
        decoded = tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
        assert folded(decoded) == folded(text) and decoded == unicodedata.normalize("NFC", decoded)
        assert (encoded["input_ids"][0], encoded["input_ids"][-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.tokenize("E\u0301clair") == tokenizer.tokenize("Éclair") and tokenizer.unk_token_id not in tokenizer("Éclair 한국어")["input_ids"]
    assert (tokenizer.tokenize("THE") == tokenizer.tokenize("the")) is not cased
    assert tokenizer.tokenize("the 뷁 장문을씁니")[1] == "[UNK]" and tokenizer.unk_token not in tokenizer.tokenize("장문을씁니")  # known letters in another order
    assert tokenizer("가", "나", return_token_type_ids=True)["token_type_ids"] == [0, 0, 0, 1, 1]


def test_the_commonest_letters_are_kept_and_of_equally_common_ones_the_first():
    tokenizer = train_tokenizer(["bb d c a", "bb"], TokenizerSettings("wordpiece", 5 + 2 * 2 + 1, limit_alphabet=2, min_frequency=1))
    assert sorted(tokenizer.get_vocab()) == ["##a", "##b", "[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]", "a", "b", "bb"]
    assert tokenizer.tokenize("bb a c d") == ["bb", "a", "[UNK]", "[UNK]"]


def test_a_pair_is_merged_where_it_comes_often_enough_and_the_text_gives_no_more():
    texts = ["ab ab", "cd"]  # 256 bytes, 3 special tokens, and ab, which comes twice
    with pytest.raises(UserError, match=r"vocab_size 400: with pairs that come at least 2 times the text gives 260 tokens and no more: set --vocab_size 260"):
        train_tokenizer(texts, TokenizerSettings(vocab_size=400))
    assert "ab" in train_tokenizer(texts, TokenizerSettings(vocab_size=260)).get_vocab()
    with pytest.raises(UserError, match="gives 262 tokens"):  # and with those that come once Ġab and cd
        train_tokenizer(texts, TokenizerSettings(vocab_size=400, min_frequency=1))


def test_dropout_leaves_merges_out_and_the_text_as_it_is():
    tokenizer = train_tokenizer(TEXTS, TokenizerSettings(vocab_size=380, bpe_dropout=0.5))
    drawn = {tuple(tokenizer("reading 문장을")["input_ids"]) for _ in range(20)}
    assert len(drawn) > 1 and {tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn} == {"reading 문장을"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kind="sentences"), "kind must be bpe, wordpiece or unigram, got 'sentences'"),
        (dict(family="gpt"), "family must be decoder, encoder or encoder-decoder, got 'gpt'"),
        (dict(bpe_dropout=1.0), r"bpe_dropout must be in \[0, 1\), got 1.0"),
        (dict(kind="wordpiece", bpe_dropout=0.1), "bpe_dropout is of --kind bpe"),
        (dict(cased=False), "cased is of --kind wordpiece"),
        (dict(min_frequency=0), "min_frequency must be at least 1, got 0"),
        (dict(vocab_size=258), "vocab_size 258: the 256 bytes and 3 special tokens take 259 alone: set --vocab_size 259 or more"),
        (dict(kind="wordpiece", vocab_size=20), r"vocab_size 20: the \d+ characters.* or lower --limit_alphabet"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(TEXTS, TokenizerSettings(**settings))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_no_text_and_text_that_can_be_read_but_once_are_refused(kind):
    with pytest.raises(UserError, match="there is no text to learn a tokenizer from"):
        train_tokenizer(["", " \n"], TokenizerSettings(kind, 300))
    if kind == "wordpiece":
        with pytest.raises(ValueError, match="read twice"):
            train_tokenizer(iter(TEXTS), TokenizerSettings(kind, 300))


@pytest.mark.parametrize("name", ["bpe of an encoder-decoder", "wordpiece of an encoder-decoder", "unigram"])
def test_an_encoder_decoders_tokenizer_ends_each_text_and_ends_with_t5s_sentinels(name):
    tokenizer = train_tokenizer(TEXTS, KINDS[name])
    size = len(tokenizer)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"] == [tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token]
    assert tokenizer.convert_ids_to_tokens(list(range(size - 100, size))) == [f"<extra_id_{number}>" for number in range(99, -1, -1)]
    said, pair = tokenizer("the teacher")["input_ids"], tokenizer("the teacher", "the")["input_ids"]
    assert said.count(1) == 1 and said[-1] == 1 and pair[: len(said)] == said and pair.count(1) == 2 and pair[-1] == 1
    assert tokenizer("the <extra_id_7> teacher")["input_ids"].count(size - 8) == 1
    assert size - 8 not in literal_encodings(tokenizer, ["the <extra_id_7> teacher"])[0].ids  # in a text it is text
