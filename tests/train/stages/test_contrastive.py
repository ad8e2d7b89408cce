"""Contrastive learning: the loss by hand and by a slow loop, what is no negative, a step beside plain transformers', what is measured, the folder."""

import copy
import math
import random

import pytest
import torch
from transformers import AutoConfig, AutoModel, TrainingArguments

from seodang.data.classification.encoding import TextEncoder
from seodang.data.errors import UserError
from seodang.data.similarity.pairs import TextPair, pair_rows, texts_of
from seodang.infer import SentenceEncoder
from seodang.infer.encoders.readout import Normalise, Readout
from seodang.train.maths.contrastive_loss import info_nce
from seodang.train.maths.retrieval_metrics import places, retrieval_metrics, spearman
from seodang.train.stages.contrastive import PairCollator, contrastive_trainer

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
WORDS = [f"w{number}" for number in range(50)]


@pytest.fixture
def words(word_tokenizer):
    return word_tokenizer(WORDS)


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(AutoConfig.for_model("bert", **SIZES), add_pooling_layer=False)


def arguments(folder, **changes):
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 4, "max_steps": 2}
    return TrainingArguments(str(folder), **{**settings, **changes})


def pair(anchor, positive, *negatives, score=None):
    return TextPair("here", anchor, positive, tuple(negatives), score)


def text(draw):
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))


def rows(words, count=8, negatives=1):
    draw = random.Random(1)
    pairs = [pair(text(draw), text(draw), *(text(draw) for _ in range(negatives))) for _ in range(count)]
    return pair_rows(pairs, TextEncoder(words, 32))[0]


# The loss


def test_the_loss_by_hand():
    """Two anchors at right angles, their own beside them, a hard negative at 60 degrees of the first; temperature 0.5."""
    anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0]], dtype=torch.double)
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, math.sqrt(0.75)]], dtype=torch.double)
    got = info_nce(anchors, candidates, torch.zeros(2, 3, dtype=torch.bool), 0.5)
    root = math.sqrt(0.75)
    wanted = [math.log(math.exp(2) + 1 + math.e) - 2, math.log(math.exp(2) + 1 + math.exp(2 * root)) - 2]
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=torch.double))
    left_out = torch.tensor([[False, True, False], [False, False, True]])
    got = info_nce(anchors, candidates, left_out, 0.5)
    torch.testing.assert_close(got, torch.tensor([math.log(math.exp(2) + math.e) - 2, math.log(math.exp(2) + 1) - 2], dtype=torch.double))
    both = info_nce(anchors, candidates, torch.zeros(2, 3, dtype=torch.bool), 0.5, symmetric=True)
    back = math.log(math.exp(2) + 1) - 2  # among the two anchors
    torch.testing.assert_close(both, torch.tensor([(each + back) / 2 for each in wanted], dtype=torch.double))


def slow_loss(model, readout, found, temperature, symmetric):
    """Each text alone through transformers' own forward, each pair by a loop; who belongs to an anchor is no negative of it."""

    def vector(ids):
        states = model(input_ids=torch.tensor([ids])).last_hidden_state
        return torch.nn.functional.normalize(readout(states, torch.ones(1, len(ids), dtype=torch.int64))[0], dim=0)

    def said(own, others):
        return -torch.log(torch.exp(own) / (torch.exp(own) + sum(torch.exp(other) for other in others)))

    losses = []
    for i, (anchor, positive, *_) in enumerate(found):
        friends = {anchor} | {other[1] for other in found if other[0] == anchor}
        against = [other[1] for j, other in enumerate(found) if j != i and other[1] not in friends]
        against += [negative for other in found for negative in other[2:] if negative not in friends]
        own = vector(anchor) @ vector(positive) / temperature
        loss = said(own, [vector(anchor) @ vector(other) / temperature for other in against])
        if symmetric:
            others = [other[0] for j, other in enumerate(found) if j != i and positive not in {other[0]} | {each[1] for each in found if each[0] == other[0]}]
            loss = (loss + said(own, [vector(other) @ vector(positive) / temperature for other in others])) / 2
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_batch_with_doubled_texts_is_that_of_a_slow_loop(words, symmetric, tmp_path):
    pairs = [
        pair("w1 w2", "w3", "w4 w5 w6"), pair("w1 w2", "w7 w8 w9", "w1 w2"), pair("w10", "w3"), pair("w7 w8 w9", "w11", "w3"), pair("w12 w13 w14 w15", "w10"),
    ]  # fmt: skip
    data, _ = pair_rows(pairs, TextEncoder(words, 32))
    model, readout = build().double(), Readout(modes=("mean",))
    trainer = contrastive_trainer(copy.deepcopy(model), words, data, arguments(tmp_path), readout=readout, temperature=0.3, symmetric=symmetric)
    batch, seen = trainer.data_collator(data), []
    trainer.model.encoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    got = trainer.losses(trainer.model.train(), batch)
    found = [texts_of(row) for row in data]
    distinct = {each for texts in found for each in texts}
    assert len(batch["input_ids"]) == len(distinct) == 7 and seen == [(1, sum(map(len, distinct)))]  # each text once, and no padding
    torch.testing.assert_close(got, slow_loss(model, readout, found, 0.3, symmetric), rtol=1e-9, atol=1e-10)
    # w7 w8 w9 belongs to w1 w2 and is its own row's anchor; w3 belongs to w1 w2 and to w10, and is a negative of the fourth row all the same
    columns = ["w3", "w7 w8 w9", "w3", "w11", "w10", "w4 w5 w6", "w1 w2", "w3"]
    told = [[name for name, out in zip(columns, row) if out] for row in batch["left_out"].tolist()]
    assert told == [["w7 w8 w9", "w3", "w1 w2", "w3"], ["w3", "w3", "w1 w2", "w3"], ["w3", "w10", "w3"], ["w7 w8 w9"], []]


