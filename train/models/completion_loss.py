"""The loss of the answer: the language model head runs where something is to be predicted and nowhere else, a chunk at a time.

For n labels, vocabulary V and hidden size d, the head costs three products of [n, d] by [d, V] and holds one
[chunk, V] matrix; masked tokens cost nothing. The gradients are computed with the loss, so no logits are kept
(Wijmans et al. 2024, "Cut Your Losses"; Hsu et al. 2024, "Liger Kernel"). By hand, as their kernels are Triton's, for a GPU alone.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput

from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX
from ..maths.logprobs import CHUNK
from .extended_forward import Forward, extend_forward

Head = Callable[[Tensor], Tensor]  # [n, hidden] to [n, vocab], with whatever scaling and capping the architecture has


@dataclass
class AnswerLoss(ModelOutput):
    """What the model returns where labels are given: the mean loss, and what an evaluation needs.

    `losses`, unweighted, and `hits` say of each predicted token, in the order of the batch, its cross entropy and whether it was the likeliest.
    """

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    tokens: Tensor | None = None
    losses: Tensor | None = None  # [n], as what follows in evaluation only
    hits: Tensor | None = None  # [n]
    correct: Tensor | None = None  # their number


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of `linear(hidden, weight, bias)`, each times its importance, over a divisor: hidden [n, d], weight [vocab, d], labels [n].

    `importance` is [n], or None where all count alike. With `smoothing` the target is no longer all of a label: so much of it is spread evenly over
    the vocabulary (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; Vaswani et al. 2017, "Attention Is All You Need").
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        divisor: float,
        chunk: int,
        importance: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.zeros_like(bias) if wants_bias else None
        total = hidden.new_zeros((), dtype=_at_least_float32(hidden.dtype))
        minus_label = -torch.full_like(total, 1 - smoothing)
        for start in range(0, len(labels), chunk):
            some, target = hidden[start : start + chunk], labels[start : start + chunk, None]
            logprobs = F.linear(some, weight, bias).log_softmax(dim=-1, dtype=total.dtype)
            count = 1 if importance is None else importance[start : start + chunk, None].to(total.dtype)
            said = logprobs.gather(1, target)
            if smoothing:
                said = (1 - smoothing) * said + smoothing * logprobs.mean(dim=1, keepdim=True)
            total -= (said * count).sum()
            d_logits = logprobs.exp_().scatter_add_(1, target, minus_label.expand(len(target), 1))
            if smoothing:
                d_logits -= smoothing / d_logits.shape[1]
            d_logits = (d_logits if importance is None else d_logits.mul_(count)).to(weight.dtype)
            if wants_hidden:
                d_hidden[start : start + chunk].addmm_(d_logits, weight, beta=0, alpha=1 / divisor)
            if wants_weight:
                d_weight.addmm_(d_logits.T, some, beta=float(start > 0), alpha=1 / divisor)
            if wants_bias:
                d_bias.add_(d_logits.sum(dim=0), alpha=1 / divisor)
            del logprobs, d_logits  # before the next chunk's are made
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total / divisor

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        return (*_scaled(ctx.saved_tensors, scale), None, None, None, None, None)


class HeadCrossEntropy(torch.autograd.Function):
    """The same for any head's logits; `parameters` are those of the head, which the gradients go to beside hidden [n, d]."""

    @staticmethod
    def forward(
        ctx, head: Head, labels: Tensor, divisor: float, chunk: int, importance: Tensor | None, smoothing: float, hidden: Tensor, *parameters: Tensor
    ) -> Tensor:
        wants_hidden = ctx.needs_input_grad[6]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_parameters = [torch.zeros_like(p) for p in parameters]
        total = hidden.new_zeros((), dtype=_at_least_float32(hidden.dtype))
        for start in range(0, len(labels), chunk):
            some = hidden[start : start + chunk].detach().requires_grad_(wants_hidden)
            with torch.enable_grad():
                losses = F.cross_entropy(head(some).to(total.dtype), labels[start : start + chunk], reduction="none", label_smoothing=smoothing)
                loss = (losses if importance is None else losses * importance[start : start + chunk]).sum() / divisor
            total += loss.detach()
            inputs = [*([some] if wants_hidden else []), *parameters]
            found = list(torch.autograd.grad(loss, inputs)) if inputs else []
            if wants_hidden:
                d_hidden[start : start + chunk] = found.pop(0)
            for whole, part in zip(d_parameters, found, strict=True):
                whole += part
        ctx.save_for_backward(d_hidden, *d_parameters)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        return (None, None, None, None, None, None, *_scaled(ctx.saved_tensors, scale))


