"""What made records must pass: each filter a small function, in the order in which they look."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForSequenceClassification

from seodang.data.errors import UserError
from seodang.data.files.sources import records_of
from seodang.data.synthesis.seeds import Seed
from seodang.data.synthesis.styles import NEW, again_prompt, said_in, schema_of, translation_prompt
from seodang.data.text.near_duplicates import NearDuplicates
from seodang.data.text.overlap import RUN, overlaps, text_in
from seodang.data.text.scripts import SCRIPTS, script_share
from seodang.data.text.words import words_of
from seodang.infer.checkpoint.load import load
from seodang.recipes.options.decoding import SpeakingModel, option
from seodang.recipes.synthesis.asking import AGAIN, Asker
from seodang.recipes.synthesis.options import Making
from seodang.recipes.synthesis.sifting import Candidate, Filter, of_each
from seodang.train.maths.answer_matching import token_f1
from seodang.train.maths.chrf import chrf, chrf_counts
from seodang.train.maths.text_metrics import agreement, rouge
from seodang.train.rewards.scoring import score_answers

Found = Iterator[tuple[Any, bool]]
AGREEMENT: dict[str, tuple[Callable[[str, str], float], float]] = {  # by name how far an answer agrees with the one expected, and the most that it can
    "exact": (lambda answer, expected: agreement([answer], [expected])["exact"], 1.0),
    "f1": (token_f1, 1.0),
    "chrf": (lambda answer, expected: float(chrf(chrf_counts(answer, expected))), 100.0),
}
LEAST_WORDS = 3  # of an instruction that is thought of anew, as in Self-Instruct


@dataclass
class Filtering:
    """What is dropped of what was made."""

    min_words: int | None = option(f"Words of an instruction; {LEAST_WORDS} unless a given record is said anew.")
    max_words: int = option("Words of an instruction.", 150)
    min_output_chars: int = option("Characters of an output.", 1)
    max_output_chars: int | None = option("Characters of an output.")
    min_script: float = option("Share of letters in the script of --language or --target_lang.", 0.6)
    max_overlap: float = option(f"Share of words in runs of {RUN} that a seed or evaluation record has too.", 0.5)
    eval_data: list[str] | None = field(default=None, metadata={"help": "Evaluation records that must not come back in what is made."})
    near_duplicates: float = option("Share of characters in runs of 5 that one before has too; 0: do not look.", 0.7)
    max_rouge: float | None = option("ROUGE-L of an instruction with a seed's or one made before, as Self-Instruct's 0.7.")
    reward_model: str | None = option("Folder or hub name of a reward model that judges each output.")
    min_reward: float | None = option("The reward model's score from which on a record stays.")
    round_trip: str | None = option("exact, f1:0.5 or chrf:40: the model, asked again, must agree so far.")

    def __post_init__(self):
        for name in ("min_script", "max_overlap", "near_duplicates", "max_rouge"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise UserError(f"{name} must be in [0, 1], got {value}")
        if self.near_duplicates == 1:
            raise UserError("near_duplicates must be in [0, 1), got 1: equal texts are found by 0.99")
        if (self.reward_model is None) != (self.min_reward is None):
            raise UserError("reward_model and min_reward go together: give both, or neither")
        for low, high in (("min_words", "max_words"), ("min_output_chars", "max_output_chars")):
            least, most = getattr(self, low) or 0, getattr(self, high)
            if most is not None and not 0 <= least <= most:
                raise UserError(f"{low} {least} and {high} {most} leave no length: from 0, and the first at most the second")
        self.trip()

    def trip(self) -> tuple[str, float] | None:
        """The measure of the round trip and how much of it is asked for. Raises UserError for a measure that there is not."""
        if self.round_trip is None:
            return None
        name, _, least = self.round_trip.partition(":")
        if name not in AGREEMENT or not least and name != "exact":
            raise UserError(f"round_trip must be exact, f1:SHARE or chrf:SCORE, got {self.round_trip!r}")
        try:
            wanted = float(least or 1)
        except ValueError:
            raise UserError(f"round_trip {self.round_trip}: {least!r} is no number") from None
        if not 0 < wanted <= AGREEMENT[name][1]:
            raise UserError(f"round_trip {self.round_trip}: {name} is above 0 and at most {AGREEMENT[name][1]:g}")
        return name, wanted


def filters_of(filtering: Filtering, making: Making, fields: tuple[str, ...], seeds: Sequence[Seed], asker: Asker, model: SpeakingModel) -> list[Filter]:
    """The filters that are asked for, in their order; `fields` are the texts that are made, which alone are compared with others.

    Raises UserError for evaluation data that cannot be read, and where a library is missing.
    """
    new = lambda record: "\n".join(text for text in record.told(fields).values() if text)
    found = [
        Filter("no answer", "the model or server gave an error", of_each(lambda each: (None, each.error is None))),
        Filter("no record", "the answer is no JSON object of the texts asked for", of_each(lambda each: (None, each.record is not None))),
        Filter("length", *_length(filtering, making)),
    ]
    if (language := making.wanted_language) in SCRIPTS:
        drops = f"less than {filtering.min_script:g} of the letters are {' or '.join(SCRIPTS[language])}"
        found.append(Filter("language", drops, of_each(lambda each: _at_least(script_share(new(each.record), language), filtering.min_script))))
    elif language:
        print(f"language        {language} is not checked: by script that is done for {', '.join(SCRIPTS)}", file=sys.stderr)
    known = [("seed overlap", [" ".join(seed.told().values()) for seed in seeds])] if seeds else []
    if filtering.eval_data:
        known.append(("eval overlap", [text_in(record) for source in filtering.eval_data for _, record in records_of(source, making.encoding)]))
    for name, texts in known:
        drops = f"{filtering.max_overlap:g} of the words or more in runs of {RUN} that {'a seed' if name == 'seed overlap' else 'an evaluation record'} has"
        found.append(Filter(name, drops, Overlap(texts, filtering.max_overlap, new, both_ways=name == "eval overlap")))
    if filtering.near_duplicates:
        drops = f"{filtering.near_duplicates:g} of the runs of 5 characters or more shared with a seed or a record before"
        found.append(Filter("near-duplicate", drops, Fresh(filtering.near_duplicates, seeds, new)))
    if filtering.max_rouge is not None:
        found.append(Filter("rouge", f"ROUGE-L above {filtering.max_rouge:g} with an instruction before", Novel(filtering.max_rouge, seeds)))
    if filtering.reward_model is not None:
        found.append(Filter("reward", f"a score below {filtering.min_reward:g}", Rewarded(filtering.reward_model, filtering.min_reward, model)))
    if (trip := filtering.trip()) is not None:
        drops = f"{trip[0]} below {trip[1]:g} with what the model says when asked again"
        found.append(Filter("round trip", drops, RoundTrip(asker, making, fields, *trip)))
    return found


def _at_least(value: float, least: float) -> tuple[float, bool]:
    return round(value, 4), value >= least


def _below(value: float, most: float) -> tuple[float, bool]:
    return round(value, 4), value < most


def _length(filtering: Filtering, making: Making) -> tuple[str, Callable]:
    """What the filter of lengths drops, in words, and what it judges by; a blank instruction or output is never a record."""
    least = filtering.min_words if filtering.min_words is not None else LEAST_WORDS if making.style in NEW else 1
    most = filtering.max_output_chars

    def found(each: Candidate) -> tuple[None, bool]:
        record = each.record
        outputs = max(filtering.min_output_chars, 1) <= len(record.output) and (most is None or len(record.output) <= most)
        bounded = not making.max_chars or all(len(text) <= making.max_chars for text in record.told().values())  # a server may not heed the schema
        return None, bool(record.instruction) and outputs and bounded and least <= len(words_of(record.instruction)) <= filtering.max_words

    chars = f"{max(filtering.min_output_chars, 1)}{f' to {most}' if most else ' or more'}"
    return f"not {least} to {filtering.max_words} words of instruction and {chars} characters of output", of_each(found)


class Overlap:
    """Whether a record's words stand elsewhere in runs of several; `both_ways` asks too whether all of a text there stands in the record."""

    def __init__(self, texts: Sequence[str], most: float, new: Callable[[Seed], str], both_ways: bool):
        self._texts, self._most, self._new, self._both_ways = texts, most, new, both_ways

    def __call__(self, candidates: Sequence[Candidate]) -> Found:
        own = [self._new(each.record) for each in candidates]
        shares = [share or 0.0 for share in overlaps(own, self._texts)]
        if self._both_ways:
            whole = [text for text, share in zip(self._texts, overlaps(self._texts, own), strict=True) if share is not None and share >= self._most]
            shares = [max([share, *(each or 0.0 for each in overlaps(whole, [text]))]) for share, text in zip(shares, own, strict=True)]
        return (_below(share, self._most) for share in shares)


