"""The model of the golden runs of published loops (golden/make_dream.py, golden/make_llada.py), and how those write a canvas."""

from types import SimpleNamespace

import torch
from transformers import AutoConfig

from seodang.infer.runners.paradigm import Diffusion, declare

VOCABULARY, MASK, PRIME = 64, 63, 1_000_003
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-"


class MadeUp:
    """No network: logits by a rule in whole numbers, each from all seen tokens of its row, its place and its token; counts its passes."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **changes):
        self.config, self.passes = AutoConfig.for_model("qwen2", max_position_embeddings=256), 0
        declare(self.config, Diffusion(**{"mask_token_id": MASK, "shift": 1, **changes}))

    def __call__(self, input_ids, use_cache, **told):
        self.passes, self.told = self.passes + 1, told
        place, token = torch.arange(input_ids.shape[1])[:, None], torch.arange(VOCABULARY)[None]
        weights = (torch.arange(input_ids.shape[1]) + 1) ** 2 * told.get("attention_mask", 1)
        s = ((input_ids + 1) * weights).sum(dim=1)[:, None, None]
        h = (s * (place + 3) + 7919 * (token + 1) ** 2 + 31 * place) % PRIME
        return SimpleNamespace(logits=(h * h % PRIME % 65536).float() / 8192 - 4)  # [batch, length, vocab]


def written(tokens):
    return ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]
