"""The stage of encoder-decoders: its step, its resumption, its adapter, what it measures and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from seodang.data.errors import UserError
from seodang.data.seq2seq.packing import collate_padded_pairs, collate_pairs, pack_seq2seq
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import verify
from seodang.infer.runners.end_to_end import END_TO_END
from seodang.train import StreamedRows, plan, seq2seq, seq2seq_trainer, sft_trainer
from seodang.train.encoder_decoder.pairs import PaddedPairs
from seodang.train.run.checkpoints import find_resume

from .some_pairs import arguments, pairs

DRY = {"t5": {"dropout_rate": 0.0}, "bart": {"dropout": 0.0}, "marian": {"dropout": 0.0}}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", DRY)
def test_steps_equal_those_of_transformers_trainer(fresh_tiny, tiny_tokenizer, tmp_path, kind, smoothing):
    start = 0 if kind == "t5" else 2
    rows = pairs(12, start=start)
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "label_smoothing_factor": smoothing, "lr_scheduler_type": "constant"}
    ours = seq2seq(fresh_tiny(kind, **DRY[kind]).double(), tiny_tokenizer, rows, arguments(tmp_path, **settings))
    args = arguments(tmp_path, **settings).to_dict()
    model = fresh_tiny(kind, **DRY[kind]).double()
    theirs = Seq2SeqTrainer(
        model, Seq2SeqTrainingArguments(**{**args, "remove_unused_columns": False, "report_to": "none"}), train_dataset=rows,
        data_collator=lambda some: collate_padded_pairs(some, 0), processing_class=tiny_tokenizer,
    )  # fmt: skip
    theirs.train()
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 3
    moved, expected = weights(ours.model), weights(theirs.model)
    assert all(torch.allclose(value, expected[name], atol=1e-4) for name, value in moved.items())
    before = weights(fresh_tiny(kind, **DRY[kind]))
    assert max((moved[name] - value).abs().max().item() for name, value in before.items()) > 0.01


def test_packed_rows_one_at_a_time_and_accumulated_ones_move_the_weights_alike(fresh_tiny, tiny_tokenizer, tmp_path):
    rows, ends = pairs(6), []
    for data, size, steps in ((rows, 6, 1), (pack_seq2seq(rows, 80, 80), 1, 1), (rows, 2, 3)):
        model = fresh_tiny("t5", dropout_rate=0.0).double()
        seq2seq(model, tiny_tokenizer, data, arguments(tmp_path, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps))
        ends.append(weights(model))
    assert len(pack_seq2seq(rows, 80, 80)) == 1
    for other in ends[1:]:
        assert all(torch.allclose(value, other[name], atol=1e-4) for name, value in ends[0].items())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_dropout_draws_in_rows_end_to_end_and_on_average_changes_little(fresh_tiny, tiny_tokenizer, tmp_path, kind):
    name = "dropout_rate" if kind == "t5" else "attention_dropout"
    model = fresh_tiny(kind, **({name: 0.1} if kind == "t5" else {name: 0.1, "dropout": 0.0}))
    trainer = seq2seq_trainer(model, tiny_tokenizer, pairs(4), arguments(tmp_path))
    batch = trainer.data_collator(pairs(4))
    torch.manual_seed(0)
    drawn = [model.train()(**batch).loss.item() for _ in range(40)]
    assert len(set(drawn)) == 40
    still = model.eval()(**batch).loss.item()
    assert sum(drawn) / 40 == pytest.approx(still, rel=0.15)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def run(fresh_tiny, tokenizer, folder, **options):
    torch.manual_seed(0)
    settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}
    return seq2seq(fresh_tiny("t5"), tokenizer, pairs(12), arguments(folder, **settings), **options)


def test_a_resumed_run_is_the_run_that_was_not_stopped_bit_for_bit(fresh_tiny, tiny_tokenizer, tmp_path):
    whole = run(fresh_tiny, tiny_tokenizer, tmp_path / "whole")
    run(fresh_tiny, tiny_tokenizer, tmp_path / "cut", callbacks=[StopAt(4)])
    again = run(fresh_tiny, tiny_tokenizer, tmp_path / "cut", resume=str(find_resume(tmp_path / "cut", "auto")))
    assert whole.state.global_step == again.state.global_step == 6
    end = weights(again.model)
    assert all(torch.equal(value, end[name]) for name, value in weights(whole.model).items())


def test_the_checkpoint_is_a_plain_folder_that_transformers_reads(fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = seq2seq(fresh_tiny("bart"), tiny_tokenizer, pairs(6, start=2), arguments(tmp_path))
    folder = trainer.save_final()
    assert verify(folder)["paradigm"] == "seq2seq"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert model.config._attn_implementation == "sdpa" and END_TO_END not in (folder / "config.json").read_text()
    assert all(torch.equal(value, weights(trainer.model)[name]) for name, value in weights(model).items())
    batch = {name: value for name, value in collate_padded_pairs(pairs(3, start=2), 0).items()}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**batch).loss, trainer.model.eval()(**batch).loss)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_only_the_adapter_trains_and_load_brings_it_back(fresh_tiny, tiny_tokenizer, tmp_path, kind):
    start = {"t5": 0, "bart": 2}[kind]
    base = fresh_tiny(kind)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = load(tmp_path / "base", device="cpu", dtype="float32")
    before = weights(model)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = seq2seq(model, tokenizer, pairs(6, start=start), arguments(tmp_path / "out", max_steps=3), lora=lora)
    assert lora.task_type == "CAUSAL_LM"  # the caller's own stays as it was
    after = {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in weights(trainer.model).items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    moved = [value for name, value in weights(trainer.model).items() if "lora_B" in name]
    assert moved and all(value.abs().max() > 0 for value in moved)
    folder = trainer.save_final()
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    again, _ = load(folder, device="cpu", dtype="float32")
    batch = collate_padded_pairs(pairs(3, seed=4, start=start), 0)
    with torch.no_grad():
        want = trainer.model.eval()(**batch).loss.item()
        assert again.eval()(**batch).loss.item() == pytest.approx(want, rel=1e-5)
        assert base.eval()(**batch).loss.item() != pytest.approx(want, rel=1e-4)


def test_checkpointed_activations_train_an_adapter_alike(fresh_tiny, tiny_tokenizer, tmp_path):
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear")
        args = arguments(tmp_path, max_steps=3, activation_checkpointing=checkpointing)
        trainer = seq2seq(fresh_tiny("t5", dropout_rate=0.0), tiny_tokenizer, pairs(6), args, lora=lora)
        ends.append({name: p for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert ends[0] and all(torch.allclose(value, ends[1][name], atol=1e-5) for name, value in ends[0].items())


def test_held_out_loss_and_accuracy_are_over_all_tokens_and_never_smoothed(fresh_tiny, tiny_tokenizer, tmp_path):
    held = pairs(5, seed=2, given=1)
    found = []
    for size in (1, 2, 5):
        args = arguments(tmp_path, per_device_eval_batch_size=size, label_smoothing_factor=0.3)
        trainer = seq2seq_trainer(fresh_tiny("t5"), tiny_tokenizer, pairs(), args, eval_rows=held, sample=lambda model: {"chrf": 7.0})
        found.append(trainer.evaluate())
    model, total, hits, count = fresh_tiny("t5"), 0.0, 0, 0
    for row in held:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.tensor([row["decoder_input_ids"]])).logits[0]
        labels = torch.tensor(row["labels"])
        total += F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        hits += int((logits.argmax(-1) == labels).sum())
        count += int((labels != -100).sum())
    assert [metrics["eval_loss"] for metrics in found] == pytest.approx([total / count] * 3, rel=1e-5)
    assert [metrics["eval_token_accuracy"] for metrics in found] == pytest.approx([hits / count] * 3)
    assert found[0]["eval_chrf"] == 7.0


def test_the_model_in_training_speaks_as_the_model_itself(fresh_tiny, tiny_tokenizer, tmp_path):
    """Sources of mixed length, and beams, through the engine, while the attention is the one of training."""
    plain = fresh_tiny("t5")
    trainer = seq2seq_trainer(fresh_tiny("t5"), tiny_tokenizer, pairs(), arguments(tmp_path))
    params = SamplingParams(max_new_tokens=8, num_beams=2)
    prompts = ["abc", "a longer source", "b"]
    want = [result.text for result in generate(plain, tiny_tokenizer, prompts, params)]
    assert [result.text for result in generate(trainer.model, tiny_tokenizer, prompts, params)] == want
    assert len(set(want)) > 1


def test_the_plan_counts_both_sides_and_says_where_rows_are_padded(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    from seodang.infer.runners import end_to_end

    rows = pairs(10)
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4)
    trainer = seq2seq_trainer(fresh_tiny("t5"), tiny_tokenizer, rows, args)
    assert trainer.data_collator is collate_pairs
    cost = plan(trainer)
    assert cost.tokens == pytest.approx(3 * sum(len(row["input_ids"]) + len(row["labels"]) for row in rows)) and cost.steps == 9
    assert not any(line.startswith("layout") for line in cost.lines())
    monkeypatch.setattr(end_to_end, "_obeys", lambda model: False)
    model = fresh_tiny("bart")
    padded = seq2seq_trainer(model, tiny_tokenizer, pairs(10, start=2), args)
    assert isinstance(padded.data_collator, PaddedPairs) and model.config._attn_implementation == "sdpa"
    assert "layout          padded to the longest of a step: pairs end to end would not be kept apart by this bart" in plan(padded).lines()


def test_padded_rows_train_as_rows_end_to_end_do(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    from seodang.infer.runners import end_to_end

    ends = []
    for obeys in (end_to_end._obeys, lambda model: False):
        monkeypatch.setattr(end_to_end, "_obeys", obeys)
        model = fresh_tiny("bart", dropout=0.0).double()
        seq2seq(model, tiny_tokenizer, pairs(6, start=2), arguments(tmp_path))
        ends.append(weights(model))
    assert all(torch.allclose(value, ends[1][name], atol=1e-5) for name, value in ends[0].items())


def test_a_stream_of_rows_trains(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = StreamedRows(lambda: iter(pairs(12, start=2)), 6, longest=14)
    trainer = seq2seq(fresh_tiny("bart", max_position_embeddings=16), tiny_tokenizer, rows, arguments(tmp_path))
    assert trainer.state.global_step == 2
    with pytest.raises(UserError, match="a streamed row has a source of 14 tokens, the encoder only 12 positions"):
        seq2seq_trainer(fresh_tiny("bart", max_position_embeddings=12), tiny_tokenizer, rows, arguments(tmp_path))


ROW = {"input_ids": [5, 6, 7], "decoder_input_ids": [2, 8, 9], "labels": [8, 9, 2]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": []}, "row 1 has an empty source: fill it in"),
        ({"decoder_input_ids": [], "labels": []}, "row 1 has an empty target"),
        ({"labels": [8, 9]}, "row 1 shows the decoder 3 tokens and has 2 labels"),
        ({"labels": [-100] * 3}, "row 1 teaches nothing: all of its target is given"),
        ({"input_ids": [5] * 17}, "row 1 has a source of 17 tokens, the encoder only 16 positions: set --max_source_length 16 or less"),
        ({"decoder_input_ids": [5] * 17, "labels": [5] * 17, "where": "x.jsonl:4"}, "x.jsonl:4 has a target of 17 tokens, the decoder only 16 positions: set --max_target_length 16"),
        ({"input_ids": [5, 128]}, "row 1: token id 128 of the source is beyond the model's vocabulary of 128"),
        ({"labels": [8, 9, 200]}, "row 1: token id 200 of the target is beyond the model's vocabulary of 128"),
        ({"lengths": [1, 1], "target_lengths": [1, 2]}, r"row 1 has 3 source and 3 target tokens, its lengths \[1, 1\] and \[1, 2\] say otherwise"),
        ({"lengths": [3, 0], "target_lengths": [1, 2]}, "row 1 has an empty source"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused(fresh_tiny, tiny_tokenizer, tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        seq2seq_trainer(fresh_tiny("bart", max_position_embeddings=16), tiny_tokenizer, [{**ROW, **row}], arguments(tmp_path))
    with pytest.raises(UserError, match=message.replace("row 1", "held-out row 2")):
        seq2seq_trainer(fresh_tiny("bart", max_position_embeddings=16), tiny_tokenizer, [ROW], arguments(tmp_path), eval_rows=[ROW, {**ROW, **row}])


def test_packed_rows_may_be_longer_than_the_positions_of_each_pair(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = pack_seq2seq(pairs(8, start=2), 64, 64)
    assert max(len(row["input_ids"]) for row in rows) > 16
    seq2seq_trainer(fresh_tiny("bart", max_position_embeddings=16), tiny_tokenizer, rows, arguments(tmp_path))


def test_other_models_are_refused_and_pointed_to_their_command(fresh_tiny, tiny_tokenizer, fresh_encoder, tmp_path):
    with pytest.raises(UserError, match="llama is a decoder, which reads a prompt .* train it by `seodang sft`"):
        seq2seq_trainer(fresh_tiny("llama"), tiny_tokenizer, [ROW], arguments(tmp_path))
    with pytest.raises(UserError, match="bert is an encoder, .* `seodang mlm` on text, by `seodang classify` on labels"):
        seq2seq_trainer(fresh_encoder("bert"), tiny_tokenizer, [ROW], arguments(tmp_path))
    with pytest.raises(UserError, match="sft teaches a decoder .* t5 reads a prompt with its encoder: train it by `seodang seq2seq`"):
        sft_trainer(fresh_tiny("t5"), tiny_tokenizer, [{"input_ids": [5, 6], "labels": [-100, 6]}], arguments(tmp_path))
    with pytest.raises(UserError, match="there are no rows to train on"):
        seq2seq_trainer(fresh_tiny("t5"), tiny_tokenizer, [], arguments(tmp_path))


def test_a_model_that_does_not_say_how_a_target_begins_is_refused(fresh_tiny, tiny_tokenizer, tmp_path):
    model = copy.deepcopy(fresh_tiny("t5"))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    with pytest.raises(UserError, match="does not say how an answer begins: set decoder_start_token_id"):
        seq2seq_trainer(model, tiny_tokenizer, [ROW], arguments(tmp_path))


@pytest.mark.parametrize("factor", [-0.1, 1.0])
def test_smoothing_beyond_its_range_is_refused(fresh_tiny, tiny_tokenizer, tmp_path, factor):
    with pytest.raises(UserError, match=rf"label_smoothing_factor must be in \[0, 1\), got {factor}"):
        seq2seq_trainer(fresh_tiny("t5"), tiny_tokenizer, [ROW], arguments(tmp_path, label_smoothing_factor=factor))


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["weights", "autocast"])
@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
def test_low_precision_trains_end_to_end(fresh_tiny, tiny_tokenizer, tmp_path, kind, settings):
    start = 2 if kind == "bart" else 0
    model = fresh_tiny(kind) if settings else fresh_tiny(kind).bfloat16()
    trainer = seq2seq(model, tiny_tokenizer, pairs(6, start=start), arguments(tmp_path, max_steps=6, **settings))
    assert trainer.data_collator is collate_pairs
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    plain = fresh_tiny(kind)(**collate_padded_pairs(pairs(6, start=start), 0)).loss.item()
    assert losses[0] == pytest.approx(plain, rel=0.1) and losses[-1] < 0.98 * losses[0]
