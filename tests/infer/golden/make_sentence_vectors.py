"""What sentence-transformers makes of a few texts with the default encoder, for the tests.

    python make_sentence_vectors.py FOLDER > sentence_vectors.json

Run with sentence-transformers 6.2 (and transformers 5.23); FOLDER is the default encoder's, as `seodang.infer.checkpoint.load.resolve("default-encoder")` tells.
Of each vector the first eight numbers are kept, and of all pairs the cosines.
"""

import json
import sys

import torch
from sentence_transformers import SentenceTransformer

TEXTS = [
    "The three primary colours are red, yellow and blue.", "a cat", "A CAT!", "An unfunny comedy: I left before its end, and so did the dog.", "한국어 문장",
    "long " * 300, "x",
]  # fmt: skip

model = SentenceTransformer(sys.argv[1], device="cpu")
vectors = model.encode(TEXTS, convert_to_tensor=True, batch_size=3)
plain = model.encode(TEXTS[:2], convert_to_tensor=True)
assert torch.allclose(vectors[:2], plain, atol=1e-6)
numbers = {"texts": TEXTS, "beginnings": vectors[:, :8].tolist(), "cosines": (vectors @ vectors.T).tolist()}
rounded = {name: [[round(each, 7) for each in row] if name != "texts" else row for row in rows] for name, rows in numbers.items()}
lines = (f'"{name}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]" for name, rows in rounded.items())
print("{\n" + ",\n".join(lines) + "\n}")
