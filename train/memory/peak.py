"""A run's memory on each of its devices: what stands there all the time, and what each moment of a step adds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ...infer.checkpoint.without_weights import weight_bytes
from ...infer.runners.architecture import transformers_model
from .allocations import Moment, give_fakes, step_moments
from .optimizers import OptimizerCost, optimizer_cost
from .sharding import BUCKET, DDP, FSDP, LIVE, WAYS, ZERO3, Layout
from .step import Step, dearest_step

ROW_COPIES = 4  # of a row of float32 logits, while a token is drawn


@dataclass(frozen=True)
class Measured:
    """What a step on shapes came to, of one device that has all: bytes, before they are shared out."""

    parameters: int  # bytes
    count: int  # of the weights
    trained: int  # how many of them train
    beside: int  # references, critics and reward models of their own
    root: int  # bytes of what belongs to no layer: embeddings, the last norm, the head
    layer: int  # bytes of the largest layer
    gradients: int
    optimizer: OptimizerCost
    forward: list[Moment]
    backward: list[Moment]
    activations: int  # kept between the passes
    accumulates: bool  # gradients of earlier micro-batches are there
    step: Step
    cache: int  # bytes of keys and values of all answers that are sampled at a time
    logits: int  # of a token of each of them
    dtype: str


@dataclass
class MemoryPlan:
    """What one device holds at each moment of a run, in bytes: `moments` by name, each of its parts by name; and what its host holds for it."""

    layout: Layout
    measured: Measured
    moments: dict[str, dict[str, float]] = field(default_factory=dict)
    host: float = 0.0

    @property
    def peak(self) -> float:
        """Bytes at the dearest moment."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def peak_moment(self) -> str:
        """Its name."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))


def measure(trainer: Any, devices: int = 1) -> Measured:
    """Run the dearest step of a trainer whose models are on the meta device, its optimizer's too. The models hold fake tensors afterwards.

    Raises UserError for a model whose forward pass hangs on values, which there are none of.
    """
    model = trainer.model
    policy = {id(each) for each in model.parameters()}
    others = [each for each in models_beside(trainer) if not any(id(p) in policy for p in each.parameters())]
    parameters, beside = weight_bytes(model), sum(map(weight_bytes, others))
    root, layer = layer_bytes(model)
    give_fakes([model, *others], trainer.args.device)
    for each in (model, *others):
        remember_head(transformers_model(each))
    trained = [p for p in model.parameters() if p.requires_grad]
    standing = tensors_of([model, *others])
    moments = step_of(trainer, devices, trained, standing)
    dtype = next(model.parameters()).dtype
    return Measured(
        parameters=parameters, count=sum(p.numel() for p in model.parameters()), trained=sum(p.numel() for p in trained), beside=beside, root=root, layer=layer,
        gradients=sum(p.numel() * p.element_size() for p in trained), optimizer=optimizer_cost(trainer, trained, standing), dtype=str(dtype).removeprefix("torch."),
        **moments,
    )  # fmt: skip


def measured_again(trainer: Any, before: Measured, devices: int = 1) -> Measured:
    """The same after the trainer's arguments have changed what a step is, and nothing else."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    trainer.model.zero_grad(set_to_none=True)
    return replace(before, **step_of(trainer, devices, trained, tensors_of([trainer.model, *models_beside(trainer)])))


def step_of(trainer: Any, devices: int, trained: list[nn.Parameter], standing: list[Tensor]) -> dict[str, Any]:
    """What the dearest step comes to, as fields of `Measured`; where gradients are accumulated it is the second micro-batch that counts."""
    model, args = trainer.model, trainer.args
    model.train()
    if args.activation_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=args.activation_checkpointing_kwargs or None)
    step, config = dearest_step(trainer, devices), transformers_model(model).config.get_text_config()

    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)  # which a launch file says after the trainer is built

    def loss() -> Tensor:
        with torch.autocast(args.device.type, mixed or torch.bfloat16, enabled=mixed is not None), trainer.compute_loss_context_manager():
            return step.loss()

    try:
        for _ in range(2 if args.gradient_accumulation_steps > 1 else 1):
            forward, backward, kept = step_moments(loss, trained, standing)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{config.model_type} computes what hangs on values, which a model without weights has none of ({reason}): --dry_run time loads it") from error
    cache = step.rollouts * step.positions * cache_bytes(config, next(model.parameters()).dtype)
    return {
        "forward": forward, "backward": backward, "activations": kept.others, "accumulates": args.gradient_accumulation_steps > 1, "step": step,
        "cache": cache, "logits": step.rollouts * config.vocab_size * 4 * ROW_COPIES,
    }  # fmt: skip


def models_beside(trainer: Any) -> list[nn.Module]:
    """The frozen models that a trainer keeps beside the one that it trains."""
    reference = getattr(trainer, "reference", None)
    scores_once = getattr(trainer, "_to_score", False)
    found = [None if scores_once else getattr(reference, "given", None), getattr(trainer, "ref_model", None), *getattr(trainer, "models_beside", ())]
    return [each for each in found if isinstance(each, nn.Module)]


