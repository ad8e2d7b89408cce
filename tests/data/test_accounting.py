"""Every record read is kept or dropped, once, for one reason, whatever the stage."""

import random
import re
from collections import Counter

import pytest

from seodang.data.errors import UserError
from seodang.data.formats import SHAPES, Dialogue, Text, to_examples
from seodang.data.labels import Counts, prepare, stream_rows
from seodang.data.preference_rows import prepare_preferences, prepare_prompts, prepare_unpaired
from seodang.data.preferences import PREFERENCE_SHAPES, PROMPT_SHAPES, PromptExample, RankedPreference, UnpairedPreference, message_tree


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


def told(counts):
    """What the lines say: the records read and kept, those dropped by their reasons, and the warnings."""
    lines = "\n".join(counts.lines())
    read, kept = re.search(r"records +(\d+) read, (\d+) kept", lines).groups()
    each = [{what: int(count) for count, what in re.findall(rf"^{name} +(\d+) x (.*)$", lines, re.MULTILINE)} for name in ("dropped", "warning")]
    return int(read), int(kept), *each


LONG = "a" * 99
# by family: what makes a record of a number, by what becomes of it ("" keeps it without a word)
FAMILIES = {
    "taught": (SHAPES, {
        "": lambda i: {"instruction": f"say {i}", "output": f"{i}"},
        "empty answer": lambda i: {"instruction": f"say {i}", "output": " " * (i % 3)},
        "answer longer than max_length": lambda i: {"instruction": f"say {i}", "output": LONG},
        "nothing to learn": lambda i: {"messages": [user(f"{i}"), {**said("A"), "train": False}]},
        "empty text": lambda i: {"text": " "},
        "empty question": lambda i: {"instruction": " " * (i % 3), "output": f"{i}"},
        "read before": lambda i: {"prompt": "twice", "completion": "the same"},
    }),
    "preferred": (PREFERENCE_SHAPES, {
        "": lambda i: {"prompt": f"say {i}", "chosen": f"{i}", "rejected": "no"},
        "empty answer": lambda i: {"prompt": f"say {i}", "chosen": "", "rejected": "no"},
        "identical answers": lambda i: {"prompt": f"say {i}", "chosen": "no", "rejected": "no"},
        "all answers rank the same": lambda i: {"prompt": f"say {i}", "responses": ["a", "b", "c"], "ranks": [1, 1, 1]},
        "answer longer than max_length": lambda i: {"prompt": f"say {i}", "chosen": LONG, "rejected": "no"},
        "empty question": lambda i: {"prompt": " " * (i % 3), "chosen": f"{i}", "rejected": "no"},
        "read before": lambda i: {"prompt": "twice", "chosen": "the same", "rejected": "no"},
    }),
    "asked": (PROMPT_SHAPES, {
        "": lambda i: {"prompt": f"say {i}", "answer": "A"},
        "prompt longer than max_prompt_length": lambda i: {"prompt": f"{LONG} {i}"},
        "empty question": lambda i: {"prompt": " " * (i % 3), "answer": f"{i}"},
        "read before": lambda i: {"prompt": "twice"},
    }),
}  # fmt: skip
PREPARED = {
    "taught": [lambda t, e: prepare(e, t, max_length=64, empty_answers="drop"), lambda t, e: prepare(e, t, max_length=64, empty_answers="drop", train_on="last")],
    "preferred": [lambda t, e: prepare_preferences(e, t, max_length=64), lambda t, e: prepare_unpaired(e, t, max_length=64)],
    "asked": [lambda t, e: prepare_prompts(e, t, max_prompt_length=64, too_long="drop")],
}
WARNED = ("empty question", "read before")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(6))
def test_in_any_mixture_of_defects_the_counts_add_up_and_say_what_each_record_is(tiny_tokenizer, family, seed):
    draw, (shapes, kinds) = random.Random(seed), FAMILIES[family]
    drawn = ["", *draw.choices(list(kinds), k=draw.randrange(1, 40))]
    examples = [example for i, kind in enumerate(drawn) for example in to_examples(kinds[kind](i), where=f"line {i}", shapes=shapes)]
    wanted = Counter(drawn)
    lost = {kind: count for kind, count in wanted.items() if kind not in ("", *WARNED)}
    warned = {"empty question": wanted["empty question"], "read before": max(wanted["read before"] - 1, 0)}  # the first is no double
    for prepared in PREPARED[family]:
        _, counts = prepared(tiny_tokenizer, examples)
        read, kept, dropped, warnings = told(counts)
        assert read == len(drawn) == kept + sum(dropped.values()) and kept == sum(wanted[kind] for kind in ("", *WARNED))
        assert dropped == lost
        assert {name.partition(",")[0]: count for name, count in warnings.items()} == {kind: count for kind, count in warned.items() if count}


