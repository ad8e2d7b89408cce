"""What every stage refuses of a model and its rows alike: too long, beyond the vocabulary, held out or not; and a quantised base made ready."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments
from trl import GRPOConfig, KTOConfig, RewardConfig, RLOOConfig

from seodang.data.chat import end_of_turn_ids
from seodang.data.errors import UserError
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.train.models import adapters
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut, answerable
from seodang.train.run.optimizer import MasterAdamW
from seodang.train.stages.build import check_fits
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.grpo import grpo_trainer, rloo_trainer
from seodang.train.stages.kto import kto_trainer
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.reward import reward_trainer
from seodang.train.stages.sft import StreamedRows, sft_trainer

QUIET = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4, "save_strategy": "no"}
TRLS = {**QUIET, "bf16": False, "activation_checkpointing": False}


def taught(ids):
    return {"input_ids": ids, "labels": [-100, *ids[1:]]}


def ranked(ids):
    return {"prompt_ids": ids[:-1], "branches": [ids[-1:], [41]], "ranks": [0, 1]}


def judged(ids):
    return {"prompt_ids": ids[:-1], "completion_ids": ids[-1:], "label": True}


def asked(ids):
    return {"prompt_ids": ids, "messages": [{"role": "user", "content": "Q"}], "columns": {}}


def rule(completions):
    return [0.0] * len(completions)


SHORT = [[40, 50, 60]] * 4
PPO = PpoSettings(rollouts=16, max_new_tokens=8)
GROUPS = {**TRLS, "num_generations": 2, "max_completion_length": 8}
# by stage: its row of some ids, good rows, its arguments, and its trainer
KINDS = {
    "sft": (taught, list(map(taught, SHORT)), lambda out: TrainingArguments(out, **QUIET), sft_trainer),
    "dpo": (ranked, list(map(ranked, SHORT)), lambda out: TrainingArguments(out, **QUIET), dpo_trainer),
    "reward": (ranked, list(map(ranked, SHORT)), lambda out: RewardConfig(out, **TRLS, max_length=None), reward_trainer),
    "kto": (judged, [*map(judged, SHORT), {**judged([40, 41]), "label": False}], lambda out: KTOConfig(out, **TRLS, max_length=None), kto_trainer),
    "ppo": (
        asked, list(map(asked, SHORT)), lambda out: TrainingArguments(out, **QUIET),
        lambda model, t, rows, args, **how: ppo_trainer(model, t, rows, rule, args, PPO, **how),
    ),
    "grpo": (
        asked, list(map(asked, SHORT)), lambda out: GRPOConfig(out, **GROUPS),
        lambda model, t, rows, args, **how: grpo_trainer(model, t, rows, [rule], args, **how),
    ),
    "rloo": (
        asked, list(map(asked, SHORT)), lambda out: RLOOConfig(out, **GROUPS),
        lambda model, t, rows, args, **how: rloo_trainer(model, t, rows, [rule], args, **how),
    ),
}  # fmt: skip


def with_folder(arguments, trainer):
    return lambda model, tokenizer, rows, out, **how: trainer(model, tokenizer, rows, arguments(out), **how)


STAGES = {name: (row_of, rows, with_folder(arguments, trainer)) for name, (row_of, rows, arguments, trainer) in KINDS.items()}


def model_for(stage, kind="llama", **settings):
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64,
             "pad_token_id": 0}  # fmt: skip
    config = AutoConfig.for_model(kind, **(settings or sizes))
    if stage == "reward":
        config.num_labels = 1
        return AutoModelForSequenceClassification.from_config(config)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_row_too_long_or_beyond_the_vocabulary_is_refused_before_training(stage, held_out, tiny_tokenizer, tmp_path):
    row_of, rows, trainer_of = STAGES[stage]
    for ids, message in (([40] * 100, "100 tokens.* context.* 64"), ([40, 999, 50], "token id 999 is beyond the model's vocabulary of 128")):
        some, held = (rows, [row_of(ids)]) if held_out else ([*rows, row_of(ids)], None)
        with pytest.raises(UserError, match=message):
            trainer_of(model_for(stage), tiny_tokenizer, some, str(tmp_path), eval_rows=held)


@pytest.mark.parametrize("stage", STAGES)
def test_no_rows_are_refused(stage, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="there are no .*: check the data with `seodang preview`"):
        STAGES[stage][2](model_for(stage), tiny_tokenizer, [], str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_a_context_is_read_by_whichever_name_it_has(stage, tiny_tokenizer, tmp_path):
    mpt = {"vocab_size": 128, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64}
    row_of, rows, trainer_of = STAGES[stage]
    with pytest.raises(UserError, match="100 tokens.* context.* 64"):
        trainer_of(model_for(stage, "mpt", **mpt), tiny_tokenizer, [*rows, row_of([40] * 100)], str(tmp_path))


EMPTY = {
    "sft": {"input_ids": [], "labels": []}, "dpo": {"prompt_ids": [40], "branches": [[], [41]], "ranks": [0, 1]},
    "reward": {"prompt_ids": [], "branches": [[50], [41]], "ranks": [0, 1]}, "kto": {"prompt_ids": [40], "completion_ids": [], "label": True},
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_row_is_refused_by_where_it_stands(stage, tiny_tokenizer, tmp_path):
    _, rows, trainer_of = STAGES[stage]
    row = {**EMPTY.get(stage, {"prompt_ids": [], "messages": [], "columns": {}}), "where": "a.jsonl line 7"}
    with pytest.raises(UserError, match="^a.jsonl line 7 has (an empty|no tokens)"):
        trainer_of(model_for(stage), tiny_tokenizer, [*rows, row], str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_adapter_is_refused(stage, tiny_tokenizer, tmp_path):
    _, rows, trainer_of = STAGES[stage]
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS" if stage == "reward" else "CAUSAL_LM")
    with pytest.raises(UserError, match="has an adapter already: merge it first"):
        trainer_of(get_peft_model(model_for(stage), lora), tiny_tokenizer, rows, str(tmp_path), lora=lora)


@pytest.mark.parametrize("stage", STAGES)
def test_a_diffusion_checkpoint_is_refused_by_name(stage, tiny_tokenizer, tmp_path):
    _, rows, trainer_of = STAGES[stage]
    model = model_for(stage)
    declare(model.config, Diffusion(127))
    with pytest.raises(UserError, match=f"^{stage}.* teaches text from left to right, but this model is one of masked diffusion"):
        trainer_of(model, tiny_tokenizer, rows, str(tmp_path))


@pytest.mark.parametrize("stage", STAGES)
def test_the_callers_arguments_stay_as_they_were_and_low_precision_gets_masters(stage, tiny_tokenizer, tmp_path):
    _, rows, arguments, trainer_of = KINDS[stage]
    args = arguments(str(tmp_path))
    before, of_accelerator = {name: copy.copy(value) for name, value in vars(args).items()}, copy.copy(args.accelerator_config)
    trainer = trainer_of(model_for(stage).bfloat16(), tiny_tokenizer, rows, args, eval_rows=rows)
    assert trainer.args.remove_unused_columns is False and trainer.args.accelerator_config.dispatch_batches is False
    assert trainer.optimizer_cls_and_kwargs[0] is MasterAdamW
    changed = {name for name, value in vars(args).items() if value != before[name] and name != "distributed_state"}
    assert changed == set() and args.accelerator_config == of_accelerator


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_rows_may_be_any_sequence(stage, tiny_tokenizer, tmp_path):
    _, rows, trainer_of = STAGES[stage]
    losses = []
    for kind in (list, Dataset.from_list, tuple):
        torch.manual_seed(0)
        losses.append(trainer_of(model_for(stage), tiny_tokenizer, kind(rows), str(tmp_path), eval_rows=kind(rows)).evaluate()["eval_loss"])
    assert losses[0] == losses[1] == losses[2] > 0


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "reward"])
def test_a_policy_is_given_every_id_that_ends_a_turn(stage, tiny_tokenizer, tmp_path):
    _, rows, trainer_of = STAGES[stage]
    model = model_for(stage)
    model.generation_config.eos_token_id = 99
    trainer_of(model, tiny_tokenizer, rows, str(tmp_path))
    assert model.generation_config.eos_token_id == [99, *end_of_turn_ids(tiny_tokenizer)]


def test_a_stream_says_how_long_its_rows_may_be(tiny_tokenizer, tmp_path):
    trainer_of = STAGES["sft"][2]
    with pytest.raises(UserError, match="streamed rows may have 65 tokens, the model's context only 64"):
        trainer_of(model_for("sft"), tiny_tokenizer, StreamedRows(lambda: [], longest=65), str(tmp_path))


def test_held_out_prompts_are_answered_where_there_is_room(tiny_tokenizer):
    questions = [HeldOut([{"role": "user", "content": "Q" * count}], "A") for count in (0, 8, 9, 40)]  # 16 more of the template
    found = list(answerable(questions, tiny_tokenizer, model_for("sft"), max_new_tokens=40))
    assert found == questions[:2]
    AnswerSampler(tiny_tokenizer, found, max_new_tokens=40)(model_for("sft"))
    with pytest.raises(UserError, match="more than the 64 positions"):
        AnswerSampler(tiny_tokenizer, questions[2:3], max_new_tokens=40)(model_for("sft"))


def test_the_row_is_named():
    model = model_for("sft")
    check_fits(model, [("row 1", 64, 127)])
    with pytest.raises(UserError, match="^a.jsonl line 3 has 65 tokens"):
        check_fits(model, [("row 1", 64, 127), ("a.jsonl line 3", 65, 0)])


class Prepared(Exception):
    pass


@pytest.mark.parametrize("stage", STAGES)
def test_a_quantised_base_is_made_ready_for_its_adapter_in_every_stage(stage, tiny_tokenizer, tmp_path, monkeypatch):
    def prepare(model, use_gradient_checkpointing):
        raise Prepared

    monkeypatch.setattr(adapters, "prepare_model_for_kbit_training", prepare)
    _, rows, trainer_of = STAGES[stage]
    model = model_for(stage)
    model.is_quantized = True
    with pytest.raises(Prepared):
        trainer_of(model, tiny_tokenizer, rows, str(tmp_path), lora=LoraConfig(r=2, target_modules="all-linear"))


def test_a_second_stage_on_a_model_computes_in_low_precision_as_the_first_did(fresh_tiny, tiny_tokenizer, tmp_path):
    model, seen = fresh_tiny(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for _ in range(2):
        args = TrainingArguments(tmp_path, **{**QUIET, "bf16": True, "max_steps": 1})
        sft_trainer(model, tiny_tokenizer, list(map(taught, SHORT)), args).train()
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("then", ["sft", "dpo"])
def test_an_adapter_can_be_trained_on(then, fresh_tiny, tiny_tokenizer, tmp_path):
    row, rows, arguments, trainer = KINDS["sft"]
    first = trainer(fresh_tiny(), tiny_tokenizer, rows, TrainingArguments(tmp_path, **QUIET, max_steps=1), lora=LoraConfig(r=2, target_modules=["q_proj"]))
    first.train()
    before = {name: weight.clone() for name, weight in first.model.named_parameters() if weight.requires_grad}
    row, rows, arguments, trainer = KINDS[then]
    trainer(first.model, tiny_tokenizer, rows, TrainingArguments(tmp_path, **QUIET, max_steps=1, learning_rate=1e-2)).train()
    assert before and not all(torch.equal(weight, before[name]) for name, weight in first.model.named_parameters() if name in before)
