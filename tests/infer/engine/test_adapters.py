"""Adapters beside one another in the same passes: each answers as a model does that it was merged into."""

import copy
import gc
import json
import random
import weakref
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, embed, generate
from seodang.infer.checkpoint.adapter import read_adapter
from seodang.infer.checkpoint.few_bits_folder import read_few_bits, write_few_bits
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import run
from seodang.infer.engine.live import LiveEngine
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.open import open_runner

ANSWER = SamplingParams(max_new_tokens=12, ignore_eos=True)


def merged(model, folder):
    """The model that an adapter makes of it, by peft."""
    return PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload().eval()


@pytest.fixture
def three(double, tmp_path, write_adapter):
    """`three(kind)`: a model in float64 and its variants by name: itself (None), and merged with each of two adapters; with their folders."""

    def build(kind="llama", **how):
        model = double(kind)
        folders = {name: write_adapter(model, tmp_path / name, seed, **how) for seed, name in enumerate("AB")}
        return model, {None: model, **{name: merged(model, folder) for name, folder in folders.items()}}, folders

    return build


def serving(model, tokenizer, folders, **how):
    """A live engine with all of these adapters."""
    engine = LiveEngine(model, tokenizer, **how)
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    return engine


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2", "granite", "cohere", "t5", "bart"])
def test_mixed_in_one_batch_each_equals_its_merged_model(three, tiny_tokenizer, kind):
    model, alone, folders = three(kind)
    order = ["A", "A", None, "B", "A", None, "B"]
    prompts = [[5 + n, 17, 40 + n, 9][: 2 + n % 3] for n in range(len(order))]
    with serving(model, tiny_tokenizer, folders) as engine:
        tickets = [engine.submit(prompt, ANSWER, adapter=name) for prompt, name in zip(prompts, order)]
        found = [ticket.results(60)[0] for ticket in tickets]
    for result, prompt, name in zip(found, prompts, order):
        wanted = generate(alone[name], tiny_tokenizer, [prompt], ANSWER)[0]
        assert result.ids == wanted.ids
        assert result.logprobs == pytest.approx(wanted.logprobs, abs=1e-9)
    likelihoods = [generate(each, tiny_tokenizer, [prompts[0]], ANSWER)[0].logprobs[0] for each in alone.values()]
    assert len({round(each, 6) for each in likelihoods}) == 3  # else nothing is shown


def test_all_of_them_share_the_passes(three, tiny_tokenizer):
    """Five requests that are there at once take as many passes as one: a prompt's, and one a token."""
    model, _, folders = three()
    adapters = {None: None, **{name: read_adapter(folder, name, model, tiny_tokenizer) for name, folder in folders.items()}}
    engine = Engine(open_runner(model))
    asked = new_requests(model, tiny_tokenizer, [[5, 6, 7 + n] for n in range(5)], ANSWER, engine)
    generations = [Generation(replace(request, adapter=adapters[name])) for request, name in zip(asked, ["A", "A", None, "B", "A"])]
    for _ in run(engine, generations, raises=True):
        pass
    assert [len(generation.results[0].ids) for generation in generations] == [12] * 5
    assert engine.runner.passes == 12


