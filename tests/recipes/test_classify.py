import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from seodang.infer import classify as say
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import classify, export
from seodang.train.run.callbacks import read_log

QUICK = ["--learning_rate", "5e-3", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
WORDS = {"good": "w0", "bad": "w1", "meh": "w2"}
SCORES = {"good": 1.0, "bad": -1.0, "meh": 0.1}


def record(draw):
    """A text with one word that says of which class it is, among any others."""
    label = draw.choice(list(WORDS))
    words = [f"w{draw.randint(3, 49)}" for _ in range(draw.randint(1, 12))]
    words[draw.randrange(len(words))] = WORDS[label]
    return {"text": " ".join(words), "sentiment": label, "score": SCORES[label] + draw.gauss(0, 0.01), "tags": [label, "short"] if len(words) < 6 else [label]}


@pytest.fixture
def data(tmp_path):
    draw = random.Random(0)
    return written(tmp_path / "data.jsonl", [record(draw) for _ in range(150)])


def written(path, records):
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def run(*argv):
    return classify.main([*map(str, argv), *(QUICK[-4:] if "--predict" in argv else QUICK)])


def train(encoder_folder, data, out, *argv):
    return run("--model", encoder_folder, "--data", data, "--output_dir", out, "--save_strategy", "no", "--eval_fraction", 0.2, *argv)


def test_a_class_is_learned_and_the_plain_folder_knows_it_by_name(encoder_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "sentiment", "--num_train_epochs", 10, "--eval_strategy", "epoch") == 0
    printed = capsys.readouterr().out
    assert "labels          bad" in printed and "problem         single_label_classification" in printed
    assert "accuracy 1.0000, macro_f1 1.0000" in printed and printed.rstrip().endswith(str(out))
    verify(out)
    assert read_manifest(out)["paradigm"] == "classification"
    page = (out / "report.html").read_text()
    assert all((out / name).is_file() for name in ("confusion.png", "reliability.png", "loss.png"))
    assert "Confusion matrix" in page and "good: " in page and "eval_macro_f1" not in page
    evaluated = [entry for entry in read_log(out / "log.jsonl") if "eval_macro_f1" in entry]
    assert evaluated[-1]["eval_macro_f1"] == 1.0 and evaluated[-1]["eval_ece"] < evaluated[3]["eval_ece"]
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert plain.config.id2label == {0: "bad", 1: "good", 2: "meh"} and plain.config.problem_type == "single_label_classification"
    assert plain.config.label2id == {"bad": 0, "good": 1, "meh": 2}
    with torch.no_grad():
        logits = plain(**tokenizer(["w9 w0", "w1 w7 w8", "w2"], padding=True, return_tensors="pt")).logits
    assert logits.argmax(-1).tolist() == [1, 0, 2]

    # what it predicts over a file
    capsys.readouterr()
    asked = written(tmp_path / "asked.jsonl", [{"text": text, "is": label} for text, label in (("w9 w0", "good"), (" ".join(["w7"] * 40 + ["w1"]), "bad"), ("w2", "bad"))])
    assert run("--model", out, "--data", asked, "--predict", "--output", tmp_path / "said.jsonl", "--label_column", "is", "--cut", "left") == 0
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(line["record"], line["label"]) for line in lines] == [("asked.jsonl line 1", "good"), ("asked.jsonl line 2", "bad"), ("asked.jsonl line 3", "meh")]
    assert [line["probs"]["bad"] for line in lines[::2]] == pytest.approx(logits.softmax(-1)[[0, 2], 0].tolist(), abs=1e-5)
    totals = capsys.readouterr().out
    assert "truncated       1 texts longer than 32 tokens (cut: left)" in totals and "accuracy 0.6667, macro F1 0.5556 of 3 texts" in totals  # 1, 2/3 and 0


def test_several_labels_are_learned(encoder_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "tags", "--multi_label", "--num_train_epochs", 12, "--class_weights", "balanced") == 0
    printed = capsys.readouterr().out
    assert "class weights   bad " in printed and "micro_f1 " in printed
    model, tokenizer = load(out, device="cpu", dtype="float32")
    assert model.config.problem_type == "multi_label_classification"
    assert [set(each.label) for each in say(model, tokenizer, ["w9 w0", "w1 " + "w7 " * 9])] == [{"good", "short"}, {"bad"}]


