"""Keys of JSON objects: once each, in one spelling, and never begun where only a repeated one could come of it."""

import json
import random

import numpy as np
import pytest

from seodang.infer.constraints.grammar import over_bytes, source
from seodang.infer.constraints.json_keys import KeyTokens, Place, UniqueKeys, after
from seodang.infer.text.vocabulary import Vocabulary

FEW = {"type": "object", "patternProperties": {"^(ko|k|en)$": {"type": "null"}}, "additionalProperties": False}


def test_a_place_knows_the_keys_of_the_objects_that_are_open():
    place = after(Place(), b'{"a": ["x", "x"], "b\\"": {"a": {}, "c')
    assert place == Place((frozenset({b"a", b'b\\"'}), frozenset({b"a"})), text=b"c", is_key=True)
    place = after(place, b'": 1}, "')
    assert place == Place((frozenset({b"a", b'b\\"'}),), text=b"", is_key=True)
    assert after(place, b'a"') is None and after(place, b'b\\""') is None and after(place, b'b"') is not None
    assert after(place, b"b\\u0000") is None and after(place, b"b\\\\u0000") is not None
    assert after(place, b'z":"\\u0000') is not None  # in a value


def allowed_by(constraint: UniqueKeys, tokens: list[bytes | None]) -> list[bytes]:
    wrong = constraint.wrong(b"\xff" * len(tokens), len(tokens))
    return [token for id, token in enumerate(tokens) if id not in wrong]


def begun(vocabulary: Vocabulary, schema: dict, text: str) -> UniqueKeys:
    constraint = UniqueKeys(KeyTokens(vocabulary), over_bytes("json_schema", source("json_schema", schema)).deep_copy())
    for id in vocabulary.spell(text.encode()):
        constraint.accept(id)
    return constraint


def test_a_key_is_not_begun_where_only_repeated_ones_could_come_of_it():
    vocabulary = Vocabulary([bytes([byte]) for byte in range(32, 128)] + [b',"', b'"k', b"en", b',"ko'])

    def missing(text: str) -> set[bytes]:
        return {token for token in vocabulary.tokens} - set(allowed_by(begun(vocabulary, FEW, text), vocabulary.tokens))

    assert missing('{"') == set()
    assert missing('{"en":null') == set()
    assert missing('{"en":null,"') == {b"e", b"en"}
    assert missing('{"en":null,"ko":null,"') == {b"e", b"en"}  # k is left, and ko begins with it
    assert missing('{"en":null,"ko":null,"k') == {b"o"}
    assert missing('{"en":null,"k":null,"k') == {b'"', b'"k'}
    assert missing('{"ko":null,"k":null,') == {b'"k'}
    assert missing('{"en":null,"k":null,"ko":null') == {b",", b',"', b',"ko'}  # no name is left


def test_a_fork_goes_on_by_itself():
    vocabulary = Vocabulary([bytes([byte]) for byte in range(32, 128)])
    constraint = begun(vocabulary, FEW, '{"k":null,"')
    fork = constraint.fork()
    constraint.accept(vocabulary.spell(b"k")[0])
    assert constraint.takes(vocabulary.spell(b'o"')) and not constraint.takes(vocabulary.spell(b'"'))
    assert fork.takes(vocabulary.spell(b'ko"')) and fork.takes(vocabulary.spell(b'en"')) and not fork.takes(vocabulary.spell(b'k"'))


@pytest.mark.parametrize("schema", [{"type": "object"}, FEW])
def test_the_mask_is_what_each_token_tried_by_itself_says(wordy_tokenizer, schema):
    """At random places of random texts, of all tokens and not of the suspects alone."""
    vocabulary, draw = Vocabulary.of(wordy_tokenizer), random.Random(1)
    grammar = over_bytes("json_schema", source("json_schema", schema))
    for _ in range(20):
        names = draw.sample(["ko", "en", "k"], draw.randint(1, 3)) if schema is FEW else draw.choices(["a", "age", '"', "가", ""], k=3)
        text = json.dumps(dict.fromkeys(names), ensure_ascii=False, separators=(",", ":"))
        text = (text[: draw.randrange(1, len(text))]).rstrip("\\")
        constraint = begun(vocabulary, schema, text)
        allowed = np.zeros(len(vocabulary.tokens), dtype=bool)
        state = grammar.deep_copy()
        state.consume_tokens(list(text.encode()))
        for id, token in enumerate(vocabulary.tokens):
            allowed[id] = bool(token) and state.validate_tokens(list(token)) == len(token)
        slow = [id for id in allowed.nonzero()[0].tolist() if not constraint.takes([id])]
        assert sorted(constraint.wrong(np.packbits(allowed, bitorder="little").tobytes(), len(allowed))) == slow, text
