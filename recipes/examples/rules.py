"""Rewards for `--reward FILE.py:FUNCTION`: whether an answer has the form that its prompt asks for, and whether it is right."""

from seodang.data.form_pairs import has_form


def form(completions: list[str], form: list[str]) -> list[float]:
    """1 for each completion that has the form of its record's column `form`, else 0."""
    return [float(has_form(wanted, text)) for wanted, text in zip(form, completions, strict=True)]


def right_in_form(completions: list[str], form: list[str], answer: list[str]) -> list[float]:
    """1 for a completion that has the form and says the answer, 0.5 for one of both, 0 for neither."""
    said = [right.casefold() in text.casefold() for right, text in zip(answer, completions, strict=True)]
    return [(has_form(wanted, text) + right) / 2 for wanted, text, right in zip(form, completions, said, strict=True)]