class Fresh:
    """Whether no seed, and nothing that has come so far, is nearly the same; what passes is known from then on."""

    def __init__(self, threshold: float, seeds: Sequence[Seed], new: Callable[[Seed], str]):
        self._known, self._new = NearDuplicates(threshold), new
        for number, seed in enumerate(seeds):
            self._known.add(f"{seed.where or 'seed'} #{number}", new(seed))

    def __call__(self, candidates: Sequence[Candidate]) -> Found:
        for each in candidates:
            text = self._new(each.record)
            share, _ = self._known.nearest(text)
            if share < self._known.threshold:
                self._known.add(each.record.where, text)
            yield _below(share, self._known.threshold)


class Novel:
    """Whether an instruction has so much of ROUGE-L at most with every one before (Wang et al. 2023, "Self-Instruct", 2.2)."""

    def __init__(self, most: float, seeds: Sequence[Seed]):
        self._most, self._known = most, [*dict.fromkeys(seed.instruction for seed in seeds)]

    def __call__(self, candidates: Sequence[Candidate]) -> Found:
        for each in candidates:
            nearest = max((rouge(each.record.instruction, other)["rougeL"] / 100 for other in self._known), default=0.0)
            if nearest <= self._most:
                self._known.append(each.record.instruction)
            yield round(nearest, 4), nearest <= self._most


