"""Structured output: every answer is in its language, and as likely as the masked model makes it."""

import json
import math
import re
from collections import defaultdict
from itertools import product

import pytest
import torch
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.constraints.grammar import new_grammar, over_bytes, source
from seodang.infer.text.vocabulary import Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["나무", "tree"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
WAYS = {
    "greedy": {},
    "sampled": {"temperature": 1.5, "num_return_sequences": 3, "seed": 1},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampled beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True, "temperature": 1.5, "seed": 1},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "guided": {"guidance_scale": 1.5},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
}


def fits(text: str) -> bool:
    """Whether a text is JSON of `SCHEMA`."""
    value = json.loads(text)
    name, age, tags = value["name"], value["age"], value["tags"]
    return (
        list(value) == ["name", "age", "tags"] and isinstance(name, str) and len(name) <= 8 and type(age) is int and 0 <= age <= 150
        and len(tags) <= 2 and set(tags) <= {"나무", "tree"}
    )  # fmt: skip


def bracketed(text: str) -> bool:
    return bool(re.fullmatch(r"\(*(?:[a-c]|[가-힣]){1,2}\)*", text)) and text.count("(") == text.count(")")


CHOICES = ["훈장님", '나무는 "tree"\\', "안녕 world"]
DATE = r"\d{4}-[01]\d(-x)?"
LANGUAGES = {
    "json_schema": (SCHEMA, fits),
    "regex": (DATE, lambda text: re.fullmatch(DATE, text)),
    "choice": (CHOICES, lambda text: text in CHOICES),
    "grammar": ('start: "(" start ")" | /[가-힣]{1,2}/', bracketed),
}
# the tiny tokenizer has neither Korean nor blanks
TINY_CHOICES = ["yes", 'no"tree"\\', "never"]
TINY_LANGUAGES = LANGUAGES | {
    "json_schema": (json.dumps(SCHEMA).replace(json.dumps("나무"), '"wood"'), lambda text: fits(text.replace('"wood"', '"나무"'))),
    "choice": (TINY_CHOICES, lambda text: text in TINY_CHOICES),
    "grammar": ('start: "(" start ")" | /[a-c]{1,2}/', bracketed),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_answer_of_a_tiny_model_is_in_the_language(tiny_llama, tiny_tokenizer, language, way):
    source, judge = TINY_LANGUAGES[language]
    params = SamplingParams(max_new_tokens=120, **WAYS[way], **{language: source})
    for result in generate(tiny_llama, tiny_tokenizer, ["abc", "xyz12"], params):
        if language == "grammar" and result.finish_reason == "length":
            assert re.fullmatch(r"\(+\w*\)*", result.text)  # brackets may open for ever
        else:
            assert result.finish_reason == "eos" and judge(result.text), result.text


def test_keys_come_once_in_every_way_of_searching_and_in_one_run_for_all(tiny_llama, tiny_tokenizer):
    """Four of the six names that there are: forks and rejected drafts keep their own account of what is taken."""
    schema = {"type": "object", "patternProperties": {"^[ab]{1,2}$": {"type": "null"}}, "additionalProperties": False, "minProperties": 4}
    asked = [SamplingParams(json_schema=schema, max_new_tokens=80, **way) for way in WAYS.values()]
    results = generate(tiny_llama, tiny_tokenizer, ["abc", *['{"a":null,"a":null,"ab":null,'] * (len(asked) - 1)], asked)
    assert len(results) == sum(params.num_return_sequences for params in asked)
    for result in results:
        keys = [key for key, _ in json.loads(result.text, object_pairs_hook=list)]
        assert result.finish_reason == "eos" and len(keys) == len(set(keys)) >= 4 and set(keys) <= {"a", "b", "aa", "ab", "ba", "bb"}, result.text


def test_every_answer_of_the_real_model_is_in_the_language_in_one_run_for_all(real_model, tokenizer):
    asked = [(language, way) for language in LANGUAGES for way in ("sampled", "lookup")]  # what lookup says is what greedy search says: the next test
    params = [SamplingParams(max_new_tokens=60, **WAYS[way], **{language: LANGUAGES[language][0]}) for language, way in asked]
    prompt = [{"role": "user", "content": "A child, its age and tags. 나무?"}]
    for result in generate(real_model, tokenizer, [prompt] * len(asked), params):
        assert result.finish_reason == "eos" and LANGUAGES[asked[result.prompt_index][0]][1](result.text), result.text


@pytest.mark.full
def test_a_draft_changes_nothing_under_a_grammar(real_model, tokenizer):
    base = dict(max_new_tokens=60, json_schema=SCHEMA)
    prompt = '{"name":"훈장","age":42,"tags":["나무"]}\n{"name":"훈장","age":43,"tags":["나무","tree"]}\n'
    plain, drafted = generate(real_model, tokenizer, [prompt] * 2, [SamplingParams(**base), SamplingParams(**base, prompt_lookup_num_tokens=6)])
    assert (drafted.ids, drafted.text) == (plain.ids, plain.text) and fits(plain.text)


WORDS = [a + b for a, b in product(["a", "bc"], ["", "a", "c?"])] + ["c" * n for n in range(1, 4)]


def by_enumeration(model, tokenizer, words: list[str], prompt: list[int]) -> dict[str, float]:
    """The probability of each word: at every step the model's, renormalised over the tokens that some word goes on with."""
    after = defaultdict(set)
    for ids in (tokenizer(word)["input_ids"] for word in words):
        for n, id in enumerate([*ids, 2]):
            after[tuple(ids[:n])].add(id)
    found = {}
    for word in words:
        ids, total = tokenizer(word)["input_ids"], 0.0
        for n, id in enumerate([*ids, 2]):
            logits = model(torch.tensor([[*prompt, *ids[:n]]])).logits[0, -1].detach().double()
            allowed = sorted(after[tuple(ids[:n])])
            total += float(logits[id] - logits[allowed].logsumexp(0))
        found[word] = math.exp(total)
    return found


@pytest.mark.parametrize("language", ["regex", "choice"])
def test_support_is_the_language_and_probabilities_are_those_of_the_masked_model(tiny_llama, tiny_tokenizer, language):
    prompt = [5, 6, 7]
    expected = by_enumeration(tiny_llama, tiny_tokenizer, WORDS, prompt)
    assert sum(expected.values()) == pytest.approx(1)
    asked = {"regex": r"(a|bc)(a|c\?)?|c{1,3}"} if language == "regex" else {"choice": WORDS}
    params = SamplingParams(do_sample=True, num_return_sequences=400, max_new_tokens=9, seed=4, **asked)
    results = generate(tiny_llama, tiny_tokenizer, [prompt], params, max_rows=400)
    for result in results:  # each answer's own probability
        assert math.exp(sum(result.logprobs)) == pytest.approx(expected[result.text], rel=1e-4)
    counts = {word: sum(result.text == word for result in results) for word in WORDS}
    chi_square = sum((counts[word] - 400 * p) ** 2 / (400 * p) for word, p in expected.items())
    assert chi_square < 27.9  # 9 words: 8 degrees of freedom, p = 0.0005
    search = SamplingParams(num_beams=16, max_new_tokens=9, length_penalty=0.0, early_stopping="never", **asked)
    [best] = generate(tiny_llama, tiny_tokenizer, [prompt], search)
    unnormalised = {word: full_logprob(tiny_llama, tiny_tokenizer, word, prompt) for word in WORDS}
    assert best.text == max(unnormalised, key=unnormalised.get)  # beams sum the model's own log-probabilities, as transformers does


def full_logprob(model, tokenizer, word: str, prompt: list[int]) -> float:
    ids = [*tokenizer(word)["input_ids"], 2]
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].detach().double().log_softmax(-1)
    return float(logits[torch.arange(len(ids)), ids].sum())


