"""The three commands from text to controlled text, and what they refuse by name."""

import json
from types import SimpleNamespace

import pytest
import torch

from seodang.infer.diffusion_lm.checkpoint import load_diffusion_lm
from seodang.infer.diffusion_lm.gaussian import path
from seodang.infer.diffusion_lm.sampling import Sampling, sample
from seodang.infer.diffusion_lm.words import ids_of, text_of
from seodang.infer.requests.rng import hashed
from seodang.recipes import dpo, generate, serve, sft
from seodang.recipes.diffusion_lm import diffusion_lm, diffusion_lm_control, diffusion_lm_sample
from seodang.train.run.callbacks import read_log

TINY = ["--hidden_size", "32", "--layers", "1", "--heads", "2", "--embedding_size", "8", "--length", "8", "--diffusion_steps", "40"]
QUICK = ["--learning_rate", "1e-2", "--save_strategy", "no", "--disable_tqdm", "true", "--report_to", "none", "--device", "cpu", "--logging_steps", "5"]
EVAL = ["--eval_strategy", "steps", "--eval_steps", "10"]
RECORDS = [{"line": f"{who} {what} {how}.", "kind": how} for who in ("Lucy", "Leo") for what in ("was", "is") for how in ("old", "new", "red")]


def said(run, *argv):
    return run.main([*map(str, argv)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model's folder, its classifier's and the data's, trained for a moment by the commands."""
    folder = tmp_path_factory.mktemp("diffusion_lm")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS * 2), encoding="utf-8")
    common = ["--data", data, "--columns", "text=line"]
    assert said(diffusion_lm, *common, "--output_dir", folder / "model", "--max_steps", 30, "--eval_fraction", 0.1, "--eval_samples", 2, *EVAL, *TINY, *QUICK) == 0
    control = ["--model", folder / "model", "--output_dir", folder / "control", "--hidden_size", 32, "--layers", 1, "--max_steps", 20, "--eval_fraction", 0.1]
    assert said(diffusion_lm_control, *common, "label=kind", *control, *EVAL, *QUICK) == 0
    return SimpleNamespace(folder=folder, data=data, model=folder / "model", control=folder / "control")


def test_training_logs_its_terms_and_the_loss_falls(trained):
    log = read_log(trained.model / "log.jsonl")
    told = [entry for entry in log if "eval_loss" in entry]
    assert told and told[-1]["eval_loss"] == pytest.approx(sum(told[-1][f"eval_{term}"] for term in ("denoising", "prior", "rounding")))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert "eval_accuracy" in [entry for entry in read_log(trained.control / "log.jsonl") if "eval_loss" in entry][-1]


def test_the_plan_counts_words_and_dry_run_leaves_nothing(trained, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--data", trained.data, "--columns", "text=line", "--output_dir", out, "--min_count", 9, "--dry_run", "true"]
    assert said(diffusion_lm, *argv, *TINY, *QUICK) == 0
    printed = capsys.readouterr().out
    assert "24 read, 24 kept in 24 rows" in printed and "96 words, 24 of them outside the vocabulary" in printed  # old, new and red are 8 each
    assert "40 steps of the sqrt schedule, embeddings of 8 for 8 words" in printed and not out.exists()


def test_texts_are_those_of_their_seeds_whatever_the_batch(trained, capsys):
    printed = []
    for batch in (4, 1):
        assert said(diffusion_lm_sample, trained.model, "--seed", 3, "--batch_size", batch, "--steps", 10, "--device", "cpu") == 0
        printed.append(capsys.readouterr().out)
    model, tokenizer = load_diffusion_lm(trained.model, "cpu")
    found = sample(model, [[None] * 8] * 4, Sampling(10), seeds=[hashed(3, place) >> 1 for place in range(4)])
    assert printed[0] == printed[1] == "".join(text_of(ids, tokenizer) + "\n" for ids in found)


def test_templates_keep_their_words_and_lengths_are_kept(trained, tmp_path):
    output = tmp_path / "out.jsonl"
    assert said(diffusion_lm_sample, trained.model, "_ was _.", "Leo _ _.", "--samples", 2, "--steps", 20, "--output", output, "--device", "cpu") == 0
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(line["template"], line["sample"]) for line in lines] == [("_ was _.", 0), ("_ was _.", 1), ("Leo _ _.", 0), ("Leo _ _.", 1)]
    _, tokenizer = load_diffusion_lm(trained.model, "cpu")
    for line in lines:
        assert " was " in f" {line['text']} " if "was" in line["template"] else line["text"].startswith("Leo")
        assert len(ids_of(line["text"], tokenizer)) == 4  # no blank became an end