@pytest.mark.parametrize(
    "params",
    [ANSWER, SamplingParams(max_new_tokens=12, num_beams=3), SamplingParams(max_new_tokens=12, prompt_lookup_num_tokens=3)],
    ids=["greedy", "beams", "lookup"],
)
@pytest.mark.parametrize("by_torch", [[], [37]], ids=["prompts too", "prompts by torch"])
def test_steps_of_all_of_them_are_native_where_the_models_are(three, tiny_tokenizer, natively, reading, monkeypatch, params, by_torch):
    """In float32; where torch reads the long prompt, in passes in which the others' steps are native still."""
    reading(not by_torch)
    read, run = [], DirectRunner._run
    monkeypatch.setattr(DirectRunner, "_run", lambda self, plan, new, *rest: read.append(len(new)) or run(self, plan, new, *rest))
    model, alone, folders = three(target_modules="all-linear")
    model.float()
    prompts, names = [[5, 17, 40, 9, 5, 17], [40, 9, 5], list(range(3, 40)), [7, 8, 9, 7, 8]], ["A", None, "B", "B"]
    with serving(model, tiny_tokenizer, folders) as engine:
        natively.clear(), read.clear()  # of the check
        tickets = [engine.submit(prompt, params, adapter=name) for prompt, name in zip(prompts, names)]
        found = [ticket.results(60)[0] for ticket in tickets]
    assert read == by_torch and sum(natively) > 77 - sum(by_torch)
    for result, prompt, name in zip(found, prompts, names):
        wanted = generate(alone[name].double(), tiny_tokenizer, [prompt], params)[0]
        assert result.ids == wanted.ids
        assert result.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_new_tokens=8, num_beams=3, num_return_sequences=2),
        SamplingParams(max_new_tokens=8, temperature=1.0, seed=3, num_return_sequences=3),
        SamplingParams(max_new_tokens=8, penalty_alpha=0.6, top_k=4),
        SamplingParams(max_new_tokens=8, dola_layers="low"),
        SamplingParams(max_new_tokens=8, prompt_lookup_num_tokens=3),
        SamplingParams(max_new_tokens=8, assistant_early_exit=1),
        SamplingParams(max_new_tokens=8, guidance_scale=1.5, negative_prompt=[9, 8, 7]),
        SamplingParams(max_new_tokens=8, logprobs=2, prompt_logprobs=1),
    ],
    ids=["beams", "samples", "contrastive", "dola", "lookup", "early exit", "guidance", "logprobs"],
)
def test_every_strategy_runs_with_an_adapter(three, tiny_tokenizer, params):
    model, alone, folders = three()
    prompt = [5, 17, 40, 9, 5, 17, 40]
    with serving(model, tiny_tokenizer, folders) as engine:
        tickets = {name: engine.submit(prompt, params, adapter=name) for name in ("A", None, "B")}
        found = {name: ticket.results(60) for name, ticket in tickets.items()}
    for name, results in found.items():
        for result, wanted in zip(results, generate(alone[name], tiny_tokenizer, [prompt], params), strict=True):
            assert result.ids == wanted.ids
            assert result.logprobs == pytest.approx(wanted.logprobs, abs=1e-9)


def test_any_company_in_any_order(three, tiny_tokenizer):
    """Forty requests of five strategies and three models, more than there are rows: each as by itself."""
    model, alone, folders = three()
    draw = random.Random(1)
    kinds = [{}, {"num_beams": 2}, {"temperature": 0.9}, {"prompt_lookup_num_tokens": 2}, {"repetition_penalty": 1.2}]
    asked = []
    for seed in range(40):
        params = SamplingParams(max_new_tokens=draw.randint(1, 12), seed=seed, ignore_eos=True, **draw.choice(kinds))
        asked.append(([draw.randrange(3, 128) for _ in range(draw.randint(1, 9))], params, draw.choice([None, "A", "B"])))
    with serving(model, tiny_tokenizer, folders, max_rows=5) as engine:
        tickets = [engine.submit(prompt, params, adapter=name) for prompt, params, name in asked]
        found = [ticket.results(60)[0].ids for ticket in tickets]
    assert found == [generate(alone[name], tiny_tokenizer, [prompt], params)[0].ids for prompt, params, name in asked]


def test_embeddings_of_an_adapter(three, tiny_tokenizer):
    model, alone, folders = three()
    with serving(model, tiny_tokenizer, folders) as engine:
        for name, own in alone.items():
            wanted = embed(own, tiny_tokenizer, [[5, 6, 7, 8]])[0]
            assert torch.allclose(engine.embed([5, 6, 7, 8], adapter=name).embedding(60), wanted, atol=1e-9)


