"""Smoothed labels in every stage on SFT's trainer: what transformers makes of each record alone, or a refusal."""

import pytest
import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from seodang.data.errors import UserError
from seodang.train.diffusion.trainer import DiffusionTrainer
from seodang.train.models.masked_loss import patch_masked_loss
from seodang.train.stages.sft import sft_trainer

from .test_sft import arguments, rows


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_packed_answers_have_the_smoothed_loss_of_each_alone(fresh_tiny, tiny_tokenizer, tmp_path, kind):
    data = rows(4)
    trainer = sft_trainer(fresh_tiny(kind).double(), tiny_tokenizer, data, arguments(tmp_path, label_smoothing_factor=0.2))
    count = sum(label != -100 for row in data for label in row["labels"])
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(data), num_items_in_batch=torch.tensor(count))
    plain = fresh_tiny(kind).double()
    want = sum(
        LabelSmoother(0.2)(plain(input_ids=torch.tensor([row["input_ids"]])), torch.tensor([row["labels"]]), shift_labels=True, num_items_in_batch=count)
        for row in data
    )
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    loss.backward()
    want.backward()
    gradients = dict(trainer.model.named_parameters())
    assert all(torch.allclose(gradients[name].grad, p.grad, atol=1e-6) for name, p in plain.named_parameters())


def test_an_encoder_learns_smoothed_labels_at_its_masks(fresh_encoder):
    model, plain = fresh_encoder("bert").double().eval(), fresh_encoder("bert").double().eval()
    patch_masked_loss(model)
    ids, labels = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[-100, 6, -100, 9]])
    want = LabelSmoother(0.3)(plain(input_ids=ids), labels)
    assert model(input_ids=ids, labels=labels, label_smoothing=0.3).loss.item() == pytest.approx(want.item(), rel=1e-6)


def test_a_stage_of_another_loss_refuses_it(fresh_tiny, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", label_smoothing_factor=0.1)
    with pytest.raises(UserError, match="label_smoothing_factor 0.1 is for the cross entropy of a text's tokens"):
        DiffusionTrainer(fresh_tiny("llama"), args)
