"""seodang generate asking servers: what a Seodang server answers is what the model answers here, and a run that ends in any way is gone on with."""

import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from live_server import behind_a_socket

from seodang.infer import LiveEngine, load
from seodang.infer.remote import connection
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served
from seodang.recipes.generate import main
from seodang.recipes.options import known

QUESTIONS = ["abc", "Say hi", "한국", "x y z", "", "abc abc"]
GREEDY = ["--temperature", "0", "--max_new_tokens", "6"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text or "-"}) + "\n" for text in QUESTIONS), encoding="utf-8")
    return str(path)


@contextmanager
def serving(folder):
    """A Seodang server of a checkpoint, in a thread; yields its address."""
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    with LiveEngine(model, tokenizer, max_rows=8) as engine, behind_a_socket(build_app(Served(engine, "school/pupil")), engine) as address:
        yield f"{address}/v1"


ALIKE = {
    "chat": GREEDY, "raw": [*GREEDY, "--raw"], "drawn, each by its seed": ["--temperature", "0.8", "--seed", "7", "--max_new_tokens", "6"],
    "beams": ["--num_beams", "3", "--num_return_sequences", "2", "--max_new_tokens", "5"], "what it begins with": [*GREEDY, "--forced_text", "1=so", "--stop_regex", "q"],
    "a schema": [*GREEDY, "--json_schema", '{"enum": ["a", "b"]}'],
}  # fmt: skip


def test_a_seodang_server_gives_the_file_that_the_model_gives_here(base, prompts, tmp_path, capsys):
    with serving(base) as url:
        for name, options in ALIKE.items():
            here, there = tmp_path / f"here {name}.jsonl", tmp_path / f"there {name}.jsonl"
            assert main([str(base), prompts, "--output", str(here), *options, "--dtype", "float32", "--device", "cpu"]) == 0
            assert main(["default", prompts, "--output", str(there), *options, "--backend", "openai", "--base_url", url, "--concurrency", "3"]) == 0
            mine, theirs = lines(here), lines(there)
            assert [[*line] for line in theirs] == [[*line] for line in mine]  # the same keys in the same order
            for key in ("line", "prompt", "choice", "text", "finish_reason", "prompt_length", "error"):
                if not (key == "finish_reason" and "so" in str(options)):  # whether it ended by itself or by a stop is not told there
                    assert [line[key] for line in theirs] == [line[key] for line in mine], (name, key)
            if "--seed" in options:
                assert [line["seed"] for line in theirs] == [line["seed"] for line in mine] == [*range(7, 13)]
        assert "school/pupil at http://" in capsys.readouterr().err

        here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
        assert main([str(base), prompts, "--output", str(here), *GREEDY, "--logprobs", "2", "--dtype", "float32", "--device", "cpu"]) == 0
        assert main(["default", prompts, "--output", str(there), *GREEDY, "--logprobs", "2", "--backend", "openai", "--base_url", url]) == 0
        for mine, theirs in zip(lines(here), lines(there), strict=True):
            assert theirs["logprobs"] is None and len(theirs["top_logprobs"]) == len(mine["top_logprobs"]) - (mine["finish_reason"] == "eos")
            for a, b in zip(mine["top_logprobs"], theirs["top_logprobs"]):
                assert b["logprob"] == pytest.approx(a["logprob"], abs=1e-5) and b["bytes"] == a["bytes"] and len(b["top_logprobs"]) == 2 and b["id"] is None

        capsys.readouterr()
        assert main(["default", "abc", *GREEDY, "--logprobs", "1", "--backend", "openai", "--base_url", url]) == 0
        said, heading, first, *_ = capsys.readouterr().out.splitlines()
        assert said == mine_of(tmp_path) and heading == "answer: log-probabilities by the model alone" and first.count("  ") and "|" in first
        assert main(["teacher", "hi", *GREEDY, "--backend", "openai", "--base_url", url]) == 2
        assert "it has no model 'teacher': it has school/pupil" in capsys.readouterr().err


