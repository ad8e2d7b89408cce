"""Options of a tokenizer that is learned from text."""

from dataclasses import dataclass, field, fields

from seodang.data.text.tokenizer_training import TokenizerSettings


@dataclass
class TokenizerOptions:
    """What kind of tokenizer it is."""

    kind: str = field(default="bpe", metadata={"help": "bpe (byte-level: any text, exactly), wordpiece (BERT's) or unigram (SentencePiece's, T5's)."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens, special ones included."})
    family: str | None = field(default=None, metadata={"help": "Whose special tokens: decoder, encoder or encoder-decoder; by default as --kind and the model want."})
    min_frequency: int = field(default=2, metadata={"help": "How often a pair must come to become a token; unigram: a part of words."})
    add_prefix_space: bool = field(default=False, metadata={"help": "bpe: the first word is as one behind a space."})
    bpe_dropout: float = field(default=0.0, metadata={"help": "bpe: the share of merges left out at random, in training text alone."})
    cased: bool = field(default=True, metadata={"help": "wordpiece: letters keep their case and accents."})
    limit_alphabet: int = field(default=3000, metadata={"help": "wordpiece, unigram: how many characters can be written, the commonest."})

    def settings(self, family: str | None = None) -> TokenizerSettings:
        """The same as the training of a tokenizer takes them; `family` where none was given. Raises UserError for what does not go together."""
        values = {each.name: getattr(self, each.name) for each in fields(TokenizerSettings)}
        return TokenizerSettings(**{**values, "family": self.family or family})
