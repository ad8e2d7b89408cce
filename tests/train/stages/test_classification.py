import copy
import random

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments

from seodang.data.classification.labels import MULTI, REGRESSION, SINGLE
from seodang.data.errors import UserError
from seodang.train.maths.classification_metrics import measure
from seodang.train.maths.classifier_loss import classifier_losses, record_weights
from seodang.train.models.classifier import head_names, pooling_of, renew_head, set_pooling
from seodang.train.stages.classification import TextCollator, classifier_trainer

WORDS = [f"w{number}" for number in range(50)]
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LABELS = {SINGLE: lambda i: i % 3, MULTI: lambda i: [float(i % 2), float(i % 3 == 0), 1.0], REGRESSION: lambda i: i / 10}


def build(problem=SINGLE, kind="bert", labels=3, **changes):
    config = AutoConfig.for_model(kind, **{**SIZES, "num_labels": 1 if problem == REGRESSION else labels, "problem_type": problem, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


def rows(problem=SINGLE, count=8):
    draw = random.Random(1)
    return [
        {"input_ids": [2, *(draw.randrange(5, 55) for _ in range(draw.randint(1, 12))), 3], "label": LABELS[problem](i), "where": f"line {i + 1}"}
        for i in range(count)
    ]


def arguments(folder, **changes):
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 4, "max_steps": 3}
    return TrainingArguments(str(folder), **{**settings, **changes})


@pytest.fixture
def words(word_tokenizer):
    return word_tokenizer(WORDS)


# The loss


def test_a_weighted_and_smoothed_loss_is_torchs_own():
    logits, labels, weights = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 1, 0]), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    losses = classifier_losses(logits, labels, SINGLE, weights, smoothing=0.2)
    counted = record_weights(labels, SINGLE, weights)
    assert counted.tolist() == [0.5, 1, 4, 1, 1, 0.5]
    torch.testing.assert_close(losses.sum() / counted.sum(), F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.2))


def test_the_loss_of_several_labels_and_of_a_number_by_hand():
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    sigmoid = 1 / (1 + torch.tensor(-2.0, dtype=torch.float64).exp())
    want = (-torch.tensor(0.5, dtype=torch.float64).log() - 3 * sigmoid.log()) / 2  # the second label is there, and weighs three times
    got = classifier_losses(logits, torch.tensor([[0.0, 1.0]], dtype=torch.float64), MULTI, torch.tensor([1.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(got, want[None])
    assert classifier_losses(torch.tensor([[1.5]]), torch.tensor([1.0]), REGRESSION).tolist() == [0.25]


@pytest.mark.parametrize("problem", LABELS)
def test_loss_and_gradients_of_an_accumulated_batch_are_those_of_plain_transformers(problem, words, tmp_path):
    """In float64: 8 rows of mixed lengths in 2 micro-batches, beside each row alone through the architecture's own loss."""
    plain, data = build(problem).double(), rows(problem)
    trainer = classifier_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, gradient_accumulation_steps=2, optim="sgd", learning_rate=1.0,
                                 lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1))  # fmt: skip
    trainer.train()
    kind = torch.int64 if problem == SINGLE else torch.float64
    losses = [plain(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["label"]], dtype=kind)).loss for row in data]
    (sum(losses) / len(losses)).backward()
    moved = dict(trainer.model.named_parameters())
    for name, before in plain.named_parameters():
        if before.grad is not None:
            torch.testing.assert_close(before - moved[name], before.grad, rtol=1e-7, atol=1e-9, msg=name)  # a step of 1 along the gradient


def test_class_weights_weigh_over_the_whole_accumulated_batch(words, tmp_path):
    plain, data, weights = build().double(), rows(), [1.0, 2.0, 5.0]
    trainer = classifier_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, gradient_accumulation_steps=2, optim="sgd", learning_rate=1.0,
                                 lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1), class_weights=weights)  # fmt: skip
    trainer.train()
    logits = torch.cat([plain(input_ids=torch.tensor([row["input_ids"]])).logits for row in data])
    F.cross_entropy(logits, torch.tensor([row["label"] for row in data]), weight=torch.tensor(weights, dtype=torch.float64)).backward()
    moved = trainer.model.classifier.weight
    torch.testing.assert_close(plain.classifier.weight - moved, plain.classifier.weight.grad, rtol=1e-6, atol=1e-8)


# Evaluation


