"""Vectors of texts: plain transformers' states pooled by hand, packed as alone, folders of sentence-transformers as they say, what is lost told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from seodang.data.errors import UserError
from seodang.infer import SentenceEncoder, embed, load
from seodang.infer.encoders.readout import MODES, Dense, Normalise, Readout
from seodang.infer.encoders.sentence_folder import read_readout, write_readout

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12", "w9 w8", "w13 w14 w15 w16 w17 w18 w19 w20 w21", "w4"]
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40,
    "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "bert": {}, "roberta": {"pad_token_id": 1}, "electra": {"embedding_size": 16}, "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4, "layer_types": ["full_attention", "sliding_attention"]}, "deberta-v2": {},
}  # fmt: skip


def tiny(kind, seed=0):
    """A random encoder without a head, in float64, whose biases are not zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}))
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return model.double().eval()


@pytest.fixture
def tokenizer(word_tokenizer):
    return word_tokenizer([f"w{number}" for number in range(50)])


def by_hand(model, tokenizer, text, mode):
    """One text through transformers' own forward, and the mode written out."""
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    n = len(ids)
    return {
        "cls": states[0], "lasttoken": states[n - 1], "max": torch.stack([states[:, k].max() for k in range(32)]), "mean": states.sum(0) / n,
        "mean_sqrt_len_tokens": states.sum(0) / n**0.5, "weightedmean": sum((i + 1) * states[i] for i in range(n)) / (n * (n + 1) / 2),
    }[mode]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_among_others_is_the_one_alone(kind, tokenizer):
    model = tiny(kind)
    got = SentenceEncoder(model, tokenizer).embed(TEXTS)
    torch.testing.assert_close(got, torch.stack([by_hand(model, tokenizer, text, "mean") for text in TEXTS]), rtol=1e-9, atol=1e-11)
    assert (got[0] - got[1]).abs().max() > 0.01 and got.dtype == torch.float64


def test_every_mode_and_several_behind_one_another(tokenizer):
    model = tiny("bert")
    for mode in MODES:
        got = SentenceEncoder(model, tokenizer, Readout(modes=(mode,))).embed(TEXTS)
        torch.testing.assert_close(got, torch.stack([by_hand(model, tokenizer, text, mode) for text in TEXTS]), rtol=1e-9, atol=1e-11, msg=mode)
    encoder = SentenceEncoder(model, tokenizer, Readout(modes=("cls", "mean"), steps=(Normalise(),)))
    wanted = torch.stack([torch.cat([by_hand(model, tokenizer, text, mode) for mode in ("cls", "mean")]) for text in TEXTS])
    torch.testing.assert_close(encoder.embed(TEXTS), wanted / wanted.square().sum(1, keepdim=True).sqrt())
    assert encoder.size == 64