def mine_of(folder) -> str:
    """What was answered to the first prompt."""
    return lines(folder / "here.jsonl")[0]["text"]


def remote(server, *more) -> list[str]:
    return ["--backend", "openai", "--base_url", server.base_url, *more]


def test_errors_stand_in_their_place_and_are_asked_again_by_the_next_run_alone(scripted_server, prompts, tmp_path, capsys):
    bad = {"Say hi", "x y z"}

    def script(body):
        text = body["messages"][0]["content"]
        return (400, {"error": {"message": f"no {text}"}}) if text in bad else scripted_server.said(f"re {text}")

    server, output = scripted_server(script), tmp_path / "answers.jsonl"
    command = ["pupil", prompts, "--output", str(output), *remote(server)]
    assert main(command) == 1
    assert [line["error"] for line in lines(output)] == [None, "HTTP 400: no Say hi", None, "HTTP 400: no x y z", None, None]
    assert capsys.readouterr().err.splitlines()[-1] == "2 of 6 prompts ended in an error"
    server.asked.clear()
    bad.clear()
    assert main([*command, "--resume"]) == 0
    assert sorted(filter(None, server.prompts)) == ["Say hi", "x y z"]
    assert [line["text"] for line in lines(output)] == [f"re {text or '-'}" for text in QUESTIONS]
    server.asked.clear()
    assert main([*command, "--resume"]) == 0 and not server.asked
    assert "all 6 prompts have their answers in" in capsys.readouterr().err


def test_prompts_that_are_refused_for_good_are_asked_again_and_no_sign_of_the_server(scripted_server, tmp_path, capsys):
    """However many they are, and whatever was asked before them."""
    output, prompts = tmp_path / "answers.jsonl", ["good", *["bad"] * 12]
    server = scripted_server(lambda body: (400, {"error": {"message": "no"}}) if body["prompt"] == "bad" else scripted_server.said("Yes."))
    for more in ([], ["--resume"]):
        assert main(["pupil", *prompts, "--raw", "--output", str(output), *remote(server, "--concurrency", "1"), *more]) == 1
        assert capsys.readouterr().err.splitlines()[-1] == "12 of 13 prompts ended in an error"
        assert [line["error"] for line in lines(output)] == [None, *["HTTP 400: no"] * 12]


@pytest.mark.parametrize("order", ["prompts", "finished"])
def test_a_server_that_dies_is_told_of_and_what_is_done_is_kept(scripted_server, tmp_path, capsys, order):
    left, lock = [7], threading.Lock()

    def script(body):
        with lock:
            left[0] -= 1
            return scripted_server.said(body["prompt"].upper()) if left[0] >= 0 else None

    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("".join(f"say {n}\n" for n in range(40)), encoding="utf-8")
    server = scripted_server(script)
    command = ["pupil", str(prompts), "--raw", "--output", str(output), "--order", order, *remote(server, "--concurrency", "1", "--retries", "1")]
    assert main(command) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == f"error: {server.base_url}: it answers no more: RemoteProtocolError: Server disconnected without sending a response."
    assert f"of 40 answers are in {output} (--resume goes on from there)" in told[-2]
    done = {line["prompt"] for line in lines(output) if line["error"] is None}
    assert len(done) == 7
    left[0] = 1000
    server.asked.clear()
    assert main(command) == 2 and "--resume goes on from there" in capsys.readouterr().err and not server.asked
    assert main([*command, "--resume"]) == 0
    assert Counter(server.prompts) == Counter({f"say {n}" for n in range(40)} - done)
    found = lines(output)
    assert sorted(line["line"] for line in found) == [*range(1, 41)] and all(line["text"] == line["prompt"].upper() for line in found)
    assert order == "finished" or [line["line"] for line in found] == [*range(1, 41)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.full) for number in (signal.SIGTERM, signal.SIGINT))])
