"""What a Diffusion-LM says, freely and controlled: how often a control succeeds, and how fluent the texts are.

python benchmarks/sentences.py everyday sentences.jsonl
seodang diffusion-lm --data sentences.jsonl --eval_fraction 0.05 --output_dir runs/lm ...
seodang diffusion-lm-control --data sentences.jsonl --eval_fraction 0.05 --model runs/lm --output_dir runs/control ...
python benchmarks/diffusion_lm.py --model runs/lm --classifier runs/control --data sentences.jsonl

Fluency is the log-likelihood a token, the end counted, under a GPT-2 of the same size that is trained here on the same texts (those not held out).
Labels are judged by naive Bayes on the words, which sees no latents. Best of k takes the first of k free texts that has what is wanted
(for labels: that the classifier finds), else the first.
"""

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from seodang.data.files.sources import read
from seodang.infer.diffusion_lm.checkpoint import load_classifier, load_diffusion_lm
from seodang.infer.diffusion_lm.guidance import Guidance, label_control, word_control
from seodang.infer.diffusion_lm.sampling import Sampling, sample
from seodang.infer.diffusion_lm.words import before_end, filled, ids_of, text_of
from seodang.recipes.options.training import hold_out
from seodang.recipes.run.of_diffusion_lm import FORMS

BATCH = 64
Ids = list[int]


