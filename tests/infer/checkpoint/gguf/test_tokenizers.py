"""Token ids are llama.cpp's: of tokenizers of every kind, on Korean, English, code, emoji, spaces and control tokens."""

import copy
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Metaspace, Punctuation, Sequence
from tokenizers.processors import TemplateProcessing

from seodang.data.errors import UserError
from seodang.infer.checkpoint.gguf.agreement import BARE, BEFORE_TEXT, BEHIND_TEXT, SPACED, settled
from seodang.infer.checkpoint.gguf.encoding import Encoder
from seodang.infer.checkpoint.gguf.pre_tokenizers import ROUGHLY
from seodang.infer.checkpoint.gguf.vocabulary import NEVER, NFC_NOTE, RUNS, vocabulary_in, vocabulary_of
from seodang.infer.gguf.reading import GgufFile

WHOLE = ["I'll", "3.14", "<|im_start|>", "<s>"]
LETTERS = [*"가각힣ㅋㅠ漢字かなabcXYZ019 .,!?'\"\n\r\t  ß éÅ😀👍🏽🏳️‍🌈«—…№½\u00a0\u3000Яж", *WHOLE]

ROUGH = {"tekken": [ROUGHLY], "gpt-4o": [ROUGHLY], "qwen35": []}
NOTES = {"qwen2": [NFC_NOTE], **ROUGH, "always": [SPACED], "unigram": [RUNS, SPACED]}


@pytest.fixture(scope="session")
def texts(corpus):
    """Lines that were learned from, lines that were not, and letters thrown together; no space begins one or stands behind a control token."""
    generator = random.Random(0)
    thrown = ["".join(generator.choices(LETTERS, k=generator.randrange(1, 50))) for _ in range(120)]
    code = [part[:300] for part in Path(__file__).read_text(encoding="utf-8").split("\n\n")]
    chat = "수원은 어느 나라에 있나요?<|im_end|>\n<|im_start|>assistant\n"
    fixed = [chat, "<s>안녕<think>음</think>", "2027-03-05, 1,234,567원", "a\n\n\n  b\t\tc  "]
    return [text for text in (*corpus[::40], *code, *thrown, *fixed) if text.strip() and text[0] != " " and "> " not in text]


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "smaug-bpe", "llama-bpe", "qwen2", *ROUGH, "prepended", "always", "gemma", "unigram"])
def test_ids_are_llama_cpps(kind, trained, texts, fresh_tiny, write, llama_cpp):
    tokenizer = trained(kind)
    path = write(fresh_tiny("llama", vocab_size=len(tokenizer) + 3), tokenizer)
    own = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    found = llama_cpp.load(path).ids_of(*texts)
    assert found == own or kind == "unigram" and list(map(sorted, found)) == list(map(sorted, own))  # whose equally likely cuts may change places
    vocabulary = vocabulary_in(GgufFile(path))
    assert vocabulary.pre == (kind if vocabulary.kind == "gpt2" else "default")
    short = [text for text in texts if len(text) < 120]
    encoder, spaced = Encoder(vocabulary), ["  두 칸", " a"]
    assert [encoder.encode(text) for text in (*short, *spaced)] == llama_cpp.ids_of(*short, *spaced)
    assert write.notes == NOTES.get(kind, [])


def test_a_space_before_the_first_word_alone_is_left_to_the_prompt(trained, texts, fresh_tiny, write, llama_cpp):
    """Mistral's and newer Llama's way: behind a control token there is none."""
    tokenizer = trained("first")
    engine = llama_cpp.load(write(fresh_tiny("llama", vocab_size=len(tokenizer)), tokenizer))
    assert write.notes == [BARE]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "안녕, hello"}], tokenize=False)
    plain = [text for text in texts if not text.startswith("<")]
    assert engine.ids_of(chat, *(" " + text for text in plain)) == [tokenizer.encode(text, add_special_tokens=False) for text in (chat, *plain)]
    tokenizer = defined(tokenizer)
    tokenizer.chat_template = None
    assert settled(vocabulary_of(tokenizer, len(tokenizer), [2]), tokenizer).add_space  # there is no conversation to be right for