def test_steps_are_shown_from_noise_to_the_text(trained, tmp_path, capsys):
    html, png = tmp_path / "steps.html", tmp_path / "steps.png"
    argv = ["--samples", 1, "--steps", 20, "--show_steps", 5, "--html", html, "--png", png, "--device", "cpu"]
    assert said(diffusion_lm_sample, trained.model, "Leo _ _.", *argv) == 0
    *steps, text = capsys.readouterr().out.splitlines()
    points = path(40, 20)[1:]
    assert [line.split()[:2] for line in steps] == [["step", str(points[place])] for place in (0, 5, 10, 14, 19)]
    assert all(line.split()[2] == "Leo" for line in steps)
    assert "".join(steps[-1].split()[2:]).split("[END]")[0] == text.replace(" ", "")
    assert "Leo _ _." in html.read_text(encoding="utf-8") and '"type": "diffusion"' in html.read_text(encoding="utf-8") and png.exists()


def test_controls_change_texts_and_go_together(trained, capsys):
    texts = []
    for more in ([], ["--classifier", trained.control, "--label", "red"], ["--classifier", trained.control, "--label", "red", "--word_at", "1:Leo", "--rate", "0.3"]):
        assert said(diffusion_lm_sample, trained.model, "--words", 4, "--samples", 8, "--steps", 20, "--device", "cpu", *more) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 3
    assert texts[2].count("Leo") > texts[0].count("Leo")


@pytest.mark.parametrize(
    ("argv", "said_"),
    [
        (["--steps", "0"], "steps must be from 1 to 40, those that the model was trained with, got 0"),
        (["--steps", "41"], "steps must be from 1 to 40, those that the model was trained with, got 41"),
        (["--eta", "2"], "eta must be in [0, 1], got 2.0"),
        (["--clamp_from", "41"], "clamp_from must be from 0 to 40"),
        (["--samples", "0"], "samples must be at least 1, got 0"),
        (["a dog _"], "the word 'a' of 'a dog _' is outside the model's vocabulary"),
        (["_ _ _ _ _ _ _ _"], "8 words and their end are longer than the model, which has 8 positions"),
        (["--words", "8"], "8 words and their end are longer than the model"),
        (["--words", "2", "Leo _"], "words 2 is the length of a text without given words"),
        (["--word_at", "3:dog"], "the word 'dog' is outside the model's vocabulary"),
        (["--word_at", "garden"], "word_at takes PLACE:WORD, as 3:garden, got 'garden'"),
        (["Leo _", "--word_at", "1:Lucy"], "word_at 1:Lucy: place 1 is not open in each of the texts"),
        (["--show_steps", "3"], "show_steps shows the steps of one text: give --samples 1"),
        (["--label", "red"], "classifier and label go together"),
        (["--classifier", "CONTROL", "--label", "blue"], "the classifier knows no label 'blue': choose new, old, red"),
        (["--classifier", "MODEL", "--label", "red"], "is a diffusion_lm, and no classifier on latents"),
        (["--rate", "0"], "rate must be above 0, got 0.0"),
    ],
)
def test_sampling_refuses_by_name(trained, capsys, argv, said_):
    places = {"CONTROL": str(trained.control), "MODEL": str(trained.model)}
    assert said(diffusion_lm_sample, trained.model, *(places.get(word, word) for word in argv), "--device", "cpu") == 2
    assert said_ in capsys.readouterr().err


