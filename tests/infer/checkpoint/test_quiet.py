"""Libraries' lines about what nobody can act on are kept back, ours and all others stay."""

import logging
import warnings

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.quiet import silence_old_names


@pytest.fixture
def told():
    """What the package and transformers log at the level of warnings."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("seodang", "transformers")]
    for each in loggers:
        each.addHandler(handler)
    yield lines
    for each in loggers:
        each.removeHandler(handler)


def test_what_a_checkpoint_has_too_much_or_too_little_is_said_once_in_our_words(fresh_tiny, tiny_tokenizer, tmp_path, told):
    fresh_tiny("llama", tie_word_embeddings=False).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    load(tmp_path, device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=1)
    assert told == ["score.weight is new in LlamaForSequenceClassification and starts untrained"]
    told.clear()
    weights = tmp_path / "model.safetensors"
    found = load_file(weights)
    save_file({**found, "model.extra.weight": found["model.norm.weight"].clone()}, weights, metadata={"format": "pt"})
    load(tmp_path, device="cpu", dtype="float32")
    assert told == [f"{tmp_path} holds 1 tensors that LlamaForCausalLM does not use, model.extra.weight first"]
    told.clear()
    AutoModelForCausalLM.from_pretrained(tmp_path)  # a user's own call is not ours to silence
    assert len(told) == 1 and "LOAD REPORT" in told[0]


def test_only_what_trl_itself_does_is_not_warned_of(fresh_tiny):
    model = fresh_tiny("llama")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        silence_old_names()
        assert not model.is_gradient_checkpointing and not caught
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.warn("another", UserWarning)
    assert [str(each.message) for each in caught] == ["`is_gradient_checkpointing` is deprecated", "another"]
