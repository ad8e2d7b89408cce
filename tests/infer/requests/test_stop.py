"""Stops: never shown, wherever the pieces are cut."""

import re

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate, stream
from seodang.infer.engine.compat import from_vllm
from seodang.infer.requests.events import Committed
from seodang.infer.requests.stop import AnswerText, Stops, overlap, stop_pattern
from seodang.infer.text.detokenise import detokeniser


def through(stops: list[str], pieces: list[str], pattern: str | None = None, spared: int = 0) -> tuple[list[str], str | None]:
    """What is shown after each piece and at the end, and the stop; the first `spared` pieces come too early for one."""
    judge = Stops(stops, pattern and stop_pattern(pattern))
    shown = [judge.push(piece, number >= spared) for number, piece in enumerate(pieces)]
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


def test_a_match_split_over_pieces_is_held_back_and_cut():
    assert through([], ["so Q", "1", "2: and on"], r"Q\d+:") == (["so ", "", "", ""], "Q12:")
    assert through([], ["so Q", "1", "x Q"], r"Q\d+:") == (["so ", "", "Q1x ", "Q"], None)


def test_a_pattern_ends_the_text_with_the_character_that_completes_it():
    assert through([], ["a12"], r"\d+") == (["a", ""], "1")  # though it could go on
    assert through([], ["xab"], "abc|b") == (["x" + "a", ""], "b")  # abc began earlier, b was complete earlier


def test_a_pattern_looks_at_what_was_shown_before():
    assert through([], ["a", "b", "cb"], "(?<=c)b") == (["a", "b", "c", ""], "b")
    assert through([], ["xfoo", " foo"], r"\bfoo") == (["xfoo", " ", ""], "foo")
    assert through([], ["a", "b"], "^b") == (["a", "b", ""], None)


def test_a_string_and_a_pattern_that_end_together_cut_where_the_earlier_begins():
    assert through(["ab"], ["xab"], "xab|b") == (["", ""], "xab")
    assert through(["xab"], ["xab"], "b") == (["", ""], "xab")
    assert through(["abc"], ["ab", "c"], "b") == (["a", "", ""], "b")  # the pattern was complete first


PATTERNS = ["a+b", "ab|b", "(?<=a)b", "ab{2}a", "a$", r"b\b", "(?:ab)+c", "a(?!b)c", "b.*a", "(?=aa)ab*"]


@given(
    st.text("abc ", max_size=16), st.sampled_from(PATTERNS), st.lists(st.text("ab", min_size=1, max_size=3), max_size=1),
    st.lists(st.integers(0, 16)),
)  # fmt: skip
def test_how_the_text_is_cut_changes_nothing_for_patterns_either(text, pattern, stops, cuts):
    """The oracle: the first beginning of the text in which `re` finds the pattern, or which ends with a stop string."""
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown, found = through(stops, [text[a:b] for a, b in zip(bounds, bounds[1:])], pattern)
    for end in range(1, len(text) + 1):
        starts = [match.start()] if (match := re.compile(pattern).search(text, 0, end)) else []
        starts += [end - len(stop) for stop in stops if text.endswith(stop, 0, end)]
        if starts:
            assert ("".join(shown), found is None) == (text[: min(starts)], False)
            return
    assert ("".join(shown), found) == (text, None)


def test_a_pattern_that_is_wrong_or_matches_nothing_is_refused():
    with pytest.raises(UserError, match="no regular expression"):
        stop_pattern("a(")
    with pytest.raises(UserError, match="every answer would end at once"):
        stop_pattern("a*")


def test_the_callers_judge_sees_the_text_so_far_and_ends_the_answer(tiny_tokenizer):
    heard = []
    text = AnswerText(detokeniser(tiny_tokenizer), ["cd"], stop_when=lambda so_far: heard.append(so_far) or so_far.endswith("bc"))
    ids = tiny_tokenizer("abc")["input_ids"]
    assert [text.push(ids[0]), text.stopped] == ["a", False]
    fork = text.fork()
    assert [fork.push(ids[2]), fork.stopped] == ["", False]  # "c" could begin the stop string
    assert [text.push(ids[1]), text.push(ids[2]), text.stopped] == ["b", "c", True]
    assert heard == ["a", "ac", "ab", "abc"]
    assert [fork.push(tiny_tokenizer("d")["input_ids"][0]), fork.stopped] == ["", True]


def test_the_first_characters_of_an_answer_can_belong_to_the_prompt(tiny_tokenizer):
    text = AnswerText(detokeniser(tiny_tokenizer), ["bc"], skip=2)
    assert [text.push(id) for id in tiny_tokenizer("abcde")["input_ids"]] == ["", "", "c", "d", "e"]


