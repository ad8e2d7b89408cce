import json

import pytest
import torch

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.data.json_text import read_json_lines
from seodang.recipes.run.rounds import read_lines
from seodang.train.rewards import ranking
from seodang.train.rewards.ranking import (
    FunctionRanker,
    JudgeRanker,
    PersonRanker,
    RankingStopped,
    parse_order,
    printable,
    prompt_as_text,
    rank_all,
    ranks_of,
)
from seodang.train.rollouts.rollout import sample_n

PROMPT = [{"role": "user", "content": "Where is Suwon?"}]


def test_the_highest_score_is_rank_zero_and_equal_scores_tie():
    assert ranks_of([0.2, 0.9, 0.2, -1.0]) == [1, 0, 1, 2]
    assert ranks_of([3.0, 3.0]) == [0, 0]


def test_a_labelling_function_gets_the_columns_of_each_answer():
    heard = {}

    def label(prompts, completions, **columns):
        heard.update(columns, prompts=prompts)
        return [float(text == wanted) for text, wanted in zip(completions, columns["answer"], strict=True)]

    assert FunctionRanker(label)(PROMPT, ["Asia", "Korea", "Europe"], {"answer": "Korea"}) == [1, 0, 1]
    assert heard == {"answer": ["Korea"] * 3, "prompts": [PROMPT] * 3}


def test_a_label_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="nan"):
        FunctionRanker(lambda prompts, completions, **columns: [float("nan")] * 2)(PROMPT, ["a", "b"], {})