def _scaled(gradients: tuple[Tensor | None, ...], scale: Tensor) -> list[Tensor | None]:
    """The gradients times that of the loss, which mostly is one: then without a copy of the head's."""
    return [g if g is None or scale == 1 else g * scale for g in gradients]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def patch_completion_loss(model: PreTrainedModel, chunk: int = CHUNK) -> None:
    """Make `model(..., labels=...)` compute its loss at label positions alone, returning an `AnswerLoss`.

    Without labels the model answers as before. The logits of `chunk` positions are made at a time, the model's `loss_chunk` from then on. The loss
    equals the architecture's own, its scaling and capping of logits included; it is the mean over `num_items_in_batch` where that is given, else over the
    labels present. With `label_smoothing` it is that of transformers' `LabelSmoother`, but in evaluation, where it is the plain one.

    With `targets` and `weights`, [rows, length] as the labels, it is the sum of their cross entropies, each token being read where its target
    stands, times their weights, where these are not 0, divided by the same number of labels: these then say what counts, not what is predicted.
    Raises UserError for a mixture of experts that adds a router loss, which this loss does not know.
    """
    refuse_router_loss(model)
    trunk_name = model.base_model_prefix
    vars(model).setdefault("loss_chunk", chunk)

    def with_loss(before: Forward) -> Forward:
        def forward(self, *args, labels: Tensor | None = None, targets=None, weights=None, num_items_in_batch=None, label_smoothing: float = 0.0, **kwargs):
            if labels is None:
                return before(self, *args, **kwargs)
            hidden = getattr(self, trunk_name)(*args, use_cache=False, **plain_lengths(kwargs)).last_hidden_state
            if weights is not None:
                places = weights.flatten().nonzero().squeeze(1)
                hidden, targets, weights = (x.flatten(0, 1).index_select(0, places) for x in (hidden, targets, weights))
                count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE_INDEX).sum()
                return _answer_loss(self, hidden, targets, count, self.loss_chunk, weights)
            targets = labels[:, 1:].flatten()
            places = (targets != IGNORE_INDEX).nonzero().squeeze(1)
            # position i of each row predicts its label i + 1
            hidden = hidden[:, :-1].flatten(0, 1).index_select(0, places)
            return _answer_loss(self, hidden, targets[places], num_items_in_batch, self.loss_chunk, smoothing=label_smoothing)

        return forward

    extend_forward(model, "completion loss", with_loss, speaks_as_before=True)


def refuse_router_loss(model: PreTrainedModel) -> None:
    """Raise UserError for a mixture of experts that adds a router loss, which a loss at label positions does not know."""
    if getattr(model.config, "output_router_logits", False):
        raise UserError("output_router_logits is on: set it to false in config.json, the router's own loss is not trained here")


def plain_lengths(kwargs: dict) -> dict:
    """Add the records' lengths, and how much of each is causal and copied, as plain numbers, read from the device once and not in every layer."""
    borders = kwargs.get("cu_seq_lens_q")
    if borders is None:
        return kwargs
    parts = {name: tuple(kwargs[name].tolist()) for name in ("causal_lengths", "copied_lengths") if kwargs.get(name) is not None}
    return {**kwargs, "record_lengths": tuple(borders.diff().tolist()), **parts}


def _answer_loss(model: PreTrainedModel, hidden: Tensor, labels: Tensor, num_items, chunk: int, weights: Tensor | None = None, smoothing: float = 0.0) -> AnswerLoss:
    layer, head = model.get_output_embeddings(), own_head(model)
    plain = lambda hidden: (hidden, None) if head_is_linear(model, layer, head, hidden) else None
    return answer_loss(layer, head, plain, hidden, labels, num_items, chunk, weights, smoothing)


