"""How near answers come to what was expected: the same words, chrF and BLEU as sacrebleu has them, ROUGE of words in any script."""

from collections.abc import Sequence
from functools import cache
from unicodedata import normalize

import regex

# Words of letters, their marks and digits; in scripts that put no spaces between words, each character with its marks.
_ALONE = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]"
_WORD = regex.compile(rf"{_ALONE}\p{{M}}*|(?:(?!{_ALONE})[\p{{L}}\p{{M}}\p{{N}}])+")
ROUGE = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = ("exact", "contains", "chrf", "bleu", *ROUGE)  # in [0, 1] the first two, the others in [0, 100]


def text_metrics(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """What `TEXT_METRICS` names, of answers and the one text that each should have been: shares in [0, 1], chrF, BLEU and ROUGE in [0, 100].

    chrF and BLEU are the whole corpus's by sacrebleu (chrF2; 4-grams, smoothed, words by its "13a"). ROUGE is the mean over the answers of the F-measure,
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
    from sacrebleu import BLEU, CHRF  # takes a while, and few need it

    references = [list(expected)]
    rouge = [_rouge().score(target, answer) for target, answer in zip(expected, answers, strict=True)]
    return {
        "chrf": CHRF().corpus_score(list(answers), references).score,
        "bleu": BLEU().corpus_score(list(answers), references).score,
        **{name: 100 * sum(scores[name].fmeasure for scores in rouge) / len(rouge) for name in ROUGE},
    }


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters.

    >>> words_of("Don't! 나무가 자란다. 木が育つ")
    ['don', 't', '나무가', '자란다', '木', 'が', '育', 'つ']
    """
    return _WORD.findall(normalised(text))


def normalised(text: str) -> str:
    """A text in small letters, each composed of as few characters as it can be: a Mac may write 한 as ㅎㅏㄴ."""
    return normalize("NFC", text).lower()


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """The words of every script."""

        def tokenize(self, text: str) -> list[str]:
            return words_of(text)

    return RougeScorer(list(ROUGE), tokenizer=Words())
