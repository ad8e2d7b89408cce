from itertools import accumulate
from math import log

import pytest
import torch
import torch.nn.functional as F

from seodang.data.errors import UserError
from seodang.data.packing import collate
from seodang.data.text.documents import Part
from seodang.data.text.rows import causal_rows
from seodang.data.text.store import TokenStore, write_store
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.infer import SamplingParams
from seodang.recipes.options.training import Arguments
from seodang.train.pretraining.architecture import Sizes, small_config, untrained
from seodang.train.pretraining.causal import pretrain, pretrain_trainer
from seodang.train.pretraining.samples import TextSampler

DOCUMENTS = ["가나다라 마바사", "a longer document that fills more than a row of text by itself", "short", "네, 그래요."]
LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, TokenizerSettings(vocab_size=265, min_frequency=1))


def rows_of(folder, tokenizer, documents=DOCUMENTS):
    folder.mkdir(exist_ok=True)
    write_store([Part(f"document {i}", text) for i, text in enumerate(documents)], tokenizer, folder)
    return causal_rows(TokenStore(folder), tokenizer, LENGTH)


def arguments(folder, **settings):
    return Arguments(str(folder), per_device_train_batch_size=2, logging_steps=1, disable_tqdm=True, report_to="none", save_strategy="no", use_cpu=True, **settings)


def model_of(name, tokenizer, dtype=torch.float64):
    return untrained(small_config(name, Sizes(16, 2, 2), tokenizer, LENGTH), 0, dtype, torch.device("cpu"))


def alone(model, tokenizer, documents=DOCUMENTS):
    """The negative log-likelihood of each document by itself in plain transformers, in pieces that share a token, and how many tokens it counts."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for text in documents:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, LENGTH - 1):
            piece = torch.tensor([ids[start : start + LENGTH]])
            logits = model(input_ids=piece).logits[0, :-1]
            total, count = total + F.cross_entropy(logits, piece[0, 1:], reduction="sum"), count + len(logits)
    return total, count


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_packed_documents_have_the_loss_and_gradients_that_each_has_alone(name, tokenizer, tmp_path):
    rows, plain = rows_of(tmp_path / "rows", tokenizer), model_of(name, tokenizer)
    expected, count = alone(plain, tokenizer)
    (expected / count).backward()
    trainer = pretrain_trainer(model_of(name, tokenizer), tokenizer, rows, arguments(tmp_path / "out"))
    batch = trainer.data_collator([*rows])
    assert any(len(row["lengths"]) > 1 for row in rows) and rows.learned() == count == int((batch["labels"] != -100).sum())
    out = trainer.model(**batch)
    out.loss.backward()
    assert out.loss.item() == pytest.approx((expected / count).item(), rel=1e-12)
    gradients = {key: p.grad for key, p in trainer.model.named_parameters()}
    for key, p in plain.named_parameters():
        assert torch.allclose(gradients[key], p.grad, rtol=1e-9, atol=1e-14), key


def test_bits_a_byte_count_every_byte_and_the_ends_of_documents(tokenizer, tmp_path):
    rows = rows_of(tmp_path / "rows", tokenizer)
    trainer = pretrain_trainer(model_of("llama", tokenizer), tokenizer, rows, arguments(tmp_path / "out"), eval_rows=rows)
    nats, count = alone(model_of("llama", tokenizer), tokenizer)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(nats.item() / count) and metrics["eval_bits_per_byte"] == pytest.approx(nats.item() / log(2) / size)
    assert (rows.bytes, rows.uncoded()) == (size, 0)


def test_where_nothing_stands_before_a_document_its_first_token_costs_what_a_token_by_chance_does(text_tokenizer, tmp_path):
    tokenizer = train_tokenizer(DOCUMENTS, TokenizerSettings(vocab_size=265, min_frequency=1))
    tokenizer.backend_tokenizer.post_processor = None
    rows = rows_of(tmp_path / "rows", tokenizer)
    trainer = pretrain_trainer(model_of("llama", tokenizer), tokenizer, rows, arguments(tmp_path / "out"), eval_rows=rows)
    nats, _ = alone(model_of("llama", tokenizer), tokenizer)
    expected = (nats.item() / log(2) + len(DOCUMENTS) * log(265, 2)) / rows.bytes
    assert rows.uncoded() == len(DOCUMENTS) and trainer.evaluate()["eval_bits_per_byte"] == pytest.approx(expected)


def test_a_decoder_learns_its_text_and_the_sampler_writes_what_transformers_does(tokenizer, tmp_path):
    documents = ["가나다라 마바사", "short"]
    rows = rows_of(tmp_path / "rows", tokenizer, documents)
    model = model_of("llama", tokenizer, torch.float32)
    trainer = pretrain(model, tokenizer, rows, arguments(tmp_path / "out", learning_rate=3e-2, max_steps=40, lr_scheduler_type="constant"), eval_rows=rows)
    assert trainer.evaluate()["eval_bits_per_byte"] < 0.3
    shown = []
    strategies = {"greedy": SamplingParams(max_new_tokens=11), "top-p": SamplingParams(max_new_tokens=11, temperature=1.5, top_p=0.99, seed=3)}
    beginnings = ["가나다라", [tokenizer.bos_token_id, *tokenizer("sh", add_special_tokens=False)["input_ids"]]]
    sampler = TextSampler(tokenizer, beginnings, strategies, lambda *words: shown.append(words))
    assert sampler(trainer.model) == {}
    assert [texts["greedy"] for texts in sampler.texts] == [" 마바사", "ort"]  # and then the end of text, which stops it
    for beginning, texts in zip(beginnings, sampler.texts, strict=True):
        ids = torch.tensor([tokenizer(beginning)["input_ids"] if isinstance(beginning, str) else beginning])
        plain = model.generate(ids, max_new_tokens=11, do_sample=False)[0, ids.shape[1] :]
        assert tokenizer.decode(plain, skip_special_tokens=True) == texts["greedy"]
    assert [(name, begun) for name, begun, _ in shown] == [("greedy", "가나다라"), ("top-p", "가나다라"), ("greedy", "sh"), ("top-p", "sh")]
    first = sampler.texts
    sampler(trainer.model)
    assert sampler.texts == first  # the same seeds


def test_rows_longer_than_the_model_and_other_tokenizers_rows_are_refused(tokenizer, tmp_path):
    rows = rows_of(tmp_path / "rows", tokenizer)
    short = untrained(small_config("llama", Sizes(16, 2, 2), tokenizer, LENGTH // 2), 0, torch.float32, torch.device("cpu"))
    with pytest.raises(UserError, match=f"has {LENGTH} tokens, the model's context only {LENGTH // 2}"):
        pretrain_trainer(short, tokenizer, rows, arguments(tmp_path / "out"))


def test_a_rows_labels_leave_out_the_first_of_each_piece_alone(tokenizer, tmp_path):
    rows = rows_of(tmp_path / "rows", tokenizer)
    batch = collate([*rows])
    firsts = [0, *accumulate(length for row in rows for length in row["lengths"])][:-1]
    assert (batch["labels"][0] == -100).nonzero().flatten().tolist() == firsts
