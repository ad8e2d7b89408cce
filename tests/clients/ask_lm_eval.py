"""lm-eval's local-completions: log-likelihoods by echo over token ids, and answers up to a stop, of a task out of a file."""

import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
wanted = json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))
folder = Path(tempfile.mkdtemp())
os.environ["HF_HOME"] = str(folder / "cache")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

rows = folder / "rows.json"
rows.write_text("\n".join(json.dumps({"question": q, "choices": c, "target": 0}) for q, c in wanted["judged"]), encoding="utf-8")
common = {
    "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}, "test_split": "test", "doc_to_text": "{{question}}",
    "target_delimiter": "", "metadata": {"version": 1},
}  # fmt: skip
judged = {**common, "task": "judged", "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "target"}
written = {
    **common, "task": "written", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": [wanted["stop"]], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "bypass"}],
}  # fmt: skip
for task in (judged, written):
    (folder / f"{task['task']}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML

where = {"base_url": f"{os.environ['BASE_URL']}/completions", "model": os.environ["MODEL"], "tokenizer": os.environ["FOLDER"], "tokenizer_backend": "huggingface"}
found = lm_eval.simple_evaluate(
    model="local-completions", model_args={**where, "num_concurrent": 1, "max_retries": 1}, batch_size=2, tasks=["judged", "written"],
    task_manager=TaskManager(include_path=str(folder), include_defaults=False), log_samples=True, bootstrap_iters=0,
)  # fmt: skip

assert len(found["samples"]["judged"]) == len(wanted["scores"])
for sample in found["samples"]["judged"]:
    heard, (logprobs, greedy) = sample["filtered_resps"], wanted["scores"][sample["doc_id"]]
    assert all(abs(float(mine[0]) - theirs) < 2e-3 for mine, theirs in zip(heard, logprobs, strict=True)), (heard, logprobs)
    assert [str(each[1]) == "True" for each in heard] == greedy, (heard, greedy)
texts = [sample["filtered_resps"][0] for sample in found["samples"]["written"]]
assert texts == wanted["until_stop"], (texts, wanted["until_stop"])
