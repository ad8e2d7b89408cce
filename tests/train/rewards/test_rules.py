"""Rewards by hand-made cases, and what is refused."""

import math
import sys
from time import process_time

import pytest
import torch

from seodang.data.errors import UserError
from seodang.train.rewards import rules as rewards
from seodang.train.rewards.reward_function import check_columns
from seodang.train.rewards.rules import (
    CheckedReward,
    as_trl_reward,
    combined,
    contains,
    exact_answer,
    final_answer,
    format_match,
    length,
    parse_reward,
    parse_rewards,
)


def scores(reward, *completions, **columns):
    return reward([[{"role": "user", "content": "?"}]] * len(completions), list(completions), **columns)


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [
        ("72", "72", True),
        ("72", "48 / 2 = 24\n48 + 24 = 72\n#### 72", True),  # GSM8K's own column
        ("She sold 48 + 24 = 72 clips.\n#### 72", "#### 72", True),
        ("#### 71\nno, wait\n#### 72", "72", True),  # the last one counts
        ("1,000", "1000", True),
        ("#### $1,234.50", "1234.5", True),
        ("18.", "18", True),
        ("-3", "3", False),
        ("+3", "3.0", True),
        ("10,00", "1000", False),  # no thousands
        ("the answer is 72", "72", False),
        ("  Suwon\n City ", "Suwon City", True),
        ("suwon city", "Suwon City", False),
        ("1.0000000000000000001", "1", False),
        ("", "72", False),
        ("7", 7, True),
    ],
)
def test_exact_answer_compares_numbers_as_numbers_and_texts_with_white_space_folded(said, wanted, right):
    assert scores(exact_answer, said, answer=[wanted]) == [float(right)]


def test_what_stands_behind_the_last_mark_is_the_answer():
    assert final_answer("#### 71\n#### \n 72 \nbye") == 72 and final_answer("#### 71\n####") == "" and final_answer("a\n b") == "a b"
    started = process_time()
    assert final_answer("####" + " " * 100_000 + "x" + " " * 100_000 + "y") == "x y" and process_time() - started < 0.5


def test_format_must_match_the_whole_completion():
    assert scores(format_match(r"\d+ clips?"), "72 clips", "1 clip", "72 clips!", "so 72 clips") == [1, 1, 0, 0]
    with pytest.raises(UserError, match="not a regular expression"):
        format_match("(")


def test_a_pattern_that_does_not_come_to_an_end_is_stopped(monkeypatch):
    monkeypatch.setattr(rewards, "MATCH_SECONDS", 0.1)
    reward = format_match("(a|aa)+b")
    assert scores(reward, "aaab", "a") == [1, 0]
    with pytest.raises(UserError, match=r"'\(a\|aa\)\+b' was not done with 'a{60}c' after 0.1 seconds: rewrite it"):
        scores(reward, "a" * 60 + "c")


def test_length_is_one_at_the_target_and_falls_in_a_straight_line():
    assert scores(length(4), "a b c d", "a b", "a b c d e", "a b c d e f g h", "a b c d e f g h i", "") == [1, 0.5, 0.75, 0, 0, 0]
    assert scores(length(4, "characters"), "abcd", "ab", "한국어 ") == [1, 0.5, 1]
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match="above 0"):
            length(wrong)


def test_contains():
    assert scores(contains("not"), "I do not know", "I know") == [1, 0]


