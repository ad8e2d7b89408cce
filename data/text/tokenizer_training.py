"""Tokenizers from nothing: byte-level BPE and WordPiece, learned from the text that a model is to be trained on.

The library `tokenizers` learns them; what it leaves to the order of its hash tables is decided here, so that the same text gives the same file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import UserError

KINDS = ("bpe", "wordpiece")
FAMILIES = {  # the special tokens that a family of models wants, in the order of their ids
    "decoder": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    "encoder": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
}
PREFIX = "##"  # of a piece that goes on with a word


@dataclass(frozen=True)
class TokenizerSettings:
    """What kind of tokenizer is learned. Raises UserError for a value that there is not."""

    kind: str = "bpe"
    vocab_size: int = 8192  # special tokens included
    family: str | None = None  # whose special tokens it has; by default a decoder's for bpe, an encoder's for wordpiece
    min_frequency: int = 2  # of a pair that is merged
    add_prefix_space: bool = False  # bpe: the first word of a text is as one behind a space
    bpe_dropout: float = 0.0  # bpe: the share of merges left out, anew at each encoding
    cased: bool = True  # wordpiece: letters keep their case and their accents
    limit_alphabet: int = 3000  # wordpiece: characters that can be written; of others a word is unknown

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"kind must be {' or '.join(KINDS)}, got {self.kind!r}")
        if self.family is not None and self.family not in FAMILIES:
            raise UserError(f"family must be {' or '.join(FAMILIES)}, got {self.family!r}")
        for name in ("vocab_size", "min_frequency", "limit_alphabet"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.bpe_dropout < 1:
            raise UserError(f"bpe_dropout must be in [0, 1), got {self.bpe_dropout}")
        if self.kind == "wordpiece" and (self.add_prefix_space or self.bpe_dropout):
            raise UserError(f"{'add_prefix_space' if self.add_prefix_space else 'bpe_dropout'} is of --kind bpe, wordpiece has nothing like it: leave it out")
        if self.kind == "bpe" and not self.cased:
            raise UserError("cased is of --kind wordpiece, bpe keeps every byte as it is: leave it out")
        if self.kind == "bpe" and self.limit_alphabet != TokenizerSettings.limit_alphabet:
            raise UserError("limit_alphabet is of --kind wordpiece, bpe can write every byte: leave it out")

    def special_tokens(self) -> dict[str, str]:
        """The special tokens by their roles; WordPiece needs one for what is unknown to it."""
        found = FAMILIES[self.family or ("decoder" if self.kind == "bpe" else "encoder")]
        return found if self.kind == "bpe" or "unk_token" in found else {**found, "unk_token": "<|unk|>"}


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from texts, which are read as they come; for WordPiece twice, each time from the beginning.

    Its memory grows with the different words, not with the texts. The same texts in the same order give the same tokenizer, to the byte of its
    file. Byte-level BPE decodes every text that it encoded exactly (behind a space with `add_prefix_space`); WordPiece decodes it as BERT's normalisation leaves it: control
    characters gone, white space one space, letters without case and accents unless `cased`, and no spaces around punctuation to be relied on.
    Letters come composed (NFC), which BERT's normalisation alone does not: Hangul would come apart. There is no chat template.
    Raises UserError for a vocabulary that the text cannot give or that does not hold the alphabet, and for no text at all.
    """
    if settings.kind == "wordpiece" and iter(texts) is texts:
        raise ValueError("the texts are read twice: give a list, or what begins anew each time it is iterated")
    return (_byte_level if settings.kind == "bpe" else _word_pieces)(texts, settings)


def says(settings: TokenizerSettings, text: str) -> bool:
    """Whether a tokenizer of these settings makes tokens of a text: BERT's normalisation leaves nothing of control and format characters."""
    if settings.kind == "bpe" or any(map(str.isalnum, text)):
        return bool(text.strip())
    return bool(_word_piece_tokenizer(models.WordPiece(unk_token="[UNK]"), settings.cased).normalizer.normalize_str(text).strip())