def test_ranks_and_scales_of_single_layers(three, tiny_tokenizer):
    """Patterns give layers a rank or an alpha of their own, rslora divides by the rank's root."""
    how = {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.v_proj": 20}, "use_rslora": True}
    model, alone, folders = three(**how)
    with serving(model, tiny_tokenizer, folders) as engine:
        for name, own in alone.items():
            ticket = engine.submit([5, 6, 7], ANSWER, adapter=name)
            assert ticket.results(60)[0].ids == generate(own, tiny_tokenizer, [[5, 6, 7]], ANSWER)[0].ids


def test_a_past_is_shared_within_an_adapter_alone(three, tiny_tokenizer):
    """What was read with one adapter is no other's past: neither kept sequences nor those that grow."""
    model, alone, folders = three()
    prompt = [random.Random(0).randrange(3, 128) for _ in range(90)]
    with serving(model, tiny_tokenizer, folders, reuse_prefixes=True) as engine:
        cached = []
        for name in ("A", "B", None, "A", "B", None):
            ticket = engine.submit(prompt, ANSWER, adapter=name)
            assert ticket.results(60)[0].ids == generate(alone[name], tiny_tokenizer, [prompt], ANSWER)[0].ids
            cached.append(ticket.generation.cached_tokens)
        assert cached == [0, 0, 0, 89, 89, 89]
        together = [engine.submit(prompt[:-1] + [7], ANSWER, adapter=name, cache_salt="apart") for name in ("A", "A", "B", None)]
        for ticket, name in zip(together, ("A", "A", "B", None)):
            assert ticket.results(60)[0].ids == generate(alone[name], tiny_tokenizer, [prompt[:-1] + [7]], ANSWER)[0].ids


def test_an_adapter_that_was_loaded_anew_begins_without_a_past(three, tiny_tokenizer):
    model, alone, folders = three()
    prompt = list(range(3, 90))
    with serving(model, tiny_tokenizer, {"one": folders["A"]}) as engine:
        engine.submit(prompt, ANSWER, adapter="one").results(60)
        kept = engine.prefix_cache.bytes
        running = engine.submit(prompt, SamplingParams(max_new_tokens=60, ignore_eos=True), adapter="one")
        engine.unload_adapter("one")
        with pytest.raises(UserError, match="no adapter 'one'"):
            engine.submit(prompt, ANSWER, adapter="one")
        assert len(running.results(60)[0].ids) == 60  # who had begun goes on
        engine.load_adapter("one", folders["B"])
        ticket = engine.submit(prompt, ANSWER, adapter="one")
        assert ticket.results(60)[0].ids == generate(alone["B"], tiny_tokenizer, [prompt], ANSWER)[0].ids
        assert ticket.generation.cached_tokens == 0 and kept > 0
        with pytest.raises(UserError, match="an adapter 'one' already"):
            engine.load_adapter("one", folders["A"])


def test_what_was_read_with_an_unloaded_adapter_is_let_go(three, tiny_tokenizer):
    model, _, folders = three()
    with serving(model, tiny_tokenizer, {"one": folders["A"]}) as engine:
        engine.submit(list(range(3, 90)), ANSWER, adapter="one").results(60)
        assert engine.prefix_cache.bytes
        engine.unload_adapter("one")
        engine.submit([4, 5], ANSWER, cache_salt="x").results(60)  # behind the mail
        assert not any(isinstance(kept.salt, tuple) for kept in engine.prefix_cache._kept)


def test_an_unloaded_adapters_matrices_go_with_its_last_request(three, tiny_tokenizer):
    """Requests that run on leave no past behind that nobody can ask for, which would hold the matrices."""
    model, _, folders = three()
    with serving(model, tiny_tokenizer, {"one": folders["A"]}, max_rows=2) as engine:
        held = weakref.ref(engine._adapters["one"])
        tickets = [engine.submit(list(range(3, 60 + n)), ANSWER, adapter="one") for n in range(4)]
        engine.unload_adapter("one")
        assert [len(ticket.results(60)[0].ids) for ticket in tickets] == [12] * 4
        del tickets
        engine.submit([4, 5], ANSWER).results(60)
        gc.collect()
        assert held() is None and all(kept.salt is None for kept in engine.prefix_cache._kept)


@pytest.mark.parametrize("mapped", [False, True])
def test_quantised_weights_with_adapters(tiny_tokenizer, fresh_tiny, tmp_path, write_adapter, mapped):
    """Over 8-bit weights an adapter adds what it would add in floats: the answers' likelihoods are those of the sum, nearly."""
    model = fresh_tiny("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    folder = write_adapter(model, tmp_path / "A", 0)
    wanted = generate(merged(model, folder), tiny_tokenizer, [[5, 6, 7, 8]], SamplingParams(max_new_tokens=1, logprobs=5))[0]
    plain = generate(model, tiny_tokenizer, [[5, 6, 7, 8]], SamplingParams(max_new_tokens=1, logprobs=5))[0]
    quantise(model, "int8")
    if mapped:
        write_few_bits(tmp_path / "small", model, "int8")
        model = read_few_bits(tmp_path / "small").eval()
    with serving(model, tiny_tokenizer, {"A": folder}) as engine:
        found = engine.submit([5, 6, 7, 8], SamplingParams(max_new_tokens=1, logprobs=5), adapter="A").results(60)[0]
    assert found.ids == wanted.ids != plain.ids
    assert found.logprobs == pytest.approx(wanted.logprobs, abs=0.1)


def test_what_does_not_run_beside_the_weights_is_refused(double, tiny_tokenizer, tmp_path, write_adapter):
    model, other = double(), double("llama", hidden_size=48, head_dim=12)
    good = write_adapter(model, tmp_path / "good", 0)
    edited = {}
    for name, changes in {"dora": {"use_dora": True}, "bias": {"bias": "all"}, "ia3": {"peft_type": "IA3"}}.items():
        folder = edited[name] = tmp_path / name
        write_adapter(model, folder, 0)
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps({**said, **changes}), encoding="utf-8")
    for name, change in {
        "half": lambda tensors: tensors.pop(next(iter(tensors))),
        "more": lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(32)}),
        "rank": lambda tensors: tensors.update({name: tensor[:2].contiguous() for name, tensor in tensors.items() if "q_proj.lora_A" in name}),
    }.items():
        folder = edited[name] = write_adapter(model, tmp_path / name, 0)
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    (write_adapter(model, tmp_path / "torn", 0) / "adapter_model.safetensors").write_bytes(b"x")
    cases = {
        edited["dora"]: "use_dora", edited["bias"]: "bias", edited["ia3"]: "IA3", edited["half"]: "one of the matrices", edited["more"]: "norm.weight",
        edited["rank"]: "rank 2 and 3", tmp_path / "torn": "could not be read", tmp_path / "nowhere": "no adapter",
        write_adapter(other, tmp_path / "other", 0): "another model", write_adapter(model, tmp_path / "head", 0, target_modules=["lm_head"]): "lm_head",
    }  # fmt: skip
    with LiveEngine(model, tiny_tokenizer) as engine:
        for folder, said in cases.items():
            with pytest.raises(UserError, match=said):
                engine.load_adapter("one", folder)
        assert engine.adapters == []
        engine.load_adapter("one", good)
    with LiveEngine(merged_not(model, good), tiny_tokenizer) as engine, pytest.raises(UserError, match="adapter of its own"):
        engine.load_adapter("one", good)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"), ({"init_lora_weights": "olora"}, "olora"), ({"lora_alpha": None}, "rank or an alpha"),
        ({"lora_alpha": float("nan")}, "nan as a rank"), ({"alpha_pattern": {"q_proj": "x"}}, "'x' as a rank"), ({"r": 0}, "0 as a rank"),
        ({"rank_pattern": {"(": 3}}, "unterminated"), ({"rank_pattern": [3]}, "does not read"), ({"task_type": "other"}, "Invalid task type"),
    ],
)  # fmt: skip
def test_a_configuration_that_means_something_else_or_nothing_is_refused(double, tiny_tokenizer, tmp_path, write_adapter, changes, said):
    """Who begins with what was taken from the weights (PiSSA, OLoRA) has trained beside other weights than these."""
    model = double()
    path = write_adapter(model, tmp_path / "A", 0) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_adapter(tmp_path / "A", "A", model, tiny_tokenizer)


