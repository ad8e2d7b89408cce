"""seodang seq2seq on a tiny T5: it learns to say which digit a source holds, and what it says is measured; then it predicts over a file."""

import json
import random
import re

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import generate, seq2seq
from seodang.train.run.callbacks import read_log

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
QUICK += ["--save_strategy", "no", "--lr_scheduler_type", "constant"]


def written(path, records):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


def record(draw):
    """A source of letters with one digit, which is the target."""
    digit = str(draw.randint(0, 9))
    source = [draw.choice("abcde") for _ in range(draw.randint(1, 6))]
    source.insert(draw.randint(0, len(source)), digit)
    return {"source": "".join(source), "target": digit}


@pytest.fixture
def data(tmp_path):
    draw = random.Random(0)
    return written(tmp_path / "pairs.jsonl", [record(draw) for _ in range(200)])


@pytest.fixture
def t5_folder(fresh_tiny, t5_tokenizer, tmp_path):
    """A tiny T5's folder; its tokenizer is of letters."""
    folder = tmp_path / "t5"
    fresh_tiny("t5", eos_token_id=1, dropout_rate=0.0).save_pretrained(folder)
    t5_tokenizer.save_pretrained(folder)
    return folder


def train(folder, data, out, *argv):
    return seq2seq.main([*map(str, ["--model", folder, "--data", data, "--output_dir", out, *argv]), *QUICK])


def test_a_digit_is_learned_and_predicted(t5_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--scratch", "--eval_fraction", 0.2, "--max_source_length", 32, "--max_target_length", 16, "--num_train_epochs", 3, "--eval_strategy", "epoch", "--per_device_train_batch_size", 2]
    assert train(t5_folder, data, out, *options) == 0
    printed = capsys.readouterr().out
    print(printed)
    log = read_log(out / "log.jsonl")
    print([e for e in log if "eval_exact" in e])