def test_answers_end_at_the_match_and_never_show_it(tiny_llama, tiny_tokenizer):
    plain = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(max_new_tokens=24, ignore_eos=True))[0].text
    wanted = re.escape(plain[9]) + "(?s:.)" + re.escape(plain[11])
    end = next(m.start() for n in range(1, len(plain)) if (m := re.search(wanted, plain[:n])))
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, stop_regex=wanted)
    events = list(stream(tiny_llama, tiny_tokenizer, "abc", params))
    assert "".join(event.text for event in events if isinstance(event, Committed)) == plain[:end]
    assert events[-1].reason == "stop"


def test_each_answer_of_a_batch_is_judged_by_itself(tiny_llama, tiny_tokenizer):
    base = dict(max_new_tokens=20, ignore_eos=True, temperature=1.0, seed=3, num_return_sequences=4)
    free = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**base))
    judged = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**base, stop_when=lambda text: len(text) > 5 and text[-1] > "K"))
    for a, b in zip(free, judged):
        end = next((n for n in range(6, len(a.text) + 1) if a.text[n - 1] > "K"), None)
        assert (b.text, b.finish_reason) == ((a.text[:end], "stop") if end else (a.text, "length"))
    assert {result.finish_reason for result in judged} >= {"stop"}


def test_max_time_ends_an_answer_with_what_it_has(tiny_llama, tiny_tokenizer):
    whole, cut = generate(
        tiny_llama, tiny_tokenizer, ["abc"] * 2,
        [SamplingParams(max_new_tokens=20, ignore_eos=True, max_time=t) for t in (1000, 1e-9)],
    )  # fmt: skip
    assert (whole.finish_reason, len(whole.ids)) == ("length", 20)
    assert (cut.finish_reason, cut.ids) == ("time", whole.ids[:1])


def test_every_hypothesis_of_a_beam_search_is_judged_by_itself(tiny_llama, tiny_tokenizer):
    base = dict(num_beams=4, num_return_sequences=4, max_new_tokens=16, ignore_eos=True)
    for settings, cut in (({"stop_regex": "[4-9]."}, "[4-9]."), ({"stop_when": lambda text: bool(re.search("[4-9].", text))}, None)):
        results = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**base, **settings))
        stopped = [result for result in results if result.finish_reason == "stop"]
        assert stopped
        for result in stopped:
            whole = tiny_tokenizer.decode(result.ids)
            first = next(m for n in range(len(whole) + 1) if (m := re.search("[4-9].", whole[:n])))
            assert first.end() == len(whole) and result.text == (whole[: first.start()] if cut else whole)


def test_a_stop_that_is_complete_too_early_is_text_and_one_that_began_early_counts():
    assert through(["END"], ["so END", " and END."], spared=1) == (["so END", " and ", ""], "END")
    assert through(["END"], ["so E", "ND. E", "ND."], spared=2) == (["so ", "END. ", "", ""], "END")
    assert through(["aa"], ["aa", "a"], spared=1) == (["a", "", ""], "aa")  # its last character is the third
    assert through(["END"], ["so E", "ND"], spared=2) == (["so ", "END", ""], None)


def test_a_match_that_is_complete_too_early_is_text_and_one_that_began_early_counts():
    assert through([], ["Q1: Q", "2: x"], r"Q\d+:", spared=1) == (["Q1: ", "", ""], "Q2:")
    assert through([], ["12", "3 4"], r"\d+", spared=1) == (["", "", ""], "123")
    assert through([], ["12", " 4"], r"\d+", spared=1) == (["", "12 ", ""], "4")
    assert through(["x"], ["1x", "2"], r"\d", spared=1) == (["1x", "", ""], "2")


@given(
    st.text("abc ", max_size=12), st.sampled_from([*PATTERNS, "b+c?", "[ab]+"]), st.lists(st.text("ab", min_size=1, max_size=3), max_size=1),
    st.lists(st.integers(0, 12)), st.integers(0, 4),
)  # fmt: skip
def test_how_the_text_is_cut_changes_nothing_behind_a_least_length(text, pattern, stops, cuts, spared):
    """The oracle: the first beginning of the text, longer than what is spared, that has a match or a stop string which ends in the rest."""
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    early = bounds[min(spared, len(bounds) - 1)]
    shown, found = through(stops, [text[a:b] for a, b in zip(bounds, bounds[1:])], pattern, spared)
    for end in range(early + 1, len(text) + 1):
        matches = regex.compile(pattern).finditer(text, 0, end, overlapped=True)
        starts = [match.start() for match in matches if match.end() > early or not early][:1]
        starts += [end - len(stop) for stop in stops if text.endswith(stop, 0, end)]
        if starts:
            assert ("".join(shown), found is None) == (text[: min(starts)], False)
            return
    assert ("".join(shown), found) == (text, None)


