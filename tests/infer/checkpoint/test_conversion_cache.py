"""What is kept of a folder of floats is what it would be made anew, goes when it is the oldest, and is made anew where it is damaged."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.checkpoint import conversion_cache
from seodang.infer.checkpoint.conversion_cache import STALE, key
from seodang.infer.checkpoint.few_bits_folder import FILE, is_mapped
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import write_manifest


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of entries, and in it how many times floats were quantised."""
    monkeypatch.setenv("SEODANG_CACHE_GIB", "1")
    monkeypatch.setattr(conversion_cache, "cache_folder", lambda: tmp_path / "cache")
    folder = tmp_path / "cache" / "few-bits"
    made, run = [], conversion_cache.quantise.quantise
    monkeypatch.setattr(conversion_cache.quantise, "quantise", lambda model, weights: made.append(weights) or run(model, weights))
    return folder, made


@pytest.fixture
def floats(fresh_tiny, tiny_tokenizer, tmp_path):
    """`floats(seed)`: the folder of a tiny model."""

    def write(seed: int = 0) -> Path:
        folder = tmp_path / f"model-{seed}"
        fresh_tiny("llama", seed=seed).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return write


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def packs(model) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("packed")]


@pytest.mark.parametrize("sealed", [True, False], ids=["with a manifest", "without"])
def test_the_second_time_it_is_mapped_and_the_same_to_the_bit(cache, floats, sealed):
    folder, made = cache
    source = floats()
    if sealed:
        write_manifest(source)
    first, _ = load(source, weights="int4")
    again, tokenizer = load(source, weights="int4")
    assert made == ["int4"] and not is_mapped(first) and is_mapped(again) and len(tokenizer) == 128
    assert len(packs(first)) == 9 and all(map(torch.equal, packs(first), packs(again)))
    assert first.config.to_dict() == again.config.to_dict() and first.config._name_or_path == again.config._name_or_path
    load(source, weights="int8")
    assert made == ["int4", "int8"] and [name.split("-")[0] for name in entries(folder)] == ["int4", "int8"]


