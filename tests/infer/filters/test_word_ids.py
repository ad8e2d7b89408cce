"""Words and breakers as the ids that a model would write."""

import pytest

from seodang.data.errors import UserError
from seodang.data.template import remember
from seodang.infer.filters.word_ids import KEPT, breaker_ids, word_ids


def test_a_word_is_found_behind_a_space_and_without_one(tokenizer):
    found = [tokenizer.convert_ids_to_tokens(ids) for ids in word_ids(tokenizer, ["badger", "hello"])]
    assert found == [["bad", "ger"], ["Ġbad", "ger"], ["hello"], ["Ġhello"]]


@pytest.mark.parametrize("text", ["I saw a badger, a badger", "badger", "(badger)\nbadger", "honeybadger"])
def test_the_ids_of_a_word_stand_in_the_ids_of_texts_that_have_it(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    places = [ids[i : i + len(word)] for word in word_ids(tokenizer, ["badger"]) for i in range(len(ids))]
    assert any(place in word_ids(tokenizer, ["badger"]) for place in places)


def test_breakers_are_all_tokens_that_contain_the_text(tokenizer, tiny_tokenizer):
    ids = breaker_ids(tokenizer, ["\n"])
    assert tokenizer.encode("\n")[0] in ids and tokenizer.encode("\n\n")[0] in ids
    assert all("\n" in tokenizer.decode([id]) for id in ids)
    assert sum("\n" in tokenizer.decode([id]) for id in range(len(tokenizer))) == len(ids)
    assert {tiny_tokenizer.decode([id]) for id in breaker_ids(tiny_tokenizer, [":", '"'])} == {":", '"'}


def test_a_tokenizer_remembers_some_sets_of_breakers_and_not_all(tiny_tokenizer):
    for n in range(KEPT + 10):
        breaker_ids(tiny_tokenizer, ["a"] * (n + 1))
    known = remember(tiny_tokenizer, "breakers", dict, of_template=False)
    assert len(known) == KEPT and ("a",) not in known and ("a",) * (KEPT + 10) in known


def test_a_breaker_that_no_token_contains_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="'ab', which no token contains"):
        breaker_ids(tiny_tokenizer, ["ab"])
