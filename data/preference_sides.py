"""The prompt and the answers of a preference, in whichever way its sides are written."""

import re
from collections.abc import Mapping
from typing import Any

from .errors import UserError
from .formats import Message, as_messages, systems

_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def transcript(text: str) -> list[Message] | None:
    """HH-RLHF's "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; None for any other text."""
    if not re.match(r"\s*Human:", text) or "\n\nAssistant:" not in text:
        return None
    _, *parts = _TRANSCRIPT.split(text.strip())
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)]


def prompt_messages(value: Any) -> list[Message]:
    """A prompt's messages; a text is what a user says, a transcript may end in the header of the answer."""
    if not isinstance(value, str):
        return as_messages(value, "prompt")
    found = transcript(value) or [{"role": "user", "content": value}]
    return found[:-1] if found[-1] == {"role": "assistant", "content": ""} else found


def refuse_answered(prompt: list[Message]) -> None:
    """Raise UserError for a prompt that asks nothing."""
    if not prompt:
        raise UserError("the prompt has no message: give at least a user's")
    if prompt[-1]["role"] == "assistant":
        raise UserError("the prompt ends in an assistant's turn, so there is nothing to answer: leave that turn out")


def side_messages(value: Any, name: str, has_prompt: bool) -> list[Message]:
    """The messages of one side: a text is an assistant's answer, unless it is a transcript.

    Raises UserError for a side without a message, and for a bare text where the prompt is not known.
    """
    if isinstance(value, str):
        found = transcript(value)
        if found is None and not has_prompt:
            raise UserError(f"{name} is a text without a prompt: give the prompt as prompt, or both sides as messages or transcripts")
        return found or [{"role": "assistant", "content": value}]
    side = as_messages([value] if isinstance(value, Mapping) else value, name)
    if not side:
        raise UserError(f"{name} has no message: give an assistant's answer")
    return side


def answer_messages(prompt: list[Message], side: list[Message], name: str) -> list[Message]:
    """What of a side comes behind the prompt, with which a whole dialogue begins (UltraFeedback's sides do).

    Raises UserError for a dialogue that begins otherwise.
    """
    talk, whole = prompt[systems(prompt) :], side[systems(side) :]
    if len(whole) > len(talk) and _plain(whole[: len(talk)]) == _plain(talk) and _plain(side[: systems(side)]) in ([], _plain(prompt[: systems(prompt)])):
        return whole[len(talk) :]
    if side[0]["role"] != "assistant":
        raise UserError(f"{name} is a dialogue that does not begin with the prompt and go on: give the answer alone, or leave prompt out")
    return side


def shared_opening(first: list[Message], second: list[Message]) -> list[Message]:
    """What two dialogues begin with alike, up to the last answer of each at the most."""
    for at, (one, other) in enumerate(zip(_plain(first[:-1]), _plain(second[:-1]), strict=False)):
        if one != other:
            return first[:at]
    return first[: min(len(first), len(second)) - 1]


def _plain(messages: list[Message]) -> list[tuple]:
    return [(message["role"], message.get("content"), message.get("tool_calls")) for message in messages]


def flaw_of(side: list[Message]) -> str:
    """Why what stands behind the shared prompt is not one answer."""
    if side[-1]["role"] != "assistant":
        return "chosen or rejected does not end in an answer"
    return "chosen and rejected differ before their last answers" if len(side) > 1 else ""


def single_answer(prompt: list[Message], value: Any, name: str) -> Message:
    """The one answer that a text, a message, a list or a dialogue that begins with the prompt comes to.

    Raises UserError where it is not one answer.
    """
    side = answer_messages(prompt, side_messages(value, name, True), name)
    if len(side) != 1 or side[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in side)
        raise UserError(f"{name} must be one assistant's answer behind the prompt, got {roles}")
    return side[0]
