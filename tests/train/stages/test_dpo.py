"""DPO on shared prompts: the loss and gradients of the plain computation, however the batch is cut."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments

from seodang.data.errors import UserError
from seodang.train.maths.preference_losses import LOSSES, PreferenceSettings
from seodang.train.models.extended_forward import restore_forward
from seodang.train.run.callbacks import read_log
from seodang.train.stages.dpo import dpo, dpo_trainer

from ..batch_gradients import gradients

SETTINGS = {
    "sigmoid": {}, "ipo": {}, "hinge": {"beta": 0.5}, "robust": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.1}, "simpo": {"beta": 2.0}, "orpo": {},
}  # fmt: skip


def pair_rows(count=6, seed=0, answers=2):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    ids = lambda n: torch.randint(3, 124, (n,), generator=generator).tolist()
    return [
        {"prompt_ids": ids(draw(3, 9)), "branches": [ids(draw(1, 8)) for _ in range(answers)], "ranks": list(range(answers)), "where": f"row {i}"}
        for i in range(count)
    ]


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


def answer_logprob(model, prompt, answer):
    every = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return every.gather(1, torch.tensor(answer)[:, None]).sum()


def plain_sigmoid_loss(model, reference, rows, beta=0.1):
    """DPO's formula on each answer alone."""
    losses = []
    for row in rows:
        chosen, rejected = (answer_logprob(model, row["prompt_ids"], branch) for branch in row["branches"])
        with torch.no_grad():
            before = [answer_logprob(reference, row["prompt_ids"], branch) for branch in row["branches"]]
        losses.append(-torch.nn.functional.logsigmoid(beta * ((chosen - before[0]) - (rejected - before[1]))))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("reference_time", ["step", "before"])
def test_loss_and_gradients_equal_the_plain_computation(fresh_tiny, tiny_tokenizer, tmp_path, kind, reference_time):
    rows = pair_rows()
    model, reference = fresh_tiny(kind), fresh_tiny(kind)
    trainer = dpo_trainer(model, tiny_tokenizer, rows, arguments(tmp_path), reference_time=reference_time)
    trainer.score_before()
    plain = fresh_tiny(kind)
    with torch.no_grad():
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            step = 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
            p += step  # the policy is no longer its reference
            q += step
    expected = plain_sigmoid_loss(plain, reference, rows)
    expected.backward()
    loss, found = gradients(trainer, trainer.train_dataset)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item() - 0.6931) > 1e-3
    for name, p in plain.named_parameters():
        assert (found[name] - p.grad).abs().max() <= 1e-5 * p.grad.abs().max().clamp_min(1e-6) + 1e-6, name


@pytest.mark.parametrize("loss", ["sigmoid", *(pytest.param(name, marks=pytest.mark.full) for name in LOSSES if name != "sigmoid")])
@pytest.mark.parametrize("lora", [False, True])
def test_accumulating_gradients_changes_nothing(fresh_tiny, tiny_tokenizer, tmp_path, loss, lora):
    """Two steps of six pairs, in one batch, in twos (unequal lengths), one by one; with adapters as well."""
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=True) if lora else None
    weights = []
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        torch.manual_seed(0)
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
        trainer = dpo(fresh_tiny("llama"), tiny_tokenizer, pair_rows(), args, PreferenceSettings(loss=loss, **SETTINGS[loss]), lora=adapter)
        weights.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    if lora:
        moved = [p.abs().max().item() for name, p in weights[0].items() if "lora_B" in name]  # they begin at 0
    else:
        moved = [(weights[0][name] - p).abs().max().item() for name, p in fresh_tiny("llama").named_parameters()]
    assert min(moved) > 1e-4
    for other in weights[1:]:
        for name, p in weights[0].items():
            assert torch.allclose(p, other[name], atol=2e-6), name


def test_every_pair_of_a_ranked_list_counts_as_one(fresh_tiny, tiny_tokenizer, tmp_path):
    """Three answers are three pairs: the loss is that of the three pairs as rows of their own."""
    [row] = pair_rows(1, answers=3)
    split = [
        {**row, "branches": [row["branches"][i], row["branches"][j]], "ranks": [0, 1]} for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    settings = PreferenceSettings(loss="simpo", beta=2.0)
    whole = gradients(dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, [row], arguments(tmp_path), settings), [row])
    apart = gradients(dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, split, arguments(tmp_path), settings), split)
    assert whole[0] == pytest.approx(apart[0], rel=1e-6)
    for name, gradient in whole[1].items():
        assert torch.allclose(gradient, apart[1][name], atol=1e-6), name


