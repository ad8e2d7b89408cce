"""Rollouts by trl's `use_vllm`, on a server that speaks vLLM's protocol: only the group of NCCL, which needs CUDA, is played."""

import copy
import json
import queue
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig, RLOOConfig
from trl.generation import vllm_client, vllm_generation

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.requests.rng import hashed
from seodang.train.rollouts import vllm_server
from seodang.train.rollouts.vllm_server import check_server, check_vllm
from seodang.train.stages.grpo import grpo_trainer, rloo_trainer

KINDS = {"grpo": (GRPOConfig, grpo_trainer), "rloo": (RLOOConfig, rloo_trainer)}
SEED = 42  # of a run


class Vllm(ThreadingHTTPServer):
    """Answers as `vllm serve` does: by the weights that it was handed last, sampled by our engine with the noise that a run without it has."""

    daemon_threads = True

    def __init__(self, model, tokenizer, **config):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.wire = model, tokenizer, queue.Queue()
        self.config = {"weight_transfer_config": {"backend": "nccl"}, "model_config": {"logprobs_mode": "processed_logprobs"}, **config}
        self.address, self.asked, self.updating, self.fails = f"http://127.0.0.1:{self.server_port}", [], False, False

    def answer(self, path, body):
        self.asked.append(path)
        if path == "/v1/completions":
            return (500, {"error": "out of memory"}) if self.fails else (200, {"choices": self.choices(body)})
        if path == "/update_weights":
            self.take(body["update_info"])
        if path in ("/start_weight_update", "/finish_weight_update"):
            self.updating = path.startswith("/start")
        known = {"/health": {}, "/v1/models": {"data": [{"id": "policy"}]}, "/get_world_size": {"world_size": 1}, "/server_info": {"vllm_config": self.config}}
        return (404, {}) if path == "/server_info" and self.config.get("closed") else (200, known.get(path, {}))

    def take(self, info):
        assert self.updating and info["names"] == [name for name, _ in self.model.named_parameters()]
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            sent, value = self.wire.get(timeout=10)
            assert (sent, list(value.shape), str(value.dtype)) == (name, shape, f"torch.{dtype}")
            self.model.get_parameter(name).data.copy_(value)

    def choices(self, body):
        assert body["model"] == "policy" and body["return_token_ids"] and not self.updating
        step = self.asked.count("/v1/completions") - 1
        settings = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        params = [
            SamplingParams(max_new_tokens=body["max_tokens"], num_return_sequences=body["n"], seed=hashed(SEED, "train", step, 0, group, size=4), **settings)
            for group in range(len(body["prompt"]))
        ]
        results = generate(self.model, self.tokenizer, body["prompt"], params)
        prompts = [ids for ids in body["prompt"] for _ in range(body["n"])]
        return [choice(ids, result) for ids, result in zip(prompts, results, strict=True)]


def choice(prompt, result):
    tokens = [f"token_id:{id}" for id in result.ids]
    likely = {"tokens": tokens, "token_logprobs": result.logprobs, "top_logprobs": [{token: value} for token, value in zip(tokens, result.logprobs, strict=True)]}
    return {"prompt_token_ids": prompt, "token_ids": result.ids, "logprobs": likely}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({})

    def do_POST(self):
        self.say(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}"))

    def say(self, body):
        status, answer = self.server.answer(self.path.partition("?")[0], body)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def vllm(fresh_tiny, tiny_tokenizer, monkeypatch):
    """A server of a model with other weights than the policy's, and what trl's client would find in vLLM: the sender hands tensors over as NCCL would."""
    other = fresh_tiny("llama")
    for parameter in other.parameters():
        parameter.data.zero_()
    with serving(Vllm(other, tiny_tokenizer)) as server:
        engine = SimpleNamespace(trainer_init=lambda info: SimpleNamespace(group=SimpleNamespace()), trainer_send_weights=lambda iterator, trainer_args: [
            server.wire.put((name, value.clone())) for name, value in iterator
        ])  # fmt: skip
        begin = vllm_client.VLLMClient.init_communicator
        monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", lambda self, device: begin(self, "cuda"))
        for module in (vllm_client, vllm_generation):
            monkeypatch.setattr(module, "is_vllm_available", lambda **_: True)
        for name, value in {"get_ip": lambda: "127.0.0.1", "NCCLWeightTransferEngine": engine, "NCCLTrainerSendWeightsArgs": SimpleNamespace}.items():
            monkeypatch.setattr(vllm_client, name, value, raising=False)
        monkeypatch.setattr(vllm_client.Retry, "sleep", lambda *_: None)
        yield server


