"""How likely a model finds answers, by the way it speaks: exactly from left to right, by a bound where it is of diffusion."""

from collections.abc import Mapping, Sequence
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.diffusion.likelihood import Bound, likelihood_bounds
from seodang.infer.diffusion.masking import Draws
from seodang.infer.engine.scoring import bound_runner, pair_ids, refuse_mask, score_ids, scoring_runner
from seodang.infer.runners.architecture import transformers_model
from seodang.infer.runners.paradigm import diffusion_of
from seodang.train.diffusion.canvas import Canvas, end_of_text_id, ends_of_answers

OF_DIFFUSION = ("draws", "estimator", "seed", "canvas")
Ids = list[int]


def drawing(asked: Mapping[str, Any]) -> Draws:
    """How masks are drawn by the options that are given. Raises UserError for a value out of range, the canvas' too."""
    if asked.get("canvas", 1) < 1:
        raise UserError(f"canvas must be at least 1, got {asked['canvas']}")
    return Draws(**{{"draws": "count"}.get(name, name): value for name, value in asked.items() if name != "canvas"})


class Scorer:
    """Scores answers by a model; `bounds` says that the scores are bounds, as of every diffusion model, but of one that speaks from left to right too only where `asked`.

    `asked` are the options of diffusion that were given. Raises UserError for these where the model speaks from left to right alone, and for a model that cannot score.
    """

    def __init__(self, model, tokenizer, asked: Mapping[str, Any]):
        config = transformers_model(model).config
        diffusion = diffusion_of(config)
        if diffusion is None and asked:
            name, value = next(iter(asked.items()))
            raise UserError(f"--{name} {value} is of masked diffusion, but this {config.model_type} speaks from left to right, and its score is exact: leave it out")
        self.bounds = diffusion is not None and (bool(asked) or not diffusion.autoregressive)
        self.runner = bound_runner(model) if self.bounds else scoring_runner(model)
        self.tokenizer, self.draws, self.canvas = tokenizer, drawing(asked), None
        if "canvas" in asked:
            filling = end_of_text_id(tokenizer)
            self.canvas = Canvas(filling, ends_of_answers(tokenizer, filling), asked["canvas"])

    def checked(self, prompt: Ids, answer: Ids, where: str) -> tuple[Ids, Ids]:
        """The pair, its answer filled up where a canvas is asked for. Raises UserError for one that the model cannot take."""
        pair_ids(self.tokenizer, prompt, answer, self.runner.limit, where)
        if self.bounds:
            refuse_mask(self.runner, self.tokenizer, answer, f"{where}: the answer")
        return prompt, answer if self.canvas is None else self.canvas.answer(prompt, answer, self.runner.limit)

    def scores(self, pairs: Sequence[tuple[Ids, Ids]], numbers: Sequence[int]) -> list[Bound]:
        """The score of each answer, without an error where it is exact; those of one number share their masks."""
        if self.bounds:
            return likelihood_bounds(self.runner, pairs, self.draws, numbers)
        return [Bound(logprobs, None) for logprobs in score_ids(self.runner, pairs)]
