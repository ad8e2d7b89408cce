import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seodang.data.chat import prompt_ids
from seodang.data.conversation import Conversation
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text
from seodang.data.labels import Counts, prepare, stream_rows

START, END = 1, 2  # <|im_start|>, <|im_end|>, SmolLM2's eos and pad token
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def smol(_tokenizer):
    return copy.deepcopy(_tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def talk(*texts, system=None):
    """A dialogue of alternating texts."""
    messages = [{"role": "system", "content": system}] if system else []
    return Dialogue(messages + [(user, assistant)[at % 2](text) for at, text in enumerate(texts)], where="a.jsonl line 7")


def trained_text(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != -100])


def masked_prefix(row):
    first = next(at for at, label in enumerate(row["labels"]) if label != -100)
    return row["input_ids"][:first]


def test_the_answer_and_its_end_are_trained_and_nothing_else(smol):
    [row], counts = prepare([talk("수원은 어디에 있나요?", "한국에 있어요.")], smol, max_length=512)
    prompt = smol(f"{SYSTEM}<|im_start|>user\n수원은 어디에 있나요?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    answer = smol("한국에 있어요.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert row == {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
    assert smol.pad_token_id == smol.eos_token_id == row["labels"][-1] == END  # stopping is learned although pad is eos
    assert (counts.records, counts.rows, counts.tokens, counts.trained_tokens) == (1, 1, len(prompt + answer), len(answer))


def test_every_assistant_turn_is_trained_in_one_row_that_is_the_rendering(smol):
    dialogue = talk("Q1", "A1", "Q2", "A2", system="S")
    [row], counts = prepare([dialogue], smol, max_length=512)
    whole = smol.apply_chat_template(dialogue.messages, tokenize=True, return_dict=False)
    assert whole == row["input_ids"] + smol("\n", add_special_tokens=False)["input_ids"]
    assert trained_text(row, smol) == "A1<|im_end|>A2<|im_end|>"
    assert counts.split_dialogues == counts.boundary_merges == counts.truncated == 0


@pytest.mark.parametrize(
    "train_on, more, trained",
    [("assistant", {}, "A1<|im_end|>A2<|im_end|>"), ("last", {}, "A2<|im_end|>"), ("assistant", {"train": False}, "A2<|im_end|>")],
)
def test_train_on_and_a_messages_own_train_choose_the_turns(smol, train_on, more, trained):
    dialogue = Dialogue([user("Q1"), assistant("A1", **more), user("Q2"), assistant("A2")])
    [row], _ = prepare([dialogue], smol, max_length=512, train_on=train_on)
    assert trained_text(row, smol) == trained


def test_train_on_all_trains_every_token_but_the_first_and_the_opted_out_turn(smol):
    [row], _ = prepare([talk("Q1", "A1", "Q2", "A2")], smol, max_length=512, train_on="all")
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    assert smol.decode(row["input_ids"]).endswith("<|im_start|>assistant\nA2<|im_end|>")
    opted = Dialogue([user("Q1"), assistant("A1", train=False), user("Q2"), assistant("A2")])
    [less], _ = prepare([opted], smol, max_length=512, train_on="all")
    assert less["input_ids"] == row["input_ids"]
    assert smol.decode([id for id, label in zip(less["input_ids"], less["labels"], strict=True) if label == -100]) == "<|im_start|>A1<|im_end|>"


any_text = st.text(st.sampled_from("ab 수원😀\n\t.\u0301"), min_size=1, max_size=12)
said = st.lists(any_text | st.sampled_from(["<|im_end|>", "x<|im_start|>y", "<|im_end|>\n<|im_start|>system\n"]), min_size=1, max_size=3).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(said, said), min_size=1, max_size=3))
def test_whatever_is_said_each_answer_stands_behind_its_prompt(smol, exchanges):
    messages = [message for question, answer in exchanges for message in (user(question), assistant(answer))]
    rows = list(stream_rows([Dialogue(messages)], smol, max_length=4096, empty_answers="drop"))
    runs = []
    for row in rows:
        trained = [label != -100 for label in row["labels"]] + [False]
        for at in range(1, len(trained)):
            if trained[at] and not trained[at - 1]:
                runs.append((row["input_ids"][:at], row["input_ids"][at : trained.index(False, at)]))
    wanted = [index for index, message in enumerate(messages) if message["role"] == "assistant" and message["content"].strip()]
    assert [prompt for prompt, _ in runs] == [prompt_ids(smol, messages[:index]) for index in wanted]
    assert [smol.decode(answer) for _, answer in runs] == [messages[index]["content"] + "<|im_end|>" for index in wanted]
    assert all(answer.index(END) == len(answer) - 1 for _, answer in runs)  # one control token, at its end


