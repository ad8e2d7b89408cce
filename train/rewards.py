"""Rewards of answers: rules that a person can read, a reward model, a Python function of the user's; and the check that all go through.

A reward is called as trl calls its own, `reward(prompts, completions, **columns) -> list[float]`: prompts are lists of messages, completions
plain texts, columns the records' other fields, one entry a completion.
"""

import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.refusal import UserError
from .reward_scores import check_same_tokenizer, score_answers

Reward = Callable[..., list[float]]

UNITS = ("words", "characters")
_MARKED = re.compile(r"####\s*(.+?)\s*$", re.MULTILINE)  # GSM8K writes the result behind its reasoning
_NUMBER = re.compile(r"([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\.?")


# Rules


def exact_answer(prompts: Sequence[Any], completions: Sequence[str], answer: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    """1 where the completion's answer is that of the column `answer`, else 0.

    Behind the last `####` where there is one, the answer is what stands there, else the whole text. Numbers compare as numbers, texts
    with white space folded.

    >>> exact_answer([[], []], ["6 * 12 = 72\\n#### 72", "about 70"], answer=["#### 72.0", "72"])
    [1.0, 0.0]
    """
    if answer is None:
        raise UserError(f"exact_answer needs a column `answer` in the records, they have {', '.join(columns) or 'no columns'}: add it")
    return [float(final_answer(said) == final_answer(str(wanted))) for said, wanted in zip(completions, answer, strict=True)]


def final_answer(text: str) -> Decimal | str:
    """What a text answers in the end: a number where it reads as one, else the text with white space folded."""
    marked = _MARKED.findall(text)
    answer = " ".join((marked[-1] if marked else text).split())
    number = _NUMBER.fullmatch(answer)
    return Decimal(number[1] + number[2].replace(",", "")) if number else answer


def format_match(pattern: str) -> Reward:
    """A reward of 1 where the whole completion matches the regular expression, else 0."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UserError(f"reward format: {pattern!r} is not a regular expression: {error}") from None

    def format(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(wanted.fullmatch(text) is not None) for text in completions]

    return format


def length(target: float, unit: str = "words") -> Reward:
    """A reward of 1 at `target` words or characters, falling in a straight line to 0 at nothing and at twice the target."""
    if not (math.isfinite(target) and target > 0):
        raise UserError(f"reward length: the target must be above 0, got {target}")
    if unit not in UNITS:
        raise UserError(f"reward length: the unit must be words or characters, got {unit!r}{_nearest(unit, UNITS)}")
    count = {"words": lambda text: len(text.split()), "characters": len}[unit]

    def length(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [max(0.0, 1 - abs(count(text) - target) / target) for text in completions]

    return length


def contains(wanted: str) -> Reward:
    """A reward of 1 where the completion has the text in it, else 0."""
    if not wanted:
        raise UserError("reward contains: the text is empty, which every answer contains: give one, as contains:TEXT")

    def contains(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return [float(wanted in text) for text in completions]

    return contains


# Rewards by name


RULES = {"exact_answer": "exact_answer", "format": "format:PATTERN", "length": "length:TARGET[:UNIT]", "contains": "contains:TEXT"}


def parse_reward(text: str) -> Reward:
    """The reward that a text names: `exact_answer`, `format:PATTERN`, `length:12`, `length:80:characters`, `contains:TEXT`, `FILE.py:FUNCTION`.

    Raises UserError, with the nearest name, for what is none of these.
    """
    name, colon, rest = text.partition(":")
    if name not in RULES and ".py" in text:
        return function_from(text)
    if name not in RULES:
        raise UserError(f"unknown reward {name!r}{_nearest(name, RULES)}; there are {', '.join(RULES.values())} and FILE.py:FUNCTION")
    if bool(colon) == (name == "exact_answer"):
        raise UserError(f"reward {text!r} must be given as {RULES[name]}")
    if name == "length":
        target, _, unit = rest.partition(":")
        return length(_number(target, text), unit or "words")
    return {"exact_answer": lambda _: exact_answer, "format": format_match, "contains": contains}[name](rest)


def parse_rewards(texts: Sequence[str]) -> list["Checked"]:
    """The rewards named, each checked and under a name of its own."""
    found: list[Checked] = []
    for text in texts:
        reward = parse_reward(text)
        name, taken = reward.__name__, {other.__name__ for other in found}
        again = next(name if n == 1 else f"{name}_{n}" for n in range(1, len(texts) + 1) if (name if n == 1 else f"{name}_{n}") not in taken)
        found.append(Checked(reward, again))
    return found


def function_from(text: str) -> Reward:
    """The function that `path/to/file.py:function` names; it is given of the columns those that it takes."""
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name:
        raise UserError(f"reward {text!r} must name a file and a function in it, as path/to/file.py:function")
    if not Path(path).is_file():
        raise UserError(f"reward {text!r}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward {text!r}: {path} has no function {name}{_nearest(name, vars(module))}")
    return taking_its_own(function)


def taking_its_own(function: Reward) -> Reward:
    """The function as a reward: of the columns it is given those that it names, or all where it takes `**columns`."""
    if inspect.iscoroutinefunction(function):
        raise UserError(f"reward {function.__name__} is asynchronous: give a plain function")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}

    def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        return function(prompts=prompts, completions=completions, **{k: v for k, v in columns.items() if takes_all or k in names})

    reward.__name__ = getattr(function, "__name__", type(function).__name__)
    return reward


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"reward {whole!r}: {text!r} is not a number, give it as {RULES['length']}") from None


def _nearest(name: str, known) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


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


class Checked:
    """Calls a reward and refuses, before anything is learned from it, what is no reward: a wrong count, None, NaN, infinity, no number."""

    def __init__(self, reward: Reward, name: str | None = None):
        self.reward = reward
        self.__name__ = name or getattr(reward, "__name__", type(reward).__name__)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        given = self.reward(prompts=prompts, completions=completions, **columns)
        given = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(given, list | tuple):
            raise UserError(f"reward {self.__name__} returned a {type(given).__name__}: it must return a list, one number a completion")
        if len(given) != len(completions):
            raise UserError(f"reward {self.__name__} returned {len(given)} rewards for {len(completions)} completions: one each is needed")
        return [self._checked(value, *case) for value, *case in zip(given, prompts, completions, strict=True)]

    def _checked(self, value: Any, prompt: Any, completion: str) -> float:
        number = None if isinstance(value, str) or not hasattr(value, "__float__") else float(value)
        if number is None or not math.isfinite(number):
            raise UserError(
                f"reward {self.__name__} returned {value!r} for the completion {_short(completion)} of the prompt {_short(last_text(prompt))}: "
                "it must be a finite number; nothing was learned from this batch"
            )
        return number


def combined(rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> Reward:
    """One reward, the weighted sum of several; without weights each counts once."""
    weights = [1.0] * len(rewards) if weights is None else list(weights)
    if len(weights) != len(rewards) or not rewards:
        raise UserError(f"{len(weights)} reward_weights for {len(rewards)} rewards: give one each")
    checked = [reward if isinstance(reward, Checked) else Checked(reward) for reward in rewards]

    def reward(prompts: Sequence[Any], completions: Sequence[str], **columns: Any) -> list[float]:
        parts = [each(prompts, completions, **columns) for each in checked]
        return [sum(weight * value for weight, value in zip(weights, values, strict=True)) for values in zip(*parts, strict=True)]

    reward.__name__ = "+".join(each.__name__ for each in checked)
    return reward


def for_trl(reward: Reward) -> Reward:
    """The reward as trl's trainers call it: completions come as messages, and go to the reward as texts."""

    def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return reward(prompts=prompts, completions=[last_text(said) for said in completions], **columns)

    call.__name__ = getattr(reward, "__name__", type(reward).__name__)
    return call


def last_text(messages: Any) -> str:
    """A text as it is; of messages the last one's content."""
    if isinstance(messages, str):
        return messages
    content = (messages[-1].get("content") if messages else None) or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
