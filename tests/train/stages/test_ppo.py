"""PPO against a reward: what it samples, how it learns from it, and that it goes on where it stopped."""

import copy
import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import verify
from seodang.train.run.callbacks import read_log
from seodang.train.stages import ppo as stage
from seodang.train.stages.ppo import ppo, ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings


def prompts(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    return [
        {"prompt_ids": torch.randint(40, 120, (draw(3, 9),), generator=generator).tolist(), "messages": [{"role": "user", "content": str(i)}],
         "columns": {"number": i}, "where": f"row {i}"}
        for i in range(count)
    ]  # fmt: skip


def arguments(folder, **changes):
    settings = {"per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


SMALL = {"iterations": 2, "rollouts": 8, "epochs": 2, "minibatches": 2, "max_new_tokens": 6}


def share_of_low_letters(prompts, completions, **columns):
    """How many of an answer's characters are letters of the first half of the alphabet: what a flat policy can find by chance."""
    return [sum(c in "ABCDEFGHIJKLMabcdefghijklm" for c in text) / max(len(text), 1) for text in completions]


def test_the_samplers_log_probabilities_are_those_of_the_training_pass(fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = ppo_trainer(fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters, arguments(tmp_path), PpoSettings(**SMALL, temperature=0.8))
    experience = trainer.experience(prompts(), ("test",))
    assert len({tuple(r.answer_ids) for r in experience.rollouts}) > 6  # they are drawn, each with its own noise
    for rollout, own, reference in zip(experience.rollouts, experience.logprobs, experience.ref_logprobs, strict=True):
        assert own.tolist() == pytest.approx(rollout.logprobs, abs=1e-5)
        assert torch.allclose(own, reference, atol=1e-6)  # before training the policy is its reference
        assert rollout.ended == (rollout.answer_ids[-1] == tiny_tokenizer.eos_token_id)


def test_the_first_update_is_the_policy_gradient_of_the_advantages(fresh_tiny, tiny_tokenizer, tmp_path):
    """At ratio 1, with values of 0 that never learn: the sum over answers of -(score - coefficient * 0) * d log p, by hand."""
    settings = PpoSettings(iterations=1, rollouts=8, epochs=1, minibatches=1, max_new_tokens=6, whiten_advantages=False, lam=1.0, value_coefficient=0.0)
    args = arguments(tmp_path, optim="sgd", learning_rate=1.0, max_grad_norm=0.0)
    model, plain = fresh_tiny("llama"), fresh_tiny("llama")
    trainer = ppo_trainer(model, tiny_tokenizer, prompts(8), share_of_low_letters, args, settings)
    experience = trainer.experience(trainer._rows_of(0), ("rollout", args.seed, 0))
    trainer.train()
    tokens = sum(experience.lengths)
    loss = 0.0
    for rollout, score in zip(experience.rollouts, experience.scores, strict=True):
        prompt, answer = rollout.row["prompt_ids"], rollout.answer_ids
        every = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss = loss - score * every.gather(1, torch.tensor(answer)[:, None]).sum() / tokens
    loss.backward()
    assert max(p.grad.abs().max() for p in plain.parameters()) > 1e-2
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=False):
        assert torch.allclose(p - p.grad, q, atol=1e-5), name


def test_how_a_minibatch_is_cut_changes_nothing(fresh_tiny, tiny_tokenizer, tmp_path):
    models = []
    for size in (4, 2, 1):
        trainer = ppo(
            fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters,
            arguments(tmp_path, per_device_train_batch_size=size, optim="sgd", learning_rate=0.05), PpoSettings(**SMALL, entropy_coefficient=0.01),
        )  # fmt: skip
        models.append(dict(trainer.model.named_parameters()))
    before = dict(fresh_tiny("llama").named_parameters())
    for name, p in models[0].items():
        assert (p - before.get(name, 0)).abs().max() > 1e-3, name  # the critic begins at 0
        for other in models[1:]:
            assert torch.allclose(p, other[name], atol=1e-5), name


LEARN = {"iterations": 20, "rollouts": 32, "epochs": 3, "minibatches": 2, "max_new_tokens": 8, "kl_coefficient": 0.02}


def learned(model, tokenizer, folder, reward, **changes):
    args = arguments(folder, per_device_train_batch_size=16, learning_rate=3e-3)
    trainer = ppo(model, tokenizer, prompts(32), reward, args, PpoSettings(**{**LEARN, **changes}))
    return [entry for entry in read_log(folder / "log.jsonl") if "reward/mean" in entry], trainer


def test_a_rules_reward_rises_and_a_shuffled_one_does_not(fresh_tiny, tiny_tokenizer, tmp_path):
    log, trainer = learned(fresh_tiny("llama"), tiny_tokenizer, tmp_path / "true", share_of_low_letters)
    assert len(log) == LEARN["iterations"]
    assert {"kl", "entropy", "length/mean", "ended", "policy_loss", "value_loss", "clip_fraction", "kl_coefficient", "sampler_gap"} <= set(log[0])
    assert log[0]["kl"] == pytest.approx(0, abs=1e-4) and log[0]["sampler_gap"] < 1e-5
    rule = lambda entries: sum(entry["reward/mean"] for entry in entries) / len(entries)
    assert rule(log[-3:]) > rule(log[:3]) + 0.15
    generator = torch.Generator().manual_seed(0)

    def shuffled(prompts, completions, **columns):
        scores = share_of_low_letters(prompts, completions)
        return [scores[i] for i in torch.randperm(len(scores), generator=generator).tolist()]

    aside, _ = learned(fresh_tiny("llama"), tiny_tokenizer, tmp_path / "shuffled", shuffled)
    assert abs(rule(aside[-3:]) - rule(aside[:3])) < 0.1


def test_an_adapter_trains_against_the_weights_beneath_it(fresh_tiny, tiny_tokenizer, tmp_path):
    base = fresh_tiny("llama")
    before = {name: p.clone() for name, p in base.named_parameters()}
    torch.manual_seed(0)
    trainer = ppo(
        base, tiny_tokenizer, prompts(), share_of_low_letters, arguments(tmp_path, learning_rate=1e-2), PpoSettings(**SMALL),
        lora=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    assert trainer.reference.given is None
    experience = trainer.experience(prompts(4), ("after",))
    plain = fresh_tiny("llama")
    for rollout, reference, own in zip(experience.rollouts, experience.ref_logprobs, experience.logprobs, strict=True):
        prompt, answer = rollout.row["prompt_ids"], rollout.answer_ids
        every = plain(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert torch.allclose(reference, every.gather(1, torch.tensor(answer)[:, None]).squeeze(1), atol=1e-5)
        assert (own - reference).abs().max() > 1e-4
    trainer.save_final()
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "model.safetensors").exists()
    changed = [name for name, p in trainer.policy.named_parameters() if (own := name.replace("base_model.model.", "").replace(".base_layer", "")) in before and not torch.equal(p, before[own])]
    assert not changed


def logged(folder, tokenizer, model, settings, resume=None, **changes):
    """The entries of a run's log that tell of updates, those of several iterations."""
    run = ppo(model, tokenizer, prompts(), share_of_low_letters, arguments(folder, **changes), PpoSettings(**settings), resume=resume)
    return [entry for entry in read_log(folder / "log.jsonl") if "loss" in entry], run


def test_what_is_logged_is_divided_by_what_was_summed(fresh_tiny, tiny_tokenizer, tmp_path):
    """Every entry's parts add up to its loss, and are the means of the finest log's entries over the same updates."""
    settings = {**SMALL, "iterations": 3, "entropy_coefficient": 0.05, "clip_range": 0.01}
    fine, run = logged(tmp_path / "fine", tiny_tokenizer, fresh_tiny("llama"), settings)
    updates = run.settings.updates
    assert [entry["step"] for entry in fine] == [updates, 2 * updates, 3 * updates] and fine[0]["clip_fraction"] > 0.01
    saving = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2}
    stopped, _ = logged(tmp_path / "resumed", tiny_tokenizer, fresh_tiny("llama"), {**settings, "iterations": 1}, **saving)
    assert stopped == []  # its window of two iterations was not over
    resume = str(tmp_path / "resumed" / f"checkpoint-{updates}")
    found = {
        "coarse": logged(tmp_path / "coarse", tiny_tokenizer, fresh_tiny("llama"), settings, logging_steps=2)[0],
        "epoch": logged(tmp_path / "epoch", tiny_tokenizer, fresh_tiny("llama"), settings, logging_strategy="epoch")[0],
        "first": logged(tmp_path / "first", tiny_tokenizer, fresh_tiny("llama"), settings, logging_first_step=True)[0],
        "resumed": logged(tmp_path / "resumed", tiny_tokenizer, fresh_tiny("llama"), settings, resume, **saving)[0],
    }
    windows = {"coarse": [(0, 2)], "epoch": [(0, 3)], "resumed": [(1, 2)]}
    for name, spans in windows.items():
        assert [entry["iteration"] for entry in found[name]] == [end for _, end in spans]
        for entry, (start, end) in zip(found[name], spans, strict=True):
            for key in ("policy_loss", "value_loss", "entropy_loss", "clip_fraction", "reward/mean", "kl", "length/mean", "loss"):
                of_fine = [each[key] for each in fine[start:end]]
                assert entry[key] == pytest.approx(sum(of_fine) / len(of_fine), abs=1e-4), (name, key)
    assert [entry["step"] for entry in found["first"]] == [1, updates, 2 * updates, 3 * updates]
    assert [entry["iteration"] for entry in found["first"]] == [1, 1, 2, 3]
    assert ["reward/mean" in entry for entry in found["first"]] == [True, False, True, True]  # an iteration's answers are told once
    first, second = found["first"][:2]
    assert (first["policy_loss"] + (updates - 1) * second["policy_loss"]) / updates == pytest.approx(fine[0]["policy_loss"], abs=1e-5)
    for entry in [*fine, *(entry for entries in found.values() for entry in entries)]:
        parts = entry["policy_loss"] + 0.1 * entry["value_loss"] + 0.05 * entry["entropy_loss"]
        assert parts == pytest.approx(entry["loss"], abs=1e-5) and 0 <= entry["clip_fraction"] <= 1
    assert logged(tmp_path / "none", tiny_tokenizer, fresh_tiny("llama"), {**settings, "iterations": 1}, logging_strategy="no")[0] == []


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_ends_as_one_that_ran_through(fresh_tiny, tiny_tokenizer, tmp_path, lora):
    """Weights, critic and the adaptive coefficient, bit for bit."""
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    finals = []
    for cut in (False, True):
        folder = tmp_path / str(cut)

        def run(iterations, resume=None):
            torch.manual_seed(0)
            settings = PpoSettings(**{**SMALL, "iterations": iterations}, kl_target=0.1, kl_horizon=100)
            args = arguments(folder, save_strategy="steps", save_steps=1, seed=3)
            return ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters, args, settings, lora=adapter, resume=resume)

        if cut:
            run(1)
        trainer = run(3, str(folder / "checkpoint-4") if cut else None)
        finals.append((dict(trainer.policy.named_parameters()), trainer.kl.coefficient))
    assert finals[0][1] == finals[1][1] != 0.05
    for name, p in finals[0][0].items():
        assert torch.equal(p, finals[1][0][name]), name


def test_the_final_folder_is_a_plain_checkpoint(fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters, arguments(tmp_path, save_strategy="steps", save_steps=1), PpoSettings(**SMALL))
    trainer.save_final()
    verify(tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not (tmp_path / "critic").exists() and (tmp_path / "checkpoint-4" / "critic" / "critic.safetensors").is_file()
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2]
    ids = torch.tensor([[50, 60, 70]])
    model.set_attn_implementation("eager")
    assert torch.allclose(model(ids).logits, trainer.policy(ids).logits, atol=1e-5)


def test_a_value_model_of_its_own_learns_the_returns(fresh_tiny, tiny_tokenizer, tmp_path):
    config = copy.deepcopy(fresh_tiny("llama").config)
    config.num_labels = 1
    torch.manual_seed(0)
    value_model = AutoModelForSequenceClassification.from_config(config)
    before = value_model.model.layers[0].mlp.up_proj.weight.clone()
    settings = PpoSettings(**{**SMALL, "iterations": 8}, value_coefficient=1.0, value_clip_range=10.0)
    constant = lambda prompts, completions, **columns: [1.0] * len(completions)
    args = arguments(tmp_path, learning_rate=3e-3)
    trainer = ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), constant, args, settings, value_model=value_model)
    assert not torch.equal(value_model.model.layers[0].mlp.up_proj.weight, before)
    losses = [entry["value_loss"] for entry in read_log(tmp_path / "log.jsonl") if "value_loss" in entry]
    assert losses[-1] < 0.3 * losses[0]
    values = torch.cat(trainer.experience(prompts(4), ("after",)).values)
    assert values.mean().item() == pytest.approx(1.0, abs=0.3)


