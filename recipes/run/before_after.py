"""What a model says to the same prompts before and after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seodang.infer import SamplingParams, generate

SHOWN = 300  # characters of an answer


def answer_rows(trainer, rows: Sequence[dict[str, Any]], max_new_tokens: int) -> list[str]:
    """The likeliest answers to the rows' prompts, of the trainer's model as it is."""
    if not rows:
        return []
    params = SamplingParams(max_new_tokens=max_new_tokens)
    with trainer.whole_model() as model:
        results = generate(model, trainer.processing_class, [row["prompt_ids"] for row in rows], params, on_error="raise")
    return [result.text for result in results]


def before_and_after(tokenizer, rows: Sequence[dict[str, Any]], before: Sequence[str], after: Sequence[str]) -> list[str]:
    """Each prompt with both answers, in lines."""
    lines = []
    for row, *answers in zip(rows, before, after, strict=True):
        prompt = " ".join(tokenizer.decode(row["prompt_ids"], skip_special_tokens=True).split())
        lines += [f"prompt          {prompt[-SHOWN:]}"]
        lines += [f"  {name:<13} {' '.join(text.split())[:SHOWN]}" for name, text in zip(("before", "after"), answers, strict=True)]
    return lines


def picture_line(name: str, path: Path | None) -> str:
    """The line that says where a picture is; empty where nothing was logged that could be drawn."""
    return f"{name:<16}{path}" if path is not None and path.is_file() else ""


def print_once(trainer, *lines: str) -> None:
    """Print what there is to say, once however many processes there are."""
    if trainer.is_world_process_zero() and any(lines):
        print(*filter(None, lines), sep="\n", flush=True)
