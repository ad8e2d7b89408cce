"""Whether evaluation records are among those that were trained on."""

import sys
from collections.abc import Iterator, Sequence

from seodang.data.files.sources import records_of
from seodang.data.text.overlap import overlap_line, overlaps, text_in
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.train.rewards.rules import message_text


def overlaps_with(train_data: Sequence[str], asked: Prompts, encoding: str | None = None) -> tuple[list[float | None], list[str]]:
    """Of each prompt with its reference the share that the training data has too, and what there is to warn of, said on stderr.

    Raises UserError for a source that cannot be read.
    """
    texts = [" ".join((_said(prompt), asked.references.get(index, ""))) for index, prompt in enumerate(asked.prompts)]
    return _warned(texts, [f"{asked.unit} {number}" for number in asked.numbers], train_data, encoding)


def warn_of_overlap(train_data: Sequence[str], eval_data: Sequence[str], encoding: str | None = None) -> None:
    """The same of whole records of any shape: say on stderr which evaluation records the training data has too."""
    located = [(where, text_in(record)) for source in eval_data for where, record in records_of(source, encoding)]
    shares, lines = _warned([text for _, text in located], [where for where, _ in located], train_data, encoding)
    if not lines:
        print(f"overlap         none of {len(shares):,} evaluation records has half of its words in runs that the data has too", file=sys.stderr)


def _said(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else " ".join(message_text([message]) for message in prompt)


def _warned(texts: Sequence[str], places: Sequence[str], train_data: Sequence[str], encoding: str | None) -> tuple[list[float | None], list[str]]:
    shares = overlaps(texts, _texts_of(train_data, encoding))
    line = overlap_line(shares, places)
    if line:
        print(line, file=sys.stderr)
    return shares, [line] if line else []


def _texts_of(sources: Sequence[str], encoding: str | None) -> Iterator[str]:
    for source in sources:
        for _, record in records_of(source, encoding, streaming=True):
            yield text_in(record)
