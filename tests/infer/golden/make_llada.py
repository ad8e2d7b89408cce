"""Write llada.json: what LLaDA's published sampling loop makes of made-up logits. Run once; the tests need its result alone.

    python tests/infer/golden/make_llada.py FILE

FILE is `generate.py` of github.com/ML-GSAI/LLaDA (b7e6c35). It runs as it is but for two numbers: the ids of the end of the text and of the turn, which
it has in its code, become 61 and 62 of a vocabulary of 64. The model is no network but the rule of `logits_of`, in whole numbers, in which each logit
depends on all tokens of its row that are seen, on its place and on its token; the test states the same rule. A case's seed is torch's before the call.
Sequences are written with one letter a token (LETTERS), the history as the canvas after each step, from the prompt's end on where the prompt has no mask;
it is what the model is asked in the next pass. With cfg_scale above 0 the published loop needs an attention_mask, and gets one of ones.
"""

import itertools
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

VOCABULARY, MASK, END_OF_TEXT, END_OF_TURN = 64, 63, 61, 62
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-"
PRIME = 1_000_003


def logits_of(tokens, seen):
    """[batch, length] twice -> [batch, length, vocab].

    With s the sum of (token + 1) (place + 1)^2 over what is seen of the row, h = (s (place + 3) + 7919 (token + 1)^2 + 31 place) mod 1000003, and
    g = h^2 mod 1000003, a logit is (g mod 65536) / 8192 - 4.
    """
    length = tokens.shape[1]
    place, token = torch.arange(length)[:, None], torch.arange(VOCABULARY)[None]
    s = ((tokens + 1) * (torch.arange(length) + 1) ** 2 * seen).sum(dim=1)[:, None, None]
    h = (s * (place + 3) + 7919 * (token + 1) ** 2 + 31 * place) % PRIME
    return (h * h % PRIME % 65536).float() / 8192 - 4


def prompts(seed, batch, padded):
    """Prompts of five tokens, and with padding their attention masks, the first row without."""
    made = torch.randint(1, END_OF_TEXT, (batch, 5), generator=torch.Generator().manual_seed(seed))
    seen = torch.ones(batch, 5, dtype=torch.long)
    if padded:
        for row in range(batch):
            seen[row, : row + (batch == 1)] = 0
    return (made * seen).tolist(), seen.tolist() if padded else None


def cases():
    """A sample of all combinations, drawn with a seed; what is rare by name behind them."""
    shapes = ((8, 8, 8), (8, 8, 3), (8, 8, 12), (12, 4, 6), (12, 4, 9), (12, 3, 12), (12, 2, 18), (10, 5, 4))  # gen_length, block_length, steps
    text, turn = {"logits_eos_inf": True}, {"confidence_eos_eot_inf": True}
    ends = ({}, {}, text, turn, text | turn)
    every = itertools.product(shapes, (0.0, 0.7, 1.0), ("low_confidence", "random"), (0.0, 1.5), (1, 3), (False, True), ends)
    for seed, (shape, temperature, remasking, cfg_scale, batch, padded, flags) in enumerate(random.Random(0).sample(list(every), 64)):
        told = dict(zip(("gen_length", "block_length", "steps"), shape))
        told |= {"temperature": temperature, "remasking": remasking, "cfg_scale": cfg_scale, **flags}
        prompt, seen = prompts(seed, batch, padded)
        yield {"seed": seed, "prompt": prompt, "attention_mask": seen, "settings": told}
    one, masks = [[3, 1, 4, 1, 5]], [[3, MASK, 4, 1, 5, 9], [2, 6, MASK, MASK, MASK, 3]]
    short = {"gen_length": 8, "block_length": 4, "steps": 4}
    for number, (prompt, told) in enumerate((
        (one, {"gen_length": 8, "block_length": 8}),  # all else by default: 120 passes that commit nothing
        (one, {"steps": 2}),
        (masks, short),  # masks within the prompts, unequally many
        (masks, {**short, "temperature": 0.9, "remasking": "random"}),
        (masks, {**short, "cfg_scale": 2.0, "temperature": 0.5}),
        (one, {**short, "temperature": 3.0, "confidence_eos_eot_inf": True}),
        (one, {**short, "temperature": 3.0, "logits_eos_inf": True}),
        (one * 3, {"gen_length": 12, "block_length": 12, "steps": 12, "temperature": 1.0, "confidence_eos_eot_inf": True}),
    )):  # fmt: skip
        yield {"seed": 100 + number, "prompt": prompt, "attention_mask": None, "settings": told}


def written(tokens):
    return ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]


class Host:
    """The rule as a model; keeps the canvases that it was asked about, the second half of a pass with guidance left out."""

    device = torch.device("cpu")

    def __init__(self, rows):
        self.rows, self.canvases = rows, []

    def __call__(self, tokens, attention_mask=None):
        self.canvases.append(tokens[: self.rows].clone())
        return SimpleNamespace(logits=logits_of(tokens, torch.ones_like(tokens) if attention_mask is None else attention_mask))


def published(file):
    """The published function, with the ids of this vocabulary."""
    code = Path(file).read_text(encoding="utf-8").replace("126081", str(END_OF_TEXT)).replace("126348", str(END_OF_TURN))
    names = {"__name__": "llada"}
    exec(compile(code, file, "exec"), names)
    return names["generate"]


def run(generate, case):
    """The case with what the published loop makes of it."""
    prompt, seen = torch.tensor(case["prompt"]), case["attention_mask"]
    if seen is None and case["settings"].get("cfg_scale"):
        seen = torch.ones_like(prompt).tolist()
    host = Host(len(prompt))
    torch.manual_seed(case["seed"])
    result = generate(host, prompt, None if seen is None else torch.tensor(seen), **case["settings"], mask_id=MASK)
    begin = 0 if MASK in itertools.chain(*case["prompt"]) else prompt.shape[1]
    history = [" ".join(written(canvas[:, begin:])) for canvas in [*host.canvases[1:], result]]
    return {**case, "sequences": written(result), "history": history}


if __name__ == "__main__":
    made = [json.dumps(run(published(sys.argv[1]), case)) for case in cases()]
    Path(__file__).with_name("llada.json").write_text("[\n" + ",\n".join(made) + "\n]\n", encoding="utf-8")
