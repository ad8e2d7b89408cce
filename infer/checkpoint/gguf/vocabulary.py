"""A tokenizer as a GGUF file has it: tokens with their kinds, scores or merges, and the ids that begin and end a text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gguf import TokenType
from tokenizers import models
from transformers import PreTrainedTokenizerBase

from ....data.errors import UserError
from ...gguf.reading import ENDS, GgufFile
from .pre_tokenizers import split_of

SPACE = "▁"
SPACED = ({"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
REMEDY = "export without --gguf"
NEVER = -1e6  # the score of what no text is to become
RUNS = "llama.cpp may cut a run of one sign, such as ')))', in another order where two are equally likely"
NFC_NOTE = "llama.cpp does not compose characters (NFC), as this tokenizer does: decomposed text (Korean file names of a Mac) gets other ids there"


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokenizer. `kind` is llama.cpp's: gpt2 is byte-level BPE, llama SentencePiece's BPE, t5 its Unigram."""

    kind: str
    tokens: list[str]
    types: list[int]  # of TokenType
    ids: Mapping[str, int]  # bos_token_id, eos_token_id, ...
    add_bos: bool
    add_eos: bool
    pre: str | None = None
    merges: list[str] | None = None
    scores: list[float] | None = None
    add_space: bool = False  # before the text, and behind each control token
    template: str | Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)  # what differs in llama.cpp, a sentence each


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Collection[int]) -> Vocabulary:
    """Return how the tokenizer of a model with so many embeddings goes into a file; `ends` are the ids that end a text.

    Whether a space is put before the text is left to `settled`. Raises UserError for a tokenizer that llama.cpp does not know.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"a {type(tokenizer).__name__} has no tokenizer.json that could become a GGUF file's: {REMEDY}")
    definition = json.loads(backend.to_str())
    kind = definition["model"]["type"]
    byte_level = kind == "BPE" and "ByteLevel" in json.dumps(definition["pre_tokenizer"])
    own = _byte_level(definition) if byte_level else {"BPE": _sentencepiece, "Unigram": _unigram}.get(kind, _other)(definition)
    tokens, types = _tokens(tokenizer, rows, definition["model"].get("byte_fallback", False) and not byte_level)
    ids = _special(tokenizer, ends)
    if kind == "Unigram":
        ids["unknown_token_id"] = definition["model"]["unk_id"]
    if not byte_level and "unknown_token_id" in ids:
        types[ids["unknown_token_id"]] = TokenType.UNKNOWN
    scores = own.pop("scores", None)
    if scores is not None:
        own["scores"] = [scores.get(token, NEVER) for token in tokens]
    add_bos, add_eos = _added(tokenizer)
    return Vocabulary(
        tokens=tokens, types=[int(each) for each in types], ids=ids, add_bos=add_bos, add_eos=add_eos, template=tokenizer.chat_template, **own
    )  # fmt: skip


def vocabulary_in(file: GgufFile) -> Vocabulary:
    """Return the tokenizer that a file holds."""
    told = {key.removeprefix("tokenizer.ggml."): value for key, value in file.values.items()}
    return Vocabulary(
        kind=told["model"], tokens=told["tokens"], types=told["token_type"], add_bos=told["add_bos_token"], add_eos=told["add_eos_token"],
        ids={name: value for name, value in told.items() if name.endswith("token_id")}, pre=told["pre"], merges=told.get("merges"),
        scores=told.get("scores"), add_space=told["add_space_prefix"], template=told.get("tokenizer.chat_template"),
    )  # fmt: skip


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int, bytes_too: bool) -> tuple[list[str], list[TokenType]]:
    """All tokens by their ids, and their kinds; embeddings without a token get one that no text has."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) > rows or max(vocabulary.values()) >= rows:
        highest = max(vocabulary.values())
        raise UserError(f"the tokenizer's ids go up to {highest}, the model has {rows} embeddings: a GGUF file needs one for each, resize the model's")
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [TokenType.UNUSED] * rows
    for token, number in vocabulary.items():
        tokens[number] = token
        types[number] = TokenType.BYTE if bytes_too and _is_byte(token) else TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        types[number] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
        if added.normalized and not added.special:
            tokens[number] = added.content.replace(SPACE, " ")  # such are found in the text after its spaces were replaced
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UserError(f"the tokenizer has {twice!r} twice, and llama.cpp each token once: {REMEDY}")
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _byte_level(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a byte-level BPE."""
    model, notes = definition["model"], []
    normalizers = [step["type"] for step in _flat(definition["normalizer"], "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise UserError(f"llama.cpp has no byte-level tokenizer that normalises a text by {normalizers[0]}: {REMEDY}")
    if normalizers:
        notes.append(NFC_NOTE)
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UserError(f"llama.cpp has no tokenizer that marks the inside or the end of a word: {REMEDY}")
    split = split_of(definition["pre_tokenizer"])
    if split.note:
        notes.append(split.note)
    pre = split.whole if model.get("ignore_merges") else split.name
    if pre is None:  # which matters only where merges alone do not make every token
        pre = split.name or split.whole
        if alone := _in_pieces(model, [token for token in model["vocab"] if token not in _added_texts(definition)]):
            stays = "stays" if model.get("ignore_merges") else "does not stay"
            raise UserError(f"the word {alone!r} {stays} whole in this tokenizer, otherwise than in llama.cpp's {pre}: {REMEDY}")
    merges = [" ".join(pair) for pair in _pairs(model)] or ["! !"]  # llama.cpp wants one; what this makes is no token, and falls apart again
    return {"kind": "gpt2", "pre": pre, "merges": merges, "notes": notes}


def _sentencepiece(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a BPE over characters that falls back on bytes: llama.cpp joins the two neighbours whose token has the highest score."""
    model = definition["model"]
    vocabulary, pairs = model["vocab"], _pairs(model)
    if not model.get("byte_fallback") or any(f"<0x{code:02X}>" not in vocabulary for code in range(256)):
        raise UserError(f"llama.cpp has no BPE over characters without 256 tokens of bytes to fall back on: {REMEDY}")
    _refuse_steps(definition)
    scores = dict.fromkeys(vocabulary, -float(len(pairs) + 1))
    for rank, (left, right) in reversed(list(enumerate(pairs))):
        scores[left + right] = -float(rank + 1)
    known, added = set(pairs), _added_texts(definition)
    joined = {}  # llama.cpp joins whatever two tokens make a third
    for token in vocabulary:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pair = next(((left, right) for left, right in cuts if left in vocabulary and right in vocabulary and (left, right) not in known), None)
        if pair and token not in added and not _is_byte(token):
            joined[token] = pair
    if token := _in_pieces(model, list(joined)):
        left, right = joined[token]
        raise UserError(f"llama.cpp would join {left!r} and {right!r}, which this tokenizer's merges do not: {REMEDY}")
    return {"kind": "llama", "scores": scores}


def _unigram(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a Unigram, whose likeliest tokens llama.cpp finds as well."""
    model = definition["model"]
    if model.get("byte_fallback"):
        raise UserError(f"llama.cpp's Unigram does not fall back on bytes, as this tokenizer does: {REMEDY}")
    if model.get("unk_id") is None:
        raise UserError(f"llama.cpp's Unigram needs an unknown token, which this tokenizer has not: {REMEDY}")
    _refuse_steps(definition)
    return {"kind": "t5", "scores": dict(model["vocab"]), "notes": [RUNS]}


def _other(definition: Mapping[str, Any]) -> dict[str, Any]:
    raise UserError(f"llama.cpp has no {definition['model']['type']} tokenizer for these families (BPE and Unigram): {REMEDY}")


def _refuse_steps(definition: Mapping[str, Any]) -> None:
    """Raise UserError for a normalizer that does more than write spaces as SentencePiece does, and for words that end where llama.cpp goes on."""
    others = [step for step in _flat(definition["normalizer"], "normalizers") if step not in SPACED]
    if others:  # Precompiled too: llama.cpp applies it to other pieces of a text
        told = f"Replace of {next(iter(others[0]['pattern'].values()))!r}" if others[0]["type"] == "Replace" else others[0]["type"]
        raise UserError(f"llama.cpp does not normalise a text by {told} as this tokenizer does: {REMEDY}")
    for step in _flat(definition["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Split" and step["pattern"] == {"String": " "}:
            continue  # Gemma's, whose spaces were replaced before
        if step["type"] != "Metaspace":
            raise UserError(f"llama.cpp does not split a text by {step['type']}, as this tokenizer does: {REMEDY}")
        vocabulary = definition["model"]["vocab"]
        texts = vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)
        over = next((token for token in texts if SPACE in token[1:]), None) if step.get("split", True) else None
        if over:
            raise UserError(f"this tokenizer ends words at spaces and has the token {over!r}, which llama.cpp would take: {REMEDY}")


def _flat(step: Mapping[str, Any] | None, within: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return [each for inner in step[within] for each in _flat(inner, within)] if step["type"] == "Sequence" else [step]


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges as pairs, which older files have as texts."""
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _in_pieces(model: Mapping[str, Any], tokens: Sequence[str]) -> str | None:
    """The first of the tokens that merges alone do not make of its characters; None where they make all."""
    merging = models.BPE(model["vocab"], _pairs(model)) if tokens else None
    return next((token for token in tokens if len(merging.tokenize(token)) > 1), None)


def _added_texts(definition: Mapping[str, Any]) -> set[str]:
    return {added["content"] for added in definition["added_tokens"]}


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether a text gets the token of the beginning, and that of the end; raises UserError where it gets others."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    before, after = whole[: len(whole) - len(bare)], []
    while before and whole[len(before) : len(before) + len(bare)] != bare:
        after.insert(0, whole[len(before) + len(bare) - 1])
        before.pop()
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        told = tokenizer.convert_ids_to_tokens([*before, *after])
        raise UserError(f"the tokenizer puts {' and '.join(told)} around a text, llama.cpp only bos_token and eos_token: {REMEDY}")
    return bool(before), bool(after)


def _special(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> dict[str, int]:
    """The ids with a role. Raises UserError for a model without an end, or with more than there is room for."""
    own = tokenizer.eos_token_id
    ordered = sorted(set(ends), key=lambda number: (number != own, number))
    if not ordered:
        raise UserError(f"the model names no token that ends a text, and llama.cpp would take one for it: set eos_token, or {REMEDY}")
    if len(ordered) > len(ENDS):
        told = ", ".join(tokenizer.convert_ids_to_tokens(ordered))
        raise UserError(f"a GGUF file has room for {len(ENDS)} tokens that end a text, generation_config.json has {told}: leave some out")
    roles = {"bos_token_id": tokenizer.bos_token_id, "unknown_token_id": tokenizer.unk_token_id, "padding_token_id": tokenizer.pad_token_id}
    return {role: number for role, number in {**dict(zip(ENDS, ordered)), **roles}.items() if number is not None}
