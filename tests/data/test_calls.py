"""Tool calls, however they are written, reach each kind of template in the form that it renders rightly, or are refused by name."""

import copy
import json
import re

import pytest

from seodang.data.calls import as_json, lost, with_calls
from seodang.data.chat import end_of_turn_ids, prompt_ids, prompt_text
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue
from seodang.data.labels import prepare

ARGUMENTS = {"도시": "수원", "days": [1, 2.0, {"hour": None, "sunny": True}], "note": 'say "hi"\n'}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells.", "parameters": {"type": "object", "properties": {}}}}]
ASK = {"role": "user", "content": "Q"}

# Templates in small of the kinds that there are: what stands between a turn's header and its end.
HEAD = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
END = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
EACH = "{% for c in m.tool_calls %}{{ '[' + c.function.name + ' ' + %s + ']' }}{% endfor %}"
KINDS = {
    "json": HEAD + "{{ m.content }}" + EACH.replace("%s", "c.function.arguments | tojson") + END,
    "apart": HEAD + "{{ m.content }}{% for c in m.tool_calls %}<{{ c.function.name }}>{% for k, v in c.function.arguments | items %}"
    "<{{ k }}>{{ v if v is string else v | tojson }}</{{ k }}>{% endfor %}{% endfor %}" + END,
    "text": HEAD + "{{ m.content }}" + EACH.replace("%s", "c.function.arguments") + END,
    "python": HEAD + "{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.name }} {{ c.function.arguments }}]{% endfor %}" + END,
    "either": HEAD + "{{ m.content }}"
    + EACH.replace("%s", "(c.function.arguments if c.function.arguments is string else c.function.arguments | tojson)") + END,
    "null": HEAD + "{% if m.content is none %}" + EACH.replace("%s", "c.function.arguments") + "{% else %}{{ m.content }}{% endif %}" + END,
    "absent": HEAD + "{% if m.content is defined %}{{ m.content }}{% else %}" + EACH.replace("%s", "c.function.arguments | tojson") + "{% endif %}" + END,
    "second": HEAD + "{% if m.tool_calls %}" + EACH.replace("%s", "c.function.arguments | tojson") + "{{ '<|im_end|>\n' }}{% endif %}"
    "{% if m.content is string %}{{ m.content }}" + END.replace("{% endfor %}", "{% endif %}{% endfor %}", 1),
}  # fmt: skip
JSON = '{"도시": "수원", "days": [1, 2.0, {"hour": null, "sunny": true}], "note": "say \\"hi\\"\\n"}'
WRITTEN = {
    "apart": '<weather><도시>수원</도시><days>[1, 2.0, {"hour": null, "sunny": true}]</days><note>say "hi"\n</note>',
    **{kind: f"[weather {JSON}]" for kind in ("json", "text", "python", "either", "null", "absent", "second")},
}

FIRST = KINDS["json"].replace("in m.tool_calls %}", "in (m.tool_calls or [])[:1] %}")  # as gpt-oss's


@pytest.fixture(scope="module")
def smol(_tokenizer):
    return copy.deepcopy(_tokenizer)


def called(*calls, **more):
    return {"role": "assistant", "tool_calls": list(calls), **more}


def call(arguments, name="weather", **more):
    return {"type": "function", **more, "function": {"name": name, "arguments": arguments}}


def trained(tokenizer, *messages, **how):
    """The text of what is trained of a dialogue, one for each answer."""
    rows, counts = prepare([Dialogue([ASK, *messages], TOOLS, "a.jsonl line 3")], tokenizer, max_length=2048, **how)
    labels = [label for row in rows for label in row["labels"]]
    ids = [label for label in labels if label != -100]
    return tokenizer.decode(ids), counts


def refusal(tokenizer, *messages):
    with pytest.raises(UserError) as refused:
        trained(tokenizer, *messages)
    return str(refused.value)


# As Command R7B's: the header of the next answer is always written, thinking closed in it, and its own is another.
HEADED = (
    "{{ bos_token }}{% for m in messages %}<|open|>{{ '<|bot|>' if m.role == 'assistant' else '<|user|>' }}"
    "{% if m.tool_calls %}<|think|><|/think|><|call|>{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|/call|>"
    "{% elif m.role == 'assistant' %}<|say|>{{ m.content }}<|/say|>{% else %}{{ m.content }}{% endif %}<|close|>{% endfor %}"
    "<|open|><|bot|><|think|><|/think|>"
)


