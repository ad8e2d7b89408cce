import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from seodang import __main__ as command
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import mlm
from seodang.train.run.callbacks import read_log
from seodang.train.run.checkpoints import complete_checkpoints

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def encoder(fresh_encoder, text_tokenizer, tmp_path):
    """A tiny encoder's folder."""
    folder, tokenizer = tmp_path / "encoder", text_tokenizer("wordpiece")
    fresh_encoder("bert", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text("\n".join(f"{line} {i}" for i in range(8) for line in ("영화가 정말 재미있었어요!", "The little model learns.")) + "\n", encoding="utf-8")
    return path


def run(*argv):
    return mlm.main([*map(str, argv), *QUICK])


def logged(out, name="loss"):
    return [entry[name] for entry in read_log(out / "log.jsonl") if name in entry]


def test_a_run_leaves_a_plain_encoder_and_says_what_it_did(encoder, text, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--model", encoder, "--data", text, "--documents", "line", "--eval_fraction", 0.25, "--output_dir", out, "--max_length", 48, "--whole_words", "true"]
    assert run(*common, "--dry_run", "true") == 0
    planned = capsys.readouterr().out
    assert not (out / "config.json").exists()
    assert "documents       16 read, 16 kept" in planned and "packed          12 documents in " in planned and "held out        4 documents in " in planned
    assert "hidden          15% of words: 80% masked, 10% another token, 10% as they are" in planned and "layout          pieces end to end" in planned
    assert "as a run before left it" not in planned
    assert run(*common, "--max_steps", 6, "--eval_strategy", "steps", "--eval_steps", 3, "--save_steps", 3) == 0
    printed = capsys.readouterr().out
    assert "as a run before left it" in printed and "checkpoint      " in printed
    verify(out)
    assert read_manifest(out)["paradigm"] == "masked" and read_manifest(out)["options"]["whole_words"] is True
    model, loading = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and AutoTokenizer.from_pretrained(out).mask_token == "[MASK]"
    assert type(model).__name__ == json.loads((out / "config.json").read_text())["architectures"][0] == "BertForMaskedLM"
    assert len(logged(out, "eval_perplexity")) == 2 and len(logged(out, "eval_token_accuracy")) == 2


def test_the_same_command_goes_on_and_another_corruption_is_refused(encoder, text, tmp_path, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = ["--model", encoder, "--data", text, "--documents", "line", "--save_steps", 2, "--max_length", 24, "--per_device_train_batch_size", 2]
    assert run(*common, "--output_dir", whole, "--max_steps", 4) == 0
    assert run(*common, "--output_dir", cut, "--max_steps", 4, "--lr_scheduler_type", "constant") == 0
    assert [path.name for path in complete_checkpoints(cut)] == ["checkpoint-2", "checkpoint-4"]
    assert run(*common, "--output_dir", cut, "--max_steps", 6, "--lr_scheduler_type", "constant") == 0
    assert len(logged(cut)) == 6
    assert run(*common, "--output_dir", cut, "--max_steps", 6, "--lr_scheduler_type", "constant", "--mlm_probability", 0.3) == 2
    assert "--mlm_probability 0.15, now 0.3" in capsys.readouterr().err
    text.write_text("another text altogether\n" * 9)
    assert run(*common, "--output_dir", cut, "--max_steps", 6, "--lr_scheduler_type", "constant") == 2
    assert "the records themselves" in capsys.readouterr().err


def test_from_scratch_the_seed_decides_and_held_out_text_may_be_a_file(encoder, text, tmp_path):
    (encoder / "model.safetensors").unlink()
    losses = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / name
        assert run("--model", encoder, "--data", text, "--eval_data", text, "--output_dir", out, "--max_steps", 2, "--save_strategy", "no",
                   "--eval_strategy", "steps", "--eval_steps", 2, "--scratch", "true", "--seed", seed, "--text_cache", tmp_path / "cache") == 0  # fmt: skip
        losses.append((logged(out), logged(out, "eval_loss")))
    assert losses[0] == losses[1] != losses[2] and len(list((tmp_path / "cache").glob("text-*.lock"))) == 1


@pytest.mark.full
def test_two_processes_hide_the_same_and_learn_the_same(encoder, text, tmp_path, on_two):
    common = ["--model", encoder, "--data", text, "--documents", "line", "--max_steps", 3, "--save_strategy", "no", "--max_length", 12, *QUICK, "--lr_scheduler_type", "constant"]
    on_two("mlm", *map(str, [*common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2]))
    assert mlm.main([*map(str, [*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4])]) == 0
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--mlm_probability", 0], "mlm_probability must be between 0 and 1, got 0.0"),
        (["--mlm_probability", 1.5], "mlm_probability must be between 0 and 1, got 1.5"),
        (["--mask_share", 0.9, "--random_share", 0.2], "mask_share 0.9 and random_share 0.2 come to more than 1"),
        (["--max_length", 65], "max_length 65 is more than the model's context of 64: set 64 or less"),
        (["--max_length", 2], "max_length 2 has no room for text"),
        (["--documents", "word"], "documents must be file, line or paragraph, got 'word'"),
        (["--eval_fraction", 0.5], "leaves nothing of 1 documents"),
        (["--columns", "answer=a"], "plain text has the key text alone"),
        (["--eval_fraction", 1], "eval_fraction must be in [0, 1), got 1.0"),
        (["--early_stopping_patience", 2], "early_stopping_patience needs held-out data"),
    ],
)
def test_bad_options_are_refused_before_any_compute(encoder, text, tmp_path, capsys, monkeypatch, argv, says):
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *args: pytest.fail("computed"))
    assert run("--model", encoder, "--data", text, "--output_dir", tmp_path / "out", *argv) == 2
    assert says in capsys.readouterr().err