def answer_loss(
    layer: nn.Module,
    head: Head,
    linear: Callable[[Tensor], tuple[Tensor, Tensor | None] | None],
    hidden: Tensor,
    labels: Tensor,
    num_items: Any,
    chunk: int,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> AnswerLoss:
    """The loss of labels [n] read at hidden states [n, hidden], by a head and its linear `layer`.

    `linear` gives, of hidden states, what the layer reads and what is added to what it gives, [vocab] or None, where there is no more to the head than
    these; else None, and the head itself is asked. Smoothing is of training alone: what is measured without gradients is the plain loss.
    """
    divisor = float(num_items if num_items is not None else max(len(labels), 1))
    losses = hits = None
    with autocast_head(hidden, layer) as (hidden, weight, bias):
        if not torch.is_grad_enabled():
            losses, hits = evaluated(head, hidden, labels, chunk)
            mean = (losses if weights is None else losses * weights).sum() / divisor
        elif (plain := linear(hidden)) is not None:
            states, added = plain
            bias = added if bias is None else bias if added is None else bias + added
            mean = LinearCrossEntropy.apply(states, weight, bias, labels, divisor, chunk, weights, smoothing)
        else:
            trained = [p for p in layer.parameters() if p.requires_grad]
            mean = HeadCrossEntropy.apply(head, labels, divisor, chunk, weights, smoothing, hidden, *trained)
    tokens = torch.tensor(len(labels), device=labels.device)
    correct = None if hits is None else hits.sum()
    return AnswerLoss(loss=mean, loss_sum=mean.detach() * divisor, tokens=tokens, losses=losses, hits=hits, correct=correct)


def evaluated(head: Head, hidden: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """The cross entropy of each label, [n], and whether it is the likeliest token, [n]."""
    losses, hits = hidden.new_zeros(len(labels), dtype=_at_least_float32(hidden.dtype)), torch.zeros_like(labels, dtype=torch.bool)
    for start in range(0, len(labels), chunk):
        part = slice(start, start + chunk)
        logits = head(hidden[part]).to(losses.dtype)
        losses[part] = F.cross_entropy(logits, labels[part], reduction="none")
        hits[part] = logits.argmax(dim=-1) == labels[part]
    return losses, hits


class _HiddenStates(BaseModelOutputWithPast):
    """The hidden states and nothing else: every other output that an architecture asks for is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class SkippedTrunk(nn.Module):
    """Stands in for the layers beneath the head, handing on hidden states that were computed before."""

    @property
    def decoder(self) -> "SkippedTrunk":
        """What OPT and Bart call instead of the trunk around it."""
        return self

    def forward(self, *args, inputs_embeds: Tensor, **kwargs) -> _HiddenStates:
        return _HiddenStates(last_hidden_state=inputs_embeds)


def own_head(model: PreTrainedModel, without: nn.Module | None = None) -> Head:
    """Return the architecture's own head: its class's forward, on a copy of the model's outermost module that has the layers beneath taken out.

    A module of the head that it is to do `without` hands on what it is given.

    The copy shares all else, parameters included; the model itself stays as it is, for whoever runs it in another thread. A forward that
    was put on the model would not do: trl's calls the one before it on the model itself, layers and all.
    """
    outermost = with_module(model, model.base_model_prefix, SkippedTrunk())
    if without is not None:
        outermost = with_module(outermost, next(name for name, each in outermost.named_modules() if each is without), nn.Identity())
    return lambda hidden: type(model).forward(outermost, inputs_embeds=hidden[None]).logits[0]


def with_module(module: nn.Module, name: str, other: nn.Module) -> Any:
    """A copy of a module that shares all with it but the module of that name, those on the way there, and hooks, DeepSpeed's of which count calls by module."""
    first, _, rest = name.partition(".")
    copied = object.__new__(type(module))  # copy.copy would build a model anew where FSDP has wrapped it
    modules = {**module._modules, first: with_module(module._modules[first], rest, other) if rest else other}
    copied.__dict__.update(module.__dict__, _modules=modules, _forward_hooks=OrderedDict(), _forward_pre_hooks=OrderedDict())
    return copied


@contextmanager
def autocast_head(hidden: Tensor, layer: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Do by hand what autocast would do to the head's product, which it does not see inside an autograd function.

    hidden is [n, hidden]; yields it with the head's weight [vocab, hidden] and bias [vocab], None where the layer has none.
    """
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not torch.is_autocast_enabled(hidden.device.type):
        yield hidden, weight, bias
        return
    dtype = torch.get_autocast_dtype(hidden.device.type)
    yield hidden.to(dtype), None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


def head_is_linear(model: PreTrainedModel, layer: nn.Module, head: Head, hidden: Tensor) -> bool:
    """Whether the head is one linear layer and nothing more; tried once on the real hidden states, then remembered. hidden is [n, hidden]."""
    known = model.__dict__.get("answer_head_is_plain")
    if not len(hidden) or type(layer) is not nn.Linear or layer.weight.dim() != 2 or known is False:
        return False
    if known is None:
        with torch.no_grad():
            some = hidden[:2].detach()
            known = bool(torch.equal(head(some), F.linear(some, layer.weight.to(some.dtype), layer.bias)))
        model.__dict__["answer_head_is_plain"] = known
    return known
