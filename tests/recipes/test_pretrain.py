import copy
import json
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from seldom import full_but
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

from seodang import __main__ as command
from seodang.data.text.rows import held_out
from seodang.data.text.store import token_store
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import generate, mlm, pretrain, tokenizer
from seodang.train.run.callbacks import read_log
from seodang.train.run.checkpoints import complete_checkpoints

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
SMALL = ["--vocab_size", "280", "--hidden_size", "16", "--layers", "1", "--heads", "2", "--max_length", "32", "--per_device_train_batch_size", "2"]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of sixty lines, each of them a document."""
    path, draw = tmp_path_factory.mktemp("text") / "text.txt", random.Random(0)
    words = "선생님 학생 글 배운다 읽는다 writes reads learns 작은 모형 a the little".split()
    path.write_text("".join(" ".join(draw.choices(words, k=draw.randint(2, 12))) + "\n" for _ in range(60)), encoding="utf-8")
    return path


def run(*argv, vocabulary=SMALL[:2]):
    return pretrain.main([*map(str, argv), *vocabulary, *SMALL[2:], *QUICK])


def logged(out, name="loss"):
    return [entry[name] for entry in read_log(out / "log.jsonl") if name in entry]


def test_a_decoder_from_nothing_is_a_plain_checkpoint_that_speaks_from_raw_prompts(text, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--data", text, "--documents", "line", "--eval_fraction", 0.1, "--output_dir", out]
    assert run(*common, "--dry_run", "true") == 0
    planned = capsys.readouterr().out
    assert "documents       60 read, 60 kept" in planned and "vocabulary      280 tokens (BPE)" in planned and "held out        6 documents in " in planned
    assert not (out / "config.json").exists()
    assert run(*common, "--max_steps", 8, "--save_steps", 4, "--sample_tokens", 5, "--sample_prompts", "the", "선생") == 0
    printed = capsys.readouterr().out
    assert "greedy  'the' -> " in printed and "top-p   '선생' -> " in printed
    verify(out)
    assert read_manifest(out)["paradigm"] == "causal" and read_manifest(out)["options"]["hidden_size"] == 16
    bits = logged(out, "eval_bits_per_byte")
    assert len(bits) == 2 and bits[1] < bits[0] < 8
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    spoken = AutoTokenizer.from_pretrained(out)
    assert not loading["missing_keys"] and (model.config.model_type, model.config.tie_word_embeddings, model.config.vocab_size) == ("llama", True, 280)
    assert spoken.chat_template is None and model.generation_config.eos_token_id == [spoken.eos_token_id]
    assert generate.main([str(out), "the little", "--raw", "--max_new_tokens", "4", "--device", "cpu", "--dtype", "float32"]) == 0
    ids = torch.tensor([spoken("the little")["input_ids"]])
    plain = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert capsys.readouterr().out.strip("\n") == spoken.decode(plain, skip_special_tokens=True)


KINDS = {
    "decoder": ["--architecture", "gpt2", "--bpe_dropout", "0.3"],
    "encoder": ["--architecture", "bert", "--kind", "wordpiece", "--vocab_size", "80", "--whole_words", "true"],
    "encoder-decoder": ["--architecture", "t5", "--kind", "unigram", "--vocab_size", "140"],
}


@pytest.mark.parametrize("kind", full_but(("decoder",), KINDS))
def test_a_run_from_nothing_that_was_stopped_goes_on_to_the_bit(text, tmp_path, kind):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    common = [*SMALL, *QUICK, "--data", str(text), "--documents", "line", "--eval_fraction", "0.1", "--lr_scheduler_type", "constant", "--save_steps", "3",
              "--text_cache", str(tmp_path / "cache"), *kind]  # fmt: skip
    assert pretrain.main([*common, "--output_dir", str(whole), "--max_steps", "6"]) == 0
    assert pretrain.main([*common, "--output_dir", str(halves), "--max_steps", "3"]) == 0
    assert pretrain.main([*common, "--output_dir", str(halves), "--max_steps", "6"]) == 0  # learns the same tokenizer anew, and takes the checkpoint up
    assert [path.name for path in complete_checkpoints(halves)] == ["checkpoint-3", "checkpoint-6"]
    kept = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}.get(kind[1], AutoModelForCausalLM)
    first, second = (dict(kept.from_pretrained(out).named_parameters()) for out in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert logged(whole) == logged(halves) and (whole / "tokenizer.json").read_bytes() == (halves / "tokenizer.json").read_bytes()
    assert json.loads((whole / "tokenizer.json").read_text())["model"].get("dropout") is None  # of training text alone


def test_an_encoder_from_nothing_fills_in_masks_and_mlm_goes_on_with_it(text, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--data", text, "--documents", "line", "--eval_fraction", 0.1, "--architecture", "modernbert", "--max_steps", 4, "--output_dir", out, "--save_strategy", "no",
               "--eval_strategy", "steps", "--eval_steps", 4) == 0  # fmt: skip
    assert "hidden          15% of tokens" in capsys.readouterr().out
    model, loading = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and AutoTokenizer.from_pretrained(out).mask_token == "[MASK]" and read_manifest(out)["paradigm"] == "masked"
    assert mlm.main(["--model", str(out), "--data", str(text), "--documents", "line", "--max_steps", "1", "--output_dir", str(tmp_path / "on"), *QUICK]) == 0
    assert pretrain.main(["--model", str(out), "--data", str(text), "--output_dir", str(tmp_path / "no")]) == 2
    assert "is an encoder (modernbert), which learns to fill in masks: go on with it by `seodang mlm" in capsys.readouterr().err
    assert run("--data", text, "--documents", "line", "--max_steps", 1, "--output_dir", tmp_path / "decoder", "--save_strategy", "no") == 0
    assert mlm.main(["--model", str(tmp_path / "decoder"), "--data", str(text), "--output_dir", str(tmp_path / "no")]) == 2
    assert "is a decoder, which reads from left to right and fills in no masks" in capsys.readouterr().err


def test_an_encoder_decoder_from_nothing_fills_in_spans_and_goes_on(text, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    common = ["--data", text, "--documents", "line", "--eval_fraction", 0.1, "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", 15]
    assert run(*common, "--output_dir", out, "--architecture", "t5", "--max_steps", 30, "--noise_density", 0.3, vocabulary=["--vocab_size", "380"]) == 0
    printed = capsys.readouterr().out
    assert "vocabulary      380 tokens (BPE), of them special </s>, <unk>, <pad> and 100 sentinels" in printed
    assert "hidden          30% of tokens, in spans of 3 on average" in printed and printed.count("[") >= 4
    losses = logged(out, "eval_loss")
    assert len(losses) == 2 and losses[1] < losses[0] < 6 and read_manifest(out)["paradigm"] == "seq2seq" and read_manifest(out)["options"]["noise_density"] == 0.3
    verify(out)
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    spoken, settings = AutoTokenizer.from_pretrained(out), model.generation_config
    assert not loading["missing_keys"] and (model.config.model_type, model.config.num_layers, model.config.num_decoder_layers, model.config.d_model) == ("t5", 1, 1, 16)
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id) == (0, [1], 0)
    prompt = "the little <extra_id_0> learns"
    assert generate.main([str(out), prompt, "--raw", "--max_new_tokens", "8", "--device", "cpu", "--dtype", "float32"]) == 0
    ids = torch.tensor([spoken(prompt)["input_ids"]])
    assert spoken.convert_tokens_to_ids("<extra_id_0>") in ids[0].tolist() and ids[0, -1] == spoken.eos_token_id
    plain = model.generate(ids, max_new_tokens=8, do_sample=False)[0, 1:]
    said = capsys.readouterr().out.strip("\n")
    assert said == spoken.decode([id for id in plain.tolist() if id > 1]) and said.startswith("<extra_id_0>")  # whose sentinels are shown
    argv = ["--model", out, "--max_steps", 1, "--output_dir", again, "--max_length", 32, *QUICK, *common]
    assert pretrain.main(list(map(str, argv))) == 0
    assert logged(again)[0] < logged(out)[0] - 1  # begins where the other ended


@pytest.mark.parametrize("name", ["seodang_transformer", "seodang_lstm"])
def test_an_encoder_decoder_of_our_own_from_nothing_is_loaded_spoken_with_and_goes_on(name, text, tmp_path, capsys):
    out, again, file = tmp_path / "out", tmp_path / "again", tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": name, "d_model": 16, "num_layers": 1, "attention": "dot"}))
    sizes = [*SMALL[2:8], "--architecture", name] if name == "seodang_transformer" else ["--config_file", file]
    common = ["--data", text, "--documents", "line", "--eval_fraction", 0.1, "--max_length", 32, "--save_strategy", "no", "--eval_strategy", "steps", *QUICK]
    argv = [*common, *sizes, "--vocab_size", 380, "--output_dir", out, "--max_steps", 20, "--eval_steps", 10]
    assert pretrain.main(list(map(str, argv))) == 0
    printed, losses = capsys.readouterr().out, logged(out, "eval_loss")
    assert ("layout          padded" in printed) is (name == "seodang_lstm") and losses[1] < losses[0] < 6
    model, loading = AutoModelForSeq2SeqLM.from_pretrained(out, output_loading_info=True)
    spoken, config = AutoTokenizer.from_pretrained(out), model.config
    assert not loading["missing_keys"] and (config.model_type, config.d_model, config.num_hidden_layers, config.vocab_size) == (name, 16, 1, 380)
    assert getattr(config, "attention", None) == ("dot" if name == "seodang_lstm" else None)
    assert generate.main([str(out), "the little <extra_id_0> learns", "--raw", "--max_new_tokens", "6", "--device", "cpu", "--dtype", "float32"]) == 0
    plain = model.generate(torch.tensor([spoken("the little <extra_id_0> learns")["input_ids"]]), max_new_tokens=6, do_sample=False)[0, 1:]
    assert capsys.readouterr().out.strip("\n") == spoken.decode([id for id in plain.tolist() if id > 1]).strip("\n")
    assert pretrain.main(list(map(str, [*common, "--model", out, "--max_steps", 1, "--output_dir", again]))) == 0
    assert logged(again)[0] < logged(out)[0] - 0.5  # begins where the other ended


def test_rows_as_long_as_a_decoders_positions_are_trained_on_and_shown(text, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--data", text, "--documents", "file", "--eval_data", text, "--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", 2]
    assert run(*common, "--output_dir", out, "--architecture", "bart", "--noise_density", 0.6, vocabulary=["--vocab_size", "380"]) == 0
    assert capsys.readouterr().out.count(" > ") >= 3
    # of 52 tokens 31 are hidden in 10 spans: 21 + 10 and the end are read, 31 + 11 and the end written; of 53 the input would have 33
    assert AutoConfig.from_pretrained(out).max_position_embeddings == 43


@pytest.mark.parametrize(("kind", "masks"), [("bart", " (BART's kind learns by a mask token instead, which is not taught here)"), ("t5", "")])
def test_an_encoder_decoder_whose_tokenizer_has_no_sentinels_does_not_go_on(kind, masks, text, tmp_path, capsys, text_tokenizer):
    folder = tmp_path / "model"
    set_seed(0)
    sizes = {"t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
             "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}}  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, vocab_size=300, **sizes[kind])).save_pretrained(folder)
    learned = copy.deepcopy(text_tokenizer("wordpiece"))
    if not masks:
        learned.mask_token = None
    learned.save_pretrained(folder)
    assert pretrain.main(["--model", str(folder), "--data", str(text), "--output_dir", str(tmp_path / "out"), *QUICK]) == 2
    assert f"the tokenizer has no sentinels (<extra_id_0>, ...) to stand for hidden spans{masks}: use T5's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_decoder_goes_on_with_plain_text_by_its_own_tokenizer(base, text, tmp_path):
    out = tmp_path / "out"
    argv = ["--model", base, "--data", text, "--documents", "line", "--eval_fraction", "0.1", "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2",
            "--save_strategy", "no", "--output_dir", out, "--max_length", "32", *QUICK]  # fmt: skip
    assert pretrain.main(list(map(str, argv))) == 0
    bits = logged(out, "eval_bits_per_byte")
    assert bits[1] < bits[0] and AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert AutoConfig.from_pretrained(out).hidden_size == AutoConfig.from_pretrained(base).hidden_size


def test_a_tokenizer_by_itself_is_a_folder_that_pretrain_and_transformers_take(text, tmp_path, capsys):
    folder = tmp_path / "tokenizer"
    assert tokenizer.main(["--data", str(text), "--vocab_size", "270", "--output_dir", str(folder)]) == 0
    assert "vocabulary      270 tokens (BPE), of them special <|startoftext|>, <|endoftext|>, <|pad|>" in capsys.readouterr().out
    verify(folder)
    assert len(AutoTokenizer.from_pretrained(folder)) == 270
    out = tmp_path / "out"
    assert run("--data", text, "--tokenizer", folder, "--max_steps", 1, "--output_dir", out, "--save_strategy", "no", vocabulary=()) == 0
    assert AutoConfig.from_pretrained(out).vocab_size == 270
    assert tokenizer.main(["--data", str(text), "--vocab_size", "270", "--output_dir", str(out)]) == 2
    assert "holds a model, whose tokenizer would be lost" in capsys.readouterr().err


def test_what_is_held_out_teaches_the_tokenizer_nothing(tmp_path):
    path = tmp_path / "text.jsonl"
    records = [*({"text": f"쌍쌍{i} abab"} for i in range(20)), *({"text": f"xyxyxyxyxyxyxy{i}"} for i in range(2))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    learned = train_tokenizer([record["text"] for record in records], TokenizerSettings(vocab_size=264))
    store, _ = token_store([str(path)], learned, tmp_path / "cache")
    taken = []
    for seed in range(30):
        texts = pretrain.DocumentTexts([str(path)], documents="file").without_held_out(0.1, seed)
        said = [*texts]
        assert len(said) == 20 and [*texts] == said
        training, _ = held_out(store, 0.1, seed)  # by tokens of whatever tokenizer the same documents are
        assert [learned.decode(store.tokens[store.spans()[i] : store.spans()[i + 1]].tolist()) for i in training] == said
        taken.append(sum("xyxy" in text for text in said))
    assert {0, 1, 2} >= set(taken) and len(set(taken)) > 1  # drawn at random, the same for the same seed


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_documents_without_tokens_do_not_change_which_are_held_out(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{odd}\nab{i} ab\n" for i, odd in enumerate(["\u200b", "\x01\x02", "\ufeff\u200d", "\u2060 ", "\u200b\u200b", "!", " ", "가"])), encoding="utf-8")
    options = TokenizerSettings(kind=kind, vocab_size={"bpe": 260, "wordpiece": 28, "unigram": 124}[kind])
    learned = train_tokenizer(path.read_text(encoding="utf-8").splitlines(), options)
    store, _ = token_store([str(path)], learned, tmp_path / "cache", documents="line")
    assert len(store) == (10 if kind == "wordpiece" else 15)
    for seed in range(10):
        texts = pretrain.DocumentTexts([str(path)], documents="line").without_held_out(0.3, seed, partial(pretrain.says, options))
        training, _ = held_out(store, 0.3, seed)
        said = [learned(text, add_special_tokens=False)["input_ids"] for text in texts if pretrain.says(options, text)]
        assert [store.tokens[store.spans()[i] : store.spans()[i + 1]].tolist() for i in training] == said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hidden_size", "30", "--heads", "4"], "hidden_size 30 cannot be shared out among 4 heads"),
        (["--architecture", "bert", "--hidden_size", "18", "--heads", "4"], "hidden_size 18 cannot be shared out among 4 heads"),
        (["--architecture", "lama"], "architecture 'lama' is not known: did you mean llama?"),
        (["--architecture", "bert", "--family", "decoder"], "the tokenizer has no mask token"),
        (["--vocab_size", "9000"], "vocab_size 9,000: with pairs that come at least 2 times the text gives"),
        (["--vocab_size", "100"], "the 256 bytes and 3 special tokens take 259 alone"),
        (["--lora_r", "4"], "an adapter needs weights beneath that know something"),
        (["--config_file", "nowhere"], "config_file says all of the model: drop hidden_size, or the file"),
        (["--eval_data", "EMPTY"], "there is no text, none of the documents (2) has anything but blanks"),
        (["--data", "EMPTY"], "there is no text to learn a tokenizer from"),
        (["--data", "BINARY"], "holds a NUL byte"),
        (["--eval_fraction", "0.5", "--documents", "file"], "leaves nothing of 1 documents to train on"),
        (["--max_length", "1"], "max_length 1 has no room for text"),
        (["--eval_fraction", "0.1", "--sample_prompts", "the " * 40], "sample_prompts: one of them fills the 32 tokens of a row"),
        (["--sample_prompts", "the"], "sample_prompts are continued at each evaluation, and there is none: give --eval_data or --eval_fraction"),
        (["--architecture", "bert", "--eval_fraction", "0.1", "--sample_prompts", "the"], "sample_prompts are continued by decoders"),
        (["--whole_words", "true"], "whole_words is of encoders, which learn what is hidden, and a decoder is trained"),
        (["--mlm_probability", "0.3"], "mlm_probability is of encoders"),
        (["--tokenizer", "folder", "--bpe_dropout", "0.1"], "vocab_size is of a tokenizer that is learned, and folder brings its own"),
        (["--eval_fraction", "0.1", "--sample_tokens", "-1"], "sample_tokens must be at least 0, got -1"),
        (["--architecture", "t5", "--noise_density", "1.5"], "noise_density must be between 0 and 1, got 1.5"),
        (["--architecture", "t5", "--mean_noise_span_length", "0.5"], "mean_noise_span_length must be at least 1, got 0.5"),
        (["--architecture", "t5", "--mlm_probability", "0.3"], "mlm_probability is of encoders, which learn what is hidden, and an encoder-decoder is trained"),
        (["--noise_density", "0.2"], "noise_density is of encoder-decoders, which learn what is hidden, and a decoder is trained: leave it out, or name an encoder-decoder, --architecture t5"),
        (["--architecture", "t5", "--family", "decoder"], "the tokenizer has no sentinels"),
        (["--architecture", "t5"], "the 256 bytes and 103 special tokens take 359 alone: set --vocab_size 359 or more"),
        (["--architecture", "t5", "--vocab_size", "380", "--max_length", "2"], "max_length 2 has no room for text"),
        (["--architecture", "t5", "--eval_fraction", "0.1", "--sample_prompts", "the"], "sample_prompts are continued by decoders, and an encoder-decoder is trained"),
        (["--architecture", "t5", "--vocab_size", "380", "--documents", "file", "--max_length", "900", "--noise_density", "0.5", "--mean_noise_span_length", "1"], "raise --mean_noise_span_length"),
        (["--architecture", "longt5"], "architecture longt5 is an encoder-decoder, of which these are trained from nothing here: bart, "),
        (["--architecture", "seodang_lstm"], "seodang_lstm has no heads in its config: write a config.json for it, and name it with --config_file"),
        (["--architecture", "seodang_transformer", "--key_value_heads", "1"], "seodang_transformer has as many heads of keys and values as others"),
        (["--num_train_epochs", "0"], "num_train_epochs 0.0: nothing would be trained"),
        (["--limit_alphabet", "50"], "limit_alphabet is of --kind wordpiece"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(argv, message, text, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    argv = [{"EMPTY": str(tmp_path / "empty.txt"), "BINARY": str(tmp_path / "binary.txt")}.get(word, word) for word in argv]
    assert pretrain.main(["--data", str(text), "--documents", "line", *SMALL, *QUICK, "--output_dir", str(tmp_path / "out"), *argv]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_what_a_sample_goes_on_from_ends_with_a_whole_character():
    learned = train_tokenizer(["the the"], TokenizerSettings(vocab_size=261))
    ids = learned("the 가나", add_special_tokens=False)["input_ids"]  # the last two letters of three bytes each
    for cut, kept in ((len(ids), "the 가나"), (len(ids) - 1, "the 가"), (len(ids) - 2, "the 가"), (len(ids) - 4, "the ")):
        assert learned.decode(pretrain.whole_characters(learned, ids[:cut])) == kept
    assert pretrain.whole_characters(learned, ids[-3:-2]) == ids[-3:-2]  # nothing whole: as it is


def test_no_samples_are_written_where_none_are_asked_for():
    rows = SimpleNamespace(store=SimpleNamespace(spans=lambda: np.array([0, 3]), tokens=np.arange(3)), puts=SimpleNamespace(before=()), chosen=np.array([0]), longest=8)
    learned = train_tokenizer(["the the"], TokenizerSettings(vocab_size=261))
    assert pretrain.sampler(pretrain.SampleOptions(), learned, rows, 0, shows=True) is None
    assert pretrain.sampler(pretrain.SampleOptions(), learned, rows, 1, shows=True).beginnings == [[0, 1, 2]]


def test_what_can_be_told_at_once_is(text, tmp_path, capsys):
    assert command.main(["pretrain", "--data", str(tmp_path / "none.txt")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert command.main(["pretrain", "--data", str(text), "--hiden_size", "3"]) == 2
    assert "did you mean hidden_size?" in capsys.readouterr().err
    assert pretrain.main(["--data", str(text), "--config_file", "nowhere"]) == 2
    assert "--config_file nowhere: there is no such file" in capsys.readouterr().err
    assert pretrain.main(["--data", str(text), "--model", "default", "--layers", "2"]) == 2
    assert "layers is of a model from nothing, and --model default has its own" in capsys.readouterr().err
