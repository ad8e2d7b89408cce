"""The rules of labels on the real chat templates that trl carries, each on SmolLM2's tokenizer with the template's special tokens added."""

import copy
import re
from pathlib import Path

import pytest
import trl

from seodang.data.chat import end_of_turn_ids, prompt_ids
from seodang.data.formats import Dialogue
from seodang.data.labels import prepare

FILES = {path.stem: path for path in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))}
SPECIAL = re.compile(r"<\|[\w ]+\|>|<｜[^<>｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<\|\w+>|<\w+\|>|</s>|\[/?INST\]")
ANSWERS = ["수원은 한국에 있다.", "In France."]
TALK = [
    {"role": "user", "content": "Where is Suwon?"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "그럼 Lyon?"},
    {"role": "assistant", "content": ANSWERS[1]},
]

# What the template writes between the prompt of generation and an answer without thinking, and the token that ends the turn.
BEFORE = {
    "deepseek": "\n</think>\n\n", "glm4moe": "\n<think></think>\n", "gptoss": "<|channel|>final<|message|>", "idefics3": " ", "llava_next": " ",
    "muse_glimmer": " to=user<|message|>", "nemotron": "</think>", "qwen3_5_think": "\n</think>\n\n", "qwen3_6": "\n</think>\n\n",
    "qwen3_8": "\n</think>\n\n", "smolvlm": " ",
}  # fmt: skip
BEFORE_EXACTLY = {"qwen3": "<think>\n\n</think>\n\n", "qwen3_training": "<think>\n\n</think>\n\n"}
STOP = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>", "gemma4": "<turn|>", "glm4moe": "<|user|>", "gptoss": "<|return|>", "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>", "llava_next": "</s>", "muse_glimmer": "<|eot|>", "phi3": "<|end|>", "smolvlm": "<end_of_utterance>",
}  # fmt: skip
# Several rows, because in the history the template writes an answer otherwise than the model emitted it: without the thinking block that
# the prompt opens or the template writes, or with another end of turn (gpt-oss).
REWRITES_HISTORY = ("deepseek", "gptoss", "nemotron", "qwen3_5_think", "qwen3_6")
REWRITES_EXACTLY = {"qwen3"}
PRESERVES = {"qwen3_5_think_training", "qwen3_6_training"}  # trl's patches of two of these, which keep the thinking block
MERGES = ("llama3", "qwen3_5_nothink")  # SmolLM2's tokenizer makes one token of the "\n\n" that ends the prompt, but two before a letter


def of(table, name):
    """The value of the longest prefix of the template's name."""
    return next((table[prefix] for prefix in sorted(table, key=len, reverse=True) if name.startswith(prefix)), None)


def expected(name, answer):
    before = BEFORE_EXACTLY.get(name) or of(BEFORE, name) or ""
    return before + answer + (of(STOP, name) or "<|im_end|>")


@pytest.fixture(scope="module")
def everyones(_tokenizer):
    tokenizer = copy.deepcopy(_tokenizer)
    found = {token for path in FILES.values() for token in SPECIAL.findall(path.read_text())}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
    return tokenizer


@pytest.fixture(params=FILES)
def template(request, everyones):
    everyones.chat_template = FILES[request.param].read_text()
    return request.param


def rendered(tokenizer, name, messages, **how):
    """transformers' own rendering; vision templates read contents as parts."""
    if name.startswith(("idefics3", "llava_next", "smolvlm")):
        messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return tokenizer.apply_chat_template(messages, tokenize=True, **{"return_dict": False, **how})


def runs(row):
    """(start, end) of each stretch of trained tokens."""
    trained = [label != -100 for label in row["labels"]] + [False]
    starts = [at for at in range(len(trained)) if trained[at] and not trained[at - 1]]
    return [(start, trained.index(False, start)) for start in starts]


def test_every_trained_turn_stands_behind_exactly_the_prompt_of_generation(everyones, template):
    rows, _ = prepare([Dialogue(TALK)], everyones, max_length=4096)
    prompts = [prompt_ids(everyones, TALK[:1]), prompt_ids(everyones, TALK[:3])]
    assert prompts == [rendered(everyones, template, TALK[:turn], add_generation_prompt=True) for turn in (1, 3)]
    assert [row["input_ids"][:start] for row in rows for start, _ in runs(row)] == prompts