def merging_tokenizer():
    """Byte-level BPE whose only merge is `:` with `A`: it crosses from the prompt `Q:` into the answer."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*letters, ":A"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(":", "A")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if m.role == 'user' else ':' + m.content + '<end>' }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    return tokenizer


def test_a_merge_over_the_boundary_leaves_the_prompt_as_generation_sees_it():
    tokenizer = merging_tokenizer()
    whole = tokenizer.apply_chat_template(talk("Q", "AB").messages, tokenize=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(whole) == ["Q", ":A", "B", "<end>"]
    rows, counts = prepare([talk("Q", "AB", "R", "CA")], tokenizer, max_length=100)
    assert [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in rows] == [
        ["Q", ":", "A", "B", "<end>"],
        ["Q", ":A", "B", "<end>", "R", ":", "C", "A", "<end>"],  # the second prompt holds the merge, as it will at generation
    ]
    assert [trained_text(row, tokenizer) for row in rows] == ["AB<end>", "CA<end>"]
    assert (counts.boundary_merges, counts.split_dialogues) == (1, 1)


def test_a_merge_over_the_boundary_puts_no_space_before_the_answer():
    tokenizer = merging_tokenizer()
    vocab = {token: index for index, token in enumerate(["▁", "Q", ":", "A", "B", "\n", ":A", "▁A"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(":", "A"), ("▁", "A")]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # Llama 2's way: a space before what comes first
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    spaced = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", clean_up_tokenization_spaces=False)
    spaced.chat_template = tokenizer.chat_template
    [row], counts = prepare([talk("Q", "AB")], spaced, max_length=100)
    assert spaced.convert_ids_to_tokens(row["input_ids"]) == ["▁", "Q", ":", "A", "B", "<end>"] and counts.boundary_merges == 1


def test_an_answer_that_the_template_does_not_end_gets_eos():
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '|' }}{% endfor %}"
    [row], counts = prepare([talk("Q", "B")], tokenizer, max_length=100)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["Q", "|", "B", "<end>"]
    assert counts.appended_eos == 1
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="a.jsonl line 7: neither the chat template nor the tokenizer has a token that ends a turn"):
        prepare([talk("Q", "B")], tokenizer, max_length=100)


def test_an_answer_ends_with_the_first_token_at_which_generation_stops(tiny_tokenizer):
    """Here a turn of tool calls ends in <|call|>, and one that says something besides writes the end of a turn behind it."""
    tokenizer = tiny_tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|call|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + (m['content'] or '') }}{% for c in m.get('tool_calls') or [] %}{{ c['function']['name'] }}{% endfor %}"
        "{% if m.get('tool_calls') %}{{ '<|call|>' + ('<|im_end|>' if m['content'] else '') }}{% else %}{{ '<|im_end|>.' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
    )
    question = {"role": "user", "content": "?"}
    for content, calls, written in (("aa", [], "aa<|im_end|>"), ("", ["b"], "b<|call|>"), ("aa", ["b"], "aab<|call|>")):
        answer = {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "function": {"name": name, "arguments": {}}} for name in calls]}
        turn = Conversation(tokenizer, [question, answer]).turn([question], answer)
        assert tokenizer.decode(turn.answer_ids) == written and not turn.notes


def test_a_long_dialogue_loses_its_oldest_exchanges_and_no_answer(smol):
    texts = [f"{word} {number}" for number in range(6) for word in ("question", "answer")]
    dialogue = talk(*texts, system="Be kind.")
    rows, counts = prepare([dialogue], smol, max_length=60)
    assert all(len(row["input_ids"]) <= 60 for row in rows)
    assert "".join(trained_text(row, smol) for row in rows) == "".join(f"answer {number}<|im_end|>" for number in range(6))  # each once
    messages = dialogue.messages
    assert masked_prefix(rows[0]) == prompt_ids(smol, messages[:2])
    for row in rows[1:]:  # the system turn, then as many whole exchanges as fit
        windows = [(start, end) for start in range(3, 12, 2) for end in range(start + 1, 13, 2)]
        assert masked_prefix(row) in [prompt_ids(smol, messages[:1] + messages[start:end]) for start, end in windows]
        assert smol.decode(row["input_ids"]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nquestion")
    assert counts.truncated == len(rows) - 1 > 0 and counts.split_dialogues == 0 and not counts.dropped


def test_the_last_row_of_a_long_dialogue_keeps_all_the_context_that_fits(smol):
    dialogue = talk("Q0", "A0", "Q1", "A1", "Q2", "A2", system="S")
    lengths = [len(prompt_ids(smol, dialogue.messages[:1] + dialogue.messages[start:6])) for start in (1, 3, 5)]
    answer = len(smol("A2<|im_end|>")["input_ids"])
    [row], counts = prepare([dialogue], smol, max_length=lengths[1] + answer, train_on="last")
    assert masked_prefix(row) == prompt_ids(smol, dialogue.messages[:1] + dialogue.messages[3:6])
    assert trained_text(row, smol) == "A2<|im_end|>" and counts.truncated == 1


def test_a_long_question_loses_its_beginning_and_the_prompt_stays_what_generation_sees(smol):
    words = [f"수원{number}" for number in range(200)]
    dialogue = talk(" ".join(words), "The answer.", system="Be kind.")
    [row], counts = prepare([dialogue], smol, max_length=100)
    text = smol.decode(masked_prefix(row))
    left = text.removeprefix("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n").removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    assert " ".join(words).endswith(left) and left.endswith("수원199") and len(left) > 20 and "\ufffd" not in left
    assert masked_prefix(row) == prompt_ids(smol, [{"role": "system", "content": "Be kind."}, user(left)])
    assert trained_text(row, smol) == "The answer.<|im_end|>"
    assert 90 <= len(row["input_ids"]) <= 100 and counts.truncated == 1


def test_a_long_tool_output_gives_way_before_the_short_question(smol):
    smol = copy.deepcopy(smol)
    smol.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = assistant("call", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}], train=False)
    dialogue = Dialogue([user("What is it?"), call, {"role": "tool", "content": "word " * 300 + "end"}, assistant("It ends.")])
    [row], _ = prepare([dialogue], smol, max_length=64)
    text = smol.decode(row["input_ids"])
    assert "What is it?" in text and "word end<|im_end|>" in text and text.endswith("It ends.<|im_end|>") and len(row["input_ids"]) <= 64


def test_an_answer_is_never_cut_but_dropped_and_counted(smol):
    short, long = talk("Q", "A"), talk("Q", "word " * 100)
    rows, counts = prepare([short, long], smol, max_length=60)
    assert len(rows) == 1 and counts.dropped == {"answer longer than max_length": 1} and counts.records == 2
    # the rest of such a dialogue is still learned from
    rows, counts = prepare([talk("Q", "word " * 100, "R", "B")], smol, max_length=60)
    assert trained_text(rows[0], smol) == "B<|im_end|>" and counts.left_out == {"answer longer than max_length": 1} and not counts.dropped
    with pytest.raises(UserError, match="none of the 1 records can be used: 1 x no room for the answer beside the system turn"):
        prepare([talk("Q", "A", system="word " * 100)], smol, max_length=60)


def test_plain_text_is_trained_whole_and_ends_in_eos(smol):
    [row], _ = prepare([Text("나무가 자란다.")], smol, max_length=64)
    ids = smol("나무가 자란다.")["input_ids"]
    assert row == {"input_ids": [*ids, END], "labels": [-100, *ids[1:], END]}


def test_a_long_text_loses_no_token(smol):
    ids = [*smol("word and " * 100)["input_ids"], END]
    rows, counts = prepare([Text("word and " * 100)], smol, max_length=16)
    assert all(len(row["input_ids"]) <= 16 for row in rows) and counts.chunked_texts == 1
    assert [label for row in rows for label in row["labels"][1:]] == ids[1:]  # each predicted once, from the one before
    assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in rows)


def test_special_text_in_plain_text_is_literal_unless_asked(smol):
    [row], _ = prepare([Text("a<|im_end|>b")], smol, max_length=64)
    assert row["input_ids"].count(END) == 1 and smol.decode(row["input_ids"]) == "a<|im_end|>b<|im_end|>"
    [row], _ = prepare([Text("a<|im_end|>b")], smol, max_length=64, literal=False)
    assert row["input_ids"].count(END) == 2


def test_a_turn_that_opens_the_dialogue_is_context(smol):
    [row], _ = prepare([Dialogue([assistant("Hello."), user("Q"), assistant("A")])], smol, max_length=512)
    assert trained_text(row, smol) == "A<|im_end|>" and "Hello." in smol.decode(row["input_ids"])


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_answer_is_refused_by_its_line_or_dropped(smol, empty):
    with pytest.raises(UserError, match="^a.jsonl line 7: the answer is empty: .* --empty_answers drop$"):
        prepare([talk("Q", empty)], smol, max_length=512)
    rows, counts = prepare([talk("Q", empty), talk("Q", "A")], smol, max_length=512, empty_answers="drop")
    assert len(rows) == 1 and counts.dropped["empty answer"] == 1


def test_records_that_train_on_nothing_are_dropped_and_counted(smol):
    opted_out = Dialogue([user("Q"), assistant("A", train=False)])
    rows, counts = prepare([opted_out, talk("Q"), Text(" "), talk("Q", "A")], smol, max_length=512)
    assert len(rows) == 1 and counts.dropped == {"nothing to learn": 2, "empty text": 1} and counts.records == 4
    with pytest.raises(UserError, match="none of the 1 records can be used: 1 x nothing to learn"):
        prepare([opted_out], smol, max_length=512)
    with pytest.raises(UserError, match="the data has no records"):
        prepare([], smol, max_length=512)


def test_a_template_that_raises_names_the_record(smol):
    smol = copy.deepcopy(smol)
    smol.chat_template = "{% for m in messages %}{{ raise_exception('roles must alternate') if loop.index0 > 2 }}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="^a.jsonl line 7: the chat template raises: roles must alternate$"):
        prepare([talk("Q", "A", "Q", "A")], smol, max_length=512)


def test_tool_calls_that_the_template_leaves_out_are_refused(smol):
    call = assistant("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])
    with pytest.raises(UserError, match="^b.jsonl line 2: the chat template writes nothing of this answer: tool calls need"):
        prepare([Dialogue([user("Q"), call], where="b.jsonl line 2")], smol, max_length=512)


def test_thousands_of_records_take_seconds(smol):
    examples = [talk(f"question {number}", f"answer {number}") for number in range(2000)]
    start = time.process_time()
    _, counts = prepare(examples, smol, max_length=512)
    assert counts.rows == 2000 and time.process_time() - start < 6


@pytest.mark.parametrize(
    "option, named",
    [
        ({"train_on": "user"}, "train_on must be one of"),
        ({"empty_answers": "keep"}, "empty_answers must be"),
        ({"unusable": "keep"}, "unusable must be drop or error"),
        ({"max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_senseless_options_are_refused(smol, option, named):
    with pytest.raises(UserError, match=named):
        prepare([talk("Q", "A")], smol, **{"max_length": 64, **option})


def test_a_stream_gives_the_same_rows_and_counts(smol):
    examples = [talk("Q", "A", "Q", "B"), Text("나무"), talk("Q" * 300, "A")]
    rows, counts = prepare(examples, smol, max_length=100)
    grown = Counts()
    assert list(stream_rows(iter(examples), smol, grown, max_length=100)) == rows and grown == counts


def test_counts_tell_what_was_done(smol):
    _, counts = prepare([talk("Q", "A"), talk("Q " * 100, "A"), talk("Q", "A " * 100)], smol, max_length=64)
    lines = "\n".join(counts.lines())
    assert "records         3 read, 2 kept in 2 rows" in lines and "truncated       1 rows lost context" in lines
    assert "dropped         1 x answer longer than max_length" in lines and "split" not in lines
