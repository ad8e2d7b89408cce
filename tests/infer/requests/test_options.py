"""Settings declared once: their order, what is known of them, their names elsewhere; and the rules that judge values."""

import pytest

from seodang.infer.requests.options import CONFIG, OPENAI, option, options_of, settings, vocabulary
from seodang.infer.requests.rules import both, entries, fraction, listed, must_be, number, texts, whole


@settings
class Beams:
    beams: int = option(1, "Beams.", whole(1), example=2, same_in=(CONFIG,))


@settings
class Heat:
    heat: float | None = option(None, "Heat.", fraction, same_in=(CONFIG,), aliases={OPENAI: ("warmth", "temperature")})


@settings
class All(Beams, Heat):
    own: str = option("x", "Its own.")


def test_options_are_read_base_by_base_with_name_type_and_default():
    known = options_of(All)
    assert list(known) == ["beams", "heat", "own"]
    assert [(each.name, each.type, each.default) for each in known.values()] == [("beams", int, 1), ("heat", float | None, None), ("own", str, "x")]
    assert All(heat=0.5) == All(beams=1, heat=0.5, own="x") and known["beams"].example == 2
    assert Beams.__doc__ == "beams: Beams." and All.__doc__.splitlines()[-1] == "own: Its own."
    with pytest.raises(TypeError):
        All(2)  # by keyword alone


def test_a_vocabulary_has_our_names_by_theirs():
    assert vocabulary(All, CONFIG) == {"beams": "beams", "heat": "heat"}
    assert vocabulary(All, OPENAI) == {"warmth": "heat", "temperature": "heat"}


@pytest.mark.parametrize(
    ("rule", "good", "bad", "words"),
    [
        (whole(1), [1, 7], [0, True, 1.0, "1", None], "n must be a whole number from 1, got "),
        (number("in [0, 2)", lambda x: 0 <= x < 2), [0, 1.9], [2, float("nan"), False, "1"], "n must be in [0, 2), got "),
        (listed, [[], (1,), {2}], ["no", {1: 2}, 5], "n must be a list, got "),
        (texts, [[], ["a"]], [[""], [1], "a", None], "n must be "),
        (entries("a list of texts", lambda each: isinstance(each, str), ": give texts"), [["a"]], [["a", 5]], "n must be a list of texts, got the entry 5: give texts"),
        (both(listed, must_be("short", lambda value: len(value) < 2)), [[1]], [[1, 2], 5], "n must be "),
    ],
)  # fmt: skip
def test_a_rule_says_no_in_a_sentence_that_names_the_value(rule, good, bad, words):
    assert all(rule("n", value) is None for value in good)
    assert all(rule("n", value).startswith(words) for value in bad)