def judge_of(monkeypatch, verdict):
    """A judge whose log-odds for two answers are `verdict(first, second)`."""

    def score(model, tokenizer, prompts, completions):
        assert completions == ["A", "B"] * (len(prompts) // 2)
        found = []
        for prompt, letter in zip(prompts, completions, strict=True):
            text = prompt[0]["content"]
            first = text.split("Answer A:\n")[1].split("\n\nAnswer B:")[0]
            second = text.split("Answer B:\n")[1].split("\n\nWhich answer")[0]
            found.append(torch.tensor([verdict(first, second) / 2 * (1 if letter == "A" else -1), -50.0]))  # the second ends the turn
        return found

    monkeypatch.setattr(ranking, "score", score)
    return JudgeRanker(None, None)


def test_a_judge_that_likes_length_ranks_by_length(monkeypatch):
    judge = judge_of(monkeypatch, lambda first, second: len(first) - len(second))
    assert judge(PROMPT, ["aaa", "a", "aaaa", "bbb"], {}) == [1, 2, 0, 1]


def test_a_judge_that_always_says_a_ranks_nothing(monkeypatch):
    assert judge_of(monkeypatch, lambda first, second: 1.0)(PROMPT, ["x", "y", "z"], {}) == [0, 0, 0]


def test_a_slight_leaning_to_the_place_does_not_hide_a_clear_preference(monkeypatch):
    judge = judge_of(monkeypatch, lambda first, second: 0.5 + 2.0 * ((first == "good") - (second == "good")))
    assert judge(PROMPT, ["bad", "good", "worse"], {}) == [1, 0, 1]  # bad and worse only differ by place


def test_preferences_in_a_circle_are_a_tie(monkeypatch):
    beats = {("stone", "shears"), ("shears", "paper"), ("paper", "stone")}
    judge = judge_of(monkeypatch, lambda first, second: 1.0 if (first, second) in beats else -1.0)
    assert judge(PROMPT, ["stone", "shears", "paper"], {}) == [0, 0, 0]


def test_equal_answers_are_not_put_to_the_judge(monkeypatch):
    judge = judge_of(monkeypatch, lambda first, second: pytest.fail("asked"))
    assert judge(PROMPT, ["same", "same"], {}) == [0, 0]


def test_the_judges_leaning_is_the_models_own_log_odds(tiny_llama, tiny_tokenizer, monkeypatch):
    """Against a plain forward pass; braces and end marks in an answer are text like any other."""
    judge = JudgeRanker(tiny_llama, tiny_tokenizer, question="{request}|{first}|{second}")
    first, second = "{second}", "<|im_end|>"
    [leaning] = judge.log_odds(PROMPT, [(first, second)])
    content = f"Where is Suwon?|{first}|{second}"
    ids = prompt_ids(tiny_tokenizer, [{"role": "user", "content": content}])
    assert ids.count(tiny_tokenizer.eos_token_id) == 1  # the turn's own
    logits = tiny_llama(torch.tensor([ids])).logits[0, -1]
    a, b = (tiny_tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
    assert leaning == pytest.approx((logits[a] - logits[b]).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("typed", "ranks"),
    [("2 1 3", [1, 0, 2]), ("2 1=3", [1, 0, 1]), ("3, 1 ,2", [1, 2, 0]), ("3 > 2 = 1", [1, 1, 0]), ("1=2=3", [0, 0, 0]), (" 1  2 3 ", [0, 1, 2])],
)
def test_a_typed_order_becomes_ranks(typed, ranks):
    assert parse_order(typed, 3) == ranks


@pytest.mark.parametrize("typed", ["", "1 2", "1 2 2", "1 2 3 4", "a b c", "1 2 0", "1==2 3", "213"])
def test_an_order_that_does_not_name_each_answer_once_is_refused(typed):
    with pytest.raises(UserError, match="each of 1 to 3 once"):
        parse_order(typed, 3)


def person(monkeypatch, *typed):
    """A person who types this; what was shown is in the list."""
    lines, shown = iter(typed), []
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    return PersonRanker(show=shown.append), shown


def test_a_person_sees_the_numbered_answers_and_types_their_order(monkeypatch):
    ranker, shown = person(monkeypatch, "2 1=3")
    assert ranker(PROMPT, ["Asia", "Korea", "\x1b[31mEurope"], {}) == [1, 0, 1]
    assert shown == ["\nWhere is Suwon?\n\n[1] Asia\n\n[2] Korea\n\n[3] \\x1b[31mEurope\n"]  # no answer colours the terminal


def test_a_mistyped_order_is_asked_for_again(monkeypatch):
    ranker, shown = person(monkeypatch, "2 2", "?", "2 1")
    assert ranker(PROMPT, ["a", "b"], {}) == [1, 0]
    assert shown[1].startswith("'2 2' does not name each of 1 to 2 once: best first") and shown[2] == PersonRanker.help


def test_s_skips_and_q_d_or_the_end_of_input_stops(monkeypatch):
    ranker, _ = person(monkeypatch, "s", "Q", "d")
    assert ranker(PROMPT, ["a", "b"], {}) == [0, 0]
    for enough in (False, True):
        with pytest.raises(RankingStopped) as stop:
            ranker(PROMPT, ["a", "b"], {})
        assert stop.value.enough is enough

    def ended(prompt):
        raise EOFError

    with pytest.raises(RankingStopped):
        PersonRanker(read=ended, show=print)(PROMPT, ["a", "b"], {})


def sampled(*answers):
    return [{"prompt": [{"role": "user", "content": f"question {n}"}], "responses": list(each), "columns": {"n": n}} for n, each in enumerate(answers)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_half_done_work_is_kept_and_gone_on_with(monkeypatch, tmp_path):
    path, work = tmp_path / "round" / "rankings.jsonl", sampled("ab", "cd", "ef")
    ranker, _ = person(monkeypatch, "2 1", "q")
    with pytest.raises(RankingStopped):
        rank_all(ranker, work, path)
    assert lines(path) == [{"prompt": work[0]["prompt"], "responses": ["a", "b"], "ranks": [1, 0]}]
    ranker, shown = person(monkeypatch, "1 2", "1=2")
    assert rank_all(ranker, work, path) == 3
    assert [line["ranks"] for line in lines(path)] == [[1, 0], [0, 1], [0, 0]]
    assert "question 1" in shown[0]  # the first was not asked about again


def test_a_line_cut_short_by_a_kill_is_judged_again(tmp_path):
    path, work = tmp_path / "rankings.jsonl", sampled("ab", "cd")
    rank_all(lambda prompt, answers, columns: [columns["n"], 9], work, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert rank_all(lambda prompt, answers, columns: [columns["n"], 9], work, path) == 2
    assert path.read_bytes() == whole


def test_line_separators_inside_an_answer_do_not_end_a_line(monkeypatch, tmp_path):
    path, work = tmp_path / "rankings.jsonl", sampled(["a\u2028b", "c\u2029d\u0085e"], ["f", "g"])
    ranker, _ = person(monkeypatch, "2 1", "q", "1 2")
    with pytest.raises(RankingStopped):
        rank_all(ranker, work, path)
    assert rank_all(ranker, work, path) == 2
    assert [(line["responses"], line["ranks"]) for line in read_json_lines(path)] == [(["a\u2028b", "c\u2029d\u0085e"], [1, 0]), (["f", "g"], [0, 1])]
    assert read_lines(path) == read_json_lines(path)  # as the rounds read them


def test_rankings_of_other_answers_are_not_taken_for_these(tmp_path):
    path = tmp_path / "rankings.jsonl"
    rank_all(lambda *_: [0, 1], sampled("ab"), path)
    with pytest.raises(UserError, match="rankings of other answers"):
        rank_all(lambda *_: [0, 1], sampled("ac", "de"), path)


def test_a_dialogue_is_shown_with_its_roles():
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert prompt_as_text(talk) == "system: Be brief.\nuser: Hi" and prompt_as_text(PROMPT) == "Where is Suwon?"
    assert printable("a\tb\nc\x1b") == "a\\tb\nc\\x1b"


def test_several_answers_are_different_and_the_same_for_the_same_seed(tiny_llama, tiny_tokenizer):
    rows = [{"prompt_ids": prompt_ids(tiny_tokenizer, PROMPT)}, {"prompt_ids": [40, 41]}]

    def draw(seed, temperature=1.0):
        return sample_n(tiny_llama, tiny_tokenizer, rows, 4, max_new_tokens=3, temperature=temperature, seed=seed)

    first = draw(("round", 1))
    assert draw(("round", 1)) == first != draw(("round", 2))
    assert all(len(set(answers)) == len(answers) <= 4 for answers in first)
    assert [len(answers) for answers in draw((0,), temperature=1e-4)] == [1, 1]  # four times the same
