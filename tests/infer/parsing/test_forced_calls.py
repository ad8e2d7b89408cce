"""A random model under a grammar of calls gives text that parses to calls whose arguments its tools' schemas take."""

import json

import pytest
import torch
from jsonschema import Draft202012Validator

from seodang.data.errors import UserError
from seodang.data.form import SENTINEL
from seodang.infer.constraints.grammar import new_grammar
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.parsing.call_form import NUMBER
from seodang.infer.parsing.forced_calls import call_grammar, strict_grammar
from seodang.infer.parsing.form import answer_form
from seodang.infer.parsing.parser import parsed
from seodang.infer.text.detokenise import special_ids

CITY = {
    "type": "object",
    "properties": {
        "도시": {"type": "string", "enum": ["수원", "서울 \"강남\"", "Lyon\n2"]},
        "note": {"type": "string", "maxLength": 6},
        "code": {"type": "string", "pattern": "^[A-C]{2}/[0-9]$"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "metric": {"type": "boolean"},
        "unit": {"anyOf": [{"type": "string", "enum": ["C", "F"]}, {"type": "null"}]},
        "box": {"$ref": "#/$defs/box"},
    },
    "required": ["도시", "code", "metric", "box"],
    "$defs": {"box": {"type": "object", "properties": {"w": {"enum": [1, 2.5, "넓게"]}}, "required": ["w"], "additionalProperties": False}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "?", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "get_weather_now", "description": "?", "parameters": {"type": "object", "properties": {}}}},
]
SCHEMAS = {tool["function"]["name"]: Draft202012Validator(tool["function"]["parameters"]) for tool in TOOLS}
FORMS = [
    "qwen3", "llama3_1", "deepseekv3", "gptoss", "qwen3_5_nothink", "glm4moe", "muse_glimmer", "mistral_v3", "mistral_v11", "mistral_v13", "kimi",
    "arguments_first",
]  # fmt: skip
ANYTHING = {"type": "object", "properties": {"x": {"type": "integer"}}}
LOOSE = {"type": "function", "function": {"name": "loose", "description": "?", "parameters": ANYTHING}}
USER = [{"role": "user", "content": "?"}]


@pytest.fixture
def spoken(tiny):
    """`spoken(tokenizer, grammars, **options)`: the text of a random model's answer under each, control tokens of the form written out."""

    def speak(tokenizer, grammars, **options):
        model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id)
        options = {"temperature": 1.0, "do_sample": True, "max_new_tokens": 700, **options}
        params = [SamplingParams(grammar=grammar, seed=seed, **options) for seed, grammar in enumerate(grammars)]
        results = generate(model, tokenizer, [USER] * len(params), params)
        assert [result.finish_reason for result in results] == ["eos"] * len(results), [result.text for result in results]
        hidden = special_ids(tokenizer) - answer_form(tokenizer).control_ids
        shown = [[id for id in result.ids if id not in hidden] for result in results]
        return [tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) for ids in shown]

    return speak


def checked(tokenizer, text, **how):
    """The answer that the text is of, its calls valid."""
    answer = parsed(answer_form(tokenizer), text, tools=TOOLS, **how)
    for call in answer.calls:
        SCHEMAS[call.name].validate(json.loads(call.arguments))
    return answer


@pytest.mark.parametrize("name", FORMS)
def test_a_forced_call_is_a_valid_call(templated, templated_small, spoken, name):
    tokenizer = (templated if name in ("qwen3", "muse_glimmer") else templated_small)(name)
    any_tool, named = call_grammar(tokenizer, TOOLS, parallel=False), call_grammar(tokenizer, TOOLS, name="get_weather")
    answers = [checked(tokenizer, text) for text in spoken(tokenizer, [any_tool, named, named])]
    assert [(answer.thinking, answer.content, len(answer.calls)) for answer in answers] == [("", "", 1)] * 3
    assert [answer.calls[0].name for answer in answers[1:]] == ["get_weather"] * 2