def test_a_number_is_learned(encoder_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "score", "--regression", "--num_train_epochs", 12) == 0
    printed = capsys.readouterr().out
    pearson = float(printed.partition("pearson ")[2].partition(",")[0])
    assert pearson > 0.95 and not (out / "confusion.png").exists()
    model, tokenizer = load(out, device="cpu", dtype="float32")
    said = [each.label for each in say(model, tokenizer, ["w9 w0 w4", "w1 w7 w8", "w2 w5"])]
    assert said == pytest.approx([1, -1, 0.1], abs=0.4) and model.config.num_labels == 1


def test_pairs_are_learned_by_whether_they_say_the_same(encoder_folder, tmp_path):
    """The class hangs on both texts: neither alone tells it."""
    draw, out = random.Random(1), tmp_path / "out"
    pairs = [(draw.randint(0, 1), draw.randint(0, 1)) for _ in range(240)]
    records = [{"a": f"w{first}", "b": f"w{second} w9", "label": "same" if first == second else "other"} for first, second in pairs]
    path = written(tmp_path / "pairs.jsonl", records)
    assert train(encoder_folder, path, out, "--text_column", "a", "--pair_column", "b", "--num_train_epochs", 15) == 0
    model, tokenizer = load(out, device="cpu", dtype="float32")
    said = say(model, tokenizer, [("w0", "w0 w9"), ("w1", "w0 w9"), ("w1", "w1 w9"), ("w0", "w1 w9")])
    assert [each.label for each in said] == ["same", "other", "same", "other"]


