"""The GRPO update of one prompt with many answers: CPU time, wall time and peak memory, on the shared-prompt tree against trl's GRPOTrainer.

python benchmarks/grpo_update.py                          every case, steps of the two in turn, medians of the ratios
python benchmarks/grpo_update.py --cases even --steps 7
python benchmarks/grpo_update.py --memory                 peak memory, a process each

Both are given the same sampled answers and advantages, in float32 without gradient checkpointing; sampling and rewards are outside of what is timed.
`even`: a prompt of 192 tokens and 8 answers of 64, so 2,048 tokens plainly and 704 in the tree. `ragged`: answers of 16 to 112 tokens. `two`: prompts
of 96 and 288 tokens with 4 answers each. `cpu_ratio` is that of the forward and backward pass, `step_ratio` that of the whole step, clipping and
optimizer included; `gradient_difference` is the norm of the difference over that of trl's.
"""

import statistics
import tempfile
import time

import torch
from beside_trl import run
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from seodang.infer import load
from seodang.train import grpo_trainer

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
EVEN = [(192, [64] * 8)]
CASES = {  # tokens of each prompt and of its answers; adapter
    "even": (EVEN, False),
    "ragged": ([(192, [16, 32, 48, 64, 64, 80, 96, 112])], False),
    "two": ([(96, [64] * 4), (288, [64] * 4)], False),
    "lora-even": (EVEN, True),
}


def make_batch(groups: list[tuple[int, list[int]]]) -> dict[str, torch.Tensor]:
    """A generation batch as trl lays it out: random ids, prompts padded on the left, answers on the right."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(100, 40_000, (n,), generator=generator)
    rows = [(prompt, draw(n)) for prompt, lengths in ((draw(p), lengths) for p, lengths in groups) for n in lengths]
    prompts, answers = zip(*rows, strict=True)
    left = lambda some: torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_side="left")
    right = lambda some: torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
    mask = right([torch.ones_like(answer) for answer in answers])
    return {
        "prompt_ids": left(prompts), "prompt_mask": left([torch.ones_like(p) for p in prompts]),
        "completion_ids": right(answers), "completion_mask": mask,
        "advantages": torch.randn(len(rows), generator=generator), "num_items_in_batch": mask.sum(),
    }  # fmt: skip


class Side:
    """A trainer whose optimizer is ready, and its update on a batch that is given."""

    def __init__(self, groups, lora: bool, folder: str):
        model, tokenizer = load("default", device="cpu", dtype="float32")
        self.batch = make_batch(groups)
        args = GRPOConfig(
            folder, learning_rate=1e-6, per_device_train_batch_size=len(self.batch["advantages"]), num_generations=len(groups[0][1]),
            report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False,
        )  # fmt: skip
        torch.manual_seed(0)
        self.trainer = trainer = self.build(model, tokenizer, args, LoraConfig(**LORA) if lora else None)
        trainer._prepare_inputs = lambda batch: batch  # in place of sampling
        trainer.create_optimizer()
        trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1

    def backward(self) -> float:
        """The forward and backward pass, as the Trainer does it; the loss."""
        return self.trainer.training_step(self.trainer.model, self.batch, None).item()

    def finish(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.trainer.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()

    def gradients(self) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in self.trainer.model.parameters() if p.requires_grad])


def no_reward(prompts, completions, **columns) -> list[float]:
    return [0.0] * len(completions)


class Ours(Side):
    def build(self, model, tokenizer, args, lora):
        rows = [{"prompt_ids": [1], "messages": [], "columns": {}}] * 8
        return grpo_trainer(model, tokenizer, rows, [no_reward], args, lora=lora)


class Trl(Side):
    def build(self, model, tokenizer, args, lora):
        rows = Dataset.from_list([{"prompt": "?"}] * 8)
        return GRPOTrainer(model, no_reward, args, train_dataset=rows, processing_class=tokenizer, peft_config=lora)


def compare(name: str, steps: int) -> dict:
    """Alternate steps of the two in this process; the medians of the ratios trl / ours, and how far apart their first gradients are."""
    with tempfile.TemporaryDirectory() as folder:
        pair = [Ours(*CASES[name], folder), Trl(*CASES[name], folder)]
        adapter = {name: p.data for name, p in pair[0].trainer.model.named_parameters() if "lora_" in name}
        pair[1].trainer.model.load_state_dict(adapter, strict=False)  # both begin with the same
        losses = [side.backward() for side in pair]
        ours, theirs = (side.gradients() for side in pair)
        difference = ((ours - theirs).norm() / theirs.norm()).item()
        del ours, theirs
        for side in pair:
            side.finish()
        ratios = [[], [], []]
        ours_cpu = []
        for _ in range(steps):
            seconds = [timed(side) for side in pair]
            for found, mine, other in zip(ratios, *seconds, strict=True):
                found.append(other / mine)
            ours_cpu.append(seconds[0][0])
        cpu, step, wall = ratios
        return {"case": name, "cpu_ratio": statistics.median(cpu), "cpu_range": [min(cpu), max(cpu)], "step_ratio": statistics.median(step),
                "wall_ratio": statistics.median(wall), "ours_cpu_s": statistics.median(ours_cpu), "losses": losses,
                "gradient_difference": difference}  # fmt: skip


def timed(side: Side) -> tuple[float, float, float]:
    """CPU seconds of the forward and backward pass and of the whole step, and wall seconds of the passes."""
    wall, cpu = time.perf_counter(), time.process_time()
    side.backward()
    passes, wall = time.process_time() - cpu, time.perf_counter() - wall
    side.finish()
    return passes, time.process_time() - cpu, wall


def build(case: str, side: str, folder: str):
    one = {"ours": Ours, "trl": Trl}[side](*CASES[case], folder)
    return lambda: (one.backward(), one.finish())


if __name__ == "__main__":
    run(__doc__, __file__, CASES, compare, build)
