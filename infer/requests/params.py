"""What a caller may ask of the generation of one prompt: the settings that are no filter's and no strategy's, and how all are judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any

from ...data.errors import UserError
from ...data.surrogates import refuse_surrogates
from ..text.spans import Span
from .options import CONFIG, NEVER, OPENAI, VLLM, Command, Option, option, options_of, settings
from .rules import entries, function, listed, must_be, number, of, text, texts, whole, yes_or_no

DEFAULT_MAX_NEW_TOKENS = 256


class Unsaid(int):
    """A greatest length that nobody gave: a change of the other settings finds it anew."""


def as_texts(name: str, value: Any) -> tuple:
    """One text or a list of texts as a tuple; raises UserError for anything else."""
    if value is not None and (not isinstance(value, Collection) or isinstance(value, Mapping)):
        raise UserError(f"{name} must be a text or a list of texts, got {value!r}")
    return (value,) if isinstance(value, str) else tuple(value or ())


def as_spans(name: str, value: Any) -> Any:
    """One text to hide as a list of one; anything else as it is."""
    return (value,) if isinstance(value, str) else value


@settings
class RequestParams:
    """The settings that every request has, and the rules of all; `SamplingParams` adds those of the filters and the strategies.

    Raises UserError for a value out of its range, for a text with half a character, and for one that says something of another setting that is
    not given.
    """

    max_new_tokens: int = option(
        None, f"The answer ends after so many tokens; {DEFAULT_MAX_NEW_TOKENS} unless max_length is given.", whole(1), example=3,
        same_in=(CONFIG,), aliases={OPENAI: ("max_tokens", "max_completion_tokens")}, command=Command(int | None),
    )  # fmt: skip
    max_length: int | None = option(
        None, "It ends where prompt and answer have so many tokens, if that is sooner.", whole(1), example=8, same_in=(CONFIG,)
    )
    max_time: float | None = option(
        None, "It ends after so many seconds.", number("a number of seconds above 0", lambda t: t > 0), example=600.0, same_in=(CONFIG,)
    )
    stop: str | Sequence[str] = option(
        (), "Texts that end the answer.", texts, example=("end",), same_in=(OPENAI,), aliases={CONFIG: ("stop_strings",)},
        command=Command(list[str]), convert=as_texts,
    )  # fmt: skip
    stop_regex: str | None = option(
        None, "A regular expression that ends the answer where it matches.", text("a regular expression"), example="x"
    )
    stop_token_ids: Sequence[int] = option((), "Ids that end the answer.", listed, example=(5,), same_in=(VLLM,), ids=tuple)
    stop_when: Callable[[str], bool] | None = option(
        None, "A function of the answer's text so far that says when it ends.", function, example=bool, command=False
    )
    ignore_eos: bool = option(False, "The model's own end tokens do not end it.", yes_or_no, example=True, same_in=(VLLM,))
    seed: int | None = option(None, "Makes sampled answers repeatable.", must_be("a whole number", of(int)), example=7, same_in=(OPENAI,))
    source_lang: str | None = option(
        None, "Encoder-decoders: the language of the source, by the tokenizer's own code.", text("a language's code"), example="deu_Latn"
    )
    target_lang: str | None = option(
        None, "Encoder-decoders: the language of the answer, whose token begins it, or the source, as the checkpoint was taught.",
        text("a language's code"), example="kor_Hang",
    )  # fmt: skip
    decoder_input_ids: Sequence[int] | None = option(
        None, "Encoder-decoders: ids that the decoder is shown before the answer, its start before them where they lack it.",
        entries("a list of ids", of(int)), example=(5,), command=False, ids=tuple,
    )  # fmt: skip
    num_return_sequences: int = option(1, "Answers to each prompt.", whole(1), example=2, same_in=(CONFIG,), aliases={OPENAI: ("n",)})
    strategy: str | None = option(
        None, "Name of the strategy; without it, the options below say which is meant.", text("the name of a strategy"), example="sampling"
    )
    hide: Sequence[Span | str] = option(
        (), "Texts of the prompt that no token sees, wherever they stand in it; in Python also a Span.",
        entries("a list of Span or texts", lambda each: isinstance(each, Span) or isinstance(each, str) and each, ": give Span(start, end)"),
        example=(Span(0, 1),), command=Command(list[str]), convert=as_spans,
    )  # fmt: skip
    attention_mask: Sequence[int] | None = option(None, "0 for each position of the prompt that no token sees.", example=(0, 1), command=False)
    logprobs: int | None = option(
        None, "Tell each token's log-probability by the model alone, and N likeliest.", whole(0),
        example=2, same_in=(VLLM,), command=Command(int | None, bare=0),
    )  # fmt: skip
    prompt_logprobs: int | None = option(
        None, "The same of the prompt's tokens.", whole(0), example=1, same_in=(VLLM,), command=Command(int | None, bare=0)
    )
    do_sample: bool | None = option(
        None, "Sample, or take the likeliest token; without it, sampling is on where one of its options is given.", yes_or_no, example=True,
        same_in=(CONFIG,),
    )  # fmt: skip

    def __new__(cls, *values: Any, **settings: Any):
        known = options_of(cls)
        for name in settings:
            if name not in known:
                guess = get_close_matches(name, known, 1)
                raise UserError(f"{cls.__name__} has no setting {name!r}: " + (f"did you mean {guess[0]}?" if guess else "leave it out"))
        return super().__new__(cls)

    def __post_init__(self):
        converted, owned = duties(type(self))
        for each in converted:
            object.__setattr__(self, each.name, each.convert(each.name, getattr(self, each.name)))
        for each in options_of(type(self)).values():
            refuse(refusal(each, getattr(self, each.name)))
        refuse_surrogates({name: value for name, value in vars(self).items() if isinstance(value, str | list | tuple | dict)})
        if self.max_new_tokens is None or isinstance(self.max_new_tokens, Unsaid):  # where max_length says how long, nothing else does
            object.__setattr__(self, "max_new_tokens", self._usual_length)
        for each in owned:
            refuse(self._without_owner(each))
        refuse(self._of_two_minds())

    def _without_owner(self, each: Option) -> str | None:
        if getattr(self, each.part_of) is not None or not differs(value := getattr(self, each.name), each.default):
            return None
        return f"{each.name}={value!r} says nothing without {each.part_of}: give both"

    def _of_two_minds(self) -> str | None:
        if self.do_sample is False and self.asks_to_sample:
            name = self.asks_to_sample[0]
            return f"{name}={getattr(self, name)} asks for sampling, but do_sample is false: drop one of them"
        if self.do_sample and self.greedy_by is not None:
            return f"{self.greedy_by}=0 is greedy, but do_sample is true: drop one of them"
        return None

    @property
    def asks_to_sample(self) -> list[str]:
        """The settings given that turn sampling on."""
        sampling, _, claims = roles(type(self))
        claimed = {other for name, other in claims if getattr(self, name) is not None}
        return [name for name in sampling if getattr(self, name) and name not in claimed]

    @property
    def greedy_by(self) -> str | None:
        """The setting given that turns sampling off: a temperature of 0."""
        return next((name for name, value in roles(type(self))[1] if getattr(self, name) == value), None)

    @cached_property
    def samples(self) -> bool:
        """Whether tokens are drawn; else the likeliest is taken."""
        if self.do_sample is not None:
            return self.do_sample
        return self.greedy_by is None and bool(self.asks_to_sample)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        usual = {"max_new_tokens": self._usual_length}
        known = options_of(type(self))
        return {name: value for name, each in known.items() if differs(value := getattr(self, name), usual.get(name, each.default))}

    @property
    def _usual_length(self) -> int:
        return Unsaid(DEFAULT_MAX_NEW_TOKENS if self.max_length is None else self.max_length)


@cache
def duties(cls: type) -> tuple[list[Option], list[Option]]:
    """The settings that are converted, and those that say nothing without another: what every construction goes through."""
    known = options_of(cls).values()
    return [each for each in known if each.convert is not None], [each for each in known if each.part_of is not None]


@cache
def roles(cls: type) -> tuple[list[str], list[tuple[str, Any]], list[tuple[str, str]]]:
    """The settings that turn sampling on, those that turn it off at a value, and those that claim another setting for themselves."""
    known = options_of(cls).values()
    sampling = [each.name for each in known if each.samples]
    greedy = [(each.name, each.greedy) for each in known if each.greedy is not NEVER]
    return sampling, greedy, [(each.name, each.claims) for each in known if each.claims is not None]


def refusal(each: Option, value: Any) -> str | None:
    """Why a setting does not take a value; None that is the default is always taken."""
    return None if value is None and each.default is None else each.rule(each.name, value)


def refuse(reason: str | None) -> None:
    """Raise UserError where there is a reason."""
    if reason is not None:
        raise UserError(reason)


def differs(value: Any, default: Any) -> bool:
    """Whether a setting asks for something; a tuple and a list of the same things are alike."""
    if isinstance(value, list | tuple) and isinstance(default, tuple):
        return tuple(value) != default
    return value is not default and not (isinstance(value, type(default) | int | float) and value == default)
