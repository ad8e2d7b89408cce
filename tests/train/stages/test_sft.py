import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.packing import collate, pack
from seodang.train.attention.packed_attention import PACKED
from seodang.train.run.callbacks import LOG, curves, draw_curve, read_log, terminal_curve
from seodang.train.run.optimizer import MasterAdamW
from seodang.train.stages.build import set_eos_token_ids
from seodang.train.stages.plan import Plan, plan
from seodang.train.stages.sft import choose_collator, sft, sft_trainer


def rows(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 124, (int(torch.randint(6, 14, (1,), generator=generator)),), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return made


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


def test_one_step_equals_the_step_of_a_plain_torch_loop(fresh_tiny, tiny_tokenizer, tmp_path):
    """The recipe's step is AdamW on the mean over all answer tokens, each record alone."""
    ours, plain, data = fresh_tiny("llama"), fresh_tiny("llama"), rows()
    sft(ours, tiny_tokenizer, data, arguments(tmp_path, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    tokens = sum(label != -100 for row in data for label in row["labels"])
    for row in data:
        logits = plain(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        (torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / tokens).backward()
    optimizer.step()
    for (name, p), q in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(p, q[1], atol=1e-4), name


def test_accumulated_steps_equal_one_large_batch(fresh_tiny, tiny_tokenizer, tmp_path):
    models = []
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        model = fresh_tiny("llama")
        sft(model, tiny_tokenizer, rows(), arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps))
        models.append(dict(model.named_parameters()))
    before = dict(fresh_tiny("llama").named_parameters())
    for name, p in models[0].items():
        assert (p - before[name]).abs().max() > 0.01, name
        for other in models[1:]:
            assert torch.allclose(p, other[name], atol=2e-4), name


def test_an_architecture_that_cannot_pack_is_padded_and_trains_the_same(tiny_tokenizer, tmp_path):
    config = AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    collator = choose_collator(model, tiny_tokenizer)
    batch = collator(rows())
    assert batch["input_ids"].shape[0] == 6 and "cu_seq_lens_q" not in batch
    expected = model(**batch).loss.item()  # the architecture's own loss on the padded batch
    trainer = sft(model, tiny_tokenizer, rows(), arguments(tmp_path, max_steps=1))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_layers_that_carry_a_state_never_share_a_sequence(tiny_tokenizer):
    """LFM2's convolutions would run on from one record into the next."""
    config = AutoConfig.for_model(
        "lfm2", vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    batch = choose_collator(model, tiny_tokenizer)(rows())
    assert batch["input_ids"].shape[0] == 6 and model.config._attn_implementation != PACKED


def test_a_packable_architecture_lies_end_to_end(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("qwen3")
    assert choose_collator(model, tiny_tokenizer) is collate
    assert model.config._attn_implementation == PACKED


def test_all_ends_of_turn_are_kept(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    model.generation_config.eos_token_id = [7, 9]
    set_eos_token_ids(model, tiny_tokenizer)
    assert model.generation_config.eos_token_id == [7, 9, tiny_tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no rows to train on"),
        ([{"input_ids": [5] * 300, "labels": [-100] + [5] * 299}], "set --max_length 256"),
        ([{"input_ids": [5, 128], "labels": [-100, 128]}], "token id 128 is beyond the model's vocabulary of 128"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused(fresh_tiny, tiny_tokenizer, tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        sft_trainer(fresh_tiny("llama"), tiny_tokenizer, data, arguments(tmp_path))


def test_masters_keep_updates_that_bfloat16_would_round_away():
    """1 + 1e-3 is 1 in bfloat16; a thousand such steps are not."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [weight]}], lr=1e-3, weight_decay=0.0)
    expected = torch.nn.Parameter(torch.ones(4))
    plain = torch.optim.AdamW([expected], lr=1e-3, weight_decay=0.0)
    for _ in range(100):
        weight.grad, expected.grad = torch.ones(4, dtype=torch.bfloat16), torch.ones(4)
        optimizer.step()
        plain.step()
    assert torch.equal(weight, expected.bfloat16())
    assert weight[0].item() == pytest.approx(0.9, abs=0.004)
    state = optimizer.state_dict()
    other = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    restored = MasterAdamW([{"params": [other]}], lr=1e-3, weight_decay=0.0)
    restored.load_state_dict(state)
    assert torch.equal(restored.pairs[0][1], expected) and torch.equal(other, weight)


@pytest.mark.parametrize("saved_in, loaded_in", [("bfloat16", "float32"), ("float32", "bfloat16"), ("plain", "bfloat16"), ("bfloat16", "float16")])
def test_a_run_goes_on_in_another_dtype_from_the_weights_that_it_had(saved_in, loaded_in):
    def stepped(kind, start):
        weight = torch.nn.Parameter(torch.as_tensor(start, dtype=torch.float32 if kind == "plain" else getattr(torch, kind)))
        make = torch.optim.AdamW if kind == "plain" else MasterAdamW
        return weight, make([{"params": [weight]}], lr=1e-3, weight_decay=0.0)

    weight, optimizer = stepped(saved_in, [1.0, -2.0])
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    exact = torch.tensor([0.997, -2.003])
    there, restored = stepped(loaded_in, weight.tolist())  # as loading the model's weights leaves them
    restored.load_state_dict(optimizer.state_dict())
    kept = torch.finfo(there.dtype).eps if saved_in in ("float32", "plain") else 1e-6  # what was float32 is read rounded
    torch.testing.assert_close(restored.pairs[0][1], exact, rtol=kept, atol=0)
    assert torch.equal(there, restored.pairs[0][1].to(there.dtype))
    assert restored.state_dict()["state"][0]["step"] == 3


def test_the_state_of_other_parameters_is_refused():
    weights = [torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)) for _ in range(2)]
    state = MasterAdamW([{"params": weights}], lr=1e-3).state_dict()
    with pytest.raises(UserError, match="state is of 2 parameters, the model trains 1"):
        MasterAdamW([{"params": weights[:1]}], lr=1e-3).load_state_dict(state)


def test_the_plan_counts_steps_tokens_and_bytes_and_leaves_no_trace(fresh_tiny, tiny_tokenizer, tmp_path):
    model, data = fresh_tiny("llama"), rows(10)
    before = {name: p.clone() for name, p in model.named_parameters()}
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4, save_strategy="epoch", save_total_limit=1)
    trainer = sft_trainer(model, tiny_tokenizer, data, args)
    random_state = torch.random.get_rng_state()
    cost = plan(trainer)
    assert cost.steps == 9  # 3 batches of at most 4 rows an epoch
    assert cost.tokens == pytest.approx(3 * sum(len(row["input_ids"]) for row in data))
    numbers = sum(p.numel() for p in model.parameters())
    assert cost.checkpoint == numbers * (4 + 8) + 16 * 2**20  # weights and two moments
    assert cost.disk == 3 * cost.checkpoint  # one kept, one being written, and the final model
    assert cost.memory > numbers * 16 and cost.seconds > 0
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.painted
def test_curves_come_from_the_log_and_survive_a_line_cut_short(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    assert len(read_log(tmp_path / LOG)) == 3
    assert curves(tmp_path) == {"train": ([1, 2], [3.0, 2.0]), "held out": ([2], [2.5])}
    assert draw_curve(tmp_path).read_bytes().startswith(b"\x89PNG")
    assert "held out" in terminal_curve(tmp_path) and "\x1b" not in terminal_curve(tmp_path)
    assert draw_curve(tmp_path / "empty") is None and terminal_curve(tmp_path / "empty") == ""


def test_generating_while_training_changes_nothing_of_the_training(fresh_tiny, tiny_tokenizer, tmp_path):
    """A run that samples answers at every step ends with the weights of one that does not."""
    from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut

    ends = []
    for sampled in (False, True):
        torch.manual_seed(0)
        model = fresh_tiny("llama", attention_dropout=0.1)
        sample = AnswerSampler(tiny_tokenizer, [HeldOut([{"role": "user", "content": "a"}], "b")], max_new_tokens=5) if sampled else None
        args = arguments(tmp_path, max_steps=4, **({"eval_strategy": "steps", "eval_steps": 1} if sampled else {}))
        trainer = sft(model, tiny_tokenizer, rows(), args, eval_rows=rows(3, seed=1) if sampled else None, sample=sample)
        ends.append(dict(model.named_parameters()))
    assert [e["eval_exact"] for e in trainer.state.log_history if "eval_exact" in e] == [0.0] * 4
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())


def test_held_out_loss_is_the_mean_over_all_tokens_whatever_the_batches(fresh_tiny, tiny_tokenizer, tmp_path):
    held = rows(5, seed=2)
    losses = []
    for size in (1, 2, 5):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        losses.append(sft_trainer(fresh_tiny("gemma2"), tiny_tokenizer, rows(), args, eval_rows=held).evaluate()["eval_loss"])
    model = fresh_tiny("gemma2")
    total = count = 0
    for row in held:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += (labels != -100).sum().item()
    assert losses == pytest.approx([total / count] * 3, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_on_packed_rows_train_alike_with_and_without_checkpointing(fresh_tiny, tiny_tokenizer, tmp_path, dtype):
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        args = arguments(tmp_path, max_steps=3, activation_checkpointing=checkpointing)
        trainer = sft(fresh_tiny("llama").to(dtype), tiny_tokenizer, pack(rows(), 32), args, lora=lora)
        ends.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert ends[0] and all("lora" in name for name in ends[0])
    for name, p in ends[0].items():
        assert torch.allclose(p, ends[1][name], atol=1e-5 if dtype == torch.float32 else 2e-2), name
        assert p.abs().max() > 0, name


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_on_where_it_is_installed(monkeypatch, tmp_path, installed):
    from seodang.recipes.options import training as training_options

    monkeypatch.setattr(training_options.importlib.util, "find_spec", lambda name: installed or None)
    assert training_options.Arguments(str(tmp_path), use_cpu=True).report_to == (["tensorboard"] if installed else [])
    assert training_options.Arguments(str(tmp_path), use_cpu=True, report_to="none").report_to == []


def test_steps_within_minutes_are_as_many_as_fit_and_never_less_than_the_least():
    whole = Plan(rows=1000, tokens=9000, steps=500, memory=0, checkpoint=0, disk=0, step_seconds=0.6, seconds=300)
    assert whole.steps_within(minutes=2.5, least=10) == 250  # half of five minutes
    assert whole.steps_within(minutes=60, least=10) == 500 and whole.steps_within(minutes=0.01, least=200) == 200
    assert whole.steps_within(minutes=0.01, least=900) == 500
