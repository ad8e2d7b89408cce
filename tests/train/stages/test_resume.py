"""A run that is killed and resumed is the run that was not."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from seodang.infer.checkpoint.manifest import MANIFEST, verify
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import complete_checkpoints, find_resume
from seodang.train.stages.sft import sft


def rows(count=12):
    generator = random.Random(0)
    made = []
    for _ in range(count):
        ids = [generator.randrange(3, 128) for _ in range(generator.randrange(5, 20))]
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return made


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def run(fresh_tiny, tokenizer, folder, *, dtype=torch.float32, resume=None, callbacks=(), **changes):
    torch.manual_seed(0)
    model = fresh_tiny("llama", attention_dropout=0.1, vocab_size=128).to(dtype)
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 1, "logging_steps": 1}
    args = TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", seed=1, disable_tqdm=True, learning_rate=1e-2)
    return sft(model, tokenizer, rows(), args, resume=resume, callbacks=callbacks)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in read_log(Path(folder) / LOG) if "loss" in entry]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_at_any_step_equals_the_uninterrupted_run_bit_for_bit(fresh_tiny, tiny_tokenizer, tmp_path, dtype):
    whole = run(fresh_tiny, tiny_tokenizer, tmp_path / "whole", dtype=dtype, save_strategy="no")
    assert whole.state.global_step == 6
    for step in (1, 3, 4):  # within the first epoch, at its end, within the second
        folder = tmp_path / str(step)
        run(fresh_tiny, tiny_tokenizer, folder, dtype=dtype, callbacks=[StopAt(step)], save_steps=step)
        resumed = run(fresh_tiny, tiny_tokenizer, folder, dtype=dtype, save_strategy="no", resume=str(find_resume(folder, "auto")))
        assert losses(folder) == losses(tmp_path / "whole")
        for name, value in weights(whole).items():
            assert torch.equal(weights(resumed)[name], value), name


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"num_train_epochs": 2}])
def test_a_run_that_was_over_takes_no_further_step(fresh_tiny, tiny_tokenizer, tmp_path, length):
    done = run(fresh_tiny, tiny_tokenizer, tmp_path, **length)
    again = run(fresh_tiny, tiny_tokenizer, tmp_path, resume=str(find_resume(tmp_path, "auto")), **length)
    assert again.state.global_step == done.state.global_step
    assert [step for step, _ in losses(tmp_path)] == list(range(1, done.state.global_step + 1))
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(done).items())


def test_checkpoints_are_complete_rotated_and_readable_by_others(fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = run(fresh_tiny, tiny_tokenizer, tmp_path, save_total_limit=2)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]
    assert not (tmp_path / ".saving").exists()
    for folder in complete_checkpoints(tmp_path):
        manifest = verify(folder)
        assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {MANIFEST}
        assert oct((folder / "model.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~_umask())
    final = trainer.save_final()
    assert verify(final)["step"] == 6
    saved = load_file(final / "model.safetensors")
    assert torch.equal(saved["model.norm.weight"], trainer.model.model.norm.weight)


def test_what_is_tied_is_not_missed_among_the_weights_that_a_run_goes_on_from(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("transformers.trainer.logger.warning", lambda text, *rest: said.append(text))
    tied = lambda kind, **changes: fresh_tiny(kind, tie_word_embeddings=True, **changes)
    run(tied, tiny_tokenizer, tmp_path, max_steps=1)
    run(tied, tiny_tokenizer, tmp_path, max_steps=2, resume=str(find_resume(tmp_path, "auto")))
    assert not [text for text in said if "missing keys" in text]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_old_checkpoint_goes_only_after_the_new_manifest_stands(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    from seodang.train.run import checkpoints

    seen = []
    write_manifest = checkpoints.write_manifest

    def watched(folder, **facts):
        seen.append([p.name for p in complete_checkpoints(tmp_path)])
        write_manifest(folder, **facts)

    monkeypatch.setattr(checkpoints, "write_manifest", watched)
    run(fresh_tiny, tiny_tokenizer, tmp_path, save_total_limit=1, max_steps=3)
    assert seen == [[], ["checkpoint-1"], ["checkpoint-2"]]
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-3"]


@pytest.mark.full
def test_three_kills_at_random_moments_lose_no_run(tmp_path, run_script):
    """The short form of `benchmarks/kill_resume.py --kills 100`."""
    written = run_script("benchmarks/kill_resume.py", "--kills", 3, "--steps", 16, "--folder", tmp_path / "runs")
    report = json.loads(written.splitlines()[-1])
    assert report["kills"] >= 3 and report["lost"] == 0 and report["equal"] is True
