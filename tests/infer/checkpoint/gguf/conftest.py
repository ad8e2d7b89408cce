"""llama.cpp, which reads what is written here, files of tiny models, and small tokenizers of every kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Sequence, Split
from transformers import PreTrainedTokenizerFast

from seodang.infer.checkpoint.gguf.agreement import settled
from seodang.infer.checkpoint.gguf.pre_tokenizers import split_named
from seodang.infer.checkpoint.gguf.vocabulary import vocabulary_of
from seodang.infer.checkpoint.gguf.writing import write_gguf
from seodang.infer.gguf.families import family_of

ROOT = Path(__file__).parents[4]
CONTROLS = ["<unk>", "<s>", "<|im_end|>", "<|im_start|>", "<pad>"]
BYTES = [f"<0x{code:02X}>" for code in range(256)]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class LlamaCpp:
    """A process that has a GGUF file open in llama.cpp."""

    def __init__(self):
        script = Path(__file__).with_name("llama_cpp.py")
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, str(script)], text=True, **pipes)

    def ask(self, **asked):
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.process.stderr.read()[-3000:]
        return json.loads(answer)

    def load(self, file) -> "LlamaCpp":
        self.ask(load=str(file))
        return self

    def ids_of(self, *texts: str) -> list[list[int]]:
        return self.ask(ids_of=texts)

    def likely_after(self, ids: list[int], count: int) -> torch.Tensor:
        """The log-probabilities of the first `count` ids."""
        told = self.ask(likely_after=ids, count=count)
        return torch.tensor([told[str(id)] for id in range(count)])

    def after(self, ids: list[int], count: int) -> list[int]:
        """The likeliest ids, one after the other."""
        return self.ask(after=ids, count=count)

    def answer(self, messages: list[dict], count: int) -> dict:
        return self.ask(messages=messages, count=count)


@pytest.fixture(scope="session")
def llama_cpp():
    pytest.importorskip("xllamacpp")
    engine = LlamaCpp()
    yield engine
    engine.process.stdin.close()
    engine.process.wait()


@pytest.fixture
def write(tiny_tokenizer, tmp_path):
    """`write(model, tokenizer=None, kind="f32")`: a GGUF file of a tiny model; `write.notes` is what differs in llama.cpp."""

    def run(model, tokenizer=None, kind="f32"):
        tokenizer = tokenizer or tiny_tokenizer
        vocabulary = settled(vocabulary_of(tokenizer, model.config.vocab_size, [tokenizer.eos_token_id]), tokenizer)
        path = tmp_path / f"tiny-{kind}.gguf"
        run.notes = vocabulary.notes + write_gguf(path, model, family_of(model.config), vocabulary, kind, "tiny")
        return path

    return run


@pytest.fixture(scope="session")
def corpus():
    code = (ROOT / "recipes" / "options" / "parser.py").read_text(encoding="utf-8")
    return [*(ROOT / "data" / "samples" / "korean_english.jsonl").read_text(encoding="utf-8").splitlines()[:250], *code.splitlines(True)]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>"], **names)
    whole.chat_template = CHATML
    return whole


def byte_level(corpus, pre, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=CONTROLS, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(["<think>"])
    return wrapped(tokenizer)


def sentencepiece(corpus, pre, normalizer=None):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=CONTROLS + BYTES, limit_alphabet=300, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [added for added in definition["added_tokens"] if added["content"] not in BYTES]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer)


def unigram(corpus, pre):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=CONTROLS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return wrapped(tokenizer)


def cut(pattern):
    return Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])


TRAINED = {
    "gpt-2": lambda corpus: byte_level(corpus, ByteLevel(add_prefix_space=False)),
    "smollm": lambda corpus: byte_level(corpus, Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])),
    "smaug-bpe": lambda corpus: byte_level(corpus, cut(LLAMA3)),
    "llama-bpe": lambda corpus: byte_level(corpus, cut(LLAMA3), ignore_merges=True),
    "qwen2": lambda corpus: byte_level(corpus, cut(QWEN), normalizers.NFC()),
    "tekken": lambda corpus: byte_level(corpus, cut(split_named("tekken").patterns[0]), ignore_merges=True),
    "gpt-4o": lambda corpus: byte_level(corpus, cut(split_named("gpt-4o").patterns[0])),
    "qwen35": lambda corpus: byte_level(corpus, cut(split_named("qwen35").patterns[0])),
    "prepended": lambda corpus: sentencepiece(corpus, None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
    "always": lambda corpus: sentencepiece(corpus, Metaspace(prepend_scheme="always", split=False)),
    "first": lambda corpus: sentencepiece(corpus, Metaspace(prepend_scheme="first", split=False)),
    "gemma": lambda corpus: sentencepiece(corpus, Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁")),
    "unigram": lambda corpus: unigram(corpus, Metaspace(prepend_scheme="always")),
}


@pytest.fixture(scope="session")
def trained(corpus):
    """`trained(kind)`: a tokenizer of one of the kinds of TRAINED, trained once."""
    made = {}
    return lambda kind: made[kind] if kind in made else made.setdefault(kind, TRAINED[kind](corpus))
