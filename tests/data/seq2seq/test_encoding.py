"""Sources, targets and given beginnings in ids: those that transformers' own tokenizers make of them."""

import threading

import pytest
from translation_fixtures import LANGUAGES

from seodang.data.errors import UserError
from seodang.data.formats import Dialogue
from seodang.data.seq2seq.encoding import beginning_ids, source_ids, split_target, target_ids

KINDS = [*LANGUAGES]


def tokens(tokenizer, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_one_turn_is_its_text_and_a_systems_stands_before_it(t5_tokenizer):
    whole = t5_tokenizer("translate: a tree\n\nab bc")["input_ids"]
    assert source_ids(t5_tokenizer, "translate: a tree\n\nab bc") == whole and whole[-1] == t5_tokenizer.eos_token_id
    system = {"role": "system", "content": "translate: a tree"}
    for prompt in ([system, user("ab bc")], Dialogue([system, user([{"type": "text", "text": "ab "}, {"type": "text", "text": "bc"}])])):
        assert source_ids(t5_tokenizer, prompt) == whole
    t5_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    assert source_ids(t5_tokenizer, [user("ab")]) == t5_tokenizer("user: ab", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}, user("c")], "the messages are of user, assistant, user: the tokenizer has no chat template"),
        ([{"role": "system", "content": "a"}], "the messages are of system"),
        (Dialogue([user("a")], tools=[{}]), "tools would not be seen"),
        (Dialogue([user("a")], template_kwargs={"enable_thinking": True}), "enable_thinking would not be seen"),
        ([user([{"type": "image"}])], "a message's content must be a text"),
        (" \n", "the source is empty"),
        ([user("")], "the source is empty"),
        ("half \ud800", "half a character"),
    ],
)
def test_what_is_no_source_is_refused(t5_tokenizer, prompt, message):
    with pytest.raises(UserError, match=message):
        source_ids(t5_tokenizer, prompt)


def test_control_tokens_in_a_message_or_a_target_are_text_and_in_a_raw_text_what_they_are(t5_tokenizer):
    [sentinel] = [t5_tokenizer.convert_tokens_to_ids("<extra_id_0>")]
    text = "ab <extra_id_0> </s>"
    assert source_ids(t5_tokenizer, text) == t5_tokenizer(text)["input_ids"] and sentinel in source_ids(t5_tokenizer, text)
    for ids in (source_ids(t5_tokenizer, [user(text)]), source_ids(t5_tokenizer, text, literal=True), target_ids(t5_tokenizer, text)):
        assert sentinel not in ids and ids.count(t5_tokenizer.eos_token_id) == 1 and ids[0] == t5_tokenizer.convert_tokens_to_ids("▁ab") and ids[-1] == t5_tokenizer.eos_token_id
    assert target_ids(t5_tokenizer, text, literal=False) == t5_tokenizer(text_target=text)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_sources_and_targets_are_those_of_transformers_and_the_tokenizer_keeps_its_languages(translation_tokenizer, kind):
    source, target = LANGUAGES[kind]
    tokenizer, theirs = translation_tokenizer(kind), translation_tokenizer(kind)
    before = theirs.src_lang, theirs.tgt_lang
    asked = theirs._build_translation_inputs("das Haus", return_tensors=None, src_lang=source, tgt_lang=target)
    theirs.tgt_lang = target
    for literal in (None, True):
        assert source_ids(tokenizer, "das Haus", literal, source_lang=source, target_lang=target) == asked["input_ids"]
    assert target_ids(tokenizer, "the house", target_lang=target) == theirs(text_target="the house")["input_ids"]
    assert source_ids(tokenizer, "das Haus") == tokenizer("das Haus")["input_ids"] == translation_tokenizer(kind)("das Haus")["input_ids"] != asked["input_ids"]
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == before
    typed = [source_ids(tokenizer, [user(f"das {target} </s>")], source_lang=source), target_ids(tokenizer, f"das {target} </s>", target_lang=source)]
    for ids in typed:  # text, though there are such tokens
        assert asked["forced_bos_token_id"] not in ids and ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_and_the_rest_are_the_target_where_a_token_ends_there(translation_tokenizer, kind):
    tokenizer, language = translation_tokenizer(kind), LANGUAGES[kind][1]
    whole = target_ids(tokenizer, "the house", target_lang=language)
    given, rest = split_target(tokenizer, "the", "the house", target_lang=language)
    assert given == beginning_ids(tokenizer, "the", language) and given + rest == whole
    assert (given[0] == whole[0]) and rest[-1] == whole[-1] and tokenizer.eos_token_id not in given
    plain = tokenizer(text_target="the", add_special_tokens=False)["input_ids"] if kind != "m2m" else given[1:]
    assert beginning_ids(tokenizer, "the", first=[7, 8]) == [7, 8, *plain]
    assert split_target(tokenizer, given, "the house", target_lang=language) == (given, rest)


def test_a_token_over_the_border_is_taken_apart_as_in_generation(t5_tokenizer):
    given, rest = split_target(t5_tokenizer, "ab b", "ab bc")
    assert tokens(t5_tokenizer, given) == ["▁ab", "▁", "b"] and tokens(t5_tokenizer, rest) == ["c", "</s>"]
    assert tokens(t5_tokenizer, target_ids(t5_tokenizer, "ab bc")) == ["▁ab", "▁", "bc", "</s>"]
    assert t5_tokenizer.decode(given + rest, skip_special_tokens=True) == "ab bc"
    assert split_target(t5_tokenizer, "ab", "ab") == ([t5_tokenizer.convert_tokens_to_ids("▁ab")], [t5_tokenizer.eos_token_id])


@pytest.mark.parametrize(
    ("beginning", "text", "message"),
    [
        ("b", "ab", "the target 'ab' does not begin with 'b'"),
        ([9], "ab", r"the target 'ab' does not begin with the ids \[9\]"),
        ("", "ab", "the target is empty"),
        ("ab", "", "the target is empty"),
    ],
)
def test_a_beginning_that_is_none_is_refused(t5_tokenizer, beginning, text, message):
    with pytest.raises(UserError, match=message):
        split_target(t5_tokenizer, beginning, text)


def test_ids_that_are_the_whole_target_leave_nothing_to_say(t5_tokenizer):
    with pytest.raises(UserError, match="the beginning is all of the target"):
        split_target(t5_tokenizer, target_ids(t5_tokenizer, "ab"), "ab")


def test_a_target_whose_language_nothing_says_is_refused(translation_tokenizer):
    tokenizer = translation_tokenizer("nllb")
    with pytest.raises(UserError, match="nothing says in which language the target is.*ace_Arab, .* and 190 more"):
        target_ids(tokenizer, "das")
    assert beginning_ids(tokenizer, "das", first=()) == [tokenizer.convert_tokens_to_ids("▁das")]  # which is in none


def test_threads_that_ask_in_other_languages_do_not_meet(translation_tokenizer):
    tokenizer, wrong = translation_tokenizer("mbart50"), []
    wanted = {code: [tokenizer.convert_tokens_to_ids(code), *tokenizer("das Haus", add_special_tokens=False)["input_ids"], 2] for code in ("de_DE", "ko_KR", "fr_XX")}

    def ask(code: str) -> None:
        for _ in range(60):
            wrong.extend([code] * (source_ids(tokenizer, "das Haus", source_lang=code) != wanted[code]))
            wrong.extend([code] * (target_ids(tokenizer, "das Haus", target_lang=code) != wanted[code]))

    threads = [threading.Thread(target=ask, args=(code,)) for code in wanted]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong and (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", None)