def allowed(constraint, vocab: int) -> set[int]:
    return set(constraint.mask(None, torch.zeros(1, vocab))[0].isfinite().nonzero()[:, 0].tolist())


def test_the_end_is_allowed_exactly_where_the_language_may_end_and_alone_where_it_must(tiny_tokenizer):
    constraint = new_grammar(SamplingParams(regex="ab?"), tiny_tokenizer, {2, 9})
    a, b = tiny_tokenizer("ab")["input_ids"]
    assert allowed(constraint, 128) == {a}
    constraint.accept(a)
    assert allowed(constraint, 128) == {b, 2, 9}  # 9 is a stop id of the caller's
    constraint.accept(b)
    assert allowed(constraint, 128) == {2, 9}
    constraint.accept(2)
    assert not constraint._matcher.is_error()


def test_a_stop_id_that_is_a_letter_of_the_language_ends_and_never_writes(tiny_tokenizer):
    a, b = tiny_tokenizer("ab")["input_ids"]
    constraint = new_grammar(SamplingParams(regex="[ab]{2}"), tiny_tokenizer, {2, b})
    assert allowed(constraint, 128) == {a}


def test_a_fork_goes_on_by_itself(tiny_tokenizer):
    constraint = new_grammar(SamplingParams(choice=["ab", "cd"]), tiny_tokenizer, {2})
    a, b, c, d = tiny_tokenizer("abcd")["input_ids"]
    fork = constraint.fork()
    constraint.accept(a)
    fork.accept(c)
    assert (allowed(constraint, 128), allowed(fork, 128)) == ({b}, {d})
    assert allowed(new_grammar(SamplingParams(choice=["ab", "cd"]), tiny_tokenizer, {2}), 128) == {a, c}  # the compiled one is untouched


