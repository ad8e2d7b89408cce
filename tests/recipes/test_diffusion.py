import json

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.infer.runners.paradigm import Diffusion, diffusion_of
from seodang.recipes import diffusion, export, sft
from seodang.train.run.callbacks import read_log
from seodang.train.run.checkpoints import complete_checkpoints

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
MASKED = ["--mask_token", "<|mask|>", "--canvas", "6", "--crop", "false"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"instruction": f"say {letter}", "input": "", "output": letter * 3} for letter in "abcdefgh"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(*argv):
    return diffusion.main([*map(str, argv), *QUICK])


def logged(out, name="loss"):
    return [entry[name] for entry in read_log(out / "log.jsonl") if name in entry]


@pytest.mark.parametrize(
    "more",
    [[], ["--attention", "prompt_causal", "--co_loss", "0.5"], ["--attention", "block_causal", "--block_length", "2", "--co_loss", "0.5"]],
    ids=["bidirectional", "both ways of speaking", "blocks"],
)
def test_a_run_leaves_a_checkpoint_that_fills_in_answers_and_knows_what_it_is(base, data, tmp_path, capsys, more):
    out = tmp_path / "out"
    code = run("--model", base, "--data", data, "--eval_data", data, "--output_dir", out, "--num_train_epochs", 48, "--save_strategy", "no",
               "--eval_strategy", "steps", "--eval_steps", 48, "--complementary", "true", *MASKED, *more)  # fmt: skip
    assert code == 0
    verify(out)
    assert read_manifest(out)["paradigm"] == "diffusion"
    printed = capsys.readouterr().out
    assert "mask token <|mask|> (128)" in printed and "filled up with <|im_end|> to a multiple of 6; the longest spoken has 6" in printed
    model, tokenizer = load(out, device="cpu", dtype="float32")
    attention, block_length = more[1] if more else "bidirectional", 2 if "--block_length" in more else None
    assert diffusion_of(model.config) == Diffusion(128, 1, attention, block_length, autoregressive=bool(more))
    assert tokenizer.mask_token == "<|mask|>" and model.generation_config.eos_token_id == [2]
    prompts = [[{"role": "user", "content": f"say {letter}"}] for letter in "abcdefgh"]
    expected = [letter * 3 for letter in "abcdefgh"]
    assert [result.text for result in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=6))] == expected
    if more:
        assert [result.text for result in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=6, strategy="sampling"))] == expected
        assert logged(out, "eval_autoregressive_loss")[-1] < 0.2
    assert logged(out, "eval_exact")[-1] == 1.0 and logged(out, "eval_loss")[-1] < 0.2 < logged(out, "loss")[0] and len(logged(out, "eval_loss_se")) == 1


def test_from_scratch_nothing_of_the_weights_is_used_and_the_seed_decides(base, data, tmp_path):
    losses = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / name
        (base / "model.safetensors").unlink(missing_ok=True)
        assert run("--model", base, "--data", data, "--output_dir", out, "--max_steps", 2, "--save_strategy", "no", "--scratch", "true", "--seed", seed, *MASKED) == 0
        assert diffusion_of(load(out, device="cpu")[0].config) == Diffusion(128, 0)
        losses.append(logged(out))
    assert losses[0] == losses[1] != losses[2]


