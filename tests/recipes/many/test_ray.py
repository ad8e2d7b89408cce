"""seodang generate --backend ray with Ray itself, two workers on this machine: killed, stopped, and given again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from seodang.recipes.generate import main
from seodang.recipes.many import ray_pool
from seodang.recipes.many.answering import ManyRun
from seodang.recipes.many.ray_pool import RayPool, Resources
from seodang.recipes.many.worker import Answered
from seodang.recipes.prompts.prompt_files import Reading

pytestmark = pytest.mark.full
ray = pytest.importorskip("ray")
HOW = ["--raw", "--max_new_tokens", "200", "--ignore_eos", "--batch_size", "1", "--device", "cpu", "--dtype", "float32", "--temperature", "1.0", "--seed", "5"]
MANY = ["--backend", "ray", "--workers", "2", "--shard_rows", "4", "--worker_cpus", "1"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"so be it {n}"}) + "\n" for n in range(40)), encoding="utf-8")
    return path


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes of the workers of a driver, or of whatever it has started."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Process"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(there, seconds: float = 180):
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return found


def test_two_workers_give_the_greedy_texts_of_one_process(base, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = [str(base), "--prompts", str(prompts), *HOW[:-4], "--do_sample", "false", "--seed", "0"]
    assert main([*how, "--output", "one.jsonl"]) == 0
    assert main([*how, "--output", "many.jsonl", *MANY]) == 0
    assert Path("many.jsonl").read_bytes() == Path("one.jsonl").read_bytes()


def test_a_worker_and_the_command_are_killed_and_each_record_is_there_once(base, prompts, tmp_path):
    """The worker's shard is answered by another; the command, given again, goes on from the shards that are there."""
    command = [sys.executable, "-m", "seodang", "generate", str(base), "--prompts", str(prompts), *HOW]
    assert main([*command[4:], "--output", str(tmp_path / "one.jsonl")]) == 0
    many, shards = [*command, "--output", str(tmp_path / "many.jsonl"), *MANY], tmp_path / "many.jsonl.shards"
    answered = lambda: sorted(shards.glob("answers-*.jsonl"))
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(many, stdout=log, stderr=log)
    until(answered)
    killed = workers_of(driver.pid)[0]
    killed.kill()
    count = len(answered())
    until(lambda: len(answered()) >= count + 3)
    driver.kill()
    driver.wait()
    before = {path.name: path.stat().st_mtime_ns for path in answered()}
    assert 4 <= len(before) < 10 and not (tmp_path / "many.jsonl").exists()
    kept = shards / "answers-00000.jsonl"
    kept = kept.read_bytes() if kept.exists() else b""
    done = subprocess.run(many, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert (tmp_path / "many.jsonl").read_bytes().startswith(kept)


class Stub:
    """Answers at once; its process is killed, or stops, at some prompts."""

    said = ""

    def check(self, first: int, lines: bytes) -> None:
        pass

    def answer(self, first: int, lines: bytes) -> Answered:
        told = []
        for record in map(json.loads, lines.splitlines()):
            text = record["prompt"][0]["content"]
            if text in ("die", "stop"):
                print(f"it was asked to {text}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL if text == "die" else signal.SIGSTOP)
            told.append(json.dumps({"line": record["number"], "choice": 0, "text": text.upper(), "error": None}).encode() + b"\n")
        return Answered(b"".join(told), len(told))


@pytest.mark.parametrize(("word", "said"), [("die", "ended ("), ("stop", "has not answered for 4 seconds")])
def test_a_worker_that_ends_again_and_again_is_told_with_its_records(word, said, tmp_path, monkeypatch, capsys):
    """The others are answered; SIGKILL is seen at once, a process that is stopped by its silence."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray_pool, "SILENT_SECONDS", 4.0)
    monkeypatch.setattr(ray_pool, "PING_SECONDS", 1.0)
    prompts, output = tmp_path / "prompts.txt", tmp_path / "many.jsonl"
    words = [f"word {n}" for n in range(12)]
    prompts.write_text("\n".join([*words[:5], word, *words[6:]]) + "\n", encoding="utf-8")
    options = SimpleNamespace(prompts=[str(prompts)], output=str(output), resume=None, raw=False, references=False, max_source_length=None,
                              reading=lambda: {"encoding": None, "columns": None})  # fmt: skip
    run = lambda: ManyRun(options, Reading(), 3, 1, {"backend": "stub"}, lambda *_: RayPool(Stub, 2, Resources(cpus=1))).through()
    assert run() == 1
    err = capsys.readouterr().err
    assert "error: shard 1, lines 4 to 6 of prompts.txt, cannot be answered: worker process" in err and said in err
    assert f"the last it said: it was asked to {word}" in err and "9 of 12 prompts have their answers" in err
    assert not output.exists() and len([*output.with_name("many.jsonl.shards").glob("answers-*.jsonl")]) == 3


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", "no Ray cluster answers there (Connection refused)"), ("here:there", "must be HOST:PORT or auto")])
def test_an_address_without_a_cluster_is_an_error_at_once(address, said, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    assert main([str(base), "say so", "--output", "out.jsonl", *MANY, "--ray_address", address]) == 2
    assert said in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["base"]
    assert time.monotonic() - begun < 30
