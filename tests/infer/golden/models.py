"""Tiny float64 models whose every weight follows from its name, the same under every version of transformers.

`python models.py` prints four logits a model, to be compared between versions.
"""

import zlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

TOKENS = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {
    **TOKENS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {
    "llama": DECODER,
    "qwen3": DECODER,
    "gemma": {**DECODER, "hidden_size": 64, "tie_word_embeddings": True},  # 64: its root, a factor of the embeddings, is exact
    "gpt2": {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "t5": {**TOKENS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, "dropout_rate": 0.0},
    "bart": {
        **TOKENS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip
# name -> (kind, seed, changes of the configuration)
MODELS = {
    "llama": ("llama", 0, {}),
    "qwen3": ("qwen3", 1, {}),
    "gemma": ("gemma", 2, {}),
    "gpt2": ("gpt2", 3, {}),
    "t5": ("t5", 6, {}),
    "bart": ("bart", 6, {}),
    "llama_8_layers": ("llama", 4, {"num_hidden_layers": 8}),
    "llama_8_layers_tied": ("llama", 5, {"num_hidden_layers": 8, "tie_word_embeddings": True}),
    "llama_12_layers_tied": ("llama", 8, {"num_hidden_layers": 12, "tie_word_embeddings": True}),
    "qwen3_8_layers": ("qwen3", 9, {"num_hidden_layers": 8}),
    "qwen3_2_layers_tied": ("qwen3", 10, {"tie_word_embeddings": True}),
}
# With 0.3 throughout, encoder-decoders repeat one token: the source outweighs the position, and a tied head favours the last token.
DEVIATIONS = {
    "t5": {"embed_tokens": 2.0, "DenseReluDense": 0.6, "EncDecAttention": 0.16, "relative_attention_bias": 2.0},
    "bart": {"embed_positions": 0.9, "encoder_attn": 0.16},
}
PROBED_IDS = [0, 31, 64, 127]
PROBE_PROMPT = [1, 17, 90, 3, 55, 120, 8]
PROBE_ANSWER = [40, 41, 99]


def build(name: str) -> torch.nn.Module:
    """The model of that name in float64, in evaluation mode."""
    kind, seed, changes = MODELS[name]
    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **changes})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).double().eval()
    fill(model, seed, kind)
    return model


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int, kind: str) -> None:
    """Draw every parameter from a generator seeded with its name: matrices of deviation 0.3 (see DEVIATIONS), norms around 1, small biases.

    A tied parameter goes by the alphabetically first of its names.
    """
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = min(name, names.get(id(parameter), (name,))[0]), parameter
    for name, parameter in names.values():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            draw = next((std for part, std in DEVIATIONS.get(kind, {}).items() if part in name), 0.3) * draw
        elif name.endswith("bias") or kind == "gemma":  # Gemma stores a norm as its distance from 1
            draw = 0.1 * draw
        else:
            draw = 1 + 0.1 * draw
        parameter.copy_(draw)


@torch.no_grad()
def probe(model: torch.nn.Module) -> list[float]:
    """The logits of PROBED_IDS behind a fixed prompt (encoder-decoder: a fixed source and answer)."""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        logits = model(input_ids=torch.tensor([PROBE_PROMPT]), decoder_input_ids=torch.tensor([[start, *PROBE_ANSWER]])).logits
    else:
        logits = model(input_ids=torch.tensor([PROBE_PROMPT + PROBE_ANSWER])).logits
    return logits[0, -1, PROBED_IDS].tolist()


if __name__ == "__main__":
    for each in MODELS:
        print(each, *probe(build(each)))
