"""The chat template: choosing one, and rendering messages with it the same way for training and for speaking."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from .calls import with_calls
from .errors import UserError
from .form import SAMPLE_TOOL, CallForm, Form, Render, probe, probe_calls

_CHATML_END = "<|im_end|>"
# The tokenizer's own eos ends an assistant's turn, so that no embedding has to be added; in ChatML where it has no token <|im_end|>.
BUILT_IN = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
        "{{ (eos_token if message['role'] == 'assistant' else '<|im_end|>') + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
        "{% else %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    ),
}


def set_chat_template(tokenizer: PreTrainedTokenizerBase, name_or_file: str | None = None) -> None:
    """Give the tokenizer a built-in template (`chatml`, `alpaca`, `plain`) or that of a Jinja file; None keeps its own.

    Raises UserError where the name is neither, or None is given to a tokenizer without a template.
    """
    if name_or_file is None:
        if not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat template: name one with --chat_template {'|'.join(BUILT_IN)} or a Jinja file; generate --raw needs none")
        return
    if name_or_file in BUILT_IN:
        if tokenizer.eos_token is None:
            raise UserError(f"the template {name_or_file!r} ends turns with the tokenizer's eos token, and it has none: give a Jinja file")
        source = BUILT_IN[name_or_file]
        if name_or_file == "chatml" and _CHATML_END in tokenizer.get_added_vocab():
            source = source.replace("eos_token", f"'{_CHATML_END}'")
        tokenizer.chat_template = source
        return
    path = Path(os.path.expanduser(name_or_file))
    if not os.path.isfile(path):
        raise UserError(f"chat template {name_or_file!r} is neither a file nor one of {', '.join(BUILT_IN)}")
    try:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"chat template {name_or_file} is not UTF-8 (byte {error.start + 1}): convert it") from None


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, *, add_generation_prompt: bool, **template_kwargs: Any
) -> str:
    """The template's text for the messages, in transformers' sandbox.

    Contents (a string or a list of parts) and tool calls are handed over in the form that the template reads, and a system message that it
    refuses stands before the first user's text. Raises UserError with what the template says.
    """
    form = _form(tokenizer)
    messages = [form.shaped(with_calls(message), lambda: _call_form(tokenizer)) for message in messages]
    if form.refuses_system:
        messages = _system_folded(messages)
    return _render(tokenizer, messages, tools, add_generation_prompt, **template_kwargs)


def _form(tokenizer: PreTrainedTokenizerBase) -> Form:
    return remember(tokenizer, "form", lambda: probe(_renders(tokenizer, None, [SAMPLE_TOOL], prompt=True)))


def _call_form(tokenizer: PreTrainedTokenizerBase) -> CallForm:
    """With a tool first: some templates write calls only where there are tools, and a tokenizer may have another template for them."""
    return remember(tokenizer, "call form", lambda: probe_calls(_form(tokenizer), _renders(tokenizer, [SAMPLE_TOOL], None, prompt=False)))


def _renders(tokenizer: PreTrainedTokenizerBase, *each: list | None, prompt: bool) -> list[Render]:
    """What renders messages, with each of some tools."""
    return [partial(lambda tools, messages: _render(tokenizer, messages, tools, prompt), tools) for tools in each]


def _system_folded(messages: list[dict]) -> list[dict]:
    if len(messages) < 2 or messages[0].get("role") != "system" or messages[1].get("role") != "user":
        return messages
    system, user = messages[0]["content"], messages[1]["content"]
    if isinstance(user, str):
        return [{**messages[1], "content": f"{system}\n\n{user}"}, *messages[2:]]
    return [{**messages[1], "content": [*system, {"type": "text", "text": "\n\n"}, *user]}, *messages[2:]]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None, prompt: bool, **template_kwargs: Any) -> str:
    if not tokenizer.chat_template:
        set_chat_template(tokenizer)  # says how to name one
    try:
        if any(value is None for message in messages for value in message.values()):  # which apply_chat_template would leave out
            how = {**tokenizer.special_tokens_map, **template_kwargs, "chat_template": tokenizer.get_chat_template(tools=tools or None)}
            return render_jinja_template([messages], tools or None, add_generation_prompt=prompt, **how)[0][0]
        return tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt, **template_kwargs)
    except Exception as error:  # a template is a program: anything may come out of it
        raise UserError(f"the chat template raises: {' '.join(str(error).split()) or type(error).__name__}") from error


_memory: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_unchanged: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # what tokenizers are known by that somebody leaves as they are


def remember(tokenizer: PreTrainedTokenizerBase, name: str, build: Callable[[], Any], of_template: bool = True) -> Any:
    """What `build` found out about this tokenizer and, unless not `of_template`, its template, once; asked again when either has changed."""
    known = _memory.setdefault(tokenizer, {})
    template, *rest = _unchanged.get(tokenizer) or _identity(tokenizer)
    key = (name, template if of_template else None, *rest)
    if key not in known:
        known[key] = build()
    return known[key]


@contextmanager
def unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Promise that nothing of a tokenizer or its template changes meanwhile: to look each time takes longer than to encode a sentence."""
    before = _unchanged.get(tokenizer)
    _unchanged[tokenizer] = _identity(tokenizer)
    try:
        yield
    finally:
        if before is None:
            _unchanged.pop(tokenizer, None)


def _identity(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    template = tokenizer.chat_template
    return tuple(sorted(template.items())) if isinstance(template, dict) else template, len(tokenizer), tuple(tokenizer.all_special_ids)
