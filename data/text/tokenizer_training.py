"""Tokenizers from nothing: byte-level BPE, WordPiece and Unigram, learned from the text that a model is to be trained on.

The library `tokenizers` learns the first two; what it leaves to the order of its hash tables is decided here, so that the same text gives the same
file. Of Unigram that is all of its arithmetic, which `unigram.py` does instead.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from .unigram import SPACE, unigram

KINDS = ("bpe", "wordpiece", "unigram")
OWN_FAMILY = {"bpe": "decoder", "wordpiece": "encoder", "unigram": "encoder-decoder"}
FAMILIES = {  # the special tokens that a family of models wants, in the order of their ids
    "decoder": {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    "encoder": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "encoder-decoder": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},  # T5's, with its sentinels at the vocabulary's end
}
SENTINELS = tuple(f"<extra_id_{number}>" for number in reversed(range(100)))  # for hidden spans, the first one's last, as in T5
PREFIX = "##"  # of a piece that goes on with a word


@dataclass(frozen=True)
class TokenizerSettings:
    """What kind of tokenizer is learned. Raises UserError for a value that there is not."""

    kind: str = "bpe"
    vocab_size: int = 8192  # special tokens included
    family: str | None = None  # whose special tokens it has; by default a decoder's for bpe, an encoder's for wordpiece, an encoder-decoder's for unigram
    min_frequency: int = 2  # of a pair that is merged; unigram: of what may be a token
    add_prefix_space: bool = False  # bpe: the first word of a text is as one behind a space
    bpe_dropout: float = 0.0  # bpe: the share of merges left out, anew at each encoding
    cased: bool = True  # wordpiece: letters keep their case and their accents
    limit_alphabet: int = 3000  # wordpiece, unigram: characters that can be written; of others a word, or the character, is unknown

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"kind must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {self.kind!r}")
        if self.family is not None and self.family not in FAMILIES:
            names = list(FAMILIES)
            raise UserError(f"family must be {', '.join(names[:-1])} or {names[-1]}, got {self.family!r}")
        for name in ("vocab_size", "min_frequency", "limit_alphabet"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.bpe_dropout < 1:
            raise UserError(f"bpe_dropout must be in [0, 1), got {self.bpe_dropout}")
        if self.kind != "bpe" and (self.add_prefix_space or self.bpe_dropout):
            raise UserError(f"{'add_prefix_space' if self.add_prefix_space else 'bpe_dropout'} is of --kind bpe, {self.kind} has nothing like it: leave it out")
        if self.kind == "bpe" and not self.cased:
            raise UserError("cased is of --kind wordpiece, bpe keeps every byte as it is: leave it out")
        if self.kind == "unigram" and not self.cased:
            raise UserError("cased is of --kind wordpiece, unigram keeps letters as they are: leave it out")
        if self.kind == "bpe" and self.limit_alphabet != TokenizerSettings.limit_alphabet:
            raise UserError("limit_alphabet is of --kind wordpiece and unigram, bpe can write every byte: leave it out")

    def special_tokens(self) -> dict[str, str]:
        """The special tokens at the vocabulary's beginning by their roles; WordPiece and Unigram need one for what is unknown to them."""
        found = FAMILIES[self._family()]
        return found if self.kind == "bpe" or "unk_token" in found else {**found, "unk_token": "<|unk|>"}

    def sentinels(self) -> tuple[str, ...]:
        """The special tokens at the vocabulary's end, which stand for hidden spans in what an encoder-decoder learns."""
        return SENTINELS if self._family() == "encoder-decoder" else ()

    def learned_size(self) -> int:
        """How large the vocabulary is without sentinels."""
        return self.vocab_size - len(self.sentinels())

    def _family(self) -> str:
        return self.family or OWN_FAMILY[self.kind]


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from texts, which are read as they come; for WordPiece twice, each time from the beginning.

    Its memory grows with the different words, not with the texts. The same texts in the same order give the same tokenizer, to the byte of its
    file. Byte-level BPE decodes every text that it encoded exactly (behind a space with `add_prefix_space`); WordPiece decodes it as BERT's normalisation leaves it: control
    characters gone, white space one space, letters without case and accents unless `cased`, and no spaces around punctuation to be relied on.
    Letters come composed (NFC), which BERT's normalisation alone does not: Hangul would come apart. Unigram, SentencePiece's kind as T5 has it, decodes
    a text as NFKC leaves it, white space one space, what it cannot say aside. There is no chat template.
    Raises UserError for a vocabulary that the text cannot give or that does not hold the alphabet, and for no text at all.
    """
    if settings.kind == "wordpiece" and iter(texts) is texts:
        raise ValueError("the texts are read twice: give a list, or what begins anew each time it is iterated")
    return {"bpe": _byte_level, "wordpiece": _word_pieces, "unigram": _unigram}[settings.kind](texts, settings)


def says(settings: TokenizerSettings, text: str) -> bool:
    """Whether a tokenizer of these settings makes tokens of a text: BERT's normalisation leaves nothing of control and format characters."""
    if settings.kind != "wordpiece" or any(map(str.isalnum, text)):
        return bool(text.strip())
    return bool(_word_piece_tokenizer(models.WordPiece(unk_token="[UNK]"), settings.cased).normalizer.normalize_str(text).strip())