def test_a_layer_behind_the_pooling(tokenizer):
    model, weight, bias = tiny("bert"), torch.randn(5, 32, dtype=torch.double), torch.randn(5, dtype=torch.double)
    encoder = SentenceEncoder(model, tokenizer, Readout(steps=(Dense(weight, bias),)))
    wanted = torch.stack([torch.tanh(weight @ by_hand(model, tokenizer, text, "mean") + bias) for text in TEXTS])
    torch.testing.assert_close(encoder.embed(TEXTS), wanted)
    assert encoder.size == 5


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A random BERT as sentence-transformers 2 wrote it, its Normalize without a folder."""
    tiny("bert").float().save_pretrained(tmp_path / "st")
    tokenizer.save_pretrained(tmp_path / "st")
    types = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(types)]
    put(tmp_path / "st" / "modules.json", listed)
    (tmp_path / "st" / "1_Pooling").mkdir()
    put(tmp_path / "st" / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    put(tmp_path / "st" / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})
    put(tmp_path / "st" / "config_sentence_transformers.json", {"prompts": {"query": "w7 ", "passage": ""}, "default_prompt_name": None})
    return tmp_path / "st"


def put(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_folder_is_read_as_it_says(folder, tokenizer, caplog):
    encoder = SentenceEncoder.open(folder, dtype="float32", device="cpu")
    assert (encoder.readout.modes, encoder.max_length, encoder.readout.normalised) == (("cls",), 6, True)
    got = encoder.embed(["W1 w2", "w1 w2 w3 w4 w5 w6 w7"])
    model = load(folder, dtype="float32", device="cpu")[0]  # whose vectors `embed` makes alike
    wanted = torch.stack([by_hand(model, tokenizer, text, "cls") for text in ("w1 w2", "w1 w2 w3 w4")])  # four and the two around them
    torch.testing.assert_close(got, torch.nn.functional.normalize(wanted), rtol=0, atol=1e-6)
    assert "1 of 2 texts are longer than 6 tokens (the longest has 9): of each the first 6 are read" in caplog.text
    torch.testing.assert_close(embed(model, tokenizer, ["w1 w2"]), got[:1], rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.embed(["w1"], prompt="query"), encoder.embed(["w7 w1"]))
    assert torch.equal(encoder.embed(["w1"], prompt="passage"), encoder.embed(["w1"]))
    with pytest.raises(UserError, match="prompt 'title' is none of the model's .query, passage."):
        encoder.embed(["w1"], prompt="title")
    with pytest.raises(UserError, match="text 2 has 9 tokens, more than the 6"):
        encoder.embed(["w1", "w1 w2 w3 w4 w5 w6 w7"], too_long="error")


def test_an_encoder_in_a_folder_of_its_own_and_dense_from_files(folder, tokenizer):
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.move(folder / name, folder / "0_Transformer" / name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    listed[2] |= {"path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}
    put(folder / "modules.json", listed)
    (folder / "2_Dense").mkdir()
    put(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 3, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"})
    layer = {"linear.weight": torch.randn(3, 32), "linear.bias": torch.randn(3)}
    save_file(layer, folder / "2_Dense" / "model.safetensors")
    put(folder / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": ["mean"], "include_prompt": True})
    encoder = SentenceEncoder.open(folder, dtype="float32", device="cpu")
    state = by_hand(encoder.model, tokenizer, "w1 w2", "mean")
    torch.testing.assert_close(encoder.embed(["w1 w2"])[0], layer["linear.weight"] @ state + layer["linear.bias"], rtol=0, atol=1e-5)


def test_what_is_written_is_read_again(tmp_path):
    for readout in (Readout(), Readout(modes=("max", "lasttoken"), steps=(Normalise(),), max_length=9, lower=True, prompts={"query": "q: "}, default_prompt="query")):
        write_readout(tmp_path, readout, 32)
        assert read_readout(tmp_path) == readout


@pytest.mark.parametrize(
    "kind, message", [("LSTM", "a module 'LSTM' at 2_Normalize, which Seodang does not have"), ("Dense", "no weights .model.safetensors."), ("Pooling", "a module 'Pooling'")]
)
def test_modules_that_there_are_not_are_refused_by_name(folder, kind, message):
    listed = json.loads((folder / "modules.json").read_text())
    listed[2]["type"] = f"sentence_transformers.models.{kind}"
    put(folder / "modules.json", listed)
    with pytest.raises(UserError, match=message):
        SentenceEncoder.open(folder)


def test_a_plain_encoder_is_pooled_as_is_said(encoder_folder, tokenizer):
    model = load(encoder_folder, dtype="float32", device="cpu", model_class=AutoModel)[0]
    for pooling in ("mean", "cls"):
        got = SentenceEncoder.open(encoder_folder, dtype="float32", device="cpu", pooling=pooling, normalise=True).embed(TEXTS)
        wanted = torch.stack([by_hand(model, tokenizer, text, pooling) for text in TEXTS])
        torch.testing.assert_close(got, torch.nn.functional.normalize(wanted), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="pooling must be cls.* got 'sum'"):
        SentenceEncoder.open(encoder_folder, pooling="sum")
    with pytest.raises(UserError, match="max_length 33 is more than the 32 positions"):
        SentenceEncoder.open(encoder_folder, max_length=33)


def test_a_folder_that_says_its_pooling_takes_no_other(folder):
    with pytest.raises(UserError, match="pooling mean: .* says itself how it pools .cls."):
        SentenceEncoder.open(folder, pooling="mean")


def test_a_masked_language_model_gives_the_states_beneath_its_head(tokenizer):
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", **SIZES)).double().eval()
    wanted = torch.stack([by_hand(model.bert, tokenizer, text, "mean") for text in TEXTS])
    torch.testing.assert_close(embed(model, tokenizer, TEXTS), wanted, rtol=1e-9, atol=1e-11)


def test_a_tokenizer_of_another_script_is_told_with_its_share(tokenizer, caplog):
    encoder = SentenceEncoder(tiny("bert"), tokenizer)
    encoder.embed(["w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 x"])  # one of eleven
    assert "unknown" not in caplog.text
    encoder.embed(["w1 w2 w3 w4 한 국"])
    assert "33% of the tokens are unknown to the model's tokenizer" in caplog.text


@pytest.mark.parametrize(
    "texts, message", [("w1", "texts must be a list"), (["w1", ""], "text 2 is empty"), (["w1", " \n"], "text 2 is empty"), ([5], "text 1 must be a text"), (["\ud800"], "half")]
)
def test_what_is_no_text_is_refused(tokenizer, texts, message):
    with pytest.raises(UserError, match=message):
        SentenceEncoder(tiny("bert"), tokenizer).embed(texts)


def test_no_texts_are_no_vectors(tokenizer):
    assert SentenceEncoder(tiny("bert"), tokenizer).embed([]).shape == (0, 32)


# The default encoder


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sentence_vectors.json").read_text(encoding="utf-8"))


def test_the_default_encoders_vectors_are_those_of_sentence_transformers(caplog):
    """Among them a text longer than the 256 tokens that its folder names, and Hangul, which its tokenizer takes apart."""
    encoder = SentenceEncoder.open("default-encoder", dtype="float32", device="cpu")
    got = encoder.embed(GOLDEN["texts"])
    torch.testing.assert_close(got[:, :8], torch.tensor(GOLDEN["beginnings"]), rtol=0, atol=2e-6)
    torch.testing.assert_close(got @ got.T, torch.tensor(GOLDEN["cosines"]), rtol=0, atol=2e-6)
    assert (encoder.size, encoder.max_length, encoder.readout.normalised) == (384, 256, True)  # though the folder 2_Normalize is missing
    assert "1 of 7 texts are longer than 256 tokens (the longest has 302)" in caplog.text


@pytest.mark.full
def test_what_is_written_is_read_by_sentence_transformers(folder, tmp_path):
    transformers = pytest.importorskip("sentence_transformers")
    encoder = SentenceEncoder.open(folder, dtype="float32", device="cpu")
    write_readout(folder, Readout(modes=("mean",), steps=(Normalise(),), max_length=7), 32)
    theirs = transformers.SentenceTransformer(str(folder), device="cpu")
    ours = SentenceEncoder.open(folder, dtype="float32", device="cpu")
    texts = [*TEXTS, "w1 w2 w3 w4 w5 w6 w7 w8 w9"]
    torch.testing.assert_close(ours.embed(texts), theirs.encode(texts, convert_to_tensor=True), rtol=0, atol=1e-6)
    assert encoder.readout.modes == ("cls",) and theirs.max_seq_length == 7
