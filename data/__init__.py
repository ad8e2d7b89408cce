"""Records to token ids and labels. Nothing is imported before it is asked for."""

import importlib
from typing import Any

_HOMES = {
    "Dialogue": "formats", "Text": "formats", "to_example": "formats",
    "RankedPreference": "preferences", "UnpairedPreference": "preferences", "PromptExample": "preferences",
    "PREFERENCE_SHAPES": "preferences", "UNPAIRED_SHAPES": "preferences", "PROMPT_SHAPES": "preferences",
    "prepare_preferences": "preference_rows", "prepare_unpaired": "preference_rows", "prepare_prompts": "preference_rows", "preference_pairs": "preference_rows",
    "read": "files.sources", "mix": "files.sources",
    "set_chat_template": "chat", "prompt_text": "chat", "prompt_ids": "chat", "text_ids": "chat", "end_of_turn_ids": "chat",
    "IGNORE_INDEX": "labels", "Counts": "labels", "prepare": "labels", "stream_rows": "labels",
    "pack": "packing", "pack_window": "packing", "collate": "packing", "collate_padded": "packing",
    "Labeller": "labels", "Accounting": "accounting", "PreferenceCounts": "preference_rows",
    "form_preferences": "form_pairs", "form_reward": "form_pairs", "demonstrations": "form_pairs",
    "read_json_lines": "json_text", "sample_path": "sample_data", "sample_names": "sample_data",
    "read_documents": "text.documents", "token_store": "text.store", "causal_rows": "text.rows", "masked_rows": "text.rows", "span_rows": "text.rows",
    "SpanCorruption": "text.span_corruption", "SpanOptions": "text.span_corruption",
    "train_tokenizer": "text.tokenizer_training", "TokenizerSettings": "text.tokenizer_training",
    "Masking": "text.corruption", "MaskingOptions": "text.corruption",
    "source_ids": "seq2seq.encoding", "target_ids": "seq2seq.encoding", "set_languages": "seq2seq.languages", "language_ids": "seq2seq.languages",
    "seq2seq_shapes": "seq2seq.records", "Exchange": "seq2seq.records", "Seq2SeqLabeller": "seq2seq.rows", "seq2seq_rows": "seq2seq.rows",
    "render_tasks": "tasks.forms", "parse_tasks": "tasks.forms", "TaskResult": "tasks.forms",
    "task_dialogues": "tasks.layouts", "task_record": "tasks.records", "Task": "tasks.records", "TaskRecord": "tasks.records",
    "prepared_rows": "prepared.store", "PreparedRows": "prepared.rows",
    "group_triplets": "tasks.triplets", "task_triplets": "tasks.triplets",
    "UserError": "errors",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
