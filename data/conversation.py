"""The ids of an answer, as the model will emit them behind the prompt that generation sees."""

import os.path
import re
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from .calls import lost, with_calls
from .chat import ending, prompt_text, trailing_controls
from .errors import UserError
from .form import SENTINEL
from .literal import Literals, continuing, encode, escape
from .template import render

THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
_TORN = re.compile(r"<[^<>\s]*\Z")  # a tag without its end
_OPEN_THINKING = re.compile(r"<(\w+)>(\s*)\Z")


@dataclass
class Turn:
    """One assistant turn: the prompt's ids, the answer's ids with the end-of-turn token, and what had to be done for them."""

    prompt_ids: list[int]
    answer_ids: list[int]
    notes: set[str] = field(default_factory=set)  # of "boundary_merges", "appended_eos", "thinking_dropped", "text_dropped"

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class Conversation:
    """A dialogue under one tokenizer and template: its messages with special text escaped, and the turns they give."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, literal: bool = True, **template_kwargs: Any
    ) -> None:
        messages = list(map(with_calls, messages))  # before special text is looked for: JSON may spell it in escapes
        (messages, tools), literals = escape(tokenizer, (messages, tools)) if literal else ((messages, tools), {})
        self.tokenizer, self.template_kwargs = tokenizer, template_kwargs
        self.messages: list[dict] = list(messages)
        self.tools: list | None = tools
        self.literals: Literals = literals

    def turn(self, context: list[dict], message: dict) -> Turn:
        """The assistant's message behind its context, which `prompt_ids` would give the same ids.

        Raises UserError where the template or the tokenizer cannot write or end the answer, or leaves out a part of its tool calls.
        """
        prompt = prompt_text(self.tokenizer, context, self.tools, **self.template_kwargs)
        prompt_ids = self._encode(prompt)
        written = self._answer_text(context, message, prompt)
        thinking = without_thinking(message)[1]
        notes = {"thinking_dropped"} if thinking and thinking not in written else set()
        text, stopped = self._up_to_stop(written, message)
        if not text.removesuffix(trailing_controls(self.tokenizer, text)):
            raise UserError("the chat template writes nothing of this answer: tool calls need a template that has them")
        if message.get("tool_calls"):
            said = _said(message)
            text, cut = self._up_to_end_of_calls(text, message["tool_calls"], [said, thinking])
            stopped = stopped or cut
            if said and said not in text:
                notes.add("text_dropped")
        ids, merged = self._answer_ids(prompt, prompt_ids, text)
        if merged:
            notes.add("boundary_merges")
        if not stopped:
            if self.tokenizer.eos_token_id is None:
                raise UserError("neither the chat template nor the tokenizer has a token that ends a turn: set the tokenizer's eos_token")
            notes.add("appended_eos")
            ids = [*ids, self.tokenizer.eos_token_id]
        return Turn(prompt_ids, ids, notes)

    def rendering_ids(self) -> list[int]:
        """The template's rendering of the whole dialogue."""
        return self._encode(self._render(self.messages))

    def _encode(self, text: str) -> list[int]:
        return encode(self.tokenizer, text, self.literals)

    def _render(self, messages: list[dict]) -> str:
        return render(self.tokenizer, messages, self.tools, add_generation_prompt=False, **self.template_kwargs)

    def _answer_text(self, context: list[dict], message: dict, prompt: str) -> str:
        """What the template writes for the message, as it follows the prompt."""
        whole = self._render([*context, message])
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        bare, thinking = without_thinking(message)
        if thinking:
            whole = self._render([*context, bare])
            if whole.startswith(prompt):  # the prompt holds a closed thinking block: no more is to come
                return whole[len(prompt) :]
        probe = self._render([*context, {"role": "assistant", "content": SENTINEL}])
        head = probe.partition(SENTINEL)[0]  # the header of a turn, free of its content
        if SENTINEL in probe and whole.startswith(head):
            return _behind_header(prompt, head, whole, thinking)
        if bare.get("tool_calls") or not isinstance(bare.get("content"), str):
            raise UserError("the chat template writes this turn so that it does not continue the generation prompt: use another template")
        return bare["content"] + ending(self.tokenizer).tail

    def _up_to_stop(self, written: str, message: dict) -> tuple[str, bool]:
        """The answer up to its end-of-turn token; what the template writes behind that is context for later turns."""
        end = ending(self.tokenizer)
        if end.tail and written.endswith(end.tail):
            written = written[: len(written) - len(end.tail)]
            return written + end.stop, bool(end.stop)
        run = trailing_controls(self.tokenizer, written)
        if ends := [run.index(token) + len(token) for token in end.stops if token in run]:
            return written[: len(written) - len(run) + min(ends)], True
        stop = end.call_stop if message.get("tool_calls") else end.stop
        return written + stop, bool(stop)

    def _up_to_end_of_calls(self, text: str, calls: list[dict], beside: list[str]) -> tuple[str, bool]:
        """The answer up to the token that ends its calls, and whether something stood behind, which would never be generated.

        Raises UserError where a part of the calls is left out.
        """
        stop = ending(self.tokenizer).call_stop
        before, found, behind = text.partition(stop) if stop else (text, "", "")
        if behind and not lost(calls, before, beside):
            return before + found, True
        if missing := lost(calls, text, beside):
            remedy = ", or leave out the text beside them" if beside[0] else ""
            raise UserError(f"the chat template leaves {missing} out of the answer: use a template that writes all of such calls{remedy}")
        return text, False

    def _answer_ids(self, prompt: str, prompt_ids: list[int], text: str) -> tuple[list[int], bool]:
        """Ids of the text behind the prompt, and whether a merge over the boundary would have changed the prompt's last ids."""
        whole = self._encode(prompt + text)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :], False
        wanted = self.tokenizer.decode(whole, clean_up_tokenization_spaces=False)
        candidates = continuing(self._encode, text), self._encode(text)
        for ids in candidates:
            if self.tokenizer.decode(prompt_ids + ids, clean_up_tokenization_spaces=False) == wanted:
                return ids, True
        return candidates[0], True


