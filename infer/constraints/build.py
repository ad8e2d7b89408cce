"""What steers the text of a request's answers: made once for the request, copied for each of its sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.literal import literal_ids
from ...data.seq2seq.encoding import beginning_ids
from ..requests.params import RequestParams
from ..requests.request import least_tokens
from ..requests.stop import AnswerText, stop_pattern
from ..text.detokenise import detokeniser, whole_text
from ..text.vocabulary import Vocabulary, leaves_out_first_space
from .candidates import Candidates, candidates_of
from .forcing import ForcedText, ThinkingBudget, TokenHealing, taken_back
from .grammar import GRAMMARS, Grammar, asked, longest_text, new_grammar
from .pinned import Layout, forced_tokens, gaps_between, pinned_tokens
from .trie import Trie, paths, trie_of

LANGUAGES = (*GRAMMARS, "trie")  # each says what the whole answer may be


@dataclass(frozen=True)
class Constraints:
    """What steers the text of a request's answers.

    `prompt_ids` are the prompt's, of which healing may have taken the last ones back; the answer begins with `prefix_ids`. Of a canvas, `pinned` has
    all that is given, ids by their positions. `new_text` makes the text and `new_constraints` the constraints of a sequence, those that force first.
    """

    prompt_ids: list[int]
    prefix_ids: list[int]
    new_text: Callable[[], AnswerText]
    new_constraints: Callable[[], list]
    pinned: Mapping[int, int] = field(default_factory=dict)


def build_constraints(
    params: RequestParams,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[int],
    end_ids: frozenset[int],
    dialogue: bool = False,
    has_source: bool = False,
    mask: int | None = None,
    layout: Layout | None = None,
    first: Sequence[int] | None = (),
) -> Constraints:
    """Return a request's prefix, constraints and stops; `dialogue` says that the prompt came through the chat template, `has_source` that an encoder reads it.

    `mask` is the id of what is open on a canvas, None for an answer from left to right; `layout` is that of its template. A prefix stands behind the ids in
    `first`: None are those that an encoder-decoder's tokenizer puts before a target.

    The answer begins with `prefix`: it is part of the text, counts towards max_new_tokens and the positions of `forced_text` and
    `thinking_budget`, and is under the grammar or trie too. `token_healing` takes the last tokens of the prefix back, without a prefix
    those of the prompt, and lets the answer's first tokens spell them again, perhaps in longer tokens. Of a healed prompt `Result.ids` are all
    tokens behind what is left of it (`prompt_length`), and the text begins where the prompt's text ended.

    A grammar or trie after a `thinking_budget` speaks of what follows the thinking. Raises UserError, before anything is computed, for
    settings that are wrong or contradict each other.
    """
    check(params, end_ids, dialogue, has_source)
    pattern = None if params.stop_regex is None else stop_pattern(params.stop_regex)
    prefix = beginning(params, tokenizer, has_source, first) if params.prefix else []
    removed: list[int] = []
    if params.token_healing:
        healed = prefix or prompt_ids
        most = len(prefix) - len(first or ()) if prefix else len(healed) - 1  # of a prompt something must be left
        count = taken_back(Vocabulary.of(tokenizer), healed, most)
        kept, removed = healed[: len(healed) - count], healed[len(healed) - count :]
        prefix, prompt_ids = (kept, prompt_ids) if prefix else ([], kept)
    skip = 0 if params.prefix else len(whole_text(tokenizer, removed, prompt_ids))
    ends, first = end_ids | frozenset(params.stop_token_ids), []
    if mask is None:
        pinned, language = {}, language_of(params, tokenizer, ends, has_source)
        if forced := forced_tokens(tokenizer, params.forced_text or {}, params.max_new_tokens, begins=has_source):
            first = [ForcedText(forced)]
        given = dict.fromkeys(forced, "forced_text")
    else:
        pinned, language = pinned_tokens(params, tokenizer, prefix, layout, ends, mask), canvas_language(params, tokenizer, prefix, len(prompt_ids), end_ids, ends)
        first = gaps_between(pinned, layout, ends, tokenizer)
        given = {position: pin.setting for position, pin in pinned.items() if position >= len(prefix)}
    if language is not None and params.thinking_budget is None:
        check_least(params, len(prompt_ids), language)
    new_constraints = constraints_of(params, tokenizer, ends, first, language, given, len(prefix), removed)
    ids = {position: pin.id for position, pin in pinned.items()}
    text = AnswerText(detokeniser(tokenizer, prompt_ids), params.stop, pattern, params.stop_when, skip)
    constraints = Constraints(prompt_ids, prefix, text.fork, new_constraints, ids)
    check_prefix(constraints, params, end_ids)
    return constraints


def beginning(params: RequestParams, tokenizer: PreTrainedTokenizerBase, has_source: bool, first: Sequence[int] | None) -> list[int]:
    """Return the ids of an answer's given beginning; raises UserError where there are none. A decoder's text goes on, an encoder-decoder's begins."""
    if has_source:
        return beginning_ids(tokenizer, params.prefix, first=first)
    ids = literal_ids(tokenizer, params.prefix)
    if not ids:
        raise UserError(f"the tokenizer has no tokens for prefix={params.prefix!r}: give another")
    return [*first, *ids]


