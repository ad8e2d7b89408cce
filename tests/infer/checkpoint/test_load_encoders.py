"""Encoders' checkpoints: loaded with their head, checked as others are, refused without one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertForPreTraining, BertForSequenceClassification

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, fill_mask, generate, load, score
from seodang.infer.checkpoint.manifest import write_manifest

TEXT = "the [MASK] of korea"


def test_an_encoders_folder_loads_with_its_head_and_fills_in_what_it_did(save_encoder, encoder):
    folder = save_encoder("bert")
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    assert type(model).__name__ == "BertForMaskedLM" and not model.training and model.dtype is torch.float32
    [there], [here] = fill_mask(encoder("bert"), tokenizer, [TEXT]), fill_mask(model, tokenizer, [TEXT])
    assert [each.text for each in here.fillings] == [each.text for each in there.fillings]
    assert [each.logprob for each in here.fillings] == pytest.approx([each.logprob for each in there.fillings], abs=1e-4)
    assert load(folder, device="cpu", dtype="bfloat16")[0].dtype is torch.bfloat16


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_a_body_without_a_head_is_refused_by_name(save_encoder, encoder, kind, capfd):
    ids = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3} if kind == "modernbert" else {}
    body = encoder(kind, **ids).base_model
    with pytest.raises(UserError, match=f"holds a {type(body).__name__} without a masked-language head .* use one saved as {kind[0].upper()}.*ForMaskedLM"):
        load(save_encoder(kind, body), device="cpu", dtype="float32")
    assert "seem corrupted" not in capfd.readouterr().err


def test_a_classifier_has_no_such_head_and_a_pretrained_pair_has(save_encoder, encoder):
    config = encoder("bert").config
    classifier, tokenizer = load(save_encoder("bert", BertForSequenceClassification(config)), device="cpu", dtype="float32")
    with pytest.raises(UserError, match="BertForSequenceClassification has no masked-language head"):
        fill_mask(classifier, tokenizer, [TEXT])
    model, _ = load(save_encoder("bert", BertForPreTraining(config)), device="cpu", dtype="float32")  # as BERT itself was published
    assert type(model).__name__ == "BertForMaskedLM"


def test_who_trains_the_head_may_begin_with_a_new_one(save_encoder, encoder, caplog):
    model, _ = load(save_encoder("bert", encoder("bert").base_model), device="cpu", dtype="float32", model_class=AutoModelForMaskedLM)
    assert type(model).__name__ == "BertForMaskedLM" and "cls.predictions.bias" in caplog.text and "starts untrained" in caplog.text


def test_damage_is_told_as_of_other_checkpoints(save_encoder):
    folder = save_encoder("bert")
    write_manifest(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="model.safetensors"):
        load(folder, device="cpu", dtype="float32")
    folder = save_encoder("bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["cls.predictions.transform.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks the tensor cls.predictions.transform.dense.weight: the checkpoint is incomplete"):
        load(folder, device="cpu", dtype="float32")


def test_an_encoder_does_not_speak(save_encoder):
    model, tokenizer = load(save_encoder("bert"), device="cpu", dtype="float32")
    for call in (lambda: generate(model, tokenizer, ["korea"]), lambda: score(model, tokenizer, ["korea"], ["is"])):
        with pytest.raises(UserError, match="bert attends in both directions and cannot continue a text: it is an encoder .`seodang fill-mask`"):
            call()


def test_the_same_architecture_as_a_decoder_is_one(save_encoder):
    folder = save_encoder("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_decoder": True, "architectures": ["BertLMHeadModel"]}))
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    assert type(model).__name__ == "BertLMHeadModel" and generate(model, tokenizer, ["korea"], SamplingParams(max_new_tokens=2))
    with pytest.raises(UserError, match="bert is a decoder"):
        fill_mask(model, tokenizer, [TEXT])


def test_who_asks_the_wrong_thing_is_told_what_the_model_is_for(save_encoder, encoder):
    config = encoder("bert").config
    classifier = save_encoder("bert")
    BertForSequenceClassification(config).save_pretrained(classifier)
    with pytest.raises(UserError, match="it is a classifier .`seodang classify --predict`"):
        generate(*load(classifier, device="cpu"), ["a"], SamplingParams(max_new_tokens=1))
    with pytest.raises(UserError, match="masked-language head, it is a classifier"):
        fill_mask(*load(classifier, device="cpu"), ["a [MASK]"])
