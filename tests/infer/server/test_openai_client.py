"""OpenAI's own client for Python, unchanged, against a live server of the default model: what it hands its caller is what `generate` says."""

import asyncio
import copy
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import openai
import pytest
import torch
from live_server import behind_a_socket
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from seodang.data.formats import Dialogue
from seodang.infer import LiveEngine, SamplingParams, generate
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

ROOT = Path(__file__).parents[3]
TOOLS_TEMPLATE = ROOT / "tests" / "clients" / "tools.jinja"
NAME = "school/pupil"
PROMPT = "The three primary colours are"
ASKED = [{"role": "user", "content": "Which country is the city of Suwon located in?"}]
SHORT = {"model": NAME, "temperature": 0, "max_tokens": 8}


class Place(BaseModel):
    """A city and where it is."""

    country: Literal["Korea", "Japan"]
    city: Literal["Suwon", "Osaka"]
    coastal: bool


@contextmanager
def serving(model, tokenizer):
    """A server behind a socket of this machine; yields where it is."""
    with LiveEngine(model, tokenizer, max_rows=8) as engine, behind_a_socket(build_app(Served(engine, NAME)), engine) as address:
        yield f"{address}/v1"


def client_at(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def base_url(_real_model, _tokenizer):
    with serving(_real_model, copy.deepcopy(_tokenizer)) as url:
        yield url


@pytest.fixture(scope="module")
def client(base_url):
    with client_at(base_url) as client:
        yield client


@pytest.fixture(scope="module")
def small(wordy_tokenizer, tiny):
    """A random model, with a template that has tools: what a grammar forces takes many tokens."""
    tokenizer = copy.deepcopy(wordy_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TOOLS_TEMPLATE.read_text(encoding="utf-8")
    return tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id), tokenizer


@pytest.fixture(scope="module")
def small_client(small):
    with serving(*small) as url, client_at(url) as client:
        yield client


@pytest.fixture
def said(real_model, tokenizer):
    """`said(prompt, **settings)`: what generate says, of eight tokens unless told otherwise."""
    return lambda prompt, **settings: generate(real_model, tokenizer, [prompt], SamplingParams(**{"max_new_tokens": 8, **settings}))


def said_by(small, prompt, **settings):
    return generate(*small, [prompt], SamplingParams(**{"max_new_tokens": 8, **settings}))


def test_models_are_listed_and_found_by_a_name_with_a_slash(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME  # sent as school%2Fpupil
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_completions_whole_and_streamed(client, said, tokenizer):
    [wanted] = said(PROMPT, logprobs=1)
    answer = client.completions.create(prompt=PROMPT, logprobs=1, **SHORT)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason, answer.model) == (wanted.text, "length", NAME)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(tokenizer(PROMPT)["input_ids"]), 8)
    assert choice.logprobs.tokens == [token.text for token in wanted.top_logprobs] and "".join(choice.logprobs.tokens) == wanted.text
    assert choice.logprobs.token_logprobs == pytest.approx([token.logprob for token in wanted.top_logprobs], abs=1e-4)

    parts = list(client.completions.create(prompt=[PROMPT, "Seoul is"], stream=True, stream_options={"include_usage": True}, **SHORT))
    texts = ["".join(each.text for part in parts for each in part.choices if each.index == index) for index in (0, 1)]
    assert texts == [wanted.text, said("Seoul is")[0].text]
    assert len({part.id for part in parts}) == 1 and parts[-1].usage.completion_tokens == 16

    raw = client.completions.with_raw_response.create(prompt=PROMPT, extra_headers={"x-request-id": "mine"}, **SHORT)
    assert raw.headers["x-request-id"] == "mine" and raw.parse()._request_id == "mine" and answer._request_id


