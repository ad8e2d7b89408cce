"""What generation sees: the ids of a prompt, for speaking and for training alike, and the ids that end a turn."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .calls import lost, with_calls
from .errors import UserError
from .form import SAMPLE_TOOL, SENTINEL, sample_call
from .literal import any_of, encode, encode_raw, escape, refuse_more
from .surrogates import refuse_surrogates
from .template import remember, render, set_chat_template

logger = logging.get_logger(__name__)

__all__ = ["end_of_turn_ids", "prompt_ids", "prompt_text", "set_chat_template", "text_ids"]


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, **template_kwargs: Any) -> str:
    """The rendered messages and the header of the assistant's turn, as text."""
    return render(tokenizer, messages, tools, add_generation_prompt=True, **template_kwargs)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, literal: bool = True, most: int | None = None, **template_kwargs: Any
) -> list[int]:
    """The ids that generation continues; training puts the answer's ids behind these very ids.

    With `literal`, a special token's text inside contents, thinking, tool outputs or tools is encoded as text, never as the control token. Raises
    TooManyTokens where a part is enough to see that there are more than `most`.
    """
    messages = list(map(with_calls, messages))  # before special text is looked for: JSON may spell it in escapes
    (messages, tools), literals = escape(tokenizer, (messages, tools)) if literal else ((messages, tools), {})
    text = prompt_text(tokenizer, messages, tools, **template_kwargs)
    refuse_surrogates(text, "the prompt")
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    if missing := lost(calls, text):
        remember(tokenizer, "calls left out", lambda: logger.warning(f"The chat template leaves {missing} out of the prompt: the model does not see it."))
    return encode(tokenizer, text, literals, most)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False, most: int | None = None) -> list[int]:
    """Ids of raw text, with what the tokenizer puts around a text by default (BOS), once even if the text begins with it.

    With `literal`, special tokens' text is encoded as text. Raises TooManyTokens where a beginning is enough to see that there are more than `most`.
    """
    refuse_surrogates(text)
    refuse_more(tokenizer, text, most, literal)
    if literal:
        return encode_raw(tokenizer, text)
    ids = tokenizer(text, verbose=False)["input_ids"]
    written = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return ids[1:] if written and ids[:2] == [tokenizer.bos_token_id] * 2 else ids


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an assistant turn, sorted: what the template writes after an answer or after tool calls, and the tokenizer's eos.

    Where the template ends the last turn otherwise than those in the history (gpt-oss), the last turn's token counts: it is the one trained.
    """
    stops = ending(tokenizer).stops if tokenizer.chat_template else [tokenizer.eos_token] if tokenizer.eos_token else []
    return sorted({tokenizer.convert_tokens_to_ids(token) for token in stops})


def all_end_ids(declared: int | Sequence[int] | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a text: those that a generation config declares, in their order, then what else ends an assistant turn."""
    return with_ids(declared, end_of_turn_ids(tokenizer))


def with_ids(declared: int | Sequence[int] | None, more: Iterable[int]) -> list[int]:
    """The ids that a generation config declares, one, several or none, in their order, then those of `more` that are not among them."""
    known = [] if declared is None else [declared] if isinstance(declared, int) else declared
    return list(dict.fromkeys([*known, *more]))


@dataclass(frozen=True)
class Ending:
    """What the template writes behind an answer, that up to its stop token, what stops tool calls, and every token that stops a turn."""

    tail: str = ""
    stop: str = ""
    call_stop: str = ""
    stops: tuple[str, ...] = ()


def ending(tokenizer: PreTrainedTokenizerBase) -> Ending:
    """How the template ends an assistant's turn, found by rendering a sentinel."""
    return remember(tokenizer, "ending", lambda: _ending(tokenizer))


_TOOLS_TRIED = (None, [SAMPLE_TOOL])  # some templates take nothing without tools
_USER = {"role": "user", "content": "?"}
_ANSWER = {"role": "assistant", "content": SENTINEL}


