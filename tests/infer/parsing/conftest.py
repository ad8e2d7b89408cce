"""The templates that trl carries, and those of tool forms that it has none of, on SmolLM2's tokenizer."""

import copy
import re
from pathlib import Path

import pytest
import trl

FILES = {path.stem: path for path in sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))}
SPECIAL = re.compile(r"<\|[\w ]+\|>|<｜[^<>｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<\|\w+>|<\w+\|>|</s>|\[/?INST\]|\[[A-Z_]{4,}\]")

_TURNS = (
    "{% for m in messages if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n"
    "{{ tools | tojson if tools and loop.first }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if messages[-1].role == 'assistant' or add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if messages[-1].role == 'assistant' %}{% set m = messages[-1] %}{{ m.content }}{% if m.tool_calls %}%s{% endif %}<|im_end|>\n{% endif %}"
)
_EACH = "{% for c in m.tool_calls %}{% set f = c.function %}%s{% endfor %}"
# Forms that none of trl's templates has, as those models' own templates write them behind ChatML's turns.
MADE = {
    "mistral_v3": "{% if m.tool_calls[0].id | length != 9 %}{{ raise_exception('ids of 9') }}{% endif %}"
    "[TOOL_CALLS] ["
    + _EACH.replace("%s", '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "{{ c.id }}"}{{ ", " if not loop.last }}')
    + "]",
    "mistral_v11": _EACH.replace("%s", "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}"),
    "mistral_v13": _EACH.replace("%s", "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ c.id }}[ARGS]{{ f.arguments | tojson }}"),
    "arguments_first": "<|tool_call|>["
    + _EACH.replace("%s", '{"arguments": {{ f.arguments | tojson }}, "name": "{{ f.name }}"}{{ ", " if not loop.last }}')
    + "]",
    "kimi": "<|tool_calls_section_begin|>"
    + _EACH.replace("%s", "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>")
    + "<|tool_calls_section_end|>",
}
MADE = {name: _TURNS.replace("%s", calls) for name, calls in MADE.items()}


@pytest.fixture(scope="session")
def templated(_tokenizer):
    """`templated(name)`: SmolLM2's tokenizer with a template of trl's or ours; the special tokens of all are added."""
    return with_templates(_tokenizer)


@pytest.fixture(scope="session")
def templated_small(wordy_tokenizer):
    """The same of a tokenizer of every byte and pieces of JSON."""
    return with_templates(wordy_tokenizer)


def with_templates(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    found = {token for path in FILES.values() for token in SPECIAL.findall(path.read_text(encoding="utf-8"))}
    found |= {token for source in MADE.values() for token in SPECIAL.findall(source)}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})

    def use(name: str):
        tokenizer.chat_template = MADE.get(name) or FILES[name].read_text(encoding="utf-8")
        return tokenizer

    return use
