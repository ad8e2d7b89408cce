"""The rounds of `seodang rlhf` and their phases; each phase is done when its last file stands, and is not done again."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, set_seed
from trl import RewardConfig

from seodang.data.errors import UserError
from seodang.data.json_text import read_json_lines
from seodang.data.preference_rows import prepare_preferences
from seodang.data.preferences import RankedPreference
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import MANIFEST, fingerprint
from seodang.recipes.options.rankers import RankerName
from seodang.recipes.options.training import Arguments, ModelOptions
from seodang.recipes.run.identity import refuse_changes
from seodang.train.rewards.ranking import RankingStopped, prompt_as_text, rank_all
from seodang.train.rewards.reward_function import with_all_columns
from seodang.train.rewards.rules import model_reward
from seodang.train.rollouts.rollout import roll_out, sample_n
from seodang.train.run.checkpoints import copy_model, find_resume, save_merged, write_atomically
from seodang.train.run.crash_safe import Provenance
from seodang.train.run.run_page import Sample, draw_curves, write_page
from seodang.train.stages.ppo import ppo_trainer
from seodang.train.stages.ppo_settings import PpoSettings
from seodang.train.stages.reward import reward_trainer

STARTED_WITH = "rlhf.json"  # what the rounds in a folder were asked to do
GOES_ON = "the same command goes on from there"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompts:
    """Rows of prompts: those whose answers are ranked, those of PPO, and those that nothing is trained on."""

    ranked: Rows
    policy: Rows
    heldout: Rows


@dataclass(frozen=True)
class Round:
    """The files of a round, in the order in which they come about; `samples`, `rankings` and `heldout` appear when they are whole."""

    folder: Path

    samples = property(lambda self: self.folder / "samples.jsonl")
    partial_rankings = property(lambda self: self.folder / "rankings.partial.jsonl")  # grows line by line
    rankings = property(lambda self: self.folder / "rankings.jsonl")
    reward = property(lambda self: self.folder / "reward")
    ppo = property(lambda self: self.folder / "ppo")
    merged = property(lambda self: self.folder / "policy")  # with an adapter: the whole model
    heldout = property(lambda self: self.folder / "heldout.json")


def share_out(rows: Rows, heldout: int, policy_prompts: str, seed: int) -> Prompts:
    """Split prompts at random, the same for the same seed. With `policy_prompts` "half", no prompt is both ranked and PPO's.

    Raises UserError for too few prompts.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    held, others = order[:heldout], order[heldout:]
    half = len(others) // 2
    ranked, policy = (others[:half], others[half:]) if policy_prompts == "half" else (others, others)
    if len(ranked) < 2:
        raise UserError(f"{len(rows)} prompts are too few where {heldout} are held out: give more, or lower --heldout_prompts")
    return Prompts(*([rows[i] for i in some] for some in (ranked, policy, held)))