class Judge:
    """The language model that judges fluency, and naive Bayes that judges labels, both taught the training texts."""

    def __init__(self, texts: Sequence[Ids], labels: Sequence[str], model, tokenizer, seconds: float):
        torch.manual_seed(0)
        config, self.end = model.config, tokenizer.eos_token_id
        self.lm = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_positions=config.max_position_embeddings + 2, n_embd=config.hidden_size, n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads, bos_token_id=self.end, eos_token_id=self.end,
        ))  # fmt: skip
        self.steps = self.teach(texts, seconds)
        self.counts = {label: Counter(id for text, its in zip(texts, labels, strict=True) if its == label for id in text) for label in sorted(set(labels))}
        self.shares, self.words = Counter(labels), len(tokenizer)

    def batch(self, texts: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts with an end before and behind, [rows, longest], and what is predicted of them."""
        rows = [[self.end, *text, self.end] for text in texts]
        longest = max(map(len, rows))
        fill = lambda value: torch.tensor([row + [value] * (longest - len(row)) for row in rows])
        return fill(self.end), fill(-100)

    def teach(self, texts: Sequence[Ids], seconds: float) -> int:
        """Train for so many seconds of the processor; return the steps."""
        optimizer, draw, began, steps = torch.optim.AdamW(self.lm.parameters(), lr=1e-3), random.Random(0), time.process_time(), 0
        while (spent := time.process_time() - began) < seconds:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (steps + 1) / 50) * max(0.02, 1 - spent / seconds)
            ids, labels = self.batch(draw.sample(texts, 32))
            self.lm(ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
        self.lm.eval()
        return steps

    @torch.no_grad()
    def fluency(self, texts: Sequence[Ids]) -> float:
        """Mean log-likelihood a token, nats, of all texts' tokens together."""
        total, count = 0.0, 0
        for start in range(0, len(texts), BATCH):
            ids, labels = self.batch(texts[start : start + BATCH])
            kept = labels[:, 1:] != -100
            logprobs = self.lm(ids).logits[:, :-1].log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
            total, count = total + float(logprobs[kept].sum()), count + int(kept.sum())
        return total / count

    def label(self, text: Ids) -> str:
        """The likeliest label by naive Bayes, one added to each count."""
        def score(label: str) -> float:
            counts = self.counts[label]
            among = math.log(counts.total() + self.words)
            return math.log(self.shares[label]) + sum(math.log(counts[id] + 1) - among for id in text)

        return max(self.counts, key=score)


class Bench:
    """The model with its settings, and the pool of free texts that the others stand beside."""

    def __init__(self, options, model, tokenizer, judge: Judge):
        self.options, self.model, self.tokenizer, self.judge = options, model, tokenizer, judge
        self.length = model.config.max_position_embeddings
        self.settings = Sampling(options.steps, 1.0, options.clamp_from, Guidance(options.updates, options.rate, options.fluency))
        self.free = self.texts([[None] * self.length] * (options.samples * options.best_of))

    def texts(self, canvases, control=None, settings: Sampling | None = None) -> list[Ids]:
        """The texts that canvases become, a batch at a time."""
        found = []
        for start in range(0, len(canvases), BATCH):
            some = canvases[start : start + BATCH]
            seeds = range(start, start + len(some))
            found += sample(self.model, some, settings or self.settings, seeds=seeds, control=control)
        return [before_end(ids, self.tokenizer) for ids in found]

    def line(self, name: str, texts: Sequence[Ids], right: Callable[[Ids], bool] | None = None, seconds: float | None = None) -> None:
        """Print a line of the table: success, fluency, how many texts differ, processor seconds."""
        success = "" if right is None else f"{sum(map(right, texts)) / len(texts):.0%}"
        cost = "" if seconds is None else f"{seconds:.1f}"
        print(f"| {name} | {success} | {self.judge.fluency(texts):.2f} | {len(set(map(tuple, texts))) / len(texts):.0%} | {cost} |", flush=True)

    def timed(self, *args, **more) -> tuple[list[Ids], float]:
        """Texts, and the processor seconds that they took."""
        began = time.process_time()
        return self.texts(*args, **more), time.process_time() - began

    def best(self, right: Callable[[Ids], bool]) -> list[Ids]:
        """The first of each k free texts that is right, else the first."""
        k = self.options.best_of
        groups = (self.free[start : start + k] for start in range(0, len(self.free), k))
        return [next((text for text in group if right(text)), group[0]) for group in groups]

    def control(self, name: str, right: Callable[[Ids], bool], ways: dict[str, tuple], chosen: Callable[[Ids], bool] | None = None) -> None:
        """One control's lines: free texts, best of k of these, and each way to ask for it."""
        count = self.options.samples
        self.line(f"{name}: free", self.free[:count], right)
        self.line(f"{name}: best of {self.options.best_of}", self.best(chosen or right), right)
        for way, (canvas, control) in ways.items():
            texts, seconds = self.timed([canvas] * count, control)
            self.line(f"{name}: {way}", texts, right, seconds)
            print(f"  e.g. {text_of(texts[0], self.tokenizer)!r}, {text_of(texts[1], self.tokenizer)!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "classifier", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--best_of", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--clamp_from", type=int, default=0)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--fluency", type=float, default=0.01)
    parser.add_argument("--lengths", type=int, nargs="*", default=[6, 9])
    parser.add_argument("--words", nargs="*", default=["1:Lucy", "4:garden"], help="PLACE:WORD")
    parser.add_argument("--judge_seconds", type=float, default=60)
    parser.add_argument("--heldout", type=float, default=0.05, help="the share that training held out, with its seed")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    model, tokenizer = load_diffusion_lm(options.model, "cpu")
    classifier, length = load_classifier(options.classifier, "cpu"), model.config.max_position_embeddings
    examples = [each for each in read(options.data, shape="labelled", shapes=FORMS) if len(ids_of(each.text, tokenizer)) < length]
    trained, held = ([(ids_of(each.text, tokenizer), each.label) for each in some] for some in hold_out(examples, options.heldout, options.seed))
    judge = Judge([ids for ids, _ in trained], [label for _, label in trained], model, tokenizer, options.judge_seconds)
    right = sum(judge.label(ids) == label for ids, label in held) / len(held)
    print(f"judges: GPT-2, {judge.steps} steps of 32 texts; naive Bayes, right on {right:.1%} of {len(held)} held-out texts")
    print("| texts | success | log-likelihood a token | different | processor seconds |\n| --- | --- | --- | --- | --- |")
    bench = Bench(options, model, tokenizer, judge)
    bench.line("held out", [ids for ids, _ in held])
    seen = {tuple(ids) for ids, _ in trained}
    bench.line("free", bench.free)
    print(f"  {sum(tuple(text) in seen for text in bench.free) / len(bench.free):.0%} of the free texts stand in the training data")
    top, free = model.config.diffusion_steps, [[None] * length] * options.samples
    for steps, eta, clamp in ((20, 1.0, 0), (20, 0.0, 0), (options.steps, 0.0, 0), (options.steps, 1.0, top // 2), (options.steps, 1.0, top), (2 * options.steps, 1.0, 0)):
        texts, seconds = bench.timed(free, settings=Sampling(steps, eta, clamp))
        bench.line(f"free, {steps} steps, eta {eta:g}, clamped from {clamp}", texts, None, seconds)
    for words in options.lengths:
        canvas = filled([None] * words, length, tokenizer)
        bench.control(f"{words} words", lambda text, words=words: len(text) == words, {"end given": (canvas, None)})
    for each in options.words:
        place, word = each.split(":")
        at, id = int(place) - 1, ids_of(word, tokenizer)[0]
        there = [id if position == at else None for position in range(length)]
        ways = {"given": (there, None), "guided": ([None] * length, word_control(model, [(at, id)]))}
        bench.control(f"{word!r} at {place}", lambda text, at=at, id=id: text[at : at + 1] == [id], ways)
    for label in classifier.config.label2id:
        control = label_control(classifier, label, model)

        @torch.no_grad()
        def found(text: Ids, label: str = label) -> bool:
            latents = model.word_embeddings(torch.tensor([filled(text[: length - 1], length, tokenizer)]))
            return classifier.config.id2label[int(classifier(latents, torch.tensor([1])).logits.argmax())] == label

        bench.control(label, lambda text, label=label: judge.label(text) == label, {"guided": ([None] * length, control)}, found)


if __name__ == "__main__":
    main()