def _ending(tokenizer: PreTrainedTokenizerBase) -> Ending:
    eos = tokenizer.eos_token or ""
    answered = _attempt(tokenizer, [_USER, _ANSWER]) or ""
    tail = answered.rpartition(SENTINEL)[2] if SENTINEL in answered else ""
    own = _before_next_turn(tokenizer, tail)
    stop = own[: _end_of_controls(tokenizer, own)]
    if not stop and not tail.strip():  # GLM: the header of the next turn ends this one
        stop = _next_header(tokenizer, [_USER, _ANSWER], _USER)
    call_stop = _call_stop(tokenizer)
    last = [_controls(tokenizer).findall(text)[-1:] for text in (stop, call_stop)]
    stops = [*last[0], *([] if call_stop.startswith(tuple(last[0])) and last[0] else last[1]), eos]
    return Ending(tail, stop, call_stop, tuple(dict.fromkeys(filter(None, stops))))


def _attempt(tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools_tried: Sequence[list | None] = _TOOLS_TRIED) -> str | None:
    """The rendering with the first of the tools with which the template takes the messages."""
    for tools in tools_tried:
        try:
            return render(tokenizer, messages, tools, add_generation_prompt=False)
        except UserError:  # what a template refuses cannot be learned from it
            continue
    return None


def _end_of_controls(tokenizer: PreTrainedTokenizerBase, tail: str) -> int:
    """Where the first run of adjoining special tokens ends (Cohere2 closes the answer and then the turn), or 0."""
    run = remember(tokenizer, "run", lambda: re.compile(f"(?:{_controls(tokenizer).pattern})+")).search(tail)
    return run.end() if run else 0


def _before_next_turn(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """A turn's end without the next turn's header, which some templates write whether a prompt is asked for or not (Command R7B).

    What begins the first turn begins them all: where it stands behind another control token, this turn has ended.
    """
    controls, text = _controls(tokenizer), _attempt(tokenizer, [_USER]) or ""
    first = controls.match(text)
    second = controls.match(text, first.end()) if first and first[0] == tokenizer.bos_token else None
    openings = {found[0] for found in (first, second) if found} - {tokenizer.eos_token}
    before = tail[: min((tail.index(opening) for opening in openings if opening in tail), default=len(tail))]
    return before if controls.search(before) else tail


def _next_header(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], following: dict, tools_tried: Sequence[list | None] = _TOOLS_TRIED
) -> str:
    """The control token that begins the following turn, where it adjoins this one; the one that begins a text is no stop."""
    now, then = (_attempt(tokenizer, talk, tools_tried) for talk in (messages, [*messages, following]))
    if not now or not then or not then.startswith(now):
        return ""
    header = _controls(tokenizer).match(then[len(now) :])
    return header[0] if header and header[0] != tokenizer.bos_token else ""


def _call_stop(tokenizer: PreTrainedTokenizerBase) -> str:
    """The control token that closes a turn of tool calls, or nothing; one that also stands between two calls does not close the turn."""
    argument = "Seodang7argument"  # not every template names the function, or has the arguments
    for count, tools in product((2, 1), ([SAMPLE_TOOL], None)):  # with tools first: without, a template may leave calls out
        messages = [_USER, {"role": "assistant", "tool_calls": [sample_call({argument: 1})] * count}]
        text = _attempt(tokenizer, messages, [tools]) or ""
        if mark := next((mark for mark in (SENTINEL, argument) if text.count(mark) >= count), ""):
            found = _controls(tokenizer).findall(_before_next_turn(tokenizer, trailing_controls(tokenizer, text)))
            if found and text.partition(mark)[2].count(found[-1]) == 1:
                return found[-1]
            reply = {"role": "tool", "name": SENTINEL, "tool_call_id": "call00001", "content": "?"}
            return _next_header(tokenizer, messages, reply, [tools])
    return ""


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens' texts; the other added ones where there are none."""

    def build() -> tuple[str, ...]:
        added = [token for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
        return tuple(token.content for token in added if token.special) or tuple(token.content for token in added)

    return remember(tokenizer, "control tokens", build)


def _controls(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    return remember(tokenizer, "controls", lambda: re.compile(any_of(_control_tokens(tokenizer))))


def trailing_controls(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The control tokens and white space at the end of a text."""
    tokens, rest = _control_tokens(tokenizer), text.rstrip()
    while rest.endswith(tokens):
        rest = rest.removesuffix(max((token for token in tokens if rest.endswith(token)), key=len)).rstrip()
    return text[len(rest) :]