def defined(tokenizer, change=lambda definition: None):
    """A copy of a tokenizer whose tokenizer.json was changed."""
    other, definition = copy.deepcopy(tokenizer), json.loads(tokenizer.backend_tokenizer.to_str())
    change(definition)
    other._tokenizer = Tokenizer.from_str(json.dumps(definition))
    return other


def test_tokens_have_their_kinds_and_roles(trained, fresh_tiny, write):
    tokenizer = trained("prepended")
    file = vocabulary_in(GgufFile(write(fresh_tiny("llama", vocab_size=len(tokenizer) + 2), tokenizer)))
    kinds = dict(zip(file.tokens, map(TokenType, file.types)))
    named = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "<0x0A>": TokenType.BYTE, "▁": TokenType.NORMAL}
    assert {token: kinds[token] for token in named} == named
    assert file.tokens[-2:] == [f"[PAD{len(tokenizer)}]", f"[PAD{len(tokenizer) + 1}]"] and file.types[-2:] == [TokenType.UNUSED] * 2
    assert file.ids == {"eos_token_id": 2, "bos_token_id": 1, "unknown_token_id": 0, "padding_token_id": 4}
    first = {token: score for token, score in zip(file.tokens, file.scores) if score > -3}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert first == {"".join(merges[0]): -1.0, "".join(merges[1]): -2.0} and file.scores[-1] == NEVER


def test_what_stands_around_a_text_and_all_that_ends_one(trained):
    tokenizer = defined(trained("gpt-2"))
    assert (vocabulary_of(tokenizer, 2000, [2]).add_bos, vocabulary_of(tokenizer, 2000, [2]).add_eos) == (False, False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 2)])
    whole = vocabulary_of(tokenizer, 2000, [3, 2, 7])
    assert (whole.add_bos, whole.add_eos) == (True, True)
    assert [whole.ids[role] for role in ("eos_token_id", "eot_token_id", "eom_token_id")] == [2, 3, 7]
    with pytest.raises(UserError, match="room for 3 tokens that end a text, generation_config.json has <|im_end|>, "):
        vocabulary_of(tokenizer, 2000, [2, 3, 7, 8])
    with pytest.raises(UserError, match="names no token that ends a text"):
        vocabulary_of(tokenizer, 2000, [])
    with pytest.raises(UserError, match="the tokenizer's ids go up to .*, the model has 100 embeddings"):
        vocabulary_of(tokenizer, 100, [2])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 4)])
    with pytest.raises(UserError, match="puts <pad> around a text"):
        vocabulary_of(tokenizer, 2000, [2])


def test_what_stands_around_a_plain_text_alone_is_not_put_around_a_conversation(trained, fresh_tiny, write, llama_cpp):
    tokenizer = defined(trained("gpt-2"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 2)])
    chatml, asked = tokenizer.chat_template, [{"role": "user", "content": "안녕"}]
    model = fresh_tiny("llama", vocab_size=len(tokenizer))
    notes = [BEFORE_TEXT.format("<s>"), BEHIND_TEXT.format("<|im_end|>")]
    for template, add_bos, told in ((chatml, False, notes), ("{{ bos_token }}" + chatml, True, notes[1:])):
        tokenizer.chat_template = template
        path = write(model, tokenizer)
        assert write.notes == told
        assert (vocabulary_in(GgufFile(path)).add_bos, vocabulary_in(GgufFile(path)).add_eos) == (add_bos, False)
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False, return_tensors="pt")
        greedy = tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)[0, ids.shape[1] :])
        assert llama_cpp.load(path).answer(asked, 8)["message"]["content"] == greedy
    tokenizer.chat_template = None
    plain = settled(vocabulary_of(tokenizer, 2000, [2]), tokenizer)
    assert (plain.add_bos, plain.add_eos, plain.notes) == (True, True, [])


