"""Rankings of Open-Assistant's message trees: how many pairs a reward model tells right, beside the length of the answers, by folds over trees.

python benchmarks/oasst_reward.py --data oasst_trees.jsonl --keep runs/oasst                    (lengths, and regressions on frozen models: minutes)
python benchmarks/oasst_reward.py --data oasst_trees.jsonl --keep runs/oasst --judges trained --learning_rate 2e-5 --max_length 512

A tree lies in one fold, whole; each judge learns from the others and scores all answers of the fold, however long. Told are the share of pairs whose better
answer scores higher, the same of pairs of like length (the longer at most 1.25 times the other), where length is near chance, and the difference to the longer
answer's being the better one, with the middle 95% of it when the trees are drawn anew (10,000 times, the same draws for all judges).

Scores are kept by judge and fold, and what is there is not computed again: a run goes on where it was stopped. Judges of other settings are told apart by
--name. A regression is Bradley's and Terry's model, its penalty the best on a fifth of the trees that it learns from.
"""

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, set_seed
from trl import RewardConfig

from seodang.data import PREFERENCE_SHAPES, preference_pairs, prepare_preferences, read, read_json_lines
from seodang.infer import SentenceEncoder, load, load_tokenizer
from seodang.train import reward_trainer
from seodang.train.maths.bootstrap import interval, resampled_sums
from seodang.train.maths.logistic_regression import best_linear
from seodang.train.models.branch_logprobs import choose_branch_collator
from seodang.train.rewards.scoring import score_ids

LIKE = math.log(1.25)  # of two lengths
WHOLE = 2048  # tokens of a prompt and an answer; none has as many
STRENGTHS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
LENGTH_SCALE = 10.0  # the penalty is to be felt by what is beside the length


@dataclass
class Ranked:
    """A prompt with its ranked answers, and the tree that it stands in."""

    tree: int
    row: dict[str, Any]
    texts: list[str]  # the last request, and the answers
    thumbs: list[float]  # of each answer, readers' thumbs up less thumbs down
    place: int  # of its first answer among all answers

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return preference_pairs(self.row["ranks"])

    @property
    def lengths(self) -> list[int]:
        return [len(branch) for branch in self.row["branches"]]


Scores = list[list[float]]  # of each prompt's answers
Judge = Callable[[list[Ranked], list[Ranked]], Scores]  # of those to learn from and those to judge


def read_ranked(path: str, tokenizer: Any) -> list[Ranked]:
    examples = [each for each in read([path], shapes=PREFERENCE_SHAPES) if each.answers]
    rows, counts = prepare_preferences(examples, tokenizer, max_length=WHOLE)
    if len(rows) != len(examples) or counts.answers != sum(len(each.answers) for each in examples):
        sys.exit(f"{path}: some answers make no row")
    trees: dict[str, int] = {}
    thumbs = {text: up_less_down for record in read_json_lines(Path(path)) for text, up_less_down in thumbs_below(record["prompt"])}
    found, place = [], 0
    for example, row in zip(examples, rows, strict=True):
        tree = trees.setdefault(example.prompt[0]["content"], len(trees))
        answers = [each["content"] for each in example.answers]
        found.append(Ranked(tree, row, [example.prompt[-1]["content"], *answers], [thumbs[text] for text in answers], place))
        place += len(example.answers)
    return found


