"""Padded batches computed without their padding: the trunk of a model runs over all texts laid end to end, its head sees them as they were.

Every head, pooler and loss stays the architecture's own, so that logits are those of the plain padded batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ...data.errors import UserError
from ..runners.architecture import attention_is_replaceable, carries_state, evaluating, first_position, transformers_model
from ..runners.attention import attend, check_attention_kwargs
from ..runners.model_lock import configs_of, locked, use_attention
from ..runners.probe import agree, tolerance
from ..runners.ragged_attention import Window, window_mask

UNPADDED = "seodang_unpadded"
_HOOKS: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()  # of models that compute without padding now
_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
PADDING = 1.5  # texts share a call of the attention kernel where padding them to the longest costs no more than this
FEW = 4  # texts a call, sorted by length, from which on calls without padding are the cheaper
SHORT = 512  # tokens beyond which a call is worth its price, and padding is paid for in squares


@dataclass(frozen=True, eq=False)
class Texts:
    """Where the texts of a padded batch, [rows, longest], lie: their lengths, and the place of each token in the flattened batch, [total]."""

    lengths: tuple[int, ...]
    places: Tensor
    longest: int
    _visible: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, attention_mask: Tensor) -> Texts:
        """The texts of a batch, by its attention mask."""
        mask = attention_mask.bool()
        return cls(tuple(mask.sum(1).tolist()), mask.flatten().nonzero().squeeze(1), mask.shape[1])

    def flat(self, padded: Tensor) -> Tensor:
        """[rows, longest, ...] to [1, total, ...]."""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def padded(self, flat: Tensor) -> Tensor:
        """[1, total, ...] to [rows, longest, ...], zeros where there is no token."""
        rows = flat.new_zeros(len(self.lengths) * self.longest, *flat.shape[2:])
        return rows.index_copy(0, self.places, flat[0]).unflatten(0, (len(self.lengths), self.longest))

    def positions(self) -> Tensor:
        """The place of each token in its own text: [1, total]."""
        return self.flat(torch.arange(self.longest, device=self.places.device).expand(len(self.lengths), -1))

    def visible(self) -> Tensor:
        """Which places of the padded batch hold a token, [rows, 1, 1, longest]: made once a pass."""
        if not self._visible:
            rows = self.places.new_zeros(len(self.lengths) * self.longest).index_fill(0, self.places, 1)
            self._visible.append(rows.view(len(self.lengths), 1, 1, self.longest).bool())
        return self._visible[0]

    @property
    def worth_padding(self) -> bool:
        """Whether they had better share one call of the attention kernel, padded to the longest, than have one for those of a length that lie beside each other."""
        few = FEW * sum(1 for _ in groupby(self.lengths)) <= len(self.lengths)
        return not few and self.longest <= SHORT and len(self.lengths) * self.longest <= PADDING * sum(self.lengths)


def unpadded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    texts: Texts | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest,
) -> tuple[Tensor, None]:
    """Attend within each text of a sequence laid end to end, causally where the layer does, never across.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; without `texts` every row of the batch is one text without padding.
    Returns [1, total, heads, d_v].
    """
    check_attention_kwargs(module, rest, ("deterministic",))
    causal = getattr(module, "is_causal", True) is not False
    window = attention_mask.size if attention_mask is not None else sliding_window
    settings = {"scale": scaling, "dropout": dropout, "window": window, "softcap": softcap, "sinks": s_aux, "causal": causal}
    if texts is None:
        return attend(query, key, value, **settings).transpose(1, 2), None
    if texts.worth_padding and window is None and softcap is None and s_aux is None:
        rows = (texts.padded(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))  # [rows, heads, longest, d]
        mask = None if causal else texts.visible()  # causally nobody sees what stands behind
        gqa = key.shape[1] != query.shape[1]
        out = F.scaled_dot_product_attention(*rows, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=gqa)
        return texts.flat(out.transpose(1, 2)), None
    runs = [(length, len(list(same))) for length, same in groupby(texts.lengths)]
    parts = zip(runs, *(x.split([length * count for length, count in runs], dim=2) for x in (query, key, value)), strict=True)
    out = [attend(*(x.unflatten(2, (count, length))[0].transpose(0, 1) for x in qkv), **settings) for (length, count), *qkv in parts]
    return torch.cat([each.transpose(1, 2).flatten(0, 1) for each in out])[None], None


AttentionInterface.register(UNPADDED, unpadded_attention)
AttentionMaskInterface.register(UNPADDED, window_mask)  # the texts' borders do the rest


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """What of a model makes hidden states: what stands beneath its head, or a model without one."""
    return model.base_model


def pooled(trunk: nn.Module, states: Tensor) -> Tensor:
    """What a trunk's own pooler makes of hidden states, [rows, longest, hidden]: [rows, hidden]."""
    if hasattr(trunk, "pooler_activation"):  # ALBERT's is a layer alone
        return trunk.pooler_activation(trunk.pooler(states[:, 0]))
    return trunk.pooler(states)


