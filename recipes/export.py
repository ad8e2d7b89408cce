"""Write a model, its adapter merged, as a folder for transformers and vLLM, with --gguf as a file for llama.cpp and Ollama too, with --weights as a folder
of few bits that Seodang maps into memory; each is loaded back and compared.

seodang export runs/sft --output_dir merged --gguf f16
seodang export runs/sft --output_dir small --weights int4
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from seodang.data.chat import all_end_ids
from seodang.data.errors import UserError
from seodang.infer.checkpoint.adapter_paradigm import declare_as_beside
from seodang.infer.checkpoint.calibration_text import calibration_rows, check_choice
from seodang.infer.checkpoint.damage import check_texts, read_json
from seodang.infer.checkpoint.few_bits_folder import METHOD, size_in_few_bits, write_few_bits
from seodang.infer.checkpoint.load import ADAPTER_CONFIG, adapter_base, is_adapter, load, load_tokenizer, merge_adapter, resolve
from seodang.infer.checkpoint.logit_change import largest_change
from seodang.infer.checkpoint.manifest import UNFINISHED, fingerprint, read_manifest
from seodang.infer.checkpoint.published_diffusion import stored_config
from seodang.infer.checkpoint.quantise import quantise, refuse_family
from seodang.infer.encoders.embedding import makes_vectors
from seodang.infer.encoders.sentence_folder import is_sentence_folder
from seodang.infer.kernels.device import DTYPES
from seodang.infer.runners.native.grouped_linear import missing_kernels
from seodang.infer.runners.paradigm import diffusion_of
from seodang.recipes.options.outputs import refuse_long_name
from seodang.recipes.options.parser import command, parse
from seodang.recipes.run.one_writer import only_writer
from seodang.train.models.critic import CRITIC, FILE
from seodang.train.run.card import Exported, model_card, modelfile
from seodang.train.run.checkpoints import STAGING, publish_into, reserve_space, start_staging, write_atomically

if TYPE_CHECKING:
    from seodang.infer.checkpoint.gguf.vocabulary import Vocabulary  # needs the package gguf

PROBE = "Which country is the city of Suwon located in? 수원은 어느 나라에 있나요? def f(x): return x + 1"
# The largest share of the logits' spread by which rounding may move one of them.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
FOREIGN = "the adapter does not belong to this base model, or changes weights apart that this holds as one, such as a head that is tied to the embedding"
BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 34 / 32}  # a weight, in a GGUF file, at most


@dataclass
class ExportOptions:
    """What is merged, and where to."""

    model: str = field(metadata={"help": "Folder of an adapter or of a whole checkpoint."})
    output_dir: str = field(metadata={"help": "Folder to write; new or empty."})
    dtype: str = field(default="auto", metadata={"help": "Of the written weights: float32, bfloat16, float16; auto keeps the base model's."})
    gguf: str | None = field(
        default=None, metadata={"help": "Also write a GGUF file, for llama.cpp and Ollama, with its weights in f32, f16, bf16, q8_0 or q4_0."}
    )
    weights: str | None = field(
        default=None, metadata={"help": "int8 or int4: write a folder for Seodang alone, with so many bits a weight, which is loaded in under a second."}
    )
    calibration: str | None = field(default=None, metadata={"help": "With --weights int4: a file of plain text that chooses the 4 bits, which takes minutes."})
    bits: float | None = field(default=None, metadata={"help": "With --calibration: what a weight may take on average, above 5; what loses most keeps 8."})

    def __post_init__(self):
        if self.dtype != "auto" and DTYPES.get(self.dtype) not in TOLERANCE:
            raise UserError(f"dtype {self.dtype!r} cannot be exported: choose auto, float32, bfloat16 or float16")
        if self.gguf is not None and self.gguf not in BYTES:
            raise UserError(f"gguf {self.gguf!r} cannot be written: choose f32, f16, bf16, q8_0 or q4_0 (llama-quantize makes others of f32 or f16)")
        if self.weights is not None and self.gguf is not None:
            raise UserError(f"weights {self.weights} is a folder for Seodang, gguf {self.gguf} a file for others: give one of them, and export twice for both")
        if self.weights is not None and self.dtype not in ("auto", "bfloat16"):
            raise UserError(f"weights {self.weights} keeps what is not in few bits in bfloat16, got dtype {self.dtype}: leave dtype out")
        check_choice(self.weights, self.calibration, self.bits)


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, ExportOptions, prog="seodang export", positional=("model", "output_dir"), description=__doc__)
    target = Path(options.output_dir)
    _refuse_filled(target)
    name = target.resolve().name
    file = f"{name}-{options.gguf.upper()}.gguf" if options.gguf else None
    if file is not None:
        refuse_long_name(target / file, f"output_dir {target}: {file}")
    place = resolve(options.model)
    base = adapter_base(place) if is_adapter(place) else options.model
    config = _config_of(base)
    if is_adapter(place):
        declare_as_beside(place, config)
    elif makes_vectors(place) and (is_sentence_folder(place) or not any(name.endswith("ForMaskedLM") for name in config.architectures or ())):
        raise UserError(f"{options.model} is an encoder that makes vectors, and its folder is read by transformers and vLLM as it is: use it, or copy it")
    if options.weights:
        _refuse_reward(place, f"a folder in {options.weights}", "--weights")
        refuse_family(next(iter(config.architectures or ()), "another"), config.model_type, options.weights)
        if (missing := missing_kernels()) is not None:
            raise UserError(f"weights {options.weights} cannot be written on this machine ({missing}): export where the native step runs, or leave weights out")
    for told in _left_behind(Path(place), config):
        print(told)
    tokenizer = load_tokenizer(options.model)
    generation = _generation_config([place, resolve(base)], config, tokenizer)
    vocabulary = _plan_gguf(config, tokenizer, generation, place) if options.gguf else None
    dtype = torch.bfloat16 if options.weights else _stored_dtype(config) if options.dtype == "auto" else DTYPES[options.dtype]
    model, tokenizer = load(options.model, device="cpu", dtype="float32")  # merged in full precision, rounded once
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])[:, : getattr(config, "max_position_embeddings", None)]
    before = _logits(model, ids)
    if not before.isfinite().all():
        raise UserError(f"{options.model} gives logits that are no numbers, for its weights are none or too large: use another checkpoint")
    merged = merge_adapter(model, options.model)
    _check(before, _logits(merged, ids), torch.float32, "merging", FOREIGN)
    _refuse_overflow(merged, dtype)
    if hasattr(merged, "generation_config"):  # a reward model has none
        merged.generation_config = generation
    made = (read_manifest(Path(place)) if Path(place).is_dir() else None) or {}
    about = Exported(name, base, made.get("step"), dtype, merged, tokenizer, file, options.weights, sum(p.numel() for p in merged.parameters()))
    if options.weights:
        rows = None if options.calibration is None else calibration_rows(tokenizer, merged, options.calibration)
        quantise(merged, options.weights, rows, options.bits, print)
    size = size_in_few_bits(merged) if options.weights else int((torch.finfo(dtype).bits // 8 + BYTES.get(options.gguf, 0)) * about.parameters)
    with only_writer(target, "name another folder"), reserve_space(size, target, "or name a folder elsewhere"), _staged(target) as folder:
        _refuse_filled(target)  # by another process, in the meantime
        if vocabulary is not None:
            _write_gguf(folder, about, vocabulary, options.gguf, ids)
        if options.weights:
            write_few_bits(folder, merged, options.weights)
        else:
            merged.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_atomically(folder / "README.md", model_card(about))
        if options.weights:
            change = _check_few_bits(before, _logits(merged, ids), _logits(load(folder)[0], ids))
        else:
            change = _check(before, _logits(load(folder, device="cpu", dtype="float32")[0], ids), dtype, "writing", "choose --dtype float32")
        facts = {name: made.get(name) for name in ("step", "paradigm", "data")}
        publish_into(folder, target, **facts, base=base, template=fingerprint(tokenizer.chat_template))
    print(f"largest change of a logit {change:.2e} of their spread, {options.weights or str(dtype).removeprefix('torch.')}\n{target}")
    return 0


def _refuse_filled(target: Path) -> None:
    """Raise UserError for a folder that holds something else than what an export leaves that was killed."""
    half = target / UNFINISHED
    left = {STAGING, UNFINISHED, f"{UNFINISHED}.partial", *(json.loads(half.read_text(encoding="utf-8")) if half.is_file() else ())}
    if target.exists() and (not target.is_dir() or any(each.name not in left for each in target.iterdir())):
        raise UserError(f"output_dir {target} exists and is not empty: name a new folder")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder to write in, aside; nothing is left of it where what is written is not to be had."""
    aside = start_staging(target)
    try:
        folder = aside / "final"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _config_of(base: str) -> PretrainedConfig:
    """The configuration of a base model. Raises UserError for quantised weights: merged into them, an adapter would be rounded anew."""
    place = resolve(base)
    if Path(place).is_dir():
        check_texts(Path(place))
    try:
        config = stored_config(place)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"model {base!r} could not be read: {str(error).splitlines()[0]}") from None
    if quantised := getattr(config, "quantization_config", None):
        method = (told := quantised if isinstance(quantised, dict) else quantised.to_dict()).get("quant_method")
        method = f"Seodang's {told.get('weights')}" if method == METHOD else method
        raise UserError(f"{base} holds quantised weights ({method}), export needs plain ones: give the model that they were made of")
    return config


