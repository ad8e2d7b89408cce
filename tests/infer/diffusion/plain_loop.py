"""A slow and plain way to fill in what is not given: one token a pass, the surest first or in order, of what may stand there."""

import torch

from .conftest import MASK, canvas_logits


def said(tokenizer, text: str) -> list[int]:
    """A text's ids."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def one_by_one(
    model, prompt: list[int], length: int, allowed, given: dict[int, int] | None = None, in_order: bool = False, change=None, decided: bool = False
) -> list[int]:
    """The likeliest of what is allowed, a token a pass, the surest first by entropy or in order, up to the first end; None is an open position.

    `allowed(canvas, position)` lists ids, `change(canvas, position, logits)` returns the logits, [vocab], that are gone by. Where it is `decided`, what has
    one id alone is not asked for.
    """
    block = model.config.diffusion.get("block_length") or length
    canvas = [(given or {}).get(at) for at in range(length)]
    while None in canvas and not (2 in canvas and None not in canvas[: canvas.index(2)]):
        if decided:
            only = {at: allowed(canvas, at) for at in range(length) if canvas[at] is None}
            canvas = [only[at][0] if at in only and len(only[at]) == 1 else id for at, id in enumerate(canvas)]
            if None not in canvas:
                break
        begin = canvas.index(None) // block * block
        logits = canvas_logits(model, prompt, [MASK if id is None else id for id in canvas], min(begin + block, length))
        found = []
        for at in range(begin, len(logits)):
            if canvas[at] is None and 2 not in canvas[:at] and not (in_order and found):  # what is behind an end does not matter
                own = logits[at] if change is None else change(canvas, at, logits[at])
                ids = allowed(canvas, at)
                probs = own[ids].softmax(dim=-1)
                found.append((float(torch.special.xlogy(probs, probs).sum()), -at, ids[int(probs.argmax())]))
        _, at, id = max(found)
        canvas[-at] = id
    return canvas[: canvas.index(2) + 1] if 2 in canvas else canvas
