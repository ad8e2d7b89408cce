"""Write dream.json: what Dream's published sampling loop makes of made-up logits. Run once; the tests need its result alone.

The loop is the file `generation_utils.py` that lies beside the weights of Dream-org/Dream-v0-Instruct-7B on the hub (the copy in NVlabs/Fast-dLLM,
24cc59e, dream/model/, differs from it by an order of its own and two lines that print). It runs as it is, in the version of transformers that it was
written for:

    pip install --target old --no-deps transformers==4.46.2 tokenizers==0.20.3 huggingface-hub==0.26.5
    PYTHONPATH=old python tests/infer/golden/make_dream.py FOLDER

FOLDER holds `generation_utils.py` and `configuration_dream.py`. The model is no network but the rule of `logits_of`, in whole numbers, in which each
logit depends on all tokens of its row, on its place and on its token; the test states the same rule. A case's seed is torch's before the call.
Sequences are written with one letter a token (LETTERS), the history as the canvas after each step, from the prompt's end on where the prompt has no mask.
"""

import importlib
import itertools
import json
import random
import sys
import types
from pathlib import Path

import torch

VOCABULARY, MASK = 64, 63
LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-"
PRIME = 1_000_003


def logits_of(tokens):
    """[batch, length] -> [batch, length, vocab].

    With s the sum of (token + 1) (place + 1)^2 over the row, h = (s (place + 3) + 7919 (token + 1)^2 + 31 place) mod 1000003, and g = h^2 mod 1000003,
    a logit is (g mod 65536) / 8192 - 4.
    """
    length = tokens.shape[1]
    place, token = torch.arange(length)[:, None], torch.arange(VOCABULARY)[None]
    s = ((tokens + 1) * (torch.arange(length) + 1) ** 2).sum(dim=1)[:, None, None]
    h = (s * (place + 3) + 7919 * (token + 1) ** 2 + 31 * place) % PRIME
    return (h * h % PRIME % 65536).float() / 8192 - 4


def cases():
    """A sample of all combinations, drawn with a seed; what is rare by name behind them."""
    algs = ("origin", "maskgit_plus", "topk_margin", "entropy")
    every = itertools.product(algs, (0, 0.7), (None, 0.9), (None, 5), (None, 0.5), (1, 3), (8, 12), (4, 8, 16))
    sample = random.Random(0).sample(list(every), 64)
    for seed, (alg, temperature, top_p, top_k, alg_temp, batch, tokens, steps) in enumerate(sample):
        drawing = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        told = {"alg": alg, **drawing, "alg_temp": alg_temp, "max_new_tokens": tokens, "steps": steps}
        prompt = torch.randint(0, MASK, (batch, 5), generator=torch.Generator().manual_seed(seed)).tolist()
        yield {"seed": seed, "prompt": prompt, "settings": told}
    blog = {"max_new_tokens": 8, "steps": 16, "temperature": 0, "top_p": 1, "alg_temp": 0.0}
    one, two = [[3, 1, 4, 1, 5]], [[3, MASK, 4, 1, 5, 9], [2, 6, MASK, MASK, MASK, 3]]  # masks within the prompts, unequally many
    for number, (prompt, told) in enumerate((
        (one, {**blog, "alg": "entropy"}),
        (one, {**blog, "alg": "origin"}),
        (one, {"max_new_tokens": 8, "steps": 8}),  # all else by default
        (one, {"max_new_tokens": 8, "steps": 8, "alg": "entropy"}),
        (one, {"steps": 6, "alg": "maskgit_plus", "eps": 0.05}),  # as long as by default
        (one, {"steps": 6, "alg": "topk_margin", "max_length": 11}),
        (one, {"max_new_tokens": 5, "steps": 5, "alg": "entropy", "num_return_sequences": 3}),
        (two, {**blog, "alg": "entropy", "steps": 4}),
        (two, {**blog, "alg": "origin", "steps": 4, "temperature": 0.9}),
    )):  # fmt: skip
        yield {"seed": 100 + number, "prompt": prompt, "settings": told}


def written(tokens):
    return ["".join(LETTERS[token] for token in row) for row in tokens.tolist()]


def main(folder, out):
    package = types.ModuleType("dream")
    package.__path__ = [folder]
    sys.modules["dream"] = package
    loop = importlib.import_module("dream.generation_utils").DreamGenerationMixin
    config = importlib.import_module("dream.configuration_dream").DreamConfig(vocab_size=VOCABULARY, mask_token_id=MASK, pad_token_id=0)

    class Host(loop):
        device = torch.device("cpu")

        def __init__(self):
            self.config, self.passes = config, 0

        def __call__(self, tokens, attention_mask, tok_idx):
            self.passes += 1
            return types.SimpleNamespace(logits=logits_of(tokens))

    made = []
    for case in cases():
        host = Host()
        torch.manual_seed(case["seed"])
        result = host.diffusion_generate(torch.tensor(case["prompt"]), **case["settings"], output_history=True, return_dict_in_generate=True)
        begin = 0 if MASK in itertools.chain(*case["prompt"]) else len(case["prompt"][0])
        history = [" ".join(written(canvas[:, begin:])) for canvas in result.history]
        told = {name: value for name, value in case["settings"].items()}
        made.append({**case, "settings": told, "sequences": written(result.sequences), "history": history, "forwards": host.passes})
    text = ",\n".join(json.dumps(case) for case in made)
    Path(out).write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(__file__).with_name("dream.json"))