def test_a_run_that_is_killed_is_gone_on_with_and_no_answer_is_asked_twice(scripted_server, tmp_path, number):
    answered, lock = Counter(), threading.Lock()

    def script(body):
        time.sleep(0.004 * (int(body["prompt"].split()[1]) % 5))  # out of their order
        with lock:
            answered[body["prompt"]] += 1
        return scripted_server.said(body["prompt"].upper())

    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("".join(f"say {n}\n" for n in range(150)), encoding="utf-8")
    server = scripted_server(script)
    command = ["pupil", str(prompts), "--raw", "--output", str(output), *remote(server, "--concurrency", "4")]
    if (child := os.fork()) == 0:
        os._exit(main(command))
    while sum(answered.values()) < 60:
        time.sleep(0.002)
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    before = None
    while before != (before := len(server.asked)):  # what was sent is still read
        time.sleep(0.2)
    done = {json.loads(line)["prompt"] for path in (output, tmp_path / "answers.jsonl.run") for line in path.read_bytes().split(b"\n")[:-1] if b'"text"' in line}
    assert len(done) >= sum(answered.values()) - 12  # those that were on their way, four at a time, or had come and were not taken yet, eight at most
    answered.clear()
    assert main([*command, "--resume"]) == 0
    assert answered == Counter({f"say {n}" for n in range(150)} - done)  # each of the others once
    assert [(line["line"], line["text"]) for line in lines(output)] == [(n + 1, f"SAY {n}") for n in range(150)]