def test_a_chats_settings_do_what_they_say(client, said):
    [wanted] = said(ASKED, logprobs=2)
    answer = client.chat.completions.create(messages=ASKED, logprobs=True, top_logprobs=2, **SHORT)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", wanted.text, "length")
    assert [token.token for token in choice.logprobs.content] == [token.text for token in wanted.top_logprobs]
    assert bytes(sum((token.bytes for token in choice.logprobs.content), [])).decode() == wanted.text
    heard = [[top.logprob for top in token.top_logprobs] for token in choice.logprobs.content]
    assert heard == [pytest.approx(tops, abs=1e-4) for tops in [[top.logprob for top in token.top] for token in wanted.top_logprobs]]

    drawn = {**SHORT, "temperature": 1.2, "seed": 5, "n": 2, "max_completion_tokens": 6}
    del drawn["max_tokens"]
    several = client.chat.completions.create(messages=ASKED, **drawn)
    wanted = said(ASKED, temperature=1.2, seed=5, num_return_sequences=2, max_new_tokens=6)
    assert [choice.message.content for choice in several.choices] == [result.text for result in wanted]

    [stopped] = said(ASKED, stop=[" Suwon"], max_new_tokens=24)
    assert stopped.finish_reason == "stop"
    answer = client.chat.completions.create(messages=ASKED, stop=" Suwon", **{**SHORT, "max_tokens": 24})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (stopped.text, "stop")


def test_a_chat_streams_its_role_first_and_its_usage_last(client, said):
    [wanted] = said(ASKED)
    first, *parts, usage = client.chat.completions.create(messages=ASKED, stream=True, stream_options={"include_usage": True}, **SHORT)
    assert first.choices[0].delta.role == "assistant" and len({part.id for part in (first, *parts, usage)}) == 1
    assert "".join(part.choices[0].delta.content or "" for part in (first, *parts)) == wanted.text
    assert [part.choices[0].finish_reason for part in (first, *parts)] == [None] * len(parts) + ["length"]
    assert usage.choices == [] and usage.usage.completion_tokens == 8
    [ended] = said(ASKED, stop=["."], max_new_tokens=24)
    with client.chat.completions.stream(messages=ASKED, stop=".", **{**SHORT, "max_tokens": 24}) as events:  # it raises where the length ends an answer
        deltas = "".join(event.delta for event in events if event.type == "content.delta")
        assert deltas == events.get_final_completion().choices[0].message.content == ended.text


def test_an_answer_is_parsed_by_the_callers_own_class(small_client, small):
    [wanted] = said_by(small, ASKED, json_schema=Place.model_json_schema(), max_new_tokens=120)
    asked = {**SHORT, "max_tokens": 120}
    message = small_client.chat.completions.parse(messages=ASKED, response_format=Place, **asked).choices[0].message
    assert message.parsed == Place.model_validate_json(wanted.text)
    answer = small_client.responses.parse(model=NAME, input=ASKED[0]["content"], text_format=Place, temperature=0, max_output_tokens=120)
    assert answer.output_parsed == message.parsed


def test_tools_are_called_and_their_results_read(small_client, small):
    tool = openai.pydantic_function_tool(Place, name="look_up")
    asked = {**SHORT, "max_tokens": 250, "messages": ASKED, "tools": [tool]}
    choice = small_client.chat.completions.parse(tool_choice={"type": "function", "function": {"name": "look_up"}}, **asked).choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "look_up" and call.id
    assert call.function.parsed_arguments == Place(**json.loads(call.function.arguments))

    parts = list(small_client.chat.completions.create(tool_choice="required", parallel_tool_calls=False, stream=True, **asked))
    deltas = [each for part in parts for each in part.choices[0].delta.tool_calls or []]
    first = [each for each in deltas if each.index == 0]
    assert [each.function.name for each in first if each.function.name] == ["look_up"] and len({part.id for part in parts}) == 1
    assert Place(**json.loads("".join(each.function.arguments or "" for each in first)))
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["tool_calls"]

    told = [*ASKED, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "South Korea"}]
    loose = {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
    answer = small_client.chat.completions.create(**{**asked, "messages": told, "max_tokens": 8, "tools": [loose]})
    turns = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call.to_dict()]}, told[-1]]
    assert answer.choices[0].message.content == said_by(small, Dialogue(turns, [loose]))[0].text


