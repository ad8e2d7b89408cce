"""Damage is named by file; a full disk leaves what was there."""

import errno
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import MANIFEST, verify, write_manifest
from seodang.infer.runners.architecture import transformers_model
from seodang.train.run import crash_safe as sealed
from seodang.train.run.checkpoints import (
    complete_checkpoints,
    copy_model,
    find_resume,
    publish,
    publish_into,
    reserve_space,
    rotate,
    start_staging,
)
from seodang.train.run.crash_safe import CrashSafeCheckpoints
from seodang.train.run.interruption import Signals
from seodang.train.stages.sft import sft, sft_trainer


@pytest.fixture
def saved(fresh_tiny, tiny_tokenizer, tmp_path):
    """A sealed checkpoint folder of a tiny model."""
    folder = tmp_path / "model"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    write_manifest(folder, step=3)
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


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "C:/outside.txt", "sub/../../outside.txt", "link.txt", "linked/inner.txt", "."])
def test_a_manifest_that_names_what_is_not_the_folders_own_is_refused(tmp_path, name):
    folder, secret = tmp_path / "model", tmp_path / "outside.txt"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (secret, folder / "config.json", tmp_path / "elsewhere" / "inner.txt"):
        path.write_text("{}")
    write_manifest(folder)
    (folder / "link.txt").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["config.json"]  # of the same bytes: nothing else is wrong with it
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for use in (verify, load, lambda folder: copy_model(folder, tmp_path / "copy")):
        with pytest.raises(UserError, match="which is not a file of this folder"):
            use(folder)
    assert not (tmp_path / "copy").exists()


# Publishing


class Killed(BaseException):
    pass


def killed_at(monkeypatch, moment, act):
    """Do something, killed at its `moment`-th change of a name in the file system; whether it got to its end before."""
    calls = []

    def counted(original):
        def step(*args, **kwargs):
            calls.append(1)
            if len(calls) == moment:
                raise Killed
            return original(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for holder, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            patch.setattr(holder, name, counted(getattr(holder, name)))
        try:
            act()
        except Killed:
            return False
    return True


def written(run, folder, **texts):
    aside = start_staging(run) / folder
    aside.mkdir()
    for name, text in texts.items():
        (aside / name).write_text(text)
    return aside


def test_whenever_publishing_is_killed_the_folder_is_the_old_or_the_new_model_or_says_that_it_is_neither(tmp_path, monkeypatch):
    old, new = {"config": "old", "weights": "old"}, {"adapter": "new", "weights": "new"}
    seen = set()
    for moment in range(1, 30):
        run = tmp_path / str(moment)
        publish_into(written(run, "final", **old), run)
        (run / "log").write_text("mine")
        done = killed_at(monkeypatch, moment, lambda: publish_into(written(run, "final", **new), run))  # noqa: B023
        try:
            found = {name: (run / name).read_text() for name in verify(run)["files"]}
            seen.add("old" if found == old else "new")
            assert found in (old, new) and {p.name for p in run.iterdir() if p.is_file() and "manifest." not in p.name} == {*found, "log"}
        except UserError as error:
            seen.add("half")
            assert "half written" in str(error)
            with pytest.raises(UserError, match="half written"):
                load(run)
        publish_into(written(run, "final", **new), run)
        assert {p.name: p.read_text() for p in run.iterdir() if p.name != MANIFEST} == {**new, "log": "mine"} and verify(run)
        if done:
            break
    assert done and seen == {"old", "half", "new"}


def test_whenever_a_checkpoint_is_written_again_one_of_its_step_is_there(tmp_path, monkeypatch):
    for moment in range(1, 20):
        run = tmp_path / str(moment)
        publish(written(run, "checkpoint-3", weights="old"), run / "checkpoint-3")
        done = killed_at(monkeypatch, moment, lambda: publish(written(run, "checkpoint-3", weights="new"), run / "checkpoint-3"))  # noqa: B023
        resumed = find_resume(run, "auto")
        assert resumed == run / "checkpoint-3" and (resumed / "weights").read_text() in ("old", "new")
        start_staging(run)
        assert find_resume(run, str(resumed)) == resumed
        if done:
            break
    assert done and (resumed / "weights").read_text() == "new"


def test_an_adapter_saved_where_a_whole_model_was_is_what_is_loaded(fresh_tiny, tiny_tokenizer, tmp_path):
    row, run = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, tmp_path / "run"
    fresh_tiny("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")

    def trained(lora):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        args = TrainingArguments(str(run), max_steps=1, save_strategy="no", learning_rate=0.1, use_cpu=True, report_to="none", disable_tqdm=True)
        trainer = sft(model, tiny_tokenizer, [row] * 4, args, lora=lora)
        trainer.save_final()
        return trainer.model.eval()

    ids = torch.tensor([[5, 6, 7]])
    for lora in (None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), None):
        model = trained(lora)
        with torch.no_grad():
            expected = transformers_model(model).lm_head(transformers_model(model).model(ids).last_hidden_state)  # its forward gives losses
            assert torch.allclose(load(run, device="cpu", dtype="float32")[0](ids).logits, expected, atol=1e-5)
        assert (run / "config.json").is_file() == (lora is None) and (run / "log.jsonl").is_file()