def _byte_level(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    special, alphabet = settings.special_tokens(), pre_tokenizers.ByteLevel.alphabet()
    _refuse_small(settings, len(special), len(alphabet), "the 256 bytes", "")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, min_frequency=settings.min_frequency, special_tokens=_added(special.values()),
        initial_alphabet=alphabet, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_seen(texts), trainer)
    _refuse_large(settings, tokenizer)
    tokenizer.model.dropout = settings.bpe_dropout or None
    return _wrapped(tokenizer, special, add_prefix_space=settings.add_prefix_space)


def _word_pieces(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    special = settings.special_tokens()
    tokenizer = _word_piece_tokenizer(models.WordPiece(unk_token=special["unk_token"]), settings.cased)
    letters = _alphabet(texts, tokenizer, settings.limit_alphabet)
    # Each letter can begin a word and go on with one: no word of known letters is unknown. The library would give the latter their ids in the order of a
    # hash table, another in each run, and break ties of the merges by these ids; so they are handed to it in order.
    pieces = [*letters, *(PREFIX + letter for letter in letters if _goes_on(letter, tokenizer))]
    remedy = ", or lower --limit_alphabet"
    _refuse_small(settings, len(special), len(pieces), f"the {len(letters):,} characters, most of them in two roles,", remedy)
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size, min_frequency=settings.min_frequency, special_tokens=[*special.values(), *pieces],
        initial_alphabet=letters, limit_alphabet=len(letters), continuing_subword_prefix=PREFIX, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(iter(texts), trainer)
    _refuse_large(settings, tokenizer)
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    model = models.WordPiece(vocab, unk_token=special["unk_token"], continuing_subword_prefix=PREFIX)
    tokenizer = _word_piece_tokenizer(model, settings.cased)  # in which letters are no special tokens
    tokenizer.add_special_tokens(_added(special.values()))
    return _wrapped(tokenizer, special)


def _word_piece_tokenizer(model: models.WordPiece, cased: bool) -> Tokenizer:
    """A tokenizer around a model of word pieces, with BERT's normalisation and BERT's words."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased), normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer, most: int) -> list[str]:
    """The characters of the texts as the tokenizer normalises them, white space left out: the commonest, of equally common ones the first in Unicode."""
    counts: Counter[str] = Counter()
    for text in _seen(texts):
        counts.update(tokenizer.normalizer.normalize_str(text))
    letters = sorted((letter for letter in counts if not letter.isspace()), key=lambda letter: (-counts[letter], letter))
    return sorted(letters[:most])


def _goes_on(letter: str, tokenizer: Tokenizer) -> bool:
    """Whether a character can stand behind another in a word: not punctuation, and no Chinese character, which is a word of its own."""
    words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + letter))
    return len(words) == 1


def _seen(texts: Iterable[str]) -> Iterator[str]:
    """The texts. Raises UserError at their end where they held nothing but white space."""
    empty = True
    for text in texts:
        empty = empty and not text.strip()
        yield text
    if empty:
        raise UserError("there is no text to learn a tokenizer from: the data is empty")


def _added(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def _refuse_small(settings: TokenizerSettings, special: int, alphabet: int, what: str, remedy: str) -> None:
    if settings.vocab_size < special + alphabet:
        least = special + alphabet
        raise UserError(f"vocab_size {settings.vocab_size:,}: {what} and {special} special tokens take {least:,} alone: set --vocab_size {least} or more{remedy}")


def _refuse_large(settings: TokenizerSettings, tokenizer: Tokenizer) -> None:
    given = tokenizer.get_vocab_size()
    if given < settings.vocab_size:
        often = f"with pairs that come at least {settings.min_frequency} times "
        raise UserError(
            f"vocab_size {settings.vocab_size:,}: {often}the text gives {given:,} tokens and no more: set --vocab_size {given} or less, or give more text"
        )


def _wrapped(tokenizer: Tokenizer, special: dict[str, str], **options: bool) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it: a text gets what stands around it in training, BOS, or [CLS] and [SEP]."""
    around = [special.get("cls_token") or special.get("bos_token"), special.get("sep_token")]
    before, behind = ([token] if token else [] for token in around)
    single = [*before, "$A", *behind]
    pair = [*single, *(["$B:1", *(f"{token}:1" for token in behind)] if behind else ["$B"])]
    ids = [(token, tokenizer.token_to_id(token)) for token in [*before, *behind]]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special, **options)
