"""What a run is known by: each option that decides what is learned, and none of the others."""

import dataclasses
import json

import pytest

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import write_manifest
from seodang.recipes.diffusion import DiffusionArguments, DiffusionOptions
from seodang.recipes.dpo import DpoArguments, DpoOptions
from seodang.recipes.grpo import GrpoArguments
from seodang.recipes.kto import KtoArguments
from seodang.recipes.options.parser import parse
from seodang.recipes.options.preference import PreferenceOptions
from seodang.recipes.options.prompts import PromptOptions, ScoringOptions
from seodang.recipes.options.seq2seq import EvaluationOptions
from seodang.recipes.options.text import TextOptions
from seodang.recipes.options.tokenizing import TokenizerOptions
from seodang.recipes.options.training import Arguments, DataOptions, ModelOptions, RunOptions
from seodang.recipes.ppo import PolicyOptions, PpoArguments
from seodang.recipes.pretrain import ArchitectureOptions, SampleOptions
from seodang.recipes.reward import RewardArguments, RewardOptions
from seodang.recipes.rloo import RlooArguments
from seodang.recipes.run.identity import FREE, FREE_NAMES, LENGTH, SHAPES, content_of, origin_of, refuse_other_run
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.maths.preference_losses import PreferenceSettings
from seodang.train.run.crash_safe import Provenance
from seodang.train.stages.ppo_settings import PpoSettings

MODEL = ModelOptions, RunOptions
STAGES = {
    "sft": (DataOptions, *MODEL, Arguments),
    "diffusion": (DataOptions, DenoisingObjective, DiffusionOptions, *MODEL, DiffusionArguments),
    "dpo": (DpoOptions, PreferenceSettings, *MODEL, DpoArguments),
    "kto": (PreferenceOptions, *MODEL, KtoArguments),
    "reward": (RewardOptions, *MODEL, RewardArguments),
    "grpo": (PromptOptions, ScoringOptions, *MODEL, GrpoArguments),
    "rloo": (PromptOptions, ScoringOptions, *MODEL, RlooArguments),
    "ppo": (PromptOptions, ScoringOptions, PolicyOptions, PpoSettings, *MODEL, PpoArguments),
}
ROWS = [{"prompt_ids": [1, 2], "where": "data.jsonl line 1"}]


def origin(stage, *words, rows=ROWS):
    plain = ["--data", "data.jsonl", "--device", "cpu", "--dtype", "float32", "--use_cpu", "true", "--report_to", "none"]
    return origin_of(*parse([*plain, *words], *STAGES[stage], prog=stage), rows=rows)


@pytest.fixture
def trained(tmp_path):
    """`trained(stage, *words)`: a checkpoint of a run with these options."""

    def checkpoint(stage, *words, **how):
        write_manifest(tmp_path, options=origin(stage, *words, **how).options)
        return tmp_path

    return checkpoint


