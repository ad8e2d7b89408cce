"""Every record read is kept or dropped, once, for one reason, whatever the stage."""

import pytest

from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text
from seodang.data.labels import prepare
from seodang.data.preference_rows import prepare_preferences, prepare_prompts, prepare_unpaired
from seodang.data.preferences import PromptExample, RankedPreference, UnpairedPreference, message_tree


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def ranked(*answers, ranks=(0, 1), **more):
    return RankedPreference([user("Q")], [said(answer) for answer in answers], list(ranks), **more)


def placed(examples):
    for number, example in enumerate(examples, 1):
        example.where = f"line {number}"
    return examples


PAIRS = [
    ranked("A", "B"),
    ranked("A", "B", ranks=(1, 1)),
    ranked("A", "B", ranks=(0, 0), flaw="chosen and rejected differ before their last answers"),
    ranked("A", "A"),
    ranked("", " "),
    ranked("A", ""),
    ranked("A", ranks=(0,)),
    ranked("A", "B" * 70),
    ranked("A", "B", "", "C", ranks=(0, 1, 2, 2)),
]
PAIRS_DROPPED = {
    "all answers rank the same": 1, "chosen and rejected differ before their last answers": 1, "identical answers": 1, "empty answer": 2,
    "fewer than two answers": 1, "answer longer than max_length": 1,
}  # fmt: skip
TALKS = [
    Dialogue([user("Q"), said("A")]),
    Dialogue([user("Q"), said("")]),
    Dialogue([user("Q"), said(" "), user("R"), said("")]),
    Dialogue([user("Q"), said("A"), user("R"), said("")]),
    Dialogue([user("Q"), said("A" * 70)]),
    Dialogue([user("Q")]),
    Dialogue([user("Q"), {**said("A"), "train": False}]),
    Text(" "),
    Text("A" * 100),
]
TALKS_DROPPED = {"empty answer": 2, "answer longer than max_length": 1, "nothing to learn": 2, "empty text": 1}
ASKED = [PromptExample([user("Q")]), PromptExample([user("Q" * 70)])]


@pytest.mark.parametrize(
    ("prepared", "examples", "dropped", "left_out"),
    [
        (lambda t, e, **how: prepare_preferences(e, t, max_length=64, **how), PAIRS, PAIRS_DROPPED, {"empty answer": 1}),
        (lambda t, e, **how: prepare_unpaired(e, t, max_length=64, **how), PAIRS, PAIRS_DROPPED, {"empty answer": 1, "neither best nor worst": 1}),
        (
            lambda t, e, **how: prepare_unpaired(e, t, max_length=64, **how),
            [UnpairedPreference([user("Q")], said(text), True) for text in ("A", "", "B" * 70)],
            {"empty answer": 1, "answer longer than max_length": 1},
            {},
        ),
        (lambda t, e, **how: prepare(e, t, max_length=64, empty_answers="drop", **how), TALKS, TALKS_DROPPED, {"empty answer": 1}),
        (lambda t, e, **how: prepare_prompts(e, t, max_prompt_length=64, **{"too_long": how.get("unusable", "drop")}), ASKED, {"prompt longer than max_prompt_length": 1}, {}),
    ],
    ids=["ranked", "taken apart", "judged", "taught", "asked"],
)  # fmt: skip
def test_records_read_are_those_kept_and_those_dropped(tiny_tokenizer, prepared, examples, dropped, left_out):
    rows, counts = prepared(tiny_tokenizer, placed(examples))
    assert counts.dropped == dropped and counts.left_out == left_out
    assert counts.records == len(examples) == counts.kept + sum(dropped.values())
    assert counts.rows == len(rows) and ("where" not in rows[0] or len({row["where"] for row in rows}) == counts.kept)
    told = "\n".join(counts.lines())
    assert f"records         {len(examples)} read, {counts.kept} kept in {len(rows)} rows" in told
    assert all(f"dropped         {count} x {reason}" in told for reason, count in dropped.items())
    for example in examples:  # one that is dropped alone is refused by its place, one that is kept is not
        try:
            kept = bool(prepared(tiny_tokenizer, [example])[0])
        except UserError as error:
            kept = "none of the 1 records" not in str(error)
        if kept:
            prepared(tiny_tokenizer, [example], unusable="error")
        else:
            with pytest.raises(UserError, match=f"^{example.where}: .*--(unusable|too_long) drop"):
                prepared(tiny_tokenizer, [example], unusable="error")


def test_an_answer_that_is_both_chosen_and_rejected_teaches_neither(tiny_tokenizer):
    rows, counts = prepare_unpaired([ranked("A", "A"), ranked("C", "D", "E", ranks=(1, 0, 2))], tiny_tokenizer, max_length=64)
    assert [(tiny_tokenizer.decode(row["completion_ids"]), row["label"]) for row in rows] == [("D<|im_end|>", True), ("E<|im_end|>", False)]
    assert counts.dropped == {"identical answers": 1} and (counts.good, counts.bad) == (1, 1)


def test_a_tree_without_two_ranked_replies_is_a_record_that_is_dropped(tiny_tokenizer):
    lonely = {"role": "prompter", "text": "Q", "replies": [{"role": "assistant", "text": "A", "rank": 0, "replies": []}]}
    gone = {**lonely, "deleted": True}
    found = [example for root in (lonely, gone) for example in message_tree({"prompt": root})]
    rows, counts = prepare_preferences([*found, ranked("A", "B")], tiny_tokenizer, max_length=64)
    assert len(rows) == 1 and counts.dropped == {"no prompt in the tree has two ranked replies": 2}


def test_what_was_held_out_is_told_as_well(tiny_tokenizer):
    _, counts = prepare_preferences(PAIRS[:1], tiny_tokenizer, max_length=64)
    _, counts.held_out = prepare_preferences(PAIRS[:3], tiny_tokenizer, max_length=64)
    assert "dropped         1 x all answers rank the same, of 3 records held out" in counts.lines()
