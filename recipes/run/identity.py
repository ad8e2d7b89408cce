"""What a run is known by: the options that decide what it learns. A checkpoint keeps them, and is resumed with the same ones alone."""

import dataclasses
import difflib
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import is_adapter
from seodang.infer.checkpoint.manifest import fingerprint, fingerprint_of, read_manifest
from seodang.infer.kernels.device import choose_dtype
from seodang.train.run.crash_safe import Provenance

# Every option is part of a run's identity but these, each with the reason why another value of it teaches nothing else. An option that a library
# adds is part of it too: a needless refusal shows, a needless silence does not.
FREE = {
    "where things are written, and which of them": """
        output_dir text_cache row_cache save_strategy save_steps save_total_limit save_only_model save_on_each_node enable_jit_checkpoint load_best_model_at_end
        push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        run_name project trackio_space_id trackio_bucket_id trackio_static_space_id""",
    "what is told": """
        logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level log_level_replica disable_tqdm report_to
        include_num_input_tokens_seen skip_memory_metrics debug log_completions log_multimodal num_completions_to_print log_unique_prompts
        log_completions_hub_repo dry_run""",
    "when and how it is measured, which leaves training as it is": """
        eval_strategy eval_steps eval_delay eval_on_start eval_samples eval_new_tokens eval_num_beams sample_prompts sample_tokens early_stopping_patience
        per_device_eval_batch_size num_generations_eval eval_draws eval_accumulation_steps eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics prediction_loss_only
        bf16_full_eval fp16_full_eval""",
    "where and in which pieces the same numbers are computed": """
        device use_cpu torch_compile torch_compile_backend torch_compile_mode activation_checkpointing activation_checkpointing_kwargs
        gradient_checkpointing gradient_checkpointing_kwargs activation_offloading use_cache torch_empty_cache_steps full_determinism
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
        dataset_num_proc num_proc ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config
        deepspeed parallelism_config local_rank ds3_gather_for_generation reference_time precompute_ref_log_probs precompute_ref_batch_size
        vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization
        vllm_tensor_parallel_size vllm_enable_sleep_mode""",
    "how it is resumed, or no stage reads it": """
        resume allow_changes resume_from_checkpoint restore_callback_states_from_checkpoint do_train do_eval do_predict remove_unused_columns""",
}
FREE_NAMES = {name for names in FREE.values() for name in names.split()}
# How long the run is: free too where no step's learning rate looks at the end.
LENGTH = {"num_train_epochs", "max_steps", "iterations"}
ENDLESS = {"constant", "constant_with_warmup", "inverse_sqrt"}
# What the checkpoint's weights and optimizer state have in their shapes: no flag makes these fit.
SHAPES = {"lora_r", "lora_targets", "dora", "qlora", "dtype", "optim", "optim_target_modules"}
SHAPES |= {"architecture", "hidden_size", "layers", "key_value_heads", "intermediate", "tie_embeddings", "vocab_size"}  # of a model from nothing
ADDED = {"rows": "the records themselves", "processes": "the number of processes"}  # no options, and yet what they say decides the run

ALL = "all"  # for --allow_changes


def options_of(*parsed: Any, section: str = "") -> dict[str, Any]:
    """The options of some dataclasses that are part of a run's identity, as JSON holds them; "ppo." as a section goes before their names."""
    found = {section + field.name: getattr(each, field.name) for each in parsed for field in dataclasses.fields(each) if field.name not in FREE_NAMES}
    return json.loads(json.dumps(found, default=_plain))


def settings_of(*parsed: Any) -> dict[str, Any]:
    """The options of some dataclasses that are part of a run's identity, were written down, and differ from what holds where nothing is."""
    given = set().union(*(getattr(each, "given", None) or () for each in parsed))  # one that was replaced by a copy has it no more
    found, fields = options_of(*parsed), [field for each in parsed for field in dataclasses.fields(each)]
    plain = {field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory() for field in fields}
    return {name: value for name, value in found.items() if name in given and value != json.loads(json.dumps(plain[name], default=_plain))}