def thumbs_below(message: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The text of a message and of all below it, each with its thumbs."""
    given = message.get("emojis") or {}
    yield message["text"], given.get("+1", 0.0) - given.get("-1", 0.0)
    for reply in message.get("replies") or ():
        yield from thumbs_below(reply)


def folds_of(ranked: Sequence[Ranked], count: int, seed: int) -> list[int]:
    """The fold of each prompt, which is its tree's."""
    trees = sorted({each.tree for each in ranked})
    random.Random(seed).shuffle(trees)
    return [trees.index(each.tree) % count for each in ranked]


# Judges


def by_tokens(learned: list[Ranked], judged: list[Ranked]) -> Scores:
    return [[float(length) for length in each.lengths] for each in judged]


def by_characters(learned: list[Ranked], judged: list[Ranked]) -> Scores:
    return [[float(len(text)) for text in each.texts[1:]] for each in judged]


def log_lengths(ranked: Sequence[Ranked]) -> Tensor:
    return torch.tensor([[math.log(length)] for each in ranked for length in each.lengths])


def length_features(each: Ranked) -> list[list[float]]:
    """Of each answer: tokens and their logarithm, characters a token, lines, listed points and paragraphs (their logarithms)."""
    return [
        [length / 100, math.log(length), len(text) / length, *(math.log1p(count) for count in (text.count("\n"), text.count("\n- ") + text.count(". "), text.count("\n\n")))]
        for text, length in zip(each.texts[1:], each.lengths, strict=True)
    ]


def by_lengths(learned: list[Ranked], judged: list[Ranked]) -> Scores:
    return regression(lambda each: torch.tensor(length_features(each)), 0)(learned, judged)


def regression(features: Callable[[Ranked], Tensor], unscaled: int = 1) -> Judge:
    """Bradley and Terry's model on features [answers, columns] of a prompt, of which the first `unscaled` are penalised little."""

    def judge(learned: list[Ranked], judged: list[Ranked]) -> Scores:
        inputs = torch.cat([features(each) for each in learned])
        mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
        deviation[:unscaled] /= LENGTH_SCALE
        leads = []
        for each in sorted(learned, key=lambda each: each.tree):  # the strength is chosen on the last fifth, which is of other trees but for one
            scaled = (features(each) - mean) / deviation
            leads += [sign * (scaled[better] - scaled[worse]) for better, worse in each.pairs for sign in (1, -1)]
        labels = torch.tensor([1, 0] * (len(leads) // 2))
        weights, _ = best_linear(torch.stack(leads), labels, 2, strengths=STRENGTHS)
        direction = (weights[:-1, 1] - weights[:-1, 0]).float()  # both ways of each pair leave no bias
        return [(((features(each) - mean) / deviation) @ direction).tolist() for each in judged]

    return judge


@dataclass
class Trained:
    """`seodang reward` on those to learn from; where `beside` is above 0, that times the log of the tokens is added to every score, in training too."""

    options: argparse.Namespace
    beside: float = 0.0

    def __call__(self, learned: list[Ranked], judged: list[Ranked]) -> Scores:
        options = self.options
        rows = [row for row in (self._fitting(each.row) for each in learned) if row is not None]
        set_seed(options.seed)
        model, tokenizer = load(options.model, device="cpu", dtype=options.dtype, model_class=AutoModelForSequenceClassification, num_labels=1)
        with tempfile.TemporaryDirectory() as aside:
            args = RewardConfig(
                aside, per_device_train_batch_size=options.batch, learning_rate=options.learning_rate, num_train_epochs=options.epochs, seed=options.seed,
                max_length=WHOLE, use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=10, gradient_checkpointing=False,
            )  # fmt: skip
            trainer = reward_trainer(model, tokenizer, rows, args)
            if self.beside:
                self._add_length(trainer)
            trainer.train()
        pairs = [(each.row["prompt_ids"], branch) for each in judged for branch in each.row["branches"]]
        found = score_ids(model, pairs) + self.beside * torch.tensor([math.log(len(branch)) for _, branch in pairs])
        return [part.tolist() for part in found.split([len(each.lengths) for each in judged])]

    def _fitting(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The row as `--max_length` leaves it: context cut on the left, answers beyond it left out; None without two ranks."""
        most = self.options.max_length
        kept = [place for place, branch in enumerate(row["branches"]) if len(branch) < most - 32]
        if len({row["ranks"][place] for place in kept}) < 2:
            return None
        branches = [row["branches"][place] for place in kept]
        return {"prompt_ids": row["prompt_ids"][-(most - max(map(len, branches))) :], "branches": branches, "ranks": [row["ranks"][place] for place in kept]}

    def _add_length(self, trainer: Any) -> None:
        collate, scores = trainer.data_collator, trainer.scores

        def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
            return {**collate(rows), "offsets": torch.tensor([self.beside * math.log(len(branch)) for row in rows for branch in row["branches"]])}

        trainer.data_collator = collated
        trainer.scores = lambda model, batch: scores(model, batch) + batch["offsets"]


# Frozen models


def read_states(options: argparse.Namespace, ranked: Sequence[Ranked]) -> tuple[Tensor, Tensor]:
    """Of every answer behind its prompt, by the first layers of a frozen language model, normed: the mean of its tokens' states and the state at its end,
    [answers, width] each."""
    path = options.keep and options.keep / f"states-{options.layers}.pt"
    found: list[tuple[Tensor, Tensor]] = torch.load(path) if path and path.is_file() else []
    if len(found) < len(ranked):
        model, _ = load(options.model, device="cpu", dtype=options.dtype)
        trunk = model.model
        trunk.layers = trunk.layers[: options.layers]
        collate = choose_branch_collator(model, 0, keep_last=True)
    for number, each in enumerate(ranked[len(found) :], len(found) + 1):
        batch = collate([each.row])
        with torch.inference_mode():
            states = trunk(**{name: batch[name] for name in ("input_ids", "position_ids", "tree")}, use_cache=False).last_hidden_state[0].float()
        parts = states[len(each.row["prompt_ids"]) :].split(each.lengths)
        found.append((torch.stack([part.mean(0) for part in parts]), states[batch["ends"]]))
        if path and (number % 10 == 0 or number == len(ranked)):
            torch.save(found, path)
            print(f"states: {number} of {len(ranked)} prompts", file=sys.stderr, flush=True)
    means, ends = zip(*found, strict=True)
    return torch.cat(means), torch.cat(ends)


# Figures


def judged_by_folds(name: str, judge: Judge, ranked: list[Ranked], folds: list[int], wanted: Sequence[int], keep: Path | None) -> Scores:
    """The scores of all answers of the wanted folds, each by what was learned from all other folds; kept fold by fold in a folder."""
    path = keep and keep / f"{name}.json"
    kept: dict[str, Scores] = json.loads(path.read_text()) if path and path.is_file() else {}
    for fold in wanted:
        if str(fold) in kept:
            continue
        learned = [each for each, its_own in zip(ranked, folds, strict=True) if its_own != fold]
        kept[str(fold)] = judge(learned, [each for each, its_own in zip(ranked, folds, strict=True) if its_own == fold])
        if path:
            path.write_text(json.dumps(kept))
            print(f"{name}: fold {fold}", file=sys.stderr, flush=True)
    parts = {fold: iter(scores) for fold, scores in kept.items()}
    return [next(parts[str(fold)]) for fold in folds if fold in wanted]


def right(ranked: Sequence[Ranked], scores: Scores, only_like: bool = False) -> np.ndarray:
    """How many pairs of each prompt are told right, [prompts], a tie for half; with `only_like` of pairs of like length."""
    sums = []
    for each, values in zip(ranked, scores, strict=True):
        pairs = each.pairs
        if only_like:
            pairs = [(a, b) for a, b in pairs if abs(math.log(each.lengths[a] / each.lengths[b])) <= LIKE]
        sums.append(sum((values[a] > values[b]) + 0.5 * (values[a] == values[b]) for a, b in pairs))
    return np.array(sums, dtype=np.float64)


def table(ranked: list[Ranked], scores: dict[str, Scores], resamples: int, seed: int) -> list[dict[str, Any]]:
    """A line a judge; differences are to the first one."""
    trees = np.array([each.tree for each in ranked])
    counted = {False: np.array([len(each.pairs) for each in ranked], dtype=np.float64)}
    counted[True] = right(ranked, [[0.0] * len(each.lengths) for each in ranked], only_like=True) * 2  # ties, a half each
    columns = [counted[like] for like in counted] + [right(ranked, each, like) for each in scores.values() for like in counted]
    by_tree = np.stack([np.bincount(trees, column) for column in columns], axis=1)
    sums = np.concatenate([by_tree.sum(0)[None], resampled_sums(by_tree, resamples, seed)])  # the trees as they are come first
    lines = []
    for place, name in enumerate(scores):
        told: dict[str, Any] = {"judge": name}
        for like, label in ((0, "all"), (1, "like")):
            share = sums[:, 2 + 2 * place + like] / sums[:, like]
            lead = share - sums[:, 2 + like] / sums[:, like]
            told[label] = round(float(share[0]), 3)
            told[f"{label}_interval"] = [round(bound, 3) for bound in interval(share[1:])]
            if place:
                told[f"{label}_lead"] = round(float(lead[0]), 3)
                told[f"{label}_lead_interval"] = [round(bound, 3) for bound in interval(lead[1:])]
        lines.append(told)
    return lines


def judges(options: argparse.Namespace, ranked: list[Ranked]) -> dict[str, Judge]:
    """All judges by name; what the frozen ones are judged by is computed where they are asked."""

    def with_length(features: Callable[[], Tensor]) -> Judge:
        """A regression on the log of the tokens and features of all answers, [answers, columns]."""

        def judge(learned: list[Ranked], judged: list[Ranked]) -> Scores:
            inputs = torch.cat([log_lengths(ranked), features()], dim=1)
            return regression(lambda each: inputs[each.place : each.place + len(each.lengths)])(learned, judged)

        return judge

    @cache
    def states() -> tuple[Tensor, Tensor]:
        return read_states(options, ranked)

    @cache
    def vectors() -> Tensor:
        """Of every answer the default encoder's vector, and how near it is to that of the request, [answers, width + 1]."""
        encoder = SentenceEncoder.open("default-encoder", device="cpu", dtype="float32")
        requests, answers = encoder.embed([each.texts[0] for each in ranked]), encoder.embed([text for each in ranked for text in each.texts[1:]])
        near = (answers * requests.repeat_interleave(torch.tensor([len(each.lengths) for each in ranked]), 0)).sum(1)
        return torch.cat([answers, near[:, None]], dim=1)

    return {
        "tokens": by_tokens,
        "characters": by_characters,
        "lengths": by_lengths,
        "thumbs": with_length(lambda: torch.tensor([[value] for each in ranked for value in each.thumbs])),
        "encoder": with_length(vectors),
        "means": with_length(lambda: states()[0]),
        "ends": with_length(lambda: states()[1]),
        "trained": Trained(options),
        "trained-beside-length": Trained(options, options.beside),
    }


JUDGES = ("tokens", "characters", "lengths", "thumbs", "encoder", "means", "ends", "trained", "trained-beside-length")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Open-Assistant's trees, one a line")
    parser.add_argument("--judges", nargs="+", default=JUDGES[:7], choices=JUDGES)
    parser.add_argument("--keep", type=Path, help="folder of scores by judge and fold")
    parser.add_argument("--name", default="", help="behind the names of judges, there and in the table")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="the folds to judge, where not all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=30, help="of the frozen language model, the first, for means and ends")
    parser.add_argument("--beside", type=float, default=1.0, help="trained-beside-length: what the log of the tokens counts")
    parser.add_argument("--max_length", type=int, default=512, help="trained: longer answers are not learned from")
    parser.add_argument("--batch", type=int, default=4, help="prompts a step")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    ranked = read_ranked(options.data, load_tokenizer(options.model))
    folds = folds_of(ranked, options.folds, options.seed)
    wanted = options.only or range(options.folds)
    print(f"{len({each.tree for each in ranked})} trees, {len(ranked)} prompts, {sum(len(each.pairs) for each in ranked)} pairs", file=sys.stderr)
    known, scores = judges(options, ranked), {}
    for name in dict.fromkeys(["tokens", *options.judges]):
        called = name if name == "tokens" else name + options.name
        scores[called] = judged_by_folds(called, known[name], ranked, folds, wanted, options.keep)
    here = [place for place, fold in enumerate(folds) if fold in wanted]
    told = table([ranked[place] for place in here], scores, options.resamples, options.seed)
    for line in told:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
