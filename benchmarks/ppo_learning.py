"""Whether PPO learns what it is rewarded for: held-out reward before and after, over seeds, and with rewards that say nothing.

python benchmarks/ppo_learning.py --policy runs/demo-rlhf/sft --reward_model runs/demo-rlhf/reward
python benchmarks/ppo_learning.py --policy runs/demo-rlhf/sft --arms rule shuffled --seeds 0 1 2 --iterations 20

Policy and reward model are those that `seodang demo-rlhf` leaves. Prompts ask for an answer in one of three forms; the rule is 1 where an answer
has the form. Arms: `rule` is rewarded by the rule, `learned` by the reward model, `shuffled` by the rule's rewards handed out in another order. Each run
answers held-out prompts, sampled, before and after; the standard error of its gain is over prompts, that of an arm over its seeds' runs.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import warnings
from pathlib import Path

from transformers import AutoModelForSequenceClassification, TrainingArguments

from seodang.data import PromptExample, form_preferences, form_reward, prepare_prompts, read_json_lines, sample_path
from seodang.infer import load
from seodang.train import PpoSettings, draw_curves, model_reward, ppo_trainer, read_log, roll_out, write_page

NEW_TOKENS = 24


def make_rows(name: str, tokenizer, count: int | None = None) -> list[dict]:
    triplets = read_json_lines(sample_path(name))
    examples = [PromptExample([{"role": "user", "content": pair["prompt"]}], {"form": pair["form"]}) for pair in form_preferences(triplets)[:count]]
    return prepare_prompts(examples, tokenizer, max_prompt_length=512)[0]


def shuffled(seed: int):
    """The rule's rewards, each given to another answer of the batch."""
    draw = random.Random(seed)

    def reward(prompts, completions, **columns) -> list[float]:
        scores = form_reward(prompts, completions, **columns)
        draw.shuffle(scores)
        return scores

    return reward


def scores_of(reward, model, tokenizer, rows: list[dict]) -> list[float]:
    rollouts = roll_out(model, tokenizer, rows, max_new_tokens=NEW_TOKENS, seed=("held out",))
    return reward([r.row["messages"] for r in rollouts], [r.text for r in rollouts], form=[r.row["columns"]["form"] for r in rollouts])


def run(arm: str, seed: int, options, folder: Path) -> dict:
    """One run; its gains on held-out prompts by the rule and, where there is one, by the reward model."""
    how = {"device": "cpu", "dtype": options.dtype}
    model, tokenizer = load(options.policy, **how)
    judges = {"rule": form_reward}
    if options.reward_model:
        judge = load(options.reward_model, **how, model_class=AutoModelForSequenceClassification, num_labels=1)
        judges["learned"] = model_reward(*judge, tokenizer)
    reward = shuffled(seed) if arm == "shuffled" else judges[arm]
    rows, held = make_rows("geography", tokenizer), make_rows("geography_heldout", tokenizer, options.heldout)
    before = {name: scores_of(judged, model, tokenizer, held) for name, judged in judges.items()}
    settings = PpoSettings(
        iterations=options.iterations, rollouts=options.rollouts, epochs=options.epochs, minibatches=2, max_new_tokens=NEW_TOKENS, kl_coefficient=options.kl,
        missing_eos_penalty=0.5 if arm == "learned" else 0.0,
    )  # fmt: skip
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=options.rollouts // 2, learning_rate=options.learning_rate, lr_scheduler_type="constant", seed=seed,
        report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1, weight_decay=0.0,
    )  # fmt: skip
    trainer = ppo_trainer(model, tokenizer, rows, reward, args, settings)
    trainer.train()
    draw_curves(folder)
    log = [entry for entry in read_log(folder / "log.jsonl") if "kl" in entry]
    found = {"arm": arm, "seed": seed, "kl": round(log[-1]["kl"], 3), "largest_kl": round(max(entry["kl"] for entry in log), 3),
             "sampler_gap": max(entry["sampler_gap"] for entry in log)}  # fmt: skip
    for name, judged in judges.items():
        after = scores_of(judged, model, tokenizer, held)
        gains = [b - a for a, b in zip(before[name], after, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains))
        found |= {f"{name}_before": round(statistics.fmean(before[name]), 4), f"{name}_after": round(statistics.fmean(after), 4),
                  f"{name}_gain": round(statistics.fmean(gains), 4), f"{name}_error": round(error, 4)}  # fmt: skip
    return found


def summary(arm: str, runs: list[dict]) -> dict:
    """The mean gain of an arm over its seeds, by what it was rewarded with, and how many standard errors that is."""
    name = "learned" if arm == "learned" else "rule"
    gains = [each[f"{name}_gain"] for each in runs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else runs[0][f"{name}_error"]
    return {"arm": arm, "judged_by": name, "seeds": len(runs), "gain": round(statistics.fmean(gains), 4), "standard_error": round(error, 4),
            "in_standard_errors": round(statistics.fmean(gains) / max(error, 1e-9), 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reward_model")
    parser.add_argument("--arms", nargs="+", default=["rule", "learned", "shuffled"], choices=["rule", "learned", "shuffled"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--heldout", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--kl", type=float, default=0.02)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output_dir", help="Where logs, curves and a page of all runs stay.")
    options = parser.parse_args()
    if "learned" in options.arms and not options.reward_model:
        parser.error("the arm learned needs --reward_model")
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as aside:
        out, folders = Path(options.output_dir or aside), {}
        for arm in options.arms:
            runs = []
            for seed in options.seeds:
                folders[f"{arm} {seed}"] = out / f"{arm}-{seed}"
                runs.append(run(arm, seed, options, folders[f"{arm} {seed}"]))
                print(json.dumps(runs[-1]), flush=True)
            print(json.dumps(summary(arm, runs)), flush=True)
        write_page(out / "page.html", folders, (), title="PPO over seeds")


if __name__ == "__main__":
    main()
