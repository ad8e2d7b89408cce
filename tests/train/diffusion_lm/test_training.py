"""The stage: its loss by hand, means over rows, resuming to the bit, held-out rows alike beside any others, save and load."""

import pytest
import torch
from transformers import AutoModel, TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import read_manifest
from seodang.infer.diffusion_lm.checkpoint import load_classifier, load_diffusion_lm
from seodang.infer.diffusion_lm.model import Denoising, DiffusionLM, DiffusionLMConfig, LatentClassifier
from seodang.infer.diffusion_lm.words import train_words
from seodang.train.diffusion_lm.classifier import classification, latent_classifier_trainer, new_classifier
from seodang.train.diffusion_lm.training import diffusion_lm, diffusion_lm_trainer, drawn, end_to_end, held_out, patch_end_to_end
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import find_resume

WORDS = train_words(["a b c d e f g h"])


def built(seed=0, **changes):
    sizes = {"vocab_size": 11, "embedding_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiffusionLM(DiffusionLMConfig(**{**sizes, "max_position_embeddings": 8, "diffusion_steps": 50, **changes}))


def rows(count=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [{"input_ids": [*torch.randint(3, 11, (4 + place % 3,), generator=draw).tolist(), 1]} for place in range(count)]


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "seed": 1}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


@pytest.mark.parametrize("step", [1, 2, 50])
def test_the_terms_of_the_loss_by_hand(step):
    """One text of two words, embeddings of two numbers, a denoiser that always says the same."""
    model = DiffusionLM(DiffusionLMConfig(vocab_size=3, embedding_size=2, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, diffusion_steps=50)).double()
    model.word_embeddings.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    model.rounding_bias.data = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    said = torch.tensor([[[0.5, 0.5], [1.0, 1.0]]], dtype=torch.float64)
    start_noise = torch.tensor([[[1.0, -1.0], [0.0, 2.0]]], dtype=torch.float64)
    noise, seen = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]], dtype=torch.float64), []

    def predict(_, latents, steps, mask):
        seen.append(latents)
        return Denoising(clean=said)

    out = end_to_end(model, predict, torch.tensor([[0, 1]]), torch.ones(1, 2), torch.tensor([step]), start_noise, noise)
    abar = model.abar
    deviation = float(1 - abar[1]) ** 0.5
    x0 = [[1.0 + deviation, -deviation], [0.0, 2.0 + 2 * deviation]]
    left, noisy = float(abar[step]) ** 0.5, float(1 - abar[step]) ** 0.5
    assert seen[0][0, 1].tolist() == pytest.approx([left * x0[1][0] + noisy * 0.3, left * x0[1][1] + noisy * 0.4])
    target = [[1.0, 0.0], [0.0, 2.0]] if step == 1 else x0  # at the first step the embeddings themselves
    assert out.denoising.item() == pytest.approx(sum((t - f) ** 2 for row, given in zip(target, said[0].tolist()) for t, f in zip(row, given)) / 4)
    assert out.prior.item() == pytest.approx(float(abar[50]) * sum(x**2 for row in x0 for x in row) / 4)
    logits = torch.tensor([[x + 0.5, 2 * y, y - x - 0.5] for x, y in x0], dtype=torch.float64)
    assert out.rounding.item() == pytest.approx(-(logits.log_softmax(-1)[0, 0] + logits.log_softmax(-1)[1, 1]).item() / 2)
    assert out.loss.item() == pytest.approx((out.denoising + out.prior + out.rounding).item())
    assert out.right.item() == 1.0  # (0.5, 0.5): 1, 1, -0.5 goes to the first of equals; (1, 1): 1.5, 2, -0.5


def test_padding_and_the_rows_beside_change_no_rows_loss():
    model, data = built().double().eval(), rows(3)
    patch_end_to_end(model)
    numbered = [{**row, "number": number} for number, row in enumerate(data)]
    together = model(**held_out(model, numbered, 2))
    for place, row in enumerate(numbered):
        alone = model(**held_out(model, [row], 2))
        for name in ("denoising", "prior", "rounding", "right"):
            assert getattr(together, name)[place].item() == pytest.approx(getattr(alone, name).item(), abs=1e-12)
    assert together.loss.item() == pytest.approx((together.denoising + together.prior + together.rounding).mean().item())


def test_held_out_steps_come_from_every_quarter_and_training_steps_from_all():
    model, numbered = built(), [{**row, "number": number} for number, row in enumerate(rows(200))]
    for draw, (low, high) in enumerate(((1, 12), (13, 25), (26, 37), (38, 50))):
        steps = held_out(model, numbered, draw)["steps"]
        assert steps.min() == low and steps.max() == high
    steps, start_noise, noise = drawn(model, torch.zeros(4000, 2, dtype=torch.long))
    assert steps.unique().tolist() == list(range(1, 51)) and not torch.equal(start_noise, noise) and noise.std() == pytest.approx(1, abs=0.02)


def test_one_step_is_the_step_of_a_plain_loop(tmp_path):
    ours, plain, data = built(dropout=0.0), built(dropout=0.0), rows(4)
    args = arguments(tmp_path, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=1e-3, train_sampling_strategy="sequential")
    trainer = diffusion_lm_trainer(ours, WORDS, data, args)
    batch = held_out(ours, [{**row, "number": number} for number, row in enumerate(data)], 1)  # what is drawn, given
    trainer.data_collator = lambda rows: batch
    trainer.train()
    patch_end_to_end(plain)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    loss = plain(**batch).loss
    loss.backward()
    optimizer.step()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