def test_a_pattern_that_takes_too_long_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr("seodang.infer.requests.stop.SEARCH_SECONDS", 0.05)
    judge = Stops((), stop_pattern(r"(?s)(?:.|.)+(?<=\n)x"))
    with pytest.raises(UserError, match="takes more than 0.05 s behind 0 characters and before: write it so"):
        judge.push("a" * 60)


WAYS = {
    "greedy": {}, "sampled": {"temperature": 1.0, "seed": 4}, "beams": {"num_beams": 3}, "lookup": {"prompt_lookup_num_tokens": 4},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["stop", "stop_regex", "stop_when"])
def test_no_stop_of_the_callers_ends_an_answer_before_its_least_length(tiny_llama, tiny_tokenizer, way, kind):
    """A character a token: a stop that any character completes ends the answer with the first token beyond the least number."""
    stop = {"stop": list(map(chr, range(33, 127))), "stop_regex": "(?s).", "stop_when": bool}[kind]
    base = dict(max_new_tokens=12, suppress_tokens=[*range(4), *range(98, 128)], **WAYS[way])  # nothing but "!" to "~"
    for least in ({}, {"min_new_tokens": 5}, {"min_length": 8}, {"min_new_tokens": 2, "min_length": 8}):
        [result] = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**base, **least, **{kind: stop}))
        assert (result.finish_reason, len(result.ids)) == ("stop", 6 if least else 1)
        assert len(result.text) == len(result.ids) - (kind != "stop_when")


def test_vllms_least_number_of_tokens_holds_stop_strings_back(tiny_llama, tiny_tokenizer):
    [plain] = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(max_new_tokens=12, ignore_eos=True))
    stop = plain.text[3]
    asked = {"max_tokens": 12, "temperature": 0, "stop": [stop], "ignore_eos": True}
    [at_once] = generate(tiny_llama, tiny_tokenizer, ["abc"], from_vllm(asked))
    [held] = generate(tiny_llama, tiny_tokenizer, ["abc"], from_vllm(asked | {"min_tokens": 4}))
    assert at_once.text == plain.text[: plain.text.index(stop)]
    assert held.text == (plain.text[: plain.text.index(stop, 4)] if stop in plain.text[4:] else plain.text)
    assert len(held.text) >= 4  # the stop that the fourth token completes is text


def test_a_prefix_may_have_a_stop_in_it_that_is_too_early_to_count(tiny_llama, tiny_tokenizer):
    ask = lambda **more: SamplingParams(prefix="a.b", stop=".", max_new_tokens=8, ignore_eos=True, **more)
    with pytest.raises(UserError, match="completes a stop of the request's own"):
        generate(tiny_llama, tiny_tokenizer, ["abc"], ask())
    assert generate(tiny_llama, tiny_tokenizer, ["abc"], ask(min_new_tokens=3))[0].text.startswith("a.b")


def test_all_answers_of_a_request_share_the_time_that_its_pattern_may_take(monkeypatch):
    """By a clock that goes on by 4 ms wherever it is read: a push reads it four times or more, so that it takes 11 ms beyond the ordinary one, or more."""
    monkeypatch.setattr("seodang.infer.requests.stop.time.thread_time", iter(n * 0.004 for n in range(10_000)).__next__)
    pattern = stop_pattern("xyz")
    judges, tokens = [Stops((), pattern) for _ in range(4)], 0
    with pytest.raises(UserError, match="takes more than 0.25 s behind"):
        while True:
            judges[tokens % 4].push("b")
            tokens += 1
    assert 0.25 / 0.02 < tokens < 0.25 / 0.01  # by each answer's own it would be four times as many
    monkeypatch.undo()
    plain = stop_pattern(r"\d{4}-\d{2}-\d{2}\s")
    judge = Stops((), plain)
    for _ in range(2000):
        judge.push("on 2024-01-0")
    assert plain.left > 0.15


def test_a_pattern_that_is_long_or_repeats_too_much_is_refused():
    assert stop_pattern("x" * 256) and stop_pattern("(a{100}){1,100}b{1}c{0}")
    with pytest.raises(UserError, match="stop_regex has 257 characters, more than the 256"):
        stop_pattern("x" * 257)
    for source in ("(a{1000}){1000}", "((a{22}){22}){22}b", "(?x)((a{ 101 }){,100}){1,}"):  # of a million `a`, `regex` takes seconds and gigabytes
        with pytest.raises(UserError, match="has repetitions of .* times, more than the 10000"):
            stop_pattern(source)