def variety(prompts, completions, **columns):
    return [len(set(text)) / 10 for text in completions]


def trainer_of(kind, model, tokenizer, folder, **settings):
    config, build = KINDS[kind]
    dialogues = [[{"role": "user", "content": text}] for text in ("say something", "hi", "what is it then?", "and now?")]
    rows = [{"prompt_ids": prompt_ids(tokenizer, messages), "messages": messages, "columns": {}} for messages in dialogues]
    args = config(
        str(folder), report_to="none", use_cpu=True, bf16=False, activation_checkpointing=False, save_strategy="no", logging_steps=1, disable_tqdm=True, seed=SEED,
        max_completion_length=10, num_generations=4, per_device_train_batch_size=8, max_steps=2, learning_rate=0.1, optim="sgd", temperature=0.9, **settings,
    )  # fmt: skip
    return build(model, tokenizer, rows, [variety], args)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_is_handed_the_weights_before_each_rollout_and_its_answers_teach_what_our_engines_do(kind, vllm, fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    first = trainer_of(kind, copy.deepcopy(model), tiny_tokenizer, tmp_path / "engine")
    first.train()
    second = trainer_of(kind, model, tiny_tokenizer, tmp_path / "vllm", use_vllm=True, vllm_mode="server", vllm_server_base_url=vllm.address)
    second.train()
    rewards = [[entry["reward"] for entry in trainer.state.log_history if "reward" in entry] for trainer in (first, second)]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 2
    for (name, ours), theirs in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-5, name
    step = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache", "/v1/completions"]
    assert [path for path in vllm.asked if path in step] == step * 2
    assert "/init_weight_transfer_engine" in vllm.asked


def test_a_server_that_fails_in_a_rollout_is_named(vllm, fresh_tiny, tiny_tokenizer, tmp_path):
    trainer = trainer_of("grpo", fresh_tiny("llama"), tiny_tokenizer, tmp_path, use_vllm=True, vllm_mode="server", vllm_server_base_url=vllm.address)
    vllm.fails = True
    with pytest.raises(UserError, match="the vLLM server failed in a rollout: .*500.* go on from the last checkpoint"):
        trainer.train()


# Before a model is loaded


def asked_for(**changes):
    plain = {"use_vllm": True, "vllm_mode": "server", "device": torch.device("cuda"), "process_index": 0, "vllm_server_base_url": None}
    return SimpleNamespace(**{**plain, "vllm_server_host": "127.0.0.1", "vllm_server_port": 1, "vllm_server_timeout": 0.0, **changes})


def test_what_use_vllm_lacks_is_told_before_a_model_is_loaded(vllm, monkeypatch):
    check_vllm(asked_for(use_vllm=False))
    with pytest.raises(UserError, match=r"use_vllm needs vLLM in this environment.*pip install 'trl\[vllm\]'"):
        check_vllm(asked_for())
    monkeypatch.setattr(vllm_server.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="by NCCL, which needs a CUDA device, and this is cpu"):
        check_vllm(asked_for(device=torch.device("cpu")))
    with pytest.raises(UserError, match=r"no vLLM server has answered at http://127.0.0.1:1 within 0 seconds .*refused.*VLLM_SERVER_DEV_MODE=1 vllm serve"):
        check_vllm(asked_for())
    check_vllm(asked_for(process_index=1))  # which does not speak with it
    check_vllm(asked_for(vllm_server_base_url=vllm.address))


def test_a_server_that_takes_no_weights_or_is_none_is_refused(vllm):
    check_server(f"{vllm.address}/", 0)
    with pytest.raises(UserError, match="must be an address as http://localhost:8000, got 'localhost:8000'"):
        check_server("localhost:8000", 0)
    with pytest.raises(UserError, match="vllm_server_timeout must be seconds from 0 on, got nan"):
        check_server("http://127.0.0.1:9", float("nan"))  # which would never be over
    for address in ("http://local host:1", "http://localhost:x"):
        with pytest.raises(UserError, match=f"vllm_server_base_url '{address}' is no address"):
            check_server(address, 60)
    vllm.config["weight_transfer_config"] = None
    with pytest.raises(UserError, match="takes no weights: start it with a way to, .*--weight-transfer-config"):
        check_server(vllm.address, 0)
    vllm.config["closed"] = True
    with pytest.raises(UserError, match="tells nothing of itself .*404"):
        check_server(vllm.address, 0)
    vllm.config = None  # what it tells is of another shape
    with pytest.raises(UserError, match="is no vLLM server"):
        check_server(vllm.address, 0)
