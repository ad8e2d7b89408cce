"""How likely a model finds texts behind the prompts that it is asked: exactly, or of diffusion a bound."""

import sys
from collections.abc import Sequence
from typing import Any

from seodang.infer.engine.scoring import TargetEncoder, pair_ids, score_targets, scoring_runner
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.backends import OwnBackend
from seodang.recipes.run.scorer import Scorer
from seodang.train.evaluation.case import Likelihood

TEXTS_A_CALL = 256  # scored together, and those of their last prompt

Asked = tuple[int, str]  # the index of a prompt, and a text behind it


class Judged:
    """Scores texts by the model of an opened backend, behind its prompts as it answers them; `bounds` says that these are bounds."""

    def __init__(self, backend: OwnBackend, asked: Prompts):
        self._backend, self._asked = backend, asked
        reads_sources = transformers_model(backend.model).config.is_encoder_decoder
        self._scorer = None if reads_sources else Scorer(backend.model, backend.tokenizer, {})
        self._runner = scoring_runner(backend.model) if reads_sources else None
        self.bounds = self._scorer is not None and self._scorer.bounds

    def likelihoods(self, texts: Sequence[Asked]) -> list[Likelihood]:
        """Of each text how likely it is. All are encoded before one is scored; raises UserError for one that is empty, or too long for the model."""
        from rich.console import Console
        from rich.progress import track

        encoded, found = [self._encoded(*each) for each in texts], []
        pieces = together(texts)
        for some in track(pieces, "scoring", console=Console(file=sys.stderr), disable=len(pieces) < 2):
            for (index, text), shares in zip(texts[some], self._scores(encoded[some], [index for index, _ in texts[some]]), strict=True):
                found.append(Likelihood(-float(shares.sum()), len(shares), self._behind_prefix(index, text)))
        return found

    def _scores(self, encoded: Sequence[Any], indices: Sequence[int]) -> list[Any]:
        """Each token's share of the log-likelihood, [n] of each text; those of one prompt share their masks."""
        if self._scorer is None:
            return [logprobs.double() for logprobs in score_targets(self._runner, encoded)]
        return [bound.shares.double() for bound in self._scorer.scores(encoded, indices)]

    def _encoded(self, index: int, text: str) -> Any:
        where = f"{self._asked.unit} {self._asked.numbers[index]}"
        prompt, params = self._backend.asks(index)
        tokenizer = self._backend.tokenizer
        if self._scorer is None:
            encoder = TargetEncoder(self._runner, tokenizer, params.source_lang, params.target_lang)
            return encoder.encoded(prompt, text, self._asked.prefixes.get(index), f"the source of {where}", f"the answer of {where}")
        return self._scorer.checked(*pair_ids(tokenizer, prompt, text, None, where), where)

    def _behind_prefix(self, index: int, text: str) -> str:
        """What of a text is scored: an encoder-decoder is given its beginning."""
        return text if self._scorer is not None else text.removeprefix(self._asked.prefixes.get(index, ""))


def together(texts: Sequence[Asked]) -> list[slice]:
    """Which texts are scored at a time: never some of those, one after the other, that stand behind one prompt, which is then read once."""
    ends = [end for end in range(1, len(texts)) if texts[end][0] != texts[end - 1][0]]
    found, start = [], 0
    for end in [*ends, len(texts)]:
        if end - start >= TEXTS_A_CALL or end == len(texts) > start:
            found.append(slice(start, end))
            start = end
    return found


def spaced(prompt: Any, choice: str) -> str:
    """A choice as it stands behind a prompt that is a text: after a space, unless one of the two has white space there. As in lm-eval."""
    return choice if not isinstance(prompt, str) or not prompt or prompt[-1].isspace() or choice[0].isspace() else f" {choice}"
