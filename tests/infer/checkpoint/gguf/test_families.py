"""What each family's tensors and values mean: llama.cpp computes what the model does, and so does what transformers reads."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.checkpoint.gguf.checking import check_weights, read_model
from seodang.infer.checkpoint.gguf.export import save_gguf
from seodang.infer.checkpoint.gguf.metadata import architecture, rope_factors
from seodang.infer.checkpoint.gguf.vocabulary import vocabulary_of
from seodang.infer.gguf.families import family_of, rotary_pairs
from seodang.infer.gguf.reading import GgufFile
from seodang.infer.runners.paradigm import Diffusion, declare

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FULL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0}
MIXED = {
    "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": FULL},
}  # fmt: skip
CASES = {
    "llama": ("llama", {}),
    "llama, tied, without groups": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, wide heads with biases": ("llama", {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", MIXED),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 48}),
}  # fmt: skip
# llama.cpp's GELU is a table of float16
TABLES = ("gemma", "gemma2", "gemma3_text", "gpt2")


@pytest.fixture
def lively(fresh_tiny):
    """`lively(kind, **config)`: a tiny model whose norms and biases, too, are random."""

    def build(kind, **config):
        model, generator = fresh_tiny(kind, **config), torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model

    return build


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_llama_cpp_and_transformers_compute_the_models_logits(name, lively, write, llama_cpp):
    kind, config = CASES[name]
    model = lively(kind, **config)
    path, ids = write(model), torch.randint(4, 128, (1, 40), generator=torch.Generator().manual_seed(2))
    logits, engine = model(ids).logits[0], llama_cpp.load(path)
    for length in (1, 7, 40):
        found = engine.likely_after(ids[0, :length].tolist(), 128)
        assert torch.allclose(found, logits[length - 1].log_softmax(-1), atol=1e-2 if kind in TABLES else 1e-4)
    greedy = model.generate(ids, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)[0, 40:]
    assert engine.after(ids[0].tolist(), 12) == greedy.tolist()
    file = GgufFile(path)
    check_weights(file, model, family_of(model.config))
    read = read_model(file, model.config)
    assert read is None if kind == "gemma" else torch.allclose(read(ids).logits[0], logits, atol=1e-5)


def test_queries_rows_are_paired_by_hand():
    rows = torch.arange(8.0)  # two heads of four: rows 0 and 2 turn together, and 1 and 3
    config = type("Config", (), {"num_attention_heads": 2, "num_key_value_heads": 1})
    assert rotary_pairs(rows, "attn_q", config).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rotary_pairs(rows, "attn_k", config).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert rotary_pairs(rows, "attn_v", config) is rows


def test_llama3s_factors_by_hand(fresh_tiny):
    config = fresh_tiny("llama", head_dim=16, rope_parameters=LLAMA3).config
    waves = [2 * torch.pi * 1000 ** (2 * i / 16) for i in range(8)]  # tokens a turn
    smooth = [(32 / wave - 1) / (4 - 1) for wave in waves]
    wanted = [1.0 if wave < 32 / 4 else 8.0 if wave > 32 / 1 else 1 / ((1 - s) / 8 + s) for wave, s in zip(waves, smooth)]
    assert rope_factors(config, family_of(config)).tolist() == pytest.approx(wanted, rel=1e-5)
    assert {1.0, 8.0} < set(wanted) and rope_factors(fresh_tiny("llama").config, family_of(config)) is None


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("cohere", {}, "no GGUF mapping for cohere: it is there for gemma, gemma2, "),
        ("llama", {"hidden_act": "gelu"}, "llama with hidden_act 'silu', this configuration has 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "no rotary embedding of the kind dynamic for llama"),
        ("qwen2", {"rope_parameters": LLAMA3}, "no rotary embedding of the kind llama3 for qwen2"),
        ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 2.0}}, "yarn has no attention_factor of one's own"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "yarn has no truncate of one's own"),
        ("qwen3", {"attention_bias": True}, "qwen3 with attention_bias False"),
        ("gemma", {"tie_word_embeddings": False}, "gemma with tie_word_embeddings True"),
        ("gemma2", {"query_pre_attn_scalar": 7}, "gemma2 with query_pre_attn_scalar 8, this configuration has 7"),
        ("gemma2", {"attn_logit_softcapping": None}, "always caps the logits of gemma2"),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": ["full_attention", *MIXED["layer_types"][::2]]}, "each so many layers"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "gpt2 with scale_attn_by_inverse_layer_idx False"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(kind, config, told, fresh_tiny):
    config = fresh_tiny(kind, **config).config
    with pytest.raises(UserError, match=told):
        architecture(config, family_of(config))


def test_a_head_of_another_kind_is_refused(fresh_tiny):
    config = fresh_tiny("llama").config
    config.architectures = ["LlamaForSequenceClassification"]
    with pytest.raises(UserError, match="no place for the head of LlamaForSequenceClassification"):
        family_of(config)


def test_a_model_that_only_fills_in_masks_is_refused_and_one_that_speaks_too_loses_its_canvas(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(mask_token_id=5))
    with pytest.raises(UserError, match="this llama fills in masks, and llama.cpp has no canvas for that"):
        family_of(model.config)
    declare(model.config, Diffusion(mask_token_id=5, attention="prompt_causal", autoregressive=True))
    notes, _ = save_gguf(tmp_path / "a-F32.gguf", model, tiny_tokenizer, vocabulary_of(tiny_tokenizer, 128, [2]), "f32", torch.tensor([[5, 6, 7]]))
    assert notes == ["the diffusion canvas does not go along: llama.cpp lets the model speak left to right alone"]


def test_a_window_that_llama_cpp_has_not_ends_the_context_there(fresh_tiny, write):
    values = GgufFile(write(fresh_tiny("mistral", sliding_window=64))).values
    assert values["llama.context_length"] == 64 and "its context ends at 64 tokens" in write.notes[0]
    values = GgufFile(write(fresh_tiny("gemma2"))).values
    names = ("attention.sliding_window", "attention.sliding_window_pattern", "context_length")
    assert [values[f"gemma2.{name}"] for name in names] == [6, 2, 256] and not write.notes