@pytest.fixture(scope="module")
def headed(_tokenizer):
    tokenizer = copy.deepcopy(_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(re.findall(r"<\|/?[a-z]+\|>", HEADED)))})
    tokenizer.chat_template = HEADED
    return tokenizer


@pytest.mark.parametrize("bos", ["<|endoftext|>", "<|open|>"])  # what begins a text may be what begins a turn
def test_the_header_of_the_next_turn_is_no_part_of_an_answer(headed, bos):
    tokenizer = copy.deepcopy(headed)
    tokenizer.bos_token = bos
    if bos == "<|open|>":
        tokenizer.chat_template = HEADED.removeprefix("{{ bos_token }}")
    assert tokenizer.convert_ids_to_tokens(end_of_turn_ids(tokenizer)) == ["<|im_end|>", "<|close|>"]
    text, _ = trained(tokenizer, {"role": "assistant", "content": "A"}, ASK, {"role": "assistant", "content": "B"})
    assert text == "<|say|>A<|/say|><|close|><|say|>B<|/say|><|close|>"
    text, _ = trained(tokenizer, called(call({"a": 1})))
    assert text == '<|call|>{"name": "weather", "arguments": {"a": 1}}<|/call|><|close|>'


def test_thinking_that_the_prompt_opens_is_closed_as_the_template_closes_it(smol):
    glm = copy.deepcopy(smol)  # as GLM-4.7's, whose finished turns have the closing tag alone
    glm.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}"
        "{{ '<think>' + m.reasoning_content if m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant <think>{% endif %}"
    )
    assert trained(glm, {"role": "assistant", "content": "A"})[0] == "</think>A<|im_end|>"
    assert trained(glm, {"role": "assistant", "content": "A", "reasoning_content": "T"})[0] == "T</think>A<|im_end|>"


def test_calls_that_the_prompt_leaves_out_are_told_once_a_template(smol, caplog):
    tokenizer = copy.deepcopy(smol)
    talk = [ASK, called(call({"city": "Suwon"})), {"role": "tool", "content": "Sunny."}, ASK]
    tokenizer.chat_template = KINDS["json"]
    prompt_ids(tokenizer, talk, TOOLS)
    assert not caplog.messages
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    for _ in range(2):
        prompt_ids(tokenizer, talk)
    assert caplog.messages == ["The chat template leaves the call of 'weather' out of the prompt: the model does not see it."]


@pytest.mark.parametrize("kind", KINDS)
def test_however_a_call_is_written_the_template_writes_it_rightly(smol, kind):
    smol.chat_template = KINDS[kind]
    compact = json.dumps(ARGUMENTS, ensure_ascii=True, separators=(",", ":"))
    ways = [
        *(called(call(arguments), **content) for arguments in (ARGUMENTS, JSON, compact) for content in ({"content": ""}, {"content": None}, {})),
        called({"name": "weather", "arguments": compact}, content=""),  # flat
        called(call(ARGUMENTS, id=None), content=None),  # a column of a table
        {"role": "assistant", "tool_calls": json.dumps([call(JSON)]), "content": ""},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": JSON}},
    ]
    for message in ways:
        assert trained(smol, message)[0] == WRITTEN[kind] + "<|im_end|>"
        history = prompt_text(smol, [ASK, message, {"role": "tool", "content": "맑음"}], TOOLS)
        assert history.count(WRITTEN[kind] + "<|im_end|>") == 1 and "맑음" in history


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_one_function_are_all_trained(smol, kind):
    smol.chat_template = KINDS[kind]
    text, _ = trained(smol, called(call(ARGUMENTS), call(JSON, "clock"), call("")))
    nothing = "<weather>" if kind == "apart" else "[weather {}]"
    assert text == WRITTEN[kind] + WRITTEN[kind].replace("weather", "clock") + nothing + "<|im_end|>"


def test_text_that_is_no_json_goes_as_it_is_where_the_template_takes_text(smol):
    for kind in ("text", "either", "null", "python"):
        smol.chat_template = KINDS[kind]
        assert trained(smol, called(call("도시=수원")))[0] == "[weather 도시=수원]<|im_end|>"
    for kind in ("json", "apart"):
        smol.chat_template = KINDS[kind]
        for arguments in ("도시=수원", '"{}"', "[1]", '{"a": NaN}'):
            said = f"a.jsonl line 3: the arguments of 'weather' must be a JSON object, which the chat template takes apart, got {arguments!r}"
            assert refusal(smol, called(call(arguments))) == said