def constraints_of(
    params: RequestParams,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    first: Sequence,
    language: Grammar | Trie | Candidates | None,
    given: Mapping[int, str],
    prefix_length: int,
    removed: list[int],
) -> Callable[[], list]:
    """Return what makes the constraints of a sequence, in the order in which they apply: those in `first`, which force, then the `language`'s.

    `removed` are the ids that healing took back, `given` says by position which setting gives a token there. Raises UserError for constraints that meet.
    """
    vocabulary = Vocabulary.of(tokenizer) if removed or params.thinking_budget is not None else None
    spelled = b"".join(vocabulary.tokens[id] for id in removed) if removed else b""
    made = list(first)
    if spelled:
        made.append(TokenHealing(spelled, vocabulary))
    taken = prefix_length + len(spelled)
    if given and min(given) < taken:
        raise UserError(f"{given[min(given)]} at token {min(given)} meets the answer's given beginning of up to {taken} tokens: force it later")
    if params.thinking_budget is not None:
        end = thinking_end(tokenizer, params)
        if spelled and params.thinking_budget < taken:
            raise UserError(f"thinking_budget={params.thinking_budget} is less than the {taken} tokens that token_healing may take: raise it")
        if meeting := [at for at in given if params.thinking_budget <= at < params.thinking_budget + len(end)]:
            raise UserError(f"{given[meeting[0]]} at token {meeting[0]} meets the end of the thinking at {params.thinking_budget}: move one of them")
        after = [] if language is None else [language]
        made.append(ThinkingBudget(params.thinking_budget, end, vocabulary, params.thinking_end, after, sorted(ends)))
    elif language is not None:
        made.append(language)
    return lambda: [constraint.fork() for constraint in made]


def language_of(params: RequestParams, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], begins: bool = False) -> Grammar | Trie | None:
    """Return what says which texts the answer may be, None where nothing does; `ends` are the ids that end it, and where it `begins` a text of its own it
    is spelled as the tokenizer begins one. Raises UserError for one that is invalid."""
    if not params.trie:
        return new_grammar(params, tokenizer, ends, spaced=begins and leaves_out_first_space(tokenizer))
    found = paths(tokenizer, params.trie, begins)
    longest = max(map(len, found))
    if longest > params.max_new_tokens:
        raise UserError(f"trie has a path of {longest} tokens, but max_new_tokens={params.max_new_tokens}: raise it")
    return Trie(trie_of(found), ends)


def canvas_language(
    params: RequestParams, tokenizer: PreTrainedTokenizerBase, prefix_ids: list[int], prompt_length: int, end_ids: frozenset[int], ends: frozenset[int]
) -> Grammar | Trie | Candidates | None:
    """As `language_of` for a canvas: of texts that can be counted, in any order; where their beginning is not certain, as from left to right."""
    if params.thinking_budget is not None or params.token_healing:
        return language_of(params, tokenizer, ends)
    least = least_tokens(params, prompt_length)
    return candidates_of(params, tokenizer, prefix_ids, least, ends, end_ids) or language_of(params, tokenizer, ends)


