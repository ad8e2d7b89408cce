"""Draw the pictures of docs/records-and-masks.md and docs/teacher-forcing.md, from what the code makes of a record.

    python docs/pictures/draw.py        # writes the .svg files beside this one; a test says when they are out of date

The tokens are those of the default model's tokenizer, labels and packing those of `seodang.data`, masks those that training attends by.
"""

from collections.abc import Callable, Iterable
from html import escape
from itertools import groupby
from pathlib import Path
from unicodedata import east_asian_width

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from seodang.data import Dialogue, pack, prepare
from seodang.data.packing import Row
from seodang.infer import load_tokenizer
from seodang.train.attention.both_ways import seen

FOLDER = Path(__file__).parent
WIDE, HIGH, GAP = 760, 22, 3  # a picture; a token's box; what is between boxes
TRAINED, PLAIN, EDGE, WORDS, QUIET = "#0f766e", "#e2e8f0", "#94a3b8", "#1e293b", "#64748b"
STYLE = "font-family: ui-monospace, Menlo, Consolas, 'Noto Sans Mono CJK KR', monospace; font-size: 11px"


def svg(height: int, parts: Iterable[str], said: str) -> str:
    """A picture of the usual width on white, which `said` describes to who cannot see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" width="{WIDE}" role="img" style="{STYLE}">'
    return "\n".join([head, f"<title>{escape(said)}</title>", f'<rect width="{WIDE}" height="{height}" fill="#ffffff"/>', *parts, "</svg>\n"])


def text(x: float, y: float, words: str, fill: str = WORDS, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}" xml:space="preserve">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" stroke="{EDGE}" stroke-width="0.5"/>'


def width_of(words: str) -> float:
    return 8 + 6.7 * sum(2 if east_asian_width(letter) in "WF" else 1 for letter in words)


def shown(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """A token's text; the bytes of one that is a part of a letter."""
    words = tokenizer.decode([id])
    if "\ufffd" in words:
        bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        return " ".join(f"{bytes_of[letter]:02X}" for letter in tokenizer.convert_ids_to_tokens(id))
    return words.replace(" ", "␣").replace("\n", "⏎")


def row_picture(tokenizer: PreTrainedTokenizerBase, row: Row, said: str) -> str:
    """Each token in a box with its label beneath, dark where it is trained."""
    parts, x, y = [], 0.0, 20.0
    for id, label in zip(row["input_ids"], row["labels"], strict=True):
        name, below = shown(tokenizer, id), str(label)
        width = max(width_of(name), width_of(below))
        if x + width > WIDE:
            x, y = 0.0, y + 52
        trained = label != -100
        parts += [box(x, y, width, HIGH, TRAINED if trained else PLAIN), text(x + width / 2, y + 15, name, "#ffffff" if trained else WORDS, "middle")]
        parts.append(text(x + width / 2, y + 36, below, TRAINED if trained else QUIET, "middle"))
        x += width + GAP
    return svg(int(y + 44), [text(0, 12, "input_ids as text, labels beneath: a dark token is trained, -100 is not", QUIET), *parts], said)


def matrix(x: float, y: float, side: float, visible: Tensor, colour: Callable[[int, int], str]) -> list[str]:
    """A square of a row for each query and a column for each key, filled where the one sees the other."""
    step = side / len(visible)
    parts = [box(x, y, side, side, "#f8fafc")]
    for i, line in enumerate(visible.tolist()):
        for (see, fill), keys in groupby(range(len(line)), key=lambda j: (line[j], colour(i, j))):
            if see:
                j, count = (keys := list(keys))[0], len(keys)
                parts.append(f'<rect x="{x + j * step:.1f}" y="{y + i * step:.1f}" width="{count * step - 1:.1f}" height="{step - 1:.1f}" fill="{fill}"/>')
    return parts


def packed_picture(rows: list[Row]) -> str:
    """Two records in one row, and who sees whom."""
    [row] = pack(rows, 64)
    of = torch.repeat_interleave(torch.arange(len(row["lengths"])), torch.tensor(row["lengths"]))
    place = torch.arange(len(of))
    visible = (of[:, None] == of) & (place <= place[:, None])
    colours = ("#0f766e", "#b45309")
    counted = [f"0 1 2 ... {length - 1}" for length in row["lengths"]]
    parts = [text(90, 20, "keys: records of " + " and ".join(map(str, row["lengths"])) + " tokens, end to end", QUIET), text(0, 190, "queries", QUIET)]
    parts += matrix(90, 30, 300, visible, lambda i, j: colours[int(of[i])])
    parts += [
        text(430, 70, "filled: this query sees this key", WORDS),
        text(430, 92, "no token sees the other record,", WORDS),
        text(430, 110, "and each begins at position 0:", WORDS),
        text(430, 132, counted[0], colours[0]),
        text(430, 150, counted[1], colours[1]),
        text(430, 180, f"labels: {sum(label != -100 for label in row['labels'])} of {len(of)} are trained,", WORDS),
        text(430, 198, "as if the records were alone", WORDS),
    ]
    return svg(345, parts, "Attention of two packed records: two triangles on the diagonal, nothing between them")


