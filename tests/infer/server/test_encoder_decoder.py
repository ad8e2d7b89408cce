"""Encoder-decoders over HTTP: the answers of `generate`, languages, given beginnings, what is told of them and what is refused."""

import json

import pytest
from fastapi.testclient import TestClient
from translation_fixtures import build_mbart50, build_translator

from seodang.infer import SamplingParams, generate
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.given import Skipping
from seodang.infer.server.served import Served

LIKELIEST = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def translating():
    tokenizer = build_mbart50()
    model = build_translator("mbart50", tokenizer)
    with LiveEngine(model, tokenizer, max_rows=16) as engine, TestClient(build_app(Served(engine, "translator"))) as client:
        yield client, model, tokenizer


@pytest.fixture
def t5(fresh_tiny, t5_tokenizer):
    model = fresh_tiny("t5", vocab_size=len(t5_tokenizer)).double()
    model.generation_config.eos_token_id = 1
    with LiveEngine(model, t5_tokenizer, max_rows=16) as engine, TestClient(build_app(Served(engine, "t5"))) as client:
        yield client, model, t5_tokenizer


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def streamed(client, path: str, body: dict) -> list[dict]:
    answer = client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    return list(map(json.loads, lines))


def test_chat_and_completions_are_the_answers_of_generate(t5):
    client, model, tokenizer = t5
    [want] = generate(model, tokenizer, ["ab 나무"], SamplingParams(max_new_tokens=8))
    usage = {"prompt_tokens": len(tokenizer("ab 나무")["input_ids"]), "completion_tokens": len(want.ids)}
    for path, body in (("chat/completions", {"messages": [user("ab 나무")]}), ("completions", {"prompt": "ab 나무"})):
        whole = client.post(f"/v1/{path}", json={**body, **LIKELIEST}).json()
        [choice] = whole["choices"]
        assert (choice["message"]["content"] if "message" in choice else choice["text"]) == want.text and want.text
        assert usage.items() <= whole["usage"].items()
        *parts, last = streamed(client, f"/v1/{path}", {**body, **LIKELIEST})
        texts = [each["choices"][0].get("text") or each["choices"][0].get("delta", {}).get("content") or "" for each in parts]
        assert "".join(texts) == want.text and usage.items() <= last["usage"].items() and sum(map(bool, texts)) > 1
    system = {"messages": [{"role": "system", "content": "ab"}, user("나무")], **LIKELIEST}
    [both] = generate(model, tokenizer, ["ab\n\n나무"], SamplingParams(max_new_tokens=8))
    assert client.post("/v1/chat/completions", json=system).json()["choices"][0]["message"]["content"] == both.text


def test_several_answers_beams_and_log_probabilities(t5):
    client, model, tokenizer = t5
    beams = generate(model, tokenizer, ["ab"], SamplingParams(max_new_tokens=6, num_beams=4, num_return_sequences=2, logprobs=2))
    asked = {"prompt": "ab", "n": 2, "num_beams": 4, "max_tokens": 6, "logprobs": 2}
    choices = client.post("/v1/completions", json=asked).json()["choices"]
    assert [choice["text"] for choice in choices] == [each.text for each in beams]
    for choice, each in zip(choices, beams):
        assert choice["logprobs"]["token_logprobs"] == pytest.approx([known.logprob for known in each.top_logprobs][: len(choice["logprobs"]["tokens"])])
    drawn = generate(model, tokenizer, ["ab"], SamplingParams(max_new_tokens=6, do_sample=True, temperature=1.0, num_return_sequences=3, seed=5))
    answer = client.post("/v1/completions", json={"prompt": "ab", "n": 3, "seed": 5, "temperature": 1, "max_tokens": 6}).json()
    assert [choice["text"] for choice in answer["choices"]] == [each.text for each in drawn]


def test_languages_are_each_requests_own(translating):
    client, model, tokenizer = translating
    texts = {}
    for source, target in (("de_DE", "ko_KR"), ("en_XX", "fr_XX"), ("de_DE", "ko_KR")):
        [want] = generate(model, tokenizer, ["das Haus"], SamplingParams(max_new_tokens=8, source_lang=source, target_lang=target))
        body = {"messages": [user("das Haus")], "source_lang": source, "target_lang": target, **LIKELIEST}
        texts[target] = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert texts[target] == want.text
        assert client.post("/v1/completions", json={"prompt": "das Haus", **{key: body[key] for key in body if key != "messages"}}).json()["choices"][0]["text"] == want.text
    assert texts["ko_KR"] != texts["fr_XX"] and (tokenizer.src_lang, tokenizer.tgt_lang) == ("en_XX", None)


