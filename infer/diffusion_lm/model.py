"""The denoiser of Diffusion-LM and the classifier beside it: transformers' BERT between latents and what is predicted from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from ..runners.paradigm import CLASSIFIER, CONTINUOUS
from .gaussian import sqrt_schedule


class DiffusionLMConfig(PreTrainedConfig):
    """What a Diffusion-LM is: its words, the size of their embeddings, its Transformer, and the steps of its noise (the sqrt schedule's)."""

    model_type = CONTINUOUS

    vocab_size: int = 3
    embedding_size: int = 32
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 512
    dropout: float = 0.1
    max_position_embeddings: int = 24
    diffusion_steps: int = 2000
    pad_token_id: int | None = 0
    eos_token_id: int | None = 1
    unk_token_id: int | None = 2


class LatentClassifierConfig(DiffusionLMConfig):
    """What a classifier on noised latents is; `id2label` has the classes."""

    model_type = CLASSIFIER


class LatentEncoder(nn.Module):
    """Latents and the step that they are noised to, to hidden states: a BERT that sees both ways, the time added to what it reads at each position."""

    def __init__(self, config: DiffusionLMConfig):
        super().__init__()
        size = config.hidden_size
        self.latents = nn.Sequential(nn.Linear(config.embedding_size, size), nn.Tanh(), nn.Linear(size, size))
        self.time = nn.Sequential(nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))
        self.scale = 1000 / config.diffusion_steps  # of steps, so that the time's waves are the same for any number of them
        self.body = BertModel(
            BertConfig(
                vocab_size=1, pad_token_id=None, type_vocab_size=1, hidden_size=size, num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads, intermediate_size=config.intermediate_size, hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout, max_position_embeddings=config.max_position_embeddings, initializer_range=size**-0.5,
            ),
            add_pooling_layer=False,
        )  # fmt: skip

    def forward(self, latents: Tensor, steps: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """latents is [rows, length, embedding], steps [rows], the mask [rows, length]; returns [rows, length, hidden]."""
        time = self.time(waves(steps * self.scale, self.time[0].in_features).to(latents.dtype))
        return self.body(inputs_embeds=self.latents(latents) + time[:, None], attention_mask=attention_mask).last_hidden_state


def waves(steps: Tensor, size: int) -> Tensor:
    """Sines and cosines of steps, [rows, size] in float64: frequencies from 1 down to 1/10000 (Vaswani et al. 2017)."""
    half = size // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64, device=steps.device) / half)
    angles = steps.double()[:, None] * frequencies
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, size % 2))


class OnLatents(PreTrainedModel):
    """What reads noised latents."""

    base_model_prefix = "encoder"
    _supports_sdpa = True
    supports_gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of words."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Take others."""
        self.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        """The same: rounding is tied to them."""
        return self.word_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Words' embeddings as large as the noise, as in the paper's code, and layers that keep a signal's size: BERT's 0.02 is made for wider models."""
        super()._init_weights(module)
        if module is self.word_embeddings:
            initialization.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            initialization.normal_(module.weight, std=module.in_features**-0.5)

    @cached_property
    def abar(self) -> Tensor:
        """What is left of a latent's square at each step, [diffusion_steps + 1] in float64, on the CPU."""
        return sqrt_schedule(self.config.diffusion_steps)


@dataclass
class Denoising(ModelOutput):
    """What the denoiser takes the clean latents to be, [rows, length, embedding]."""

    clean: Tensor | None = None


class DiffusionLM(OnLatents):
    """A denoiser of latents with the embeddings of words, which are also the weights that round a latent to a word."""

    config_class = DiffusionLMConfig

    def __init__(self, config: DiffusionLMConfig):
        super().__init__(config)
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.rounding_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.encoder = LatentEncoder(config)
        self.prediction = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, config.embedding_size))
        self.post_init()

    def forward(self, latents: Tensor, steps: Tensor, attention_mask: Tensor | None = None) -> Denoising:
        """Predict the clean latents of noised ones, [rows, length, embedding]; steps is [rows], in 1..diffusion_steps."""
        return Denoising(clean=self.prediction(self.encoder(latents, steps, attention_mask)))

    def rounding(self, latents: Tensor, barred: Sequence[int] = ()) -> Tensor:
        """The logits of each word at a clean latent, [..., vocab]: p(w | x_0) is their softmax. Words that are barred have none."""
        return without(latents @ self.word_embeddings.weight.T + self.rounding_bias, barred)

    def nearest(self, latents: Tensor, barred: Sequence[int] = ()) -> Tensor:
        """The word whose embedding is nearest to each latent, [...], of those that are not barred."""
        words = self.word_embeddings.weight
        closeness = latents @ words.T - words.square().sum(dim=-1) / 2  # of |x - w|^2 what is the same for all words is left out
        return without(closeness, barred).argmax(dim=-1)


def without(scores: Tensor, barred: Sequence[int]) -> Tensor:
    """Scores of words, [..., vocab], -inf for those that are barred."""
    return scores.index_fill(-1, torch.tensor(barred, device=scores.device), -torch.inf) if barred else scores


@dataclass
class Classified(ModelOutput):
    """The logits of each class, [rows, classes]."""

    logits: Tensor | None = None


class LatentClassifier(OnLatents):
    """Which class a text is of, said of its noised latents: what control by gradients follows. The embeddings are a Diffusion-LM's, and stay as they are."""

    config_class = LatentClassifierConfig

    def __init__(self, config: LatentClassifierConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size).requires_grad_(False)
        self.encoder = LatentEncoder(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, latents: Tensor, steps: Tensor, attention_mask: Tensor | None = None) -> Classified:
        """The logits of each class, [rows, classes]; the hidden states of a row's positions are averaged."""
        hidden = self.encoder(latents, steps, attention_mask)
        weights = torch.ones(hidden.shape[:2], dtype=hidden.dtype, device=hidden.device) if attention_mask is None else attention_mask.to(hidden.dtype)
        return Classified(logits=self.classifier((hidden * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)))


for _config, _model in ((DiffusionLMConfig, DiffusionLM), (LatentClassifierConfig, LatentClassifier)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
