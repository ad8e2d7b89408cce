"""A hook of schemathesis: valid bodies keep what they need and a few of their other fields, as a hundred settings at once contradict each other."""

import json
import random

import schemathesis

NEEDED = {"messages": [{"role": "user", "content": "Hi."}], "prompt": "Hi.", "input": "Hi.", "tokens": [5, 6]}  # in half of the bodies they are these


@schemathesis.hook
def map_body(context, body):
    """Leave most fields out, by chance of the body's own."""
    draw = random.Random(json.dumps(body, sort_keys=True))
    others = sorted(set(body) - {"model", *NEEDED})
    kept = {"model", *NEEDED, *draw.sample(others, min(len(others), draw.choice([1, 1, 2, 3])))}
    plain = NEEDED if draw.random() < 0.5 else {}
    return {name: plain.get(name, value) for name, value in body.items() if name in kept}
