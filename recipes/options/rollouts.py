"""Who answers in training: our engine, or a server of vLLM that is handed the weights."""

from dataclasses import dataclass, field
from typing import Any

from seodang.data.errors import UserError

ENGINE, VLLM = ROLLOUTS = ("engine", "vllm")


@dataclass
class RolloutOptions:
    """Who answers in training."""

    rollout: str = field(default=ENGINE, metadata={"help": "Who answers in training: engine, ours, or vllm, trl's use_vllm with a server at --vllm_server_base_url."})

    def __post_init__(self):
        if self.rollout not in ROLLOUTS:
            raise UserError(f"rollout must be one of {', '.join(ROLLOUTS)}, got {self.rollout!r}")

    def settle(self, args: Any, planned: bool) -> None:
        """Have trl's arguments say the same, in place; raises UserError where vLLM could not answer. What is only `planned` asks nobody."""
        if self.rollout == VLLM:
            args.use_vllm, args.vllm_mode = True, "server"
        elif args.use_vllm:
            self.rollout = VLLM  # a run is known by it, whichever way it was said
        if planned:
            args.use_vllm = False
        from seodang.train.rollouts.vllm_server import check_vllm

        check_vllm(args)

    def refuse_vllm(self, verb: str) -> None:
        """Raise UserError where a stage is asked for vLLM's answers that takes our engine's alone."""
        if self.rollout == VLLM:
            raise UserError(
                f"rollout vllm: {verb} answers by our own engine alone, under FSDP2 and ZeRO-3 by weights gathered for it: leave it out, or train by grpo or rloo"
            )
