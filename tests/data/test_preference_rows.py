import pytest

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.data.formats import to_example
from seodang.data.labels import prepare
from seodang.data.preference_rows import PreferenceCounts, preference_pairs, prepare_preferences, prepare_prompts, prepare_unpaired
from seodang.data.preferences import PromptExample, RankedPreference, UnpairedPreference


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def ranked(prompt, *answers, ranks=(0, 1), **more):
    return RankedPreference([user(prompt)], [said(answer) for answer in answers], list(ranks), **more)


def ids(text):
    """Ids under the tiny tokenizer, `<` and `>` for the tokens that begin and end a turn; it has no white space."""
    return [{"<": 3, ">": 2}.get(letter, ord(letter) - 29) for letter in text]


def test_a_row_is_the_prompt_once_and_each_answer_up_to_its_end(tiny_tokenizer):
    example = ranked("Q", "Yes", "No", "Eh", ranks=(1, 0, 1), margin=0.5, where="a.jsonl line 1")
    rows, counts = prepare_preferences([example], tiny_tokenizer, max_length=64)
    prompt, branches = ids("<userQ><assistant"), [ids("Yes>"), ids("No>"), ids("Eh>")]
    assert rows == [{"prompt_ids": prompt, "branches": branches, "ranks": [1, 0, 1], "where": "a.jsonl line 1", "margin": 0.5}]
    assert counts == PreferenceCounts(records=1, kept=1, rows=1, answers=3, pairs=2, tokens=17 + 10, answer_tokens=10)
    assert counts.lines() == ["records         1 read, 1 kept in 1 rows, 2 pairs of 3 answers", "tokens          27, 10 of them in answers (37.0%)"]


@pytest.mark.parametrize("texts", [("수도는 어디인가요?", "서울입니다 😀.", "몰라요."), ("<|im_end|>?", "a <|im_start|> b", "<|im_end|>")])
def test_answers_have_the_ids_that_teaching_gives_them_behind_generations_prompt(tokenizer, texts):
    prompt, *answers = texts
    [row], _ = prepare_preferences([ranked(prompt, *answers)], tokenizer, max_length=256)
    assert row["prompt_ids"] == prompt_ids(tokenizer, [user(prompt)])
    for answer, branch in zip(answers, row["branches"], strict=True):
        [taught], _ = prepare([to_example({"prompt": prompt, "completion": answer})], tokenizer, max_length=256)
        assert row["prompt_ids"] + branch == taught["input_ids"]
        assert branch == [label for label in taught["labels"] if label != -100] and branch[-1] == tokenizer.eos_token_id


def test_pairs_of_four_answers_are_the_ordered_ones():
    assert preference_pairs([2, 0, 2, 1]) == [(1, 0), (3, 0), (1, 2), (1, 3), (3, 2)]
    assert preference_pairs([1, 1]) == [] and preference_pairs([]) == []


UNUSABLE = [
    (ranked("Q", "A", "A"), "identical answers"),
    (ranked("Q", "A", " \n"), "empty answer"),
    (ranked("Q", "", "A"), "empty answer"),
    (ranked("Q", "A", "B", ranks=(1, 1)), "all answers rank the same"),
    (ranked("Q", "A", ranks=(0,)), "fewer than two answers"),
    (ranked("Q", "A", "B", ranks=(0, 0), flaw="chosen and rejected differ before their last answers"), "chosen and rejected differ before their last answers"),
    (ranked("Q", "A", "B" * 70), "answer longer than max_length"),
]


@pytest.mark.parametrize("example, reason", UNUSABLE)
def test_a_record_without_a_pair_is_dropped_and_counted_or_refused_by_its_place(tiny_tokenizer, example, reason):
    example.where = "a.jsonl line 2"
    rows, counts = prepare_preferences([ranked("Q", "A", "B"), example], tiny_tokenizer, max_length=64)
    assert len(rows) == 1 and counts.dropped == {reason: 1} and counts.left_out == {} and counts.records == 2
    assert f"dropped         1 x {reason}" in counts.lines()
    with pytest.raises(UserError, match=f"a.jsonl line 2: {reason}.*--unusable drop"):
        prepare_preferences([example], tiny_tokenizer, max_length=64, unusable="error")
    with pytest.raises(UserError, match=f"none of the 1 records can be used: 1 x {reason}"):
        prepare_preferences([example], tiny_tokenizer, max_length=64)


@pytest.mark.parametrize("unusable", ["drop", "error"])
def test_of_several_answers_the_usable_ones_stay(tiny_tokenizer, unusable):
    answers, ranks = ["A", "", "B", "A", "C" * 60, "D", "D"], [0, 1, 2, 0, 3, 1, 2]
    [row], counts = prepare_preferences([ranked("Q", *answers, ranks=ranks)], tiny_tokenizer, max_length=64, unusable=unusable)
    assert row["branches"] == [ids("A>"), ids("B>")] and row["ranks"] == [0, 2]  # of the two A the first; what D is worth is not known
    assert counts.dropped == {} and counts.left_out == {
        "empty answer": 1, "identical answers": 3, "no room for the answer beside the system turn and the template": 1,
    }  # fmt: skip
    assert "left out        1 x empty answer, beside answers that are kept" in counts.lines()


