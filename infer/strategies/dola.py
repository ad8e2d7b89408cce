"""DoLa: what the last layer knows better than the layers below it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.errors import UserError
from ..constraints.plausible import Plausible, among_plausible
from ..filters.logits import logprobs
from ..filters.pipeline import Filters
from ..requests.generation import Generation
from ..requests.options import CONFIG, Command, option, settings
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from ..requests.strategy import Forward, Host, Strategy
from ..requests.trace import LayerTrace, TraceRecorder
from ..runners.contract import Runner
from .sampling import awaits_forks, check_sampling, commit_choices, with_forks
from .spec import StrategySpec

RELATIVE_TOP = 0.1


def dola(generation: Generation, host: Host) -> Strategy:
    """Choose tokens by how much likelier the last layer makes them than a lower one does (Chuang et al. 2024).

    The lower one is, at every step and for every sequence, the candidate whose distribution diverges most from the last. Its states go
    through the head without the final norm. Tokens less than a tenth as likely as the likeliest are dropped; filters
    see the difference of log-probabilities. Greedy or sampled.
    """
    layers = tuple(candidate_layers(generation.request.params.dola_layers, *shape(host.runner)))
    sequence = TokenSequence.open(generation, host.runner)
    sequence.constraints.append(Plausible(RELATIVE_TOP))
    live, filters = [sequence], None
    while live:
        forward = Forward(live, [sequence.unseen for sequence in live], [1] * len(live), layers)
        logits = yield forward
        last = torch.tensor([len(ids) for ids in forward.ids]).cumsum(0) - 1  # of each sequence
        states = torch.cat([forward.states[layer][last] for layer in layers])  # the head's weights are read once for all
        premature = host.runner.head(states).unflatten(0, (len(layers), len(live)))
        if awaits_forks(live[0]):
            live, sources = with_forks(live)
            logits, premature = logits[sources], premature[:, sources]
        chosen, divergences, scores = contrasted(logits, premature)
        if filters is None or filters.sequences != live:
            filters = Filters(live)
        recorder = TraceRecorder.of(live, logits)
        if recorder is not None:
            for index, each in enumerate(live):
                recorder(index, "dola", scores[index])
                record = LayerTrace(layers[chosen[index]], tuple(zip(layers, divergences[:, index].tolist())))
                generation.trace(record, each.position, each.choice)
        live = commit_choices(live, filters(scores, recorder), recorder)


def contrasted(mature: Tensor, premature: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """Return for each sequence which candidate it is contrasted with, the candidates' divergences, [layers, sequences], and scores, [sequences, vocab].

    mature is [sequences, vocab], premature [layers, sequences, vocab], logits both. The scores are those of `among_plausible`.
    """
    mature, premature = logprobs(mature), logprobs(premature)
    divergences = divergence(mature, premature)
    chosen = divergences.argmax(dim=0)
    base = premature[chosen, torch.arange(len(mature), device=chosen.device)]
    return chosen.tolist(), divergences, among_plausible(mature - base, mature, RELATIVE_TOP)


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """The divergence of log-probabilities from each other through their mean m, (KL(m || a) + KL(m || b)) / 2; [.., vocab] to [..].

    As the paper's authors and transformers compute it. The Jensen-Shannon divergence of the paper's text has KL(a || m) and KL(b || m).
    """
    mean = torch.logaddexp(a, b) - torch.log(torch.tensor(2.0, dtype=a.dtype))
    return (mean.exp() * (mean - (a + b) / 2)).sum(dim=-1)


def shape(runner: Runner) -> tuple[int, bool]:
    """How many layers the runner's model has, and whether its head is its embeddings."""
    return runner.config.num_hidden_layers, bool(runner.model.config.tie_word_embeddings)


def candidate_layers(asked: str | Sequence[int], count: int, tied: bool) -> list[int]:
    """Return the layers that compete, counted as hidden states are: 0 the embeddings, n the output of layer n.

    "low" is every other one of the lower half, "high" of the upper, at most 20 layers deep. Where the head is the embeddings,
    low ones begin at 2, for the embeddings would predict the token that they stand for. Raises UserError for a layer that is not below the last.
    """
    start = {1: 0, 2: 1}.get(count, 2) if tied else 0
    middle = count // 2 if count <= 40 else 20
    if asked == "low":
        layers = [start] if start == count // 2 else list(range(start, middle, 2))
    elif asked == "high":
        layers = list(range(count // 2 if count <= 40 else count - 20, count, 2))
    else:
        layers = list(dict.fromkeys(asked))
    if wrong := [layer for layer in layers if not 0 <= layer < count]:
        raise UserError(
            f"dola_layers has {wrong[0]}, but of the model's {count} layers those from 0 to {count - 1} lie below the last: choose among them"
        )
    if not layers:
        raise UserError(f"dola_layers={asked!r} names no layer in a model of {count} layers: give a list, such as [{count // 2}]")
    return layers


def suits_dola(params: RequestParams, runner: Runner) -> None:
    """Raise UserError for layers that the runner's model does not have."""
    candidate_layers(params.dola_layers, *shape(runner))


def check_dola(params: RequestParams) -> None:
    """Raise UserError for layers that are neither "low" nor "high" nor whole numbers."""
    asked = params.dola_layers
    numbers = isinstance(asked, list | tuple) and asked and all(isinstance(n, int) and not isinstance(n, bool) for n in asked)
    if not numbers and asked not in ("low", "high"):
        raise UserError(f'dola_layers must be "low", "high" or a list of layers, got {asked!r}')
    check_sampling(params)


def layers_written(words: list[str]) -> str | list[int] | None:
    """What a command line says of layers: numbers, or a word."""
    if not words:
        return None
    return [int(word) for word in words] if all(word.isdecimal() for word in words) else " ".join(words)


@settings
class DolaOptions:
    dola_layers: str | Sequence[int] | None = option(
        None, "DoLa: contrast the last layer with low or high ones, or with these, by number.", example="high", same_in=(CONFIG,),
        command=Command(list[str], read=layers_written),
    )  # fmt: skip


DOLA = StrategySpec(
    "dola", dola, about=dola, options=(DolaOptions,), least={"dola_layers": "high"}, meant=lambda params: params.dola_layers is not None,
    needs=("hidden_states",), check=check_dola, suits=suits_dola, guided=False, encoder_decoder=False,
    paper="Chuang et al. 2024, DoLa: decoding by contrasting layers",
)  # fmt: skip
