"""How likely a model finds answers, by the way it speaks: exactly from left to right, by a bound where it is of diffusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seodang.infer.diffusion.likelihood import Bound, likelihood_bounds
from seodang.infer.engine.id_scoring import score_ids
from seodang.infer.engine.scoring import bound_runner, pair_ids, scoring_runner
from seodang.infer.runners.architecture import transformers_model
from seodang.infer.runners.paradigm import diffusion_of, refuse_mask
from seodang.recipes.run.of_diffusion import canvas_of, drawing, refuse_of_diffusion
from seodang.recipes.run.score_lines import BOUND, EXACT

Ids = list[int]


@dataclass(frozen=True)
class Encoded:
    """A record's answers as a scorer takes them, each the ids of its prompt and its own; of a preference with their ranks, the best first."""

    where: str
    pairs: list[Any]
    ranks: list[float] | None = None


class Scorer:
    """Scores answers by a model; `figures` says whether the scores are exact, or bounds as of every diffusion model.

    `asked` are the options of diffusion that were given: without any a model that speaks from left to right, too, is scored so. Raises UserError
    for them where it speaks from left to right alone, and for a model that cannot score.
    """

    def __init__(self, model, tokenizer, asked: Mapping[str, Any]):
        refuse_of_diffusion(model, asked, "its score is exact")
        diffusion = diffusion_of(transformers_model(model).config)
        self.bounds = diffusion is not None and (bool(asked) or not diffusion.autoregressive)
        self.figures = BOUND if self.bounds else EXACT
        self.runner = bound_runner(model) if self.bounds else scoring_runner(model)
        self.tokenizer, self.draws, self.canvas = tokenizer, drawing(asked), canvas_of(tokenizer, asked.get("canvas"))

    def checked(self, prompt: Ids, answer: Ids, where: str) -> tuple[Ids, Ids]:
        """The pair, its answer filled up where a canvas is asked for. Raises UserError for one that the model cannot take."""
        pair_ids(self.tokenizer, prompt, answer, self.runner.limit, where)
        if self.bounds:
            refuse_mask(diffusion_of(self.runner.model.config), answer, self.tokenizer, f"{where}: the answer")
        return prompt, answer if self.canvas is None else self.canvas.answer(prompt, answer, self.runner.limit)

    def scores(self, pairs: Sequence[tuple[Ids, Ids]], numbers: Sequence[int]) -> list[Bound]:
        """The score of each answer, without an error where it is exact; those of one number share their masks."""
        if self.bounds:
            return likelihood_bounds(self.runner, pairs, self.draws, numbers)
        return [Bound(logprobs, None) for logprobs in score_ids(self.runner, pairs)]