def test_what_a_folder_is_known_by(cache, floats, tmp_path):
    """The hashes of its manifest, wherever it lies; without one, path, size and time; and in both what its configuration says."""
    source = floats()
    plain = key(source, "int4")
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert key(source, "int4") != plain != key(source, "int8")
    write_manifest(source)
    sealed = key(source, "int4")
    shutil.copytree(source, tmp_path / "copy")
    assert key(tmp_path / "copy", "int4") == sealed
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}), encoding="utf-8")
    assert key(source, "int4") != sealed
    other = floats(1)
    write_manifest(other)
    (other / "config.json").write_text((tmp_path / "copy" / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert key(other, "int4") != sealed


def test_weights_changed_behind_their_manifest_are_refused_though_an_entry_is_there(cache, floats):
    source = floats()
    write_manifest(source)
    load(source, weights="int8")
    raw = bytearray((source / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (source / "model.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(source, weights="int8")


@pytest.mark.parametrize("damage", ["a bit", "half", "no weights", "a manifest that is none"])
def test_a_damaged_entry_is_made_anew_and_said(cache, floats, caplog, damage):
    folder, made = cache
    first, _ = load(source := floats(), weights="int4")
    [name] = entries(folder)
    path = folder / name / FILE
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "no weights":
        path.unlink()
    elif damage == "a manifest that is none":
        (folder / name / "manifest.json").write_text("{", encoding="utf-8")
    else:
        path.write_bytes(raw if damage == "a bit" else raw[: len(raw) // 2])
    with caplog.at_level(logging.WARNING):
        again, _ = load(source, weights="int4")
    assert made == ["int4"] * 2 and "cannot be used and is made anew" in caplog.text
    assert all(map(torch.equal, packs(first), packs(again)))
    caplog.clear()
    load(source, weights="int4")
    assert made == ["int4"] * 2 and not caplog.records


def test_those_used_longest_ago_go_and_what_killed_processes_left(cache, floats, monkeypatch):
    folder, made = cache
    sources = [floats(seed) for seed in range(3)]
    for source in sources[:2]:
        load(source, weights="int4")
    names = [key(source, "int4") for source in sources]
    size = sum(path.stat().st_size for path in (folder / names[0]).iterdir())
    monkeypatch.setenv("SEODANG_CACHE_GIB", str(2.5 * size / 2**30))
    for age, name in enumerate(names[:2]):
        os.utime(folder / name, (1000 + age,) * 2)
    load(sources[0], weights="int4")  # now the second is the one used longest ago
    for name in (".partial.killed", ".partial.at-work"):
        (folder / name).mkdir()
    os.utime(folder / ".partial.killed", (time.time() - STALE - 9,) * 2)
    load(sources[2], weights="int4")
    assert entries(folder) == [".partial.at-work", *sorted([names[0], names[2]])] and made == ["int4"] * 3


def test_what_cannot_be_kept_is_made_each_time(cache, floats, monkeypatch, tmp_path):
    folder, made = cache
    source = floats()
    monkeypatch.setenv("SEODANG_CACHE_GIB", "0")
    load(source, weights="int8")
    monkeypatch.setenv("SEODANG_CACHE_GIB", "0.00001")  # less than it takes
    load(source, weights="int8")
    assert not folder.exists() or not entries(folder)
    monkeypatch.setenv("SEODANG_CACHE_GIB", "1")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "cache").write_text("no folder", encoding="utf-8")  # as one that cannot be written, for root too
    load(source, weights="int8")
    assert made == ["int8"] * 3
    monkeypatch.setenv("SEODANG_CACHE_GIB", "much")
    with pytest.raises(UserError, match="SEODANG_CACHE_GIB must be a number of GiB, 0 or more, got 'much'"):
        load(source, weights="int8")


def test_one_that_is_killed_while_writing_leaves_no_entry(cache, floats, monkeypatch):
    folder, made = cache
    source = floats()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion_cache, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            load(source, weights="int4")
    assert entries(folder) == []
    partial = folder / key(source, "int4")  # as a removal that was cut short leaves it
    partial.mkdir()
    (partial / FILE).write_bytes(b"half")
    load(source, weights="int4")
    assert (partial / "manifest.json").is_file() and made == ["int4"] * 2


def test_another_process_may_be_first(cache, floats, monkeypatch):
    folder, made = cache
    source, run = floats(), conversion_cache.write_manifest

    def late(partial):
        run(partial)
        shutil.copytree(partial, folder / key(source, "int4"))

    monkeypatch.setattr(conversion_cache, "write_manifest", late)
    load(source, weights="int4")
    assert entries(folder) == [key(source, "int4")] and is_mapped(load(source, weights="int4")[0]) and made == ["int4"]


def test_a_limit_beyond_all_numbers_is_refused(cache, floats, monkeypatch):
    source = floats()
    monkeypatch.setenv("SEODANG_CACHE_GIB", "1e300")
    with pytest.raises(UserError, match="must be a number of GiB, 0 or more, got '1e300'"):
        load(source, weights="int4")


def test_a_cache_of_another_user_keeps_nothing(cache, floats, monkeypatch):
    folder, made = cache
    source, look, make = floats(), Path.is_file, Path.mkdir

    def refused(of):
        def ask(path, *args, **kwargs):
            if path == folder or folder in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return of(path, *args, **kwargs)

        return ask

    monkeypatch.setattr(Path, "is_file", refused(look))
    monkeypatch.setattr(Path, "mkdir", refused(make))
    assert not is_mapped(load(source, weights="int4")[0]) and not is_mapped(load(source, weights="int4")[0]) and made == ["int4", "int4"]


def test_a_merged_adapter_is_not_kept(cache, floats, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder, made = cache
    source = floats()
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(source), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    with_adapter, _ = load(source, adapter=tmp_path / "adapter", weights="int8")
    by_its_folder, _ = load(tmp_path / "adapter", weights="int8")  # which brings the base with it
    assert not folder.exists() and all(map(torch.equal, packs(with_adapter), packs(by_its_folder)))
    assert not any(map(torch.equal, packs(with_adapter)[:1], packs(load(source, weights="int8")[0])))


def test_the_shipped_file_s_packs_are_kept_too(cache):
    folder, made = cache
    first, _ = load("default", weights="int4")
    again, tokenizer = load("default", weights="int4")
    assert not is_mapped(first) and is_mapped(again) and not made and len(entries(folder)) == 1
    assert all(torch.equal(a, b) for a, b in zip(packs(first), packs(again), strict=True)) and len(packs(again)) == 211
    assert torch.equal(first.get_input_embeddings().weight, again.get_input_embeddings().weight)
    ids = torch.tensor([tokenizer("Suwon is a city in")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, again(input_ids=ids).logits)