def test_a_reward_is_named_on_the_command_line():
    assert scores(parse_reward("length:2"), "a b") == [1]
    assert scores(parse_reward("length:2:characters"), "ab") == [1]
    assert scores(parse_reward("format:a:b+"), "a:bb", "a") == [1, 0]  # a colon belongs to the pattern
    assert scores(parse_reward("contains:x.py"), "look at x.py") == [1]
    assert parse_reward("exact_answer") is exact_answer
    named = [each.__name__ for each in parse_rewards(["length:2", "contains:a", "length:3", "length:4"])]
    assert named == ["length", "contains", "length_2", "length_3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lenght:12", "unknown reward 'lenght': did you mean length?"),
        ("politeness", "there are exact_answer, format:PATTERN"),
        ("length", "must be given as length:TARGET"),
        ("exact_answer:72", "must be given as exact_answer"),
        ("length:much", "'much' is not a number"),
        ("length:12:word", "did you mean words?"),
        ("contains:", "the text is empty"),
        ("nowhere/rewards.py:polite", "there is no file nowhere/rewards.py"),
        ("rewards.py", "path/to/file.py:function"),
    ],
)
def test_a_reward_mistyped_is_refused_with_the_remedy(text, message):
    with pytest.raises(UserError) as error:
        parse_reward(text)
    assert message in str(error.value)


def test_a_users_function_is_given_the_columns_that_it_takes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def near(completions, answer, prompts):\n    return [-abs(len(c) - a) for c, a in zip(completions, answer)]\n"
        "def every(prompts, completions, **columns):\n    return [len(columns)] * len(completions)\n"
        "async def later(prompts, completions):\n    return []\n"
    )
    near = parse_reward(f"{path}:near")
    assert scores(near, "abc", answer=[5], level=["easy"]) == [-2] and near.__name__ == "near"
    assert scores(parse_reward(f"{path}:every"), "abc", answer=[5], level=["easy"]) == [2]
    with pytest.raises(UserError, match="has no function naer: did you mean near"):
        parse_reward(f"{path}:naer")
    with pytest.raises(UserError, match="asynchronous"):
        parse_reward(f"{path}:later")


def test_a_users_file_may_define_dataclasses_and_one_that_fails_is_named(tmp_path):
    path, broken, absent = tmp_path / "json.py", tmp_path / "broken.py", tmp_path / "absent.py"  # json: no other module's place is taken
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Case:\n    text: str\n    wanted: str = 'a'\n"
        "def near(completions):\n    return [float(Case(text).text == Case(text).wanted) for text in completions]\n"
    )
    assert scores(parse_reward(f"{path}:near"), "a", "b") == [1, 0]
    assert sys.modules["json"].dumps([1]) == "[1]"
    broken.write_text("def near(completions)\n    return []\n")
    absent.write_text("\nimport no_such_module\n")
    with pytest.raises(UserError, match=r"broken.py cannot be executed: SyntaxError: .*line 1"):
        parse_reward(f"{broken}:near")
    with pytest.raises(UserError, match=r"absent.py cannot be executed: ModuleNotFoundError: No module named 'no_such_module' \(absent.py line 2\)"):
        parse_reward(f"{absent}:near")


ROWS = [{"columns": {"answer": "1", "level": 3}, "where": "a.jsonl line 1"}, {"columns": {"answer": "2"}, "where": "a.jsonl line 2"}]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions, solution: [], "needs the column solution, but the records have answer, level: add it"),
        (lambda prompts, completions, answr: [], "needs the column answr, .*: did you mean answer"),
        (lambda prompt, completions: [], "needs the column prompt, .*: did you mean prompts"),
        (lambda prompts, completions, level: [], None),  # some records have it, the others' entries are None
        (lambda prompts: [], "takes prompts, but not completions"),
        (lambda prompts, completions, /: [], "takes prompts by its place alone"),
        (combined([lambda prompts, completions, solution: []]), "needs the column solution"),
        (exact_answer, None),
        (lambda completions, level=None: [], None),
        (lambda completions, completion_ids, **columns: [], None),
        (len, "takes obj by its place alone"),
    ],
)
def test_a_functions_signature_is_checked_against_the_columns(function, message):
    if message is None:
        check_columns([function, CheckedReward(function)], ROWS, ["completion_ids"])
        return
    with pytest.raises(UserError, match=message):
        check_columns([function], ROWS)
    with pytest.raises(UserError, match=message):
        check_columns([CheckedReward(function)], ROWS)


