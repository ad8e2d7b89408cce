"""Adapters over HTTP: a request's `model` chooses one; an operator's route loads them, from below one folder alone."""

import copy
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from peft import PeftModel

from seodang.infer import SamplingParams, embed, generate
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.adapters import MOST
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

GREEDY = {"prompt": "abc", "max_tokens": 6, "temperature": 0}


@pytest.fixture
def model(double):
    return double()


@pytest.fixture
def folders(model, write_adapter, tmp_path):
    """Two adapters below a folder of the operator's, and one beside it."""
    for seed, name in enumerate(("own/red", "own/blue", "other/green")):
        write_adapter(model, tmp_path / name, seed)
    return tmp_path


@pytest.fixture
def open_client(model, tiny_tokenizer):
    """`open_client(adapters, **served)`: the engine and a client of a server of the model, with these folders as adapters by name."""

    def opened(adapters=(), **how):
        engine = LiveEngine(model, tiny_tokenizer)
        for name, folder in dict(adapters).items():
            engine.load_adapter(name, folder)
        return engine, TestClient(build_app(Served(engine, "base", **how)), raise_server_exceptions=False)

    return opened


def test_the_model_of_a_request_chooses_the_adapter(open_client, model, tiny_tokenizer, folders):
    _, opened = open_client({"red": folders / "own/red"})
    merged = PeftModel.from_pretrained(copy.deepcopy(model), folders / "own/red").merge_and_unload()
    said = {"red": generate(merged, tiny_tokenizer, ["abc"], SamplingParams(max_new_tokens=6))[0].text}
    vector = embed(merged, tiny_tokenizer, ["abc"])[0].tolist()
    with opened as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [("base", None), ("red", "base")]
        assert client.get("/v1/models/red").json()["id"] == "red"
        assert client.get("/openapi.json").json()["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"][
            "properties"]["model"]["anyOf"][0]["enum"] == ["base", "red"]  # fmt: skip
        whole = client.post("/v1/completions", json={"model": "red", **GREEDY}).json()
        assert whole["model"] == "red" and whole["choices"][0]["text"] == said["red"]
        events = client.post("/v1/completions", json={"model": "red", "stream": True, **GREEDY}).text.split("\n\n")
        parts = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert {part["model"] for part in parts} == {"red"} and "".join(part["choices"][0]["text"] for part in parts) == said["red"]
        other = client.post("/v1/completions", json={"model": "base", **GREEDY}).json()
        assert other["model"] == "base" and other["choices"][0]["text"] != said["red"]
        assert client.post("/v1/completions", json=GREEDY).json()["choices"] == other["choices"]  # without a word, the model itself
        embedded = client.post("/v1/embeddings", json={"model": "red", "input": "abc"}).json()
        assert embedded["model"] == "red" and embedded["data"][0]["embedding"] == pytest.approx(vector, abs=1e-6)
        missing = client.post("/v1/completions", json={"model": "blue", **GREEDY})
        assert missing.status_code == 404 and missing.json()["error"]["message"] == 'the model "blue" does not exist: this server has base, red'


def test_adapters_are_loaded_and_unloaded_while_it_serves(open_client, folders):
    _, opened = open_client(adapter_folder=folders / "own")
    with opened as client:
        load = lambda name, path: client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
        unload = lambda name: client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        assert load("one", "red").status_code == 200
        red = client.post("/v1/completions", json={"model": "one", **GREEDY}).json()["choices"]
        assert load("two", str(folders / "own/blue")).status_code == 200  # whole, it lies below the folder too
        assert client.post("/v1/completions", json={"model": "two", **GREEDY}).json()["choices"] != red
        for name in ("one", "base"):
            again = load(name, "blue")
            assert again.status_code == 400 and f"there is a model '{name}' already" in again.json()["error"]["message"]
        assert unload("one").status_code == 200 and unload("one").status_code == 404
        assert client.post("/v1/completions", json={"model": "one", **GREEDY}).status_code == 404
        assert load("one", "blue").status_code == 200
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["base", "two", "one"]


def test_no_adapter_is_loaded_by_a_request_unless_the_operator_says_so(open_client, folders):
    _, opened = open_client()
    with opened as client:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            assert client.post(path, json={"lora_name": "red", "lora_path": str(folders / "own/red")}).status_code == 404
            assert path not in client.get("/openapi.json").json()["paths"]


def test_nothing_above_the_operators_folder_is_read(open_client, folders, monkeypatch):
    (folders / "own" / "link").symlink_to(folders / "other" / "green")
    shutil.copytree(folders / "other" / "green", folders / "owned")  # whose path begins alike
    engine, opened = open_client(adapter_folder=folders / "own")
    asked = []
    monkeypatch.setattr(engine, "load_adapter", lambda name, folder: asked.append(folder))
    elsewhere = ["../other/green", str(folders / "other/green"), "link", "red/../../other/green", ".", "", "/", "..", str(folders / "owned"), "../owned", "a\0b"]
    with opened as client:
        for path in [*elsewhere, "x" * 1000, "../" * 300, "~", "//"]:
            response = client.post("/v1/load_lora_adapter", json={"lora_name": "name", "lora_path": path})
            if path in ("x" * 1000, "~"):  # names of folders like any other
                continue
            assert response.status_code == 400 and response.json()["error"]["param"] == "lora_path", path
            assert str(folders) not in response.json()["error"]["message"] or str(folders) in path
        assert {folder.parent for folder in asked} <= {folders / "own"}


def test_what_cannot_be_loaded_is_told_without_the_operators_paths(open_client, folders):
    (folders / "own" / "red" / "adapter_model.safetensors").write_bytes(b"x")
    engine, opened = open_client(adapter_folder=folders / "own")
    with opened as client:
        for path, said in {"red": "could not be read", "nowhere": "nowhere holds no adapter"}.items():
            response = client.post("/v1/load_lora_adapter", json={"lora_name": "name", "lora_path": path})
            assert response.status_code == 400 and said in response.json()["error"]["message"]
            assert str(folders) not in response.text
        engine._adapters.update({str(n): None for n in range(MOST)})
        assert "as many as may be" in client.post("/v1/load_lora_adapter", json={"lora_name": "name", "lora_path": "blue"}).json()["error"]["message"]


def test_many_that_load_at_once_find_no_more_room_than_one_by_one(open_client, folders, monkeypatch):
    monkeypatch.setattr("seodang.infer.server.adapters.MOST", 1)
    engine, opened = open_client(adapter_folder=folders / "own")
    load = engine.load_adapter
    monkeypatch.setattr(engine, "load_adapter", lambda name, folder: (time.sleep(0.1), load(name, folder)))
    with opened as client, ThreadPoolExecutor(4) as pool:
        ask = lambda n: client.post("/v1/load_lora_adapter", json={"lora_name": str(n), "lora_path": "red"}).status_code
        assert sorted(pool.map(ask, range(4))) == [200, 400, 400, 400]
        assert len(engine.adapters) == 1