COMMON = [
    ("--learning_rate", "0.001", "0.002"), ("--seed", "1", "2"), ("--weight_decay", "0.0", "0.1"), ("--warmup_steps", "0.0", "5.0"),
    ("--lr_scheduler_type", "linear", "cosine"), ("--per_device_train_batch_size", "8", "16"), ("--eval_fraction", "0.1", "0.2"),
    ("--chat_template", "chatml", "llama3"), ("--lora_alpha", "8.0", "16.0"), ("--max_grad_norm", "1.0", "0.5"), ("--model", "base", "other"),
    ("--max_steps", "2", "3"),
]  # fmt: skip
CHANGES = [
    ("sft", "--max_length", "64", "128"), ("sft", "--num_train_epochs", "2.0", "3.0"), ("sft", "--train_on", "all", "last"),
    ("sft", "--columns", '["output=a"]', '["output=b"]'), ("dpo", "--encoding", "cp949", "utf-16"), ("ppo", "--columns", '["answer=a"]', '["answer=b"]'),
    ("dpo", "--beta", "0.1", "0.2"), ("dpo", "--loss", "ipo", "simpo"), ("dpo", "--reference", "here", "there"),
    ("kto", "--beta", "0.1", "0.2"), ("kto", "--loss_type", "kto", "apo_zero_unpaired"), ("kto", "--desirable_weight", "1.0", "1.5"),
    ("reward", "--center_rewards_coefficient", "0.01", "0.1"), ("reward", "--pair_weights", "prompt", "pair"),
    ("grpo", "--beta", "0.0", "0.1"), ("grpo", "--temperature", "1.0", "0.7"), ("grpo", "--num_iterations", "1", "2"), ("grpo", "--reward_weights", "[1.0]", "[2.0]"),
    ("rloo", "--beta", "0.0", "0.1"), ("rloo", "--reward", '["length:4"]', '["length:5"]'), ("rloo", "--normalize_advantages", "false", "true"),
    ("ppo", "--kl_coefficient", "0.05", "0.1"), ("ppo", "--iterations", "2", "3"), ("ppo", "--reward_weights", "[1.0]", "[2.0]"),
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_known_by_these(trained, stage):
    then, now = (origin(stage, *(word for change in COMMON for word in (change[0], change[which]))) for which in (1, 2))
    checkpoint = trained(stage)
    write_manifest(checkpoint, options=then.options)
    with pytest.raises(UserError) as refused:
        refuse_other_run(checkpoint, now, None)
    for option, before, after in COMMON:
        assert f"{option} {before}, now {after}" in str(refused.value)
    refuse_other_run(checkpoint, now, str(refused.value).partition("--allow_changes ")[2].split())


@pytest.mark.parametrize(("stage", "option", "then", "now"), CHANGES)
def test_a_changed_option_is_refused_by_name_with_both_values_and_allowed_by_name(trained, stage, option, then, now):
    given = lambda value: [option, str(json.loads(value)[0]) if value.startswith("[") else value]
    checkpoint = trained(stage, *given(then))
    refuse_other_run(checkpoint, origin(stage, *given(then)), None)
    with pytest.raises(UserError) as refused:
        refuse_other_run(checkpoint, origin(stage, *given(now)), ["seed"])
    assert f"{option} {then}, now {now}: " in str(refused.value) and str(refused.value).endswith(f"--allow_changes seed {option[2:]}")
    refuse_other_run(checkpoint, origin(stage, *given(now)), [option[2:]])
    refuse_other_run(checkpoint, origin(stage, *given(now)), ["all"])


@pytest.mark.parametrize("stage", STAGES)
def test_what_teaches_nothing_else_may_change(trained, stage):
    free = ["--output_dir", "elsewhere", "--save_steps", "7", "--save_total_limit", "9", "--logging_steps", "3", "--eval_strategy", "steps", "--eval_steps", "5",
            "--per_device_eval_batch_size", "16", "--eval_samples", "2", "--activation_checkpointing", "true", "--disable_tqdm", "true"]  # fmt: skip
    refuse_other_run(trained(stage), origin(stage, *free), None)


@pytest.mark.parametrize("name", ["architecture", "hidden_size", "layers", "vocab_size"])
def test_a_model_from_nothing_of_another_shape_is_refused_whoever_allows_it(tmp_path, name):
    write_manifest(tmp_path, options={name: 1})
    with pytest.raises(UserError, match=f"was trained with --{name} 1, now 2: its weights do not fit, and --allow_changes cannot make them; .* --model {tmp_path}"):
        refuse_other_run(tmp_path, Provenance("", "", "causal", {name: 2}), ["all"])


def test_every_name_on_the_lists_is_an_options(monkeypatch):
    known = {field.name for classes in (*STAGES.values(), (TextOptions, SampleOptions, ArchitectureOptions, TokenizerOptions, EvaluationOptions)) for each in classes for field in dataclasses.fields(each)}
    assert FREE_NAMES | LENGTH | SHAPES <= known
    listed = [name for names in FREE.values() for name in names.split()]
    assert len(listed) == len(set(listed)) and not FREE_NAMES & (LENGTH | SHAPES)


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup", "linear"])
def test_a_run_may_become_longer_where_no_rate_looks_at_its_end(trained, schedule):
    words = ["--lr_scheduler_type", schedule, "--warmup_steps", "3"]
    checkpoint, longer = trained("ppo", *words, "--iterations", "2"), origin("ppo", *words, "--iterations", "4")
    if schedule == "linear":
        with pytest.raises(UserError, match="--iterations 2, now 4"):
            refuse_other_run(checkpoint, longer, None)
    else:
        refuse_other_run(checkpoint, longer, None)
        share = ["--lr_scheduler_type", schedule, "--warmup_steps", "0.1"]  # of all steps
        with pytest.raises(UserError, match="--iterations 2, now 4"):
            refuse_other_run(trained("ppo", *share, "--iterations", "2"), origin("ppo", *share, "--iterations", "4"), None)


def test_other_records_are_refused_and_the_same_ones_elsewhere_are_not(trained):
    moved = [{**ROWS[0], "where": "other.jsonl line 9"}]
    refuse_other_run(trained("sft"), origin("sft", "--data", "moved.jsonl", rows=moved), ["data"])
    with pytest.raises(UserError, match=f"the records themselves {content_of(ROWS)}, now [0-9a-f]+: "):
        refuse_other_run(trained("sft"), origin("sft", rows=[{"prompt_ids": [1, 3]}]), None)


@pytest.mark.parametrize("words", [["--lora_r", "8"], ["--lora_r", "0"], ["--lora_r", "4", "--lora_targets", "q_proj"], ["--lora_r", "4", "--optim", "sgd"]])
def test_what_cannot_work_is_refused_whoever_allows_it(trained, tmp_path, words):
    (tmp_path / "adapter_config.json").write_text("{}")
    checkpoint = trained("kto", "--lora_r", "4")
    with pytest.raises(UserError, match=rf"{words[-2]} .*, now .*--allow_changes cannot make them; .*seodang export {checkpoint} FOLDER"):
        refuse_other_run(checkpoint, origin("kto", *words), ["all"])


def test_a_checkpoint_without_its_options_is_resumed_unchecked_by_whoever_says_so(tmp_path):
    write_manifest(tmp_path, base="default", data="0123456789abcdef")
    with pytest.raises(UserError, match="an earlier version saved it: --allow_changes all resumes it unchecked"):
        refuse_other_run(tmp_path, origin("sft"), ["seed"])
    refuse_other_run(tmp_path, origin("sft"), ["all"])


def test_a_mistyped_name_is_refused_though_nothing_is_resumed():
    with pytest.raises(UserError, match="--allow_changes sed: a run is not known by this option: did you mean seed?"):
        refuse_other_run(None, origin("sft"), ["sed"])
