"""Contrastive search: of the likeliest tokens, the one that resembles least what was said before."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import UserError
from ..filters.logits import wide
from ..filters.pipeline import Filters
from ..requests.generation import Generation
from ..requests.options import CONFIG, option, settings
from ..requests.params import RequestParams
from ..requests.rng import refuse_nan
from ..requests.rules import fraction
from ..requests.sequence import TokenSequence, release
from ..requests.strategy import Forward, Host, Strategy
from ..requests.trace import ContrastTrace, TraceRecorder
from .spec import StrategySpec

LAST = -1  # layer, after the final norm


def contrastive(generation: Generation, host: Host) -> Strategy:
    """Commit at each step the candidate of the highest (1 - penalty_alpha) * probability - penalty_alpha * likeness (Su et al. 2022).

    The candidates are the `top_k` likeliest tokens after the filters, fewer where the filters leave fewer. A candidate's likeness is the
    greatest cosine between its last hidden state and that of any visible position before it, prompt and answer alike. All candidates
    run in one pass, whose logits serve the next step: n tokens take n + 1 passes.
    """
    params = generation.request.params
    sequence = TokenSequence.open(generation, host.runner, recall=False)  # a remembered past has no hidden states, so the prompt is read whole
    filters, sequences, context = Filters([sequence]), [sequence], Context()
    logits = ()
    while not len(logits):  # by parts, where the prompt is long
        forward = Forward([sequence], [sequence.unseen], [1], (LAST,), partial=host.runner.capabilities.parts)
        logits = yield forward
        context.add(forward.states[LAST])
    while not sequence.finished:
        recorder = TraceRecorder.of([sequence], logits)
        scores = filters(logits, recorder)
        logprobs, ids = candidates(scores[0], params.top_k)
        if not ids:
            refuse_nan(math.nan)  # filters leave a token, so the model does not
        sequences += [sequence.fork() for _ in range(len(ids) - len(sequences))]
        running, place = sequences[: len(ids)], sequence.place
        forward = Forward(running, [[id] for id in ids], [1] * len(ids), (LAST,))
        logits = yield forward
        states = forward.states[LAST]
        likeness = context.likeness(states)
        ranks = contrast(logprobs.exp(), likeness, params.penalty_alpha)
        best = int(ranks.argmax())
        if recorder is not None:
            recorder.chosen(scores, [ids[best]])
            columns = (ids, logprobs.exp().tolist(), likeness.tolist(), ranks.tolist())
            generation.trace(ContrastTrace(tuple(zip(*columns))), sequence.position)
        copy_past(running[best], sequences)
        context.add(states[best : best + 1])
        logits = logits[best : best + 1]
        sequence.place, following = place, running[best].place  # the pass told already what follows the candidates
        sequence.commit(ids[best], float(logprobs[best]))
        sequence.place = following
        sequence.publish()
    release(sequences)


def candidates(scores: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Return the log-probabilities, [n], and the ids of the `count` likeliest tokens, likeliest first; [vocab] scores.

    What was dropped never competes: transformers lets forbidden tokens win where fewer than `count` are allowed.
    """
    logprobs, ids = scores.log_softmax(dim=-1).topk(min(count, len(scores)))
    allowed = int((logprobs > -torch.inf).sum())
    return logprobs[:allowed], ids[:allowed].tolist()


def contrast(probs: Tensor, likeness: Tensor, alpha: float) -> Tensor:
    """The candidates' ranks, all [n]: confidence of the model against the penalty of degeneration (Su et al. 2022, equation 5)."""
    return (1 - alpha) * probs - alpha * likeness


class Context:
    """The directions of the hidden states of all positions so far."""

    def __init__(self):
        self._directions: Tensor | None = None  # [capacity, hidden]
        self._count = 0

    def add(self, states: Tensor) -> None:
        """Append positions, [n, hidden]."""
        new, count = directions(states), self._count + len(states)
        if self._directions is None or count > len(self._directions):
            grown = new.new_empty(2 * count, new.shape[1])
            if self._directions is not None:
                grown[: self._count] = self._directions[: self._count]
            self._directions = grown
        self._directions[self._count : count] = new
        self._count = count

    def likeness(self, states: Tensor) -> Tensor:
        """Return each state's greatest cosine with a position of the context, [n, hidden] to [n]."""
        return (directions(states) @ self._directions[: self._count].T).amax(dim=-1)


def directions(states: Tensor) -> Tensor:
    """Vectors of length 1, [n, hidden] as given, in float32 at least; one of zeros stays and resembles nothing."""
    return F.normalize(wide(states), dim=-1)


def copy_past(best: TokenSequence, sequences: list[TokenSequence]) -> None:
    """Give every sequence the past of `best`, which ends with the candidate that was chosen; they differ in that position alone."""
    for sequence in sequences:
        if sequence is not best:
            sequence.runner.copy(best.cache_slot, sequence.cache_slot, best.cached - 1)
            if sequence.guidance is not None:
                sequence.guidance.adopt(best.guidance)


def check_contrastive(params: RequestParams) -> None:
    """Raise UserError where the candidates or their penalty are not given, or several answers are wanted."""
    if params.penalty_alpha is None:
        raise UserError("contrastive search needs penalty_alpha, the weight of likeness in [0, 1]: give it (0.6 is usual)")
    if not params.top_k:
        raise UserError(f"contrastive search needs top_k, the number of candidates, got {params.top_k}: give it (4 is usual)")
    if params.num_return_sequences > 1:
        raise UserError(
            f"contrastive search finds one answer, but num_return_sequences={params.num_return_sequences}: drop it, or sample instead"
        )


@settings
class Contrastive:
    penalty_alpha: float | None = option(
        None, "Contrastive search: weight of the likeness to what was said before.", fraction, example=0.6, same_in=(CONFIG,), claims="top_k"
    )


CONTRASTIVE = StrategySpec(
    "contrastive", contrastive, about=contrastive, options=(Contrastive,), least={"penalty_alpha": 0.6, "top_k": 4},
    meant=lambda params: params.penalty_alpha is not None, needs=("hidden_states", "fork"), check=check_contrastive,
    width=lambda request: request.params.top_k, samples=False, reads_prompt=True, paper="Su et al. 2022, A contrastive framework for neural text generation",
)  # fmt: skip