def test_with_an_adapter_the_base_is_the_reference_and_there_is_no_second_model(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = pair_rows()
    torch.manual_seed(0)
    trainer = dpo(fresh_tiny("llama"), tiny_tokenizer, rows, arguments(tmp_path, max_steps=5), lora=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert trainer.reference.given is None
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    restore_forward(merged, "branch logprobs")
    merged.set_attn_implementation("eager")
    expected = plain_sigmoid_loss(merged, fresh_tiny("llama"), rows)
    assert trainer.measure(rows)["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert expected < 0.6931


@pytest.mark.parametrize("window", [{"logging_steps": 3}, {"logging_strategy": "epoch"}, {"logging_first_step": True, "logging_steps": 3}])
def test_logged_means_are_over_the_pairs_since_the_last_log(fresh_tiny, tiny_tokenizer, tmp_path, window):
    rows = [*pair_rows(2), *pair_rows(1, seed=1, answers=4)]  # steps of 1, 1 and 6 pairs
    how = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    logs = []
    for name, more in (("fine", {}), ("coarse", window)):
        dpo(fresh_tiny("llama"), tiny_tokenizer, rows, arguments(tmp_path / name, **how, **more))
        logs.append([entry for entry in read_log(tmp_path / name / "log.jsonl") if "loss" in entry])
    fine, coarse = logs
    steps = [entry["step"] for entry in coarse]
    for entry, start in zip(coarse, [0, *steps], strict=False):
        pairs = [1, 1, 6][start : entry["step"]]
        for key in ("rewards/chosen", "rewards/margins", "rewards/accuracies"):
            weighted = sum(count * each[key] for count, each in zip(pairs, fine[start : entry["step"]], strict=True)) / sum(pairs)
            assert entry[key] == pytest.approx(weighted, abs=1e-5), key


@pytest.mark.parametrize("lora", [False, True])
def test_other_rows_are_measured_as_long_as_there_is_a_reference(fresh_tiny, tiny_tokenizer, tmp_path, lora):
    rows, others = pair_rows(6), pair_rows(4, answers=3)
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    found = []
    for reference_time in ("step", "before"):
        torch.manual_seed(0)
        how = {"eval_rows": rows[:2], "lora": adapter, "reference_time": reference_time}
        trainer = dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, rows, arguments(tmp_path, max_steps=3, learning_rate=1e-2), **how)
        assert trainer.measure(others)["loss"] == pytest.approx(0.6931, abs=1e-4)  # before training, whatever the time
        trainer.train()
        found.append(trainer)
    step, before = found
    assert before.measure()["loss"] == pytest.approx(step.measure()["loss"], abs=1e-5)
    assert before.measure(before.train_dataset)["loss"] == pytest.approx(step.measure(rows)["loss"], abs=1e-5) != pytest.approx(0.6931, abs=1e-3)
    if lora:  # the base beneath the adapter is there for good
        assert before.measure(others)["loss"] == pytest.approx(step.measure(others)["loss"], abs=1e-5)
    else:
        with pytest.raises(UserError, match="the reference is let go of: .* set reference_time=\"step\""):
            before.measure(others)


def test_a_copied_reference_stays_as_the_model_was(fresh_tiny, tiny_tokenizer, tmp_path):
    """A policy changed in memory is its own reference, whatever its config's path says, and training does not move it."""
    model = fresh_tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.1
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = dpo(model, tiny_tokenizer, pair_rows(), arguments(tmp_path))
    assert all(torch.equal(p, before[name]) for name, p in trainer.reference.given.named_parameters())
    assert not torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])


def test_training_moves_held_out_accuracy_and_margins_and_logs_them(fresh_tiny, tiny_tokenizer, tmp_path):
    """Answers of letters beat answers of digits, on prompts that were never seen."""
    generator = torch.Generator().manual_seed(1)
    some = lambda low, high, n: torch.randint(low, high, (n,), generator=generator).tolist()
    rows = [{"prompt_ids": some(3, 124, 5), "branches": [some(70, 90, 4), some(20, 30, 4)], "ranks": [0, 1]} for _ in range(48)]
    train, held = rows[:32], rows[32:]
    args = arguments(tmp_path, max_steps=30, per_device_train_batch_size=8, eval_strategy="steps", eval_steps=15)
    trainer = dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, train, args, eval_rows=held)
    before = trainer.measure(held)
    assert before["margin"] == 0 and before["loss"] == pytest.approx(0.6931, abs=1e-4)
    trainer.train()
    after = trainer.measure(held)
    assert after["accuracy"] == 1.0 and after["margin"] > 0.5 and after["loss"] < before["loss"]
    log = read_log(tmp_path / "log.jsonl")
    assert {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= set(log[0])
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry][-1] == 1.0


def test_a_resumed_run_ends_as_one_that_ran_through(fresh_tiny, tiny_tokenizer, tmp_path):
    finals = []
    for cut in (False, True):
        folder = tmp_path / str(cut)
        args = lambda steps: arguments(folder, max_steps=steps, save_strategy="steps", save_steps=2, per_device_train_batch_size=2)
        if cut:
            dpo(fresh_tiny("llama"), tiny_tokenizer, pair_rows(), args(2))
        resume = str(folder / "checkpoint-2") if cut else None
        trainer = dpo(fresh_tiny("llama"), tiny_tokenizer, pair_rows(), args(4), resume=resume)
        finals.append(dict(trainer.model.named_parameters()))
    for name, p in finals[0].items():
        assert torch.equal(p, finals[1][name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [0, 0]}, "no pair of a better and a worse answer"),
        ({"branches": [[5], []]}, "empty prompt or answer"),
        ({"prompt_ids": [5] * 300}, "set --max_length 256"),
        ({"branches": [[5], [128]]}, "beyond the model's vocabulary of 128"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_by_their_place(fresh_tiny, tiny_tokenizer, tmp_path, change, message):
    rows = pair_rows(3)
    rows[1] |= change
    with pytest.raises(UserError, match=f"row 1.*{message}"):
        dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, rows, arguments(tmp_path))


def test_a_reference_with_another_vocabulary_is_refused(fresh_tiny, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="the reference has a vocabulary of 130, the model of 128"):
        dpo_trainer(fresh_tiny("llama"), tiny_tokenizer, pair_rows(), arguments(tmp_path), reference=fresh_tiny("llama", vocab_size=130))


def test_a_loss_that_is_no_number_stops_the_run_by_its_step(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    args = arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=1, learning_rate=1e30)
    with pytest.raises(UserError, match=r"the loss is nan at step \d.*the last checkpoint is intact"):
        dpo(model, tiny_tokenizer, pair_rows(), args)
    assert (tmp_path / "checkpoint-1" / "manifest.json").is_file()
