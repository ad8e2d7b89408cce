import pytest

from seodang.data.errors import UserError
from seodang.data.formats import recognise, to_examples
from seodang.data.preferences import PREFERENCE_SHAPES, PROMPT_SHAPES, UNPAIRED_SHAPES, PromptExample, RankedPreference, UnpairedPreference


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "S"}
TALK = [user("수도는?"), said("서울."), user("인구는?")]
PAIR = ([said("구백만."), said("몰라.")], [0.0, 1.0])


def one(record, shapes=PREFERENCE_SHAPES, **how):
    [example] = to_examples(record, shapes=shapes, **how)
    return example


@pytest.mark.parametrize(
    "record, prompt",
    [
        ({"prompt": "인구는?", "chosen": "구백만.", "rejected": "몰라."}, [user("인구는?")]),
        ({"prompt": TALK, "chosen": "구백만.", "rejected": "몰라."}, TALK),
        ({"prompt": TALK, "chosen": [said("구백만.")], "rejected": said("몰라.")}, TALK),
        ({"prompt": "인구는?", "system": "S", "chosen": "구백만.", "rejected": "몰라."}, [SYSTEM, user("인구는?")]),
        ({"chosen": [*TALK, said("구백만.")], "rejected": [*TALK, said("몰라.")]}, TALK),
        ({"chosen": [SYSTEM, *TALK, said("구백만.")], "rejected": [SYSTEM, *TALK, said("몰라.")], "prompt": None}, [SYSTEM, *TALK]),
    ],
)
def test_a_pair_in_any_spelling_is_one_prompt_and_two_answers(record, prompt):
    example = one(record, where="a.jsonl line 3")
    assert (example.prompt, (example.answers, example.ranks)) == (prompt, PAIR)
    assert (example.where, example.flaw, example.margin) == ("a.jsonl line 3", "", None)


@pytest.mark.parametrize("prompt", ["수도는?", [user("수도는?")]])
@pytest.mark.parametrize("opening", [[], [SYSTEM]])
def test_sides_that_are_whole_dialogues_do_not_double_the_prompt(prompt, opening):
    """UltraFeedback: the prompt is the first request, and both sides begin with it, over one turn or several."""
    short = one({"prompt": prompt, "chosen": [*opening, user("수도는?"), said("서울.")], "rejected": [*opening, user("수도는?"), said("몰라.")]})
    assert short.prompt == [*opening, user("수도는?")] and short.answers == [said("서울."), said("몰라.")]
    long = one({"prompt": prompt, "chosen": [*opening, *TALK, said("구백만.")], "rejected": [*opening, *TALK, said("몰라.")]})
    assert long.prompt == [*opening, *TALK] and long.answers == PAIR[0]


@pytest.mark.parametrize("spelling", ["whole", "prompt", "both"])
def test_transcripts_are_parsed_into_messages(spelling):
    head = "\n\nHuman: 수도는?\n\nAssistant: 서울.\n\nHuman: 인구는?\n\nAssistant:"
    record = {
        "whole": {"chosen": head + " 구백만.", "rejected": head + " 몰라."},
        "prompt": {"prompt": head, "chosen": "구백만.", "rejected": "몰라."},
        "both": {"prompt": head, "chosen": head + " 구백만.", "rejected": head + " 몰라."},
    }[spelling]
    example = one(record)
    assert (example.prompt, (example.answers, example.ranks)) == (TALK, PAIR)


@pytest.mark.parametrize(
    "chosen, rejected, flaw",
    [
        ([user("Q"), said("A"), user("R"), said("C")], [user("Q"), said("B"), user("R"), said("D")], "differ before their last answers"),
        ([user("Q"), said("A"), user("R"), said("C")], [user("Q"), said("B")], "differ before their last answers"),
        ([user("P"), said("A")], [user("Q"), said("B")], "differ before their last answers"),
        ([user("Q"), said("A")], [user("Q"), said("B"), user("R")], "does not end in an answer"),
        ("\n\nHuman: Q\n\nAssistant: A", "\n\nHuman: Q\n\nAssistant: B\n\nHuman: R", "does not end in an answer"),
        ("\n\nHuman: Q\n\nAssistant: A\n\nAssistant: B", "\n\nHuman: Q\n\nAssistant: A\n\nAssistant: C", "the answers follow another answer"),
    ],
)
def test_sides_without_a_common_prompt_are_a_tie_with_a_flaw(chosen, rejected, flaw):
    example = one({"chosen": chosen, "rejected": rejected})
    assert flaw in example.flaw and example.ranks == [0.0, 0.0]


