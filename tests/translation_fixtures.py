"""Tiny translation checkpoints: tokenizers of the kinds that know languages, built from nothing, and random models that say something with them."""

import io
import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M_CODES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50_CODES
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as MBART_CODES

WORDS = ("▁das", "▁Haus", "▁ist", "▁klein", "▁the", "▁house", "▁small", "llo", "wel", "▁나무")
LETTERS = "▁abcdefghijklmnopqrstuvwxyzDHST.,><무가"
UNIGRAM = [*((word, -2.0 - len(word) / 10) for word in WORDS), *((letter, -6.0) for letter in LETTERS)]
FIRST = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
LANGUAGES = {"mbart50": ("de_DE", "ko_KR"), "mbart": ("de_DE", "ko_KR"), "nllb": ("deu_Latn", "kor_Hang"), "m2m": ("de", "ko")}
MODELS = {"mbart50": "mbart", "mbart": "mbart", "nllb": "m2m_100", "m2m": "m2m_100", "marian": "marian"}
SIZES = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 300, "forced_eos_token_id": None, "bos_token_id": 0,
}  # fmt: skip


def build_mbart50(**languages) -> MBart50Tokenizer:
    return MBart50Tokenizer(vocab=[*FIRST, *UNIGRAM, *((code, 0.0) for code in MBART50_CODES), ("<mask>", 0.0)], **languages)


def build_mbart(**languages) -> MBartTokenizer:
    return MBartTokenizer(vocab=[*FIRST, *UNIGRAM, *((code, 0.0) for code in MBART_CODES), ("<mask>", 0.0)], **languages)


def build_nllb(**languages) -> NllbTokenizer:
    pieces = [*(token for token, _ in FIRST), *LETTERS, "▁d", "▁da", "▁das", "▁H", "▁Ha"]
    return NllbTokenizer({piece: id for id, piece in enumerate(pieces)}, [("▁", "d"), ("▁d", "a"), ("▁da", "s"), ("▁", "H"), ("▁H", "a")], **languages)


def sentencepiece_model(folder) -> tuple[str, list[str]]:
    """A model of SentencePiece in a file, and its pieces without the first three, which are special."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    texts = ["das Haus ist klein", "the house is small", "hallo welt", "나무가 자란다"] * 5
    how = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=written, **how)
    (folder / "model.spm").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return str(folder / "model.spm"), [model.id_to_piece(id) for id in range(3, len(model))]


def written_vocabulary(folder, pieces: list[str]) -> str:
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}), encoding="utf-8")
    return str(folder / "vocab.json")


def build_m2m(folder, **languages) -> M2M100Tokenizer:
    spm, pieces = sentencepiece_model(folder)
    named = [f"__{code}__" for code in M2M_CODES["m2m100"]]  # as the published checkpoint lists them
    return M2M100Tokenizer(written_vocabulary(folder, ["<s>", "<pad>", "</s>", "<unk>", *pieces]), spm, additional_special_tokens=named, **languages)


def build_marian(folder, codes=(">>fra<<", ">>deu<<")) -> MarianTokenizer:
    spm, pieces = sentencepiece_model(folder)
    return MarianTokenizer(spm, spm, written_vocabulary(folder, ["</s>", "<unk>", *codes, *pieces, "<pad>"]))


@pytest.fixture
def translation_tokenizer(tmp_path_factory):
    """`translation_tokenizer(kind)`: a fresh one of mbart50, mbart, nllb, or, by SentencePiece's own library, m2m or marian."""

    def build(kind: str, **how):
        if kind in ("m2m", "marian"):
            return (build_m2m if kind == "m2m" else build_marian)(tmp_path_factory.mktemp(kind), **how)
        return {"mbart50": build_mbart50, "mbart": build_mbart, "nllb": build_nllb}[kind](**how)

    return build


def build_translator(kind: str, tokenizer):
    """A random model in float64 of the kind's architecture, whose answers vary."""
    start = tokenizer.pad_token_id if kind == "marian" else tokenizer.eos_token_id
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": start}
    config = AutoConfig.for_model(MODELS[kind], **SIZES, **ids, vocab_size=max(tokenizer.get_vocab().values()) + 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config).double().eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 if "embed_positions" in name else 0.16 if "encoder_attn" in name else 0.3)
    return model


@pytest.fixture
def translator(translation_tokenizer):
    """`translator(kind)`: a model and its tokenizer."""

    def build(kind: str, **how):
        tokenizer = translation_tokenizer(kind, **how)
        return build_translator(kind, tokenizer), tokenizer

    return build