def test_records_that_are_held_out_and_trained_on_are_told(tiny_tokenizer):
    talks = placed([Dialogue([user("Q"), said(text)]) for text in "ABCA"])
    _, counts = prepare(talks, tiny_tokenizer, max_length=64)
    _, counts.held_out = prepare(placed([Dialogue([user("Q"), said(text)]) for text in "CDAA"]), tiny_tokenizer, max_length=64)
    assert [line for line in counts.lines() if "warning" in line] == [
        "warning         1 x read before, word for word, kept all the same",
        "warning         1 x read before, word for word, kept all the same, of 4 records held out",
        "warning         2 x held out and trained on, word for word: it is no measure",
    ]


def test_a_source_that_a_mix_begins_again_is_not_doubled_and_a_stream_remembers_so_many(tiny_tokenizer):
    talks = placed([Dialogue([user("Q"), said(text)]) for text in "ABC"])
    assert prepare([*talks, *talks], tiny_tokenizer, max_length=64)[1].warned == {}
    again = [Dialogue([user("Q"), said(text)], where=f"other {text}") for text in "ABC"]
    for remembers, found in ((None, 3), (3, 3), (2, 0), (0, 0)):
        counts = Counts(remembers=remembers)
        assert len(list(stream_rows([*talks, *again], tiny_tokenizer, counts, max_length=64))) == 6
        assert counts.warned.total() == found and (remembers is None or len(counts.seen) <= remembers)


def test_roles_that_were_read_as_others_are_counted_in_records_that_are_kept(tiny_tokenizer):
    turns = [[("human", "Q"), ("bot", "A")], [("User", "Q"), ("bot", "B"), ("human", "R"), ("assistant", "C")], [("User", "Q"), ("gpt", "")]]
    records = [{"messages": [{"role": role, "content": content} for role, content in talk]} for talk in turns]
    examples = placed([example for record in records for example in to_examples(record)])
    _, counts = prepare(examples, tiny_tokenizer, max_length=64, empty_answers="drop")
    assert counts.roles == {("human", "user"): 2, ("bot", "assistant"): 2, ("User", "user"): 1}
    assert [line for line in counts.lines() if line.startswith("roles")] == [
        "roles           1 messages of 'User' are read as user",
        "roles           2 messages of 'bot' are read as assistant",
        "roles           2 messages of 'human' are read as user",
    ]
    _, counts = prepare_prompts([PromptExample(examples[0].messages[:1])], tiny_tokenizer, max_prompt_length=64)
    assert counts.lines()[-1] == "roles           1 messages of 'human' are read as user"


def test_columns_taken_and_characters_lost_are_told(tiny_tokenizer):
    talks = placed([Dialogue([user("Q"), said("A")]), Dialogue([user("Q\ufffd"), said("A")]), Dialogue([user("R"), said("\ufffdB")]), Text("a\ufffdb")])
    for talk, taken in zip(talks, ["q as prompt", "q as prompt", "", "내용 as text"], strict=True):
        talk.taken = taken
    lines = prepare(talks, tiny_tokenizer, max_length=64)[1].lines()
    assert [line for line in lines if line.startswith("columns")] == ["columns         q as prompt, in 2 records", "columns         내용 as text, in 1 records"]
    lost = [line for line in lines if "U+FFFD" in line]
    assert len(lost) == 1 and lost[0].startswith("warning         3 x ")
    lines = prepare_preferences([ranked("A", "\ufffd", taken="질문 as prompt")], tiny_tokenizer, max_length=64)[1].lines()
    assert "columns         질문 as prompt, in 1 records" in lines and any("1 x U+FFFD" in line for line in lines)
    lines = prepare_prompts([PromptExample([user("Q")], taken="query as prompt")], tiny_tokenizer, max_prompt_length=64)[1].lines()
    assert "columns         query as prompt, in 1 records" in lines
