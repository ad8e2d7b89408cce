"""Languages that a translation checkpoint's tokenizer knows: which there are, and the tokens that name them.

mBART, mBART-50, M2M100 and NLLB write a language's token around a source and around a target; a Marian checkpoint of several target languages
has one (`>>fra<<`) before the source. Nothing here, but for `set_languages`, changes a tokenizer that others use too: it is a copy that is switched
from one language to another.
"""

import copy
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..template import remember

IN_SOURCE = re.compile(r">>([\w-]+)<<")  # how Marian writes a target language
CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}")  # NLLB's codes and mBART's, which are tokens themselves
SHOWN = 12  # languages that an error names
_SWITCHING = threading.RLock()


def writes_languages(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a language's token stands around each source and each target (mBART, mBART-50, M2M100, NLLB)."""
    return hasattr(tokenizer, "set_src_lang_special_tokens") and hasattr(tokenizer, "src_lang")


def language_ids(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """The id of each language by its code, as the checkpoint's own tokenizer has them; Marian's codes without their signs. Empty where there are none."""
    return remember(tokenizer, "languages", lambda: _language_ids(tokenizer), of_template=False)


def _language_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    if not writes_languages(tokenizer):
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        codes = [code for code in getattr(tokenizer, "supported_language_codes", added) if IN_SOURCE.fullmatch(code)]
        return {code[2:-2]: tokenizer.convert_tokens_to_ids(code) for code in codes}
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        known = {code: tokenizer.convert_tokens_to_ids(code) for code in added if CODE.fullmatch(code)}
    return {code: id for code, id in known.items() if id is not None and id != tokenizer.unk_token_id}


def known_language(tokenizer: PreTrainedTokenizerBase, setting: str, code: str) -> str:
    """A language's code as the tokenizer has it (`fra` for `>>fra<<` too); raises UserError, which names the setting, for one that it does not have."""
    known = language_ids(tokenizer)
    if not known:
        raise UserError(f"{setting}={code!r}: the tokenizer of this encoder-decoder ({type(tokenizer).__name__}) has no tokens of languages: leave it out")
    marked = IN_SOURCE.fullmatch(code) if isinstance(code, str) else None
    name = marked[1] if marked else code
    if name not in known:
        guess = [other for other in known if isinstance(name, str) and other.lower() == name.lower()] or _alike(name, known)
        raise UserError(f"{setting}={code!r} is no language of the checkpoint: " + (f"did you mean {guess[0]}?" if guess else f"it has {named(known)}"))
    if setting == "source_lang" and not writes_languages(tokenizer):
        raise UserError(f"source_lang={code!r}: this checkpoint has a token for the target language alone: leave source_lang out")
    return name


def _alike(name: Any, known: Mapping[str, int]) -> list[str]:
    """The code that a mistyped or a shorter one may mean: one that begins so, where there is but one (`ko` of `ko_KR`), else the most alike."""
    begun = [code for code in known if code.lower().startswith(f"{name}".lower()[:3])] if len(f"{name}") <= 3 else []
    return begun if len(begun) == 1 else get_close_matches(f"{name}", known, 1)


def named(known: Mapping[str, int]) -> str:
    """Languages as an error names them: the first of many."""
    codes = list(known)
    return ", ".join(codes[:SHOWN]) + (f" and {len(codes) - SHOWN} more" if len(codes) > SHOWN else "")


def set_languages(tokenizer: PreTrainedTokenizerBase, source_lang: str | None = None, target_lang: str | None = None) -> None:
    """Set the languages that hold where a request gives none, and that are saved with the tokenizer; None keeps what is set.

    Raises UserError for a code that the tokenizer does not have. For Marian, whose sources may also name no language, a target_lang of "" says that
    none is to be named.
    """
    if source_lang is not None:
        tokenizer.src_lang = known_language(tokenizer, "source_lang", source_lang)
    if target_lang is not None and writes_languages(tokenizer):
        tokenizer.tgt_lang = known_language(tokenizer, "target_lang", target_lang)
    elif target_lang is not None:
        tokenizer.target_lang = target_lang and f">>{known_language(tokenizer, 'target_lang', target_lang)}<<"
        tokenizer.init_kwargs["target_lang"] = tokenizer.target_lang  # or it would not be saved


def target_language(tokenizer: PreTrainedTokenizerBase, target_lang: str | None) -> str | None:
    """The code of the target language: the one given, else the tokenizer's own; None where neither says one. Raises UserError for one that is unknown."""
    if target_lang:
        return known_language(tokenizer, "target_lang", target_lang)
    own = getattr(tokenizer, "tgt_lang", None) if writes_languages(tokenizer) else None
    return own if own in language_ids(tokenizer) else None


def forced_first(tokenizer: PreTrainedTokenizerBase, generation_config: Any, target_lang: str | None = None) -> int | None:
    """The id of the token that every answer begins with, behind the decoder's start; None where nothing says one.

    It is the language asked for, else `forced_bos_token_id` of the checkpoint's generation_config, else the language that the tokenizer is set to. For
    the first mBART, whose decoder starts with the language itself, and for Marian, which reads it in the source, a language is no such token.
    """
    known, begins = language_ids(tokenizer), begins_targets(tokenizer)
    if target_lang and begins:
        return known[target_language(tokenizer, target_lang)]
    forced = getattr(generation_config, "forced_bos_token_id", None)
    if forced is not None and not (target_lang and forced in known.values()):
        return forced
    own = target_language(tokenizer, None)
    return known[own] if begins and own is not None else None


def starting_language(tokenizer: PreTrainedTokenizerBase, target_lang: str | None = None) -> int | None:
    """The id of the language, asked for or the tokenizer's own, that starts the decoder in place of `decoder_start_token_id`: the first mBART's."""
    if not writes_languages(tokenizer) or begins_targets(tokenizer):
        return None
    language = target_language(tokenizer, target_lang)
    return None if language is None else language_ids(tokenizer)[language]


def begins_targets(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a target begins with its language's token (mBART-50, M2M100, NLLB); that of the first mBART stands at its end, and starts the decoder."""
    if not writes_languages(tokenizer):
        return False

    def build() -> bool:
        code = next(iter(language_ids(tokenizer)))
        with switched(tokenizer, target_lang=code) as own:
            ids = own(text_target="a", verbose=False)["input_ids"]
        return ids[-1] != language_ids(tokenizer)[code] or getattr(tokenizer, "legacy_behaviour", False)  # NLLB's old form is of the source alone

    return remember(tokenizer, "begins targets", build, of_template=False)


@contextmanager
def switched(tokenizer: PreTrainedTokenizerBase, source_lang: str | None = None, target_lang: str | None = None) -> Iterator[PreTrainedTokenizerBase]:
    """A copy of the tokenizer, one for all calls, that is set to these languages until the block ends; other threads wait for it.

    `tokenizer(text_target=...)` switches what it is called on, so that no tokenizer that several threads share should be asked for it.
    """
    with _SWITCHING:
        own = remember(tokenizer, "copy to be switched", lambda: copy.deepcopy(tokenizer), of_template=False)
        if writes_languages(tokenizer):
            own.src_lang = source_lang or tokenizer.src_lang
            own.tgt_lang = target_lang or tokenizer.tgt_lang or own.src_lang  # M2M100 takes none for an answer
        yield own