def test_the_key_is_sent_and_stands_nowhere(scripted_server, prompts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    server = scripted_server(lambda body: (400, {"error": {"message": "hush hush, from-the-environment"}}))
    for key, more in (("from-the-environment", []), ("hush", ["--api_key", "hush"])):
        server.asked.clear()
        assert main(["pupil", prompts, "--output", str(tmp_path / f"{len(more)}.jsonl"), *remote(server, *more)]) == 1
        assert {headers["Authorization"] for *_, headers in server.asked} == {f"Bearer {key}"}
        told = capsys.readouterr()
        for text in (told.out, told.err, *(path.read_text(encoding="utf-8") for path in tmp_path.iterdir() if path.name.startswith(f"{len(more)}."))):
            assert key not in text


REFUSED = [
    (["--num_beams", "2"], "the strategy 'beam' has no word in OpenAI's protocol"), (["--prompt_logprobs"], "prompt_logprobs come from --backend seodang alone"),
    (["--verbose"], "--verbose is for --backend seodang, and openai answers"), (["--batch_size", "4"], "--batch_size is for --backend seodang, and openai answers: leave it out"), (["--adapter", "x"], "--adapter is for --backend seodang"),
    (["--checkpoint_settings", "false"], "--checkpoint_settings is for --backend seodang and vllm, and openai answers"), (["--vllm_args=--enforce-eager"], "--vllm_args is for --backend vllm"),
    (["--concurrency", "0"], "concurrency must be at least 1, got 0"), (["--retries", "-1"], "retries must be at least 0"), (["--request_timeout", "0"], "request_timeout must be above 0"),
    (["--logit_bias", "yes=2.5"], "logit_bias has 'yes', and a server is told ids alone"), (["--top_p", "7"], "top_p must be in (0, 1], got 7.0"), (["--assistant_model", "small"], "assistant_model"),
    (["--resume"], "resume says what is written into a file: give --output too"), (["--backend", "openAI"], "backend must be seodang, vllm, openai or ray, got 'openAI'"),
    (["--backend", "seodang"], "--base_url is for --backend openai, and seodang answers: leave it out"), (["--base_url", "localhost:1"], "base_url must be an address as http://"),
]  # fmt: skip


@pytest.mark.parametrize("options, message", REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_what_cannot_be_asked_is_refused_before_anything_is(scripted_server, capsys, options, message):
    server = scripted_server()
    assert main(["pupil", "hi", *remote(server), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not any(body for _, body, _ in server.asked)


def test_a_name_of_a_servers_model_is_none_of_a_folder_or_of_the_hub(scripted_server, capsys):
    server = scripted_server()
    server.models = [{"id": "a:b c"}]
    known.refuse("generate", ["a:b c", "hi", *remote(server)])
    known.refuse("generate", ["a:b c", "hi", "--base_url", server.base_url])  # whoever forgot --backend is told that
    assert main(["a:b c", "hi", *remote(server)]) == 0
    assert capsys.readouterr().out == "Yes.\n"


def test_what_is_not_installed_is_named_with_what_brings_it(scripted_server, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    assert main(["pupil", "hi", *remote(scripted_server())]) == 2
    assert "asking a server needs httpx2, which is not installed: pip install 'seodang[remote]'" in capsys.readouterr().err


def test_our_own_model_goes_on_too_and_computes_no_answer_twice(base, prompts, tmp_path, monkeypatch, capsys):
    from seodang.infer.engine.batch import Batch

    output, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    options = ["--temperature", "0.8", "--seed", "3", "--max_new_tokens", "8", "--batch_size", "2", "--dtype", "float32", "--device", "cpu"]
    assert main([str(base), prompts, "--output", str(whole), *options]) == 0
    run, passes = Batch.run, []

    def run_until_stopped(batch):
        passes.append(None)
        if len(passes) == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        run(batch)

    monkeypatch.setattr(Batch, "run", run_until_stopped)
    assert main([str(base), prompts, "--output", str(output), *options]) == 143
    monkeypatch.undo()
    done = len(lines(output))
    assert 0 < done < len(QUESTIONS)
    assert main([str(base), prompts, "--output", str(output), *options, "--resume"]) == 0
    assert lines(output) == lines(whole)
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    assert main([str(base), "hi", "--output", str(tmp_path / "templated.jsonl"), *options, "--chat_template", str(template)]) == 0
    template.write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert main([str(base), "hi", "--output", str(tmp_path / "templated.jsonl"), *options, "--chat_template", str(template), "--resume"]) == 2
    assert "has answers to a chat_template that says " in capsys.readouterr().err
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda *args, **how: pytest.fail("loaded a model"))
    assert main([str(base), prompts, "--output", str(output), *options, "--resume"]) == 0
    for changed, message in ((["--seed", "4"], "--seed 3, now 4"), (["--dtype", "bfloat16"], "--dtype float32, now bfloat16")):
        assert main([str(base), prompts, "--output", str(output), *options, *changed, "--resume"]) == 2
        assert message in capsys.readouterr().err
    (base / "config.json").touch()
    assert main([str(base), prompts, "--output", str(output), *options, "--resume"]) == 2
    assert "a model whose files are" in capsys.readouterr().err


def test_a_pipe_is_written_to_and_not_gone_on_with(scripted_server, tmp_path, capsys):
    pipe, server = tmp_path / "pipe", scripted_server()
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.extend(pipe.read_text(encoding="utf-8").splitlines()))
    reader.start()
    assert main(["pupil", "hi", "you", "--output", str(pipe), *remote(server)]) == 0
    reader.join()
    assert [json.loads(line)["text"] for line in read] == ["Yes."] * 2 and [*tmp_path.iterdir()] == [pipe]
    reader = threading.Thread(target=lambda: pipe.open("rb").close())
    reader.start()
    assert main(["pupil", *["hi"] * 40, "--output", str(pipe), *remote(server)]) == 2
    reader.join()
    assert f"error: {pipe} cannot be written any further (Broken pipe): name another --output" in capsys.readouterr().err
    for place in (str(pipe), "/dev/stdout"):
        assert main(["pupil", "hi", "--output", place, "--resume", *remote(server)]) == 2
        assert f"resume: {place} holds nothing that could be gone on with" in capsys.readouterr().err