def test_the_trained_tokens_are_the_answer_and_its_end_of_turn(everyones, template):
    rows, _ = prepare([Dialogue(TALK)], everyones, max_length=4096)
    trained = [row["input_ids"][start:end] for row in rows for start, end in runs(row)]
    assert [everyones.decode(ids) for ids in trained] == [expected(template, answer) for answer in ANSWERS]
    assert all(ids[-1] in end_of_turn_ids(everyones) for ids in trained)
    assert all(row["labels"][at] in (-100, row["input_ids"][at]) for row in rows for at in range(len(row["labels"])))


def test_a_row_equals_the_rendering_where_no_history_is_rewritten_and_no_merge_crosses(everyones, template):
    rows, counts = prepare([Dialogue(TALK)], everyones, max_length=4096)
    merges = template.startswith(MERGES)
    rewrites = template in REWRITES_EXACTLY or template.startswith(REWRITES_HISTORY) and template not in PRESERVES
    assert counts.boundary_merges == (2 if merges else 0)
    assert counts.split_dialogues == (1 if merges or rewrites else 0)
    assert len(rows) == (2 if merges or rewrites else 1)
    if merges or rewrites:
        return
    [row] = rows
    whole = rendered(everyones, template, TALK)
    if template == "glm4moe":  # the header of a next turn ends the last one too, and the rendering has none
        assert row["input_ids"] == [*whole, everyones.convert_tokens_to_ids("<|user|>")]
        return
    assert whole[: len(row["input_ids"])] == row["input_ids"]
    assert everyones.decode(whole[len(row["input_ids"]) :]) in ("", "\n", " ", "\n<|im_end|>")  # behind the end of turn, not trained


@pytest.mark.parametrize("name", [name for name in FILES if re.search(r"\{%-?\s*generation", FILES[name].read_text())])
def test_the_templates_own_marks_differ_only_where_turns_begin_and_end(everyones, name):
    everyones.chat_template = FILES[name].read_text()
    rows, _ = prepare([Dialogue(TALK)], everyones, max_length=4096)
    if len(rows) > 1:
        assert name.startswith((*REWRITES_HISTORY, *MERGES))  # no row is the rendering that is marked
        return
    encoding = rendered(everyones, name, TALK, return_dict=True, return_assistant_tokens_mask=True)
    ids, marked = encoding["input_ids"], encoding["assistant_masks"]
    ours = [label != -100 for label in rows[0]["labels"]] + [False] * (len(ids) - len(rows[0]["labels"]))
    assert all(mark for mark, trained in zip(marked, ours, strict=True) if trained)
    # the marks may also hold what the prompt of generation already has of the turn, and what follows the end of a turn
    begins = set()
    for turn in (1, 3):
        begins |= set(range(len(rendered(everyones, name, TALK[:turn])), len(prompt_ids(everyones, TALK[:turn]))))
    stops = set(end_of_turn_ids(everyones))
    for at, (mark, trained) in enumerate(zip(marked, ours, strict=True)):
        if mark and not trained and at not in begins:
            before = at
            while everyones.decode([ids[before]]).isspace():
                before -= 1
            assert ids[before] in stops


def test_the_tests_see_every_template_that_trl_carries():
    assert len(FILES) >= 70 and sum(name.endswith("_training") for name in FILES) >= 30


