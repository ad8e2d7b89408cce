"""A classifier served: what it says of texts, pairs and ids beside plain transformers, and what it refuses by name."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.encoders.classify import Classifier
from seodang.infer.encoders.live_classifier import LiveClassifier
from seodang.infer.server.app import build_app
from seodang.infer.server.served import ServedClassifier

TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12", "w9 w8"]
PAIRS = [["w1 w2", "w3"], ["w4 w5 w6", "w7 w8"], ["w9", "w9"]]
LONG = " ".join(f"w{number}" for number in range(40))


@pytest.fixture
def folder(encoder_folder, tmp_path):
    """The encoder with a head of three classes that lie apart, saved."""
    names = {0: "bad", 1: "good", 2: "meh"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(encoder_folder, id2label=names, label2id={name: place for place, name in names.items()})
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(encoder_folder).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def serving(folder, **changes):
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    for name, value in changes.items():
        setattr(model.config, name, value)
    return LiveClassifier(Classifier(model, tokenizer), max_waiting=64)


@pytest.fixture
def client(folder):
    with serving(folder) as engine, TestClient(build_app(ServedClassifier(engine, "tiny"))) as client:
        yield client


def plain(folder, texts, pairs=None):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(texts, pairs, padding=True, truncation=True, return_tensors="pt")).logits


def post(client, path="/v1/classify", **body):
    return client.post(path, json={"model": "tiny", **body})


def test_classes_of_texts_pairs_and_ids_are_those_of_plain_transformers(client, folder):
    want = plain(folder, TEXTS).softmax(-1)
    answer = post(client, input=TEXTS).json()
    assert answer["object"] == "list" and answer["model"] == "tiny" and answer["usage"] == {"prompt_tokens": 22, "completion_tokens": 0, "total_tokens": 22}
    assert [each["index"] for each in answer["data"]] == [0, 1, 2, 3] and all(each["num_classes"] == 3 for each in answer["data"])
    torch.testing.assert_close(torch.tensor([each["probs"] for each in answer["data"]]), want, rtol=0, atol=1e-5)
    assert [each["label"] for each in answer["data"]] == [["bad", "good", "meh"][place] for place in want.argmax(-1).tolist()]
    pairs = post(client, path="/classify", input=PAIRS).json()["data"]  # vLLM's own path
    torch.testing.assert_close(torch.tensor([each["probs"] for each in pairs]), plain(folder, *map(list, zip(*PAIRS))).softmax(-1), rtol=0, atol=1e-5)
    ids = AutoTokenizer.from_pretrained(folder)("w4")["input_ids"]
    assert post(client, input=ids).json()["data"][0]["probs"] == pytest.approx(want[1].tolist(), abs=1e-5)
    assert post(client, input="w4").json()["data"][0]["probs"] == pytest.approx(want[1].tolist(), abs=1e-5)


def test_many_clients_share_passes_and_get_their_own(client, folder):
    mixed = [*TEXTS, *PAIRS] * 4
    alone = [post(client, input=[each]).json()["data"][0]["probs"] for each in mixed[:7]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: post(client, input=[each]).json()["data"][0]["probs"], mixed))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone).repeat(4, 1), rtol=0, atol=1e-5)


def test_several_labels_and_a_number(folder):
    logits = plain(folder, TEXTS)
    with serving(folder, problem_type="multi_label_classification") as engine, TestClient(build_app(ServedClassifier(engine, "tiny"))) as client:
        data = post(client, input=TEXTS).json()["data"]
    assert [each["labels"] for each in data] == [[name for name, value in zip(("bad", "good", "meh"), row, strict=True) if value >= 0] for row in logits.tolist()]
    assert data[0]["probs"] == pytest.approx(logits[0].sigmoid().tolist(), abs=1e-5)
    with serving(folder, problem_type="regression") as engine, TestClient(build_app(ServedClassifier(engine, "tiny"))) as client:
        data = post(client, input=TEXTS).json()["data"]
    assert [each["value"] for each in data] == pytest.approx(logits[:, 0].tolist(), abs=1e-4)
    assert data[0]["label"] is None and data[0]["probs"] == []


def test_what_it_has_not_is_refused_by_name(client, folder):
    refused = post(client, input=["w1", LONG]).json()["error"]
    assert "input[1] has 42 tokens, more than the 32 that the classifier reads" in refused["message"] and refused["param"] == "input"
    answer = post(client, input=["w1", LONG], truncate=True).json()
    assert answer["truncated"] == [1] and answer["usage"]["prompt_tokens"] == 3 + 32
    for value in ([], ["w1", 3], [["a", "b", "c"]], [{}], 4):
        answer = post(client, input=value)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "input", value
    answer = client.post("/v1/embeddings", json={"model": "tiny", "input": "w1"})
    assert answer.status_code == 404 and "says which class a text is of" in answer.json()["error"]["message"]
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny" and "/v1/classify" in client.get("/openapi.json").json()["paths"]
    with serving(folder) as engine, pytest.raises(UserError, match="gives no vectors"):
        engine.embed("w1")
