"""Rewards of answers: rules that a person can read, a reward model, a Python function of the user's; and the check that all go through.

A reward is called as trl calls its own, `reward(prompts, completions, **columns) -> list[float]`: prompts are lists of messages, completions
plain texts, columns the records' other fields, one entry a completion.
"""

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import regex
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from .reward_function import Reward, describe_error, did_you_mean, load_function, reward_name, with_named_columns
from .scoring import check_same_tokenizer, score_answers

UNITS = ("words", "characters")
LARGEST = math.sqrt(torch.finfo(torch.float32).max)  # losses and deviations square rewards, in float32
MATCH_SECONDS = 2.0  # for a whole completion; what is no trap takes microseconds
_MARK = "####"  # GSM8K writes the result behind its reasoning and this
_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\.?")


# Rules


def exact_answer(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion's answer is that of the column `answer`, else 0.

    Behind the last `####` where there is one, the answer is what stands there, else the whole text. Numbers compare as numbers, texts
    with white space folded.

    >>> exact_answer([[], []], ["6 * 12 = 72\\n#### 72", "about 70"], answer=["#### 72.0", "72"])
    [1.0, 0.0]
    """
    return [float(final_answer(text) == final_answer(str(wanted))) for text, wanted in zip(completions, answer, strict=True)]


exact_answer.in_every_record = True  # its column: a missing answer would be the text "None"


def final_answer(text: str) -> Decimal | str:
    """What a text answers in the end: a number where it reads as one, else the text with white space folded.

    Of numbers in arithmetic alone; formulas would be math_verify's, which brings a computer algebra system along.
    """
    _, mark, behind = text.rpartition(_MARK)
    answer = " ".join((behind.strip().partition("\n")[0] if mark else text).split())
    number = _NUMBER.fullmatch(answer)
    return Decimal(number[1] + number[2].replace(",", "")) if number else answer


def format_match(pattern: str) -> Reward:
    """A reward of 1 where the whole completion matches the regular expression, else 0.

    Raises UserError for a completion that takes longer than `MATCH_SECONDS`.
    """
    try:
        wanted = regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"reward format: {pattern!r} is not a regular expression: {error}") from None

    def matches(text: str) -> bool:
        try:
            return wanted.fullmatch(text, timeout=MATCH_SECONDS) is not None
        except TimeoutError:
            raise UserError(
                f"reward format: {pattern!r} was not done with {_short(text)} after {MATCH_SECONDS:g} seconds: "
                "rewrite it so that there is one way to match a text, without a repeat of repeats such as (a+)+"
            ) from None

    def format(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(matches(text)) for text in completions]

    return format


def length(target: float, unit: str = "words") -> Reward:
    """A reward of 1 at `target` words or characters, falling in a straight line to 0 at nothing and at twice the target.

    Raises UserError for a target that is not above 0, or an unknown unit.
    """
    if not (math.isfinite(target) and target > 0):
        raise UserError(f"reward length: the target must be above 0, got {target}")
    if unit not in UNITS:
        raise UserError(f"reward length: the unit must be words or characters, got {unit!r}{did_you_mean(unit, UNITS)}")
    count = {"words": lambda text: len(text.split()), "characters": len}[unit]

    def length(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [max(0.0, 1 - abs(count(text) - target) / target) for text in completions]

    return length


def contains(wanted: str) -> Reward:
    """A reward of 1 where the completion has the text in it, else 0. Raises UserError for an empty text."""
    if not wanted:
        raise UserError("reward contains: the text is empty, which every answer contains: give one, as contains:TEXT")

    def contains(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(wanted in text) for text in completions]

    return contains


def length_of(text: str) -> Reward:
    """The reward of lengths near TARGET, of "TARGET" in words or "TARGET:UNIT". Raises UserError for a target that is no number."""
    target, _, unit = text.partition(":")
    try:
        number = float(target)
    except ValueError:
        raise UserError(f"reward 'length:{text}': {target!r} is not a number, give it as length:TARGET[:UNIT]") from None
    return length(number, unit or "words")


# Rewards by name

# by name how a rule is written, and what makes it of the text behind the colon
RULES: dict[str, tuple[str, Callable[[str], Reward]]] = {
    "exact_answer": ("exact_answer", lambda nothing: exact_answer),
    "format": ("format:PATTERN", format_match),
    "length": ("length:TARGET[:UNIT]", length_of),
    "contains": ("contains:TEXT", contains),
}


def parse_reward(text: str) -> Reward:
    """The reward that a text names: `exact_answer`, `format:PATTERN`, `length:12`, `length:80:characters`, `contains:TEXT`, `FILE.py:FUNCTION`.

    Raises UserError, with the nearest name, for what is none of these.
    """
    name, colon, rest = text.partition(":")
    if name not in RULES and ".py" in text:
        return load_function(text)
    if name not in RULES:
        raise UserError(f"unknown reward {name!r}{did_you_mean(name, RULES)}; there are {', '.join(written for written, _ in RULES.values())} and FILE.py:FUNCTION")
    written, rule = RULES[name]
    if bool(colon) != (":" in written):
        raise UserError(f"reward {text!r} must be given as {written}")
    return rule(rest)


def parse_rewards(texts: Sequence[str]) -> list["CheckedReward"]:
    """The rewards named, each checked and under a name of its own."""
    found: list[CheckedReward] = []
    for text in texts:
        reward = parse_reward(text)
        name, used = reward_name(reward), {other.__name__ for other in found}
        again = next(name if n == 1 else f"{name}_{n}" for n in range(1, len(texts) + 1) if (name if n == 1 else f"{name}_{n}") not in used)
        found.append(CheckedReward(reward, again))
    return found


# A reward model


def model_reward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy_tokenizer: PreTrainedTokenizerBase, retokenise: bool = False
) -> Reward:
    """The score of a reward model, which reads prompt and completion by its own tokenizer and chat template.

    Raises UserError where that is not the policy's tokenizer, unless `retokenise` says that the text may be encoded again.
    """
    if not retokenise:
        check_same_tokenizer(policy_tokenizer, tokenizer)

    def reward_model(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return score_answers(model, tokenizer, prompts, completions)

    return reward_model


# What every reward goes through


class CheckedReward:
    """Calls a reward and refuses, before anything is learned from it, what is no reward: a wrong count, None, NaN, infinity, no number,
    one too large for float32. A reward that raises is reported with its name and the prompt.

    The reward is given of prompts, completions and columns those that it takes.
    """

    def __init__(self, reward: Reward, name: str | None = None):
        self.reward = with_named_columns(reward)
        self.__name__ = name or reward_name(reward)
        self.__wrapped__ = reward  # whose signature says which columns it needs
        self.parts = getattr(reward, "parts", ())

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        try:
            given = self.reward(prompts=prompts, completions=completions, **columns)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward {self.__name__} raised {describe_error(error)}{self._at(prompts, completions, columns)}") from error
        given = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(given, list | tuple):
            raise UserError(f"reward {self.__name__} returned a {type(given).__name__}: it must return a list, one number a completion")
        if len(given) != len(completions):
            raise UserError(f"reward {self.__name__} returned {len(given)} rewards for {len(completions)} completions: one each is needed")
        return [self._checked(value, *case) for value, *case in zip(given, prompts, completions, strict=True)]

    def _checked(self, value: Any, prompt: Any, completion: str) -> float:
        try:
            number = math.nan if isinstance(value, str) or not hasattr(value, "__float__") else float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= LARGEST:
            raise UserError(
                f"reward {self.__name__} returned {value!r:.40} for {_case(prompt, completion)}: "
                f"it must be a finite number of at most {LARGEST:.1e}, whose square float32 holds; nothing was learned from this batch"
            )
        return number

    def _at(self, prompts: Sequence[Any], completions: Sequence[str], columns: dict[str, Any]) -> str:
        """Of the answers it raised at the first that it raises at alone."""
        for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            own = {name: [value[place]] if isinstance(value, list | tuple) and len(value) == len(completions) else value for name, value in columns.items()}
            try:
                self.reward(prompts=[prompt], completions=[completion], **own)
            except Exception:
                return f" for {_case(prompt, completion)}"
        first = f", the first {_case(prompts[0], completions[0])}" if completions else ""
        return f" for {len(completions)} completions together{first}"


def checked(reward: Reward) -> CheckedReward:
    """The reward behind its check, put there once."""
    return reward if isinstance(reward, CheckedReward) else CheckedReward(reward)


def combined(rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> Reward:
    """One reward, the weighted sum of several; without weights each counts once. Raises UserError where there is not one weight a reward."""
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards) or not rewards:
        raise UserError(f"{len(weights)} reward_weights for {len(rewards)} rewards: give one each")
    parts = [checked(reward) for reward in rewards]

    def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        found = [part(prompts, completions, **columns) for part in parts]
        return [sum(weight * value for weight, value in zip(weights, values, strict=True)) for values in zip(*found, strict=True)]

    reward.__name__ = "+".join(part.__name__ for part in parts)
    reward.parts = parts
    return reward


def as_trl_reward(reward: Reward) -> Reward:
    """The reward as trl's trainers call it: completions come as messages, and go to the reward as texts."""

    def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return reward(prompts=prompts, completions=[message_text(completion) for completion in completions], **columns)

    call.__name__ = reward_name(reward)
    return call


def message_text(messages: Any) -> str:
    """A text as it is; of messages the last one's content."""
    if isinstance(messages, str):
        return messages
    content = (messages[-1].get("content") if messages else None) or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _case(prompt: Any, completion: str) -> str:
    return f"the completion {_short(completion)} of the prompt {_short(message_text(prompt))}"