def test_a_diffusion_checkpoint_goes_on_and_sft_leaves_it_alone(base, data, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["--data", data, "--max_steps", 2, "--save_strategy", "no", "--canvas", 6]
    assert run("--model", base, "--output_dir", first, *common, "--shift", 0, "--mask_token", "<|mask|>") == 0
    assert run("--model", first, "--output_dir", second, *common) == 0
    assert diffusion_of(load(second, device="cpu")[0].config) == Diffusion(128, 0)
    assert run("--model", first, "--output_dir", second, *common, "--shift", 1) == 2
    assert "shift 1 does not go with this checkpoint" in capsys.readouterr().err
    assert sft.main(["--model", str(first), "--data", str(data), "--output_dir", str(tmp_path / "out"), *QUICK]) == 2
    assert "this model is one of masked diffusion: train it by `seodang diffusion`" in capsys.readouterr().err


def test_an_adapter_is_saved_with_what_it_is_and_export_makes_it_a_model(base, data, tmp_path, capsys):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "> ")
    tokenizer.save_pretrained(base)
    out, merged = tmp_path / "out", tmp_path / "merged"
    command = ["--model", base, "--data", data, "--output_dir", out, "--max_steps", 3, "--save_strategy", "no", "--lora_r", 4]
    assert run(*command, *MASKED) == 2
    assert "is new, and an adapter has no room for its embedding" in capsys.readouterr().err
    assert run(*command, "--mask_token", "<|im_start|>", "--canvas", 6) == 0
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert diffusion_of(load(out, device="cpu")[0].config) == Diffusion(3, 1)
    assert export.main([str(out), str(merged)]) == 0
    model, tokenizer = load(merged, device="cpu", dtype="float32")
    assert diffusion_of(model.config) == Diffusion(3, 1) and tokenizer.mask_token_id == 3
    adapted, _ = load(out, device="cpu", dtype="float32")
    prompt, params = [[{"role": "user", "content": "say c"}]], SamplingParams(max_new_tokens=6)
    assert [each.ids for each in generate(model, tokenizer, prompt, params)] == [each.ids for each in generate(adapted, tokenizer, prompt, params)]


def test_packed_rows_and_a_stream_learn_too_and_a_run_is_resumed_with_the_same_objective_alone(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--model", base, "--data", data, "--mask_token", "<|mask|>", "--lr_scheduler_type", "constant", "--save_steps", 2]
    assert run(*common, "--output_dir", out, "--packing", "true", "--max_length", 64, "--max_steps", 2, "--per_device_train_batch_size", 2) == 0
    resumed = [*common, "--output_dir", out, "--packing", "true", "--max_length", 64, "--max_steps", 4, "--per_device_train_batch_size", 2]
    assert run(*resumed, "--weighting", "cart") == 2
    assert "--weighting one_over_t, now cart" in capsys.readouterr().err
    assert run(*resumed, "--eval_draws", 2) == 0
    assert len(logged(out)) == 4 and complete_checkpoints(out)
    streamed = tmp_path / "streamed"
    assert run(*common, "--output_dir", streamed, "--streaming", "true", "--max_length", 64, "--max_steps", 2) == 0
    assert len(logged(streamed)) == 2


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_batch(base, data, tmp_path, on_two):
    common = ["--model", base, "--data", data, "--max_steps", 3, "--save_strategy", "no", "--complementary", "true", *MASKED, *QUICK]
    on_two("diffusion", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2)
    assert diffusion.main([*map(str, common), "--output_dir", str(tmp_path / "one"), "--per_device_train_batch_size", "4"]) == 0
    assert logged(tmp_path / "one") == pytest.approx(logged(tmp_path / "two"), rel=1e-5)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "the tokenizer has no mask token: name one, --mask_token"),
        (["--mask_token", "<|im_end|>"], "is a token that texts need"),
        (["--mask_token", "<|mask|>", "--attention", "block_causal"], "say of how many tokens, --block_length 4 say"),
        (["--mask_token", "<|mask|>", "--block_length", "4"], "block_length 4 is for attention block_causal"),
        (["--mask_token", "<|mask|>", "--attention", "block_causal", "--block_length", "4", "--canvas", "6"], "canvas 6 is not made of whole blocks"),
        (["--mask_token", "<|mask|>", "--attention", "both"], "there is no attention 'both'"),
        (["--mask_token", "<|mask|>", "--shift", "2"], "shift must be 0 or 1, got 2"),
        (["--mask_token", "<|mask|>", "--end_of_text", "<end>"], "end_of_text '<end>' is no token"),
        (["--mask_token", "<|mask|>", "--schedule", "square"], "there is no schedule 'square'"),
        (["--mask_token", "<|mask|>", "--canvas", "0"], "canvas must be at least 1"),
        (["--maks_token", "<|mask|>"], "did you mean mask_token?"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(base, data, tmp_path, capsys, more, told):
    assert run("--model", base, "--data", data, "--output_dir", tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert [told in line for line in error.splitlines() if line.startswith("error: ")] == [True]
    assert "Traceback" not in error and not (tmp_path / "out").exists()
