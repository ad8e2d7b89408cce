"""What a model is asked so that it makes a record: new tasks beside some that it is shown, a person's questions, a record said anew or in another language."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ..errors import UserError
from ..json_text import parsed
from ..surrogates import refuse_surrogates
from .seeds import FIELDS, Seed

NEW, OF_RECORDS = ("self_instruct", "persona"), ("rephrase", "translate")  # whose records are new, and those that say a given record anew
OUTPUT_FIRST = "output_first"  # whose records are new inputs to a given output
STYLES = (*NEW, OUTPUT_FIRST, *OF_RECORDS)
FORM = 'a JSON object with an "instruction", an "input" ("" where the instruction needs none) and the "output" that is right'
LANGUAGES = {
    "ar": "Arabic", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian", "ja": "Japanese", "ko": "Korean",
    "pt": "Portuguese", "ru": "Russian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """What one attempt asks: the prompt, the records that it shows, of which some were `made` before, and the record whose texts stay, where one is.

    `beside` are the records that the model is shown when it is asked for the output again, where these are others.
    """

    prompt: str
    shown: tuple[Seed, ...] = ()
    made: tuple[Seed, ...] = ()
    source: Seed | None = None
    persona: str | None = None
    beside: tuple[Seed, ...] = ()


@dataclass(frozen=True)
class Style:
    """How a record is asked for. `fields` are the texts that the model writes; the others are the source's.

    `ask` gives what an attempt, counted from 0, asks, by its own random numbers and what was made before.
    """

    name: str
    fields: tuple[str, ...]
    ask: Callable[[int, Random, Sequence[Seed]], Ask] = field(repr=False)

    def record(self, ask: Ask, said: Mapping[str, str], where: str) -> Seed:
        """The record that an answer gives; of a record said anew, what was not to be written, or was empty, stays."""
        if ask.source is None:
            return Seed(*(said[name].strip() for name in FIELDS), where=where)
        old = ask.source.told()
        return Seed(*(said[name].strip() if name in self.fields and old[name] else old[name] for name in FIELDS), where=where)


def in_words(language: str) -> str:
    """A language's English name: of a code that is known, else what was said."""
    return LANGUAGES.get(language, language)


def line_of(record: Mapping[str, str]) -> str:
    """A record as it is shown: JSON in a line."""
    return json.dumps(dict(record), ensure_ascii=False)


def drawn(random: Random, seeds: Sequence[Seed], made: Sequence[Seed], shots: int, made_shots: int) -> tuple[tuple[Seed, ...], tuple[Seed, ...]]:
    """Demonstrations in a mixed order, and those of them that were made before: as many as wanted and there are, seeds for the rest.

    So the paper draws its eight, two of them made (Wang et al. 2023, "Self-Instruct", 2.2).
    """
    own = random.sample(made, min(made_shots, shots, len(made)))
    found = [*own, *random.sample(seeds, min(shots - len(own), len(seeds)))]
    random.shuffle(found)
    return tuple(found), tuple(own)


def self_instruct(seeds: Sequence[Seed], shots: int, made_shots: int, language: str | None = None) -> Style:
    """New tasks, each beside `shots` that are shown, of which up to `made_shots` were made before."""
    request = f"Each line below is a task: {FORM}.\nContinue the list by one line: another task that is like these and no copy of one of them.{_in(language)}"

    def ask(attempt: int, random: Random, made: Sequence[Seed]) -> Ask:
        shown, own = drawn(random, seeds, made, shots, made_shots)
        return Ask("\n".join([request, "", *(line_of(each.told()) for each in shown), ""]), shown, own)

    return Style("self_instruct", FIELDS, ask)


def persona(people: Sequence[str], seeds: Sequence[Seed], shots: int, made_shots: int, language: str | None = None) -> Style:
    """What people would ask an assistant, one after another, with the answers; where there are seeds, `shots` records are shown.

    After Ge et al. 2024, "Scaling Synthetic Data Creation with 1,000,000,000 Personas".
    """

    def ask(attempt: int, random: Random, made: Sequence[Seed]) -> Ask:
        who = people[attempt % len(people)]
        shown, own = drawn(random, seeds, made, shots, made_shots) if seeds else ((), ())
        request = f"You are {who}. Write what you, being who you are, would ask an assistant, and the answer that helps you: {FORM}.{_in(language)}"
        like = ["The form is that of these:", "", *(line_of(each.told()) for each in shown)] if shown else []
        return Ask("\n".join([request, *like, ""]), shown, own, persona=who)

    return Style("persona", FIELDS, ask)


