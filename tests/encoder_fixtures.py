"""Encoders and their tokenizers, random and tiny: the fixtures of every test of encoders."""

import functools

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertTokenizer, PreTrainedModel, PreTrainedTokenizerFast

_ENCODER = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
ENCODERS = {
    "bert": {},
    "roberta": {"pad_token_id": 1},  # whose positions are counted from behind that of padding
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "modernbert": {"local_attention": 6, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "electra": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},  # with attention of its own
}


def build_encoder(kind: str = "bert", seed: int = 0, **changes) -> PreTrainedModel:
    """A random float32 encoder with a head of masked language modelling, of a few thousand weights, in evaluation mode."""
    config = AutoConfig.for_model(kind, **{**_ENCODER, **ENCODERS.get(kind, {}), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForMaskedLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.4)
    return model.float().eval()


@pytest.fixture
def fresh_encoder():
    """`fresh_encoder(kind, ...)`: a random encoder of one's own, to be trained."""
    return build_encoder


TEXT = [
    "한국어 문장을  배워요. 영화가 정말 재미있었어요!",
    "The little model learns. Don't stop learning, little model!",
    "🙂🙂 x = foo(1)\n  return little(x)",
    "어제 본 영화는 재미없었어요. 배우가 정말 좋았어요.",
]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def train_text_tokenizer(kind: str, size: int = 300, special: dict[str, str] = SPECIAL) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a few lines of Korean, English and code: "wordpiece", "bytes" (byte-level BPE), "unigram", or "unsplit", which parts no words."""
    marks = list(special.values())
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(strip_accents=False), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=marks)
        backend.decoder = decoders.WordPiece()
    elif kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
        trainer = trainers.BpeTrainer(vocab_size=size + 100, special_tokens=marks, initial_alphabet=ByteLevel.alphabet())
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "unigram", prepend_scheme="first" if kind == "unsplit" else "always")
        trainer = trainers.UnigramTrainer(vocab_size=size // 3, unk_token="[UNK]", special_tokens=marks)
        backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(TEXT * 3, trainer)
    cls, sep = (special.get(name, "[CLS]") for name in ("cls_token", "sep_token"))
    around = [(mark, backend.token_to_id(mark)) for mark in (cls, sep)]
    backend.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def text_tokenizer():
    """`text_tokenizer(kind)`: one of `train_text_tokenizer`, trained once; do not change it."""
    return functools.cache(train_text_tokenizer)


def build_word_tokenizer(words: list[str], most: int = 32) -> PreTrainedTokenizerFast:
    """BERT's frame around whole words, ids from 5 on; any other word is unknown."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordLevel({token: id for id, token in enumerate([*special, *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=most, **names)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


@pytest.fixture(scope="session")
def word_tokenizer():
    """`word_tokenizer(words, most=32)`: a tokenizer of an encoder that knows these words."""
    return build_word_tokenizer


WORD_ENCODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32,
    "pad_token_id": 0,
}  # fmt: skip
WORDS = [f"w{number}" for number in range(50)]


@pytest.fixture
def encoder_folder(tmp_path):
    """A random BERT of 32 positions without a head, and its tokenizer of w0 to w49, saved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model("bert", **WORD_ENCODER))
        for parameter in model.parameters():
            if parameter.dim() > 1:  # it learns sooner than from the architecture's 0.02
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "encoder")
    build_word_tokenizer(WORDS).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


ENCODER_WORDS = ["the", "capital", "of", "korea", "is", "seoul", "paris", "suwon", "a", "city", "un", "##believ", "##able", ".", ",", "?", "서울", "##은", "수도", "##이다"]


@pytest.fixture(scope="session")
def wordpiece():
    """A tokenizer of 25 tokens whose mask is [MASK]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ENCODER_WORDS]
    return BertTokenizer({name: id for id, name in enumerate(names)}, strip_accents=False)


@pytest.fixture(scope="session")
def bytelevel():
    """A byte-level tokenizer of letters, some words and no other bytes, whose mask is <mask> and takes the space before it."""
    letters = sorted(ByteLevel.alphabet())
    names = ["<s>", "<pad>", "</s>", "<unk>", *letters, "Ġs", "eo", "Ġseo", "<mask>"]
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, [("Ġ", "s"), ("e", "o"), ("Ġs", "eo")]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, normalized=False)})
    return tokenizer


@pytest.fixture(scope="session")
def encoder():
    """`encoder(kind, seed=0, **config)`: one in float64, built once for each call's arguments; do not change its weights."""
    built = {}

    def get(kind: str = "bert", seed: int = 0, **changes):
        key = (kind, seed, repr(sorted(changes.items())))
        if key not in built:
            built[key] = build_encoder(kind, seed, **{"vocab_size": 40, "max_position_embeddings": 40, **changes}).double()
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