def test_without_columns_a_rule_that_needs_one_says_so():
    with pytest.raises(UserError, match="exact_answer needs the column answer, but the records have no columns: add it"):
        check_columns([exact_answer], [{"columns": {}}, {}])
    with pytest.raises(UserError, match="exact_answer needs the column answer, which a.jsonl line 3 does not have: add it"):
        check_columns([CheckedReward(exact_answer)], [*ROWS, {"columns": {"level": 1}, "where": "a.jsonl line 3"}])


def test_a_function_that_raises_is_reported_with_its_name_and_the_prompt():
    prompts = [[{"role": "user", "content": text}] for text in ("how", "why")]

    def inverse(completions, number):
        return [1 / each for each in number]

    def together(completions):
        if len(completions) == 2:
            raise RuntimeError("two")
        return [0.0]

    with pytest.raises(UserError) as error:
        CheckedReward(inverse)(prompts, ["first", "second"], number=[1, 0])
    assert "reward inverse raised ZeroDivisionError: division by zero (test_rules.py line" in str(error.value)
    assert str(error.value).endswith("for the completion 'second' of the prompt 'why'") and isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserError, match="together raised RuntimeError: two .* for 2 completions together, the first the completion 'first' of the prompt 'how'"):
        CheckedReward(together)(prompts, ["first", "second"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, math.nan], "returned nan for the completion 'second' of the prompt 'why'"),
        ([-math.inf, 1.0], "returned -inf for the completion 'first'"),
        ([1.0, 1e39], "returned 1e+39 for the completion 'second' of the prompt 'why': it must be a finite number of at most 1.8e+19"),
        ([1.0, -2e19], "returned -2e+19"),  # float32 holds it, but not its square
        ([10**400, 1.0], "for the completion 'first' of the prompt 'how'"),
        ([1.0, None], "returned None for the completion 'second'"),
        ([1.0, "2.0"], "returned '2.0'"),
        ([1.0], "returned 1 rewards for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 rewards for 2 completions"),
        (None, "returned a NoneType"),
        (0.5, "returned a float"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_prompt_and_completion(returned, message):
    prompts = [[{"role": "user", "content": text}] for text in ("how", "why")]
    with pytest.raises(UserError) as error:
        CheckedReward(lambda completions: returned, "mine")(prompts, ["first", "second"])
    assert message in str(error.value) and "mine" in str(error.value)


def test_tensors_and_truth_values_are_numbers():
    assert scores(CheckedReward(lambda prompts, completions: torch.tensor([0.5, 2])), "a", "b") == [0.5, 2.0]
    assert scores(CheckedReward(lambda prompts, completions: [True, torch.tensor(3)]), "a", "b") == [1.0, 3.0]


def test_a_function_of_a_file_that_takes_completions_alone_is_given_them_alone(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def letters(completions, wanted):\n    return [text.count(letter) for text, letter in zip(completions, wanted)]\n", encoding="utf-8")
    [reward] = parse_rewards([f"{path}:letters"])
    assert reward(["p", "q"], ["aab", "ccc"], wanted=["a", "c"], other=[1, 2]) == [2.0, 3.0]


def test_rewards_combine_by_their_weights():
    both = combined([length(2), contains("x")], [2.0, -0.5])
    assert scores(both, "x y", "y", "x") == [2 - 0.5, 1.0, 1 - 0.5] and both.__name__ == "length+contains"
    assert scores(combined([length(2), contains("x")]), "x y") == [2.0]
    with pytest.raises(UserError, match="1 reward_weights for 2 rewards"):
        combined([length(2), contains("x")], [1.0])
    with pytest.raises(UserError, match="returned nan"):
        scores(combined([length(2), lambda prompts, completions, **columns: [math.nan]]), "x")


def test_trl_calls_a_reward_with_messages_and_it_reads_texts():
    reward = as_trl_reward(length(2))
    said = [[{"role": "assistant", "content": "a b"}], [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": None}]]
    assert reward.__name__ == "length"
    assert reward(prompts=[[]] * 3, completions=said, completion_ids=[[1]] * 3, trainer_state=None) == [1, 0.5, 0]