def test_a_model_may_have_more_or_fewer_ids_than_the_tokenizer(tokenizer):
    constraint = new_grammar(SamplingParams(regex="(?s:.*)"), tokenizer, {2})
    small = allowed(constraint, 49_152)
    assert allowed(constraint, 49_280) == small and len(small) > 48_000
    assert allowed(constraint, 300) == {id for id in small if id < 300}


def test_a_tokenizer_that_llguidance_cannot_read_is_spelled_by_its_bytes():
    words = ["[CLS]", "[SEP]", "a", "##b", "##훈", "c"]
    backend = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[CLS]"))
    backend.decoder = decoders.WordPiece("##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", eos_token="[SEP]")
    with pytest.raises(ValueError, match="decoder"):
        LLTokenizer(backend.to_str(), eos_token=1)
    assert Vocabulary.of(tokenizer).tokens == [None, None, b" a", b"b", "훈".encode(), b" c"]
    constraint = new_grammar(SamplingParams(choice=[" ab훈", " ab c"]), tokenizer, {1})
    found = []
    for id in (2, 3, 4):
        found.append(allowed(constraint, 8))
        constraint.accept(id)
    assert [*found, allowed(constraint, 8)] == [{2}, {3}, {4, 5}, {1}]
    assert allowed(new_grammar(SamplingParams(regex="(?s:.+)"), tokenizer, {1}), 8) == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"json_schema": {"type": "objekt"}}, "json_schema cannot be used: Invalid type: objekt"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": {"not": {"type": "string"}}}, "json_schema has 'not', which is not supported"),
        ({"json_schema": "3"}, "must be an object, true or false, got 3"),
        ({"choice": ["yes", "y훈"]}, "choice has 'y훈', for which the tokenizer has no tokens"),
        ({"json_schema": {"items": {"enum": ["yes", ["y훈"]]}}}, "json_schema has 'y훈', for which the tokenizer has no tokens"),
        ({"json_schema": {"properties": {"훈": {}}}}, "json_schema has '훈', for which"),
        ({"choice": ["a", "\ud800"]}, r"choice\[1\] has the lone surrogate U\+D800"),
        ({"regex": "a\udfff"}, r"regex has the lone surrogate U\+DFFF"),
        ({"grammar": 'start: "\ud800"'}, r"grammar has the lone surrogate U\+D800"),
        ({"json_schema": '{"const": "\\ud800"}'}, "json_schema is no JSON"),
        ({"regex": "ab\\"}, "ends with a backslash that escapes nothing"),
        ({"regex": "[a&&b]"}, "no text of it can be written"),
        ({"regex": "(?=a)b"}, "look-around, including look-ahead and look-behind, is not supported"),
        ({"regex": "[0-9]{1,2}", "min_new_tokens": 3}, "min_new_tokens=3 asks for more than regex has: its longest text has at most 2 tokens"),
        ({"choice": ["yes", "no"], "min_length": 7}, "min_length=7 asks for more than choice has: its longest text has at most 3 tokens"),
        ({"json_schema": {"type": "boolean"}, "min_new_tokens": 6}, "more than json_schema has: its longest text has at most 5 tokens"),
        ({"grammar": 'start: "a" "b"?', "min_new_tokens": 4}, "more than grammar has: its longest text has at most 2 tokens"),
        ({"grammar": 'start: "a" %json {"requierd": ["a"]}'}, "did you mean 'required'"),
        ({"regex": "a(("}, "unclosed group"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
        ({"regex": "a", "choice": ["b"]}, "regex and choice both say"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos goes on"),
        ({"regex": "a", "forced_text": {1: "b"}}, "forced_text cannot stand in it"),
        ({"regex": "ab", "prefix": "ax"}, "is no beginning that regex allows"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_computed(tiny_llama, tiny_tokenizer, monkeypatch, settings, words):
    monkeypatch.setattr(type(tiny_llama), "forward", lambda *args, **kwargs: pytest.fail("computed"))
    with pytest.raises(UserError, match=words) as refusal:
        generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**{"max_new_tokens": 9, **settings}))
    assert "\n" not in str(refusal.value)


def test_every_letter_is_a_choice_and_a_constant_of_a_regex_and_of_a_schema():
    letters = [*map(chr, range(0x300)), "\u2028", "\ufffe", "\U0010ffff", "훈", "😀"]
    written = ['"\\u007f"' if letter == "\x7f" else json.dumps(letter, ensure_ascii=False) for letter in letters]
    regex = "|".join(rf"\x{{{ord(letter):x}}}" for letter in letters)
    for name, value, texts in [("choice", letters, letters), ("regex", regex, letters), ("json_schema", {"enum": letters}, written)]:
        grammar = over_bytes(name, source(name, value))
        for text in texts:
            matcher = grammar.deep_copy()
            assert matcher.consume_tokens(list(text.encode())) and matcher.is_accepting(), (name, text)


def test_a_choice_may_be_a_control_character(real_model, tokenizer):
    params = SamplingParams(choice=["\x7f", "\x00\x1b훈"], num_return_sequences=2, num_beams=2, max_new_tokens=12)
    assert {result.text for result in generate(real_model, tokenizer, ["a"], params)} == {"\x7f", "\x00\x1b훈"}


ENDS_EARLY = {"regex": "\\w{4}|[ab]{2}", "json_schema": {"enum": [1, {"a": 2}]}, "choice": ["ab", "cdefghij"], "trie": ["ab", "cdefghij"]}


@pytest.mark.parametrize("name", ENDS_EARLY)
def test_where_nothing_but_the_end_can_follow_it_wins_over_min_new_tokens_and_others_go_on(tiny_llama, tiny_tokenizer, name):
    """Each has a text of six tokens or too many to know, and goes for one that ends before."""
    early = {name: ENDS_EARLY[name], "min_new_tokens": 6, "max_new_tokens": 12}
    bias = {id: -99.0 for c in "c{d" for id in tiny_tokenizer(c)["input_ids"]}
    ways = [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}]
    asked = [SamplingParams(**early, **way, logit_bias=bias) for way in ways] + [SamplingParams(max_new_tokens=9, min_length=11, regex="a|b{20}")]
    *ended, other = generate(tiny_llama, tiny_tokenizer, ["abc"] * 4, asked)
    for result in ended:
        assert result.finish_reason == "eos" and len(result.ids) < 6, result
    assert other.finish_reason in ("eos", "length")
    plain = SamplingParams(**{**early, "min_new_tokens": 0}, logit_bias=bias)
    assert ended[0].text == generate(tiny_llama, tiny_tokenizer, ["abc"], plain)[0].text


