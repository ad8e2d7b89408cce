"""Damage is named by file; a full disk leaves what was there."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from seodang.data.refusal import UserError
from seodang.infer.checkpoint import load
from seodang.infer.manifest import MANIFEST, seal, verify
from seodang.train.checkpoints import complete_checkpoints, find_resume, room_for, rotate
from seodang.train.sft import sft, sft_trainer


@pytest.fixture
def saved(fresh_tiny, tiny_tokenizer, tmp_path):
    """A sealed checkpoint folder of a tiny model."""
    folder = tmp_path / "model"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    seal(folder, step=3)
    return folder


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)


def test_a_flipped_byte_is_named_by_file(saved):
    flip_a_byte(saved / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        load(saved, device="cpu", dtype="float32")


def test_a_missing_file_is_named(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors is missing"):
        load(saved, device="cpu", dtype="float32")


def test_a_missing_tensor_is_named_even_without_a_manifest(saved):
    (saved / MANIFEST).unlink()
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(saved, device="cpu", dtype="float32")


def test_a_head_that_the_checkpoint_never_had_is_no_error(saved):
    model, _ = load(saved, device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=3)
    assert model.score.weight.shape == (3, 32)
    weights = load_file(saved / "model.safetensors")
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"])


def test_a_lost_head_of_the_same_architecture_is_an_error(fresh_tiny, tiny_tokenizer, tmp_path):
    fresh_tiny("llama", tie_word_embeddings=False).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the tensor lm_head.weight"):
        load(tmp_path, device="cpu", dtype="float32")


def test_a_hand_edited_json_is_a_warning(saved):
    path = saved / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.7}))
    with pytest.warns(UserWarning, match="generation_config.json was edited"):
        model, _ = load(saved, device="cpu", dtype="float32")
    assert model.generation_config.temperature == 0.7


def test_the_manifest_lists_bytes_and_sha256_of_every_file(saved):
    manifest = verify(saved)
    assert manifest["step"] == 3
    listed = manifest["files"]
    assert set(listed) == {p.name for p in saved.iterdir()} - {MANIFEST}
    import hashlib

    raw = (saved / "config.json").read_bytes()
    assert listed["config.json"] == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_resume_takes_the_newest_complete_checkpoint(tmp_path):
    for step, complete in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"abc")
        if complete:
            seal(folder, step=step)
    assert find_resume(tmp_path, "auto").name == "checkpoint-10"
    assert find_resume(tmp_path, "never") is None
    assert find_resume(tmp_path / "elsewhere", "auto") is None
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_resume(tmp_path, str(tmp_path / "checkpoint-11"))
    flip_a_byte_of_three = tmp_path / "checkpoint-10" / "weights.bin"
    flip_a_byte_of_three.write_bytes(b"abd")
    with pytest.raises(UserError, match=r"weights\.bin is damaged.*--resume .*checkpoint-9"):
        find_resume(tmp_path, "auto")


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        seal(tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, 2, keep=str(tmp_path / "checkpoint-1"))
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, keep=str(tmp_path / "checkpoint-1"))  # the newest is what a resume needs, the best what the run is for
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, keep=None)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_too_little_room_is_refused_before_writing_with_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(UserError, match=r"needs 123,456 bytes and .* has 5,000 free"), room_for(123_456, tmp_path):
        pytest.fail("written all the same")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail] file write failed")])
def test_a_disk_that_fills_while_saving_leaves_the_previous_checkpoint(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch, error):
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    args = TrainingArguments(str(tmp_path), max_steps=2, save_steps=1, save_total_limit=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = sft_trainer(fresh_tiny("llama"), tiny_tokenizer, [row] * 4, args)
    save = type(trainer)._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 2:
            raise error
        save(self, folder)

    monkeypatch.setattr(type(trainer), "_save_optimizer_and_scheduler", full)
    with pytest.raises(UserError, match="the disk is full: a checkpoint needs [0-9,]+ bytes"):
        trainer.train()
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-1"]
    verify(tmp_path / "checkpoint-1")
    assert not (tmp_path / ".saving").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    args = TrainingArguments(str(tmp_path), max_steps=2, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True)
    with pytest.raises(UserError, match="the loss is nan at step 1"):
        sft(model, tiny_tokenizer, [row] * 4, args)


def test_plain_transformers_loads_what_we_save(saved):
    plain = AutoModelForCausalLM.from_pretrained(saved)
    ours, _ = load(saved, device="cpu", dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(plain(ids).logits, ours(ids).logits)
