"""Batches to a better model: the stages, and what they are given. Nothing is imported before it is asked for."""

import importlib
from typing import Any

_HOMES = {
    "sft": "stages.sft", "sft_trainer": "stages.sft",
    "reward": "stages.reward", "reward_trainer": "stages.reward",
    "dpo": "stages.dpo", "dpo_trainer": "stages.dpo", "PreferenceSettings": "maths.preference_losses",
    "kto": "stages.kto", "kto_trainer": "stages.kto",
    "ppo": "stages.ppo", "ppo_trainer": "stages.ppo", "PpoSettings": "stages.ppo_settings",
    "grpo": "stages.grpo", "grpo_trainer": "stages.grpo", "rloo": "stages.grpo", "rloo_trainer": "stages.grpo",
    "parse_reward": "rewards.rules", "model_reward": "rewards.rules", "combined": "rewards.rules", "score_answers": "rewards.scoring",
    "save_merged": "run.checkpoints",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
