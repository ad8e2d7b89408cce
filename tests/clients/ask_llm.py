"""llm: a chat, streamed and whole, its command, a schema, a text continued."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

wanted = json.loads(Path(os.environ["WANTED"]).read_text(encoding="utf-8"))
home = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(home)  # read when llm is imported
entry = {"model_name": os.environ["MODEL"], "api_base": os.environ["BASE_URL"], "supports_schema": True, "supports_tools": True}
entries = [{"model_id": "pupil", **entry}, {"model_id": "pupil-text", "completion": True, **entry}]
(home / "extra-openai-models.yaml").write_text(json.dumps(entries), encoding="utf-8")  # JSON is YAML

import llm  # noqa: E402

pupil, settings = llm.get_model("pupil"), {"temperature": 0, "max_tokens": 8}
for stream in (True, False):
    assert pupil.prompt(wanted["question"], stream=stream, **settings).text() == wanted["answer"]
assert llm.get_model("pupil-text").prompt(wanted["prompt"], **settings).text() == wanted["continued"]
settings["max_tokens"] = 60
assert json.loads(pupil.prompt(wanted["question"], schema=wanted["schema"], **settings).text()) == wanted["place"]

command = [sys.executable, "-m", "llm", "-m", "pupil", "-o", "temperature", "0", "-o", "max_tokens", "8", "--no-log", wanted["question"]]
assert subprocess.check_output(command, text=True, encoding="utf-8").rstrip("\n") == wanted["answer"].rstrip("\n")