@pytest.mark.full
def test_responses_whole_and_streamed(client, said):
    system = {"role": "system", "content": "Answer in a word."}
    [wanted] = said([system, *ASKED])
    asked = {"model": NAME, "input": ASKED[0]["content"], "instructions": system["content"], "temperature": 0, "max_output_tokens": 8, "store": False}
    answer = client.responses.create(**asked)
    assert (answer.output_text, answer.usage.output_tokens) == (wanted.text, 8)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")

    *events, last = client.responses.create(stream=True, **asked)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == wanted.text
    assert events[0].type == "response.created" and (last.type, last.response.output_text) == ("response.incomplete", wanted.text)
    assert [event.sequence_number for event in (*events, last)] == list(range(len(events) + 1))

    [ended] = said(ASKED, max_new_tokens=24, stop_regex="[.]")
    with client.responses.stream(**{**asked, "instructions": None, "max_output_tokens": 24}, extra_body={"stop_regex": "[.]"}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == ended.text


def test_embeddings_are_the_mean_of_the_last_layer(client, real_model, tokenizer):
    answer = client.embeddings.create(model=NAME, input=["Suwon is a city.", "Yes"])  # asked for as base64
    for text, heard in zip(("Suwon is a city.", "Yes"), answer.data):
        with torch.no_grad():
            states = real_model.model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        assert heard.embedding == pytest.approx(states.mean(dim=0).tolist(), abs=1e-3)
    assert answer.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in ("Suwon is a city.", "Yes"))


def test_mistakes_become_the_clients_own_errors(client):
    for wrong, param in (({"temperature": -1}, "temperature"), ({"stop": 5}, "stop"), ({"extra_body": {"tempratur": 1}}, "tempratur")):
        for create, what in ((client.completions.create, {"prompt": PROMPT}), (client.chat.completions.create, {"messages": ASKED})):
            with pytest.raises(openai.BadRequestError) as caught:
                create(**{**SHORT, **what, **wrong})
            assert caught.value.param == param and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=ASKED, **{**SHORT, "model": "nobody"})
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.full
def test_many_at_once_by_the_client_for_asyncio(base_url, said):
    questions = [[{"role": "user", "content": f"Name the capital of {country}."}] for country in ("Korea", "Japan", "Peru")]

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=60) as client:

            async def streamed(messages) -> str:
                stream = await client.chat.completions.create(messages=messages, stream=True, **SHORT)
                return "".join([part.choices[0].delta.content or "" async for part in stream])

            whole = client.chat.completions.create(messages=questions[0], **SHORT)
            answers = await asyncio.gather(whole, *map(streamed, questions))
            return [answers[0].choices[0].message.content, *answers[1:]]

    wanted = [said(question)[0].text for question in questions]
    assert asyncio.run(ask()) == [wanted[0], *wanted]


def test_the_lines_of_the_documents_say_what_generate_says(base_url, said):
    """The page on the server has one for curl, and a script."""
    section = (ROOT / "docs" / "server-reference.md").read_text(encoding="utf-8")
    here = lambda text: text.replace("http://127.0.0.1:8000/v1", base_url).replace('"first"', f'"{NAME}"')
    [wanted] = said([{"role": "user", "content": "Name three colours."}], max_new_tokens=16)
    script = re.search("```python[^\n]*\n(from openai .*?)```", section, re.DOTALL)[1]
    heard = subprocess.check_output([sys.executable, "-X", "utf8", "-c", here(script)], text=True, encoding="utf-8", timeout=60)
    assert heard == wanted.text
    if shutil.which("curl"):
        line = re.search("^(curl .*)", section, re.MULTILINE)[1]
        *events, done = subprocess.check_output(["sh", "-c", here(line)], text=True, encoding="utf-8", timeout=60).strip().split("\n\n")
        parts = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
        assert done == "data: [DONE]" and "".join(part.get("content") or "" for part in parts) == wanted.text