@pytest.mark.parametrize("name", FORMS)
def test_several_calls_where_the_form_has_them(templated_small, name):
    tokenizer = templated_small(name)
    form, one = answer_form(tokenizer).calls, written_call(tokenizer)
    begin, between = (text.replace(SENTINEL, "get_weather_now") for text in (form.opening, form.between or "\n"))
    two = one.removesuffix(form.closing) + between + one.removeprefix(begin)
    several, single, named = (call_grammar(tokenizer, TOOLS, **how) for how in ({}, {"parallel": False}, {"name": "get_weather_now"}))
    assert [takes(tokenizer, grammar, one) for grammar in (several, single, named)] == [True] * 3
    assert [takes(tokenizer, grammar, two) for grammar in (several, single, named)] == [form.between is not None, False, False]
    assert not takes(tokenizer, several, f"Hi {one}") and not takes(tokenizer, several, one.replace("get_weather_now", "get_weather"))
    if form.between is not None:
        assert len(checked(tokenizer, two).calls) == 2


@pytest.mark.parametrize("name", ["qwen3", "gptoss", "muse_glimmer"])
def test_a_thought_may_come_first_and_an_open_one_has_to_be_closed(templated_small, name):
    tokenizer = templated_small(name)
    opening, closing = answer_form(tokenizer).thinking
    call = written_call(tokenizer)
    free, opened, without = (call_grammar(tokenizer, TOOLS[1:], parallel=False, **how) for how in ({"thinking": True}, {"in_thinking": True}, {}))
    thought = f"{opening}\n생각 < x\n{closing}\n"
    behind = thought.removeprefix(opening)
    texts = call, thought + call.lstrip(), behind + call.lstrip()
    taken = [[takes(tokenizer, grammar, text) for text in texts] for grammar in (free, opened, without)]
    again = name == "qwen3"  # in a thought its opening is a text like any other, where it holds no control token
    assert taken == [[True, True, False], [False, again, True], [True, False, False]]


def written_call(tokenizer):
    """A call of the second tool as the template writes it."""
    call = answer_form(tokenizer).calls
    arguments = "" if call.parameters else "{}"
    first, last = (arguments, SENTINEL) if call.name_last else (SENTINEL, arguments)
    text = f"{call.opening}{call.head}{first}{call.middle}{last}{call.tail}{call.closing}"
    return text.replace(SENTINEL, "get_weather_now").replace(NUMBER, "0")


def takes(tokenizer, grammar, text):
    """Whether a whole answer of this text is in the language, control tokens read as such."""
    grammar = new_grammar(SamplingParams(grammar=grammar), tokenizer, [tokenizer.eos_token_id])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not grammar.takes(ids):
        return False
    for id in ids:
        grammar.accept(id)
    return bool(grammar.mask(None, torch.zeros(1, len(tokenizer)))[0, tokenizer.eos_token_id].isfinite())


@pytest.mark.parametrize("name", ["qwen3", "mistral_v11", "qwen3_5_nothink"])
def test_strict_arguments_in_a_free_answer(templated_small, name):
    tokenizer = templated_small(name)
    grammar = strict_grammar(tokenizer, [*TOOLS, LOOSE])
    call, form = written_call(tokenizer), answer_form(tokenizer).calls
    loose = call.replace("get_weather_now", "loose")
    wrong = call.replace("get_weather_now", "get_weather")  # without what is required
    unknown = call.replace("get_weather_now", "other")
    texts = ["", "Hi < there", f"Hi{call}", call, f"Hi{loose} bye", f"Hi{wrong}", f"Hi{unknown}"]
    assert [takes(tokenizer, grammar, text) for text in texts] == [True] * 5 + [False] * 2
    if form.between:
        assert takes(tokenizer, grammar, call.removesuffix(form.closing) + form.between + call.removeprefix(form.opening))


def test_what_cannot_be_asked_is_said(templated_small):
    with pytest.raises(UserError, match="no tool is named 'x': the tools are get_weather, get_weather_now"):
        call_grammar(templated_small("qwen3"), TOOLS, name="x")
    with pytest.raises(UserError, match="there are no tools"):
        call_grammar(templated_small("qwen3"), [])
    with pytest.raises(UserError, match="writes no tool calls"):
        call_grammar(templated_small("llama3"), TOOLS)
    for name in ("llama3_1", "gptoss"):
        with pytest.raises(UserError, match="'get_weather' is strict, but nothing"):
            strict_grammar(templated_small(name), TOOLS)
    uri = {"type": "object", "properties": {"u": {"type": "string", "format": "uri"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": uri}}]
    assert "uri" in call_grammar(templated_small("qwen3"), tools)
    with pytest.raises(UserError, match="format='uri'"):
        call_grammar(templated_small("glm4moe"), tools)