def origin_of(*parsed: Any, rows: Iterable[Mapping[str, Any]], paradigm: str = "causal") -> Provenance:
    """What a run is known by, from its options, a ModelOptions and at last a TrainingArguments among them, and from its rows."""
    args: TrainingArguments = parsed[-1]
    options = options_of(*parsed)
    content = None if isinstance(rows, IterableDataset) else content_of(rows)
    options |= {**environment_of(options["dtype"], args), "rows": content}
    return Provenance(options["model"] or "", content or fingerprint(json.dumps(options["data"])), paradigm, options, settings_of(*parsed))


def environment_of(dtype: str, args: TrainingArguments) -> dict[str, Any]:
    """The dtype that is computed in, which "auto" leaves to the machine, and the number of processes."""
    return {"dtype": str(choose_dtype(dtype, args.device)[0]).removeprefix("torch."), "processes": args.world_size}


def content_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """A fingerprint of what rows hold, whatever file it came from; rows that are made when they are asked for know their own."""
    if (known := getattr(rows, "content", None)) is not None:
        return fingerprint(known)
    kept = getattr(rows, "kept", None)  # rows on disk know what took long to find
    return _content_of(rows) if kept is None else kept("content", lambda: _content_of(rows))


def _content_of(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = (json.dumps({name: value for name, value in row.items() if name != "where"}, sort_keys=True, default=_plain) for row in rows)
    return fingerprint_of(lines)


def refuse_other_run(resume: Path | None, origin: Provenance, allowed: Sequence[str] | None) -> None:
    """Raise UserError, naming each option with both values, where a checkpoint was trained with other ones than now; `allowed` may differ.

    A checkpoint without its options, an earlier version's, is resumed with `--allow_changes all` alone. Options that only one of the two
    versions of the libraries knows are not compared.
    """
    made = read_manifest(resume) if resume else None
    then = made.get("options") if made else origin.options
    different = changes(then or {}, origin.options)
    if shapes := [name for name in different if name in SHAPES]:
        from_them = f"`seodang export {resume} FOLDER`, then --model FOLDER" if is_adapter(resume) else f"--model {resume}"
        raise UserError(
            f"{resume} was trained with {_told(different, shapes)}: its weights do not fit, and --allow_changes cannot make them; use the same, "
            f"or begin another run from them: {from_them} with another --output_dir"
        )
    refuse_changes(str(resume), then, origin.options, allowed)


def refuse_changes(place: str, then: Mapping[str, Any] | None, now: Mapping[str, Any], allowed: Sequence[str] | None) -> None:
    """Raise UserError where what lies in `place` was trained with other options than now; `then` is None where it does not say with which."""
    allowed = set(allowed or ())
    if unknown := sorted(allowed - now.keys() - {ALL}):
        near = difflib.get_close_matches(unknown[0], [*now, ALL], n=1)
        raise UserError(f"--allow_changes {unknown[0]}: a run is not known by this option" + (f": did you mean {near[0]}?" if near else ""))
    if ALL in allowed:
        return
    if then is None:
        raise UserError(
            f"{place} does not say which options it was trained with, for an earlier version saved it: --allow_changes {ALL} resumes it unchecked "
            "with those of now, another --output_dir starts anew"
        )
    different = changes(then, now)
    if refused := [name for name in different if name not in allowed]:
        raise UserError(
            f"{place} was trained with {_told(different, refused)}: use the same, or another --output_dir, "
            f"or where you mean it --allow_changes {' '.join([*sorted(allowed), *refused])}"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options that both know and that differ, with both values; not the length of a run whose steps do not depend on it."""
    skipped = LENGTH if _endless(then) and _endless(now) else ()
    return {name: (then[name], now[name]) for name in now if name in then and then[name] != now[name] and name not in skipped}


def _endless(options: Mapping[str, Any]) -> bool:
    return options.get("lr_scheduler_type") in ENDLESS and not 0 < (options.get("warmup_steps") or 0) < 1  # a share of all steps


def _told(different: Mapping[str, tuple[Any, Any]], names: Sequence[str]) -> str:
    return "; ".join(f"{ADDED.get(name, '--' + name)} {_short(different[name][0])}, now {_short(different[name][1])}" for name in names)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else text[:297] + "..."


def _plain(value: Any) -> Any:
    """What JSON has no word for: an enumeration's value, a configuration's entries, else its text."""
    if isinstance(value, enum.Enum):
        return value.value
    return value.to_dict() if hasattr(value, "to_dict") else str(value)
