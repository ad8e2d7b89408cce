"""What every stage promises: a run that a signal stopped goes on as if it had not, and measuring changes nothing of what is learned."""

import random
import signal

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments
from trl import GRPOConfig, KTOConfig, RewardConfig, RLOOConfig

from seodang.train.rollouts import rollout
from seodang.train.run.checkpoints import find_resume
from seodang.train.stages import grpo as groups
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.grpo import grpo_trainer, rloo_trainer
from seodang.train.stages.kto import kto_trainer
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.reward import reward_trainer
from seodang.train.stages.sft import sft_trainer

QUIET = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-2, "seed": 1,
         "lr_scheduler_type": "constant", "logging_strategy": "no", "num_train_epochs": 3, "per_device_eval_batch_size": 4}  # fmt: skip
TWO_STEPS_AN_EPOCH = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
GROUPS = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 6, "temperature": 2.0, "num_train_epochs": 2}


def noisy(fresh_tiny):
    """A model whose dropout draws at every step."""
    return fresh_tiny("llama", attention_dropout=0.1, num_hidden_layers=1)


def ids(count, low, high, seed):
    generator = random.Random(seed)
    return [[generator.randrange(4, 120) for _ in range(generator.randrange(low, high))] for _ in range(count)]


def ranked(count=8):
    return [{"prompt_ids": p, "branches": [a, b], "ranks": [0, 1]} for p, a, b in zip(ids(count, 2, 5, 0), ids(count, 3, 6, 1), ids(count, 3, 6, 2), strict=True)]


def asked(count=8):
    return [{"prompt_ids": p, "messages": [{"role": "user", "content": str(number)}], "columns": {}} for number, p in enumerate(ids(count, 2, 5, 0))]


def sft(fresh_tiny, tokenizer, folder, held, changes):
    rows = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids(8, 4, 9, 0)]
    args = TrainingArguments(str(folder), **{**QUIET, **TWO_STEPS_AN_EPOCH, **changes})
    return sft_trainer(noisy(fresh_tiny), tokenizer, rows, args, eval_rows=rows[:4] if held else None)


def reward(fresh_tiny, tokenizer, folder, held, changes):
    config = noisy(fresh_tiny).config
    config.num_labels = 1
    torch.manual_seed(0)
    args = RewardConfig(str(folder), **{**QUIET, **TWO_STEPS_AN_EPOCH, **changes})
    return reward_trainer(AutoModelForSequenceClassification.from_config(config), tokenizer, ranked(), args, eval_rows=ranked(4) if held else None)


def dpo(fresh_tiny, tokenizer, folder, held, changes):
    args = TrainingArguments(str(folder), **{**QUIET, **TWO_STEPS_AN_EPOCH, **changes})
    return dpo_trainer(noisy(fresh_tiny), tokenizer, ranked(), args, eval_rows=ranked(4) if held else None)


def kto(fresh_tiny, tokenizer, folder, held, changes):
    rows = [{"prompt_ids": p, "completion_ids": a, "label": number % 2 == 0} for number, (p, a) in enumerate(zip(ids(8, 2, 5, 0), ids(8, 3, 6, 1), strict=True))]
    args = KTOConfig(str(folder), **{**QUIET, **TWO_STEPS_AN_EPOCH, **changes})
    return kto_trainer(noisy(fresh_tiny), tokenizer, rows, args, eval_rows=rows[:4] if held else None)


def ppo(fresh_tiny, tokenizer, folder, held, changes):
    settings = PpoSettings(iterations=3, rollouts=4, epochs=1, minibatches=2, max_new_tokens=6, temperature=2.0, kl_target=0.1, kl_horizon=1000.0)
    args = TrainingArguments(str(folder), **{**QUIET, "per_device_train_batch_size": 2, **changes})
    return ppo_trainer(noisy(fresh_tiny), tokenizer, asked(), letters, args, settings, eval_rows=asked(4) if held else None)


def grpo(fresh_tiny, tokenizer, folder, held, changes):
    args = GRPOConfig(str(folder), **{**QUIET, **GROUPS, **changes})
    return grpo_trainer(noisy(fresh_tiny), tokenizer, asked(), [letters], args, eval_rows=asked(4) if held else None)


