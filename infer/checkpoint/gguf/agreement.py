"""Whether llama.cpp reads a text as the tokenizer does, tried on Korean, English, code, spaces, control tokens and a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from ....data.errors import UserError
from ....data.template import render
from .encoding import Encoder
from .vocabulary import REMEDY, Vocabulary

PLAIN = (
    "수원은 어느 나라에 있나요? 대한민국 경기도의 도시입니다.",
    "It's 3.14, isn't it? I'LL say: DON'T we'd they're!",
    "def area(r: float) -> float:\n    return 3.14 * r ** 2  # 넓이\n\n\nprint(f'{area(10):.2f}')\n",
    '{"이름": ["가", "나"], "n": -1e5}\t<b>&amp;</b>\r\n',
    "2027-03-05 12:30:59, 1,234,567원 (약 98.7%)",
    "한글과 English가 섞인 글, 😀👍🏽 ✓ ½ ①",
    "日本語とРусский ümläut ñ, x\u00a0y",
    "a  b   c\t\td \n e\n\n \n",
    "ㅋㅋㅋㅋ ㅠㅠ 뷁 똠방각하 … !!??",
)
CONVERSATION = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), (PLAIN[0], PLAIN[2], PLAIN[1]))]
TRIED = 300  # control tokens
BARE = "llama.cpp puts no space before the first word of a plain prompt, as this tokenizer does: begin it with one (conversations are equal)"
SPACED = "a space that begins a text, or stands behind a control token, is one token more in llama.cpp"
BEHIND = "llama.cpp puts a space behind each control token, which this tokenizer does not"
BEFORE_TEXT = "llama.cpp puts no {} before a plain prompt, as this tokenizer does: begin it with one (conversations are equal)"
BEHIND_TEXT = "llama.cpp puts no {} behind a plain prompt, as this tokenizer does (conversations are equal)"


def probes(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Return the texts that are tried, by what is tried with them."""
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED)
    special = [token for token, kind in zip(vocabulary.tokens, vocabulary.types) if kind in kinds][:TRIED]
    chat = render(tokenizer, CONVERSATION, add_generation_prompt=True) if tokenizer.chat_template else ""
    return {
        "chat": [chat] if chat else [],
        "plain": list(PLAIN),
        "spaced": [f"  {text}" for text in PLAIN[:2]] + [f"{token} 가 {token} b" for token in special],
        "control": [text for token in special for text in (f"{token}가{token}b", f"{token}가 {token}b")],
        "before": [f"가 {token}" for token in special],
    }


def settled(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Return the vocabulary with what is put around a text settled, spaces and tokens, and a note where no setting gives every text the tokenizer's ids.

    Raises UserError where plain text, control tokens or conversations would get other ids in llama.cpp, whatever is set.
    """
    texts = probes(vocabulary, tokenizer)
    chats = bool(texts["chat"])
    if chats:
        vocabulary = around_conversations(vocabulary, tokenizer, *texts["chat"])
    spaces = (False,) if vocabulary.kind == "gpt2" else (True, False)
    differing = {space: dict(_differing(replace(vocabulary, add_space=space), tokenizer, texts)) for space in spaces}
    bare = (False, ("plain", "before"), BARE) if chats else (False, (), None)
    for space, allowed, note in ((True, (), None), (False, (), None), (True, ("spaced",), SPACED), bare, (True, ("spaced", "control"), BEHIND)):
        if space in differing and differing[space].keys() <= set(allowed):
            return replace(vocabulary, add_space=space, notes=vocabulary.notes + ([note] if note else []))
    *_, text = min(differing.values(), key=len).values()  # the last of them says most: of others a note would have told
    raise UserError(f"llama.cpp would give {text[:60]!r} other token ids than this tokenizer does: {REMEDY}")


def around_conversations(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, chat: str) -> Vocabulary:
    """Return the vocabulary without the tokens around a plain text that the rendered `chat` has not, a note for each: llama.cpp would put them around that too.

    A token that the chat begins with itself is not doubled there.
    """
    before = vocabulary.add_bos and not chat.startswith(tokenizer.bos_token)
    notes = [BEFORE_TEXT.format(tokenizer.bos_token)] * before + [BEHIND_TEXT.format(tokenizer.eos_token)] * vocabulary.add_eos
    return replace(vocabulary, add_bos=vocabulary.add_bos and not before, add_eos=False, notes=vocabulary.notes + notes)


def agrees(encoder: Encoder, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether llama.cpp gives a text the tokenizer's ids; a Unigram may have equally likely ones in another order, of which its notes tell."""
    there, here = encoder.encode(text), tokenizer.encode(text, add_special_tokens=False)
    return sorted(there) == sorted(here) if encoder.own.kind == "t5" else there == here


def _differing(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, texts: dict[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """What was tried that got other ids, with the first text."""
    encoder = Encoder(vocabulary)
    for tried, several in texts.items():
        for text in several:
            if not agrees(encoder, tokenizer, text):
                yield tried, text
                break
