"""Which way a checkpoint speaks: left to right, by filling in masks, by continuous diffusion, or, an encoder, not at all; its config says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig, PreTrainedTokenizerBase

from ...data.errors import UserError

KEY = "diffusion"  # in config.json
CLASSIFIES, TAGS = "ForSequenceClassification", "ForTokenClassification"  # at the end of an architecture's name
CONTINUOUS, CLASSIFIER = "diffusion_lm", "diffusion_lm_classifier"  # model types: Diffusion-LM, and what controls it
BIDIRECTIONAL, PROMPT_CAUSAL, BLOCK_CAUSAL = ATTENTIONS = ("bidirectional", "prompt_causal", "block_causal")


@dataclass(frozen=True)
class Diffusion:
    """What a masked-diffusion language model is: which token stands where nothing is said yet, where a token is read, who sees whom.

    `shift` is 1 where token i is read at position i - 1 (Dream), 0 where it is read at its own (LLaDA). `attention`: "bidirectional", all positions
    see all; "prompt_causal", the prompt is causal and the canvas sees prompt and canvas; "block_causal", as that, and the canvas is made of
    blocks of `block_length` that see themselves and those before. `autoregressive`: the same weights were trained to speak left to right, too.
    """

    mask_token_id: int
    shift: int = 0
    attention: str = BIDIRECTIONAL
    block_length: int | None = None
    autoregressive: bool = False

    def __post_init__(self):
        for name, value, fits, wanted in (
            ("mask_token_id", self.mask_token_id, type(self.mask_token_id) is int and self.mask_token_id >= 0, "the id of a token"),
            ("shift", self.shift, self.shift in (0, 1), "0 or 1"),
            ("attention", self.attention, self.attention in ATTENTIONS, " or ".join(ATTENTIONS)),
            ("block_length", self.block_length, self.block_length is None or type(self.block_length) is int and self.block_length > 0, "a number above 0"),
        ):  # fmt: skip
            if not fits:
                raise UserError(f"{name} must be {wanted}, got {value!r}")
        if (self.block_length is None) is (self.attention == BLOCK_CAUSAL):
            raise UserError(f"block_length={self.block_length} does not go with attention={self.attention!r}: {BLOCK_CAUSAL} has one, the others none")


def diffusion_of(config: PreTrainedConfig) -> Diffusion | None:
    """Return what the config says of a masked-diffusion model; None for one that speaks left to right. Raises UserError for what it cannot mean."""
    told = getattr(config, KEY, None)
    if told is None:
        return None
    known = [each.name for each in fields(Diffusion)]
    if not isinstance(told, Mapping) or "mask_token_id" not in told or (unknown := [name for name in told if name not in known]):
        wrong = f"knows no {unknown[0]!r}" if isinstance(told, Mapping) and "mask_token_id" in told else "needs a mask_token_id"
        raise UserError(f"{KEY!r} in config.json {wrong}: it takes {', '.join(known)}, got {told!r}")
    try:
        return Diffusion(**told)
    except UserError as error:
        raise UserError(f"{KEY!r} in config.json: {error}") from None


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether it is a diffusion model all of whose positions see all, its prompt too: nothing of it can be read before the rest."""
    diffusion = diffusion_of(config)
    return diffusion is not None and diffusion.attention == BIDIRECTIONAL


def refuse_diffusion(config: PreTrainedConfig, what: str, remedy: str = "use another model") -> None:
    """Raise UserError where what reads a text from left to right, by its name, is given a diffusion model that has not learnt to."""
    diffusion = diffusion_of(config)
    if diffusion is not None and not diffusion.autoregressive:
        raise UserError(f"{what} reads from left to right, but this {config.model_type} is a masked-diffusion model: {remedy}")


def refuse_continuous(model_type: str | None, place: str) -> None:
    """Raise UserError where what takes language models is given a checkpoint of continuous diffusion, by its model type, which has no logits of a next token."""
    if model_type == CONTINUOUS:
        raise UserError(f"{place} is a Diffusion-LM, whose words come out of continuous noise: sample it by `seodang diffusion-lm-sample {place}`")
    if model_type == CLASSIFIER:
        raise UserError(f"{place} is a classifier on a Diffusion-LM's latents: give it to `seodang diffusion-lm-sample` as --classifier {place}")


def refuse_mask(diffusion: Diffusion, answer: Sequence[int], tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError for an answer, by its name, of which the mask token is a part: a model that fills in masks never says it."""
    if diffusion.mask_token_id in answer:
        mask = tokenizer.convert_ids_to_tokens(diffusion.mask_token_id)
        raise UserError(f"{name} contains the mask token {mask}, which a diffusion model never says: leave it out")


def declare(config: PreTrainedConfig, diffusion: Diffusion) -> None:
    """Write into the config what the model is, so that it is saved with it; a plain transformers forward attends as it says, too."""
    told: dict[str, Any] = {name: value for name, value in asdict(diffusion).items() if value is not None}
    setattr(config, KEY, told)
    config.is_causal = diffusion.attention != BIDIRECTIONAL


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether it is of BERT's kind: it reads a text both ways at once, and a head of masked language modelling may say what stands at a mask.

    The same architectures can be decoders, which their config says (is_decoder), or models of masked diffusion, which then speak.
    """
    causal = config.is_encoder_decoder or getattr(config, "is_decoder", False) or getattr(config, "causal", False)  # the last is XLM's word
    return not causal and type(config) in MODEL_FOR_MASKED_LM_MAPPING and diffusion_of(config) is None


def masked_lm_class(config: PreTrainedConfig) -> type | None:
    """The class of an encoder with its head of masked language modelling; None for what is no encoder."""
    return MODEL_FOR_MASKED_LM_MAPPING[type(config)] if is_encoder(config) else None


def refuse_encoder(config: PreTrainedConfig, what: str = "continue a text", remedy: str = "to speak, use a decoder") -> None:
    """Raise UserError where something that reads from left to right, said in words, is asked of an encoder."""
    if is_encoder(config):
        raise UserError(f"{config.model_type} attends in both directions and cannot {what}: it is {kind_of_encoder(config.architectures or ())}; {remedy}")


def refuse_encoder_decoder(config: PreTrainedConfig, what: str) -> None:
    """Raise UserError where what teaches a decoder, by its name, is given an encoder-decoder."""
    if config.is_encoder_decoder:
        raise UserError(f"{what} teaches a decoder to go on with its prompt, but {config.model_type} reads a prompt with its encoder: train it by `seodang seq2seq`")


def kind_of_encoder(architectures: Sequence[str]) -> str:
    """What an encoder is by the head that it was saved with, or has, and which commands it is for."""
    if any(name.endswith(CLASSIFIES) for name in architectures):
        return "a classifier (`seodang classify --predict` says of which class texts are)"
    if any(name.endswith(TAGS) for name in architectures):
        return "a tagger (`seodang tag --predict` finds the entities of texts)"
    if any(name.endswith("ForMaskedLM") for name in architectures):
        return "an encoder (`seodang fill-mask` fills in its masks, `seodang score` judges texts by it)"
    return "an encoder (`seodang embed` turns texts into vectors)"


def has_classifier_head(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint was saved with a head that classifies."""
    return any(name.endswith(CLASSIFIES) for name in config.architectures or ())


def has_tagger_head(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint was saved with a head that judges every token."""
    return any(name.endswith(TAGS) for name in config.architectures or ())
