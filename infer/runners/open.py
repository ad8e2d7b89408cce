"""The runner for a model."""

from __future__ import annotations

from torch import nn

from ...data.versions import versions_named
from .architecture import attention_is_replaceable, carries_state, transformers_model
from .contract import Runner
from .direct import DirectRunner
from .encoder_decoder import EncoderDecoderRunner
from .layers import supports_direct
from .model_lock import locked
from .padded import PaddedRunner
from .ragged import RaggedRunner
from .stateful import StatefulRunner


@versions_named()
def open_runner(model: nn.Module) -> Runner:
    """Return the runner for a model: direct for the families of `layers`, ragged where all memory is attention that lets itself be replaced.

    Else padded, where it is attention of another kind, and one slot at a time where layers carry a state. Encoder-decoders have one of
    their own, whose slots are opened on their source.
    """
    inner = transformers_model(model)
    if inner.config.is_encoder_decoder:
        return EncoderDecoderRunner(inner)
    if carries_state(inner):
        return StatefulRunner(inner)
    with locked(inner):  # as it is between passes
        if supports_direct(inner):
            return DirectRunner(inner)
    return RaggedRunner(inner) if attention_is_replaceable(inner) else PaddedRunner(inner)
