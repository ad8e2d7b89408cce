"""What every stage refuses of a model and its rows alike: too long, beyond the vocabulary, held out or not; and a quantised base made ready."""

import pytest
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, TrainingArguments
from trl import GRPOConfig, KTOConfig, RewardConfig, RLOOConfig

from seodang.data.errors import UserError
from seodang.train.models import adapters
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut, answerable
from seodang.train.run.limits import check_fits
from seodang.train.run.stream import StreamedRows
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.grpo import grpo_trainer, rloo_trainer
from seodang.train.stages.kto import kto_trainer
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.reward import reward_trainer
from seodang.train.stages.sft import sft_trainer

QUIET = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 4, "save_strategy": "no"}
TRLS = {**QUIET, "bf16": False, "gradient_checkpointing": False}


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
# by stage: its row of some ids, good rows, and its trainer
STAGES = {
    "sft": (taught, list(map(taught, SHORT)), lambda model, t, rows, out, **how: sft_trainer(model, t, rows, TrainingArguments(out, **QUIET), **how)),
    "dpo": (ranked, list(map(ranked, SHORT)), lambda model, t, rows, out, **how: dpo_trainer(model, t, rows, TrainingArguments(out, **QUIET), **how)),
    "reward": (
        ranked, list(map(ranked, SHORT)), lambda model, t, rows, out, **how: reward_trainer(model, t, rows, RewardConfig(out, **TRLS, max_length=None), **how)
    ),
    "kto": (
        judged, [*map(judged, SHORT), {**judged([40, 41]), "label": False}],
        lambda model, t, rows, out, **how: kto_trainer(model, t, rows, KTOConfig(out, **TRLS, max_length=None), **how),
    ),
    "ppo": (
        asked, list(map(asked, SHORT)),
        lambda model, t, rows, out, **how: ppo_trainer(model, t, rows, rule, TrainingArguments(out, **QUIET), PpoSettings(rollouts=16, max_new_tokens=8), **how),
    ),
    "grpo": (
        asked, list(map(asked, SHORT)),
        lambda model, t, rows, out, **how: grpo_trainer(model, t, rows, [rule], GRPOConfig(out, **TRLS, num_generations=2, max_completion_length=8), **how),
    ),
    "rloo": (
        asked, list(map(asked, SHORT)),
        lambda model, t, rows, out, **how: rloo_trainer(model, t, rows, [rule], RLOOConfig(out, **TRLS, num_generations=2, max_completion_length=8), **how),
    ),
}  # fmt: skip


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


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto"])
def test_a_context_is_read_by_whichever_name_it_has(stage, tiny_tokenizer, tmp_path):
    mpt = {"vocab_size": 128, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64}
    row_of, rows, trainer_of = STAGES[stage]
    with pytest.raises(UserError, match="100 tokens, the model's context only 64: set --max_length 64 or less"):
        trainer_of(model_for(stage, "mpt", **mpt), tiny_tokenizer, [*rows, row_of([40] * 100)], str(tmp_path))


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