def masks_picture() -> str:
    """Which keys a query sees, in the four ways that there are, of a prompt of 4 tokens and an answer of 6."""

    def of(causal: int, block: int | None = None) -> Tensor:
        return seen((10,), (causal,), (0,), 10, torch.device("cpu"), block)[0, 0]

    branches = torch.ones(10, 10, dtype=torch.bool).tril()
    branches[7:, 4:7] = False  # the second answer does not see the first
    kinds = {
        "causal": (of(10), "left to right: each token", "sees those before it"),
        "both ways": (of(4), "diffusion: an answer's tokens", "see one another and the prompt"),
        "blocks": (of(4, 3), "diffusion by blocks of 3:", "a block sees those before it"),
        "branches": (branches, "two answers to one prompt,", "which is computed once"),
    }
    parts = []
    for number, (name, (visible, *lines)) in enumerate(kinds.items()):
        x = number * 192
        parts += matrix(x, 28, 160, visible, lambda i, j: PROMPT if j < 4 else TRAINED)
        parts += [text(x, 18, name), *(text(x, 208 + 15 * at, line, QUIET) for at, line in enumerate(lines))]
    return svg(232, parts, "Four masks of a prompt of 4 tokens and an answer of 6: causal, both ways, by blocks, branches")


PROMPT = "#5eead4"  # keys of the prompt


def forcing_picture(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    """Above, one pass over the whole answer, each place asked for the next token; below, the passes of generation."""
    first = next(at for at, label in enumerate(row["labels"]) if label != -100)
    answer = row["input_ids"][first:]
    ids = [row["input_ids"][first - 1], *answer]
    names = [shown(tokenizer, id) for id in ids]
    wide = max(map(width_of, names)) + 14
    parts = [text(0, 14, "training: one pass, the true answer is the input; every place is asked for the token behind it", QUIET)]
    for at, name in enumerate(names[:-1]):
        x = 80 + at * wide
        parts += [box(x, 64, wide - GAP, HIGH, PLAIN), text(x + wide / 2, 79, name, anchor="middle")]
        parts += [box(x, 24, wide - GAP, HIGH, TRAINED), text(x + wide / 2, 39, names[at + 1], "#ffffff", "middle")]
        parts.append(f'<path d="M{x + wide / 2:g} 63 V48" stroke="{EDGE}" fill="none"/>')
    parts += [text(0, 39, "is asked", TRAINED), text(0, 79, "is given", QUIET)]
    parts.append(text(0, 120, "speaking: a pass a token, what it says is its next input; the past is in the KV cache", QUIET))
    for step in range(len(answer)):
        y = 132 + step * 28
        parts.append(text(0, y + 15, f"pass {step + 1}", QUIET))
        for at in range(step + 1):
            x, new = 80 + at * wide, at == step  # what was read before is in the cache, and pale
            parts += [box(x, y, wide - GAP, HIGH, PLAIN if new else "#f8fafc"), text(x + wide / 2, y + 15, names[at], WORDS if new else EDGE, "middle")]
        x = 98 + (step + 1) * wide
        parts += [text(x - 16, y + 15, "→", QUIET), box(x, y, wide - GAP, HIGH, TRAINED)]
        parts.append(text(x + wide / 2, y + 15, names[step + 1], "#ffffff", "middle"))
    return svg(140 + len(answer) * 28, parts, "Teacher forcing in one pass, and generation token by token")


def pictures() -> dict[str, str]:
    """Every picture, by its file's name."""
    tokenizer = load_tokenizer("default")
    plain = [{"role": "system", "content": "Be brief."}]
    asked = lambda question, answer: Dialogue([*plain, {"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    korean = asked("한국의 수도는?", "서울입니다.")
    talks = [asked("Name a colour.", "Blue."), asked("2 + 3?", "5")]
    rows, _ = prepare(talks, tokenizer, max_length=64)
    [korean_row], _ = prepare([korean], tokenizer, max_length=64)
    return {
        "row.svg": row_picture(tokenizer, rows[0], "The tokens of a dialogue: only the answer and its end-of-turn token are trained"),
        "row-korean.svg": row_picture(tokenizer, korean_row, "The same of a Korean dialogue, whose letters are several tokens each"),
        "packed.svg": packed_picture(list(rows)),
        "masks.svg": masks_picture(),
        "teacher-forcing.svg": forcing_picture(tokenizer, rows[0]),
    }


if __name__ == "__main__":
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
        print(name, len(picture))
