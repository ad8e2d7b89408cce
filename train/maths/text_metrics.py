"""How near answers come to what was expected: the same words, chrF and BLEU as sacrebleu has them, ROUGE of words in any script."""

from collections.abc import Sequence
from functools import cache

from ...data.text.words import words_of
from .chrf import chrf, chrf_counts

ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = ("exact", "contains", "chrf", "bleu", *ROUGE)  # in [0, 1] the first two, the others in [0, 100]


def text_metrics(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """What `TEXT_METRICS` names, of answers and the one text that each should have been: shares in [0, 1], chrF, BLEU and ROUGE in [0, 100].

    chrF and BLEU are the whole corpus's as sacrebleu computes them (chrF2; 4-grams, smoothed, words by its "13a"). ROUGE is the mean over the answers of the F-measure,
    by rouge-score, whose own words are of English letters and digits alone: here they are those of every script.
    """
    return {**agreement(answers, expected), **similarity(answers, expected)}


def agreement(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """The shares of answers that equal, and that contain, what was expected; white space is folded.

    agreement(["Seoul.", "in Busan"], ["Seoul.", "Busan"]) == {"exact": 0.5, "contains": 1.0}
    """
    pairs = [(" ".join(a.split()), " ".join(e.split())) for a, e in zip(answers, expected, strict=True)]
    count = max(len(pairs), 1)
    return {"exact": sum(a == e for a, e in pairs) / count, "contains": sum(e in a for a, e in pairs) / count}


def similarity(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """chrF, BLEU and ROUGE, in [0, 100]; 0 of no answers."""
    if not answers:
        return dict.fromkeys(("chrf", "bleu", *ROUGE), 0.0)
    from sacrebleu import BLEU  # takes a while, and few need it

    scores = [rouge(answer, target) for answer, target in zip(answers, expected, strict=True)]
    return {
        "chrf": float(chrf(sum(map(chrf_counts, answers, expected)))),
        "bleu": BLEU().corpus_score(list(answers), [list(expected)]).score,
        **{name: sum(each[name] for each in scores) / len(scores) for name in ROUGE},
    }


def rouge(answer: str, expected: str) -> dict[str, float]:
    """The F-measures of `ROUGE` of one answer, in [0, 100], by rouge-score over the words of every script."""
    return {name: 100 * score.fmeasure for name, score in _rouge().score(expected, answer).items()}


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """The words of every script."""

        def tokenize(self, text: str) -> list[str]:
            return words_of(text)

    return RougeScorer(list(ROUGE), tokenizer=Words())