def test_thinking_of_an_earlier_turn_gives_a_row_of_its_own(everyones):
    everyones.chat_template = FILES["qwen3"].read_text()
    talk = [TALK[0], {**TALK[1], "reasoning_content": "R1"}, TALK[2], {**TALK[3], "reasoning_content": "R2"}]
    rows, counts = prepare([Dialogue(talk)], everyones, max_length=4096)
    encode = lambda text: everyones(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    first = "<|im_start|>user\nWhere is Suwon?<|im_end|>\n<|im_start|>assistant\n"
    asked = encode(first)
    again = encode(f"{first}{ANSWERS[0]}<|im_end|>\n<|im_start|>user\n그럼 Lyon?<|im_end|>\n<|im_start|>assistant\n")
    said = [encode(f"<think>\nR{n + 1}\n</think>\n\n{ANSWERS[n]}<|im_end|>") for n in (0, 1)]
    assert [row["input_ids"] for row in rows] == [asked + said[0], again + said[1]]
    assert [row["labels"] for row in rows] == [[-100] * len(asked) + said[0], [-100] * len(again) + said[1]]
    assert counts.split_dialogues == 1 and counts.thinking_dropped == 0


@pytest.mark.parametrize(
    "name, trained, dropped",
    [
        ("deepseek_r1_distill", "R1\n</think>\n\n수원은 한국에 있다.<｜end▁of▁sentence｜>", 0),  # the prompt opens <think>, the turn leaves it out
        ("qwen3_5_think", "R1\n</think>\n\n수원은 한국에 있다.<|im_end|>", 0),
        ("qwen3_5_nothink", "수원은 한국에 있다.<|im_end|>", 1),  # the prompt holds an empty thinking block
        ("nemotron_3_nano", "R1\n</think>\n수원은 한국에 있다.<|im_end|>", 0),
        ("glm4moe", "\n<think>R1</think>\n수원은 한국에 있다.<|user|>", 0),
        ("gptoss", "<|channel|>analysis<|message|>R1<|end|><|start|>assistant<|channel|>final<|message|>수원은 한국에 있다.<|return|>", 0),
        ("muse_glimmer", " to=self<|message|>R1<|eom|><|start|>assistant to=user<|message|>수원은 한국에 있다.<|eot|>", 0),
        ("llama3", "수원은 한국에 있다.<|eot_id|>", 1),  # a template without thinking
    ],
)
def test_thinking_is_trained_as_the_model_has_to_emit_it(everyones, name, trained, dropped):
    everyones.chat_template = FILES[name].read_text()
    for thinking in ({"reasoning_content": "R1"}, {"thinking": "R1"}):
        [row], counts = prepare([Dialogue([TALK[0], {**TALK[1], **thinking}])], everyones, max_length=4096)
        [(start, end)] = runs(row)
        assert row["input_ids"][:start] == prompt_ids(everyones, TALK[:1])
        assert everyones.decode(row["input_ids"][start:end]) == trained
        assert counts.thinking_dropped == dropped


@pytest.mark.parametrize(
    "name, trained",
    [
        ("qwen3", '<think>\n\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'),
        ("qwen3_5_think", "\n</think>\n\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>"),  # a mapping alone
        ("gptoss", ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>'),  # text is encoded once more
        ("deepseekv3", '\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
         "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"),  # text alone
        ("deepseek_r1_distill", "\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
         '{"a": 1}\n```<｜tool▁call▁end｜><｜end▁of▁sentence｜>'),  # text alone, and beside "content": null alone
        ("llama3_1", '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'),
        ("lfm2_v2", "<|tool_call_start|>[add(a=1)]<|tool_call_end|><|im_end|>"),
        ("glm4moe", "\n<think></think>\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call><|observation|>"),
        ("gemma4", "<|tool_call>call:add{a:1}<tool_call|><|tool_response>"),
    ],
)  # fmt: skip
def test_tool_calls_are_trained_with_the_token_that_hands_over(everyones, name, trained):
    everyones.chat_template = FILES[name].read_text()
    reply = {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "2"}
    tools = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}}]
    seen = set()
    for arguments in ({"a": 1}, '{"a":1}'):
        for content in ({"content": ""}, {"content": None}, {}):
            call = {"type": "function", "id": "call00001", "function": {"name": "add", "arguments": arguments}}
            talk = [TALK[0], {"role": "assistant", "tool_calls": [call], **content}, reply]
            rows, _ = prepare([Dialogue([*talk, TALK[1]], tools=tools)], everyones, max_length=4096)
            first = [row["input_ids"][start:end] for row in rows for start, end in runs(row)][0]
            assert everyones.decode(first) == trained
            assert first[-1] in end_of_turn_ids(everyones)
            assert rows[0]["input_ids"][: runs(rows[0])[0][0]] == prompt_ids(everyones, talk[:1], tools)
            seen.add(tuple(prompt_ids(everyones, talk, tools)))
    assert len(seen) == 1  # the history too is the same, however it is written
