import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from seodang.infer import tag_texts
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import embed, export, serve
from seodang.recipes.tagging import tag
from seodang.train.run.callbacks import read_log

QUICK = ["--learning_rate", "5e-3", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
FIRST, NEXT = {"w0": "PER", "w1": "LOC"}, "w2"  # what begins an entity, and what goes on with one


def sentence(draw):
    """Any words, among them entities: w0 or w1, and as many w2 as follow."""
    tokens, tags = [], []
    while len(tokens) < draw.randint(2, 10):
        if draw.random() < 0.35:
            first, more = draw.choice(list(FIRST)), draw.randint(0, 2)
            tokens += [first, *[NEXT] * more]
            tags += [f"B-{FIRST[first]}", *[f"I-{FIRST[first]}"] * more]
        tokens.append(f"w{draw.randint(3, 49)}")
        tags.append("O")
    return tokens, tags


def conll(path, sentences):
    path.write_text("\n".join("".join(f"{token}\t{tag}\n" for token, tag in zip(*each, strict=True)) for each in sentences), encoding="utf-8")
    return path


def written(path, records):
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    draw = random.Random(0)
    return conll(tmp_path / "data.conll", [sentence(draw) for _ in range(120)])


def run(*argv):
    return tag.main([*map(str, argv), *(QUICK[-4:] if "--predict" in argv else QUICK)])


def train(folder, data, out, *argv):
    return run("--model", folder, "--data", data, "--output_dir", out, "--save_strategy", "no", *argv)


ASKED = "w9 w0 w2 w7 w1 w4"
FOUND = [(3, 8, "PER", "w0 w2"), (12, 14, "LOC", "w1")]


def told(entities):
    return [(each["start"], each["end"], each["label"], each["text"]) for each in entities]


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")  # the pipeline of a tokenizer of whole words
def test_entities_are_learned_and_the_plain_folder_finds_them(encoder_folder, data, tmp_path, capsys):
    out, draw = tmp_path / "out", random.Random(1)
    held = conll(tmp_path / "held.tsv", [sentence(draw) for _ in range(30)])
    assert train(encoder_folder, data, out, "--eval_data", held, "--num_train_epochs", 10, "--eval_strategy", "epoch") == 0
    printed = capsys.readouterr().out
    assert "held out        precision 1.0000, recall 1.0000, f1 1.0000, macro_f1 1.0000 of 30 texts" in printed
    assert "tags            5, a word has one, by its first token" in printed and "LOC        1.000   1.000   1.000" in printed
    verify(out)
    assert read_manifest(out)["paradigm"] == "tagging" and "Held-out entities" in (out / "report.html").read_text()
    scores = [entry["eval_f1"] for entry in read_log(out / "log.jsonl") if "eval_f1" in entry]
    assert scores[-1] == 1.0 and scores[0] < 1.0
    plain = AutoModelForTokenClassification.from_pretrained(out)
    assert plain.config.id2label == {0: "O", 1: "B-LOC", 2: "I-LOC", 3: "B-PER", 4: "I-PER"} and plain.config.label_all_subwords is False
    said = pipeline("token-classification", model=plain, tokenizer=AutoTokenizer.from_pretrained(out), aggregation_strategy="first", device="cpu")(ASKED)
    assert [(each["start"], each["end"], each["entity_group"]) for each in said] == [each[:3] for each in FOUND]

    # what it finds in the lines of a file, and what of it is right
    asked = tmp_path / "asked.txt"
    asked.write_text(f"{ASKED}\n\nw9 w8\n")
    assert run("--model", out, "--data", asked, "--predict", "--output", tmp_path / "found.jsonl") == 0
    assert "texts           2, in which 2 entities were found" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == ["asked.txt line 1", "asked.txt line 3"]
    assert told(lines[0]["entities"]) == FOUND and lines[0]["text"] == ASKED and lines[1]["entities"] == []
    assert [each["score"] for each in lines[0]["entities"]] == pytest.approx([float(each["score"]) for each in said], abs=1e-5)
    assert run("--model", out, "--data", tmp_path / "found.jsonl", "--predict") == 0  # it is data itself
    shown = capsys.readouterr()
    assert "right           precision 1.0000, recall 1.0000, f1 1.0000, macro_f1 1.0000 of 2 texts with entities given" in shown.err
    assert told(json.loads(shown.out.splitlines()[0])["entities"]) == FOUND
    wrong = conll(tmp_path / "wrong.conll", [(ASKED.split(), ["O", "B-PER", "O", "O", "B-LOC", "O"])])
    assert run("--model", out, "--data", wrong, "--predict") == 0
    assert "right           precision 0.5000, recall 0.5000, f1 0.5000, macro_f1 0.5000 of 1 texts" in capsys.readouterr().err


def test_entities_by_characters_are_found_inside_words(tmp_path, encoder_folder, wordpiece, capsys):
    """Of 서울은, which is one word and two tokens, the first is a place; of 수도이다, two tokens too, nothing is."""
    draw, out, base = random.Random(0), tmp_path / "out", encoder_folder
    wordpiece.save_pretrained(base)
    records = []
    for _ in range(100):
        words = [draw.choice(["서울은", "수도이다", "city", "the", "서울"]) for _ in range(draw.randint(1, 5))]
        text, entities, at = " ".join(words), [], 0
        for word in words:
            entities += [{"start": at, "end": at + 2, "label": "LOC"}] * (word[:2] == "서울")
            at += len(word) + 1
        records.append({"text": text, "entities": entities})
    path = written(tmp_path / "data.jsonl", records)
    assert train(base, path, out, "--num_train_epochs", 12, "--eval_fraction", 0.2) == 0
    printed = capsys.readouterr().out
    assert "every token has one" in printed and "f1 1.0000" in printed and "snapped" not in printed
    model, tokenizer = load(out, device="cpu", dtype="float32")
    [found] = tag_texts(model, tokenizer, ["the 서울은 수도이다"])
    assert [(each.start, each.end, each.text) for each in found] == [(4, 6, "서울")]
    # by words the particle belongs to the name, which is said, and measured
    assert train(base, path, tmp_path / "words", "--max_steps", 1, "--eval_fraction", 0.2, "--label_all_subwords", "false") == 0
    printed = capsys.readouterr().out
    assert "entities end inside a token: learned as the whole token" in printed and "of those held out" in printed and "a word has one" in printed


def test_an_adapter_brings_its_tags_and_merges_into_a_plain_folder(encoder_folder, data, tmp_path, capsys):
    out, merged = tmp_path / "out", tmp_path / "merged"
    argv = ("--num_train_epochs", 8, "--lora_r", 4, "--learning_rate", "1e-2", "--label_all_subwords")
    assert train(encoder_folder, data, out, *argv) == 0
    model, tokenizer = load(out, device="cpu", dtype="float32")
    said = tag_texts(model, tokenizer, [ASKED])[0]
    assert [(each.start, each.end, each.label, each.text) for each in said] == FOUND and model.config.label_all_subwords is True
    assert run("--model", out, "--data", written(tmp_path / "a.jsonl", [{"text": ASKED}]), "--predict") == 0
    assert export.main([str(out), str(merged), "--dtype", "float32"]) == 0
    card = (merged / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and 'aggregation_strategy="simple"' in card
    plain, _ = load(merged, device="cpu", dtype="float32")
    assert type(plain).__name__ == "BertForTokenClassification" and plain.config.label_all_subwords is True
    again = tag_texts(plain, tokenizer, [ASKED])[0]
    assert [each.label for each in again] == ["PER", "LOC"] and [each.score for each in again] == pytest.approx([each.score for each in said], abs=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(encoder_folder, data, tmp_path, capsys):
    argv = ("--max_steps", 6, "--lr_scheduler_type", "constant", "--warmup_steps", 0, "--save_steps", 3, "--eval_fraction", 0.2)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert run("--model", encoder_folder, "--data", data, "--output_dir", whole, *argv) == 0
    assert run("--model", encoder_folder, "--data", data, "--output_dir", halved, *argv, "--max_steps", 3) == 0
    assert run("--model", encoder_folder, "--data", data, "--output_dir", halved, *argv) == 0
    assert "resume          from" in capsys.readouterr().out
    first, second = (AutoModelForTokenClassification.from_pretrained(folder).state_dict() for folder in (whole, halved))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_best_checkpoint_is_that_of_the_highest_f1(encoder_folder, data, tmp_path):
    out = tmp_path / "out"
    argv = ("--max_steps", 8, "--save_steps", 2, "--eval_steps", 2, "--eval_strategy", "steps", "--eval_fraction", 0.2, "--load_best_model_at_end", "true", "--lr_scheduler_type", "constant", "--learning_rate", "2e-2")
    assert run("--model", encoder_folder, "--data", data, "--output_dir", out, *argv) == 0
    scores = {entry["step"]: entry["eval_f1"] for entry in read_log(out / "log.jsonl") if "eval_f1" in entry}
    last = max(int(each.name.partition("-")[2]) for each in out.glob("checkpoint-*"))
    state = json.loads((out / f"checkpoint-{last}" / "trainer_state.json").read_text())
    assert state["best_metric"] == max(scores.values()) and int(state["best_model_checkpoint"].rpartition("-")[2]) == max(scores, key=scores.get)


def test_a_tagger_is_trained_further_and_its_head_begun_anew_where_that_is_asked_for(encoder_folder, data, tmp_path, capsys):
    first, out = tmp_path / "first", tmp_path / "out"
    assert train(encoder_folder, data, first, "--max_steps", 1, "--labels", "PER", "LOC") == 0
    assert train(first, data, out, "--max_steps", 1) == 0
    assert AutoModelForTokenClassification.from_pretrained(out).config.id2label == {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    other = conll(tmp_path / "other.conll", [(["w1", "w2"], ["B-ORG", "O"])] * 9)
    capsys.readouterr()
    assert train(first, other, tmp_path / "no") == 2
    assert "the model is a tagger already, of LOC, PER, and the data has entities of ORG: --new_head" in capsys.readouterr().err
    assert train(first, other, out, "--new_head", "--max_steps", 1, "--resume", "never") == 0
    assert AutoModelForTokenClassification.from_pretrained(out).config.id2label == {0: "O", 1: "B-ORG", 2: "I-ORG"}


def test_long_texts_are_read_in_windows_and_counted(encoder_folder, tmp_path, capsys):
    draw = random.Random(0)
    long = [sentence(draw) for _ in range(20)]
    path = conll(tmp_path / "long.conll", [([token for tokens, _ in long for token in tokens], [tag for _, tags in long for tag in tags])] * 3)
    assert train(encoder_folder, path, tmp_path / "out", "--max_steps", 1, "--stride", 8) == 0
    assert "windows         3 texts longer than 32 tokens are read in several" in capsys.readouterr().out
    assert run("--model", tmp_path / "out", "--data", path, "--predict", "--stride", 8, "--output", tmp_path / "f.jsonl") == 0
    assert "windows         3 texts longer than 32 tokens were read in several" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "argv", "told"),
    [
        ("w1\tB-LOC\nw2\n", [], "data.conll line 2: 1 columns, separated by tabs, where lines before it have 2"),
        ("w1\tLOC\nw2\tO\n", [], "data.conll line 1, token 1 ('w1'): 'LOC' is no BIO tag"),
        ("w1\tO\nw2\tI-LOC\nw3\tB-LOC\n\nw1\tB-LOC\n", [], "token 2 ('w2'): the tag I-LOC behind O is not IOB2: mend it, or give --scheme IOB1"),
        ("w1\tO\n", [], "none of the 1 records to train on has an entity"),
        ("w1\tB-LOC\n", ["--labels", "LOC", "PER"], "no record to train on has the label 'PER'"),
        ("w1\tB-LOC\n\nw2\tB-PER\n", ["--labels", "LOC"], "data.conll line 3: the label 'PER' is none of those trained on (LOC)"),
        ("w1\tB-LOC\n", ["--labels", "B-LOC"], "labels are those of entities, as PER, without B- and I-, got 'B-LOC'"),
        ("w1\tB-LOC\n", ["--scheme", "BIO3"], "scheme must be auto, IOB2, IOB1 or BIOES, got 'BIO3'"),
        ("w1\tB-LOC\n", ["--max_length", "40"], "max_length is 40, but the model reads 32 tokens"),
        ("w1\tB-LOC\n", ["--stride", "30"], "max_length 32 leaves nothing beside stride 30 and 2 special tokens"),
        ("w1\tB-LOC\n", ["--output", "x.jsonl"], "add --predict"),
        ("w1\tB-LOC\n", ["--eval_samples", "3"], "a tagger writes no answers"),
        ("w1\tB-LOC\n", ["--eval_data", "{held}", "--metric_for_best_model", "accuracy", "--eval_strategy", "epoch"], "is not measured: an evaluation gives loss, precision, recall, f1, macro_f1"),
        ("w1\tB-LOC\n", ["--eval_data", "{held}"], "held.conll line 1: the label 'ORG' is none of those trained on (LOC)"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_any_compute(encoder_folder, tmp_path, capsys, monkeypatch, lines, argv, told):
    (tmp_path / "data.conll").write_text(lines)
    held = conll(tmp_path / "held.conll", [(["w1"], ["B-ORG"])])
    monkeypatch.chdir(tmp_path)
    assert train(encoder_folder, tmp_path / "data.conll", tmp_path / "out", *(word.format(held=held) for word in argv)) == 2
    captured = capsys.readouterr()
    assert told in captured.err and not (tmp_path / "out").exists()


def test_a_model_that_is_no_tagger_finds_nothing_and_options_of_training_are_no_silence(encoder_folder, data, tmp_path, capsys):
    assert run("--model", encoder_folder, "--data", data, "--predict") == 2
    assert "has no tagger's head: train one by `seodang tag`" in capsys.readouterr().err
    assert run("--model", encoder_folder, "--data", data, "--predict", "--num_train_epochs", 2) == 2
    assert "num_train_epochs is for training" in capsys.readouterr().err
    assert train(encoder_folder, data, tmp_path / "out", "--max_steps", 1) == 0
    other = conll(tmp_path / "other.conll", [(["w1"], ["B-ORG"])])
    assert run("--model", tmp_path / "out", "--data", other, "--predict") == 2
    assert "other.conll line 1: the label 'ORG' is none of the model's (LOC, PER)" in capsys.readouterr().err


def test_a_plan_alone(encoder_folder, data, tmp_path, capsys):
    assert train(encoder_folder, data, tmp_path / "out", "--dry_run", "true") == 0
    printed = capsys.readouterr().out
    assert "entities        " in printed and "time            about" in printed and not Path(tmp_path / "out").exists()


def test_what_a_tagger_cannot_do_is_said_by_what_it_is(encoder_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(encoder_folder, data, out, "--max_steps", 1) == 0
    capsys.readouterr()
    assert serve.main(["--model", str(out), "--device", "cpu"]) == 2 and "it is a tagger (`seodang tag --predict`" in capsys.readouterr().err
    asked = str(written(tmp_path / "a.jsonl", [{"text": "w1 w2"}]))
    assert embed.main(["--model", str(out), "--data", asked, "--column", "text", "--device", "cpu", "--output", str(tmp_path / "v.npy")]) == 0
    assert "is a tagger: its vectors are of states that learned to tell its classes apart" in capsys.readouterr().err
    assert export.main([str(out), str(tmp_path / "again"), "--dtype", "float32"]) == 0
    assert "pipeline_tag: token-classification" in (tmp_path / "again" / "README.md").read_text()