def check_least(params: RequestParams, prompt_length: int, language: Grammar | Trie | Candidates) -> None:
    """Raise UserError where no text of the language is as long as the settings ask for, as far as that is soon known."""
    least = {"min_new_tokens": params.min_new_tokens or 0, "min_length": (params.min_length or 0) - prompt_length}
    name = max(least, key=least.__getitem__)
    if least[name] <= 0:
        return
    longest = language.longest if isinstance(language, Trie | Candidates) else longest_text(params, least[name])
    if longest is not None and longest < least[name]:
        raise UserError(f"{name}={getattr(params, name)} asks for more than {language.name} has: its longest text has at most {longest} tokens")


def thinking_end(tokenizer: PreTrainedTokenizerBase, params: RequestParams) -> list[int]:
    """Return the ids of `thinking_end`, which may be a special token; raises UserError where it has none, or where no room is left behind it."""
    ids = tokenizer.encode(params.thinking_end, add_special_tokens=False)
    if not ids:
        raise UserError(f"the tokenizer has no tokens for thinking_end={params.thinking_end!r}: give the text that ends the thinking")
    if params.thinking_budget + len(ids) >= params.max_new_tokens:
        raise UserError(
            f"thinking_budget={params.thinking_budget} and its end of {len(ids)} tokens leave nothing of "
            f"max_new_tokens={params.max_new_tokens} for the answer: raise that"
        )
    return ids


def check(params: RequestParams, end_ids: frozenset[int], dialogue: bool, has_source: bool) -> None:
    """Raise UserError for settings that contradict each other or the prompt."""
    if params.token_healing and not params.prefix:
        if dialogue:
            raise UserError("token_healing of messages heals their prefix, for the template's end stays: give prefix, or the prompt as a text")
        if has_source or params.hide or params.attention_mask is not None:
            raise UserError("token_healing moves the prompt's end, which an encoder, hide and attention_mask refer to: drop it, or give prefix")
    name = language_asked(params)
    if name is not None and not end_ids and not params.stop_token_ids:
        raise UserError(f"{name} needs a token that ends the answer, and the model has none: give stop_token_ids")


def language_asked(params: RequestParams) -> str | None:
    """Return the setting that says what the whole answer may be; raises UserError for one that contradicts it."""
    languages = [name for name in LANGUAGES if asked(params, name)]
    if not languages:
        return None
    name = languages[0]
    if len(languages) > 1:
        raise UserError(f"{name} and {languages[1]} both say what the whole answer is: drop one of them")
    if text := next((each for each in ("forced_text", "template", "suffix") if getattr(params, each)), None):
        raise UserError(f"{name} says what the whole answer is, so {text} cannot stand in it: write the text into {name}")
    if params.token_healing and not params.prefix:
        raise UserError(f"{name} begins where the prompt ends, which token_healing moves: drop one of them")
    if params.ignore_eos:
        raise UserError(f"{name} says where the answer ends, but ignore_eos goes on: drop one of them")
    return name


def check_prefix(constraints: Constraints, params: RequestParams, end_ids: frozenset[int]) -> None:
    """Raise UserError for a prefix that leaves nothing to generate."""
    prefix = constraints.prefix_ids
    if not prefix:
        return
    if len(prefix) >= params.max_new_tokens:
        raise UserError(f"prefix takes {len(prefix)} tokens of the answer, but max_new_tokens={params.max_new_tokens}: raise it")
    text, least = constraints.new_text(), least_tokens(params, len(constraints.prompt_ids))
    for position, id in enumerate(prefix, 1):
        if id in end_ids or id in params.stop_token_ids:
            raise UserError(f"prefix={params.prefix!r} has the id {id}, which ends the answer: leave it out")
        text.push(id, position > least)
        if text.stopped:
            raise UserError(f"prefix={params.prefix!r} completes a stop of the request's own: change one of them")
    for constraint in constraints.new_constraints():
        if isinstance(constraint, Grammar | Trie | Candidates) and not constraint.takes(prefix):
            raise UserError(f"prefix={params.prefix!r} is no beginning that {constraint.name} allows: change one of them")