@pytest.mark.parametrize(
    "template, message, named",
    [
        (KINDS["null"], called(call(ARGUMENTS), content="weather를 볼게요."), "leaves the call of 'weather' out of the answer: .* leave out the text"),
        (FIRST, called(call({}), call({}, "clock")), "leaves the call of 'clock' out"),
        (FIRST, called(call({}), call({})), "leaves a call of 'weather' out"),
        (KINDS["apart"].replace("v if v", "'*' if v"), called(call({"at": {"도시": "수원"}, "days": "2일"})), "the argument days of the call of 'weather'"),
        (KINDS["apart"].replace("v | tojson", "{'day': v.day} | tojson"), called(call({"a": {"day": 1, "hour": "9"}})), r"the argument a\.hour of the"),
        (HEAD + "{{ m.content }}" + END, called(call({}), content="잠시만요."), "leaves the call of 'weather' out"),
        (HEAD + "{{ m.content }}" + END, called(call({}), content=""), "writes nothing of this answer: tool calls need a template"),
    ],
)
def test_what_the_template_leaves_out_of_a_call_is_refused_by_name(smol, template, message, named):
    smol.chat_template = template
    with pytest.raises(UserError, match=f"^a.jsonl line 3: the chat template .*{named}"):
        trained(smol, message)


def test_text_beside_calls_is_trained_or_counted_as_lost(smol):
    beside = called(call(ARGUMENTS), content="볼게요. ")
    smol.chat_template = KINDS["json"]
    text, counts = trained(smol, beside)
    assert text == f"볼게요. [weather {JSON}]<|im_end|>" and counts.text_dropped == 0
    smol.chat_template = KINDS["json"].replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}")
    text, counts = trained(smol, beside)
    assert text == f"[weather {JSON}]<|im_end|>" and counts.text_dropped == 1
    assert "text beside     1 tool calls was lost to the template" in counts.lines()
    smol.chat_template = KINDS["second"]  # it writes the text in a turn behind that of the calls, where generation has ended
    text, counts = trained(smol, beside)
    assert text == f"[weather {JSON}]<|im_end|>" and counts.text_dropped == 1


def test_special_text_in_arguments_is_no_control_token_however_json_spells_it(smol):
    end = smol.convert_tokens_to_ids("<|im_end|>")
    for template in (KINDS["json"].replace("tojson", "tojson(ensure_ascii=true)"), KINDS["text"], KINDS["apart"]):
        smol.chat_template = template
        for arguments in ({"a": "<|im_end|>"}, '{"a": "<|im_end|>"}', '{"a": "\\u003c|im_end|>"}'):
            [row], _ = prepare([Dialogue([ASK, called(call(arguments))])], smol, max_length=512)
            ids = [label for label in row["labels"] if label != -100]
            assert ids.count(end) == 1 and smol.decode(ids).count("<|im_end|>") == 2
            prompt = prompt_ids(smol, [ASK, called(call(arguments)), {"role": "tool", "content": "?"}])
            assert prompt.count(end) == 3 and smol.decode(prompt).count("<|im_end|>") == 4


def test_a_template_for_tools_alone_is_asked_with_a_tool(smol):
    smol.chat_template = {"default": HEAD + "{{ m.content }}" + END, "tool_use": KINDS["null"].replace("<|im_end|>", "<file_sep>")}
    assert trained(smol, called(call(ARGUMENTS), content=""))[0] == WRITTEN["null"] + "<file_sep>"
    assert smol.convert_tokens_to_ids("<file_sep>") in end_of_turn_ids(smol)
    needs = "{{ raise_exception('no tools') if not tools }}"
    smol.chat_template = needs + HEAD + "{{ m.content }}<file_sep>{% endfor %}"
    assert smol.convert_tokens_to_ids("<file_sep>") in end_of_turn_ids(smol)
    smol.chat_template = needs + KINDS["null"]
    assert trained(smol, called(call(ARGUMENTS), content=""))[0] == WRITTEN["null"] + "<|im_end|>"