def test_the_longest_answer_decides_how_much_context_all_of_them_lose(tiny_tokenizer):
    prompt = [user("first"), said("one"), user("secondquestion")]
    answers = [said("short"), said("a" * 20)]
    whole = ids("<userfirst><assistantone><usersecondquestion><assistant")
    last = ids("<usersecondquestion><assistant")
    for max_length, kept, truncated in [(len(whole) + 21, whole, 0), (len(whole) + 20, last, 1), (len(last) + 21, last, 1)]:
        [row], counts = prepare_preferences([RankedPreference(prompt, answers, [0, 1])], tiny_tokenizer, max_length=max_length)
        assert row["prompt_ids"] == kept and row["branches"] == [ids("short>"), ids("a" * 20 + ">")]
        assert counts.truncated == truncated
    [row], counts = prepare_preferences([RankedPreference(prompt, answers, [0, 1])], tiny_tokenizer, max_length=len(last) + 16)
    assert row["prompt_ids"] == ids("<userdquestion><assistant")  # five letters fewer
    [row], counts = prepare_preferences([RankedPreference(prompt, answers, [0, 1])], tiny_tokenizer, max_length=None)
    assert row["prompt_ids"] == whole and counts.truncated == 0


def test_a_question_loses_tokens_on_the_left_for_all_answers_alike(tiny_tokenizer):
    [row], counts = prepare_preferences([ranked("abcdefgh", "yes", "n" * 9)], tiny_tokenizer, max_length=16 + 5 + 10)
    assert row["prompt_ids"] == ids("<userdefgh><assistant") and row["branches"] == [ids("yes>"), ids("n" * 9 + ">")]
    assert counts.truncated == 1 and counts.lines()[-1] == "truncated       1 prompts lost context on the left"


def test_an_answer_that_cannot_fit_does_not_cost_the_others_their_context(tiny_tokenizer):
    [row], counts = prepare_preferences([ranked("abcdefgh", "yes", "no", "x" * 99, ranks=(0, 1, 2))], tiny_tokenizer, max_length=28)
    assert row["prompt_ids"] == ids("<userabcdefgh><assistant") and row["ranks"] == [0, 1]
    assert counts.truncated == 0 and counts.left_out == {"answer longer than max_length": 1}


def test_notes_of_the_template_are_counted(tiny_tokenizer):
    turns = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    tiny_tokenizer.chat_template = turns + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    [row], counts = prepare_preferences([ranked("Q", "A", "B")], tiny_tokenizer, max_length=64)
    assert row["branches"] == [ids("A>"), ids("B>")] and counts.appended_eos == 2


def test_judged_answers_keep_their_label(tiny_tokenizer):
    examples = [UnpairedPreference([user("Q")], said("A"), True, where="w"), UnpairedPreference([user("Q")], said("no"), False), UnpairedPreference([user("Q")], said(" "), True)]
    rows, counts = prepare_unpaired(examples, tiny_tokenizer, max_length=64)
    prompt = ids("<userQ><assistant")
    assert rows == [
        {"prompt_ids": prompt, "completion_ids": ids("A>"), "label": True, "where": "w"},
        {"prompt_ids": prompt, "completion_ids": ids("no>"), "label": False, "where": ""},
    ]
    assert counts.lines() == [
        "records         3 read, 2 kept in 2 rows, 1 good and 1 bad answers",
        "tokens          39, 5 of them in answers (12.8%)",
        "dropped         1 x empty answer",
    ]
    examples[2].where = "a.jsonl line 3"
    with pytest.raises(UserError, match="a.jsonl line 3: empty answer"):
        prepare_unpaired(examples, tiny_tokenizer, max_length=64, unusable="error")


def test_prompts_keep_their_messages_and_columns(tiny_tokenizer):
    examples = [PromptExample([user("Q")], {"answer": "4"}, where="w"), PromptExample([user("toolong" * 9)])]
    rows, counts = prepare_prompts(examples, tiny_tokenizer, max_prompt_length=17, too_long="drop")
    assert rows == [{"prompt_ids": ids("<userQ><assistant"), "messages": [user("Q")], "columns": {"answer": "4"}, "where": "w"}]
    assert counts.lines() == ["records         2 read, 1 kept in 1 rows", "tokens          17", "dropped         1 x prompt longer than max_prompt_length"]


def test_a_prompt_that_is_too_long_is_refused_by_its_place(tiny_tokenizer):
    example = PromptExample([user("QQ")], where="a.jsonl line 7")
    with pytest.raises(UserError, match="a.jsonl line 7: the prompt has 18 tokens, more than max_prompt_length 17: .*--too_long drop"):
        prepare_prompts([example], tiny_tokenizer, max_prompt_length=17)
    with pytest.raises(UserError, match="none of the 1 records can be used: 1 x prompt longer"):
        prepare_prompts([example], tiny_tokenizer, max_prompt_length=17, too_long="drop")


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda t: prepare_preferences([], t, max_length=64), "the data has no records"),
        (lambda t: prepare_preferences([], t, max_length=1), "max_length must be at least 2, got 1"),
        (lambda t: prepare_unpaired([], t, max_length=64, unusable="keep"), "unusable must be drop or error, got 'keep'"),
        (lambda t: prepare_prompts([], t, max_prompt_length=64, too_long="cut"), "too_long must be error or drop, got 'cut'"),
    ],
)
def test_mistakes_are_named(tiny_tokenizer, call, named):
    with pytest.raises(UserError, match=named):
        call(tiny_tokenizer)


def test_what_the_template_refuses_is_refused_by_its_place(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="a.jsonl line 4: .*roles must alternate"):
        prepare_preferences([ranked("Q", "A", "B", where="a.jsonl line 4")], tiny_tokenizer, max_length=64)