def test_evaluation_answers_held_out_prompts_with_the_same_noise_each_time(fresh_tiny, tiny_tokenizer, tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer = ppo_trainer(fresh_tiny("llama"), tiny_tokenizer, prompts(8), share_of_low_letters, args, PpoSettings(**SMALL), eval_rows=prompts(6, seed=5))
    first = trainer.evaluate()
    assert first == trainer.evaluate() and first["eval_kl"] == pytest.approx(0, abs=1e-4)
    trainer.train()
    assert len([entry for entry in read_log(tmp_path / "log.jsonl") if "eval_reward" in entry]) >= 2


def test_each_loss_is_clipped_by_its_own_range_and_the_coefficient_follows_the_kl_that_is_charged(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    ranges = {}
    for name in ("policy_loss", "value_loss"):
        own = getattr(stage, name)
        monkeypatch.setattr(stage, name, lambda *some, own=own, name=name: ranges.setdefault(name, set()).add(some[4]) or own(*some))
    settings = PpoSettings(**{**SMALL, "iterations": 3}, clip_range=0.1, value_clip_range=0.3, kl_target=0.02, kl_horizon=100)
    ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters, arguments(tmp_path, optim="sgd", learning_rate=0.05, seed=2), settings)
    assert ranges == {"policy_loss": {0.1}, "value_loss": {0.3}}
    log = [entry for entry in read_log(tmp_path / "log.jsonl") if "kl_coefficient" in entry]
    for now, later in zip(log, log[1:]):
        error = min(max(now["kl"] / 0.02 - 1, -0.2), 0.2)
        assert later["kl_coefficient"] == pytest.approx(now["kl_coefficient"] * (1 + error * 8 / 100), rel=1e-6)
    assert log[1]["kl"] < 0.02 < log[1]["kl_k3"]  # by the other estimator the coefficient would have moved elsewhere


def test_columns_of_the_records_reach_the_reward(fresh_tiny, tiny_tokenizer, tmp_path):
    seen = []

    def reward(prompts, completions, number):
        seen.extend(zip([prompt[0]["content"] for prompt in prompts], number, strict=True))
        return [0.0] * len(completions)

    ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(8), reward, arguments(tmp_path), PpoSettings(**{**SMALL, "iterations": 1}))
    assert sorted(seen) == [(str(i), i) for i in range(8)]  # every prompt once