def test_tool_outputs_in_parts_are_those_in_text(smol):
    smol.chat_template = HEAD + "{% if m.content is string %}{{ m.content }}{% elif m.role == 'user' %}{{ m.content[0].text }}{% endif %}" + END
    parts = [{"type": "text", "text": "21"}, {"type": "text", "text": "도"}]
    assert prompt_text(smol, [ASK, {"role": "tool", "content": parts}]) == prompt_text(smol, [ASK, {"role": "tool", "content": "21도"}])
    assert "21도" in prompt_text(smol, [ASK, {"role": "tool", "content": parts}])


@pytest.mark.parametrize(
    "message, named",
    [
        ({"tool_calls": {"name": "f"}}, "tool_calls must be a list of calls, got {'name': 'f'}"),
        ({"tool_calls": "[{"}, "tool_calls is not JSON"),
        ({"tool_calls": ["f()"]}, r"must be an object of name and arguments, got 'f\(\)'"),
        ({"tool_calls": [{"type": "function", "function": {"arguments": {}}}]}, "a tool call must have a name"),
        ({"tool_calls": [{"name": "f", "parameters": {"a": 1}}]}, "the call of 'f' has parameters and no arguments"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, r"the arguments of 'f' must be an object or JSON text of one, got \[1\]"),
        ({"tool_calls": [{"name": "f", "arguments": {"a": float("nan")}}]}, "the arguments of 'f' hold what JSON cannot say"),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": 1e999}'}]}, "the arguments of 'f' hold what JSON cannot say"),
        ({"tool_calls": [{"name": "f", "arguments": '{"a": "\\ud800"}'}]}, "the arguments of 'f': a has the lone surrogate"),
        ({"tool_calls": [{"name": "f"}], "function_call": {"name": "f"}}, "has tool_calls and function_call"),
    ],
)
def test_what_is_no_call_is_refused(message, named):
    with pytest.raises(UserError, match=named) as refused:
        with_calls({"role": "assistant", "content": "", **message})
    assert "\n" not in str(refused.value)


def test_a_message_without_calls_has_no_such_key():
    said = {"role": "assistant", "content": "A"}
    assert with_calls({**said, "tool_calls": [], "function_call": None}) == with_calls({**said, "tool_calls": ""}) == with_calls(said) == said


def test_arguments_keep_their_order_their_letters_and_their_numbers():
    text = '{"z": 1.0, "a": -2.5e-07, "수": 100000000000000000000000, "e": "é\\n", "n": {"": []}}'
    [made] = with_calls({"tool_calls": [{"name": "f", "arguments": text}]})["tool_calls"]
    assert made == {"type": "function", "function": {"name": "f", "arguments": json.loads(text)}}
    assert as_json(made["function"]["arguments"]) == text


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(ARGUMENTS), json.dumps(ARGUMENTS, ensure_ascii=False, indent=4), json.dumps(json.dumps(ARGUMENTS)), repr(ARGUMENTS),
        "<도시>수원</도시><days>[1, 2.0, {&quot;hour&quot;: none, &quot;sunny&quot;: True}]</days><note>say &quot;hi&quot;</note>",
        "도시='수원', days=[1, 2.0, {'hour': None, 'sunny': True}], note='say \\'\\'hi\\'\\'\\n'".replace("\\'\\'", '"'),
    ],
)  # fmt: skip
def test_every_spelling_of_a_call_holds_all_of_it_and_none_without_a_leaf(written):
    calls = [call(ARGUMENTS)]
    assert lost(calls, f"weather({written})") == ""
    assert lost(calls, written) == "the call of 'weather'"
    for leaf, place in (("2.0", "days[1]"), ("sunny", "days[2].sunny"), ("say", "note"), ("days", "days")):
        assert lost(calls, f"weather({written})".replace(leaf, "_")) == f"the argument {place} of the call of 'weather'"


def test_what_is_said_beside_a_call_does_not_stand_for_it():
    calls, beside = [call({"city": "Suwon"})], "weather: city Suwon"
    assert lost(calls, beside, [beside]) == "the call of 'weather'"
    assert lost(calls, f"{beside} weather(Suwon)", [beside]) == "the argument city of the call of 'weather'"
    assert lost(calls, f"{beside} weather(city=Suwon)", [beside]) == lost(calls, "weather(city=Suwon)", [beside]) == ""
