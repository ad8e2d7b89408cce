"""A random model under a grammar of calls gives text that parses to calls whose arguments its tools' schemas take."""

import json

import pytest
from jsonschema import Draft202012Validator

from seodang.data.errors import UserError
from seodang.infer.answers.forced_calls import call_grammar, strict_grammar
from seodang.infer.answers.form import answer_form
from seodang.infer.answers.parser import parsed
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
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
SEEDS = range(4)


@pytest.fixture
def spoken(templated, tiny):
    """`spoken(form, grammar, seed)`: the text of a tiny random model's answer, control tokens of the form written out, and why it ended."""

    def speak(tokenizer, grammar, seed, **options):
        model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id)
        params = SamplingParams(grammar=grammar, temperature=1.0, do_sample=True, seed=seed, max_new_tokens=400, **options)
        [result] = generate(model, tokenizer, [[{"role": "user", "content": "?"}]], params)
        hidden = special_ids(tokenizer) - answer_form(tokenizer).control_ids
        ids = [id for id in result.ids if id not in hidden]
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), result.finish_reason

    return speak


def check(answer):
    for call in answer.calls:
        SCHEMAS[call.name].validate(json.loads(call.arguments))


@pytest.mark.parametrize("name", FORMS)
def test_a_forced_call_is_a_valid_call(templated, spoken, name):
    tokenizer = templated(name)
    names = set()
    for seed in SEEDS:
        text, why = spoken(tokenizer, call_grammar(tokenizer, TOOLS, parallel=False), seed)
        answer = parsed(answer_form(tokenizer), text, tools=TOOLS)
        assert why == "eos" and answer.thinking == answer.content == "" and len(answer.calls) == 1, text
        check(answer)
        names.add(answer.calls[0].name)
    text, _ = spoken(tokenizer, call_grammar(tokenizer, TOOLS, name="get_weather"), 9)
    answer = parsed(answer_form(tokenizer), text, tools=TOOLS)
    assert [call.name for call in answer.calls] == ["get_weather"]
    check(answer)
