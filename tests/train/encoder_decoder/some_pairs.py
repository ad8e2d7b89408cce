"""Pairs to train on, and the arguments of a short run."""

import random

from transformers import TrainingArguments


def pairs(count: int = 6, seed: int = 0, start: int = 0, given: int = 0) -> list[dict]:
    """Random sources and targets of mixed length; the first `given` tokens of each target are not learned."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        source, target = ([generator.randrange(3, 124) for _ in range(generator.randrange(low, 14))] for low in (2, 3))
        rows.append({"input_ids": source, "decoder_input_ids": [start, *target[:-1]], "labels": [-100] * given + target[given:]})
    return rows


def arguments(folder, **changes) -> TrainingArguments:
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)
