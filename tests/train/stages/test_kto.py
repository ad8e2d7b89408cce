"""KTO on trl's trainer: trl's own loss on our ids, our reference, and what is refused."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import KTOConfig, KTOTrainer

from seodang.data.conversation import Conversation
from seodang.data.errors import UserError
from seodang.train.stages.kto import kto, kto_trainer, mismatched, weight_advice

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "activation_checkpointing": False, "save_strategy": "no", "logging_steps": 1,
         "disable_tqdm": True, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_length": None}  # fmt: skip
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def records():
    """Eight questions, each with a good answer in capitals and a bad one in small letters."""
    return [([{"role": "user", "content": f"say {a}"}], {"role": "assistant", "content": said}, good)
            for a in "abcdefgh" for said, good in ((a.upper() * 3, True), (a * 4, False))]  # fmt: skip


def rows_of(tokenizer):
    turns = [(Conversation(tokenizer, [*prompt, answer]).turn(prompt, answer), good) for prompt, answer, good in records()]
    return [{"prompt_ids": turn.prompt_ids, "completion_ids": turn.answer_ids, "label": good} for turn, good in turns]


def settings(folder, **changes):
    return KTOConfig(str(folder), **{**QUIET, **changes})


def test_answers_are_mismatched_within_their_batch():
    assert mismatched([[1], [2], [3], [4], [5], [6]], 3) == [[3], [1], [2], [6], [4], [5]]
    assert mismatched([[1], [2], [3]], 2) == [[2], [1], [2]]  # the last batch has one: its neighbour lends it an answer
    assert mismatched([[1]], 2) == [[1]]


@pytest.mark.parametrize("adapter", [False, True])
def test_our_rows_give_the_loss_of_trls_own_trainer_on_the_same_conversations(adapter, fresh_tiny, tiny_tokenizer, tmp_path):
    fresh_tiny("llama").save_pretrained(tmp_path / "base")
    load = type(fresh_tiny("llama")).from_pretrained
    lora = LoraConfig(**LORA) if adapter else None
    ours = kto_trainer(load(tmp_path / "base"), tiny_tokenizer, rows_of(tiny_tokenizer), settings(tmp_path), lora=lora)
    order = [list(row) for row in ours.train_dataset["completion_ids"]]
    shuffled = sorted(zip(rows_of(tiny_tokenizer), records(), strict=True), key=lambda pair: order.index(pair[0]["completion_ids"]))
    conversations = [{"prompt": prompt, "completion": [answer], "label": good} for _, (prompt, answer, good) in shuffled]
    theirs = KTOTrainer(
        load(tmp_path / "base"), args=settings(tmp_path), train_dataset=Dataset.from_list(conversations), processing_class=tiny_tokenizer,
        peft_config=lora,
    )  # fmt: skip
    for trainer in (ours, theirs):  # away from the reference, each in the same way
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    until_end = lambda ids: list(ids)[: list(ids).index(2) + 1]  # trl trains on what the template writes behind the end token too: that is not ours
    theirs.train_dataset = theirs.train_dataset.map(lambda row: {name: until_end(row[name]) for name in ("completion_ids", "KL_completion_ids")})
    assert list(theirs.train_dataset["prompt_ids"]) == list(ours.train_dataset["prompt_ids"])
    assert list(theirs.train_dataset["KL_completion_ids"]) == list(ours.train_dataset["KL_completion_ids"])
    for start in range(0, 16, 4):
        found = []
        for trainer in (ours, theirs):
            batch = trainer.data_collator([trainer.train_dataset[i] for i in range(start, start + 4)])
            trainer.model.train()
            loss = trainer.compute_loss(trainer.model, batch)
            found.append((loss.item(), trainer._metrics["train"]["kl"][-1]))
        assert found[0] == pytest.approx(found[1], abs=1e-6) and found[0][0] != pytest.approx(0.5, abs=1e-3)


@torch.no_grad()
def reward_of(policy, reference, row):
    """0.1 of how many nats likelier the answer has become, from the logits."""
    ids, start = torch.tensor([row["prompt_ids"] + row["completion_ids"]]), len(row["prompt_ids"])
    sums = [model(ids).logits[0, start - 1 : -1].log_softmax(-1).gather(1, ids[0, start:, None]).sum() for model in (policy, reference)]
    return 0.1 * (sums[0] - sums[1]).item()


OTHERS = [pytest.param(*each, marks=pytest.mark.full) for each in ((False, False), (True, True))]


@pytest.mark.parametrize("adapter, before", [(False, True), (True, False), *OTHERS])
def test_training_moves_held_out_accuracy_and_margins(adapter, before, fresh_tiny, tiny_tokenizer, tmp_path):
    rows = rows_of(tiny_tokenizer)
    args = settings(tmp_path, learning_rate=3e-3, num_train_epochs=15, precompute_ref_log_probs=before, lr_scheduler_type="constant")
    trainer = kto_trainer(fresh_tiny("llama"), tiny_tokenizer, rows[4:], args, eval_rows=rows[:4], lora=LoraConfig(**LORA) if adapter else None)
    first = trainer.evaluate()
    assert first["eval_accuracy"] == first["eval_pair_accuracy"] == 0 and trainer.implicit_rewards(rows[:4]) == pytest.approx([0] * 4, abs=1e-5)
    trainer.train()
    last = trainer.evaluate()
    rewards = trainer.implicit_rewards(list(trainer.eval_dataset))
    assert rewards == pytest.approx([reward_of(trainer.model, fresh_tiny("llama"), row) for row in rows[:4]], abs=1e-4)
    (good, bad), (better, worse) = rewards[:2], rewards[2:]  # of two questions
    assert last["eval_pair_accuracy"] == ((good > bad) + (better > worse)) / 2 == 1
    assert last["eval_accuracy"] == ((good > 0) + (bad < 0) + (better > 0) + (worse < 0)) / 4 == (0.5 if adapter else 0.75)
    margin = (good + better - bad - worse) / 2
    assert last["eval_rewards/margins"] == pytest.approx(margin, rel=1e-3) and margin > 0.3
    trainer.args.per_device_eval_batch_size = 3
    uneven = trainer.evaluate()  # three answers, then one: a margin of the first batch alone
    assert uneven["eval_margin"] == last["eval_margin"] == pytest.approx(margin, rel=1e-5)
    assert abs(uneven["eval_rewards/margins"] - margin) > 1e-3


def test_the_reference_is_a_copy_and_not_what_the_config_names(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    model.config._name_or_path = "/nowhere"
    before = model.get_input_embeddings().weight.clone()
    trainer = kto(model, tiny_tokenizer, rows_of(tiny_tokenizer), settings(tmp_path, learning_rate=1e-2, max_steps=2))
    assert torch.equal(trainer.ref_model.get_input_embeddings().weight, before)
    assert not torch.equal(trainer.model.get_input_embeddings().weight, before)
    with_adapter = kto_trainer(fresh_tiny("llama"), tiny_tokenizer, rows_of(tiny_tokenizer), settings(tmp_path), lora=LoraConfig(**LORA))
    assert with_adapter.ref_model is None


@pytest.mark.parametrize(
    ("kept", "changes", "message"),
    [
        (lambda row: row["label"], {}, "all 8 answers are judged good"),
        (lambda row: not row["label"], {}, "all 8 answers are judged bad"),
        (lambda row: False, {}, "no judged answers"),
        (lambda row: True, {"per_device_train_batch_size": 1}, "set --per_device_train_batch_size to 2 or more"),
        (lambda row: True, {"max_length": 8}, "max_length is 8"),
    ],
)
def test_what_cannot_be_trained_is_refused(kept, changes, message, fresh_tiny, tiny_tokenizer, tmp_path):
    rows = [row for row in rows_of(tiny_tokenizer) if kept(row)]
    with pytest.raises(UserError, match=message):
        kto_trainer(fresh_tiny("llama"), tiny_tokenizer, rows, settings(tmp_path, **changes))


def test_a_row_beyond_the_context_is_refused_and_a_mismatched_answer_is_cut(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = [{"prompt_ids": [3] * 200, "completion_ids": [4, 2], "label": True}, {"prompt_ids": [3], "completion_ids": [4] * 60, "label": False}]
    with pytest.raises(UserError, match="260 tokens, the model's context only 256"):
        kto_trainer(fresh_tiny("llama"), tiny_tokenizer, [*rows, {**rows[0], "completion_ids": [4] * 60}], settings(tmp_path))
    trainer = kto_trainer(fresh_tiny("llama"), tiny_tokenizer, rows, settings(tmp_path, max_steps=1))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    [long] = [i for i in range(2) if trainer.train_dataset[i]["label"]]
    assert batch["KL_input_ids"][long].tolist() == [3] * 200 + [4] * 56  # 60 tokens behind 200 of 256
    assert batch["KL_completion_mask"][long].tolist() == [0] * 200 + [1] * 56
    assert batch["input_ids"][long].tolist() == [3] * 200 + [4, 2] and batch["input_ids"][1 - long].tolist() == [3] + [4] * 60 + [0] * 141
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.5, abs=1e-6)  # sigmoid(0) of a policy that is its reference


def test_weights_are_advised_where_good_and_bad_do_not_count_alike(tmp_path):
    rows = [{"label": True}] * 30 + [{"label": False}] * 10
    assert weight_advice(rows, settings(tmp_path)) == "30 good, 10 bad: --desirable_weight 0.33 to 0.44 would let both count alike"
    assert weight_advice(rows, settings(tmp_path, desirable_weight=0.4)) is None and weight_advice(rows[20:], settings(tmp_path)) is None
