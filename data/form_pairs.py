"""Preference pairs by a rule that a person can read: the true answer in the form that was asked for beats the same answer in another form.

python -m seodang.data.form_pairs pairs.jsonl      writes the pairs of the sample of cities and countries
python -m seodang.data.form_pairs forms            writes demonstrations.jsonl, pairs.jsonl and pairs_heldout.jsonl into that folder
"""

import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .json_text import read_json_lines
from .sample_data import sample_path

Triplet = Mapping[str, str]  # instruction, input, output

FORMS = {  # the form's name, and how a prompt asks for it
    "alone": "Answer with the name alone.",
    "sentence": "Answer in a sentence.",
    "capitals": "Answer in capital letters.",
}
NAME_WORDS = 6  # "Democratic Republic of the Congo" has five
SENTENCE_WORDS = 4  # "Japan is in Asia."

# What a question asks (the entity is its group, or else the record's input), and the sentence that answers it.
SENTENCES = [
    (re.compile(r"Which country is the city of (.+) located in\?"), "{entity} is a city in {the_answer}."),
    (re.compile(r"In which country is (.+)\?"), "{entity} is a city in {the_answer}."),
    (re.compile(r"Name the country of this city\.|Which country does this city belong to\?"), "{entity} is a city in {the_answer}."),
    (re.compile(r"What is the capital of (.+)\?|Name the capital of this country\."), "{answer} is the capital of {the_entity}."),
    (re.compile(r"What is the currency of (.+)\?|Name the currency of this country\."), "The currency of {the_entity} is the {answer}."),
    (re.compile(r"Which continent is (.+) in\?|Name the continent of this country\."), "{the_entity} is in {answer}."),
]
_ARTICLE = re.compile(r"Netherlands|Philippines|Bahamas|Gambia|Maldives|Comoros|^United|Republic|Islands")


def has_form(form: str, text: str) -> bool:
    """Whether a text has the form: no text has two of them.

    alone: one to six words on one line, not all in capitals and without a full stop. sentence: four words or more on one line, the
    first letter large, a full stop at the end, not all in capitals. capitals: two letters or more on one line, none of them small.
    Raises UserError for a form that there is not.
    """
    if form not in FORMS:
        raise UserError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    text = text.strip()
    letters = [letter for letter in text if letter.isalpha()]
    if len(letters) < 2 or "\n" in text:
        return False
    capitals = not any(letter.islower() for letter in letters) and any(letter.isupper() for letter in letters)
    if form == "capitals" or capitals:
        return capitals and form == "capitals"
    words = len(text.split())
    if form == "alone":
        return words <= NAME_WORDS and text[-1] not in ".!?"
    return words >= SENTENCE_WORDS and text[-1] == "." and letters[0].isupper()


def form_reward(prompts: Sequence[Any], completions: Sequence[str], form: Sequence[str], **columns: Any) -> list[float]:
    """1 for each completion that has the form its prompt asks for, 0 for the others: the rule as a reward function.

    >>> form_reward([[], []], ["SEOUL", "Seoul"], form=["capitals", "capitals"])
    [1.0, 0.0]
    """
    return [float(has_form(wanted, text)) for wanted, text in zip(form, completions, strict=True)]


def sentence(triplet: Triplet) -> str | None:
    """The triplet's answer as a sentence; None where the question is none of `SENTENCES`.

    >>> sentence({"instruction": "In which country is Suwon?", "input": "", "output": "South Korea"})
    'Suwon is a city in South Korea.'
    """
    for pattern, template in SENTENCES:
        if match := pattern.fullmatch(triplet["instruction"]):
            entity = next(filter(None, match.groups()), None) or triplet.get("input") or ""
            names = {"entity": entity, "answer": triplet["output"]}
            text = template.format(**names, **{f"the_{name}": with_article(value) for name, value in names.items()})
            return text[0].upper() + text[1:]
    return None


def answers_in_forms(triplet: Triplet) -> dict[str, str] | None:
    """The triplet's answer in every form; None where it cannot be told apart in them (a country's code is in capitals anyway)."""
    whole = sentence(triplet)
    if whole is None:
        return None
    answers = {"alone": triplet["output"], "sentence": whole, "capitals": triplet["output"].upper()}
    return answers if all(has_form(form, text) for form, text in answers.items()) else None


def prompt_in_form(triplet: Triplet, form: str) -> str:
    """The triplet's question, and behind it the form that is asked for.

    >>> prompt_in_form({"instruction": "Name the country of this city.", "input": "Suwon", "output": "South Korea"}, "capitals")
    'Name the country of this city.\\n\\nSuwon\\n\\nAnswer in capital letters.'
    """
    if triplet.get("input"):
        return f"{triplet['instruction']}\n\n{triplet['input']}\n\n{FORMS[form]}"
    return f"{triplet['instruction']} {FORMS[form]}"


def form_preferences(triplets: Sequence[Triplet], seed: int = 0) -> list[dict[str, str]]:
    """{prompt, chosen, rejected, form, answer} for each triplet that has an answer in every form, in their order.

    The form asked for and the one of the rejected answer are drawn at random, the same for the same seed. As each is asked for equally
    often, a judge that does not read the prompt is right half of the time.
    """
    draw, pairs = random.Random(seed), []
    for triplet in triplets:
        answers = answers_in_forms(triplet)
        if answers is not None:
            form, other = draw.sample(list(FORMS), 2)
            record = {"prompt": prompt_in_form(triplet, form), "chosen": answers[form], "rejected": answers[other]}
            pairs.append({**record, "form": form, "answer": triplet["output"]})
    return pairs


def demonstrations(triplets: Sequence[Triplet], seed: int = 0, follows: float = 0.5) -> list[dict[str, str]]:
    """{prompt, completion} that teach the answers and the forms, but the form that is asked for only in a share of them, `follows`.

    In the others it is drawn without looking at the prompt: following it reliably is left to be learned from preferences.
    """
    draw, records = random.Random(seed), []
    for triplet in triplets:
        answers = answers_in_forms(triplet)
        if answers is not None:
            wanted, other = draw.choice(list(FORMS)), draw.choice(list(FORMS))
            given = wanted if draw.random() < follows else other
            records.append({"prompt": prompt_in_form(triplet, wanted), "completion": answers[given]})
    return records


def with_article(name: str) -> str:
    """'Philippines' to 'the Philippines', 'Peru' to 'Peru'."""
    return f"the {name}" if _ARTICLE.search(name) and not name.startswith("the ") else name


def main(target: str) -> None:
    """Write the pairs of the geography sample as JSON Lines; into a folder (a name without .jsonl) the demonstrations and held-out pairs too."""
    path, facts = Path(target), read_json_lines(sample_path("geography"))
    if path.suffix == ".jsonl":
        write_lines(path, form_preferences(facts))
        return
    write_lines(path / "demonstrations.jsonl", demonstrations(facts))
    write_lines(path / "pairs.jsonl", form_preferences(facts))
    write_lines(path / "pairs_heldout.jsonl", form_preferences(read_json_lines(sample_path("geography_heldout"))))


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON Lines, their folder too where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
