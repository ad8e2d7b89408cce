"""What an encoder reads and what a decoder is to say, in ids: the same for training, scoring and generation."""

from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from ..chat import prompt_ids, text_ids
from ..errors import UserError
from ..formats import Dialogue
from ..literal import continuing, literal_alone, refuse_more
from ..surrogates import refuse_surrogates
from ..template import remember
from .languages import IN_SOURCE, known_language, language_ids, named, switched, target_language, writes_languages

SYSTEM = ("system", "developer")


def source_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict] | Dialogue,
    literal: bool | None = None,
    most: int | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> list[int]:
    """The ids that an encoder reads of a text or of messages, with what the tokenizer puts around a source.

    Messages go through the chat template; without one a user's single turn is the text, a system's before it with a blank line between. With `literal`
    what looks like a control token is text: without a word that of messages, not a text's. The languages, where given, hold for this call alone.
    Raises UserError for an empty source, several turns without a template, and a language that the checkpoint does not have or should be told; TooManyTokens
    where a beginning shows that there are more than `most`.
    """
    if isinstance(prompt, str):
        return _source_text(tokenizer, prompt, literal is True, most, source_lang, target_lang)
    talk = prompt if isinstance(prompt, Dialogue) else Dialogue(list(prompt))
    if tokenizer.chat_template:
        for setting, code in (("source_lang", source_lang), ("target_lang", None if writes_languages(tokenizer) else target_lang)):
            if code:
                known_language(tokenizer, setting, code)
                raise UserError(f"{setting}={code!r}: the chat template writes the source, which has its language there: leave it out")
        return prompt_ids(tokenizer, talk.messages, talk.tools, literal=literal is not False, most=most, **talk.template_kwargs)
    return _source_text(tokenizer, single_turn(talk), literal is not False, most, source_lang, target_lang)


def single_turn(talk: Dialogue) -> str:
    """The text of a user's turn, behind a system's where there is one; raises UserError for any more, which takes a chat template."""
    remedy = "the tokenizer has no chat template, so that a source is one user's turn: give the text alone, or a template (--chat_template)"
    if talk.tools or talk.template_kwargs:
        raise UserError(f"{'tools' if talk.tools else ', '.join(talk.template_kwargs)} would not be seen: {remedy}")
    messages = [*talk.messages]
    roles = [message.get("role") for message in messages]
    if roles not in (["user"], *([role, "user"] for role in SYSTEM)):
        raise UserError(f"the messages are of {', '.join(map(str, roles)) or 'no one'}: {remedy}")
    return "\n\n".join(text for message in messages if (text := content_text(message.get("content"))))


