"""What a model's answers consist of, found out by rendering: how its chat template writes thinking and tool calls."""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ...data.chat import prompt_text
from ...data.errors import UserError
from ...data.form import SENTINEL
from ...data.template import remember
from .call_form import USER, CallForm, attempt, find_calls, sample_tool

THOUGHT = "Seodang7thought"
CLOSING_TAG = re.compile(r"</(\w*think\w*|thought|reasoning)>|\[/(THINK)\]", re.IGNORECASE)
_LAST_TAG = re.compile(r"(<[^<>]+>|\[[^\[\]]+\])\s*\Z")
_OPEN_TAG = re.compile(r"<(\w+)>\s*\Z")
_THINKING = {"role": "assistant", "content": SENTINEL, "reasoning_content": THOUGHT, "thinking": THOUGHT, "reasoning": THOUGHT}


@dataclass(frozen=True)
class AnswerForm:
    """How thinking, content and calls stand in an answer; None for what the model does not write."""

    thinking: tuple[str, str] | None = None  # what opens and what closes it
    content_header: str = ""  # what stands before content alone, as a channel's name does
    calls: CallForm | None = None
    supports_tools: bool = False  # whether the template shows tools to the model
    short_ids: bool = False  # whether the template refuses ids of calls that are not nine letters and digits
    control_ids: frozenset[int] = frozenset()  # special tokens whose text the parser has to see
    turn_header: str = ""  # what begins the assistant's turn in a prompt, without thinking

    def begins_in_thinking(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside an open thinking block."""
        if self.thinking is None:
            return False
        opening, closing = self.thinking
        turn = self._turn(prompt)
        return prompt.rstrip().endswith(opening) if turn is None else turn.rfind(opening) > turn.rfind(closing)

    def may_think(self, prompt: str) -> bool:
        """Whether an answer to a rendered prompt may think: the prompt has not closed the thinking itself."""
        return self.thinking is not None and self.thinking[1] not in (self._turn(prompt) or "")

    def _turn(self, prompt: str) -> str | None:
        """What of a rendered prompt belongs to the assistant's turn, None where nothing tells."""
        return prompt.rpartition(self.turn_header)[2] if self.turn_header else None


def answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    """Return the form of this tokenizer's template, found out once; of a tokenizer without a template, content alone."""
    return remember(tokenizer, "answer form", lambda: _answer_form(tokenizer) if tokenizer.chat_template else AnswerForm())


def _answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    prompt = prompt_text(tokenizer, [USER])
    plain = attempt(tokenizer, {"role": "assistant", "content": SENTINEL}) or ""
    header = plain[len(prompt) :].partition(SENTINEL)[0].strip() if plain.startswith(prompt) and SENTINEL in plain else ""
    thinking, header = _thinking(tokenizer, prompt, header)
    calls, short_ids = find_calls(tokenizer, thinking[1] if thinking else "")
    texts = [*(thinking or ()), header, *(calls.texts() if calls else ())]
    controls = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special and any(token.content in text for text in texts)}
    asked = attempt(tokenizer, None) or ""
    turn_header = prompt[len(asked) :] if prompt.startswith(asked) else ""
    if thinking:
        turn_header = turn_header.partition(thinking[0])[0]
    return AnswerForm(thinking, header, calls, _shows_tools(tokenizer), short_ids, frozenset(controls), turn_header.strip())


def _thinking(tokenizer: PreTrainedTokenizerBase, prompt: str, header: str) -> tuple[tuple[str, str] | None, str]:
    """What opens and closes the thinking, and what of the text before content is the content's own.

    The rendering of a thought says it; else a prompt that opens a block, or a closing tag that the template knows.
    """
    whole = attempt(tokenizer, _THINKING) or ""
    before, found, behind = whole.partition(THOUGHT)
    between, content, _ = behind.partition(SENTINEL)
    if found and content and between.strip():
        common = len(os.path.commonprefix([before, prompt]))
        opening = before[common:].strip() if common == len(prompt) else ""
        opening = opening or getattr(_LAST_TAG.search(before), "group", lambda _: "")(1)
        between = between.strip()
        own = header if between.endswith(header) and between != header else ""
        return (opening, between.removesuffix(own).strip()) if opening else None, own
    if opened := _OPEN_TAG.search(prompt):
        return (f"<{opened[1]}>", f"</{opened[1]}>"), ""
    templates = tokenizer.chat_template.values() if isinstance(tokenizer.chat_template, dict) else [tokenizer.chat_template]
    tag = next((tag for text in [*templates, *tokenizer.get_added_vocab()] if (tag := CLOSING_TAG.search(text))), None)
    if tag is None:
        return None, header
    return (tag[0].replace("/", "", 1), tag[0]), "" if tag[0] in header else header


def _shows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return SENTINEL in prompt_text(tokenizer, [USER], [sample_tool()])
    except UserError:
        return False
