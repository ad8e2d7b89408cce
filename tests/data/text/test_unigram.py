"""The unigram model against enumeration of all ways to make a word, and against the library's own trainer in how few tokens a text takes."""

import random
from itertools import combinations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from seodang.data.errors import UserError
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.data.text.unigram import LONGEST, SPACE, Words, _learned, _parted, unigram

PIECES = ["a", "b", "c", "ab", "bc", "abc", "ca", "cc"]
WORDS, COUNTS = ["abcab", "ccab", "a", "bca", "abc"], np.array([3.0, 1.0, 5.0, 2.0, 4.0])
SCORES = np.log(np.array([0.1, 0.05, 0.2, 0.2, 0.1, 0.15, 0.12, 0.08]))


def ways(word):
    """All ways to make a word of the pieces."""
    for count in range(len(word)):
        for cuts in combinations(range(1, len(word)), count):
            parts = [word[a:b] for a, b in zip((0, *cuts), (*cuts, len(word)))]
            if all(part in PIECES for part in parts):
                yield parts


def logarithm(parts):
    return sum(SCORES[PIECES.index(part)] for part in parts)


def test_how_often_pieces_are_used_is_the_average_over_all_ways():
    expected = np.zeros(len(PIECES))
    for word, count in zip(WORDS, COUNTS):
        total = sum(np.exp(logarithm(parts)) for parts in ways(word))
        for parts in ways(word):
            for part in parts:
                expected[PIECES.index(part)] += count * np.exp(logarithm(parts)) / total
    assert np.allclose(Words(WORDS, COUNTS, PIECES).expected(SCORES), expected, rtol=1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_the_likeliest_way_is_the_one_that_enumeration_finds(whole):
    found = {}
    for numbers, likely, pieces in Words(WORDS, COUNTS, PIECES).best(SCORES, whole):
        for number, score, row in zip(numbers, likely, pieces):
            found[WORDS[number]] = score, [PIECES[piece] for piece in row[::-1] if piece < len(PIECES)]
    for word in WORDS:
        choice = [parts for parts in ways(word) if whole or len(parts) > 1]
        score, parts = found[word]
        if not choice:
            assert score == -np.inf and not parts  # a letter has no other way
            continue
        assert parts == max(choice, key=logarithm) and score == pytest.approx(logarithm(parts), rel=1e-12)


def test_pieces_out_of_use_fall_out_and_letters_stay():
    must = np.array([True, True, False, False])
    scores = _learned(np.array([3.0, 0.0, 0.4, 2.0]), np.zeros(4), must)
    assert np.isfinite(scores).tolist() == [True, True, False, True]
    # digamma(3) = 3/2 - g, digamma(1/2) = -g - 2 log 2, digamma(2) = 1 - g and of their sum 5.5, with g = 0.5772...
    total = -np.euler_gamma - 2 * np.log(2) + 2 * sum(1 / odd for odd in (1, 3, 5, 7, 9))
    assert np.allclose(scores[[0, 1, 3]], [1.5 - np.euler_gamma - total, -np.euler_gamma - 2 * np.log(2) - total, 1 - np.euler_gamma - total])


def test_words_are_parted_at_characters_out_of_the_alphabet_and_where_they_are_long():
    parts = _parted({"ab": 2, "aXb": 3, "X": 1, "a" * 100: 1}, frozenset("ab"))
    assert parts == {SPACE + "ab": 2, SPACE + "a": 3, "b": 3, SPACE: 1, SPACE + "a" * 47: 1, "a" * 48: 1, "a" * 5: 1}


def corpus():
    draw = random.Random(0)
    stems = ["".join(draw.choices("가나다라마바사아자차", k=draw.randint(1, 4))) for _ in range(80)] + ["read", "write", "learn", "teach", "small", "walk"]
    ends = ["은", "는", "을", "에서", "입니다", "ing", "er", "s", "ed", ""]
    return [" ".join(draw.choice(stems) + draw.choice(ends) for _ in range(12)) for _ in range(300)]


def test_what_often_comes_together_becomes_a_piece_and_rare_pieces_give_way():
    words = {"walking": 40, "talking": 40, "talks": 30, "walks": 30, "king": 1}
    letters = sorted(set("".join(words)))
    pieces = dict(unigram(words, len(letters) + 1 + 4, letters))
    assert set(pieces) >= {*letters, SPACE} and len(pieces) == len(letters) + 5
    longest = {piece for piece in pieces if len(piece) > 2}
    assert longest & {f"{SPACE}talk", f"{SPACE}walk", f"{SPACE}walking", f"{SPACE}talking"} and not any("king" == piece for piece in pieces)


def test_of_very_many_words_the_commonest_are_looked_at(monkeypatch):
    words = {"abab": 5, "baba": 5, "cdcd": 4}
    assert {SPACE + word for word in words} <= dict(unigram(words, 12, "abcd")).keys()
    monkeypatch.setattr("seodang.data.text.unigram.WORDS", 2)
    assert {piece for piece, _ in unigram(words, 12, "abcd") if len(piece) > 1} == {SPACE + "abab", SPACE + "baba"}


def test_the_same_words_give_the_same_file_in_whatever_order_and_tokens_as_few_as_the_librarys():
    texts = corpus()
    ours = train_tokenizer(texts, TokenizerSettings("unigram", 350))
    again = train_tokenizer(texts[::-1], TokenizerSettings("unigram", 350))
    assert ours.backend_tokenizer.to_str() == again.backend_tokenizer.to_str() and len(ours) == 350
    library = Tokenizer(models.Unigram())
    library.normalizer, library.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    library.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=250, special_tokens=special, unk_token="<unk>", show_progress=False))
    count = sum(len(ours(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert count <= 1.02 * sum(len(library.encode(text).ids) for text in texts)


def test_a_text_comes_back_as_nfkc_has_it_with_one_space_between_words():
    tokenizer = train_tokenizer(corpus(), TokenizerSettings("unigram", 350))
    ids = tokenizer("가나  read\twriter ｒead")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == "가나 read writer read"
    assert tokenizer.unk_token_id in tokenizer("뷁")["input_ids"]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 349, 250]) == ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>"]
    assert max(map(len, tokenizer.get_vocab())) <= LONGEST


def test_vocabularies_that_the_text_cannot_give_are_refused():
    with pytest.raises(UserError, match=r"vocab_size 9,000: with parts of words that come at least 2 times the text gives [\d,]+ tokens and no more: set --vocab_size"):
        train_tokenizer(corpus(), TokenizerSettings("unigram", 9000))
    with pytest.raises(UserError, match=r"vocab_size 110: the \d+ characters, the space and 103 special tokens take \d+ alone: set --vocab_size \d+ or more, or lower --limit_alphabet"):
        train_tokenizer(corpus(), TokenizerSettings("unigram", 110))
    with pytest.raises(UserError, match="cased is of --kind wordpiece, unigram keeps letters"):
        TokenizerSettings("unigram", cased=False)
