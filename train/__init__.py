"""Batches to a better model: the stages, and what they are given. Nothing is imported before it is asked for."""

import importlib
from typing import Any

from ..data.versions import versions_named

_HOMES = {
    "sft": "stages.sft", "sft_trainer": "stages.sft", "SftTrainer": "stages.sft", "StreamedRows": "stages.sft",
    "diffusion_trainer": "diffusion.trainer", "DiffusionTrainer": "diffusion.trainer", "DenoisingObjective": "diffusion.objective",
    "diffusion_dpo": "diffusion.dpo", "diffusion_dpo_trainer": "diffusion.dpo", "DiffusionDpoTrainer": "diffusion.dpo",
    "diffusion_lm_trainer": "diffusion_lm.training", "DiffusionLMTrainer": "diffusion_lm.training",
    "latent_classifier_trainer": "diffusion_lm.classifier", "LatentClassifierTrainer": "diffusion_lm.classifier",
    "adapt": "diffusion.adapt", "Canvas": "diffusion.canvas",
    "pretrain": "pretraining.causal", "pretrain_trainer": "pretraining.causal", "PretrainTrainer": "pretraining.causal",
    "TextSampler": "pretraining.samples", "bits_per_byte": "maths.bits_per_byte", "Sizes": "pretraining.architecture",
    "small_config": "pretraining.architecture", "untrained": "pretraining.architecture",
    "mlm": "pretraining.mlm", "mlm_trainer": "pretraining.mlm", "MlmTrainer": "pretraining.mlm",
    "span_corruption": "pretraining.spans", "span_trainer": "pretraining.spans", "SpanTrainer": "pretraining.spans",
    "seq2seq": "encoder_decoder.seq2seq", "seq2seq_trainer": "encoder_decoder.seq2seq", "Seq2SeqTrainer": "encoder_decoder.seq2seq",
    "reward": "stages.reward", "reward_trainer": "stages.reward", "RewardModelTrainer": "stages.reward",
    "classification": "stages.classification", "classifier_trainer": "stages.classification", "ClassifierTrainer": "stages.classification",
    "tagging": "stages.tagging", "tagger_trainer": "stages.tagging", "TaggerTrainer": "stages.tagging",
    "contrastive": "stages.contrastive", "contrastive_trainer": "stages.contrastive", "ContrastiveTrainer": "stages.contrastive",
    "dpo": "stages.dpo", "dpo_trainer": "stages.dpo", "DpoTrainer": "stages.dpo", "PreferenceSettings": "maths.preference_losses",
    "kto": "stages.kto", "kto_trainer": "stages.kto", "KtoTrainer": "stages.kto",
    "ppo": "stages.ppo", "ppo_trainer": "stages.ppo", "PpoTrainer": "stages.ppo", "PpoSettings": "stages.ppo_settings",
    "grpo": "stages.grpo", "grpo_trainer": "stages.grpo", "GrpoTrainer": "stages.grpo",
    "rloo": "stages.grpo", "rloo_trainer": "stages.grpo", "RlooTrainer": "stages.grpo",
    "plan": "stages.plan", "Plan": "stages.plan",
    "text_metrics": "maths.text_metrics",
    "parse_metrics": "evaluation.registry", "compared": "evaluation.comparison", "Case": "evaluation.case", "Likelihood": "evaluation.case",
    "parse_reward": "rewards.rules", "model_reward": "rewards.rules", "combined": "rewards.rules", "length": "rewards.rules",
    "score_answers": "rewards.scoring",
    "FunctionRanker": "rewards.ranking", "JudgeRanker": "rewards.ranking", "PersonRanker": "rewards.ranking", "rank_all": "rewards.ranking",
    "roll_out": "rollouts.rollout", "sample_n": "rollouts.rollout", "Rollout": "rollouts.rollout",
    "AnswerSampler": "rollouts.eval_generation", "HeldOut": "rollouts.eval_generation",
    "Provenance": "run.crash_safe", "find_resume": "run.checkpoints", "save_merged": "run.checkpoints",
    "RunLog": "run.callbacks", "TimeLimit": "run.callbacks", "read_log": "run.callbacks", "terminal_curve": "run.callbacks",
    "Sample": "run.run_page", "draw_curves": "run.run_page", "write_page": "run.run_page",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with versions_named():
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