@pytest.mark.parametrize(
    "change", [torch.flatten, torch.Tensor.int, torch.Tensor.bool, lambda tensor: tensor * float("nan"), lambda tensor: tensor.to(torch.float8_e4m3fn)]
)
def test_what_is_no_matrix_of_finite_floats_is_refused(double, tiny_tokenizer, tmp_path, write_adapter, change):
    model = double()
    path = write_adapter(model, tmp_path / "A", 0) / "adapter_model.safetensors"
    save_file({name: change(tensor).contiguous() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="a matrix of finite floats belongs"):
        read_adapter(tmp_path / "A", "A", model, tiny_tokenizer)


def test_weights_that_are_not_there_are_looked_for_nowhere_else(double, tiny_tokenizer, tmp_path, write_adapter, monkeypatch):
    """A path like `team/adapter` is a name on the hub, too."""
    model = double()
    (write_adapter(model, tmp_path / "team/adapter", 0) / "adapter_model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="team/adapter holds no weights"):
        read_adapter("team/adapter", "A", model, tiny_tokenizer)


def merged_not(model, folder):
    """A model with an adapter put into it."""
    return PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def test_another_vocabulary_or_template_is_refused(double, tiny_tokenizer, tmp_path, write_adapter):
    model = double()
    folder = write_adapter(model, tmp_path / "A", 0)
    own = copy.deepcopy(tiny_tokenizer)
    own.chat_template = "{{ messages[0].content }}"
    own.save_pretrained(folder)
    with LiveEngine(model, tiny_tokenizer) as engine:
        with pytest.raises(UserError, match="another chat template"):
            engine.load_adapter("A", folder)
        own.add_tokens(["new"])
        own.save_pretrained(folder)
        with pytest.raises(UserError, match="another vocabulary"):
            engine.load_adapter("A", folder)
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        own_code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps({**said, **own_code}), encoding="utf-8")
        (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
        with pytest.raises(UserError, match="custom code"):
            engine.load_adapter("A", folder)
        assert not (tmp_path / "ran").exists()


def test_a_runner_without_adapters_says_so(tiny_tokenizer, tmp_path):
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)).eval()
    with LiveEngine(bloom, tiny_tokenizer) as engine, pytest.raises(UserError, match="bloom model runs no adapters"):
        engine.load_adapter("A", tmp_path)