class Rewarded:
    """Whether a reward model gives an output so much."""

    def __init__(self, name: str, least: float, where: SpeakingModel):
        self._least = least
        self._loaded = load(name, device=where.device, dtype=where.dtype, model_class=AutoModelForSequenceClassification, num_labels=1)

    def __call__(self, candidates: Sequence[Candidate]) -> Found:
        prompts = [[{"role": "user", "content": each.record.question}] for each in candidates]
        scores = score_answers(*self._loaded, prompts, [each.record.output for each in candidates]) if candidates else []
        return (_at_least(score, self._least) for score in scores)


class RoundTrip:
    """Whether the model, asked again without drawing, agrees: on the output, or of a translation back on what was translated."""

    def __init__(self, asker: Asker, making: Making, fields: tuple[str, ...], measure: str, least: float):
        self._asker, self._making, self._measure, self._least = asker, making, AGREEMENT[measure][0], least
        self._fields = fields if making.style == "translate" else ("output",)

    def __call__(self, candidates: Sequence[Candidate]) -> Found:
        if not candidates:
            return iter(())
        settings = {"json_schema": schema_of(self._fields, self._making.max_chars), "temperature": 0.0, "top_p": None, "top_k": None, "min_p": None}
        said = self._asker.ask(AGAIN, [self._prompt(each) for each in candidates], candidates[0].attempt, **settings)
        return (self._agrees(each, said_in(answer.text, self._fields)) for each, answer in zip(candidates, said, strict=True))

    def _prompt(self, each: Candidate) -> str:
        if self._making.style == "translate":
            return translation_prompt(each.record, self._fields, self._making.target_lang, self._making.source_lang)
        return again_prompt(each.record, each.ask)

    def _agrees(self, each: Candidate, said: dict[str, str] | None) -> tuple[float, bool]:
        expected = each.ask.source if self._making.style == "translate" else each.record
        written = [name for name in self._fields if getattr(expected, name)]
        return _at_least(0.0 if said is None else self._measure(*("\n".join(of[name] for name in written) for of in (said, expected.told()))), self._least)
