"""Tiny random encoders with their tokenizers: WordPiece as BERT has it, and a byte-level one as RoBERTa has it."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from transformers import AutoConfig, AutoModelForMaskedLM, BertTokenizer, PreTrainedTokenizerFast

WORDS = ["the", "capital", "of", "korea", "is", "seoul", "paris", "suwon", "a", "city", "un", "##believ", "##able", ".", ",", "?", "서울", "##은", "수도", "##이다"]
SIZES = {
    "hidden_size": 32, "dim": 32, "intermediate_size": 64, "hidden_dim": 64, "num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 4, "n_heads": 4,
    "embedding_size": 32, "max_position_embeddings": 40, "type_vocab_size": 2, "pad_token_id": 0, "vocab_size": 40,
}  # fmt: skip


@pytest.fixture(scope="session")
def wordpiece():
    """A tokenizer of 25 tokens whose mask is [MASK]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer({name: id for id, name in enumerate(names)}, strip_accents=False)


@pytest.fixture(scope="session")
def bytelevel():
    """A byte-level tokenizer of letters, some words and no other bytes, whose mask is <mask> and takes the space before it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġs", "eo", "Ġseo", "<mask>"]
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [("Ġ", "s"), ("e", "o"), ("Ġs", "eo")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    from tokenizers import AddedToken

    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, normalized=False)})
    return tokenizer


def build_encoder(kind: str = "bert", seed: int = 0, **changes):
    """A random encoder in float64, in evaluation mode, whose distributions are not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **changes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or name.endswith("bias"):
                    parameter.normal_(std=0.4)
    return model.double().eval()


@pytest.fixture(scope="session")
def encoder():
    """`encoder(kind, seed=0, **config)`: one built once for each call's arguments; do not change its weights."""
    built = {}

    def get(kind: str = "bert", seed: int = 0, **changes):
        key = (kind, seed, repr(sorted(changes.items())))
        if key not in built:
            built[key] = build_encoder(kind, seed, **changes)
        return built[key]

    return get


@pytest.fixture
def save_encoder(encoder, wordpiece, tmp_path):
    """`save_encoder(kind, model=None)`: the folder of an encoder with the tokenizer beside it."""

    def save(kind: str = "bert", model=None):
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        (model or encoder(kind)).save_pretrained(folder)
        wordpiece.save_pretrained(folder)
        return folder

    return save