@pytest.mark.parametrize(
    ("scores", "message"), [([0.0] * 7, "7 .* 8|8 .* 7"), ([float("nan")] + [0.0] * 7, "nan")]
)
def test_a_reward_that_is_no_number_or_of_the_wrong_count_is_refused(fresh_tiny, tiny_tokenizer, tmp_path, scores, message):
    with pytest.raises(UserError, match=message):
        ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), lambda prompts, completions, **columns: scores, arguments(tmp_path), PpoSettings(**SMALL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": 9}, "rollouts 9 cannot be cut into 2 equal minibatches"),
        ({"rollouts": 12, "minibatches": 2}, "a minibatch of 6 answers cannot be cut"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of k1, k2, k3, got 'k4'"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"max_new_tokens": 250}, "more than the model's context of 256"),
        ({"kl_target": 1.0, "kl_horizon": 1.0}, "kl_horizon 1.0 is too short"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_sampled(fresh_tiny, tiny_tokenizer, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        rows = [{**row, "prompt_ids": row["prompt_ids"] + [50] * 4} for row in prompts()]
        ppo_trainer(fresh_tiny("llama"), tiny_tokenizer, rows, share_of_low_letters, arguments(tmp_path), PpoSettings(**{**SMALL, **settings}))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(fresh_tiny, tiny_tokenizer, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:  # the second iteration has spoken, its last update is to come
                model.get_input_embeddings().weight.data.fill_(float("nan"))

    args = arguments(tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(UserError, match="the loss is nan at step 4.*the last checkpoint is intact"):
        ppo(fresh_tiny("llama"), tiny_tokenizer, prompts(), share_of_low_letters, args, PpoSettings(**{**SMALL, "epochs": 1}), callbacks=[Spoil()])
    assert [each.name for each in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    verify(tmp_path / "checkpoint-2")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    for (name, p), q in zip(kept.named_parameters(), fresh_tiny("llama").parameters(), strict=True):
        assert p.isfinite().all() and not torch.equal(p, q), name