def losses(folder):
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss")) for entry in read_log(folder / LOG) if "loss" in entry or "eval_loss" in entry]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_resuming_at_any_step_equals_the_uninterrupted_run_bit_for_bit(tmp_path):
    def run(folder, resume=None, callbacks=(), **changes):
        settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        torch.manual_seed(7)
        args = arguments(tmp_path / folder, **{**settings, **changes})
        return diffusion_lm(built(dropout=0.1), WORDS, rows(), args, eval_rows=rows(5, seed=1), resume=resume, callbacks=callbacks)

    whole = run("whole")
    assert whole.state.global_step == 6
    told = losses(tmp_path / "whole")
    assert len(told) == 9
    for step in (1, 3, 4):
        run(str(step), callbacks=[StopAt(step)], save_steps=step, save_strategy="steps")
        resumed = run(str(step), resume=str(find_resume(tmp_path / str(step), "auto")))
        assert losses(tmp_path / str(step)) == told
        for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_training_finds_words_again_and_what_is_saved_says_the_same_when_loaded(tmp_path):
    data = [{"input_ids": [3, 4, 5, 1]}, {"input_ids": [6, 7, 8, 1]}] * 16
    args = arguments(tmp_path / "run", max_steps=150, per_device_train_batch_size=32, learning_rate=5e-3, logging_steps=150)
    trainer = diffusion_lm(built(dropout=0.0), WORDS, data, args, eval_rows=data[:2])
    measured = trainer.evaluate()
    assert measured["eval_right"] > 0.7 and measured["eval_loss"] < 0.8
    folder = trainer.save_final()
    assert read_manifest(folder)["paradigm"] == "diffusion_lm"
    loaded, tokenizer = load_diffusion_lm(folder, "cpu")
    plain = AutoModel.from_pretrained(folder)
    assert type(loaded) is type(plain) is DiffusionLM and tokenizer.get_vocab() == WORDS.get_vocab()
    latents, steps = torch.randn(2, 4, 4), torch.tensor([3, 40])
    expected = trainer.model.eval()(latents, steps).clean
    for each in (loaded, plain.eval()):
        assert torch.equal(each(latents, steps).clean, expected) and torch.equal(each.rounding(latents), trainer.model.rounding(latents))
    with pytest.raises(UserError, match="is a diffusion_lm, and no classifier on latents: train one by `seodang diffusion-lm-control`"):
        load_classifier(folder)


def test_a_classifier_learns_on_latents_whose_embeddings_stay_and_is_loaded_alike(tmp_path):
    model = built()
    data = [{"input_ids": [3, 4, 5, 1], "label": 0}, {"input_ids": [6, 7, 8, 1], "label": 1}] * 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = new_classifier(model, ["y", "x", "y"], 32, 1)
    assert classifier.config.id2label == {0: "x", 1: "y"}
    args = arguments(tmp_path / "run", max_steps=60, per_device_train_batch_size=32, learning_rate=5e-3, logging_steps=60)
    trainer = latent_classifier_trainer(classifier, WORDS, data, args, eval_rows=data[:2])
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    clean = classifier.word_embeddings(torch.tensor([row["input_ids"] for row in data[:2]]))
    assert classifier.eval()(clean, torch.tensor([1, 1])).logits.argmax(dim=-1).tolist() == [0, 1]
    assert torch.equal(classifier.word_embeddings.weight, model.word_embeddings.weight)
    loaded = load_classifier(trainer.save_final(), "cpu")
    latents, steps = torch.randn(2, 4, 4), torch.tensor([3, 40])
    assert type(loaded) is LatentClassifier and torch.equal(loaded(latents, steps).logits, classifier.eval()(latents, steps).logits)
    with pytest.raises(UserError, match="is a classifier on a Diffusion-LM's latents: give it to `seodang diffusion-lm-sample`"):
        load_diffusion_lm(tmp_path / "run")


def test_the_classifiers_loss_by_hand():
    classifier = new_classifier(built(), ["x", "y"], 32, 1).double()
    seen, noise, start_noise = [], torch.full((1, 2, 4), 0.5, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)

    def classify(_, latents, steps, mask):
        seen.append(latents)
        return type("Said", (), {"logits": torch.tensor([[1.0, 3.0]], dtype=torch.float64)})

    out = classification(classifier, classify, torch.tensor([[3, 4]]), torch.ones(1, 2), torch.tensor([0]), torch.tensor([20]), start_noise, noise)
    assert out.loss.item() == pytest.approx(2 + torch.tensor(1 + torch.e**-2).log().item(), rel=1e-6) and out.accuracy.tolist() == [0.0]
    left = classifier.abar[20]
    assert torch.allclose(seen[0], left.sqrt() * classifier.word_embeddings.weight[[3, 4]] + (1 - left).sqrt() * 0.5)


def test_rows_that_the_model_cannot_take_are_refused(tmp_path):
    for data, said in (
        ([{"input_ids": [3] * 9}], "row 1 has 9 tokens, the model's context only 8"),
        ([{"input_ids": [11]}], "token id 11 is beyond the model's vocabulary of 11"),
        ([{"input_ids": []}], "row 1 has no tokens"),
        ([], "there are no texts to train on"),
    ):
        with pytest.raises(UserError, match=said):
            diffusion_lm_trainer(built(), WORDS, data, arguments(tmp_path))