def unpad(model: nn.Module) -> bool:
    """Have the model compute its padded batches without their padding from now on; whether it can, which a trial tells.

    A batch is then what it was, `input_ids` and `attention_mask` of [rows, longest] with padding on the right, and what the model returns too; hidden
    states at padding are zeros. A model whose attention cannot be replaced, and one with a state that would run on, stays as it is.
    """
    model = transformers_model(model)
    if is_unpadded(model):
        return True
    with locked(model):
        if can_unpad(model):
            _put_on(model)
            model.set_attn_implementation(UNPADDED)
    return is_unpadded(model)


@contextmanager
def unpadding(model: nn.Module) -> Iterator[None]:
    """Compute without padding within, where the model can, and leave it as it was; other threads wait for it."""
    model = transformers_model(model)
    with locked(model):
        if is_unpadded(model) or not can_unpad(model):
            yield
            return
        with _hooked(model):
            yield


def is_unpadded(model: PreTrainedModel) -> bool:
    """Whether a model computes without padding already."""
    return model in _HOOKS


def can_unpad(model: PreTrainedModel) -> bool:
    """Whether the model gives the same logits without padding; two short texts tell, once a model."""
    if model not in _TRIED:
        _TRIED[model] = _may_be_unpadded(model) and _same_on_trial(model)
    return _TRIED[model]


def _may_be_unpadded(model: PreTrainedModel) -> bool:
    own = "flash" in (model.config._attn_implementation or "")  # which takes padding out itself
    return not own and attention_is_replaceable(model) and not carries_state(model) and not model.config.is_encoder_decoder


@torch.no_grad()
def _same_on_trial(model: PreTrainedModel) -> bool:
    trial = trial_batch(model)
    with evaluating(model):
        want = answer_of(model(**trial), trial)
        try:
            with _hooked(model):
                return agree(answer_of(model(**trial), trial), want, tolerance(model, want))
        except (UserError, RuntimeError, TypeError, ValueError, AttributeError):  # whatever an architecture makes of a sequence that is none of its own
            return False


@contextmanager
def _hooked(model: PreTrainedModel) -> Iterator[None]:
    """Have the model compute without padding within, and leave it as it was."""
    with use_attention(model, configs_of(model), UNPADDED):
        _put_on(model)
        try:
            yield
        finally:
            _take_off(model)


def _put_on(model: PreTrainedModel) -> None:
    """Put the hooks around the model's trunk."""
    trunk, first = trunk_of(model), first_position(model)

    def laid_out(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if args:
            kwargs, args = {"input_ids": args[0], **kwargs}, args[1:]
        mask = kwargs.get("attention_mask")
        if args or mask is None or kwargs.get("input_ids") is None or mask.dim() != 2:
            return None
        texts = Texts.of(mask)
        per_token = {name: texts.flat(kwargs[name]) for name in ("input_ids", "token_type_ids") if kwargs.get(name) is not None}
        places = {} if kwargs.get("position_ids") is None else {"position_ids": texts.flat(kwargs["position_ids"])}
        return (), {**kwargs, "attention_mask": None, "position_ids": texts.positions() + first, **places, **per_token, "texts": texts}

    def put_back(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        texts = kwargs.get("texts")
        if texts is None:
            return None
        output.last_hidden_state = texts.padded(output.last_hidden_state)
        if getattr(module, "pooler", None) is not None:  # which has seen the first text alone
            output.pooler_output = pooled(module, output.last_hidden_state)
        return output

    _HOOKS[model] = [trunk.register_forward_pre_hook(laid_out, with_kwargs=True), trunk.register_forward_hook(put_back, with_kwargs=True)]


def _take_off(model: PreTrainedModel) -> None:
    for hook in _HOOKS.pop(model):
        hook.remove()


def answer_of(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """What a model says of a batch: its logits, of a head that judges every token those of all tokens; without a head their hidden states, [total, hidden]."""
    said = output.logits if "logits" in output else output.last_hidden_state
    return said[batch["attention_mask"].bool()] if said.dim() == 3 else said


def trial_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two texts of 5 and 3 tokens, padded, whose ids are away from the vocabulary's beginning, where the special ones are."""
    vocab = model.get_input_embeddings().weight.shape[0]
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
    ids = [[(vocab // 4 + 5 * place) % vocab or 1 for place in range(5)], [(vocab // 3 + 7 * place) % vocab or 1 for place in range(3)] + [pad] * 2]
    device = model.get_input_embeddings().weight.device
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]], device=device)}
