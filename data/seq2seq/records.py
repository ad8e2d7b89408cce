"""Records for encoder-decoders: a source, the target that is to be said of it, and perhaps the beginning of that, which is given."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UserError
from ..formats import Dialogue, Family, Message, as_text, messages, missing, prompt_completion, sharegpt, triplet
from ..json_text import parsed

PREFIXES = ("prefix", "target_prefix")  # keys of a given beginning of the answer, which a record of any shape may have


@dataclass
class Exchange:
    """What an encoder reads, a text or messages, and what is to be said of it; the target begins with `prefix`, which is given and not learned.

    `where` is where the record stands, `taken` which columns of the file were taken as what, in words.
    """

    source: str | list[Message]
    target: str
    prefix: str = ""
    where: str = ""
    taken: str = field(default="", repr=False, compare=False)
    translated: bool = field(default=False, repr=False, compare=False)  # out of a record whose keys are languages

    @property
    def messages(self) -> list[Message]:
        """Both sides as messages."""
        source = [{"role": "user", "content": self.source}] if isinstance(self.source, str) else self.source
        return [*source, {"role": "assistant", "content": self.target}]

    def behind(self, source_prefix: str) -> "Exchange":
        """The same with a text before the source ("translate Korean to English: ", as T5 was taught)."""
        return replace(self, source=behind(self.source, source_prefix))


def behind(source: str | list[Message], source_prefix: str) -> str | list[Message]:
    """A source, or messages, with a text before it."""
    if isinstance(source, str):
        return source_prefix + source
    first, *rest = source
    return [{**first, "content": source_prefix + first["content"]}, *rest] if source_prefix else source


def seq2seq_shapes(source_lang: str | None = None, target_lang: str | None = None) -> Family:
    """The shapes of records for encoder-decoders; of {"translation": {"ko": ..., "en": ...}} the languages name the keys.

    A language is named as the key is, or by a code that begins with it: ko_KR and ko-KR are under "ko".
    """
    return Family(
        {
            "translation": (("translation",), _given(lambda record: translation(record, source_lang, target_lang))),
            "source_target": (("source", "target"), _given(source_target)),
            "messages": (("messages",), _given(lambda record: one_exchange(messages(record)))),
            "sharegpt": (("conversations",), _given(lambda record: one_exchange(sharegpt(record)))),
            "triplet": (("instruction",), _given(lambda record: one_exchange(triplet(record)))),
            "prompt_completion": (("prompt",), _given(lambda record: one_exchange(prompt_completion(record)))),
        },
        beside=PREFIXES,
    )


def source_target(record: Mapping[str, Any]) -> Exchange:
    """{source, target}: both are texts. Raises UserError naming a missing or mistyped key."""
    return Exchange(as_text(record, "source"), as_text(record, "target"))


def translation(record: Mapping[str, Any], source_lang: str | None, target_lang: str | None) -> Exchange:
    """{"translation": {"ko": ..., "en": ...}}, as the datasets of translations have it: a text in each of several languages.

    Raises UserError where it is not said which language is the source and which the target, and for a language that is not among them.
    """
    sides = translation_sides(record)
    if source_lang is None or target_lang is None:
        raise UserError(f"translation holds {', '.join(sides)}: say which is read and which is written, by --source_lang and --target_lang")
    source, target = (as_text(sides, language_key(sides, language)) for language in (source_lang, target_lang))
    return Exchange(source, target, translated=True)


def translation_sides(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a record holds under `translation`, from JSON text too: texts by their languages. Raises UserError where it is something else."""
    sides = record.get("translation")
    if isinstance(sides, str) and sides.lstrip().startswith("{"):
        try:
            sides = parsed(sides)
        except json.JSONDecodeError as error:
            raise UserError(f"translation is not JSON: {error}") from None
    if sides is None:
        raise missing("translation", record)
    if not isinstance(sides, Mapping) or not sides:
        raise UserError(f'translation must hold a text for each language, as {{"ko": ..., "en": ...}}, got {sides!r:.80}')
    return sides


def language_key(sides: Mapping[str, Any], language: str) -> str:
    """The key of a language: its code, or the code's first part. Raises UserError, naming the keys, where there is none such.

    >>> language_key({"ko": "나무", "en": "tree"}, "ko_KR")
    'ko'
    """
    parts = language.replace("-", "_").split("_")
    for code in (language, parts[0]):
        for key in sides:
            if key.casefold() == code.casefold():
                return key
    remedy = "name the languages by these keys, or by codes that begin with them (ko_KR); where the tokenizer has no such codes, rename the keys"
    raise UserError(f"translation holds {', '.join(sides)}, and no {language!r}: {remedy}")


def one_exchange(dialogue: Dialogue) -> Exchange:
    """A dialogue with one answer, at its end. Raises UserError for another, and for an answer that is no text."""
    *before, last = dialogue.messages or [{}]
    if last.get("role") != "assistant" or not before:
        raise UserError("the last message must be an assistant's, behind a user's: it is what is learned")
    if any(message.get("role") == "assistant" for message in before):
        raise UserError("there are several answers, and an encoder-decoder learns one a record: make a record of each, with the turns that it answers")
    if dialogue.tools or not all(isinstance(message.get("content"), str) and not message.get("tool_calls") for message in dialogue.messages):
        raise UserError("an encoder-decoder reads texts and answers with one: leave tools, calls and parts of other kinds out")
    return Exchange(before, last["content"])


def given_beginning(record: Mapping[str, Any]) -> str:
    """The beginning of the answer that a record gives, "" where it gives none. Raises UserError for two of them, and for what is no text."""
    there = [key for key in PREFIXES if record.get(key) is not None]
    if len(there) > 1:
        raise UserError(f"{' and '.join(there)} both give the beginning of the answer: keep one of them")
    return as_text(record, there[0]) if there else ""


def _given(reads: Callable[[Mapping[str, Any]], Exchange]) -> Callable[[Mapping[str, Any]], Exchange]:
    """What reads a shape, and the beginning of the answer where one is given. It raises UserError where the target begins otherwise."""

    def read(record: Mapping[str, Any]) -> Exchange:
        exchange, prefix = reads(record), given_beginning(record)
        if not exchange.target.startswith(prefix):
            raise UserError(f"the target {exchange.target!r:.60} does not begin with its prefix {prefix!r:.60}: give the whole target, its beginning included")
        return replace(exchange, prefix=prefix)

    return read