def test_models_and_tokenizers_that_fill_in_no_masks_are_refused_by_name(base, encoder, text, tmp_path, capsys):
    out = ["--data", text, "--output_dir", tmp_path / "out"]
    assert run("--model", base, *out) == 2
    assert "this llama is a decoder, which reads from left to right and fills in no masks: teach it by `seodang pretrain` or `seodang sft`" in capsys.readouterr().err
    config = json.loads((encoder / "tokenizer_config.json").read_text())
    config.pop("mask_token")
    (encoder / "tokenizer_config.json").write_text(json.dumps(config))
    assert run("--model", encoder, *out) == 2
    assert "the tokenizer has no mask token" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"\n \n", "there is no text, none of the documents (1) has anything but blanks in it"),
        ("a.txt", b"", "there is no text"),
        ("a.txt", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0" + bytes(range(256)) * 9, "a.txt"),
        ("a.jsonl", b'{"review": "good"}\n', "has no column 'text', only review: name the one that holds the text, --columns text=review"),
    ],
)
def test_files_without_text_are_refused(encoder, tmp_path, capsys, name, data, says):
    (tmp_path / name).write_bytes(data)
    assert run("--model", encoder, "--data", tmp_path / name, "--output_dir", tmp_path / "out") == 2
    assert says in capsys.readouterr().err


def test_a_longer_text_than_the_encoder_takes_is_counted_in_pieces(encoder, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("The little model learns. " * 60)
    assert run("--model", encoder, "--data", tmp_path / "long.txt", "--output_dir", tmp_path / "out", "--dry_run", "true") == 0
    printed = capsys.readouterr().out
    pieces = int(printed.split("documents are longer than a row, in ")[1].split(" pieces")[0])
    assert "split           1 documents are longer than a row" in printed and pieces > 4


def test_the_command_knows_its_sources_before_it_loads_anything(text, tmp_path, capsys):
    assert command.main(["mlm", "--model", str(tmp_path), "--data", str(tmp_path / "no.txt")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert command.main(["mlm", "--help"]) == 0
    assert "--mlm_probability" in capsys.readouterr().out
