"""Stop strings: never shown, wherever the pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st

from seodang.infer.stop import StopStrings, overlap


def through(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    judge = StopStrings(stops)
    shown = [judge.push(piece) for piece in pieces]
    return [*shown, judge.flush()], judge.found


def test_a_stop_string_split_over_pieces_is_held_back_and_cut():
    assert through(["END"], ["so E", "N", "D and on"]) == (["so ", "", "", ""], "END")


def test_what_only_began_like_a_stop_string_is_shown_as_soon_as_that_is_sure():
    assert through(["END"], ["so E", "N", "T. E"]) == (["so ", "", "ENT. ", "E"], None)


def test_the_string_that_is_completed_first_ends_the_text():
    assert through(["abcd", "bc"], ["abcd"]) == (["a", ""], "bc")
    assert through(["abcd", "bc"], ["a", "b", "c", "d"]) == (["", "", "a", "", ""], "bc")
    assert through(["aab"], ["aaa", "b"]) == (["a", "", ""], "aab")


def test_overlap_is_the_longest_end_that_begins_the_string():
    assert overlap("xaba", "abab") == 3
    assert overlap("xyz", "abab") == 0
    assert overlap("abab", "abab") == 2  # the whole string would have been found


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 20)))
def test_how_the_text_is_cut_into_pieces_changes_nothing(text, stops, cuts):
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(bounds, bounds[1:])]
    shown, found = through(stops, pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert ("".join(shown), found) == (text, None)
    else:
        first = min((text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text)
        assert ("".join(shown), found) == (text[: first[1]], first[2])
