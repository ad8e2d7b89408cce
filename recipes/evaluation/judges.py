"""What rules, a reward model and a judge think of answers, as marks of cases."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from seodang.infer.checkpoint.load import load
from seodang.recipes.evaluation.answers import asked_of
from seodang.recipes.evaluation.contenders import SERVER, Contender
from seodang.recipes.options.asking import AskingOptions
from seodang.recipes.options.decoding import Decoding
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.train.evaluation.case import Case
from seodang.train.evaluation.registry import JUDGE_WIN, REWARD_MODEL, REWARD_WIN, RULES
from seodang.train.evaluation.verdicts import FORM, points, points_of_scores, questions, verdict_in
from seodang.train.rewards.ranking import JudgeRanker
from seodang.train.rewards.reward_function import CALL_ARGUMENTS, check_columns, with_all_columns
from seodang.train.rewards.rules import CheckedReward
from seodang.train.rewards.scoring import score_answers

Cases = Sequence[Case]
VERDICT_TOKENS = 32


def as_messages(prompt: Any) -> list[dict[str, Any]]:
    """A prompt as rewards and judges read it."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def columns_of(asked: Prompts) -> list[dict[str, Any]]:
    """The rows of the records, as rewards have theirs: all columns, and the reference as `answer`. An unnamed column is none."""
    rows = []
    for index, record in enumerate(asked.records):
        own = {key: value for key, value in record.items() if isinstance(key, str) and key not in CALL_ARGUMENTS} if isinstance(record, Mapping) else {}
        answer = {"answer": asked.references[index]} if index in asked.references else {}
        rows.append({"columns": {**own, **answer}, "where": f"{asked.unit} {asked.numbers[index]}"})
    return rows


def check_rules(rules: Sequence[CheckedReward], asked: Prompts) -> None:
    """Raise UserError for a rule that needs a column which the records do not have."""
    check_columns(rules, columns_of(asked))


def mark_by_rules(rules: Sequence[CheckedReward], asked: Prompts, cases: Cases) -> None:
    """Give each answer what each rule gives it, and the least of these as its mark by all."""
    rows = with_all_columns(columns_of(asked))
    said = [(index, answer) for index, case in enumerate(cases) for answer in case.answers]
    prompts, texts = [as_messages(asked.prompts[index]) for index, _ in said], [answer for _, answer in said]
    columns = {name: [rows[index]["columns"][name] for index, _ in said] for name in rows[0]["columns"]}
    marks = [rule(prompts, texts, **columns) if said else [] for rule in rules]
    for place, (index, _) in enumerate(said):
        for rule, given in zip(rules, marks, strict=True):
            cases[index].marks.setdefault(rule_name(rule), []).append(given[place])
        cases[index].marks.setdefault(RULES, []).append(min(given[place] for given in marks))


def rule_name(rule: CheckedReward) -> str:
    """What a rule's mean is called."""
    return f"rule:{rule.__name__}"


def mark_by_reward_model(name: str, loading: Mapping[str, Any], asked: Prompts, models: Sequence[Cases], others: Sequence[str | None]) -> None:
    """Give the answers of all models a reward model's scores, and the first of each record what it wins against the `others`."""
    model, tokenizer = load(name, **loading, model_class=AutoModelForSequenceClassification, num_labels=1)
    prompts = [as_messages(prompt) for prompt in asked.prompts]

    def scored(said: list[tuple[int, str]]) -> Iterator[float]:
        return iter(score_answers(model, tokenizer, [prompts[index] for index, _ in said], [text for _, text in said]))

    against = dict(zip(given := [index for index, text in enumerate(others) if text is not None], scored([(index, others[index] or "") for index in given])))
    for cases in models:
        scores = scored([(index, answer) for index, case in enumerate(cases) for answer in case.answers])
        for index, case in enumerate(cases):
            if marks := [next(scores) for _ in case.answers]:
                case.marks[REWARD_MODEL] = marks
                if index in against:
                    case.marks[REWARD_WIN] = [points_of_scores(marks[0], against[index])]


class Judge:
    """Says which of two answers is better; `verdicts` asks about many, each both ways round."""

    def __init__(self, who: Contender, loading: Mapping[str, Any], asking: Mapping[str, Any]):
        self._who, self._loading, self._asking = who, loading, asking

    def verdicts(self, duels: Sequence[tuple[Any, str, str]], kept: Path | None, resume: bool | None) -> list[tuple[str | None, str | None]]:
        """Of each (prompt, answer, other) the letters that are named with the answer first, and with it second; None for a reply out of form.

        A model of ours takes the likelier of the letters, a server is held to a schema, and its replies are kept in a file, where one is named.
        """
        if self._who.kind == SERVER:
            return self._of_server(duels, kept, resume)
        judge = JudgeRanker(*load(self._who.what, **self._loading))
        found = []
        for prompt, answer, other in duels:
            odds = judge.log_odds(as_messages(prompt), [(answer, other), (other, answer)])
            found.append(tuple("A" if each > 0 else "B" for each in odds))
        return found

    def _of_server(self, duels: Sequence[tuple[Any, str, str]], kept: Path | None, resume: bool | None) -> list[tuple[str | None, str | None]]:
        asks = [question for duel in duels for question in questions(*duel)]
        asked = Prompts(asks, [*range(1, len(asks) + 1)])
        decoding = Decoding(json_schema=json.dumps(FORM), temperature=0.0, max_new_tokens=VERDICT_TOKENS)
        with ExitStack() as stack:
            backend = self._who.backend({}, self._asking, decoding, AskingOptions(), asked)
            answers = asked_of("the judge", backend, asked, stack, lambda: backend.open(stack), kept, resume)
        letters = [verdict_in(text) for index in range(len(asks)) for text in (answers.of(index) or [""])[:1]]
        return list(zip(letters[::2], letters[1::2], strict=True))


def mark_by_judge(
    judge: Judge, asked: Prompts, cases: Cases, others: Sequence[str | None], kept: Path | None, resume: bool | None
) -> int:
    """Give the first answer of each record what it wins against the `others` by a judge; return how many duels had a reply out of form.

    Equal answers share the point and are not asked about.
    """
    duels = []
    for index, (case, other) in enumerate(zip(cases, others, strict=True)):
        if not case.answers or other is None:
            continue
        if case.answers[0] == other:
            case.marks[JUDGE_WIN] = [0.5]
        else:
            duels.append((index, (asked.prompts[index], case.answers[0], other)))
    if not duels:
        return 0
    won = [points(*ways) for ways in judge.verdicts([duel for _, duel in duels], kept, resume)]
    for (index, _), share in zip(duels, won, strict=True):
        if share is not None:
            cases[index].marks[JUDGE_WIN] = [share]
    missing = sum(share is None for share in won)
    if missing:
        print(f"the judge answered out of form about {missing:,} of {len(duels):,} pairs, which are left out of judge_win", file=sys.stderr)
    return missing