@dataclass
class Rounds:
    """`seodang rlhf` after its options are read; `identity` is what a folder must have been started with to be gone on with."""

    options: Any
    model: ModelOptions
    ranker: RankerName
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    reward_args: RewardConfig
    ppo_args: Arguments
    settings: PpoSettings
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        self.out = Path(self.options.output_dir)
        self.origin = fingerprint(json.dumps(self.identity, sort_keys=True))

    def plan(self) -> list[str]:
        """What will be done, in lines."""
        counts = self.prompts
        return [
            f"prompts         {len(counts.ranked):,} to rank answers to, {len(counts.policy):,} for PPO, {len(counts.heldout):,} held out",
            f"rounds          {self.options.rounds}, each {min(self.options.ranked_prompts, len(counts.ranked)):,} prompts x {self.options.samples} answers, "
            f"ranked by {self.ranker.text}",
            f"PPO             {self.settings.iterations:,} iterations of {self.settings.rollouts:,} answers a round",
        ]

    def print_once(self, *lines: str) -> None:
        """Print lines, once however many processes there are."""
        if self.ppo_args.process_index == 0:
            tqdm.write("\n".join(lines))

    def run(self) -> Path:
        """Do what is not done yet; return the folder of the final policy."""
        self._refuse_other()
        policy, before = self.model.model, self.out / "heldout.json"
        self._answer_heldout(policy, before)
        rounds = [Round(self.out / f"round-{number + 1}") for number in range(self.options.rounds)]
        for number, each in enumerate(rounds):
            self.print_once(f"round {number + 1} of {len(rounds)}")
            with self.ppo_args.main_process_first(desc="sampling and ranking"):
                self._sample(each, number, policy)
                self._rank(each)
            self._train_reward(each, number, rounds[:number])
            policy = self._train_policy(each, number, policy)
            self._answer_heldout(policy, each.heldout)
            if self.ppo_args.process_index == 0:
                self._page(rounds[: number + 1])
        if self.ppo_args.process_index == 0:
            copy_model(Path(policy), self.out)
        return self.out

    def _refuse_other(self) -> None:
        path = self.out / STARTED_WITH
        with self.ppo_args.main_process_first():
            started = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"options": self.identity}
            refuse_changes(str(self.out), started.get("options"), self.identity, self.options.allow_changes)
            if started.get("options") != self.identity or not path.is_file():
                write_atomically(path, json.dumps({"options": self.identity}, indent=1, ensure_ascii=False) + "\n")

    # Phases

    def _sample(self, here: Round, number: int, policy: str) -> None:
        """Several answers of the current policy to this round's prompts; what cannot be compared is left out."""
        if self._done(here.samples):
            return
        count = min(self.options.ranked_prompts, len(self.prompts.ranked))
        rows = [self.prompts.ranked[(number * count + place) % len(self.prompts.ranked)] for place in range(count)]
        model, _ = self._load(policy)
        answers = sample_n(
            model, self.tokenizer, rows, self.options.samples, max_new_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature, seed=("rank", self.options.seed, number),
        )  # fmt: skip
        found = [{"prompt": row["messages"], "responses": some, "columns": row["columns"]} for row, some in zip(rows, answers, strict=True) if len(some) > 1]
        if not found:
            raise UserError("the policy gave the same answer every time: raise --ppo.temperature or --samples, so that there is something to rank")
        self.print_once(f"  sampled       answers to {len(found)} of {count} prompts, {sum(len(each['responses']) for each in found)} in all")
        write_atomically(here.samples, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found))

    def _rank(self, here: Round) -> None:
        if self._done(here.rankings):
            return
        sampled = read_lines(here.samples)
        try:
            with tqdm(total=len(sampled), desc="ranking", unit="prompt", disable=self.ranker.text == "person") as bar:
                ranker = self.ranker.open(str(self.ppo_args.device), self.model.dtype)
                rank_all(ranker, sampled, here.partial_rankings, done=lambda count: bar.update(count - bar.n))
        except RankingStopped as stopped:
            self.print_once(f"  ranked        {len(read_lines(here.partial_rankings))} of {len(sampled)} prompts")
            if not stopped.enough:
                raise
        tied = sum(len(set(each["ranks"])) == 1 for each in read_lines(here.partial_rankings))
        self.print_once(f"  ranked        {len(read_lines(here.partial_rankings))} prompts, {tied} of them tied throughout")
        here.partial_rankings.replace(here.rankings)

    def _train_reward(self, here: Round, number: int, earlier: Sequence[Round]) -> None:
        """A reward model from all rankings so far."""
        if (here.reward / MANIFEST).is_file():
            return
        start = str(earlier[-1].reward) if earlier and self.options.reward_from == "previous" else self.model.model
        rows, held = self._ranked_rows([*earlier, here])
        args = replace(self.reward_args, output_dir=str(here.reward), seed=self.options.seed + number)
        set_seed(args.seed)  # the head starts at random
        model, _ = self._load(start, model_class=AutoModelForSequenceClassification, num_labels=1)
        trainer = reward_trainer(
            model, self.tokenizer, rows, args, eval_rows=held or None, lora=self.model.lora(), provenance=Provenance(start, self.origin, "reward")
        )
        trainer.goes_on = GOES_ON
        trainer.train(resume_from_checkpoint=resume_of(here.reward))
        if held:
            measured = trainer.evaluate()
            self.print_once(f"  reward model  right on {measured['eval_accuracy']:.1%} of held-out pairs ({len(held)} prompts; {len(rows)} trained on)")
        trainer.save_final()

    def _train_policy(self, here: Round, number: int, policy: str) -> str:
        """PPO from the current policy; return where the new one lies."""
        after = here.merged if self.model.lora_r else here.ppo
        if (after / MANIFEST).is_file():
            return str(after)
        if not (here.ppo / MANIFEST).is_file():
            model, _ = self._load(policy)
            judge, its_tokenizer = self._load(str(here.reward), model_class=AutoModelForSequenceClassification, num_labels=1)
            first = None if policy == self.model.model else self._load(self.model.model)[0]  # KL is counted from where all rounds began
            args = replace(self.ppo_args, output_dir=str(here.ppo), seed=self.options.seed + number)
            trainer = ppo_trainer(
                model, self.tokenizer, self.prompts.policy, model_reward(judge, its_tokenizer, self.tokenizer), args, self.settings,
                eval_rows=self.prompts.heldout or None, lora=self.model.lora(), reference=first, provenance=Provenance(policy, self.origin),
            )  # fmt: skip
            trainer.goes_on = GOES_ON
            trainer.train(resume_from_checkpoint=resume_of(here.ppo))
            trainer.save_final()
            if trainer.is_world_process_zero():
                draw_curves(here.ppo)
        if after == here.merged:
            with self.ppo_args.main_process_first():
                if not (after / MANIFEST).is_file():
                    save_merged(*load(here.ppo, device="cpu", dtype=self.model.dtype), after, base=self.model.model, data=self.origin)
        return str(after)

    def _answer_heldout(self, policy: str, path: Path) -> None:
        """One answer to each held-out prompt, always with the same noise, and the ranker's own scores where it is a function."""
        if not self.prompts.heldout:
            return
        with self.ppo_args.main_process_first():
            if path.is_file():
                return
            rollouts = roll_out(
                self._load(policy)[0], self.tokenizer, self.prompts.heldout, max_new_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature, seed=("held out", self.options.seed),
            )  # fmt: skip
            found: dict[str, Any] = {"answers": [rollout.text for rollout in rollouts]}
            if self.ranker.reward is not None:
                rows = with_all_columns(self.prompts.heldout)
                columns = {name: [row["columns"][name] for row in rows] for name in rows[0]["columns"]}
                scores = self.ranker.reward([row["messages"] for row in rows], found["answers"], **columns)
                error = stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
                found |= {"reward": fmean(scores), "standard_error": error, "rewards": scores}
                self.print_once(f"  held out      {self.ranker.text} gives {fmean(scores):.3f} ± {error:.3f} on {len(scores)} prompts")
            write_atomically(path, json.dumps(found, ensure_ascii=False) + "\n")

    # Parts

    def _done(self, path: Path) -> bool:
        """Whether a phase is over; a process that waited for the main one to do it stops where that one did."""
        if not path.is_file() and self.ppo_args.process_index > 0:
            raise RankingStopped
        return path.is_file()

    def _load(self, path: str, **how: Any):
        return load(path, device=str(self.ppo_args.device), dtype=self.model.dtype, **how)

    def _ranked_rows(self, rounds: Sequence[Round]) -> tuple[Rows, Rows]:
        """Rows of all rankings of some rounds, and those of the prompts held out, which no round trains on."""
        examples = []
        for each in rounds:
            for line, record in enumerate(read_lines(each.rankings), 1):
                answers = [{"role": "assistant", "content": text} for text in record["responses"]]
                examples.append(RankedPreference(record["prompt"], answers, record["ranks"], where=f"{each.rankings} line {line}"))
        rows, counts = prepare_preferences(examples, self.tokenizer, max_length=self.reward_args.max_length or 1024)
        self.print_once(*(f"  {line}" for line in counts.lines()))
        held = [row for row in rows if prompt_fraction(row["prompt_ids"], self.options.seed) < self.options.reward_heldout]
        rows = [row for row in rows if prompt_fraction(row["prompt_ids"], self.options.seed) >= self.options.reward_heldout]
        if not rows:
            raise UserError("no ranking prefers one answer to another: there is nothing for a reward model to learn")
        return rows, held

    def _page(self, rounds: Sequence[Round]) -> None:
        runs = {f"round {number}": each.ppo for number, each in enumerate(rounds, 1)}
        figures, samples = [], []
        if self.prompts.heldout:
            found = [json.loads(path.read_text(encoding="utf-8")) for path in (self.out / "heldout.json", *(each.heldout for each in rounds))]
            names = ["before", *(f"after round {number}" for number in range(1, len(found)))]
            if self.ranker.reward is not None:
                figures = [(f"{self.ranker.text} on held-out prompts, {name}", f"{each['reward']:.3f} ± {each['standard_error']:.3f}") for name, each in zip(names, found, strict=True)]  # fmt: skip
            nothing = [None] * len(self.prompts.heldout)
            both = (found[0]["answers"], found[-1]["answers"], found[0].get("rewards", nothing), found[-1].get("rewards", nothing))
            samples = [Sample(prompt_as_text(row["messages"]), *rest) for row, *rest in zip(self.prompts.heldout, *both, strict=True)][:40]
        write_page(self.out / "page.html", runs, samples, title="Learning from feedback, round by round", figures=figures)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file's records; none where there is no file."""
    return read_json_lines(path) if path.is_file() else []


def resume_of(run: Path) -> str | None:
    """The newest complete checkpoint of a run, None where there is none."""
    found = find_resume(run, "auto")
    return None if found is None else str(found)


def prompt_fraction(ids: Sequence[int], seed: int) -> float:
    """A number in [0, 1) that depends on a prompt and the seed alone, so that a prompt held out in one round is held out in all."""
    return random.Random(f"{seed} {list(ids)}").random()