@pytest.mark.parametrize("problem", LABELS)
def test_an_evaluation_measures_the_plain_models_logits(problem, words, tmp_path):
    plain, data = build(problem).double().eval(), rows(problem, 11)
    trainer = classifier_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, per_device_eval_batch_size=4), eval_rows=data)
    with torch.no_grad():
        logits = torch.cat([plain(input_ids=torch.tensor([row["input_ids"]])).logits for row in data])
    torch.testing.assert_close(trainer.logits_of(data), logits, rtol=1e-9, atol=1e-10)
    labels = torch.tensor([row["label"] for row in data], dtype=torch.int64 if problem == SINGLE else torch.float64)
    want = {f"eval_{name}": value for name, value in measure(logits, labels, problem).values.items()}
    got = trainer.evaluate()
    assert {name: got[name] for name in want} == pytest.approx(want, abs=1e-5, nan_ok=True)
    assert got["eval_loss"] == pytest.approx(classifier_losses(logits, labels, problem).mean().item(), abs=1e-5)


def test_what_is_measured_of_one_class_of_several_by_hand():
    logits = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]]).log()
    found = measure(logits, torch.tensor([0, 1, 1, 1]), SINGLE)
    assert found.values["accuracy"] == 0.75 and found.matrix.tolist() == [[1, 0], [1, 2]]
    assert found.values["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found.values["ece"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.1) / 4, abs=1e-6)  # each alone in its bin


def test_what_is_measured_of_several_labels_by_hand():
    logits = torch.tensor([[2.0, -1.0], [-1.0, 0.5]])
    found = measure(logits, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), MULTI)
    assert found.values["exact_match"] == 0.5 and found.values["micro_f1"] == pytest.approx(4 / 5)
    assert found.values["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert measure(logits, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), MULTI, threshold=0.7).values["micro_f1"] == pytest.approx(2 / 4)


# The head


def test_the_pooling_is_what_the_architecture_can_say():
    modern = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": None, "eos_token_id": None}
    model = build(kind="modernbert", **modern)
    assert pooling_of(model) == "cls"
    set_pooling(model, "mean")
    assert model.config.classifier_pooling == "mean" and pooling_of(model) == "mean"
    bert, llama = build(), build(kind="llama")
    assert (pooling_of(bert), pooling_of(llama)) == ("cls", "last")
    set_pooling(bert, "cls")
    with pytest.raises(UserError, match="the head of bert reads cls, and its config has no word for mean"):
        set_pooling(bert, "mean")
    with pytest.raises(UserError, match="the head of llama reads last"):
        set_pooling(llama, "cls")


def test_a_head_begun_anew_is_random_and_the_trunk_stays():
    model = build()
    before = copy.deepcopy(model.state_dict())
    renew_head(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight"} and model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert head_names(model) == ["classifier", "pooler"]
    assert head_names(build(kind="distilbert", dim=32, hidden_dim=64, n_heads=4, n_layers=2)) == ["pre_classifier", "classifier"]


# Refusals


def test_rows_that_do_not_fit_the_head_are_refused(words, tmp_path):
    args, tokenizer = arguments(tmp_path), words
    with pytest.raises(UserError, match="line 9: the label 3 is no place among 3 classes"):
        classifier_trainer(build(), tokenizer, [*rows(), {**rows()[0], "label": 3, "where": "line 9"}], args)
    with pytest.raises(UserError, match="2 class weights for 3 labels"):
        classifier_trainer(build(), tokenizer, rows(), args, class_weights=[1, 2])
    with pytest.raises(UserError, match="label_smoothing_factor 0.1 is for one class of several"):
        classifier_trainer(build(REGRESSION), tokenizer, rows(REGRESSION), arguments(tmp_path, label_smoothing_factor=0.1))
    with pytest.raises(UserError, match=r"ends in \[PAD\], the padding"):
        classifier_trainer(build(), tokenizer, [{"input_ids": [2, 5, 0], "label": 0}, *rows()], args)
    with pytest.raises(UserError, match="33 tokens, max_length is 32"):
        classifier_trainer(build(), tokenizer, [{"input_ids": [2] * 33, "label": 0}, *rows()], args)
    with pytest.raises(UserError, match="no labelled texts to train on"):
        classifier_trainer(build(), tokenizer, [], args)


def test_a_model_without_token_types_is_given_none(words, tmp_path):
    data = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in rows()]
    model = build(kind="distilbert", dim=32, hidden_dim=64, n_heads=4, n_layers=2)
    trainer = classifier_trainer(model, words, data, arguments(tmp_path, max_steps=1))
    assert "token_type_ids" not in trainer.data_collator(data) and trainer.train().global_step == 1


def test_a_batch_has_the_longest_row_first():
    some = [{"input_ids": [2, 3], "label": 0}, {"input_ids": [2, 9, 3], "label": 1}]
    batch = TextCollator(0, SINGLE)(some)
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]] and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