def test_training_refuses_by_name(trained, tmp_path, capsys):
    def refused(run, *argv):
        assert said(run, *argv, "--output_dir", tmp_path / "out", *QUICK) == 2
        return capsys.readouterr().err

    named = ["--data", trained.data, "--columns", "text=line"]
    assert "data.jsonl line 1: 4 words and their end are longer than the model, which has 4 positions" in refused(diffusion_lm, *named, "--length", 4)
    assert "none of the 24 records can be used: 24 x longer than 3 words" in refused(diffusion_lm, *named, "--length", 4, "--too_long", "drop")
    assert "--columns text=COLUMN" in refused(diffusion_lm, "--data", trained.data)
    assert "heads 3" in refused(diffusion_lm, *named, "--hidden_size", 32, "--heads", 3)
    for name in ("diffusion_steps", "min_count", "layers"):
        assert f"{name} must be at least 1, got 0" in refused(diffusion_lm, *named, f"--{name}", 0)
    with_labels = ["--model", trained.model, *named]
    assert "label" in refused(diffusion_lm_control, *with_labels)
    assert "a classifier tells two labels apart or more, got" in refused(diffusion_lm_control, "--data", one_kind(tmp_path), "--model", trained.model)
    assert "hidden_size must be a multiple of 32" in refused(diffusion_lm_control, *with_labels, "label=kind", "--hidden_size", 40)


def one_kind(folder):
    path = folder / "one.jsonl"
    path.write_text(json.dumps({"text": "Leo was old.", "label": 1}) + "\n", encoding="utf-8")
    return path


def test_other_verbs_refuse_such_a_checkpoint_and_sampling_refuses_others(trained, base, declared, tmp_path, capsys):
    model, data = str(trained.model), str(trained.data)
    for run, argv in (
        (generate, [model, "hi"]), (serve, [model]), (sft, ["--model", model, "--data", data, "--output_dir", str(tmp_path / "out")]),
        (dpo, ["--model", model, "--data", data, "--output_dir", str(tmp_path / "out")]),
    ):  # fmt: skip
        assert run.main(argv) == 2
        assert f"{model} is a Diffusion-LM, whose words come out of continuous noise: sample it by `seodang diffusion-lm-sample {model}`" in capsys.readouterr().err
    assert generate.main([str(trained.control), "hi"]) == 2
    assert "is a classifier on a Diffusion-LM's latents: give it to `seodang diffusion-lm-sample`" in capsys.readouterr().err
    assert said(diffusion_lm_sample, base) == 2
    assert "is a llama of text from left to right, and no Diffusion-LM: use `seodang generate`" in capsys.readouterr().err
    assert said(diffusion_lm_sample, declared()) == 2
    assert "is a llama of masked diffusion, and no Diffusion-LM" in capsys.readouterr().err
    assert said(diffusion_lm_sample, trained.control) == 2
    assert "give it to `seodang diffusion-lm-sample` as --classifier" in capsys.readouterr().err


def test_a_run_is_resumed_to_the_bit_and_another_one_refused(trained, tmp_path, capsys):
    def run(folder, *more):
        argv = ["--data", trained.data, "--columns", "text=line", "--output_dir", tmp_path / folder, *TINY, *QUICK, "--lr_scheduler_type", "constant", "--eval_samples", 0]
        return said(diffusion_lm, *argv, *more)

    assert run("whole", "--max_steps", 6) == 0
    assert run("cut", "--max_steps", 3, "--save_strategy", "steps", "--save_steps", 3) == 0
    assert run("cut", "--max_steps", 6) == 0
    whole, cut = (load_diffusion_lm(tmp_path / folder, "cpu")[0] for folder in ("whole", "cut"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), cut.parameters(), strict=True))
    capsys.readouterr()
    assert run("cut", "--max_steps", 9, "--dropout", 0.3) == 2
    assert "--dropout 0.1, now 0.3" in capsys.readouterr().err
