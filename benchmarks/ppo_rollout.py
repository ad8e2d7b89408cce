"""The rollout phase of a PPO iteration and the whole iteration, through our engine and through transformers' `generate`.

python benchmarks/ppo_rollout.py                       float32; 3 iterations of each, in turn, in one run
python benchmarks/ppo_rollout.py --dtype bfloat16 --iterations 5

One run of our PPO trainer, whose answers are sampled by the engine and by `generate` (one batch, prompts padded on the left, the same lengths and
end tokens) in alternating iterations; everything else is the same. Prompts are real questions, every other one behind some of the dialogue that
it might follow, so lengths are mixed; most answers end early, at most after `--new` tokens. Speeds are in tokens of answers a second, because
the two draw different answers; ratios are medians of neighbours.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings

import torch
from transformers import TrainerCallback, TrainingArguments

from seodang.data import PromptExample, prepare_prompts, read_json_lines, sample_path
from seodang.infer import load
from seodang.train import PpoSettings, Rollout, length
from seodang.train.stages import ppo


def make_rows(tokenizer, count: int) -> list[dict]:
    """Questions of the sample, alone or behind one to four exchanges."""
    draw = random.Random(0)
    triplets = read_json_lines(sample_path("geography"))
    ask = lambda t: {"role": "user", "content": " ".join(filter(None, (t["instruction"], t["input"]))) + " Tell me why."}
    examples = []
    for number in range(count):
        talk = []
        for earlier in draw.sample(triplets, draw.randint(1, 4) if number % 2 else 0):
            talk += [ask(earlier), {"role": "assistant", "content": f"{earlier['output']}, as far as I know."}]
        examples.append(PromptExample([*talk, ask(draw.choice(triplets))]))
    return prepare_prompts(examples, tokenizer, max_prompt_length=512)[0]


def by_generate(model, tokenizer, rows, *, max_new_tokens: int, temperature: float, seed, places=None) -> list[Rollout]:
    """`roll_out` by transformers: one padded batch."""
    longest = max(len(row["prompt_ids"]) for row in rows)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row["prompt_ids"])) + row["prompt_ids"] for row in rows])
    mask = torch.tensor([[0] * (longest - len(row["prompt_ids"])) + [1] * len(row["prompt_ids"]) for row in rows])
    attention, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("sdpa")
    model.eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )[:, longest:]  # fmt: skip
    model.set_attn_implementation(attention)
    model.train(training)
    ends, rollouts = model.generation_config.eos_token_id, []
    ends = {ends} if isinstance(ends, int) else set(ends)
    for row, answer in zip(rows, out.tolist(), strict=True):
        stop = next((i + 1 for i, id in enumerate(answer) if id in ends), len(answer))
        answer = answer[:stop]
        rollouts.append(Rollout(row, answer, [0.0] * stop, tokenizer.decode(answer, skip_special_tokens=True), answer[-1] in ends))
    return rollouts


class Clock(TrainerCallback):
    """Times iterations and, by standing before `roll_out`, their rollouts; even ones go through the engine, odd ones through generate."""

    def __init__(self, updates: int):
        self.updates, self.engine = updates, ppo.roll_out
        self.rollouts: list[tuple[float, int]] = []  # seconds, tokens
        self.iterations: list[float] = []
        self.began = None

    def roll_out(self, *args, **kwargs) -> list[Rollout]:
        began = time.perf_counter()
        found = (by_generate if len(self.rollouts) % 2 else self.engine)(*args, **kwargs)
        self.rollouts.append((time.perf_counter() - began, sum(len(each.answer_ids) for each in found)))
        return found

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.updates == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.updates == 0:
            self.iterations.append(time.perf_counter() - self.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--iterations", type=int, default=3, help="Of each way, after one that is not counted.")
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, tokenizer = load("default", device="cpu", dtype=options.dtype)
    settings = PpoSettings(iterations=2 * options.iterations + 2, rollouts=options.rollouts, epochs=1, minibatches=4, max_new_tokens=options.new)
    clock = Clock(settings.updates)
    ppo.roll_out = clock.roll_out
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=options.rollouts // 4, learning_rate=1e-7, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True
        )
        trainer = ppo.ppo_trainer(model, tokenizer, make_rows(tokenizer, 256), length(20), args, settings, callbacks=[clock])
        trainer.train()
    counted = range(2, len(clock.iterations), 2)  # the first of each is not
    speed = lambda i: clock.rollouts[i][1] / clock.rollouts[i][0]
    rest = lambda i: clock.iterations[i] - clock.rollouts[i][0]
    ratios = [speed(i) / speed(i + 1) for i in counted]
    whole = []
    for i in counted:  # the same answers, had the other way sampled them
        theirs = clock.rollouts[i][1] / speed(i + 1)
        whole.append((theirs + rest(i)) / clock.iterations[i])
    print(
        json.dumps(
            {
                "dtype": options.dtype, "rollout_ratio": round(statistics.median(ratios), 2), "range": [round(min(ratios), 2), round(max(ratios), 2)],
                "ours_tokens_per_s": round(statistics.median(map(speed, counted)), 1),
                "theirs_tokens_per_s": round(statistics.median(speed(i + 1) for i in counted), 1),
                "mean_answer": round(sum(t for _, t in clock.rollouts) / len(clock.rollouts) / options.rollouts, 1),
                "ours_share_of_iteration": round(statistics.median(clock.rollouts[i][0] / clock.iterations[i] for i in counted), 2),
                "theirs_share_of_iteration": round(statistics.median(clock.rollouts[i + 1][0] / clock.iterations[i + 1] for i in counted), 2),
                "iteration_ratio": round(statistics.median(whole), 2),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