def test_an_adapter_brings_the_names_and_merges_into_a_plain_folder(encoder_folder, data, tmp_path, capsys):
    out, merged = tmp_path / "out", tmp_path / "merged"
    argv = ("--label_column", "sentiment", "--num_train_epochs", 8, "--lora_r", 4, "--learning_rate", "1e-2")
    assert train(encoder_folder, data, out, *argv) == 0
    texts = ["w9 w0", "w1 w7 w8", "w2"]
    model, tokenizer = load(out, device="cpu", dtype="float32")
    said = say(model, tokenizer, texts)
    assert list(said[0].probs) == ["bad", "good", "meh"]
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        names = [name for name in file.keys() if "pooler" in name or "classifier" in name]  # noqa: SIM118
    assert sorted(name.rpartition("model.")[2] for name in names) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    held = [entry for entry in read_log(out / "log.jsonl") if "loss" in entry]
    assert held[-1]["loss"] < held[0]["loss"] / 2
    assert export.main([str(out), str(merged), "--dtype", "float32"]) == 0
    plain = AutoModelForSequenceClassification.from_pretrained(merged)
    assert plain.config.id2label == {0: "bad", 1: "good", 2: "meh"}
    with torch.no_grad():
        probs = plain(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    torch.testing.assert_close(torch.tensor([list(each.probs.values()) for each in said]), probs, atol=1e-4, rtol=1e-3)


def test_a_decoder_is_a_classifier_on_its_last_token(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    base, out, draw = tmp_path / "base", tmp_path / "out", random.Random(0)
    fresh_tiny("llama", pad_token_id=2).save_pretrained(base)
    tiny_tokenizer.pad_token = "<|im_end|>"
    tiny_tokenizer.save_pretrained(base)
    records = [{"text": "".join(draw.choice("abcdef") for _ in range(draw.randint(1, 6))) + mark, "label": mark == "!"} for mark in "!.?" * 30]
    assert train(base, written(tmp_path / "d.jsonl", records), out, "--num_train_epochs", 4) == 0
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert plain.config.id2label == {0: "False", 1: "True"} and plain.config.pad_token_id == tokenizer.pad_token_id != 2
    with torch.no_grad():
        said = plain(**tokenizer(["abcde!", "a."], padding=True, return_tensors="pt")).logits.argmax(-1)
    assert said.tolist() == [1, 0]
    empty = written(tmp_path / "empty.jsonl", [{"text": "a"}, {"text": ""}])
    assert run("--model", out, "--data", empty, "--predict") == 2
    assert "empty.jsonl line 2 is empty, and llama reads nothing of it" in capsys.readouterr().err


def test_an_encoder_of_masked_language_modelling_gets_a_pooler_which_a_classifier_must_have(encoder_folder, data, tmp_path, capsys):
    masked, out = tmp_path / "masked", tmp_path / "out"
    AutoModelForMaskedLM.from_pretrained(encoder_folder).save_pretrained(masked)
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(masked)
    assert train(masked, data, out, "--label_column", "sentiment", "--max_steps", 1) == 0
    weights = load_file(out / "model.safetensors")
    del weights["bert.pooler.dense.weight"]
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "manifest.json").unlink()
    assert run("--model", out, "--data", data, "--predict") == 2
    assert "lacks the tensor bert.pooler.dense.weight" in capsys.readouterr().err


def test_a_stopped_run_goes_on_to_the_same_weights(encoder_folder, data, tmp_path, capsys):
    argv = ("--label_column", "sentiment", "--max_steps", 6, "--lr_scheduler_type", "constant", "--warmup_steps", 0, "--save_steps", 3, "--eval_fraction", 0.2)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert run("--model", encoder_folder, "--data", data, "--output_dir", whole, *argv) == 0
    assert run("--model", encoder_folder, "--data", data, "--output_dir", halved, *argv, "--max_steps", 3) == 0
    assert run("--model", encoder_folder, "--data", data, "--output_dir", halved, *argv) == 0
    assert "resume          from" in capsys.readouterr().out
    first, second = (AutoModelForSequenceClassification.from_pretrained(folder).state_dict() for folder in (whole, halved))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_classifier_is_trained_further_and_its_head_begun_anew_where_that_is_asked_for(encoder_folder, data, tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "out"
    assert train(encoder_folder, data, first, "--label_column", "sentiment", "--max_steps", 1, "--labels", "meh", "good", "bad") == 0
    assert train(first, data, out, "--label_column", "sentiment", "--max_steps", 1) == 0
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label == {0: "meh", 1: "good", 2: "bad"}
    other = written(tmp_path / "other.jsonl", [{"text": f"w{i}", "label": "odd" if i % 2 else "even"} for i in range(20)])
    capsys.readouterr()
    assert train(first, other, tmp_path / "no") == 2
    assert "already, of the 3 labels meh, good, bad, and the data has the 2 labels even, odd: --new_head" in capsys.readouterr().err
    assert train(first, data, tmp_path / "no", "--label_column", "score", "--regression") == 2
    assert "leave --multi_label and --regression out" in capsys.readouterr().err
    assert train(first, other, out, "--new_head", "--max_steps", 1, "--resume", "never") == 0
    assert AutoModelForSequenceClassification.from_pretrained(out).config.id2label == {0: "even", 1: "odd"}


@pytest.mark.parametrize(
    ("change", "argv", "told"),
    [
        ({}, [], "data.jsonl line 1: there is no column 'label' among text, sentiment, score, tags: did you mean --label_column sentiment?"),
        ({"sentiment": "good"}, ["--label_column", "sentiment"], "all 120 records have the label 'good': a classifier needs two classes"),
        ({"score": math.nan}, ["--label_column", "score", "--regression"], "data.jsonl line 1: the label is nan"),
        ({}, ["--label_column", "score"], "give --regression"),
        ({}, ["--label_column", "tags"], "give --multi_label"),
        ({}, ["--label_column", "sentiment", "--labels", "good", "bad", "meh", "great"], "no record to train on has the label 'great'"),
        ({}, ["--label_column", "sentiment", "--labels", "good", "bad"], "the label 'meh' is none of those trained on (good, bad)"),
        ({}, ["--label_column", "sentiment", "--pooling", "mean"], "the head of bert reads cls, and its config has no word for mean"),
        ({}, ["--label_column", "sentiment", "--max_length", "40"], "max_length is 40, but the model reads 32 tokens"),
        ({}, ["--label_column", "sentiment", "--multi_label", "--regression"], "two kinds of labels"),
        ({}, ["--label_column", "sentiment", "--class_weights", "awful=2"], "there is no class 'awful'"),
        ({}, ["--label_column", "sentiment", "--output", "x.jsonl"], "add --predict"),
        ({}, ["--label_column", "sentiment", "--eval_samples", "3"], "a classifier writes no answers"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_any_compute(encoder_folder, tmp_path, capsys, monkeypatch, change, argv, told):
    draw = random.Random(0)
    path = written(tmp_path / "data.jsonl", [{**record(draw), **change} for _ in range(150)])
    monkeypatch.chdir(tmp_path)
    assert train(encoder_folder, path, tmp_path / "out", *argv) == 2
    captured = capsys.readouterr()
    assert told in captured.err and len(captured.err.strip().splitlines()[-1:]) == 1 and not (tmp_path / "out").exists()


def test_labels_that_were_not_trained_on_are_refused_where_they_stand(encoder_folder, data, tmp_path, capsys):
    other = written(tmp_path / "held.jsonl", [{"text": "w0", "sentiment": "good"}, {"text": "w1", "sentiment": "awful"}])
    argv = ("--model", encoder_folder, "--data", data, "--eval_data", other, "--output_dir", tmp_path / "out", "--label_column", "sentiment")
    assert run(*argv) == 2
    assert "held.jsonl line 2: the label 'awful' is none of those trained on (bad, good, meh)" in capsys.readouterr().err


def test_a_tokenizer_that_does_not_know_the_language_is_told_of(encoder_folder, tmp_path, capsys):
    """Of five words two."""
    out, records = tmp_path / "out", [{"text": f"{word} w3 영화가 w4 재미있다", "label": label} for label, word in WORDS.items() for _ in range(8)]
    path = written(tmp_path / "data.jsonl", records)
    assert train(encoder_folder, path, out, "--max_steps", 1) == 0
    assert "warning         40% of the tokens are unknown to the model's tokenizer" in capsys.readouterr().out
    assert run("--model", out, "--data", path, "--predict") == 0
    assert "warning         40% of the tokens are unknown" in capsys.readouterr().err


def test_a_plan_alone(encoder_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "sentiment", "--dry_run", "true") == 0
    assert "time            about" in capsys.readouterr().out and not Path(out).exists()


def test_a_model_that_is_no_classifier_predicts_nothing(encoder_folder, data, tmp_path, capsys):
    assert run("--model", encoder_folder, "--data", data, "--predict") == 2
    assert "has no classifier's head: train one by `seodang classify`" in capsys.readouterr().err
    assert run("--model", encoder_folder, "--data", data, "--predict", "--class_weights", "balanced") == 2
    assert "is for training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--max_steps", "3"], "max_steps is for training"),
        (["--output_dir", "x"], "output_dir is for training"),
        (["--threshold", "0.9"], "threshold 0.9 is for several labels, and this is single_label_classification"),
    ],
)
def test_an_option_that_a_prediction_has_no_use_for_is_no_silence(encoder_folder, data, tmp_path, capsys, argv, told):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "sentiment", "--max_steps", 1) == 0
    capsys.readouterr()
    assert run("--model", out, "--data", data, "--predict", *argv) == 2
    assert told in capsys.readouterr().err


def test_empty_texts_are_counted_and_broken_weights_predict_nothing(encoder_folder, data, tmp_path, capsys):
    out, asked = tmp_path / "out", written(tmp_path / "asked.jsonl", [{"text": "w0"}, {"text": " "}])
    assert train(encoder_folder, data, out, "--label_column", "sentiment", "--max_steps", 1) == 0
    capsys.readouterr()
    assert run("--model", out, "--data", asked, "--predict") == 0
    assert "warning         1 texts are empty" in capsys.readouterr().err
    weights = load_file(out / "model.safetensors")
    weights["classifier.weight"][0] = math.nan
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "manifest.json").unlink()
    assert run("--model", out, "--data", asked, "--predict") == 2
    told = capsys.readouterr()
    assert "logits that are no numbers" in told.err and "NaN" not in told.out


def test_an_adapters_own_head_is_not_said_to_be_untrained(encoder_folder, data, tmp_path, caplog):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--label_column", "sentiment", "--max_steps", 1, "--lora_r", 2) == 0
    assert "starts untrained" in caplog.text
    caplog.clear()
    load(out, device="cpu", dtype="float32")
    assert "untrained" not in caplog.text
