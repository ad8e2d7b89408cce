import copy
import random

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForTokenClassification, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.tagging.encoding import TagEncoder
from seodang.data.tagging.records import TaggedText
from seodang.data.tagging.rows import tagging_rows
from seodang.data.tagging.schemes import Span, spans_of, tag_names
from seodang.infer.encoders.unpadded import is_unpadded
from seodang.train.maths.entity_metrics import decisions_over, entity_metrics
from seodang.train.stages.tagging import WindowCollator, tagger_trainer

WORDS = [f"w{number}" for number in range(50)]
NAMES = tag_names(["LOC", "PER"])
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PLAIN = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "max_steps": 1}


def build(kind="bert", names=NAMES, std=0.3, **changes):
    config = AutoConfig.for_model(kind, **{**SIZES, "id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
    return model.double()


def examples(count=8, longest=12):
    draw, found = random.Random(1), []
    for number in range(count):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, longest))]
        first = draw.randrange(len(words))
        last = draw.randint(first, min(first + 2, len(words) - 1))
        begin = len(" ".join(words[:first])) + bool(first)
        end = len(" ".join(words[: last + 1]))
        found.append(TaggedText(f"line {number + 1}", " ".join(words), (Span(begin, end, "LOC" if number % 3 else "PER"),)))
    return found


@pytest.fixture
def words(word_tokenizer):
    return word_tokenizer(WORDS)


def rows_of(some, tokenizer, **how):
    return tagging_rows(some, TagEncoder(tokenizer, **how), NAMES)[0]


def arguments(folder, **changes):
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 4, "max_steps": 3}
    return TrainingArguments(str(folder), **{**settings, **changes})


def test_loss_and_gradients_of_an_accumulated_batch_are_the_mean_over_all_tags_by_plain_transformers(words, tmp_path):
    """In float64: 8 texts of mixed lengths in 2 micro-batches, beside each text alone."""
    plain, data = build(), rows_of(examples(), words)
    trainer = tagger_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, gradient_accumulation_steps=2, **PLAIN))
    trainer.train()
    windows = [window for row in data for window in row["windows"]]
    losses = [
        F.cross_entropy(plain(torch.tensor([window["input_ids"]])).logits[0], torch.tensor(window["labels"]), ignore_index=-100, reduction="sum")
        for window in windows
    ]
    (sum(losses) / sum(label != -100 for window in windows for label in window["labels"])).backward()
    moved = dict(trainer.model.named_parameters())
    for name, before in plain.named_parameters():
        torch.testing.assert_close(before - moved[name], before.grad, rtol=1e-7, atol=1e-9, msg=name)  # a step of 1 along the gradient


def test_an_evaluation_reads_entities_off_the_plain_models_logits(words, tmp_path):
    """Over texts of several windows too; the tags are found by trying every sequence that is one."""
    plain, some = build().eval(), examples(11, 6)
    data = rows_of(some, words, max_length=6, stride=2)
    assert any(len(row["windows"]) > 1 for row in data)
    trainer = tagger_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, per_device_eval_batch_size=4), eval_rows=data)
    truths, losses = [], []
    for each, row in zip(some, data, strict=True):
        logits, labels = [], []
        for window in row["windows"]:
            with torch.no_grad():
                found = plain(torch.tensor([window["input_ids"]])).logits[0]
            keep = torch.tensor(window["labels"]) != -100
            logits.append(found[keep])
            labels.append(torch.tensor(window["labels"])[keep])
        logits, labels = torch.cat(logits), torch.cat(labels)
        losses += F.cross_entropy(logits, labels, reduction="none").tolist()
        tags = best_by_trying(logits.log_softmax(-1))
        spans = [Span(row["units"][start][0], row["units"][end - 1][1], label) for start, end, label in spans_of([NAMES[tag] for tag in tags])]
        truths.append((each.entities, spans))
    want = entity_metrics(decisions_over(truths, ["LOC", "PER"])).values
    got = trainer.evaluate()
    assert {name: got[f"eval_{name}"] for name in want} == pytest.approx(want) and want["recall"] < 1
    assert got["eval_loss"] == pytest.approx(sum(losses) / len(losses))


def best_by_trying(logprobs):
    """The likeliest of all sequences in which an I- goes on with its own label."""
    paths = {(): 0.0}
    for row in logprobs.tolist():
        paths = {
            (*path, tag): score + value
            for path, score in paths.items()
            for tag, value in enumerate(row)
            if not NAMES[tag].startswith("I-") or path and NAMES[path[-1]][2:] == NAMES[tag][2:]
        }
    return max(paths, key=paths.get)


def test_a_batch_has_the_longest_window_first_and_no_labels_at_padding():
    some = [{"input_ids": [2, 3], "labels": [-100, 0]}, {"input_ids": [2, 9, 3], "labels": [-100, 1, -100]}]
    batch = WindowCollator(0)(some)
    assert batch["input_ids"].tolist() == [[2, 9, 3], [2, 3, 0]] and batch["labels"].tolist() == [[-100, 1, -100], [-100, 0, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "roberta", "electra", "llama"])
def test_other_architectures_learn_too(kind, words, tmp_path):
    changes = {
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_heads": 4, "n_layers": 2}, "electra": {"embedding_size": 16},
        "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": None, "eos_token_id": None},
    }.get(kind, {})  # fmt: skip
    model, data = build(kind, **changes, std=0.1).float(), rows_of(examples(), words)
    args = arguments(tmp_path, max_steps=2, learning_rate=1e-2, lr_scheduler_type="constant", logging_steps=1)
    trainer = tagger_trainer(model, words, data, args)
    trainer.train()
    assert is_unpadded(trainer.model)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0]


def test_rows_that_do_not_fit_are_refused(words, tmp_path):
    args, good = arguments(tmp_path), rows_of(examples(), words)

    def with_window(**changes):
        return [{**good[0], "windows": [{**good[0]["windows"][0], "where": "line 9", **changes}]}]

    length = len(good[0]["windows"][0]["input_ids"])
    with pytest.raises(UserError, match="line 9: the label 5 is no place among 5 tags"):
        tagger_trainer(build(), words, with_window(labels=[5] * length), args)
    with pytest.raises(UserError, match="line 9: no token has a tag"):
        tagger_trainer(build(), words, with_window(labels=[-100] * length), args)
    with pytest.raises(UserError, match=f"line 9: {length} tokens and 1 labels"):
        tagger_trainer(build(), words, with_window(labels=[0]), args)
    with pytest.raises(UserError, match="line 1 has 33 tokens, max_length is 32"):
        tagger_trainer(build(), words, good, args, eval_rows=with_window(input_ids=[2] * 33, labels=[0] * 33))
    with pytest.raises(UserError, match="no texts with entities to train on"):
        tagger_trainer(build(), words, [], args)
    with pytest.raises(UserError, match="the model tells apart NOUN, VERB, and 'NOUN' is no tag of entities"):
        tagger_trainer(build(names=["NOUN", "VERB"]), words, good, args)
