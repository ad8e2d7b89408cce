"""Grammars under which an answer is calls of given tools, in the form that the model was trained to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def call_grammar(
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    parallel: bool = True,
    thinking: bool = False,
    in_thinking: bool = False,
) -> str:
    """Return the Lark grammar of answers that call one or more of the tools (with `name` exactly that one), for `SamplingParams(grammar=...)`.

    thinking: whether the answer may think first; in_thinking: the prompt has opened the thinking, which has to be closed first.
    Raises UserError where the template writes no calls, or no tool has the name.
    """
    raise NotImplementedError


def strict_grammar(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]], *, thinking: bool = False, in_thinking: bool = False) -> str:
    """Return the Lark grammar of answers that may call: free text, and calls whose arguments obey the schema of tools with `strict`.

    Raises UserError where no marker tells a call from text.
    """
    raise NotImplementedError
