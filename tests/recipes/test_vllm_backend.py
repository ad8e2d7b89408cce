"""vLLM as a process that is started, asked and gone again; its place is taken by a few lines that listen as it does."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from many_pools import InProcess

from seodang.infer.remote import vllm
from seodang.recipes.generate import main
from seodang.recipes.many import answering

FAKE = """
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.say(200 if self.path == "/health" else 404, b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.say(401, b"{}")
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(json.dumps({"body": body, "argv": sys.argv[1:], "pid": os.getpid()}) + "\\n")
        time.sleep(float(os.environ.get("SLOW", 0)))
        text = body["messages"][-1]["content"].upper()
        if text == "DIE":
            print("it died of this", file=sys.stderr, flush=True)
            os._exit(1)
        told = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop", "stop_reason": None, "token_ids": [1, 2]}]}
        self.say(200, json.dumps({**told, "usage": {"prompt_tokens": 4, "completion_tokens": 2}}).encode())

    def say(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

if __name__ == "__main__":
    if "BROKEN" in os.environ:
        sys.exit("ValueError: no room for it\\n" + os.environ["BROKEN"])
    if "STUBBORN" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """An environment that has vLLM, of a kind; what it was asked stands in the file that is returned."""
    for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli"):
        (tmp_path / "library" / folder).mkdir(parents=True)
        (tmp_path / "library" / folder / "__init__.py").touch()
    (tmp_path / "library" / "vllm" / "entrypoints" / "cli" / "main.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    return tmp_path / "seen"


def seen_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def is_gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def command(base, tmp_path, *more) -> list[str]:
    return [str(base), "one", "two", "--output", str(tmp_path / "answers.jsonl"), "--backend", "vllm", "--vllm_python", sys.executable, *more]


def test_it_is_started_with_what_holds_asked_by_the_settings_and_stopped(base, fake, tmp_path, capsys):
    config = json.loads((base / "generation_config.json").read_text(encoding="utf-8")) | {"do_sample": True, "temperature": 0.6, "top_k": 20}
    (base / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(command(base, tmp_path, "--token_ids", "--dtype", "float32", "--seed", "5", "--vllm_args=--max-model-len 64", "--concurrency", "1")) == 0
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["text"], line["ids"], line["prompt_length"], line["finish_reason"], line["seed"]) for line in found] == [
        ("ONE", [1, 2], 4, "eos", 5), ("TWO", [1, 2], 4, "eos", 6),
    ]  # fmt: skip
    first, second = seen_in(fake)
    settings = {"max_tokens": 256, "temperature": 0.6, "top_k": 20, "return_token_ids": True}
    assert first["body"] == {"model": str(base), "messages": [{"role": "user", "content": "one"}], "seed": 5, **settings} and second["body"]["seed"] == 6
    told = first["argv"]
    assert told[:2] == ["serve", str(base)] and told[-4:] == ["--dtype", "float32", "--max-model-len", "64"]
    assert told[told.index("--generation-config") + 1] == "vllm" and told[told.index("--host") + 1] == "127.0.0.1"
    assert is_gone(first["pid"])


def test_many_workers_start_one_each_and_ask_it_their_shards(base, fake, tmp_path, monkeypatch):
    """`--backend ray --ray_engine vllm`, with workers in this process: the file is that of one vLLM, and each prompt was asked once."""
    pools = []
    monkeypatch.setattr(answering, "library", lambda: None)
    monkeypatch.setattr(answering, "RayPool", lambda opener, workers, *_: pools.append(InProcess(opener, workers)) or pools[-1])
    several = [str(base), *"one two three four five".split(), *command(base, tmp_path)[3:], "--seed", "3"]
    assert main(several) == 0
    one, single = (tmp_path / "answers.jsonl").read_bytes(), seen_in(fake)
    fake.unlink()
    place = several.index("vllm")
    many = [*several[:place], "ray", "--ray_engine", *several[place:], "--workers", "2", "--shard_rows", "2", "--resume", "false"]
    assert main(many) == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == one
    asked = lambda seen: sorted((entry["body"]["messages"][0]["content"], entry["body"]["seed"]) for entry in seen)
    assert asked(seen_in(fake)) == asked(single) and len({entry["pid"] for entry in seen_in(fake)}) == 2
    assert [call for _, call, _ in pools[0].calls if call != "open"] == ["answer"] * 3  # what a server would refuse is not known before


def test_many_workers_need_an_interpreter_with_vllm(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answering, "library", lambda: None)
    many = ["--backend", "ray", "--ray_engine", "vllm", "--vllm_python", sys.executable, "--output", str(tmp_path / "answers.jsonl")]
    assert main([str(base), "one", *many]) == 2
    assert "has no vLLM, which needs an environment of its own" in capsys.readouterr().err


def test_without_settings_the_likeliest_tokens_are_asked_for_as_here(base, fake, tmp_path):
    assert main(command(base, tmp_path)) == 0
    assert {(entry["body"]["temperature"], entry["body"]["max_tokens"]) for entry in seen_in(fake)} == {(0.0, 256)}


def test_what_it_said_is_told_where_it_does_not_start(base, fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BROKEN", "give it more")
    assert main(command(base, tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: vLLM did not start; it said: ValueError: no room for it give it more"


def test_one_that_ends_in_between_is_told_of_with_what_it_said_and_not_waited_for(base, fake, tmp_path, capsys):
    options = command(base, tmp_path, "--concurrency", "1")
    options.insert(2, "die")
    assert main(options) == 1
    *_, counted, died, said, told = capsys.readouterr().err.splitlines()
    assert (died, said) == ("vLLM has ended:", "it died of this") and counted.startswith("1 of 3 answers are in ") and told.startswith("error: vLLM: it has ended (")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_however_we_end_it_ends_too_and_nothing_is_asked_twice(base, fake, tmp_path, monkeypatch, number, code):
    monkeypatch.setenv("SLOW", "0.3")
    if number == signal.SIGKILL:
        monkeypatch.setenv("STUBBORN", "1")
        monkeypatch.setattr(vllm, "UNDER_US", vllm.UNDER_US.replace(f"sleep({vllm.STOP_SECONDS})", "sleep(0.2)"))
    options = command(base, tmp_path, "--concurrency", "1")
    if (child := os.fork()) == 0:
        os._exit(main(options))
    while len(seen := seen_in(fake)) < 2:
        time.sleep(0.01)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert is_gone(seen[0]["pid"])
    monkeypatch.setenv("SLOW", "0")
    monkeypatch.delenv("STUBBORN", raising=False)
    assert main([*options, "--resume"]) == 0
    assert [entry["body"]["messages"][0]["content"] for entry in seen_in(fake)] == ["one", "two", "two"]  # the second was on its way


def test_what_cannot_be_started_is_refused_before_anything_is(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}), encoding="utf-8")
    assert main(command(tmp_path / "adapter", tmp_path)) == 2
    assert "adapter is an adapter, and vLLM is started with whole models: merge it" in capsys.readouterr().err.splitlines()[-1]
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"diffusion": {"mask_token_id": 3}}), encoding="utf-8")
    assert main(command(base, tmp_path)) == 2
    assert "base speaks by filling in masks, which vLLM does not: answer with --backend seodang" in capsys.readouterr().err.splitlines()[-1]
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for more, message in (
        ([], "has no vLLM, which needs an environment of its own: make one (python -m venv ENV && ENV/bin/pip install vllm) and name its interpreter by --vllm_python"),
        (["--vllm_python", "/nowhere/python"], "vllm_python /nowhere/python cannot be run (No such file or directory)"),
        (["--vllm_args=--port=3 --x"], "vllm_args has --port, which is said here: leave it out"), (["--vllm_args='"], "No closing quotation"),
        (["--num_beams", "2"], "the strategy 'beam' has no word"), (["--base_url", "http://x/v1"], "--base_url is for --backend openai, and vllm answers"),
    ):  # fmt: skip
        assert main([*command(base, tmp_path), *more]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
