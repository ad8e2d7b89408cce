"""Merge an adapter into its base model and check that nothing changed: a folder that every engine loads.

seodang export runs/sft --output_dir merged
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import adapter_base, is_adapter, load, resolve
from seodang.infer.checkpoint.manifest import fingerprint, read_manifest
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.kernels.device import DTYPES
from seodang.recipes.options.parser import command, parse
from seodang.train.run.checkpoints import STAGING, publish_into, reserve_space, start_staging

PROBE = "Which country is the city of Suwon located in? 수원은 어느 나라에 있나요? def f(x): return x + 1"
# The largest share of the logits' spread by which rounding may move one of them.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass
class ExportOptions:
    """What is merged, and where to."""

    model: str = field(metadata={"help": "Folder of an adapter or of a whole checkpoint."})
    output_dir: str = field(metadata={"help": "Folder to write; new or empty."})
    dtype: str = field(default="auto", metadata={"help": "Of the written weights: float32, bfloat16, float16; auto keeps the base model's."})

    def __post_init__(self):
        if self.dtype != "auto" and DTYPES.get(self.dtype) not in TOLERANCE:
            raise UserError(f"dtype {self.dtype!r} cannot be exported: choose auto, float32, bfloat16 or float16")


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, ExportOptions, prog="seodang export", positional=("model", "output_dir"), description=__doc__)
    target = Path(options.output_dir)
    # an export that was cut short leaves its staging folder
    if target.exists() and (not target.is_dir() or any(each.name != STAGING for each in target.iterdir())):
        raise UserError(f"output_dir {target} exists and is not empty: name a new folder")
    place = resolve(options.model)
    base = adapter_base(place) if is_adapter(place) else options.model
    dtype = _stored_dtype(resolve(base)) if options.dtype == "auto" else DTYPES[options.dtype]
    model, tokenizer = load(options.model, device="cpu", dtype="float32")  # merged in full precision, rounded once
    generation = getattr(model, "generation_config", None)  # a reward model has none
    if generation is not None and (Path(place) / "generation_config.json").is_file():
        generation = type(generation).from_pretrained(place)
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])
    before = _logits(model, ids)
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    _check(before, _logits(merged, ids), torch.float32, "merging")
    merged = merged.to(dtype)
    if generation is not None:
        merged.generation_config = generation
    with reserve_space(sum(p.numel() * p.element_size() for p in merged.parameters()), target):
        folder = start_staging(target) / "final"
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made = read_manifest(Path(place)) if Path(place).is_dir() else None
        facts = {name: (made or {}).get(name) for name in ("step", "paradigm", "data")}
        publish_into(folder, target, **facts, base=base, template=fingerprint(tokenizer.chat_template))
    written, _ = load(target, device="cpu", dtype="float32")
    change = _check(before, _logits(written, ids), dtype, "writing")
    print(f"largest change of a logit {change:.2e} of their spread, {str(dtype).removeprefix('torch.')}\n{target}")
    return 0


def _stored_dtype(base: str) -> torch.dtype:
    """The dtype that the base model's own checkpoint has."""
    stored = stored_config(base).dtype
    return stored if stored in TOLERANCE else torch.float32


@torch.no_grad()
def _logits(model, ids: torch.Tensor) -> torch.Tensor:
    """What the model makes of the probe: a language model's logits, or a reward model's scores of all its beginnings."""
    if hasattr(model, "score"):
        return torch.cat([model(input_ids=ids[:, :n]).logits[0] for n in range(1, ids.shape[1] + 1)]).float()
    return model(input_ids=ids).logits[0].float()


def _check(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype, what: str) -> float:
    """The largest change of a logit, as a share of the logits' spread. Raises UserError where rounding does not explain it."""
    change = ((after - before).abs().max() / (before.max() - before.min())).item()
    if not change <= TOLERANCE[dtype]:
        raise UserError(f"{what} changed the logits by {change:.1%} of their spread: the adapter does not belong to this base model")
    return change


if __name__ == "__main__":
    sys.exit(main())