def _said(message: dict) -> str:
    """The text of a message, without thinking."""
    content = without_thinking(message)[0].get("content")
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    return "".join(part for part in parts if isinstance(part, str)).strip()


def _behind_header(prompt: str, head: str, whole: str, thinking: str) -> str:
    """The answer where the generation prompt and the header of a finished turn differ at their ends."""
    common = _TORN.sub("", os.path.commonprefix([prompt, head]))
    extra, rest, body = prompt[len(common) :], head[len(common) :], whole[len(head) :]
    if opened := _OPEN_THINKING.search(extra):  # DeepSeek-R1: the prompt opens what a finished turn does not show, or closed alone (GLM-4.7)
        closing = f"</{opened[1]}>"
        return thinking + (rest if rest.strip() == closing else f"{opened[2]}{closing}\n\n") + body
    if extra.strip():  # what opens the answer may follow what the prompt alone has (Command R7B)
        return body if extra.strip().endswith(rest.strip()) else rest + body
    return whole[len(common) :]


def without_thinking(message: dict) -> tuple[dict, str]:
    """The message without its thinking, and the thinking, from the keys or from a `<think>` block in the content."""
    thinking = next((message[key] for key in THINKING_KEYS if isinstance(message.get(key), str)), "")
    bare = {key: value for key, value in message.items() if key not in THINKING_KEYS}
    content = message.get("content")
    if isinstance(content, str) and "</think>" in content:
        inside, _, rest = content.partition("</think>")
        thinking = thinking or inside.lstrip().removeprefix("<think>")
        bare["content"] = rest.lstrip("\n")
    return bare, thinking.strip()
