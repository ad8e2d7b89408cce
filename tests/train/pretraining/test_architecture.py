import json

import pytest
import torch

from seodang.data.errors import UserError
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.train.pretraining.architecture import (
    ENCODER_DECODERS,
    Sizes,
    config_of_file,
    kind_of,
    refuse_architecture,
    small_config,
    untrained,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizers():
    sizes = {"decoder": 264, "encoder": 264, "encoder-decoder": 364}
    return {family: train_tokenizer(["a few words of text"], TokenizerSettings(vocab_size=size, family=family, min_frequency=1)) for family, size in sizes.items()}


def build(name, tokenizers, sizes=None, positions=24, **options):
    tokenizer = tokenizers[kind_of(name)]
    return untrained(small_config(name, sizes or Sizes(32, 2, 4), tokenizer, positions, **options), 0, torch.float32, CPU), tokenizer


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "bert", "modernbert", "roberta", "distilbert"])
def test_an_architecture_is_built_in_the_sizes_asked_for_and_takes_rows_of_that_length(name, tokenizers):
    model, tokenizer = build(name, tokenizers)
    config, embedding = model.config, model.get_input_embeddings().weight
    assert embedding.shape == (264, 32) and model.get_output_embeddings().weight is embedding
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 4)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model(input_ids=torch.randint(3, 264, (1, 24))).logits.shape == (1, 24, 264)
    assert model.get_output_embeddings().weight.std() < 0.1  # as transformers draws them
    other, _ = build(name, tokenizers)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_sizes_do_not_say_is_in_the_architectures_own_proportion(tokenizers):
    assert build("llama", tokenizers)[0].config.intermediate_size == 88  # 11008 to 4096, in eights
    assert build("bert", tokenizers)[0].config.intermediate_size == 128
    llama = build("llama", tokenizers, Sizes(32, 2, 4, key_value_heads=2, intermediate=40), tied=False)[0]
    assert llama.model.layers[0].self_attn.k_proj.weight.shape == (16, 32) and llama.model.layers[0].mlp.up_proj.weight.shape == (40, 32)
    assert llama.lm_head.weight is not llama.model.embed_tokens.weight
    assert build("qwen3", tokenizers)[0].config.head_dim == 8  # 128 by itself, however small the model


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((30, 2, 4), "hidden_size 30 cannot be shared out among 4 heads: make it a multiple of 4, 28 or 32 say"),
        ((12, 2, 4), "each of 4 heads 3 numbers, rotary positions need an even number"),
        ((32, 0, 4), "layers must be at least 1, got 0"),
        ((32, 2, 4, 3), "key_value_heads 3 must divide heads 4"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        Sizes(*sizes)


def test_architectures_that_neither_continue_nor_fill_in_text_are_refused(tokenizers):
    for name, message in (("lama", "'lama' is not known: did you mean llama"), ("vit", "neither continues"), ("led", "is an encoder-decoder, of which these are trained from nothing here: bart, "), ("encoder-decoder", "is an encoder-decoder"), ("whisper", "is an encoder-decoder"), ("umt4", "did you mean umt5"), ("seodang_transfomer", "did you mean seodang_transformer")):
        with pytest.raises(UserError, match=message):
            refuse_architecture(name)
    with pytest.raises(UserError, match="gpt2 has as many heads of keys and values as others"):
        small_config("gpt2", Sizes(32, 2, 4, key_value_heads=2), tokenizers["decoder"], 24)


def test_of_a_file_the_config_counts_and_the_vocabulary_is_the_tokenizers(tokenizers, tmp_path):
    said = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "vocab_size": 32000, "eos_token_id": 31999, "architectures": ["LlamaForCausalLM"]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    for place in (tmp_path, tmp_path / "config.json"):
        config = config_of_file(str(place), tokenizers["decoder"])
        assert (config.num_hidden_layers, config.vocab_size, config.eos_token_id) == (3, 264, tokenizers["decoder"].eos_token_id)
        assert config.rope_parameters["rope_theta"] == 500.0
    for text, message in (("{}", "names no model_type"), ("{", "is not JSON"), (json.dumps({**said, "hidden_size": 15}), "cannot be built")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            config_of_file(str(tmp_path), tokenizers["decoder"])
    with pytest.raises(UserError, match="there is no config.json in it"):
        config_of_file(str(tmp_path.parent), tokenizers["decoder"])


PAD, EOS = 0, 1


@pytest.mark.parametrize("name", sorted({*ENCODER_DECODERS} - {"seodang_lstm"}))
def test_an_encoder_decoder_has_the_sizes_on_both_sides_and_begins_and_ends_as_its_kind_does(name, tokenizers):
    model, tokenizer = build(name, tokenizers)
    config, settings = model.config, model.generation_config
    assert kind_of(name) == "encoder-decoder" and config.is_encoder_decoder and model.get_input_embeddings().weight.shape == (364, 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    encoder, decoder = model.get_encoder(), model.get_decoder()
    t5, bart = hasattr(config, "d_kv"), hasattr(config, "encoder_ffn_dim")
    assert [len(stack.block if t5 else stack.layers) for stack in (encoder, decoder)] == [2, 2]
    assert (config.d_kv if t5 else 32 // config.num_attention_heads, config.num_attention_heads) == (8, 4)
    assert config.encoder_ffn_dim == config.decoder_ffn_dim if bart else config.num_heads == 4
    assert (config.encoder_ffn_dim if bart else config.d_ff, config.decoder_attention_heads if bart else 4) == ({"mt5": 64, "umt5": 64}.get(name, 128), 4)
    starts = {"t5": PAD, "seodang_transformer": PAD, "mt5": PAD, "umt5": PAD, "pegasus": PAD, "marian": PAD, "blenderbot": PAD, "blenderbot-small": PAD}  # the latter two: bos, which there is none of
    assert config.decoder_start_token_id == settings.decoder_start_token_id == starts.get(name, EOS)
    assert (settings.eos_token_id, settings.pad_token_id, config.pad_token_id) == (EOS, PAD, PAD) and settings.forced_eos_token_id in (None, EOS)
    ids = torch.randint(3, 264, (1, 24))
    assert model(input_ids=ids, labels=ids).logits.shape == (1, 24, 364)
    assert model.generate(ids, max_new_tokens=3)[0, 0] == config.decoder_start_token_id


def test_sizes_that_an_encoder_decoder_has_no_room_for_are_refused(tokenizers):
    tokenizer = tokenizers["encoder-decoder"]
    with pytest.raises(UserError, match="t5 always shares the head's weights with the embedding: leave tie_embeddings out"):
        small_config("t5", Sizes(32, 2, 4), tokenizer, 24, tied=False)
    assert small_config("bart", Sizes(32, 2, 4), tokenizer, 24, tied=False).tie_word_embeddings is False
    with pytest.raises(UserError, match="t5 has as many heads of keys and values as others"):
        small_config("t5", Sizes(32, 2, 4, key_value_heads=2), tokenizer, 24)
    for name in ("t5", "seodang_transformer"):
        assert small_config(name, Sizes(32, 2, 4, intermediate=40), tokenizer, 24).d_ff == 40
    with pytest.raises(UserError, match="seodang_lstm has no heads in its config: write a config.json for it, and name it with --config_file"):
        small_config("seodang_lstm", Sizes(32, 2, 4), tokenizer, 24)


def test_of_an_encoder_decoders_file_no_id_is_taken(tokenizers, tmp_path):
    said = {"model_type": "mbart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40, "vocab_size": 250027, "decoder_start_token_id": 250020, "forced_bos_token_id": 250004, "forced_eos_token_id": 2}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(said))
    config = config_of_file(str(tmp_path), tokenizers["encoder-decoder"])
    assert (config.encoder_layers, config.decoder_layers, config.vocab_size) == (1, 3, 364)
    assert (config.decoder_start_token_id, config.forced_eos_token_id, getattr(config, "forced_bos_token_id", None)) == (EOS, EOS, None)


def test_of_a_file_of_our_own_architectures_what_sizes_do_not_say_is_taken(tokenizers, tmp_path):
    ours = {
        "seodang_lstm": {"d_model": 16, "num_layers": 3, "attention": "dot"},
        "seodang_transformer": {"d_model": 16, "num_heads": 2, "encoder_layers": 1, "norm_position": "pre", "positions": "learned", "max_encoder_position_embeddings": 9,
                                "max_decoder_position_embeddings": 7},
    }  # fmt: skip
    for name, said in ours.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name, "vocab_size": 9, "decoder_start_token_id": 8, **said}))
        config = config_of_file(str(tmp_path), tokenizers["encoder-decoder"])
        assert {each: getattr(config, each) for each in said} == said and (config.vocab_size, config.decoder_start_token_id, config.eos_token_id) == (364, PAD, EOS)
        assert kind_of(name) == "encoder-decoder" and type(untrained(config, 0, torch.float32, CPU).config) is type(config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "seodang_transformer", "d_model": 15, "num_heads": 2}))
    with pytest.raises(UserError, match="d_model 15 cannot be shared out among 2 heads"):
        config_of_file(str(tmp_path), tokenizers["encoder-decoder"])
