"""Structured output: the answer is a text of a JSON schema, a regular expression, a list of choices or a Lark grammar."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data import json_text
from ...data.errors import UserError
from ...data.template import remember
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from ..text.vocabulary import Vocabulary
from .json_keys import KeyTokens, UniqueKeys
from .schema import ready, texts_of
from .trial_process import Bytes

GRAMMARS = ("json_schema", "regex", "choice", "grammar")
KEPT = 64  # compiled grammars that a tokenizer remembers
ORDINARY_SECONDS = 0.02  # of computing, for what may come next
MASK_SECONDS = 1.0  # beyond, for all answers of a request together: nobody else gets a token meanwhile
MOST_LOOKED_AT = 2000  # beginnings of texts
OVER_BYTES: OrderedDict[str, LLMatcher] = OrderedDict()
CACHES = threading.Lock()  # what is compiled is for any thread


class Patience:
    """The time that what may come next may still take, beyond what is ordinary; all answers of a request share it."""

    def __init__(self) -> None:
        self.left = MASK_SECONDS

    def count(self, began: float) -> None:
        """Count what has been computed since, by time.thread_time()."""
        self.left -= max(time.thread_time() - began - ORDINARY_SECONDS, 0.0)


class Grammar:
    """Keeps an answer inside a language: drops every token after which no text of the language could follow.

    Where only one text can follow, it comes in the tokenizer's own spelling.
    The ids in `ends` (end tokens and the caller's stop ids) can come exactly where a text of the language may end, and are all that is left
    where it must.
    """

    def __init__(self, name: str, matcher: LLMatcher, ends: Collection[int], keys: UniqueKeys | None = None):
        """keys: what keeps the keys of JSON apart."""
        self.name = name
        self._matcher, self._keys = matcher, keys
        self._ends = frozenset(ends)
        self._over = False
        self._patience = Patience()

    def mask(self, sequence: TokenSequence, scores: Tensor) -> Tensor:
        """[1, vocab] to [1, vocab]; raises as `bits` does."""
        bits = np.frombuffer(self.bits(scores.shape[1]), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=scores.shape[1], bitorder="little").view(bool)  # zeros behind the bits that there are
        return torch.where(torch.from_numpy(allowed).to(scores.device), scores, -torch.inf)  # in half of masked_fill's time

    def bits(self, vocab: int) -> bytes:
        """A bit for each of the ids below `vocab` that may come next, the lowest of a byte first; those that the tokenizer does not have never may.

        Raises UserError where the matcher gave up (a text too intricate for its limits), or takes too long.
        """
        if self._matcher.is_error():
            raise UserError(f"{self.name}: {reason(self._matcher)}")
        if self._patience.left < 0:
            raise UserError(f"{self.name} takes more than {MASK_SECONDS:g} s to say what may come next: write it so that a text can be read in fewer ways")
        began = time.thread_time()
        bits = bytearray(self._matcher.compute_bitmask())
        for id in () if self._keys is None else self._keys.wrong(bits, vocab):
            bits[id >> 3] &= ~(1 << (id & 7))
        may_end = self._matcher.is_accepting()
        for id in self._ends:
            if id < vocab:
                bits.extend(bytes(max((id >> 3) + 1 - len(bits), 0)))
                bits[id >> 3] = bits[id >> 3] & ~(1 << (id & 7)) | may_end << (id & 7)
        self._patience.count(began)
        return bytes(bits)

    @property
    def must_end(self) -> bool:
        """Whether nothing but the end can come."""
        if not self._matcher.is_accepting():
            return False
        began = time.thread_time()
        bits = int.from_bytes(self._matcher.compute_bitmask(), "little")
        self._patience.count(began)
        return not bits & ~sum(1 << id for id in self._ends)

    def accept(self, id: int) -> None:
        """Hear of the sequence's next token."""
        if not self._over and id in self._ends:
            self._over = True
        elif not self._over:
            began = time.thread_time()
            self._matcher.consume_token(id)
            if self._keys is not None:
                self._keys.accept(id)
            self._patience.count(began)

    def takes(self, ids: Sequence[int]) -> bool:
        """Whether the answer may begin with these ids."""
        return self._matcher.validate_tokens(list(ids)) == len(ids) and (self._keys is None or self._keys.takes(ids))

    def fork(self) -> Grammar:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._matcher = self._matcher.deep_copy()  # a microsecond: what it learnt about the grammar stays shared
        other._keys = None if self._keys is None else self._keys.fork()
        return other


def new_grammar(params: RequestParams, tokenizer: PreTrainedTokenizerBase, ends: Collection[int], spaced: bool = False) -> Grammar | None:
    """Return what keeps the answer inside the language that the request asks for, compiled once; None where it asks for none.

    With `spaced` it may begin with a space, as the first word of an answer does whose tokenizer leaves that space out of the text.

    JSON Schema of Draft 2020-12 in the order of its properties, patterns as in ECMA 262 (their digits and letters are ASCII's): what is
    not supported is refused by name. Each key comes once in its object, without `\\u`; one blank at most follows a comma or a colon, none
    stands elsewhere, unless the schema's `x-guidance` says more (`{"whitespace_flexible": true}` leaves them free). Regular expressions
    in Rust's syntax, for the whole answer; a digit is any script's, as in Python. Lark with llguidance's extensions; keys of its `%json`
    may come again. Raises UserError, mostly in llguidance's words, for what is wrong.
    """
    name = grammar_asked(params)
    if name is None:
        return None
    written = source(name, getattr(params, name), spaced)
    check_spelling(name, getattr(params, name), Vocabulary.of(tokenizer))
    keys = None
    if name == "json_schema":
        few = '"patternProperties":' in written  # whose names may run out
        tokens = remember(tokenizer, "tokens of keys", lambda: KeyTokens(Vocabulary.of(tokenizer)), of_template=False)
        keys = UniqueKeys(tokens, over_bytes(name, written).deep_copy() if few else None)
    return Grammar(name, compiled(tokenizer, name, written, ends).deep_copy(), ends, keys)


def check_spelling(name: str, value: Mapping | Sequence[str] | str, vocabulary: Vocabulary) -> None:
    """Raise UserError for a given text that the tokenizer's tokens cannot write, where it would be found out in its middle."""
    texts = value if name == "choice" else texts_of(parsed(value)) if name == "json_schema" else ()
    for text in texts:
        spelled = text if name == "choice" else json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        if not vocabulary.spells(spelled.encode()):
            raise UserError(f"{name} has {text!r}, for which the tokenizer has no tokens: leave it out")


def longest_text(params: RequestParams, least: int) -> int | None:
    """Return how many bytes, and so at most tokens, the longest text of the request's language has, where they are fewer than `least`.

    None where a text is as long, and where the texts are too many to be looked through.
    """
    name = grammar_asked(params)
    if name is None:
        return None
    longest, looked_at = 0, 0
    beginnings = [(over_bytes(name, source(name, getattr(params, name))), 0)]
    while beginnings:
        matcher, length = beginnings.pop()
        longest, looked_at = max(longest, length), looked_at + 1
        if longest >= least or looked_at > MOST_LOOKED_AT:
            return None
        bits = int.from_bytes(matcher.compute_bitmask()[:32], "little")
        for byte in range(256):
            if bits >> byte & 1:
                longer = matcher.deep_copy()
                longer.consume_token(byte)
                beginnings.append((longer, length + 1))
    return longest


def grammar_asked(params: RequestParams) -> str | None:
    """Return the setting that gives the request a grammar; None where none does."""
    return next((name for name in GRAMMARS if asked(params, name)), None)


def asked(params: RequestParams, name: str) -> bool:
    """Whether a request has this setting; a schema of {} (any JSON) counts."""
    value = getattr(params, name)
    return value is not None and not (isinstance(value, list | tuple) and not value)


def source(name: str, value: Mapping | Sequence[str] | str, spaced: bool = False) -> str:
    """Return the grammar in llguidance's own notation, with a space before it that may be left out where it is `spaced`; raises UserError for what cannot be one."""
    if spaced:
        return led_by_space(name, value)
    if name == "json_schema":
        return LLMatcher.grammar_from_json_schema(json.dumps(ready(parsed(value)), ensure_ascii=False, separators=(",", ":")))
    if name == "regex":
        if (len(value) - len(value.rstrip("\\"))) % 2:
            raise UserError(f"regex={value!r} ends with a backslash that escapes nothing: double it, or leave it out")
        return LLMatcher.grammar_from_regex(value)
    if name == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, value)))  # Lark has no string with a raw U+007F
    return LLMatcher.grammar_from_lark(with_ready_schemas(value))


START = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\\n])+/|\bstart\b')  # Lark's first rule, and what it may stand in without being it


def led_by_space(name: str, value: Mapping | Sequence[str] | str) -> str:
    """Return the grammar of the same texts with or without a space before them."""
    source(name, value)  # which refuses what is none
    if name == "regex":
        return LLMatcher.grammar_from_regex(f" ?(?:{value})")
    if name == "json_schema":
        schema = ready(parsed(value))
        lark = f"answer_: %json {json.dumps({} if schema is True else schema, ensure_ascii=False)}"
    elif name == "choice":
        lark = "answer_: " + " | ".join(map(json.dumps, value))
    else:
        lark = START.sub(lambda found: "answer_" if found[0] == "start" else found[0], with_ready_schemas(value))
    return LLMatcher.grammar_from_lark(f'start: " "? answer_\n{lark}')


def parsed(schema: Mapping | str | bool) -> Mapping | bool:
    """Return a schema that may be given as JSON; raises UserError for what is none."""
    try:
        value = json_text.parsed(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise UserError(f"json_schema is no JSON: {one_line(str(error))}") from None
    if not isinstance(value, Mapping | bool):
        raise UserError(f"json_schema must be an object, true or false, got {value!r}")
    return value


def with_ready_schemas(lark: str) -> str:
    """Return a Lark grammar with the schema behind each `%json` made ready."""
    parts, end = [], 0
    for found in re.finditer(r"%json\s*(?=\{)", lark):
        try:
            schema, behind = json.JSONDecoder().raw_decode(lark, found.end())
        except (ValueError, RecursionError):
            continue  # llguidance will say
        parts += [lark[end : found.end()], json.dumps(ready(schema), ensure_ascii=False)]
        end = behind
    return "".join([*parts, lark[end:]])


def compiled(tokenizer: PreTrainedTokenizerBase, name: str, grammar: str, ends: Collection[int]) -> LLMatcher:
    """Return the matcher at the beginning of a text, to be copied; raises UserError where the grammar is wrong."""
    eos = end_of(tokenizer, ends)
    return kept(remember(tokenizer, f"grammars {eos}", OrderedDict, of_template=False), name, grammar, lambda: ll_tokenizer(tokenizer, eos))


def over_bytes(name: str, grammar: str) -> LLMatcher:
    """Return the matcher of a grammar whose tokens are the 256 bytes."""
    return kept(OVER_BYTES, name, grammar, lambda: LLTokenizer(Bytes(), eos_token=Bytes.eos_token_id, slices=[]))


def kept(known: OrderedDict[str, LLMatcher], name: str, grammar: str, view: Callable[[], LLTokenizer]) -> LLMatcher:
    """Return the grammar's matcher for a tokenizer, compiled where it is not among those known; raises UserError with the reason for one that cannot be."""
    with CACHES:
        if grammar in known:
            known.move_to_end(grammar)
            return known[grammar]
    matcher = LLMatcher(view(), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()  # which fails where the tokenizer cannot spell the beginning
    if matcher.is_error():
        raise UserError(f"{name} cannot be used: {reason(matcher)}")
    with CACHES:
        known[grammar] = matcher
        if len(known) > KEPT:
            known.popitem(last=False)
    return matcher


def end_of(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> int:
    """The one end token that llguidance is told of; where it is allowed, all are."""
    return min(ends) if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def ll_tokenizer(tokenizer: PreTrainedTokenizerBase, eos: int) -> LLTokenizer:
    """Return llguidance's view of the tokenizer, made once; of a kind that it cannot read, by the tokens' bytes."""

    def build() -> LLTokenizer:
        try:
            return LLTokenizer(tokenizer_text(tokenizer), eos_token=eos)
        except ValueError:
            return LLTokenizer(Spelled(tokenizer, eos), eos_token=eos)

    return remember(tokenizer, f"llguidance {eos}", build, of_template=False)


def tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer as the library of tokenizers writes it, without truncation and padding; "" for one of another library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    whole = type(backend).from_str(backend.to_str())  # a copy: the tokenizer's own truncation stays
    whole.no_truncation()
    whole.no_padding()
    return whole.to_str()


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


def reason(matcher: LLMatcher) -> str:
    """Why a matcher gave up."""
    words = f"{one_line(matcher.get_error()):.500}"
    return "no text of it can be written with the tokenizer's tokens" if words.startswith("NoExtension") else words


def one_line(message: str) -> str:
    """llguidance's words without its line breaks and its state."""
    return " ".join(message.partition("<state>")[0].split())