def rloo(fresh_tiny, tokenizer, folder, held, changes):
    args = RLOOConfig(str(folder), **{**QUIET, **GROUPS, **changes})
    return rloo_trainer(noisy(fresh_tiny), tokenizer, asked(), [letters], args, eval_rows=asked(4) if held else None)


def letters(prompts, completions, **columns):
    return [float(sum(map(str.isalpha, text))) for text in completions]


class StopAt(TrainerCallback):
    """Ctrl-C when a step ends."""

    def __init__(self, step):
        self.on_step_end = lambda args, state, control, **kwargs: signal.raise_signal(signal.SIGINT) if state.global_step == step else None


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


TWICE, PARTS = {"num_iterations": 2}, {"steps_per_generation": 2}
FOLLOWED = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}
RESUMED = [
    (sft, 3, {"train_sampling_strategy": "group_by_length"}), (reward, 5, {}), (dpo, 3, {}), (kto, 3, {}), (kto, 5, FOLLOWED), (ppo, 3, {}), (ppo, 4, {}),
    (grpo, 5, {}), (grpo, 3, TWICE), (grpo, 7, {**TWICE, **PARTS}), (grpo, 5, FOLLOWED), (rloo, 5, PARTS),
]  # fmt: skip


@pytest.mark.parametrize(("stage", "step", "changes"), RESUMED, ids=lambda value: getattr(value, "__name__", None))
def test_a_resumed_run_ends_in_the_weights_of_the_uninterrupted_one(stage, step, changes, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    def trainer(folder):
        return stage(fresh_tiny, tiny_tokenizer, tmp_path / folder, False, {"save_strategy": "no", **changes})

    whole = trainer("whole")
    before = weights(whole)
    whole.train()
    stopped = trainer("stopped")
    stopped.add_callback(StopAt(step))
    with pytest.raises(KeyboardInterrupt, match=f"step {step} is saved"):
        stopped.train()
    assert stopped.state.global_step == step < whole.state.global_step
    resumed, warned = trainer("stopped"), []
    monkeypatch.setattr(transformers.trainer.logger, "warning", warned.append)
    resumed.train(resume_from_checkpoint=str(find_resume(tmp_path / "stopped", "auto")))
    assert resumed.state.global_step == whole.state.global_step
    assert not equal(before, weights(whole)) and not equal(weights(stopped), weights(whole))
    assert equal(weights(resumed), weights(whole))
    assert not [line for line in warned if "keys" in line]  # of weights that were missing or unexpected


@pytest.mark.parametrize(("stage", "step"), [(ppo, 4), (grpo, 5)], ids=lambda value: getattr(value, "__name__", None))
def test_rollouts_are_left_at_once_and_begun_anew_by_the_run_that_goes_on(stage, step, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    def trainer(folder):
        return stage(fresh_tiny, tiny_tokenizer, tmp_path / folder, False, {"save_strategy": "no"})

    whole = trainer("whole")
    whole.train()
    stopped, home = trainer("stopped"), {ppo: rollout, grpo: groups}[stage]
    generate = home.generate

    def interrupted(*args, **kwargs):
        if stopped.state.global_step == step:
            torch.rand(3)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on sampling")
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"step {step} is saved"):
        patch.setattr(home, "generate", interrupted)
        stopped.train()
    resumed = trainer("stopped")
    resumed.train(resume_from_checkpoint=str(find_resume(tmp_path / "stopped", "auto")))
    assert equal(weights(resumed), weights(whole))


MEASURED = [(sft, {}), (reward, {}), (dpo, {}), (kto, {}), (ppo, {}), (grpo, PARTS), (rloo, PARTS)]


@pytest.mark.parametrize(("stage", "changes"), MEASURED, ids=lambda value: getattr(value, "__name__", None))
def test_measuring_changes_no_weight(stage, changes, fresh_tiny, tiny_tokenizer, tmp_path):
    changes = {"save_strategy": "no", "num_train_epochs": 1, **changes}
    silent = stage(fresh_tiny, tiny_tokenizer, tmp_path / "silent", False, changes)
    silent.train()
    measured = stage(fresh_tiny, tiny_tokenizer, tmp_path / "measured", True, {**changes, "eval_strategy": "steps", "eval_steps": 1})
    measured.evaluate()
    measured.train()
    assert sum("eval_runtime" in entry or "eval_loss" in entry or "eval_reward" in entry for entry in measured.state.log_history) > 1
    assert equal(weights(measured), weights(silent))