def test_another_shape_of_adapter_or_none_is_refused_in_a_line(fresh_tiny, tiny_tokenizer, tmp_path):
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}

    def run(rank, resume=None):
        lora = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM") if rank else None
        args = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
        return sft(fresh_tiny("llama"), tiny_tokenizer, [row] * 4, args, lora=lora, resume=resume)

    run(2)
    for rank in (4, 0):
        with pytest.raises(UserError, match="checkpoint-1 does not fit this model: resume with the model and the adapter") as refused:
            run(rank, str(tmp_path / "checkpoint-1"))
        assert len(str(refused.value)) < 500


# Several processes


class Two:
    """The accelerator of one of two processes, the other of which adds `theirs` to every sum."""

    def __init__(self, theirs):
        self.theirs, self.dtypes = theirs, []

    def reduce(self, values):
        self.dtypes.append(values.dtype)
        return values + self.theirs

    def autocast(self):
        return nullcontext()


def one_of_two(theirs, rank=0):
    stage = CrashSafeCheckpoints.__new__(CrashSafeCheckpoints)
    stage.accelerator, stage.signals, stage._in_step = Two(theirs), Signals(), False
    stage.args = SimpleNamespace(world_size=2, process_index=rank, device="cpu", per_device_eval_batch_size=2)
    return stage


def test_sums_over_processes_keep_float64():
    large = 2.0**24
    stage = one_of_two(torch.tensor([1.0], dtype=torch.float64))
    assert stage.sums_over([large, None, 1.0], 1, lambda rows: torch.tensor([sum(rows)], dtype=torch.float64)) == [large + 2]
    assert stage.accelerator.dtypes == [torch.float64]  # 2**24 + 1 is no float32
    stage.args.world_size = 1
    assert stage.sums_over([large, 1.0], 1, lambda rows: torch.tensor([sum(rows)], dtype=torch.float64)) == [large + 1]


def test_a_process_that_fails_does_not_leave_the_others_waiting():
    failing, healthy = one_of_two(0.0), one_of_two(torch.tensor([0.0, 1.0]))
    with pytest.raises(KeyError, match="mine"), failing.fail_together():
        raise KeyError("mine")
    assert len(failing.accelerator.dtypes) == 1  # it told the others
    with pytest.raises(UserError, match="rank 1 of 2 could not save, see what they say"), healthy.fail_together():
        pass
    with one_of_two(0.0).fail_together():
        pass


@pytest.mark.parametrize("place", ["require_space", "start_staging", "publish"])
def test_a_save_that_fails_in_one_process_fails_where_all_meet(place, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    args = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = sft_trainer(fresh_tiny("llama"), tiny_tokenizer, [{"input_ids": [5, 6], "labels": [-100, 6]}] * 4, args)
    met = []
    monkeypatch.setattr(type(trainer), "sum_over_processes", lambda self, values: met.append(values.item()) or values)

    def failing(*args, **kwargs):
        raise OSError("of this process alone")

    monkeypatch.setattr(sealed, place, failing)
    with pytest.raises(OSError, match="of this process alone"):
        trainer.train()
    assert met[-1] == 1.0 and sum(met) == 1.0


def test_resume_takes_the_newest_complete_checkpoint(tmp_path):
    for step, complete in ((9, True), (10, True), (11, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"abc")
        if complete:
            write_manifest(folder, step=step)
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
        write_manifest(tmp_path / f"checkpoint-{step}")
    rotate(tmp_path, 2, keep=str(tmp_path / "checkpoint-1"))
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, keep=str(tmp_path / "checkpoint-1"))  # the newest is what a resume needs, the best what the run is for
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-4"]
    rotate(tmp_path, 1, keep=None)
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["checkpoint-4"]


def test_too_little_room_is_refused_before_writing_with_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(UserError, match=r"needs 123,456 bytes and .* has 5,000 free"), reserve_space(123_456, tmp_path):
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
