"""The stage: plain transformers' step, resuming to the bit, draws that hang on nothing but seed, epoch and row, held-out text that is hidden alike."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.corruption import Masking, MaskingOptions
from seodang.data.text.rows import masked_rows
from seodang.data.text.store import token_store
from seodang.train.attention.packed_attention import PACKED
from seodang.train.diffusion.order import DRAWN
from seodang.train.pretraining.fill_ins import FillInSampler
from seodang.train.pretraining.mlm import mlm, mlm_trainer
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import find_resume

LINES = ["영화가 정말 재미있었어요!", "The little model learns.", "Don't stop learning, little model!", "어제 본 영화는 재미없었어요.", "배우가 정말 좋았어요."]


@pytest.fixture
def rows(text_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("\n".join(f"{line} {i}" for i in range(6) for line in LINES), encoding="utf-8")
    store, _ = token_store([str(folder / "a.txt")], text_tokenizer("wordpiece"), folder / "cache", documents="line", words=True)
    return masked_rows(store, text_tokenizer("wordpiece"), 48)


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "seed": 1}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


@pytest.fixture
def masking(text_tokenizer):
    return Masking.of(text_tokenizer("wordpiece"), MaskingOptions(mlm_probability=0.3, whole_words=True))


def encoder(fresh_encoder, tokenizer, kind="bert", **changes):
    return fresh_encoder(kind, vocab_size=len(tokenizer), **changes)


def pieces(rows):
    """The ids and labels of each piece of corrupted rows."""
    for row in rows:
        start = 0
        for length in row["lengths"]:
            yield [torch.tensor([row[name][start : start + length]]) for name in ("input_ids", "labels")]
            start += length


def test_one_step_equals_the_step_of_a_plain_torch_loop_over_pieces_alone(fresh_encoder, text_tokenizer, rows, masking, tmp_path):
    tokenizer = text_tokenizer("wordpiece")
    ours, plain = (encoder(fresh_encoder, tokenizer) for _ in range(2))
    args = arguments(tmp_path, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=1e-3, train_sampling_strategy="sequential")
    trainer = mlm_trainer(ours, tokenizer, rows, args, masking)
    assert ours.config._attn_implementation == PACKED
    from seodang.data.text.corruption import noise_of

    corrupted = [masking(rows[i], noise_of(1, 0, i)) for i in range(4)]
    trainer.train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    total = sum(label != -100 for row in corrupted for label in row["labels"])
    loss = sum(F.cross_entropy(plain(input_ids=ids).logits[0], labels[0], reduction="sum") for ids, labels in pieces(corrupted)) / total
    loss.backward()
    optimizer.step()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("step", [1, 4])
def test_resuming_at_any_step_equals_the_uninterrupted_run_bit_for_bit(fresh_encoder, text_tokenizer, rows, masking, tmp_path, step):
    tokenizer = text_tokenizer("wordpiece")

    def run(folder, resume=None, callbacks=(), **changes):
        torch.manual_seed(0)
        model = encoder(fresh_encoder, tokenizer, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        settings = {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        return mlm(model, tokenizer, rows, arguments(tmp_path / folder, **{**settings, **changes}), masking, resume=resume, callbacks=callbacks)

    whole = run("whole")
    assert whole.state.global_step > 5 and whole.state.epoch == 3
    run("cut", save_strategy="steps", save_steps=step, callbacks=[StopAt(step)])
    resumed = run("cut", resume=str(find_resume(tmp_path / "cut", "auto")))
    assert resumed.state.global_step == whole.state.global_step
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    losses = lambda folder: [(entry["step"], entry["loss"]) for entry in read_log(tmp_path / folder / LOG) if "loss" in entry]
    assert losses("cut") == losses("whole")


def test_what_is_hidden_hangs_on_neither_the_batch_nor_the_process_nor_the_layout(fresh_encoder, text_tokenizer, rows, masking, tmp_path):
    tokenizer = text_tokenizer("wordpiece")
    collator = mlm_trainer(encoder(fresh_encoder, tokenizer), tokenizer, rows, arguments(tmp_path), masking).data_collator
    drawn = [{**rows[i], DRAWN: (3, place)} for place, i in enumerate((4, 1, 0, 5, 2, 3))]
    together = collator(drawn)
    halves = [collator(drawn[process::2]) for process in range(2)]  # as two processes take them in turn
    count = [len(row["input_ids"]) for row in drawn]
    whole = together["input_ids"][0].split(count)
    for process, half in enumerate(halves):
        for mine, theirs in zip(half["input_ids"][0].split(count[process::2]), whole[process::2], strict=True):
            assert torch.equal(mine, theirs)
    padded = copy.copy(collator)
    object.__setattr__(padded, "layout", copy.copy(collator.layout))
    object.__setattr__(padded.layout, "end_to_end", False)
    batch = padded(drawn)
    assert batch["input_ids"][batch["attention_mask"] == 1].tolist() == together["input_ids"][0].tolist()
    assert batch["labels"][batch["attention_mask"] == 1].tolist() == together["labels"][0].tolist()


def test_each_epoch_hides_something_else_of_a_row_and_special_tokens_never(fresh_encoder, text_tokenizer, rows, masking, tmp_path):
    tokenizer, seen = text_tokenizer("wordpiece"), []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(state.epoch)

    trainer = mlm_trainer(encoder(fresh_encoder, tokenizer), tokenizer, rows, arguments(tmp_path, max_steps=-1, num_train_epochs=2), masking, callbacks=[Watch()])
    batches, collate = [], trainer.data_collator
    trainer.data_collator = lambda some: batches.append([(row["number"], row[DRAWN][0]) for row in some]) or collate(some)
    trainer.train()
    drawn = [each for batch in batches for each in batch]
    assert sorted(drawn) == [(number, epoch) for number in range(len(rows)) for epoch in range(2)]
    first, second = (collate([{**rows[0], DRAWN: (epoch, 0)}]) for epoch in range(2))
    assert not torch.equal(first["labels"], second["labels"])
    for batch in (first, second):
        said = batch["labels"][batch["labels"] != -100]
        assert len(said) and not set(said.tolist()) & set(tokenizer.all_special_ids)


def test_held_out_perplexity_and_accuracy_are_those_of_plain_transformers_on_the_same_masks(fresh_encoder, text_tokenizer, rows, masking, tmp_path):
    tokenizer = text_tokenizer("wordpiece")
    plain = encoder(fresh_encoder, tokenizer)
    measured = []
    for size, seed in ((1, 3), (4, 5)):  # neither the batch nor the seed changes what is hidden
        args = arguments(tmp_path, per_device_eval_batch_size=size, seed=seed)
        trainer = mlm_trainer(copy.deepcopy(plain), tokenizer, rows, args, masking, eval_rows=rows)
        measured.append(trainer.evaluate())
    from seodang.data.text.corruption import held_out_noise

    loss = hits = count = 0
    with torch.no_grad():
        for ids, labels in pieces([masking(row, held_out_noise(row["number"])) for row in rows]):
            logits, asked = plain(input_ids=ids).logits[0], labels[0] != -100
            loss += F.cross_entropy(logits, labels[0], reduction="sum").item()
            hits += int((logits.argmax(dim=-1) == labels[0])[asked].sum())
            count += int(asked.sum())
    for found in measured:
        assert found["eval_loss"] == pytest.approx(loss / count, rel=1e-5) and found["eval_token_accuracy"] == pytest.approx(hits / count)
        assert found["eval_perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_it_learns_and_says_what_it_fills_in(fresh_encoder, text_tokenizer, rows, masking, tmp_path, kind):
    tokenizer, shown = text_tokenizer("wordpiece"), []
    args = arguments(tmp_path, max_steps=60, per_device_train_batch_size=16, learning_rate=5e-3)
    trainer = mlm_trainer(encoder(fresh_encoder, tokenizer, kind), tokenizer, rows, args, masking, eval_rows=rows)
    trainer.sample = FillInSampler(tokenizer, rows, trainer.data_collator, 2, shown.append)
    trainer.evaluate()
    trainer.train()
    assert trainer.state.log_history[-2]["loss"] < 0.5 * trainer.state.log_history[1]["loss"]
    trainer.evaluate()
    assert len(shown) == 4 and all("[" in line for line in shown) and "[CLS]" not in "".join(shown)
    before, after = "".join(shown[:2]).count(" > "), "".join(shown[2:]).count(" > ")
    assert after < before  # what is filled in rightly is said once


def test_what_the_encoder_cannot_take_is_refused_before_training(fresh_encoder, fresh_tiny, text_tokenizer, rows, masking, tmp_path):
    tokenizer = text_tokenizer("wordpiece")
    with pytest.raises(UserError, match="this llama is a decoder"):
        mlm_trainer(fresh_tiny("llama"), tokenizer, rows, arguments(tmp_path), masking)
    with pytest.raises(UserError, match="beyond the model's vocabulary of 20"):
        mlm_trainer(fresh_encoder("bert", vocab_size=20), tokenizer, rows, arguments(tmp_path), masking)
    with pytest.raises(UserError, match="the model's context only 8"):
        mlm_trainer(encoder(fresh_encoder, tokenizer, max_position_embeddings=8), tokenizer, rows, arguments(tmp_path), masking)