def test_a_step_of_two_micro_batches_is_that_of_plain_transformers(words, tmp_path):
    """In float64, by SGD: the mean over 6 pairs of micro-batches of 4 and 2, whose negatives are their own."""
    plain, data = build().double(), rows(words, 6)
    trainer = contrastive_trainer(copy.deepcopy(plain), words, data, arguments(tmp_path, gradient_accumulation_steps=2, optim="sgd", learning_rate=1.0,
                                  lr_scheduler_type="constant", max_grad_norm=0.0, max_steps=1), temperature=0.2)  # fmt: skip
    seen, collate = [], trainer.data_collator
    trainer.data_collator = lambda some: seen.append([texts_of(row) for row in some]) or collate(some)
    trainer.train()
    assert [len(some) for some in seen] == [4, 2]
    losses = [slow_loss(plain, Readout(), some, 0.2, False) for some in seen]
    (torch.cat(losses).sum() / 6).backward()
    moved = dict(trainer.model.named_parameters())
    for name, before in plain.named_parameters():
        torch.testing.assert_close(moved[name], before - before.grad, rtol=1e-7, atol=1e-9, msg=name)


def test_it_learns_and_its_folder_is_read_again(words, tmp_path):
    """Anchors w0 to w15 belong to the word thirty places on: found at last, which chance finds one in sixteen times."""
    pairs = [pair(f"w{i}", f"w{i + 30}") for i in range(16)]
    data, _ = pair_rows(pairs, TextEncoder(words, 32))
    readout = Readout(modes=("mean",), steps=(Normalise(),), max_length=9)
    args = arguments(tmp_path / "run", per_device_train_batch_size=16, max_steps=60, learning_rate=3e-3, lr_scheduler_type="constant", logging_steps=20)
    trainer = contrastive_trainer(build(), words, data, args, eval_rows=data, readout=readout)
    before = trainer.figures(data)
    trainer.train()
    after = trainer.evaluate()
    assert before["recall@1"] < 0.5 and after["eval_recall@1"] == 1.0 and after["eval_mrr"] == 1.0 and after["eval_loss"] < 0.1 < before["loss"]
    assert trainer.state.log_history[0]["left_out"] == 0
    encoder = SentenceEncoder.open(trainer.save_final(), dtype="float32", device="cpu")
    assert encoder.readout == readout and encoder.max_length == 9
    place, vectors = trainer.vectors_of(data)
    torch.testing.assert_close(encoder.embed(["w3"])[0].double(), vectors[place[tuple(words("w3")["input_ids"])]], rtol=0, atol=1e-6)


def test_resuming_goes_on_to_the_bit(words, tmp_path):
    data = rows(words, 16)
    how = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3}
    whole = contrastive_trainer(build(), words, data, arguments(tmp_path / "a", **how))
    whole.train()
    again = contrastive_trainer(build(), words, data, arguments(tmp_path / "a", **how))
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert (tmp_path / "a" / "checkpoint-3" / "modules.json").is_file()
    assert all(torch.equal(one, other) for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True))


# What is measured


def test_places_by_hand_ties_against_oneself_and_others_that_belong_aside():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.double)
    documents = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.double)
    assert places(queries, documents, [0, 2, 0], [[], [], [1]]).tolist() == [2, 2, 1]
    found = retrieval_metrics(torch.tensor([1, 2, 4, 20]), 10)
    assert found == {"recall@1": 0.25, "recall@10": 0.75, "mrr": pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4)}
    assert spearman(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)


def test_scores_are_correlated_and_low_ones_belong_to_nobody(words, tmp_path):
    held = [pair("w1", "w2", score=5), pair("w3", "w4", score=0), pair("w5", "w6 w7", score=3), pair("w8", "w9", score=4)]
    eval_rows, counts = pair_rows(held, TextEncoder(words, 32), min_score=4, learned=False)
    trainer = contrastive_trainer(build().double(), words, rows(words), arguments(tmp_path), eval_rows=eval_rows, min_score=4)
    assert counts.scored == 4 and [row["score"] for row in trainer.belonging(eval_rows)] == [5, 4]
    figures = trainer.figures(eval_rows)
    encoder = SentenceEncoder(trainer.model, words)
    cosines = torch.nn.functional.cosine_similarity(encoder.embed([each.anchor for each in held]), encoder.embed([each.positive for each in held]))
    order = cosines.argsort().argsort().double()
    wanted = torch.tensor([3, 0, 1, 2], dtype=torch.double)
    assert figures["spearman"] == pytest.approx(1 - 6 * (order - wanted).square().sum().item() / (4 * 15))


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [({"temperature": 0.0}, "temperature must be above 0"), ({"args": {"per_device_train_batch_size": 1}}, "leaves a pair without negatives")],
)
def test_what_cannot_be_learned_by_is_refused(words, tmp_path, changes, message):
    args = arguments(tmp_path, **changes.pop("args", {}))
    with pytest.raises(UserError, match=message):
        contrastive_trainer(build(), words, rows(words, negatives=0), args, **changes)


def test_a_collator_keeps_what_belongs_by_its_texts(words):
    batch = PairCollator(0)(rows(words, 3, negatives=2))
    assert batch["anchors"].shape == (3,) and batch["candidates"].shape == (9,) and batch["left_out"].shape == (3, 9)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths == sorted(lengths, reverse=True)
