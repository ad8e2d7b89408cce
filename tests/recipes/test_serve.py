"""seodang serve: what is refused before the model is loaded, what the options become, and the command itself from start to SIGTERM."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from peft import LoraConfig, get_peft_model

from seodang.infer import SamplingParams, generate
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.serve import example, main


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: pytest.fail("loaded"))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--port", "70000"], "port must be in [0, 65535], got 70000"), (["--max_rows", "0"], "max_rows must be at least 1, got 0"),
        (["--max-waiting", "0"], "max_waiting must be at least 1, got 0"), (["--cache_gib", "0"], "cache_gib must be above 0, got 0.0"),
        (["--cache_gib", "nan"], "cache_gib must be above 0, got nan"), (["--host", "no.such.host.invalid"], "cannot serve at no.such.host.invalid port 8000"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_refused_before_the_model_is_loaded(no_model, capsys, argv, message):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(no_model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "(Address already in use): give another --host or --port" in capsys.readouterr().err


def test_without_the_libraries_it_says_what_to_install(no_model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: serving needs uvicorn, which is not installed: pip install 'seodang[serve]'\n"


def test_the_options_are_the_engines(fresh_tiny, tiny_tokenizer, monkeypatch, capsys):
    found = []
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (fresh_tiny("t5" if self.model == "b" else "llama"), tiny_tokenizer))
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda served, *how: found.append((served.engine, served.name)))
    given = ["--port", "0", "--max_rows", "3", "--max_waiting", "5", "--cache_gib", "0.5", "--served_model_name", "it's"]
    assert main(["a", *given]) == main(["b", "--port", "0"]) == main(["a", "--port", "0", "--reuse_prefixes", "false"]) == 0
    (first, name), (second, plain), (third, _) = found
    assert (name, first.max_rows, first.max_waiting, first.budget.limit, first.prefix_cache is None) == ("it's", 3, 5, 1 << 29, False)
    assert (plain, second.prefix_cache, third.prefix_cache, second.max_rows) == ("b", None, None, 64)
    printed = capsys.readouterr()
    assert "KV cache up to 537 MB" in printed.out and "serving it's at http://127.0.0.1:" in printed.out
    shown = "/v1/chat/completions" if tiny_tokenizer.chat_template else "/v1/completions"  # what the model was taught to answer
    assert printed.out.count(f"{shown} -H") == 3
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None if tiny_tokenizer.chat_template else "{{ messages[0].content }}")
    assert main(["a", "--port", "0"]) == 0 and f"{shown} -H" not in capsys.readouterr().out
    assert printed.err == "a t5 model cannot go on from another's beginning: prefixes are not reused\n"
    assert not any(engine._thread.is_alive() for engine, _ in found)


def test_adapters_are_named_with_their_folders(fresh_tiny, tiny_tokenizer, monkeypatch, capsys, tmp_path):
    model, found = fresh_tiny("llama"), []
    get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path / "red=1")
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (model, tiny_tokenizer))
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda served, *how: found.append((served.models, served.adapter_folder)))
    folder = str(tmp_path / "red=1")  # all behind the first sign is the folder
    assert main(["a", "--port", "0", "--adapters", f"red={folder}", f"blue={folder}", "--adapter_folder", str(tmp_path)]) == 0
    assert found == [(["a", "red", "blue"], tmp_path)]
    for given, said in {
        ("--adapters", folder[:-2]): "adapters must be NAME=FOLDER each", ("--adapters", "red="): "NAME=FOLDER", ("--adapter_folder", "none"): "none is no folder",
        ("--adapters", f"a={folder}"): "'a' has the name of the model", ("--adapters", f"b={folder}", f"b={folder}"): "an adapter 'b' already",
        ("--adapters", f"b={tmp_path}"): "holds no adapter",
    }.items():  # fmt: skip
        assert main(["a", "--port", "0", *given]) == 2
        assert said in capsys.readouterr().err
    assert len(found) == 1


def test_the_command_that_is_shown_is_one_that_a_shell_reads():
    words = subprocess.check_output(["sh", "-c", example("http://x", "it's").replace("curl", "printf '%s\\n'", 1)], text=True).splitlines()
    assert words[1] == "http://x/v1/completions" and json.loads(words[-1])["model"] == "it's"


def test_the_command_streams_real_text_and_ends_at_sigterm(real_model, tokenizer):
    command = [sys.executable, "-m", "seodang", "serve", "--port", "0", "--dtype", "float32", "--cache_gib", "0.2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        address = next(line for line in process.stdout if line.startswith("serving default at ")).split()[3]
        body = {"model": "default", "prompt": "The capital of Korea is", "max_tokens": 8, "temperature": 0, "stream": True}
        asked = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as response:
            *events, done = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
        with urllib.request.urlopen(f"{address}/health", timeout=60) as response:
            assert json.load(response)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=60)[1]
    [wanted] = generate(real_model, tokenizer, [body["prompt"]], SamplingParams(max_new_tokens=8))
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == wanted.text and "Seoul" in wanted.text
    assert done == "[DONE]" and process.returncode == 143 and errors.endswith("terminated\n") and "Traceback" not in errors
    logged = [json.loads(line[line.index("{") :]) for line in errors.splitlines() if "{" in line]
    assert [(line["path"], line["status"], line.get("completion_tokens")) for line in logged] == [("/v1/completions", 200, 8), ("/health", 200, None)]
    assert "capital" not in errors and "Seoul" not in errors


def test_an_encoder_takes_no_options_of_models_that_speak(encoder_folder, monkeypatch, capsys):
    found = []
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda served, *how: found.append((served.about["kind"], served.models)))
    asked = [str(encoder_folder), "--port", "0", "--dtype", "float32", "--device", "cpu"]
    assert main([*asked, "--served_model_name", "small"]) == 0 and found == [("encoder", ["small"])]
    assert "vectors of 32 numbers (mean pooling) of texts of up to 32 tokens" in (out := capsys.readouterr().out) and "/v1/embeddings" in out
    for option, value in (("weights", "int8"), ("kv_cache_dtype", "int8"), ("adapters", f"red={encoder_folder}")):
        assert main([*asked, f"--{option}", value]) == 2
        assert f"{option} is for models that speak" in capsys.readouterr().err
