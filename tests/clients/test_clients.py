"""Unchanged clients that others wrote, each in an environment of its own (their pins clash), against `seodang serve`: what they hand their callers is ours."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seodang.data.files.cache_folder import cache_folder
from seodang.infer import SamplingParams, generate, score
from seodang.infer.checkpoint.default_model import default_model

HERE = Path(__file__).parent
CLIENTS = {
    "litellm": ["litellm==1.110.2"],
    "langchain": ["langchain-openai==1.7.4"],
    "llm": ["llm==0.36"],
    "instructor": ["instructor==1.17.0"],
    "lm_eval": ["lm-eval[api]==0.4.13", "transformers==5.23.0"],  # without torch
}
UNREACHABLE = re.compile(r"from versions: none|ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH")
INSTALL, ASK = 900, 300  # seconds
SCHEMA = {
    "type": "object", "required": ["country", "city", "coastal"], "additionalProperties": False,
    "properties": {"country": {"enum": ["Korea", "Japan"]}, "city": {"enum": ["Suwon", "Osaka"]}, "coastal": {"type": "boolean"}},
}  # fmt: skip
PROMPT, QUESTION, STOP = "The three primary colours are", "Which country is the city of Suwon located in?", "."
JUDGED = [("The capital of Korea is", [" Seoul", " Tokyo", " a banana"]), ("Water boils at", [" 100 degrees", " seven o'clock"])]

pytestmark = pytest.mark.full


def environment(name: str, files: list[Path], pins: list[str], command: list[list[str]]) -> Path:
    """A folder of the cache in which the commands were run for these files and pins; the test is skipped where there is no package index."""
    known = hashlib.sha256(repr([sys.version_info[:2], pins, [file.read_bytes() for file in files]]).encode()).hexdigest()[:12]
    folder = cache_folder() / "clients" / f"{name}-{known}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder)
        for each in command:
            done = subprocess.run(each, cwd=folder, capture_output=True, text=True, timeout=INSTALL)
            if done.returncode and UNREACHABLE.search(done.stderr):
                pytest.skip(f"no package index to install {name} from: {done.stderr.strip().splitlines()[-1]}")
            assert done.returncode == 0, done.stderr[-3000:]
        (folder / "ready").touch()
    return folder


def python_of(name: str) -> Path:
    """The interpreter of a client's environment."""
    install = ["venv/bin/python", "-m", "pip", "install", "--quiet", *CLIENTS[name]]
    return environment(name, [], CLIENTS[name], [[sys.executable, "-m", "venv", "venv"], install]) / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with the default model and a template that has tools too."""
    folder = tmp_path_factory.mktemp("taught") / "pupil"
    folder.mkdir()
    for file in default_model().iterdir():
        if file.name not in ("chat_template.jinja", "manifest.json"):  # the manifest is that of the other template
            (folder / file.name).symlink_to(file)
    shutil.copy(HERE / "tools.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture(scope="module")
def base_url(taught):
    """Where `seodang serve` is."""
    command = [sys.executable, "-m", "seodang", "serve", str(taught), "--served_model_name", "pupil", "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        yield next(line for line in process.stdout if line.startswith("serving pupil at ")).split()[3] + "/v1"
        process.terminate()
        assert process.wait(60) == 143


@pytest.fixture(scope="module")
def wanted(_real_model, _tokenizer, taught, tmp_path_factory):
    """A file of what the clients are to be answered, as `generate`, `score` and the model itself say it."""
    asked = [{"role": "user", "content": QUESTION}]

    def said(prompt, **settings) -> str:
        return generate(_real_model, _tokenizer, [prompt], SamplingParams(**{"max_new_tokens": 8, **settings}))[0].text

    with torch.no_grad():
        states = _real_model.model(torch.tensor([_tokenizer(PROMPT)["input_ids"]])).last_hidden_state[0]
    content = {
        "prompt": PROMPT, "question": QUESTION, "schema": SCHEMA, "stop": STOP, "judged": JUDGED,
        "continued": said(PROMPT), "answer": said(asked), "place": json.loads(said(asked, json_schema=SCHEMA, max_new_tokens=60)),
        "embedding": states.mean(dim=0).tolist(),
        "scores": [judged(_real_model, _tokenizer, prompt, answers) for prompt, answers in JUDGED],
        "until_stop": [said(prompt, max_new_tokens=24, stop=[STOP]) for prompt, _ in JUDGED],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("wanted") / "wanted.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def judged(model, tokenizer, prompt: str, answers: list[str]) -> tuple[list[float], list[bool]]:
    """The log-likelihood of each answer behind a prompt, and whether it is what greedy search says."""
    likelihoods = [float(logprobs.sum()) for logprobs in score(model, tokenizer, [prompt] * len(answers), answers)]
    ids = [tokenizer(answer)["input_ids"] for answer in answers]
    greedy = [generate(model, tokenizer, [prompt], SamplingParams(max_new_tokens=len(each), ignore_eos=True))[0].ids == each for each in ids]
    return likelihoods, greedy


def ask(command: list, base_url: str, wanted: Path, taught: Path, folder: Path) -> None:
    """Run a client's script in a folder."""
    where = {"BASE_URL": base_url, "MODEL": "pupil", "WANTED": str(wanted), "FOLDER": str(taught)}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "any"}
    done = subprocess.run([*map(str, command)], cwd=folder, env={**os.environ, **where, **quiet}, capture_output=True, text=True, timeout=ASK)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_python_client_is_answered(name, base_url, wanted, taught, tmp_path):
    ask([python_of(name), HERE / f"ask_{name}.py"], base_url, wanted, taught, tmp_path)


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm here")
def test_a_javascript_client_is_answered(base_url, wanted, taught):
    folder = environment("openai", sorted((HERE / "npm").iterdir()), [], [["npm", "ci", "--no-audit", "--no-fund"]])
    ask(["node", HERE / "ask_openai.mjs"], base_url, wanted, taught, folder)