def test_a_word_that_stays_whole_counts_where_merges_do_not_make_it(trained):
    """Llama 3's setting is nothing to GPT-2's way, as long as merges reach every token."""
    whole = defined(trained("gpt-2"), lambda definition: definition["model"].update(ignore_merges=True))
    assert vocabulary_of(whole, 2000, [2]).pre == "gpt-2"
    lost = []
    unmade = defined(whole, lambda definition: lost.append("".join(definition["model"]["merges"].pop())))
    with pytest.raises(UserError, match=f"the word {re.escape(repr(lost[0]))} stays whole in this tokenizer, otherwise than in llama.cpp's gpt-2"):
        vocabulary_of(unmade, 2000, [2])


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("gpt-2", {"normalizer": normalizers.Lowercase()}, "normalises a text by Lowercase"),
        ("gpt-2", {"pre_tokenizer": Sequence([Digits(), ByteLevel(add_prefix_space=False)])}, r"splits a text by \\p{N}\+ and then 's"),
        ("gpt-2", {"pre_tokenizer": ByteLevel(add_prefix_space=True)}, "ByteLevel with a space put before the text"),
        ("gemma", {"normalizer": normalizers.NFKC()}, "does not normalise a text by NFKC"),
        ("gemma", {"normalizer": normalizers.Replace("``", '"')}, "does not normalise a text by Replace of '``'"),
        ("gemma", {"pre_tokenizer": Punctuation()}, "does not split a text by Punctuation"),
        ("gemma", {"pre_tokenizer": Metaspace(prepend_scheme="never")}, "ends words at spaces and has the token"),
        ("gemma", {"model": models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>")}, "without 256 tokens of bytes to fall back on"),
        ("unigram", {"model": models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, byte_fallback=True)}, "Unigram does not fall back on bytes"),
        ("unigram", {"model": models.WordLevel({"<unk>": 0}, unk_token="<unk>")}, "no WordLevel tokenizer"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_know_are_refused_by_what_they_do(kind, change, told, trained):
    tokenizer = defined(trained(kind))
    for part, value in change.items():
        setattr(tokenizer.backend_tokenizer, part, value)
    with pytest.raises(UserError, match=told):
        vocabulary_of(tokenizer, 2000, [2])


def test_merges_that_are_not_all_there_are_refused(trained):
    """llama.cpp joins any two tokens that make a third."""
    lost = []
    lacking = defined(trained("gemma"), lambda definition: lost.extend(definition["model"]["merges"].pop()))
    with pytest.raises(UserError, match="llama.cpp would join .*, which this tokenizer's merges do not") as error:
        vocabulary_of(lacking, 2000, [2])
    assert all(repr(each) in str(error.value) for each in lost)


@pytest.mark.parametrize("kind", ["gpt-2", "always", "first"])
def test_a_token_that_takes_the_spaces_beside_it_is_refused(kind, trained):
    """A GGUF file cannot say that."""
    tokenizer = defined(trained(kind))
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    with pytest.raises(UserError, match=r"would give '(<mask>)?가 <mask>b?' other token ids"):
        settled(vocabulary_of(tokenizer, 2000, [2]), tokenizer)


def test_an_encoder_needs_no_more_than_the_file_says(trained):
    """By hand: of 'ab', 'bc' the higher score joins first, and letters without a token fall to bytes."""
    own = vocabulary_of(trained("gemma"), 2000, [2])
    bytes_too = [f"<0x{code:02X}>" for code in range(256)]
    small = replace(own, tokens=[*bytes_too, "a", "b", "c", "ab", "bc"], types=[6] * 256 + [1] * 5, scores=[0.0] * 256 + [-9.0] * 3 + [-2.0, -1.0])
    assert Encoder(small).encode("abc한") == [256, 260, 0xED, 0x95, 0x9C]
    assert Encoder(replace(small, scores=[0.0] * 256 + [-9.0] * 3 + [-1.0, -2.0])).encode("abc") == [259, 258]
