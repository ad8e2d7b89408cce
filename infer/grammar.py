"""Structured output: the answer is a text of a JSON schema, a regular expression, a list of choices or a Lark grammar."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.refusal import UserError
from ..data.template import remember
from .params import SamplingParams
from .row import Row
from .vocabulary import Vocabulary

GRAMMARS = ("json_schema", "regex", "choice", "grammar")
KEPT = 64  # compiled grammars that a tokenizer remembers
# the bits of every byte, lowest first
BITS = (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool()  # [256, 8]


class Grammar:
    """Keeps an answer inside a language: drops every token after which no text of the language could follow.

    Where only one text can follow, it comes in the tokenizer's own spelling.
    The ids in `ends` (end tokens and the caller's stop ids) can come exactly where a text of the language may end, and are all that is left
    where it must.
    """

    def __init__(self, name: str, matcher: LLMatcher, ends: Collection[int]):
        self.name = name
        self._matcher = matcher
        self._ends = frozenset(ends)
        self._over = False

    def mask(self, row: Row, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]; raises UserError where the matcher gave up (a text too intricate for its limits)."""
        if self._matcher.is_error():
            raise UserError(f"{self.name}: {one_line(self._matcher.get_error())}")
        return scores.masked_fill(~self._allowed(scores.shape[1]).to(scores.device), -torch.inf)

    def _allowed(self, vocab: int) -> Tensor:
        """[vocab]; ids that the tokenizer does not have are never allowed."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        known = BITS.index_select(0, bits.int()).view(-1)[:vocab]
        allowed = known if len(known) == vocab else torch.cat([known, torch.zeros(vocab - len(known), dtype=torch.bool)])
        allowed[[id for id in self._ends if id < vocab]] = self._matcher.is_accepting()
        return allowed

    def accept(self, id: int) -> None:
        """Hear of the row's next token."""
        if not self._over and id in self._ends:
            self._over = True
        elif not self._over:
            self._matcher.consume_token(id)

    def takes(self, ids: Sequence[int]) -> bool:
        """Whether the answer may begin with these ids."""
        return self._matcher.validate_tokens(list(ids)) == len(ids)

    def fork(self) -> Grammar:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()  # a microsecond: what it learnt about the grammar stays shared
        return other


def new_grammar(params: SamplingParams, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Grammar | None:
    """Return what keeps the answer inside the language that the request asks for, compiled once; None where it asks for none.

    JSON Schema as llguidance reads it: a keyword that it does not know is refused, and blanks between the parts are free unless the
    schema has `"x-guidance": {"whitespace_flexible": false}`. Regular expressions in Rust's syntax, for the whole answer; a digit is
    any script's, as in Python. Lark with llguidance's extensions. Raises UserError with llguidance's words for one that is wrong.
    """
    name = next((name for name in GRAMMARS if asked(params, name)), None)
    if name is None:
        return None
    return Grammar(name, compiled(tokenizer, name, source(name, getattr(params, name)), ends).deep_copy(), ends)


def asked(params: SamplingParams, name: str) -> bool:
    """Whether a request has this setting; a schema of {} (any JSON) counts."""
    value = getattr(params, name)
    return value is not None and not (isinstance(value, list | tuple) and not value)


def source(name: str, value: Mapping | Sequence[str] | str) -> str:
    """Return the grammar in llguidance's own notation."""
    if name == "regex":
        return LLMatcher.grammar_from_regex(value)
    if name == "grammar":
        return LLMatcher.grammar_from_lark(value)
    if name == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value))
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        return LLMatcher.grammar_from_json_schema(json.dumps(schema, ensure_ascii=False))
    except (ValueError, TypeError) as error:
        raise UserError(f"json_schema is no JSON: {one_line(str(error))}") from None


def compiled(tokenizer: PreTrainedTokenizerBase, name: str, grammar: str, ends: Collection[int]) -> LLMatcher:
    """Return the matcher at the beginning of a text, to be copied; raises UserError where the grammar is wrong."""
    eos = end_of(tokenizer, ends)
    known: OrderedDict[str, LLMatcher] = remember(tokenizer, f"grammars {eos}", OrderedDict)
    if grammar not in known:
        matcher = LLMatcher(ll_tokenizer(tokenizer, eos), grammar, log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # which fails where the tokenizer cannot spell the beginning
        if matcher.is_error():
            raise UserError(f"{name} cannot be used: {one_line(matcher.get_error())}")
        known[grammar] = matcher
        if len(known) > KEPT:
            known.popitem(last=False)
    known.move_to_end(grammar)
    return known[grammar]


def end_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> int:
    """The one end token that llguidance is told of; where it is allowed, all are."""
    return min(ends) if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def ll_tokenizer(tokenizer: PreTrainedTokenizerBase, eos: int) -> LLTokenizer:
    """Return llguidance's view of the tokenizer, made once; of a kind that it cannot read, by the tokens' bytes."""

    def build() -> LLTokenizer:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            whole = type(backend).from_str(backend.to_str())  # a copy: the tokenizer's own truncation stays
            whole.no_truncation()
            whole.no_padding()
            try:
                return LLTokenizer(whole.to_str(), eos_token=eos)
            except ValueError:
                pass
        return LLTokenizer(Spelled(tokenizer, eos), eos_token=eos)

    return remember(tokenizer, f"llguidance {eos}", build)


class Spelled:
    """A tokenizer as llguidance takes one that it cannot read itself: the bytes of every token."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: int):
        self._vocabulary = Vocabulary.of(tokenizer)
        spelled = self._vocabulary.tokens
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_token_id
        self.special_token_ids = [id for id, token in enumerate(spelled) if token is None]
        self.tokens = [f"<special {id}>".encode() if token is None else token for id, token in enumerate(spelled)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._vocabulary.spell(text.encode() if isinstance(text, str) else text)


def one_line(message: str) -> str:
    """llguidance's words without its line breaks and its state."""
    return " ".join(message.partition("<state>")[0].split())