def content_text(content: object) -> str:
    """The text of a message's content, a string or parts of text; raises UserError for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise UserError(f"a message's content must be a text for a model that reads text alone, got {content!r:.80}")


def _source_text(
    tokenizer: PreTrainedTokenizerBase, text: str, literal: bool, most: int | None, source_lang: str | None, target_lang: str | None
) -> list[int]:
    refuse_surrogates(text, "the source")
    if not text.strip():
        raise UserError("the source is empty: give the encoder a text to read")
    if writes_languages(tokenizer):
        language = known_language(tokenizer, "source_lang", source_lang) if source_lang else None
        refuse_more(tokenizer, text, most, literal)
        with switched(tokenizer, source_lang=language) as own:
            return _encoded(own, "text", text, literal)
    for setting, code in (("source_lang", source_lang), ("target_lang", target_lang)):
        if code:
            known_language(tokenizer, setting, code)  # refuses
    first, text = _named_target(tokenizer, text, target_lang)
    return first + text_ids(tokenizer, text, literal, most)


def _named_target(tokenizer: PreTrainedTokenizerBase, text: str, target_lang: str | None) -> tuple[list[int], str]:
    """The id of the language that a Marian source names, or is to name, and the rest of the text; raises UserError where it must name one."""
    known = language_ids(tokenizer)
    if not known:
        return [], text
    asked = None if target_lang is None else target_lang and known_language(tokenizer, "target_lang", target_lang)
    if written := IN_SOURCE.match(text):
        code = known_language(tokenizer, "the source's first token", written[0])
        if asked not in (None, code):
            raise UserError(f"target_lang={target_lang!r}, but the source begins with {written[0]}: drop one of them")
        text = text[written.end() :]
        if not text.strip():
            raise UserError("the source has nothing but its language: give the encoder a text to read")
        return [known[code]], text
    own = getattr(tokenizer, "target_lang", None)
    if asked is None and own is not None and (own == "" or IN_SOURCE.fullmatch(own)):
        asked = own and known_language(tokenizer, "target_lang", own)
    if asked is None and len(known) > 1:
        raise UserError(
            f"the checkpoint speaks several languages, and nothing says which: give target_lang, or begin the source with >>{next(iter(known))}<< "
            f'(it has {named(known)}); target_lang="" for one that was taught without'
        )
    return [known[asked]] if asked else [], text


def target_ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = True, target_lang: str | None = None) -> list[int]:
    """The ids of a whole answer as `tokenizer(text_target=...)` has them, its end token included.

    With `literal`, control tokens' text is text. Raises UserError for an empty answer, and for one whose language nothing says.
    """
    refuse_surrogates(text, "the target")
    if not text:
        raise UserError("the target is empty: give the decoder a text to say")
    language = target_language(tokenizer, target_lang) if target_lang or writes_languages(tokenizer) else None
    if language is None and writes_languages(tokenizer):
        raise UserError(f"nothing says in which language the target is, and its token stands beside it: give target_lang ({named(language_ids(tokenizer))})")
    with switched(tokenizer, target_lang=language) as own:
        return _encoded(own, "text_target", text, literal)


def beginning_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, target_lang: str | None = None, first: Sequence[int] | None = None
) -> list[int]:
    """The ids that an answer with this beginning starts with: a target's without what stands behind it, with what stands before it (a language, BOS).

    With `first`, these ids stand before it instead. They are those that generation gives the decoder for a `prefix`; `split_target` says what follows
    them in a whole target. Raises UserError for a text without tokens.
    """
    if first is None:
        return _beginning(tokenizer, text, target_lang)[0]
    return [*first, *_some(_plain(tokenizer, text, True), text)]


def split_target(
    tokenizer: PreTrainedTokenizerBase, beginning: str | Sequence[int], text: str, literal: bool = True, target_lang: str | None = None
) -> tuple[list[int], list[int]]:
    """The ids of a given beginning, and those of the rest of a whole answer `text` that begins so: together the target's where a token ends there.

    Where one reaches over the border, the beginning is as generation is given it (`beginning_ids`), and the rest is encoded as what follows it. A beginning
    in ids must be that of the target's ids. Raises UserError for a text that does not begin so, or ends there.
    """
    whole = target_ids(tokenizer, text, literal, target_lang)
    if not isinstance(beginning, str):
        given = list(beginning)
        if whole[: len(given)] != given:
            raise UserError(f"the target {text!r:.60} does not begin with the ids {given}: give the beginning that it has")
        return given, _something(whole[len(given) :], text)
    if not text.startswith(beginning):
        raise UserError(f"the target {text!r:.60} does not begin with {beginning!r}: give the beginning that it has")
    given, after = _beginning(tokenizer, beginning, target_lang)
    if whole[: len(given)] == given:
        return given, _something(whole[len(given) :], text)
    rest = continuing(partial(_plain, tokenizer, literal=literal), text[len(beginning) :])
    return given, [*rest, *after]


def _something(rest: list[int], text: str) -> list[int]:
    if not rest:
        raise UserError(f"the beginning is all of the target {text!r:.60}: leave something to say")
    return rest


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str, target_lang: str | None) -> tuple[list[int], list[int]]:
    """The ids of an answer's beginning, and those that stand behind a whole answer."""
    whole, plain = target_ids(tokenizer, text, target_lang=target_lang), _some(_plain(tokenizer, text, True), text)
    before, after = _around(plain, whole)
    return [*before, *plain], after


def _around(plain: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What stands before a text's own ids and behind them where the tokenizer has put something around it."""
    at = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[:at], whole[at + len(plain) :]


def _some(ids: list[int], text: str) -> list[int]:
    if not ids:
        raise UserError(f"the tokenizer has no tokens for the beginning {text!r}: give another")
    return ids


def _plain(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool) -> list[int]:
    """The ids of a target's text alone, which are the same in every language."""
    with switched(tokenizer) as own:
        return _encoded(own, "text_target", text, literal, around=False)


def _encoded(tokenizer: PreTrainedTokenizerBase, side: str, text: str, literal: bool, around: bool = True) -> list[int]:
    """The ids of a source (`text`) or a target (`text_target`), by a tokenizer that is one's own."""
    encoded = lambda some, **how: tokenizer(**{side: some}, verbose=False, **how)["input_ids"]
    if not literal or not tokenizer.is_fast:
        return encoded(text, add_special_tokens=around, split_special_tokens=literal)
    plain = literal_alone(tokenizer, text)
    if not around:
        return plain
    languages = [getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang")]
    build = lambda: _around(encoded("a", add_special_tokens=False), encoded("a"))
    before, after = remember(tokenizer, f"around a {side} in {languages}", build, of_template=False)
    return [*before, *plain, *after]
