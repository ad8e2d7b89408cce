"""The parallel and the sequential view are one function: a teacher-forced forward equals the cached sequential one at every position."""

import copy

import pytest
import torch

from seodang.infer.runners.open import open_runner

TEXT = [0, 40, 41, 6, 99, 3, 8, 77, 12]
SOURCE = [5, 9, 77, 31, 8, 2]
MODELS = {
    "decoder": ("llama", {}), "encoder-decoder": ("t5", {}), "Transformer": ("transformer", {}), "Transformer, pre-norm": ("transformer", {"norm_position": "pre"}),
    "LSTM": ("lstm", {"attention": "none"}), "LSTM with attention": ("lstm", {"attention": "dot"}),
}  # fmt: skip


@pytest.fixture
def model(request, tiny, own):
    kind, changes = MODELS[request.param]
    return own(kind, **changes) if kind in ("transformer", "lstm") else copy.deepcopy(tiny(kind)).double()


@pytest.mark.parametrize("model", MODELS, indirect=True)
@torch.no_grad()
def test_teacher_forced_equals_step_by_step_at_every_position(model):
    forced = model(**({"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([TEXT])} if model.config.is_encoder_decoder else {"input_ids": torch.tensor([TEXT])}))
    runner = open_runner(model)
    slot = runner.allocate(SOURCE if model.config.is_encoder_decoder else ())
    sequential = torch.cat([runner.forward([slot], [[id]], [1]) for id in TEXT])  # one token a pass, the past in the cache
    assert runner.length(slot) == len(TEXT)
    logprobs = forced.logits[0].log_softmax(dim=-1)
    assert (logprobs[1:] - logprobs[:-1]).abs().max() > 0.1  # or any position would do for another
    torch.testing.assert_close(sequential.log_softmax(dim=-1), logprobs, rtol=0, atol=1e-11)