def test_the_answer_begins_with_a_prefix_that_the_language_covers(tiny_llama, tiny_tokenizer):
    [result] = generate(tiny_llama, tiny_tokenizer, ["x"], SamplingParams(regex="(ab|cd){2}", prefix="abc", max_new_tokens=9))
    assert result.text in ("abcd",) and result.ids[:3] == tiny_tokenizer("abc")["input_ids"]


def test_a_schema_of_anything_counts_as_one(tiny_llama, tiny_tokenizer):
    nesting = {tiny_tokenizer.convert_tokens_to_ids(c): -9.0 for c in '[{"'}
    params = SamplingParams(json_schema={}, logit_bias=nesting, max_new_tokens=80)
    json.loads(generate(tiny_llama, tiny_tokenizer, ["x"], params)[0].text)


def test_all_answers_of_a_request_share_the_time_that_its_grammar_may_take(tokenizer, monkeypatch):
    """By a clock that goes on by 40 ms wherever it is read: a mask takes 20 ms beyond the ordinary ones."""
    grammar = new_grammar(SamplingParams(regex="[ab]*"), tokenizer, frozenset({tokenizer.eos_token_id}))
    monkeypatch.setattr("seodang.infer.constraints.grammar.time.thread_time", iter(n * 0.04 for n in range(1000)).__next__)
    copies, scores = [grammar.fork() for _ in range(4)], torch.zeros(1, len(tokenizer))
    for n in range(49):
        copies[n % 4].mask(None, scores)
    with pytest.raises(UserError, match="regex takes more than 1 s to say what may come next: write it so"):
        for n in range(4):
            copies[n].mask(None, scores)


@pytest.mark.parametrize("schema", ['{"items":' * 300 + "{}" + "}" * 300, "[" * 100_000, '{"items":' * 20_000 + "{}" + "}" * 20_000], ids=["deep", "lists", "deeper"])
def test_a_schema_too_deep_is_refused_before_anything_recurses_into_it(tokenizer, schema):
    ends = frozenset({tokenizer.eos_token_id})
    with pytest.raises(UserError, match="json_schema (has more than 256 objects and lists in one another|is no JSON: lists or objects lie too deep)"):
        new_grammar(SamplingParams(json_schema=schema), tokenizer, ends)
    with pytest.raises(UserError, match="grammar cannot be used|json_schema has more than 256"):
        new_grammar(SamplingParams(grammar=f"start: %json {schema}"), tokenizer, ends)