def _byte_level(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    special, alphabet = settings.special_tokens(), pre_tokenizers.ByteLevel.alphabet()
    _refuse_small(settings, len(special), len(alphabet), "the 256 bytes", "")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.learned_size(), min_frequency=settings.min_frequency, special_tokens=_added(special.values()),
        initial_alphabet=alphabet, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_seen(texts), trainer)
    _refuse_large(settings, tokenizer.get_vocab_size())
    tokenizer.model.dropout = settings.bpe_dropout or None
    return _wrapped(tokenizer, settings, add_prefix_space=settings.add_prefix_space)


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
        vocab_size=settings.learned_size(), min_frequency=settings.min_frequency, special_tokens=[*special.values(), *pieces],
        initial_alphabet=letters, limit_alphabet=len(letters), continuing_subword_prefix=PREFIX, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(iter(texts), trainer)
    _refuse_large(settings, tokenizer.get_vocab_size())
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    model = models.WordPiece(vocab, unk_token=special["unk_token"], continuing_subword_prefix=PREFIX)
    tokenizer = _word_piece_tokenizer(model, settings.cased)  # in which letters are no special tokens
    tokenizer.add_special_tokens(_added(special.values()))
    return _wrapped(tokenizer, settings)


def _word_piece_tokenizer(model: models.WordPiece, cased: bool) -> Tokenizer:
    """A tokenizer around a model of word pieces, with BERT's normalisation and BERT's words."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=not cased, strip_accents=not cased), normalizers.NFC()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _unigram(texts: Iterable[str], settings: TokenizerSettings) -> PreTrainedTokenizerFast:
    """SentencePiece's tokens as T5 has them: words begin with the space before them, which the first one of a text has too."""
    special, normalizer = settings.special_tokens(), normalizers.NFKC()
    words: Counter[str] = Counter()
    for text in _seen(texts):
        words.update(normalizer.normalize_str(text).split())
    letters = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[: settings.limit_alphabet]
    _refuse_small(settings, len(special), len(alphabet) + 1, f"the {len(alphabet):,} characters, the space", ", or lower --limit_alphabet")
    room = settings.learned_size() - len(special)
    scores = unigram(words, room, alphabet, settings.min_frequency)
    if len(scores) < room:
        _refuse_large(settings, len(special) + len(scores), f"with parts of words that come at least {settings.min_frequency} times ")
    ids = list(special.values())
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in ids), *scores], unk_id=ids.index(special["unk_token"])))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=SPACE)])
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE)
    tokenizer.add_special_tokens(_added(ids))
    return _wrapped(tokenizer, settings)


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
    if settings.learned_size() < special + alphabet:
        special += len(settings.sentinels())
        least = special + alphabet
        raise UserError(f"vocab_size {settings.vocab_size:,}: {what} and {special} special tokens take {least:,} alone: set --vocab_size {least} or more{remedy}")


def _refuse_large(settings: TokenizerSettings, given: int, often: str | None = None) -> None:
    if given < settings.learned_size():
        often = often or f"with pairs that come at least {settings.min_frequency} times "
        given += len(settings.sentinels())
        raise UserError(
            f"vocab_size {settings.vocab_size:,}: {often}the text gives {given:,} tokens and no more: set --vocab_size {given} or less, or give more text"
        )


def _wrapped(tokenizer: Tokenizer, settings: TokenizerSettings, **options: bool) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it: a text gets what stands around it in training, BOS, [CLS] and [SEP], or, of an encoder-decoder, the end."""
    special, sentinels = settings.special_tokens(), settings.sentinels()
    tokenizer.add_special_tokens(_added(sentinels))
    around = [special.get("cls_token") or special.get("bos_token"), special.get("sep_token") or (special["eos_token"] if sentinels else None)]
    before, behind = ([token] if token else [] for token in around)
    single = [*before, "$A", *behind]
    pair = [*single, *(["$B:1", *(f"{token}:1" for token in behind)] if behind else ["$B"])]
    ids = [(token, tokenizer.token_to_id(token)) for token in [*before, *behind]]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    more = {"extra_special_tokens": list(sentinels)} if sentinels else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special, **more, **options)
