"""The rollout phases of PPO and GRPO alone, as our trainers have them, against transformers' `generate`.

python benchmarks/rollouts.py                          float32; PPO: 32 prompts; GRPO: 8 prompts with 8 answers each; 4 times each way, in turn
python benchmarks/rollouts.py --dtype bfloat16 --of grpo --rounds 2

The model takes a step of AdamW before every turn, as in training, so that whatever has to be laid out anew is. Ours is what the trainers call: PPO's prompts
come in one batch, GRPO's are read once for all their answers. `generate` has a row for each answer, prompts padded on the left, as trl has it. Prompts are those of
`ppo_rollout.py`; answers end early or at `--new` tokens. Speeds are in tokens of answers a second, for the two draw different ones; ratios are medians of neighbours.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from ppo_rollout import by_generate, make_rows
from transformers import PreTrainedModel
from trl import GRPOConfig

from seodang.infer import load
from seodang.train import grpo_trainer, length, roll_out

SIZES = {"ppo": (32, 1), "grpo": (8, 8)}  # prompts, and answers to each


def our_ppo(model, tokenizer, rows: list[dict], answers: int, new: int) -> Callable[[], int]:
    return lambda: sum(len(each.answer_ids) for each in roll_out(model, tokenizer, rows, max_new_tokens=new))


def our_grpo(model, tokenizer, rows: list[dict], answers: int, new: int) -> Callable[[], int]:
    folder = tempfile.TemporaryDirectory()
    args = GRPOConfig(
        folder.name, per_device_train_batch_size=len(rows) * answers, num_generations=answers, max_completion_length=new, temperature=1.0, top_k=0,
        report_to="none", use_cpu=True, bf16=False, save_strategy="no",
    )  # fmt: skip
    trainer = grpo_trainer(model, tokenizer, rows, [length(20)], args)
    prompts = [row["prompt_ids"] for row in rows for _ in range(answers)]
    return lambda: sum(map(len, trainer._answers(prompts)))


def measured(model: PreTrainedModel, tokenizer, of: str, rounds: int, new: int) -> dict:
    count, answers = SIZES[of]
    rows = make_rows(tokenizer, count)
    repeated = [row for row in rows for _ in range(answers)]
    ways = [
        {"ppo": our_ppo, "grpo": our_grpo}[of](model, tokenizer, rows, answers, new),
        lambda: sum(len(each.answer_ids) for each in by_generate(model, tokenizer, repeated, max_new_tokens=new, temperature=1.0, seed=None)),
    ]
    optimizer, ids = torch.optim.AdamW(model.parameters(), lr=1e-7), torch.tensor([rows[0]["prompt_ids"]])

    def speed(way: Callable[[], int]) -> float:
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        began = time.perf_counter()
        return way() / (time.perf_counter() - began)

    speed(ways[0])
    pairs = [[speed(way) for way in ways] for _ in range(rounds)]
    ratios = [mine / theirs for mine, theirs in pairs]
    found = {"of": of, "dtype": str(model.dtype), "prompts": count, "prompt_tokens": sum(len(row["prompt_ids"]) for row in rows), "answers": answers, "rounds": rounds}
    found |= {"ratio": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)]}
    return found | {f"{name}_tokens_per_s": round(statistics.median(each), 1) for name, each in zip(("our", "generate"), zip(*pairs))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for of in options.of:
        model, tokenizer = load("default", device="cpu", dtype=options.dtype)
        print(json.dumps(measured(model, tokenizer, of, options.rounds, options.new)), flush=True)


if __name__ == "__main__":
    main()
