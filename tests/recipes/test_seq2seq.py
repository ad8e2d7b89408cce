"""seodang seq2seq on a tiny T5: it learns to say which digit a source holds, what it says is measured, and it predicts over a file."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import generate, preview, seq2seq
from seodang.train.run.callbacks import read_log

QUICK = ["--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu", "--lr_scheduler_type", "constant"]


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


def answers_of(folder, prompts, output, *argv):
    code = generate.main([str(folder), "--prompts", str(prompts), "--output", str(output), *map(str, argv), "--dtype", "float32", "--device", "cpu"])
    return code, [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_a_digit_is_learned_and_predicted(t5_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    lengths = ["--max_source_length", 32, "--max_target_length", 16, "--source_prefix", "n: "]
    often = ["--eval_fraction", 0.2, "--eval_strategy", "epoch", "--save_strategy", "epoch", "--metric_for_best_model", "chrf", "--load_best_model_at_end", "true"]
    assert train(t5_folder, data, out, "--scratch", *lengths, *often, "--learning_rate", "5e-3", "--num_train_epochs", 5, "--per_device_train_batch_size", 2) == 0
    printed = capsys.readouterr().out
    assert "160 kept in 160 rows" in printed and "held out        40 records, 16 of them answered greedily at each evaluation" in printed
    assert " rows of " in printed.partition("packing ")[2] and printed.rstrip().endswith(str(out))
    verify(out)
    assert read_manifest(out)["paradigm"] == "seq2seq"
    evaluated = [entry for entry in read_log(out / "log.jsonl") if "eval_exact" in entry]
    assert evaluated[0]["eval_exact"] < 0.9 and evaluated[-1]["eval_exact"] == 1.0 and evaluated[-1]["eval_chrf"] == evaluated[-1]["eval_rouge1"] == 100
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"] and {"eval_bleu", "eval_rouge2", "eval_rougeL", "eval_contains"} <= evaluated[-1].keys()

    # what it predicts over a file, beside what it should say
    draw = random.Random(1)
    asked = [record(draw) for _ in range(8)] + [{"source": "ab3" + "e" * 40, "target": "wrong"}, {"source": "a7"}]
    prompts = written(tmp_path / "asked.jsonl", asked)
    code, lines = answers_of(out, prompts, tmp_path / "said.jsonl", "--references", "--source_prefix", "n: ", "--max_source_length", 32, "--max_new_tokens", 8)
    right = [line["text"] == line["reference"] for line in lines[:9]]
    assert code == 0 and sum(right) >= 6 and [line["reference"] for line in lines] == [each.get("target") for each in asked]
    told = capsys.readouterr()
    assert "truncated       1 of 10 sources are longer than 32 tokens (the longest has 46): of each the end is not read" in told.err
    assert f"references      exact {sum(right) / 9:.3f}, " in told.out and " of 9 answers (1 have no reference)" in told.out
    kept = json.loads((tmp_path / "said.jsonl.metrics.json").read_text())
    assert kept["exact"] == pytest.approx(sum(right) / 9) and kept["rouge1"] == pytest.approx(100 * sum(right) / 9)
    assert (kept["measured"], kept["failed"], kept["without_reference"]) == (9, 0, 1)

    # plain transformers loads the folder, and says the same of padded sources
    plain, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer(["n: " + each["source"] for each in asked[:8]], padding=True, return_tensors="pt")
    said = tokenizer.batch_decode(plain.generate(**ids, max_new_tokens=8, num_beams=1, do_sample=False), skip_special_tokens=True)
    assert said == [line["text"] for line in lines[:8]]


def test_the_longest_source_decides_no_other_answer(t5_folder, tmp_path):
    """Alone, beside a long source, and with it first: the same ids and likelihoods; no -100 and no padding comes out."""
    short, long = {"source": "a7b"}, {"source": "abcde " * 30}
    alone, beside = [
        answers_of(t5_folder, written(tmp_path / f"{n}.jsonl", records), tmp_path / f"{n}.out", "--token_ids", "--logprobs", "--max_new_tokens", 12)[1]
        for n, records in enumerate(([short], [long, short, long]))
    ]
    assert beside[1]["ids"] == alone[0]["ids"] and beside[1]["text"] == alone[0]["text"] and beside[1]["prompt_length"] == alone[0]["prompt_length"]
    assert beside[1]["logprobs"] == pytest.approx(alone[0]["logprobs"], abs=1e-5)
    assert min(id for line in beside for id in line["ids"]) >= 0 and beside[0]["ids"] == beside[2]["ids"]


def test_references_of_every_shape_stand_beside_the_answers(t5_folder, tmp_path, capsys):
    records = [
        {"instruction": "ab", "input": "c", "output": "one"}, {"prompt": "ab", "completion": "two"}, {"source": "ab", "target": "three"},
        {"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "four"}]}, {"translation": {"ko": "나무", "en": "five"}}, "ab",
    ]  # fmt: skip
    prompts = written(tmp_path / "asked.jsonl", records)
    languages = ["--source_lang", "ko", "--target_lang", "en"]
    code, lines = answers_of(t5_folder, prompts, tmp_path / "said.jsonl", "--references", "--max_new_tokens", 2, *languages)
    assert code == 0 and [line["reference"] for line in lines] == ["one", "two", "three", "four", "five", None]
    assert lines[2]["text"] == lines[1]["text"] == lines[5]["text"]  # the same source, whatever shape it stood in
    assert " of 5 answers (1 have no reference)" in capsys.readouterr().out
    assert generate.main([str(t5_folder), "--prompts", str(prompts), "--references", "--max_new_tokens", "2", "--device", "cpu", "--dtype", "float32", *languages]) == 0
    assert " of 5 answers" in capsys.readouterr().err  # printed answers stand alone on stdout


def test_a_record_may_give_the_beginning_of_its_answer(t5_folder, tmp_path, capsys):
    prompts = written(tmp_path / "asked.jsonl", [{"source": "ab", "target": "나무가 a", "prefix": "나무"}, {"source": "ab", "target": "c"}])
    code, lines = answers_of(t5_folder, prompts, tmp_path / "said.jsonl", "--max_new_tokens", 8, "--token_ids")
    assert code == 0 and lines[0]["text"].startswith("나무") and not lines[1]["text"].startswith("나무")
    assert generate.main([str(t5_folder), "--prompts", str(prompts), "--prefix", "a", "--device", "cpu"]) == 2
    assert "line 1 gives the beginning of its answer itself: drop one of them" in capsys.readouterr().err
    assert generate.main(["pupil", "--prompts", str(prompts), "--backend", "openai", "--base_url", "http://127.0.0.1:1/v1"]) == 2
    assert "line 1 gives the beginning of its answer, which is answered with --backend seodang alone" in capsys.readouterr().err


def test_a_run_that_was_killed_goes_on_to_the_same_weights(t5_folder, data, tmp_path):
    out = tmp_path / "out"
    options = ["--learning_rate", "1e-3", "--max_steps", 4, "--save_steps", 2, "--packing", "false", "--per_device_train_batch_size", 2, "--max_source_length", 32, "--max_target_length", 16]
    assert train(t5_folder, data, out, *options) == 0
    whole = load_file(out / "model.safetensors")
    for path in [*out.glob("model*"), out / "checkpoint-4"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train(t5_folder, data, out, *options) == 0
    assert (out / "checkpoint-2").is_dir() and all(torch.equal(whole[name], value) for name, value in load_file(out / "model.safetensors").items())


@pytest.mark.full
def test_two_processes_learn_and_measure_the_same_as_one(t5_folder, data, tmp_path, on_two):
    common = ["--model", t5_folder, "--data", data, "--eval_fraction", 0.2, "--learning_rate", "1e-3", "--max_steps", 3, "--save_strategy", "no"]
    common += ["--eval_strategy", "steps", "--eval_steps", 3, "--max_source_length", 32, "--max_target_length", 16, *QUICK]
    on_two("seq2seq", *map(str, [*common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2]))
    assert seq2seq.main([*map(str, [*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4])]) == 0
    one, two = ([entry for entry in read_log(tmp_path / name / "log.jsonl") if "loss" in entry or "eval_loss" in entry] for name in ("one", "two"))
    for name in ("loss", "eval_loss", "eval_exact", "eval_chrf"):
        assert [entry[name] for entry in two if name in entry] == pytest.approx([entry[name] for entry in one if name in entry], rel=1e-4)


def test_an_adapter_is_trained_on_translations_and_speaks(t5_folder, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"translation": {"ko": "나무", "en": "tree"}}, {"translation": {"ko": "나무가", "en": "a tree"}}])
    languages = ["--source_lang", "ko_KR", "--target_lang", "en"]
    out = tmp_path / "adapter"
    assert train(t5_folder, pairs, out, "--lora_r", 4, "--max_steps", 2, "--save_strategy", "no", *languages) == 0
    assert json.loads((out / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM" and not (out / "model.safetensors").exists()
    code, [line] = answers_of(out, written(tmp_path / "asked.jsonl", [{"source": "나무"}]), tmp_path / "said.jsonl", "--max_new_tokens", 3)
    assert code == 0 and line["error"] is None


@pytest.mark.parametrize(("kind", "languages"), [("m2m_100", ("kor_Hang", "eng_Latn")), ("mbart", ("ko_KR", "en_XX"))])
def test_languages_of_a_translation_checkpoint_are_learned_saved_and_spoken(kind, languages, fresh_tiny, nllb_tokenizer, mbart_tokenizer, tmp_path):
    tokenizer, folder, out = nllb_tokenizer if kind == "m2m_100" else mbart_tokenizer, tmp_path / "base", tmp_path / "out"
    fresh_tiny(kind, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source, target = (language.partition("_")[0] for language in languages)
    pairs = written(tmp_path / "pairs.jsonl", [{"translation": {source: "나무", target: "ab"}}] * 4)
    said = ["--source_lang", languages[0], "--target_lang", languages[1]]
    assert train(folder, pairs, out, "--max_steps", 12, "--save_strategy", "no", "--learning_rate", "1e-2", "--eval_data", pairs, "--eval_strategy", "steps", "--eval_steps", 12, *said) == 0
    spoken, saved = tokenizer.convert_tokens_to_ids(languages[1]), json.loads((out / "generation_config.json").read_text())
    assert saved["forced_bos_token_id" if kind == "m2m_100" else "decoder_start_token_id"] == spoken
    own = AutoTokenizer.from_pretrained(out)
    assert (own.src_lang, own.tgt_lang) == languages
    assert [entry["eval_exact"] for entry in read_log(out / "log.jsonl") if "eval_exact" in entry][-1] == 1.0
    code, [line] = answers_of(out, written(tmp_path / "asked.jsonl", [{"source": "나무"}]), tmp_path / "said.jsonl", "--max_new_tokens", 8, "--token_ids")
    assert code == 0 and line["text"] == "ab" and line["ids"][0] == (spoken if kind == "m2m_100" else tokenizer.convert_tokens_to_ids("▁"))
    ids = own("나무", return_tensors="pt")  # and plain transformers
    assert own.batch_decode(AutoModelForSeq2SeqLM.from_pretrained(out).generate(**ids, max_new_tokens=8), skip_special_tokens=True) == ["ab"]


def test_a_dry_run_prints_the_plan_with_what_the_tokenizer_cannot_say(t5_folder, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "Ω Ψ Φ", "target": "Ω"}, {"source": "abcde" * 8, "target": "a"}, {"source": "a", "target": " "}])
    assert train(t5_folder, pairs, tmp_path / "out", "--dry_run", "--empty_answers", "drop", "--max_source_length", 20) == 0
    printed = capsys.readouterr().out
    assert "dropped         1 x empty answer" in printed and "truncated       1 sources longer than 20 tokens lost their end" in printed
    assert "% of the tokens are unknown to the model's tokenizer" in printed and not (tmp_path / "out").exists()


def test_preview_shows_a_source_what_is_given_and_what_is_learned(t5_folder, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "ab", "target": "나무가", "prefix": "나무"}])
    assert preview.main([str(pairs), "--model", str(t5_folder), "--source_prefix", "n: ", "--html", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    assert "source 5 tokens, target 5, 2 trained" in printed and "4 in sources" not in printed and "5 in sources, 5 in targets, 2 trained (3 are given)" in printed
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    marked = page.partition("<h3>target</h3>")[2]
    assert "가" in marked.partition("<mark>")[2].partition("</mark>")[0] and "나" in marked.partition("<mark>")[0]


@pytest.mark.parametrize(
    ("records", "argv", "told"),
    [
        ([{"source": "", "target": "b"}], [], "pairs.jsonl line 1: the source is empty: fill it in"),
        ([{"source": "a", "target": " "}], [], "pairs.jsonl line 1: the target is empty: fill it in"),
        ([{"source": "a" * 40, "target": "b"}], ["--too_long", "error", "--max_source_length", "16"], "line 1: the source has 42 tokens, more than max_source_length 16"),
        ([{"source": "a", "target": "b"}], ["--too_long", "cut"], "too_long must be truncate, drop or error, got 'cut'"),
        ([{"source": "a", "target": "b"}], ["--target_lang", "en"], "target_lang='en': the tokenizer of this encoder-decoder (T5Tokenizer) has no tokens of languages"),
        ([{"translation": {"ko": "a", "en": "b"}}], [], "say which is read and which is written, by --source_lang and --target_lang"),
        ([{"source": "a", "target": "b"}], ["--scratch", "--lora_r", "4"], "scratch begins from random weights"),
        ([{"source": "a", "target": "b"}], ["--eval_num_beams", "0"], "eval_num_beams must be at least 1, got 0"),
        ([{"source": "a", "target": "b"}], ["--eval_samples", "-1"], "eval_samples must be at least 0, got -1"),
        ([{"source": "a", "target": "b"}], ["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be at least 1, got 0"),
        ([{"source": "a", "target": "b"}], ["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be at least 1, got 0"),
        ([{"source": "a", "target": "b"}], ["--save_steps", "0"], "save_steps must be above 0, got 0"),
        ([{"source": "a", "target": "b"}], ["--learning_rate", "nan"], "learning_rate must be a number, got nan"),
        ([{"source": "a", "target": "b"}], ["--lora_r", "-1"], "lora_r must be at least 1, or 0 to train all weights, got -1"),
        ([{"source": "a", "target": "b"}], ["--lora_r", "4", "--lora_dropout", "2"], "lora_dropout must be in [0, 1), got 2.0"),
        ([{"source": "a", "target": "b"}], ["--lora_r", "4", "--lora_targets", "nope"], "lora_targets: the model has no module nope"),
        (
            [{"source": "a", "target": "b"}] * 2, ["--eval_fraction", "0.5", "--metric_for_best_model", "chrf", "--eval_samples", "0"],
            "metric_for_best_model 'chrf' is not measured: an evaluation gives loss, token_accuracy",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_computed(t5_folder, tmp_path, capsys, records, argv, told):
    assert train(t5_folder, written(tmp_path / "pairs.jsonl", records), tmp_path / "out", *argv) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_decoder_is_sent_to_sft_and_reads_no_sources(base, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "a", "target": "b"}])
    assert train(base, pairs, tmp_path / "out") == 2
    assert "train it by `seodang sft`" in capsys.readouterr().err
    assert generate.main([str(base), "--prompts", str(pairs), "--max_source_length", "8"]) == 2
    assert "max_source_length is for encoder-decoders, and llama is a decoder" in capsys.readouterr().err
    code, [line] = answers_of(base, pairs, tmp_path / "said.jsonl", "--references", "--max_new_tokens", 2)  # a decoder answers it as a user's turn
    assert code == 0 and line["prompt"] == [{"role": "user", "content": "a"}] and line["reference"] == "b"
    sides = written(tmp_path / "sides.jsonl", [{"translation": {"ko": "a", "en": "b"}}])
    code, [other] = answers_of(base, sides, tmp_path / "others.jsonl", "--references", "--max_new_tokens", 2, "--source_lang", "ko", "--target_lang", "en")
    assert code == 0 and other["text"] == line["text"] and other["reference"] == "b"


def test_positions_bound_both_sides(fresh_tiny, t5_tokenizer, tmp_path, capsys):
    folder = tmp_path / "bart"
    fresh_tiny("bart", max_position_embeddings=24, eos_token_id=1, decoder_start_token_id=1).save_pretrained(folder)
    t5_tokenizer.save_pretrained(folder)
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "a" * 40, "target": "b"}, {"source": "a", "target": "b" * 40}, {"source": "a", "target": "b"}])
    assert train(folder, pairs, tmp_path / "out", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "sources longer than 24 tokens lost their end" in printed and "dropped         1 x target longer than max_target_length" in printed
    assert train(folder, pairs, tmp_path / "out", "--max_source_length", 25) == 2
    assert "max_source_length 25 is more than the 24 positions of the encoder: lower it" in capsys.readouterr().err
    code, lines = answers_of(folder, pairs, tmp_path / "said.jsonl", "--max_new_tokens", 2)
    assert code == 2 or lines[0]["error"]  # without an option nothing is cut
    capsys.readouterr()
    code, lines = answers_of(folder, pairs, tmp_path / "cut.jsonl", "--max_new_tokens", 2, "--max_source_length", 24)
    assert code == 0 and lines[0]["prompt_length"] == 24 and "truncated       1 of 3 sources" in capsys.readouterr().err


def test_what_gives_an_answer_no_room_is_not_asked_at_an_evaluation(t5_folder, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "a", "target": "bababa", "prefix": "bab"}, {"source": "a", "target": "b"}])
    for most, count in ((4, 1), (8, 2)):  # "bab" takes the tokens of "▁", "b", "a", "b"
        assert train(t5_folder, pairs, tmp_path / "out", "--eval_data", pairs, "--eval_new_tokens", most, "--dry_run") == 0
        assert f"2 records, {count} of them answered" in capsys.readouterr().out


def test_a_device_that_is_not_here_is_refused(t5_folder, tmp_path, capsys):
    pairs = written(tmp_path / "pairs.jsonl", [{"source": "a", "target": "b"}])
    assert seq2seq.main(["--model", str(t5_folder), "--data", str(pairs), "--output_dir", str(tmp_path / "out"), "--device", "nope"]) == 2
    assert "device 'nope' cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "argv", "references"),
    [
        ([{"source": "ab", "target": "a", "better": "b"}, {"source": "ba", "target": "c", "better": None}], ["--columns", "answer=better"], ["b", None]),
        ([{"q": "ab", "a": "cd"}], ["--columns", "source=q", "answer=a"], ["cd"]),
        ([{"translation": {"ko": "ab"}, "answer": "cd"}], ["--source_lang", "ko", "--columns", "answer=answer"], ["cd"]),
        ([{"source": "ab", "target": 5}], [], ["5"]),
    ],
)
def test_the_reference_of_a_source_is_the_column_that_is_named(t5_folder, tmp_path, records, argv, references):
    code, lines = answers_of(t5_folder, written(tmp_path / "asked.jsonl", records), tmp_path / "said.jsonl", "--references", "--max_new_tokens", 2, *argv)
    assert code == 0 and [line["reference"] for line in lines] == references


@pytest.mark.parametrize("record", [{"source": "ab", "target": ["a", "b"]}, {"prompt": "ab", "completion": ["a", "b"]}])
def test_a_reference_of_several_texts_is_refused(t5_folder, tmp_path, capsys, record):
    asked = written(tmp_path / "asked.jsonl", [record])
    assert generate.main([str(t5_folder), "--prompts", str(asked), "--references"]) == 2
    assert "asked.jsonl line 1: the reference must be one text, got ['a', 'b']" in capsys.readouterr().err


def test_references_that_are_nowhere_or_in_two_columns_are_refused(t5_folder, tmp_path, capsys):
    asked = written(tmp_path / "asked.jsonl", [{"prompt": "ab"}])
    assert generate.main([str(t5_folder), "--prompts", str(asked), "--references"]) == 2
    assert "no prompt has the answer that it should get" in capsys.readouterr().err
    asked = written(tmp_path / "two.jsonl", [{"question": "ab", "answer": "a", "response": "b"}])
    assert generate.main([str(t5_folder), "--prompts", str(asked), "--references"]) == 2
    assert "several columns may hold the reference: answer, response: say which, as --columns answer=answer" in capsys.readouterr().err
