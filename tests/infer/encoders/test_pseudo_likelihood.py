"""Pseudo-log-likelihood: one mask at a time through plain transformers, words from left to right, whatever shares a pass."""

import math

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import pseudo_log_likelihood
from seodang.infer.encoders import encoder as module
from seodang.infer.encoders.encoder import Encoder
from seodang.infer.encoders.pseudo_likelihood import judged_behind, judged_text, pseudo_logprobs

TEXTS = ["seoul is the capital of korea.", "paris", "unbelievable, a city unbelievable", "서울은 수도이다", "suwon is a city of korea?"]
FOLLOWING = {"un": 2, "##believ": 1, "서울": 1, "수도": 1}  # how many tokens of its word follow this one in the texts


@torch.no_grad()
def one_at_a_time(model, tokenizer, text: str, l2r: bool = False) -> list[float]:
    """By transformers alone: a reading of its own for each token that the tokenizer has not put around the text."""
    inputs = tokenizer(text, return_tensors="pt")
    ids, names, found = inputs["input_ids"], tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()), []
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place : place + 1 + (FOLLOWING.get(names[place], 0) if l2r else 0)] = tokenizer.mask_token_id
        logits = model(**{**inputs, "input_ids": masked}).logits
        found.append(logits[0, place].log_softmax(-1)[ids[0, place]].item())
    return found


@pytest.mark.parametrize("kind", ["bert", "albert", "distilbert", "modernbert"])
def test_each_token_is_what_a_reading_of_its_own_gives_it(encoder, wordpiece, kind):
    model = encoder(kind, **({"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3} if kind == "modernbert" else {}))
    for text, found in zip(TEXTS, pseudo_log_likelihood(model, wordpiece, TEXTS), strict=True):
        expected = one_at_a_time(model, wordpiece, text)
        assert found.ids == wordpiece(text, add_special_tokens=False)["input_ids"] and found.logprobs.dtype == torch.float64
        assert found.logprobs.tolist() == pytest.approx(expected, abs=1e-10)
        assert found.value == pytest.approx(sum(expected), abs=1e-9) and found.per_token == pytest.approx(sum(expected) / len(expected))
        assert found.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)))


def test_within_a_word_what_follows_is_masked_too(encoder, wordpiece):
    model = encoder("bert")
    plain, l2r = (pseudo_log_likelihood(model, wordpiece, TEXTS, metric=metric) for metric in ("original", "within_word_l2r"))
    for text, one, other in zip(TEXTS, plain, l2r):
        assert other.logprobs.tolist() == pytest.approx(one_at_a_time(model, wordpiece, text, l2r=True), abs=1e-10)
        assert (one.value == other.value) is (text in ("seoul is the capital of korea.", "paris", "suwon is a city of korea?"))


def test_words_of_a_byte_level_tokenizer_are_its_own(encoder, bytelevel):
    model = encoder("roberta", vocab_size=len(bytelevel), pad_token_id=1, bos_token_id=0, eos_token_id=2)
    [found] = pseudo_log_likelihood(model, bytelevel, ["a seoul"], metric="within_word_l2r")
    ids = bytelevel("a seoul")["input_ids"]
    assert bytelevel.convert_ids_to_tokens(ids) == ["<s>", "a", "Ġseo", "u", "l", "</s>"]
    for place, hidden in ((1, [1]), (2, [2, 3, 4]), (3, [3, 4]), (4, [4])):
        masked = torch.tensor([[bytelevel.mask_token_id if at in hidden else id for at, id in enumerate(ids)]])
        with torch.no_grad():
            expected = model(masked).logits[0, place].log_softmax(-1)[ids[place]].item()
        assert found.logprobs[place - 1].item() == pytest.approx(expected, abs=1e-10)


def test_passes_are_bounded_and_change_nothing(encoder, wordpiece, monkeypatch):
    model, sizes, own = encoder("bert"), [], Encoder._logits
    monkeypatch.setattr(Encoder, "_logits", lambda self, some: sizes.append((len(some), len(some[0].reading.ids))) or own(self, some))
    whole = pseudo_log_likelihood(model, wordpiece, TEXTS)
    assert sorted(length for _, length in sizes) == [3, 6, 9, 11] and (14, 9) in sizes  # texts of one length share a pass
    sizes.clear()
    monkeypatch.setattr(module, "MAX_POSITIONS", 25)
    small = pseudo_log_likelihood(model, wordpiece, TEXTS)
    assert all(count * length <= 25 for count, length in sizes) and (2, 9) in sizes and (4, 6) in sizes
    monkeypatch.setattr(module, "MAX_POSITIONS", 1)
    single = pseudo_log_likelihood(model, wordpiece, TEXTS)
    for one, two, three in zip(whole, small, single):
        torch.testing.assert_close(one.logprobs, two.logprobs, atol=1e-12, rtol=0)
        torch.testing.assert_close(one.logprobs, three.logprobs, atol=1e-12, rtol=0)


def test_behind_a_context_the_completion_alone_is_judged(encoder, wordpiece):
    judge = Encoder(encoder("bert"), wordpiece)
    judged = judged_behind(judge, "the capital of korea is", "seoul unbelievable.", "it")
    text = "the capital of korea is seoul unbelievable."
    assert judged.reading.ids == wordpiece(text)["input_ids"] and list(judged.places) == [6, 7, 8, 9, 10]
    for metric in ("original", "within_word_l2r"):
        [found], [all_of_it] = pseudo_logprobs(judge, [judged], metric), pseudo_logprobs(judge, [judged_text(judge, text, "it")], metric)
        torch.testing.assert_close(found, all_of_it[5:], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["paris", ""], {}, "text 2 has no tokens: there is nothing to judge"),
        (["[MASK] is paris"], {}, r"text 1 has \[MASK\], the mask token: fill it in first"),
        (["a " * 40], {}, "text 1 has 42 tokens, more than the 40 positions of the encoder"),
        (["paris"], {"metric": "l2r"}, "metric must be original or within_word_l2r, got 'l2r'"),
        ("paris", {}, "texts must be a list of texts"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_any_compute(encoder, wordpiece, monkeypatch, texts, options, message):
    model = encoder("bert")
    monkeypatch.setattr(Encoder, "_logits", lambda *_: pytest.fail("computed something"))
    with pytest.raises(UserError, match=message):
        pseudo_log_likelihood(model, wordpiece, texts, **options)
