"""How a run lies on several devices: what of it each of them holds, by DDP, ZeRO (Rajbhandari et al. 2020) or FSDP2 (Zhao et al. 2023)."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...data.errors import UserError
from ...data.sample_data import setup_hint
from ..run.sharding import refuse_context_parallel

DDP, ZERO1, ZERO2, ZERO3, FSDP = WAYS = ("ddp", "zero1", "zero2", "zero3", "fsdp")
BUCKET = 500_000_000  # elements: DeepSpeed's reduce_bucket_size where its config says nothing
LIVE = 1_000_000_000  # weights: DeepSpeed's stage3_max_live_parameters, likewise
TYPES = {"NO": DDP, "MULTI_CPU": DDP, "MULTI_GPU": DDP, "FSDP": FSDP, "DEEPSPEED": None}


@dataclass(frozen=True)
class Layout:
    """So many devices, and how a run is spread over them; what is offloaded lies in the host's memory instead."""

    devices: int = 1
    way: str = FSDP
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    keeps_gathered: bool = False  # FSDP: weights stay whole between the forward and the backward pass (reshard_after_forward off)
    checkpoints: bool = False  # FSDP's own activation checkpointing
    mixed_precision: str | None = None  # no, bf16 or fp16, where a launch file says

    def __post_init__(self):
        if self.way not in WAYS:
            raise UserError(f"sharding must be one of {', '.join(WAYS)}, got {self.way!r}")
        if self.devices < 1:
            raise UserError(f"devices must be at least 1, got {self.devices}")

    @property
    def shares_parameters(self) -> bool:
        """Whether each device keeps a part of the weights alone."""
        return self.devices > 1 and self.way in (ZERO3, FSDP)

    def of_parameters(self, amount: float) -> float:
        """What a device holds of an amount of weights."""
        return amount / self.devices if self.way in (ZERO3, FSDP) else amount

    def of_gradients(self, amount: float) -> float:
        """What a device holds of their gradients once they are added up."""
        return amount / self.devices if self.way in (ZERO2, ZERO3, FSDP) else amount

    def of_optimizer(self, amount: float) -> float:
        """What a device holds of an optimizer's state."""
        return amount if self.way == DDP else amount / self.devices

    def told(self) -> str:
        """The layout in words."""
        if self.devices == 1:
            return "1 device"
        names = {DDP: "DDP", ZERO1: "ZeRO-1", ZERO2: "ZeRO-2", ZERO3: "ZeRO-3", FSDP: "FSDP2"}
        aside = [name for name, off in (("optimizer", self.offloads_optimizer), ("weights", self.offloads_parameters)) if off]
        return f"{self.devices} devices, {names[self.way]}" + (f", {' and '.join(aside)} in the host's memory" if aside else "")


def read_launch_file(path: str) -> Layout:
    """The layout of one of accelerate's configs, a YAML file. Raises UserError for one that says none that is known."""
    if not os.path.isfile(path):
        raise UserError(f"launch_file {path}: there is no such file{setup_hint(path)}")
    try:
        told = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"launch_file {path} is not YAML: {error}") from None
    kind = str(told.get("distributed_type")).upper() if isinstance(told, dict) else None
    if kind not in TYPES:
        raise UserError(f"launch_file {path}: distributed_type must be one of {', '.join(TYPES)}, got {kind}: write it by `accelerate config`")
    for name in ("deepspeed_config", "fsdp_config", "parallelism_config"):
        if not isinstance(told.get(name) or {}, dict):
            raise UserError(f"launch_file {path}: {name} must hold names and values, got {told[name]!r:.60}: write it by `accelerate config`")
    refuse_context_parallel(told.get("parallelism_config") or {})
    try:
        devices = int(told.get("num_processes", 1))
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"launch_file {path}: num_processes must be a whole number, got {told['num_processes']!r}") from None
    precision = {"mixed_precision": str(told.get("mixed_precision") or "no").lower()}
    if kind == "DEEPSPEED":
        return _deepspeed(path, devices, told.get("deepspeed_config") or {}, precision)
    if kind == "FSDP":
        return _fsdp(devices, told.get("fsdp_config") or {}, precision)
    return Layout(devices, DDP, **precision)


def _fsdp(devices: int, told: dict[str, Any], precision: dict[str, str]) -> Layout:
    strategy = str(told.get("fsdp_reshard_after_forward", told.get("fsdp_sharding_strategy", "FULL_SHARD"))).upper()
    if strategy in ("NO_SHARD", "3"):
        return Layout(devices, DDP, **precision)
    offloads = _yes(told.get("fsdp_offload_params"))
    return Layout(
        devices, FSDP, offloads_optimizer=offloads, offloads_parameters=offloads, keeps_gathered=strategy in ("FALSE", "SHARD_GRAD_OP", "2"),
        checkpoints=_yes(told.get("fsdp_activation_checkpointing")), **precision,
    )  # fmt: skip


def _deepspeed(path: str, devices: int, told: dict[str, Any], precision: dict[str, str]) -> Layout:
    if "zero_stage" not in told:
        raise UserError(f"launch_file {path}: deepspeed_config has no zero_stage: give it one, 0 to 3")
    stage = str(told["zero_stage"])
    if stage not in ("0", "1", "2", "3"):
        raise UserError(f"launch_file {path}: zero_stage must be 0, 1, 2 or 3, got {stage}")
    aside = {name: str(told.get(f"offload_{which}_device", "none")).lower() != "none" for name, which in (("offloads_optimizer", "optimizer"), ("offloads_parameters", "param"))}
    return Layout(devices, WAYS[int(stage)], **aside, **precision)


def _yes(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "1")
