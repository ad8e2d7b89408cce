import json
import signal
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from seodang.data.chat import prompt_ids
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import export, sft
from seodang.train.run.callbacks import RunLog, read_log
from seodang.train.run.checkpoints import complete_checkpoints
from seodang.train.stages import build

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def base(fresh_tiny, tiny_tokenizer, tmp_path):
    """A tiny model's folder, whose generation config knows no end of turn."""
    folder = tmp_path / "base"
    model = fresh_tiny("llama")
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"instruction": f"say {letter}", "input": "", "output": letter * 3} for letter in "abcdefgh"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(*argv):
    return sft.main([*map(str, argv), *QUICK])


@pytest.mark.painted
def test_a_run_leaves_a_checkpoint_that_answers_and_stops_in_plain_transformers(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", base, "--data", data, "--output_dir", out, "--num_train_epochs", 60, "--save_strategy", "no") == 0
    verify(out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "say c"}], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == prompt_ids(tokenizer, [{"role": "user", "content": "say c"}])
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert said == tokenizer("ccc<|im_end|>")["input_ids"]  # stopped by itself: nothing follows
    log = read_log(out / "log.jsonl")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 60 and losses[-1] < 0.1 < losses[0]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "8 read, 8 kept in 8 rows" in printed and "peak memory" in printed and printed.rstrip().endswith(str(out))