def _left_behind(place: Path, config: PretrainedConfig) -> list[str]:
    """What of a checkpoint no other engine has a use for, a sentence each."""
    told = []
    if (place / CRITIC / FILE).is_file():
        told.append(f"the value head ({CRITIC}/{FILE}) stays behind: nothing but PPO reads it")
    if diffusion_of(config) is not None:
        told.append("how it fills in masks goes along for Seodang alone: other engines have no canvas for it")
    return told


def _generation_config(places: list[str], config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """What the first of the places that says so says of generation, with every id that ends a text here. Raises UserError for what cannot be said."""
    generation = GenerationConfig.from_model_config(config)
    for place in places:
        try:
            with suppress(OSError):
                generation = GenerationConfig.from_pretrained(place)
                break
        except ValueError as error:
            raise UserError(f"{place}/generation_config.json asks for what cannot be: {str(error).splitlines()[0]}: mend it there") from None
    declared = generation.eos_token_id
    if len(ends := all_end_ids(declared, tokenizer)) > (len(declared) if isinstance(declared, list) else declared is not None):
        generation.eos_token_id = ends
    return generation


def _plan_gguf(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, place: str) -> "Vocabulary":
    """What can be said of the file before the model is loaded. Raises UserError where there can be none."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("a GGUF file needs the package gguf, which is not installed: pip install 'seodang[gguf]'")
    _refuse_reward(place, "a GGUF file", "--gguf")
    from seodang.infer.checkpoint.gguf.export import plan_gguf

    return plan_gguf(config, tokenizer, all_end_ids(generation.eos_token_id, tokenizer))


def _refuse_reward(place: str, what: str, option: str) -> None:
    """Raise UserError for an adapter that makes its base a reward model."""
    if is_adapter(place) and read_json(Path(place) / ADAPTER_CONFIG).get("task_type") == "SEQ_CLS":
        raise UserError(f"{place} is a reward model, and {what} has no place for its head: export without {option}")


def _write_gguf(folder: Path, about: Exported, vocabulary: "Vocabulary", kind: str, ids: torch.Tensor) -> None:
    """Write the file and Ollama's Modelfile, and say what differs."""
    from seodang.infer.checkpoint.gguf.export import save_gguf

    about.notes, change = save_gguf(folder / about.gguf, about.model, about.tokenizer, vocabulary, kind, ids)
    write_atomically(folder / "Modelfile", modelfile(about))
    compared = "its weights are the model's" if change != change else f"largest change of a logit {change:.2e} of their spread"
    print(f"{about.gguf}: {compared}", *(f"  {note}" for note in about.notes), sep="\n")


def _stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The dtype that the base model's own checkpoint has."""
    return config.dtype if config.dtype in TOLERANCE else torch.float32


@torch.no_grad()
def _logits(model, ids: torch.Tensor) -> torch.Tensor:
    """What the model makes of the probe: a language model's logits, or a reward model's scores of all its beginnings."""
    if hasattr(model, "score"):
        return torch.cat([model(input_ids=ids[:, :n]).logits[0] for n in range(1, ids.shape[1] + 1)]).float()
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more).logits[0].float()


def _check(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype, what: str, remedy: str) -> float:
    """The largest change of a logit, as a share of the logits' spread. Raises UserError where rounding does not explain it."""
    change = largest_change(before, after)
    if not change <= TOLERANCE[dtype]:
        raise UserError(f"{what} changed the logits by {change:.1%} of their spread: {remedy}")
    return change


def _check_few_bits(floats: torch.Tensor, made: torch.Tensor, read: torch.Tensor) -> float:
    """The largest change of a logit by rounding, as a share of the logits' spread. Raises UserError where what is read is not what was made, to the bit."""
    if not torch.equal(made, read):
        raise UserError("what was written gives other logits than what was to be written: export again, and look after this machine's disk and memory")
    return largest_change(floats, read)


def _refuse_overflow(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raise UserError for a weight that the dtype has no number for."""
    most = torch.finfo(dtype).max
    for name, weight in model.named_parameters():
        if (largest := weight.abs().max().item()) > most:
            held = str(dtype).removeprefix("torch.")
            raise UserError(f"{name} has weights up to {largest:.3g}, beyond what {held} holds ({most:.5g}): choose --dtype bfloat16 or float32")


if __name__ == "__main__":
    sys.exit(main())