def tensors_of(models: Sequence[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of models."""
    return [each for model in models for each in (*model.parameters(), *model.buffers())]


def layer_bytes(model: nn.Module) -> tuple[int, int]:
    """The bytes of what belongs to no layer, and of the largest layer, as FSDP wraps them: those of the architecture's `_no_split_modules`."""
    inner: PreTrainedModel = transformers_model(model)
    names = set(inner._no_split_modules or ())
    layers = [module for module in inner.modules() if type(module).__name__ in names]
    sizes = [weight_bytes(layer) for layer in layers]
    in_layers = sum(sizes)
    return max(weight_bytes(model) - in_layers, 0), max(sizes, default=0)


def remember_head(model: PreTrainedModel) -> None:
    """Say beforehand whether the head is one linear layer and nothing more, which is otherwise tried with values."""
    config = model.config.get_text_config()
    scale = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")]
    model.__dict__["answer_head_is_plain"] = all(each in (None, 1, 1.0) for each in scale)


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """The bytes of the keys and values of one position, in all layers; a window's layers keep all their positions too."""
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or config.hidden_size // max(getattr(config, "num_attention_heads", 1), 1)
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize


def memory_plan(measured: Measured, layout: Layout) -> MemoryPlan:
    """Share out what was measured over the layout's devices."""
    m = measured
    held = {
        "parameters": 0.0 if layout.offloads_parameters else layout.of_parameters(m.parameters),
        "master weights": 0.0 if layout.offloads_optimizer else layout.of_optimizer(m.optimizer.masters),
        "optimizer state": 0.0 if layout.offloads_optimizer else layout.of_optimizer(m.optimizer.state),
        "models beside": float(m.beside),
        "gathered": gathered(m, layout),
        "buckets": float(bucket(m, layout)),
    }
    plan = MemoryPlan(layout, m)
    before = layout.of_gradients(m.gradients) if m.accumulates else 0.0
    for name, moments in (("forward", m.forward), ("backward", m.backward)):
        worst = max(moments, key=lambda at: at.others + layout.of_gradients(at.gradients), default=Moment(0, 0))
        kept = min(worst.others, m.activations)
        waiting = m.layer * m.trained / max(m.count, 1) if (name, layout.way) == ("backward", FSDP) and layout.shares_parameters else 0.0  # a layer's gradients
        plan.moments[name] = {**held, "gathered": held["gathered"] + waiting, "gradients": before + layout.of_gradients(worst.gradients), "activations": kept, "passing": worst.others - kept}
    if not layout.offloads_optimizer:
        worst = max(m.optimizer.moments, key=lambda at: layout.of_optimizer(at.others) + layout.of_gradients(at.gradients), default=Moment(m.gradients, 0))
        of_step = {"gradients": layout.of_gradients(worst.gradients), "passing": layout.of_optimizer(worst.others)}
        plan.moments["optimizer"] = {**held, "gathered": 0.0, **of_step}
    else:
        plan.host = layout.of_optimizer(m.optimizer.state + m.optimizer.masters) + layout.of_gradients(m.gradients)
    if layout.offloads_parameters:
        plan.host += layout.of_parameters(m.parameters)
    if m.step.rollouts:
        whole = m.parameters if layout.shares_parameters else 0.0
        plan.moments["rollout"] = {**held, "gathered": float(whole), "cache": float(m.cache), "passing": float(m.logits)}
    return plan


def gathered(m: Measured, layout: Layout) -> float:
    """What a device holds of others' weights while it computes: of FSDP the root's and two layers, of DeepSpeed what it lets live; twice never."""
    if not layout.shares_parameters:
        return 0.0
    whole = m.parameters
    if layout.way == ZERO3:
        return float(min(whole, LIVE * m.parameters / max(m.count, 1)))
    halved = 2 if layout.mixed_precision in ("bf16", "fp16") and m.dtype == "float32" else 1  # FSDP2 gathers in the precision that is computed in
    return (whole if layout.keeps_gathered else min(whole, m.root + 2 * m.layer)) / halved


def bucket(m: Measured, layout: Layout) -> float:
    """What is set aside to add gradients up in: DDP's buckets hold all of them once more, DeepSpeed's so many."""
    if layout.devices == 1 or layout.way == FSDP:
        return 0.0
    return m.gradients if layout.way == DDP else min(m.gradients, BUCKET * m.gradients / max(m.trained, 1))


def other_ways(measured: Measured, layout: Layout) -> dict[str, float]:
    """The peak on as many devices, spread in the other ways, in bytes."""
    return {way: memory_plan(measured, Layout(layout.devices, way, mixed_precision=layout.mixed_precision)).peak for way in WAYS if way != layout.way}