def test_equal_sides_keep_their_prompt():
    example = one({"chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("A")]})
    assert example.prompt == [user("Q")] and example.answers == [said("A"), said("A")] and example.flaw == ""


def test_margin_and_tools_are_kept_and_scores_are_no_margin():
    tools = [{"type": "function", "function": {"name": "add"}}]
    example = one({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2, "tools": tools})
    assert example.margin == 2.0 and example.tools == tools
    assert [one({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": text}).margin for text in ("0.50", "")] == [0.5, None]  # as a table has it
    assert one({"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": 9, "score_rejected": 1}).margin is None


def test_an_answer_that_is_a_json_list_stays_a_text_and_messages_in_json_are_read():
    assert one({"prompt": "Q", "chosen": '[{"a": 1}]', "rejected": "[]"}).answers == [said('[{"a": 1}]'), said("[]")]
    assert one({"prompt": '[{"role": "user", "content": "Q"}]', "chosen": "A", "rejected": "B"}).prompt == [user("Q")]


@pytest.mark.parametrize(
    "record, ranks",
    [
        ({"responses": ["A", "B", "C"], "ranks": [2, 0, 1]}, [2, 0, 1]),
        ({"responses": ["A", "B", "C"], "ranks": [1.5, 1, 1.5]}, [1, 0, 1]),
        ({"responses": [said("A"), [said("B")], [user("Q"), said("C")]], "scores": [0.25, -1, 3]}, [1, 2, 0]),
        ({"responses": '["A", "B", "C"]', "scores": "[5, 5, 5.5]"}, [1, 1, 0]),
    ],
)
def test_ranks_count_from_the_best_whichever_way_they_are_given(record, ranks):
    example = one({"prompt": "Q", **record})
    assert (example.prompt, example.answers, example.ranks) == ([user("Q")], [said("A"), said("B"), said("C")], ranks)


def test_ultrafeedbacks_completions_are_ranked_by_their_score():
    completions = [{"response": "A", "overall_score": 4.5, "model": "m"}, {"response": "B", "overall_score": 7}, {"response": "C", "overall_score": 4.5}]
    record = {"source": "s", "instruction": "Q", "completions": completions, "models": ["m"]}
    assert recognise(record, PREFERENCE_SHAPES) == "ultrafeedback"
    assert one(record) == RankedPreference([user("Q")], [said("A"), said("B"), said("C")], [1, 0, 1])


def node(role, text, *replies, rank=None, **more):
    return {"role": role, "text": text, "replies": list(replies), **({} if rank is None else {"rank": rank}), **more}


def test_every_prompt_with_ranked_replies_in_a_tree_is_an_example():
    again = node("prompter", "더?", node("assistant", "다", rank=1), node("assistant", "라", rank=0), node("assistant", "unranked"))
    lonely = node("prompter", "lonely", node("assistant", "one", rank=0))
    lost = node("prompter", "lost", node("assistant", "x", rank=0), node("assistant", "y", rank=1), deleted=True)
    root = node(
        "prompter", "안녕?",
        node("assistant", "가", lonely, rank=2), node("assistant", "나", again, lost, rank=0), node("assistant", "gone", rank=1, deleted=True),
    )  # fmt: skip
    first, second = to_examples({"message_tree_id": "t", "tree_state": "ready", "prompt": root}, where="t.jsonl line 1", shapes=PREFERENCE_SHAPES)
    assert first == RankedPreference([user("안녕?")], [said("가"), said("나")], [1, 0], where="t.jsonl line 1, example 1")
    assert second == RankedPreference([user("안녕?"), said("나"), user("더?")], [said("다"), said("라")], [1, 0], where="t.jsonl line 1, example 2")


@pytest.mark.parametrize("label, good", [(True, True), (False, False), (1, True), (0, False), (0.0, False), ("true", True), ("False", False), ("0", False)])
def test_a_judged_answer_is_good_or_bad(label, good):
    expected = UnpairedPreference([user("Q")], said("A"), good)
    assert one({"prompt": "Q", "completion": "A", "label": label}, UNPAIRED_SHAPES) == expected
    assert one({"prompt": [user("Q")], "completion": [said("A")], "label": label}, UNPAIRED_SHAPES) == expected


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"prompt": "Q"}, PromptExample([user("Q")], {})),
        ({"prompt": TALK, "system": "S", "form": "short", "gone": None}, PromptExample([SYSTEM, *TALK], {"form": "short"})),
        ({"prompt": "\n\nHuman: Q\n\nAssistant:"}, PromptExample([user("Q")], {})),
        ({"question": "1+1?", "answer": "#### 2"}, PromptExample([user("1+1?")], {"answer": "#### 2"})),
        ({"instruction": "더하라.", "input": "1, 1", "output": "2"}, PromptExample([user("더하라.\n\n1, 1")], {"answer": "2"})),
        ({"instruction": "Q", "output": "long", "answer": "A"}, PromptExample([user("Q")], {"output": "long", "answer": "A"})),
        ({"messages": [user("Q"), said("A")], "level": 3}, PromptExample([user("Q")], {"answer": "A", "level": 3})),
        ({"messages": [user("Q"), said("A")], "answer": "B"}, PromptExample([user("Q")], {"answer": "B"})),
        ({"messages": TALK}, PromptExample(TALK, {})),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PromptExample([user("Q")], {"chosen": "A", "rejected": "B"})),
    ],
)
def test_a_prompt_alone_hands_its_other_keys_on_as_columns(record, expected):
    assert one(record, PROMPT_SHAPES) == expected