def test_an_answer_goes_on_from_a_given_beginning(translating, t5):
    client, model, tokenizer = translating
    forced = tokenizer.convert_tokens_to_ids("ko_KR")
    [want] = generate(model, tokenizer, ["das Haus"], SamplingParams(max_new_tokens=11, prefix="the house", target_lang="ko_KR"))
    body = {"target_lang": "ko_KR", "temperature": 0}
    said = client.post("/v1/completions", json={"prompt": "das Haus", "prefix": "the house", "max_tokens": 11, **body}).json()
    assert said["choices"][0]["text"] == want.text and want.text.startswith("the house")
    goes_on = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 9, **body}
    for beginning, count in (("the house", 2), ("the house ", 3)):
        [want] = generate(model, tokenizer, ["das Haus"], SamplingParams(max_new_tokens=9 + count, prefix=beginning, target_lang="ko_KR"))
        messages = [user("das Haus"), {"role": "assistant", "content": beginning}]
        answer = client.post("/v1/chat/completions", json={"messages": messages, **goes_on}).json()
        content = answer["choices"][0]["message"]["content"]
        assert beginning + content == want.text and len(content) > 3
    shown = [forced, *tokenizer("the", add_special_tokens=False)["input_ids"]]
    [given] = generate(model, tokenizer, ["das Haus"], SamplingParams(max_new_tokens=8, decoder_input_ids=[2, *shown]))
    for ids in (shown, [2, *shown]):
        answer = client.post("/v1/completions", json={"prompt": "das Haus", "decoder_input_ids": ids, **LIKELIEST}).json()
        assert answer["choices"][0]["text"] == given.text and answer["usage"]["completion_tokens"] == len(given.ids)


def test_what_is_skipped_of_an_answer_is_what_its_tokens_say():
    pieces = ["das", " Haus", " ist"]
    for prefix, written, behind in (
        ("das", "das", " Haus ist"), ("das ", "das", "Haus ist"), ("das  Haus", "das Haus", " ist"), ("das \n", "das", "Haus ist"), ("da", "da", "s Haus ist"),
    ):  # fmt: skip
        skipping = Skipping(prefix, written)
        assert "".join(map(skipping.behind, pieces)) == behind
    assert Skipping("da ", "da").behind("das Haus") == "s Haus"  # no blank follows: none is taken


def test_what_is_told_and_what_is_refused(translating, t5):
    client, _, tokenizer = translating
    [model] = client.get("/v1/models").json()["data"]
    assert (model["kind"], model["single_turn"], len(model["languages"])) == ("encoder-decoder", True, 52)
    fields = client.get("/openapi.json").text
    assert '"target_lang"' in fields and '"decoder_input_ids"' in fields and '"dola"' not in fields
    assert client.post("/tokenize", json={"messages": [user("das Haus")]}).json()["tokens"] == tokenizer("das Haus")["input_ids"]
    two = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    for path, body, param, message in (
        ("chat/completions", {"messages": two}, "messages", "the messages are of user, assistant, user: the tokenizer has no chat template"),
        ("chat/completions", {"messages": [user("a")], "target_lang": "ko_KO"}, "target_lang", "did you mean ko_KR?"),
        ("completions", {"prompt": " "}, "prompt", "the source is empty"),
        ("completions", {"prompt": "a", "decoder_input_ids": [9999]}, "decoder_input_ids", "the id 9999"),
        ("completions", {"prompt": "a", "strategy": "dola", "dola_layers": "low"}, "strategy", "'dola' is not made for encoder-decoder"),
        ("embeddings", {"input": "a"}, "input", "mbart is an encoder-decoder model, which Seodang has no embeddings of"),
    ):
        answer = client.post(f"/v1/{path}", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400 and message in error["message"] and error["param"] == param, error
    [own] = t5[0].get("/v1/models").json()["data"]
    assert own["languages"] == []


def test_a_decoder_is_told_of_none_of_it(tiny_llama, tiny_tokenizer):
    with LiveEngine(tiny_llama, tiny_tokenizer) as engine, TestClient(build_app(Served(engine, "llama"))) as client:
        assert "kind" not in client.get("/v1/models").json()["data"][0]
        assert '"target_lang"' not in client.get("/openapi.json").text and '"dola"' in client.get("/openapi.json").text
        error = client.post("/v1/completions", json={"prompt": "a", "target_lang": "ko"}).json()["error"]
        assert "target_lang='ko' is for encoder-decoders, but llama is a decoder" in error["message"] and error["param"] == "target_lang"