def output_first(
    seeds: Sequence[Seed], shots: int, made_shots: int, language: str | None = None, meanings: Mapping[str, str] | None = None
) -> Style:
    """New inputs (where no seed has one, instructions) to each output of the seeds in its turn, beside `shots` records that have it.

    The output is given and its question is found, as the paper does for classes (Wang et al. 2023, "Self-Instruct", 2.2): what comes is right as far as
    the model keeps to it. `meanings` say in words what the questions of an output are. Raises UserError where some seeds have an input and others
    none, and for a meaning of an output that no seed has.
    """
    of = {output: [seed for seed in seeds if seed.output == output] for output in dict.fromkeys(seed.output for seed in seeds)}
    with_input = sum(bool(seed.input) for seed in seeds)
    if 0 < with_input < len(seeds):
        raise UserError(f"output_first: {with_input} of {len(seeds)} seeds have an input: give seeds that all have one, or none")
    if unknown := next((output for output in meanings or () if output not in of), None):
        raise UserError(f"meanings: no seed has the output {unknown!r}: there are {', '.join(map(repr, of))[:200]}")
    asked = FIELDS[1] if with_input else FIELDS[0]

    def ask(attempt: int, random: Random, made: Sequence[Seed]) -> Ask:
        output = [*of][attempt % len(of)]
        shown, own = drawn(random, of[output], [each for each in made if each.output == output], shots, made_shots)
        what = (meanings or {}).get(output) or f"the {asked} of a task whose right output is {json.dumps(output, ensure_ascii=False)}"
        request = f"Each line below is {what}. Continue the list by one line, about something else, in other words.{_in(language)}"
        beside = [seed for others in of.values() for seed in random.sample(others, min(max(shots // len(of), 1), len(others)))]
        random.shuffle(beside)
        return Ask("\n".join([request, "", *(line_of(each.told((asked,))) for each in shown), ""]), shown, own, random.choice(shown), beside=tuple(beside[:shots]))

    return Style(OUTPUT_FIRST, (asked,), ask)


def rephrase(records: Sequence[Seed], fields: tuple[str, ...]) -> Style:
    """Each record in its turn, some of its texts in other words."""
    names = _listed(fields)

    def ask(attempt: int, random: Random, made: Sequence[Seed]) -> Ask:
        source = records[attempt % len(records)]
        request = f"Say the {names} of this task in other words, in the same language. What is asked, and which answer is right, must stay the same."
        return Ask("\n".join([request, "", line_of(source.told()), "", f"A JSON object with the new {names}:", ""]), source=source)

    return Style("rephrase", fields, ask)


def translate(records: Sequence[Seed], fields: tuple[str, ...], source_lang: str, target_lang: str) -> Style:
    """Each record in its turn, its texts in another language."""

    def ask(attempt: int, random: Random, made: Sequence[Seed]) -> Ask:
        source = records[attempt % len(records)]
        return Ask(translation_prompt(source, fields, source_lang, target_lang), source=source)

    return Style("translate", fields, ask)


def translation_prompt(record: Seed, fields: tuple[str, ...], source_lang: str, target_lang: str) -> str:
    """What asks for a record's texts in another language."""
    ours, theirs = in_words(source_lang), in_words(target_lang)
    request = f"Translate each text of this JSON object from {ours} to {theirs}. Keys, numbers and line breaks stay as they are."
    return "\n".join([request, "", line_of(record.told(fields)), "", f"The same object in {theirs}:", ""])


def again_prompt(record: Seed, ask: Ask) -> str:
    """What asks for the output of a record that was made, beside the records that its making was shown, or those that are named for that."""
    shown = ask.beside or ask.shown
    examples = ["Tasks with their outputs:", "", *(line_of(each.told()) for each in shown), ""] if shown else []
    asked = [f"A task: {line_of(record.told(FIELDS[:2]))}", 'A JSON object with its right "output":', ""]
    return "\n".join([*examples, *asked])


def schema_of(fields: Sequence[str], max_chars: int) -> str:
    """The JSON Schema of an answer: these texts, each of so many characters at most, none of them empty but `input`; 0 leaves their lengths open.

    >>> schema_of(["output"], 9)
    '{"type": "object", "properties": {"output": {"type": "string", "minLength": 1, "maxLength": 9}}, "required": ["output"], "additionalProperties": false}'
    """
    bounds = {name: {"minLength": int(name != "input"), "maxLength": max_chars} if max_chars else {} for name in fields}
    properties = {name: {"type": "string", **bounds[name]} for name in fields}
    return json.dumps({"type": "object", "properties": properties, "required": list(fields), "additionalProperties": False})


def said_in(text: str, fields: Sequence[str]) -> dict[str, str] | None:
    """The texts that an answer gives under these names; None for an answer that is no JSON object of them."""
    try:
        told: Any = parsed(text.strip())
        refuse_surrogates(told, "the answer")
    except (json.JSONDecodeError, UserError):
        return None
    if not isinstance(told, Mapping) or not all(isinstance(told.get(name), str) for name in fields):
        return None
    return {name: told[name] for name in fields}


def _in(language: str | None) -> str:
    return f" Write it in {in_words(language)}." if language else ""


def _listed(names: Sequence[str]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