@pytest.mark.parametrize(
    "record, shapes, named",
    [
        ({"prompt": "Q", "chosen": "A"}, PREFERENCE_SHAPES, "a.jsonl line 1: the rejected side is missing"),
        ({"prompt": "Q", "rejected": "A"}, PREFERENCE_SHAPES, "the chosen side is missing"),
        ({"prompt": "Q", "chosen": "A", "rejected": None}, PREFERENCE_SHAPES, "the rejected side is missing"),
        ({"chosen": "A", "rejected": "B"}, PREFERENCE_SHAPES, "chosen is a text without a prompt"),
        ({"chosen": [said("A")], "rejected": [said("B")]}, PREFERENCE_SHAPES, "share no prompt"),
        ({"prompt": "Q", "chosen": [user("P"), said("A")], "rejected": [user("P"), said("B")]}, PREFERENCE_SHAPES, "does not begin with the prompt"),
        ({"prompt": "Q", "chosen": [user("Q")], "rejected": "B"}, PREFERENCE_SHAPES, "chosen is a dialogue that does not begin with the prompt and go on"),
        ({"prompt": [user("Q"), said("A")], "chosen": "A", "rejected": "B"}, PREFERENCE_SHAPES, "the prompt ends in an assistant's turn"),
        ({"prompt": [], "chosen": "A", "rejected": "B"}, PREFERENCE_SHAPES, "share no prompt"),
        ({"prompt": "Q", "chosen": 3, "rejected": "B"}, PREFERENCE_SHAPES, "chosen must be a list of messages, got 3"),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "wide"}, PREFERENCE_SHAPES, "margin must be a number, got 'wide'"),
        ({"prompt": "Q", "responses": ["A"], "ranks": [0]}, PREFERENCE_SHAPES, "two answers or more"),
        ({"prompt": "Q", "responses": ["A", "B"], "ranks": [0]}, PREFERENCE_SHAPES, "ranks must be one number for each of the 2 responses, got [0]"),
        ({"prompt": "Q", "responses": ["A", "B"], "scores": [0, float("nan")]}, PREFERENCE_SHAPES, "scores must be one number"),
        ({"prompt": "Q", "responses": ["A", "B"]}, PREFERENCE_SHAPES, "'scores' is missing"),
        ({"responses": ["A", "B"], "ranks": [0, 1]}, PREFERENCE_SHAPES, "'prompt' is missing"),
        ({"prompt": "Q", "responses": ["A", [said("B"), user("R")]], "ranks": [0, 1]}, PREFERENCE_SHAPES, "responses[1] must be one assistant's answer"),
        ({"message_tree_id": "t", "prompt": "Q"}, PREFERENCE_SHAPES, "the tree's prompt must be a message with replies"),
        ({"message_tree_id": "t", "prompt": "{broken"}, PREFERENCE_SHAPES, "the tree's prompt must be a message with replies, got '{broken'"),
        ({"message_tree_id": "t", "prompt": node("prompter", "Q", None)}, PREFERENCE_SHAPES, "replies must be a list of messages, got [None]"),
        ({"message_tree_id": "t", "prompt": {"role": "bot", "text": "Q"}}, PREFERENCE_SHAPES, "prompter or assistant, got 'bot'"),
        ({"messages": []}, PREFERENCE_SHAPES, "has the keys messages: use message_tree_id/prompt or chosen or rejected or responses"),
        ({"prompt": "Q", "completion": "A"}, UNPAIRED_SHAPES, "has the keys prompt, completion: use prompt/completion/label"),
        ({"prompt": "Q", "completion": "A", "label": "good"}, UNPAIRED_SHAPES, "label must be true or false, got 'good'"),
        ({"text": "T"}, PROMPT_SHAPES, "use prompt or question or instruction or messages"),
        ({"messages": [said("A")]}, PROMPT_SHAPES, "the prompt has no message"),
        ({"messages": [user("Q"), said("A"), said("B")]}, PROMPT_SHAPES, "the prompt ends in an assistant's turn"),
    ],
)
def test_a_mistake_names_the_record_and_the_value(record, shapes, named):
    with pytest.raises(UserError) as error:
        to_examples(record, where="a.jsonl line 1", shapes=shapes)
    assert named in str(error.value) and str(error.value).startswith("a.jsonl line 1: ") and "seodang dpo" not in str(error.value)


@pytest.mark.parametrize("record", [{"prompt": "Q", "chosen": "A", "rejected": "B"}, {"chosen": [], "rejected": []}, {"message_tree_id": "t", "prompt": {}}])
def test_teaching_from_preferences_says_who_takes_them(record):
    with pytest.raises(UserError, match="a.jsonl line 1: .*`seodang reward` and `seodang dpo`") as error:
        to_examples(record, where="a.jsonl line 1")
    assert str(error.value).count("seodang dpo") == 1
