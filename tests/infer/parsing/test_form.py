"""Which form of thinking and of calls each template is found to have, on the templates that trl carries and on forms of other models."""

import copy
from pathlib import Path

import pytest
import trl

from seodang.data.chat import prompt_text
from seodang.infer.parsing.form import AnswerForm, answer_form

FILES = sorted(path.stem for path in Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
THINK = ("<think>", "</think>")
# how calls are written, what opens and closes thinking, whether tools are shown; by the longest beginning of the template's name
FORMS = {
    "cohere": ("none", None, False), "deepseek_r1": ("name + JSON", THINK, False), "deepseekv3": ("name + JSON", THINK, False),
    "gemma": ("none", None, False), "glm4moe": ("parameters", THINK, True),
    "gptoss": ("name + JSON", ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"), True), "idefics3": ("none", None, False),
    "llama3": ("none", None, False), "llama3_1": ("JSON", None, True), "llama3_2": ("JSON", None, True), "llava_next": ("none", None, False),
    "muse_glimmer": ("parameters", ("to=self<|message|>", "<|eom|><|start|>assistant"), True), "nemotron_3": ("parameters", THINK, True),
    "phi3": ("none", None, False), "qwen2_5": ("JSON", None, True), "qwen2_5_vl": ("none", None, False), "qwen3": ("JSON", THINK, True),
    "qwen3_instruct_2507": ("JSON", None, True), "qwen3_vl": ("JSON", None, True), "qwen3_5": ("parameters", THINK, True),
    "qwen3_6": ("parameters", THINK, True), "qwen3_8": ("parameters", THINK, True), "smolvlm": ("none", None, False),
    "mistral_v3": ("JSON", None, True), "mistral_v11": ("name + JSON", None, True), "mistral_v13": ("name + JSON", None, True),
    "kimi": ("name + JSON", None, True), "arguments_first": ("JSON", None, True),
    # Not recognised: calls in Python (LFM2) and in Gemma's own notation; LFM2's first template shows tools and leaves out calls.
    "lfm2": ("none", None, True), "lfm2_2_5": ("none", THINK, True), "gemma4": ("none", None, True),
    "gemma4_v5": ("none", ("<|channel>thought", "<channel|>"), True), "diffusion_gemma": ("none", ("<|channel>thought", "<channel|>"), True),
}  # fmt: skip


def kind(form):
    if form.calls is None:
        return "none"
    return "JSON" if form.calls.keys else "parameters" if form.calls.parameters else "name + JSON"


@pytest.mark.parametrize("name", [*FILES, "mistral_v3", "mistral_v11", "mistral_v13", "kimi", "arguments_first"])
def test_the_form_of_every_template(templated, name):
    form = answer_form(templated(name))
    expected = FORMS[max((known for known in FORMS if name.startswith(known)), key=len)]
    assert (kind(form), form.thinking, form.supports_tools) == expected
    assert form.short_ids == (name == "mistral_v3")


def test_tags_in_the_template_or_among_the_tokens_are_thinking_too(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    assert answer_form(tokenizer).thinking == THINK
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert answer_form(tokenizer).thinking is None
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    form = answer_form(tokenizer)
    assert form.thinking == ("[THINK]", "[/THINK]")
    assert sorted(form.control_ids) == tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])


def test_a_prompt_that_opens_the_thinking(templated):
    user = [{"role": "user", "content": "What is <think>?"}]
    opened = []
    for name in ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "deepseekv3", "nemotron_3_nano", "glm4moe", "gptoss", "llama3_1"):
        for options in ({}, {"enable_thinking": False}):
            tokenizer = templated(name)
            if answer_form(tokenizer).begins_in_thinking(prompt_text(tokenizer, user, **options)):
                opened.append((name, *options))
    assert opened == [("qwen3_5_think",), ("deepseekv3",), ("deepseekv3", "enable_thinking"), ("nemotron_3_nano",)]
    prompt = prompt_text(templated("qwen3"), user)
    form = answer_form(templated("qwen3"))
    assert form.begins_in_thinking(prompt + "<think>\nSo far") and not form.begins_in_thinking(prompt + "<think>\nSo far</think>Hi")


def test_a_tokenizer_without_a_template_has_content_alone(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    assert answer_form(plain) == AnswerForm()