def test_dry_run_prints_the_plan_and_writes_nothing(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", base, "--data", data, "--output_dir", out, "--dry_run", "true", "--per_device_train_batch_size", 2) == 0
    printed = capsys.readouterr().out
    assert "12 steps" in printed  # 8 rows, 2 a step, 3 epochs
    assert "disk" in printed and "time" in printed and "trained" in printed
    assert not list(out.rglob("*.safetensors"))


def test_a_config_file_gives_options_and_the_command_line_wins(base, data, tmp_path):
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    values = {"model": base, "data": [data], "output_dir": str(out), "max_steps": 3, "learning_rate": "1e-3", "save_strategy": "no"}
    config.write_text(yaml.safe_dump(values))
    assert run("--config", config, "--max-steps", "2") == 0
    log = [entry for entry in read_log(out / "log.jsonl") if "loss" in entry]
    assert len(log) == 2 and log[0]["learning_rate"] == 1e-2


def test_evaluation_reports_loss_accuracy_and_exact_match_and_keeps_the_best(base, data, tmp_path):
    out = tmp_path / "out"
    code = run(
        "--model", base, "--data", data, "--eval_data", data, "--output_dir", out, "--num_train_epochs", 40,
        "--save_strategy", "epoch", "--save_total_limit", 1, "--early_stopping_patience", 3,
    )  # fmt: skip
    assert code == 0
    evaluations = [entry for entry in read_log(out / "log.jsonl") if "eval_loss" in entry]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    best = min(evaluations, key=lambda entry: entry["eval_loss"])
    assert best["eval_exact"] == 1.0 and best["eval_token_accuracy"] == 1.0
    assert (out / f"checkpoint-{best['step']}").is_dir() or len(evaluations) == 40


def test_packed_rows_train_to_the_same_answers(base, data, tmp_path):
    out = tmp_path / "out"
    code = run(
        "--model", base, "--data", data, "--output_dir", out, "--num_train_epochs", 60, "--save_strategy", "no",
        "--packing", "true", "--max_length", 256,
    )  # fmt: skip
    assert code == 0
    assert [e["loss"] for e in read_log(out / "log.jsonl") if "loss" in e][-1] < 0.1


def test_streamed_rows_give_the_losses_of_rows_in_memory(base, data, tmp_path):
    streaming = ["--streaming", "true", "--max_length", "256"]
    workers = [*streaming, "--dataloader_num_workers", "2"]
    for name, more in (("memory", ["--train_sampling_strategy", "sequential"]), ("stream", streaming), ("workers", workers)):
        assert run("--model", base, "--data", data, "--output_dir", tmp_path / name, "--max_steps", 4, "--save_strategy", "no", *more,
                   "--per_device_train_batch_size", 3) == 0  # fmt: skip
    losses = [[e["loss"] for e in read_log(tmp_path / name / "log.jsonl") if "loss" in e] for name in ("memory", "stream", "workers")]
    assert len(losses[0]) == 4 and losses[0] == losses[1] == losses[2]


def test_lora_trains_the_adapter_alone_and_export_merges_it(base, data, tmp_path, capsys):
    out, merged = tmp_path / "out", tmp_path / "merged"
    code = run("--model", base, "--data", data, "--output_dir", out, "--num_train_epochs", 60, "--save_strategy", "no", "--lora_r", 8)
    assert code == 0
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert export.main([str(out), str(merged)]) == 0
    assert "largest change of a logit" in capsys.readouterr().out
    from seodang.infer.checkpoint.load import load

    adapted, _ = load(out, device="cpu", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(merged)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.allclose(plain(ids).logits, adapted(ids).logits, atol=1e-4)
    assert not torch.allclose(plain(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits, atol=1e-2)
    assert plain.generation_config.eos_token_id == [2]


def test_an_export_that_was_cut_short_is_done_anew(base, tmp_path, monkeypatch):
    def pressed(*args, **facts):
        raise KeyboardInterrupt

    target = tmp_path / "merged"
    with monkeypatch.context() as patch:
        patch.setattr(export, "publish_into", pressed)
        assert export.main([str(base), str(target)]) == 130
    assert not list(target.iterdir())  # half a model is no use to anybody
    assert export.main([str(base), str(target)]) == 0
    assert (target / "model.safetensors").is_file() and not (target / ".saving").exists()
    assert export.main([str(base), str(target)]) == 2


def test_dora_trains(base, data, tmp_path):
    out = tmp_path / "out"
    assert run("--model", base, "--data", data, "--output_dir", out, "--max_steps", 2, "--lora_r", 4, "--dora", "true", "--save_strategy", "no") == 0
    assert json.loads((out / "adapter_config.json").read_text())["use_dora"] is True


def test_a_resumed_run_goes_on_and_refuses_other_data(base, data, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text())
    arguments = ["--model", base, "--output_dir", out, "--save_steps", 2, "--lr_scheduler_type", "constant"]
    assert run(*arguments, "--data", data, "--max_steps", 2) == 0
    assert run(*arguments, "--data", data, "--max_steps", 4) == 0
    assert [e["step"] for e in read_log(out / "log.jsonl") if "loss" in e] == [1, 2, 3, 4]
    assert read_manifest(out)["options"]["learning_rate"] == 0.01
    for words, told in [(["--data", other], f'--data ["{data}"], now ["{other}"]'), (["--data", data, "--eval_fraction", 0.5], "--eval_fraction 0.0, now 0.5; ")]:
        assert run(*arguments, *words, "--max_steps", 6) == 2
        assert told in capsys.readouterr().err
    assert run(*arguments, "--data", other, "--max_steps", 6, "--allow_changes", "data") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_with_the_shells_exit_code_and_the_same_command_goes_on(base, data, tmp_path, capfd, monkeypatch, number):
    class Signalled(RunLog):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                for _ in range(times):
                    signal.raise_signal(number)

    monkeypatch.setattr(build, "RunLog", Signalled)
    command = ["--model", base, "--data", data, "--output_dir", tmp_path / "out", "--max_steps", 4, "--save_strategy", "no"]
    times = 2
    assert run(*command) == 128 + number
    assert not complete_checkpoints(tmp_path / "out") and "Traceback" not in capfd.readouterr().err
    times = 1
    assert run(*command) == 128 + number
    assert f"step 2 is saved in {tmp_path / 'out' / 'checkpoint-2'}: the same command goes on from there" in capfd.readouterr().err
    assert run(*command) == 0
    assert f"resume          from {tmp_path / 'out' / 'checkpoint-2'}" in capfd.readouterr().out
    assert [e["step"] for e in read_log(tmp_path / "out" / "log.jsonl") if "loss" in e] == [1, 2, 3, 4]


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_batch(base, data, tmp_path, launch):
    """`accelerate launch recipes/sft.py` on two CPU processes: the same mean over the tokens of the whole batch."""
    common = ["--model", base, "--data", data, "--max_steps", 3, "--save_strategy", "steps", "--save_steps", 2]
    launch("sft", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, *QUICK)
    assert run(*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4) == 0
    one, two = ([e["loss"] for e in read_log(tmp_path / name / "log.jsonl") if "loss" in e] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5)
    verify(tmp_path / "two" / "checkpoint-2")
    verify(tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lerning_rate", "1"], "did you mean learning_rate"),
        (["--learning_rate", "much"], "learning_rate"),
        (["--model", "/nowhere/model"], "is not a folder"),
        (["--model", "CONFIG"], "config.json' is a configuration, which has no weights: `seodang pretrain --config_file` builds one by it from nothing, and --dry_run"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--config", "missing.yaml"], "there is no such file"),
        (["--resume", "/nowhere"], "no complete checkpoint"),
        (["--streaming", "true"], "set --max_steps"),
        (["--dora", "true"], "lora_r"),
        (["--eval_fraction", "2"], r"eval_fraction must be in [0, 1), got 2.0"),
        (["--early_stopping_patience", "2"], "give --eval_data or --eval_fraction"),
        (["--train_on", "nobody"], "nobody"),
        (["--dtype", "float31"], "float31"),
        (["--chat_template", "nonesuch"], "nonesuch"),
        (["--max_length", "8"], "no room for the answer"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(base, data, tmp_path, capsys, more, message):
    capsys.readouterr()
    more = [f"{base}/config.json" if word == "CONFIG" else word for word in more]
    assert sft.main(["--model", base, "--data", data, "--output_dir", str(tmp_path / "out"), "--device", "cpu", *more]) == 2
    error = capsys.readouterr().err
    line = [text for text in error.splitlines() if text.startswith("error: ")]
    assert len(line) == 1 and message in line[0], error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no records"),
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', "line 2"),
        ('{"instruction": "a", "output": ""}\n', "line 1"),
        ("{broken\n", "line 1"),
    ],
)
def test_bad_data_names_the_line(base, tmp_path, capsys, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert sft.main(["--model", base, "--data", str(path), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


def test_a_korean_excels_file_trains_once_its_encoding_is_named_and_resumes_with_the_same_columns_alone(base, tmp_path, capsys):
    path, out = tmp_path / "시트.csv", tmp_path / "out"
    path.write_bytes("질의,답변\n서울은?,한국\n부산은?,남쪽\n".encode("cp949"))
    arguments = ["--model", base, "--data", path, "--output_dir", out, "--max_steps", 1, "--lr_scheduler_type", "constant"]
    for words, told in [
        ([], "시트.csv is not UTF-8 text (line 1, byte 1 of it): it looks like cp949"),
        (["--encoding", "cp949"], "시트.csv line 2: no known shape has the keys 질의, 답변: "),
        (["--encoding", "cp949"], "--columns prompt=질의 completion=답변"),
        (["--encoding", "cp949", "--columns", "질의"], "columns takes KEY=COLUMN"),
        (["--encoding", "hangul"], "encoding 'hangul' is not known"),
    ]:
        assert run(*arguments, *words) == 2
        error = capsys.readouterr().err
        assert told in error and "Traceback" not in error
    named = ["--encoding", "cp949", "--columns", "prompt=질의", "completion=답변"]
    assert run(*arguments, *named) == 0
    assert "columns         질의 as prompt, 답변 as completion, in 2 records" in capsys.readouterr().out
    assert run(*arguments[:-3], 2, *arguments[-2:], "--encoding", "cp949", "--columns", "prompt=답변", "completion=질의") == 2
    error = capsys.readouterr().err
    assert '--columns ["prompt=질의", "completion=답변"], now ["prompt=답변", "completion=질의"]' in error


def test_a_row_longer_than_the_models_context_is_refused(fresh_tiny, tiny_tokenizer, data, tmp_path, capsys):
    folder = tmp_path / "short"
    fresh_tiny("llama", max_position_embeddings=16).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    assert run("--model", folder, "--data", data, "--output_dir", tmp_path / "out") == 2
    assert "set --max_length 16" in capsys.readouterr().err
