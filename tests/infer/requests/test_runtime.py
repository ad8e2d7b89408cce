"""What is told of what computes a model, and in the stats of its answers: the runner, its kernel, weights and threads, and why it is not native."""

import time
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.infer import LiveEngine, SamplingParams, generate
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.engine.generate import prepare
from seodang.infer.requests.runtime import runtime_of
from seodang.infer.requests.stats import Runtime
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native import compiler, library
from seodang.infer.runners.native_runner import NativeRunner, say
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare

TORCH = f"torch {torch.backends.cpu.get_cpu_capability()}"
SHORT = SamplingParams(max_new_tokens=3, ignore_eos=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.delenv("SEODANG_NATIVE", raising=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_native_runner_says_what_its_library_was_built_for(varied, dtype):
    told = runtime_of(open_runner(varied().to(dtype)))
    assert told == Runtime("native", library.library().seodang_built_for().decode(), str(dtype).removeprefix("torch."), 1, None)
    assert str(told) == f"native runner, {told.kernel}, {told.weights} weights, 1 thread"


@pytest.fixture
def of_torch(monkeypatch):
    """What a llama says that is opened with the native step off."""
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    return Runtime("direct", TORCH, "float32", 1, "SEODANG_NATIVE=0")


def test_where_the_native_step_is_off_it_says_by_what(varied, of_torch, monkeypatch):
    model = varied()
    runner = open_runner(model)
    assert runtime_of(runner) == of_torch and str(of_torch) == f"direct runner, {TORCH}, float32 weights, 1 thread; not native: SEODANG_NATIVE=0"
    monkeypatch.delenv("SEODANG_NATIVE")
    assert runtime_of(open_runner(model)).runner == "native"  # and so it is found anew
    assert runtime_of(DirectRunner(varied())).not_native == "its runner was opened as a direct one"


def test_without_a_compiler_it_says_so(varied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler, "_held", {})
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    library.loaded.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler is there"):
            say.cache_clear()
            told = runtime_of(open_runner(varied()))
    finally:
        library.loaded.cache_clear()
        say.cache_clear()
    assert told.runner == "direct" and told.kernel == TORCH and told.not_native.startswith("no C compiler is there (cc, clang, gcc): install gcc or clang")


def test_it_is_right_after_what_refresh_finds_and_for_other_threads(varied, monkeypatch):
    model = varied()
    runner = open_runner(model)
    native = runtime_of(runner)
    assert type(runner) is NativeRunner and native.runner == "native" and runtime_of(runner) is native  # found out once
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)).eval()
    runner.refresh()
    told = runtime_of(runner)
    assert (told.runner, told.kernel) == ("ragged", TORCH) and "linear layers are of another kind" in told.not_native
    adapted.merge_and_unload()
    runner.refresh()
    assert runtime_of(runner) == native
    model.half()
    runner.refresh()
    told = runtime_of(runner)
    assert (told.runner, told.kernel, told.weights) == ("direct", TORCH, "float16") and "float16" in told.not_native
    model.bfloat16()
    assert runtime_of(runner).weights == "bfloat16"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert runtime_of(runner).threads == 3 and str(runtime_of(runner)).endswith(", 3 threads")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_says_in_how_many_bits_the_weights_are(varied, weights):
    model = varied(hidden_size=64, head_dim=16)
    quantise(model, weights)
    assert runtime_of(open_runner(model)).weights == weights


@pytest.mark.parametrize("kind, runner, config", [
    ("granite", "ragged", {}), ("bloom", "padded", {"n_layer": 2, "n_head": 4}), ("mamba", "stateful", {"num_hidden_layers": 2, "state_size": 4}), ("t5", "direct", {}),
])  # fmt: skip
def test_what_torch_runs_says_how_and_why(kind, runner, config, tiny, fresh_tiny):
    model = tiny(kind) if not config else AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=128, hidden_size=32, **config)).eval()
    assert runtime_of(open_runner(model)) == Runtime(runner, TORCH, "float32", 1, f"{kind} is none of its families")


def test_models_of_our_own_say_it_too(own):
    assert runtime_of(open_runner(own("lstm"))) == Runtime("recurrent", TORCH, "float64", 1, "seodang_lstm is none of its families")
    assert runtime_of(open_runner(own("transformer"))).runner == "padded"


def test_a_diffusion_model_says_what_its_canvas_goes_through(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127, 1, "bidirectional"))
    [result] = generate(model, tiny_tokenizer, [[5, 6, 7]], SamplingParams(max_new_tokens=8, steps=4, ignore_eos=True))
    assert result.stats.runtime == runtime_of(open_runner(model)) and (result.stats.prompt_tokens, result.stats.new_tokens) == (3, 8)


def test_an_answers_stats_say_what_it_took(varied, tiny_tokenizer, of_torch):
    model, began = varied(), time.monotonic()
    first, second = generate(model, tiny_tokenizer, [[5, 6, 7, 8], [9]], SHORT)
    lasted = time.monotonic() - began
    assert (first.stats.prompt_tokens, first.stats.new_tokens, first.stats.runtime) == (4, 3, of_torch)
    assert (second.stats.prompt_tokens, second.stats.new_tokens, second.stats.runtime) == (1, 3, of_torch)
    assert 0 < first.stats.seconds < lasted and 0 < second.stats.seconds < lasted
    assert first == replace(first, stats=None)  # an answer is the same whatever it took


def test_stats_of_what_is_broken_off_are_of_what_there_was(varied, tiny_tokenizer):
    engine, (first, second) = prepare(varied(), tiny_tokenizer, [[5, 6], [7]], SHORT, False, None, max_rows=1)
    for each in (first, second):
        engine.submit(each)
    engine.step()
    for each in (first, second):
        engine.cancel(each)
    [begun, waited] = [each.results[0].stats for each in (first, second)]
    assert (begun.prompt_tokens, begun.new_tokens, waited.prompt_tokens, waited.new_tokens, waited.seconds) == (2, 1, 1, 0, None)
    assert begun.seconds > 0 and begun.runtime == waited.runtime == runtime_of(engine.runner)
    engine.close()


def test_a_live_engines_answers_have_them_and_it_says_what_computes(varied, tiny_tokenizer, of_torch):
    with LiveEngine(varied(), tiny_tokenizer) as engine:
        [result] = engine.submit([5, 6, 7], SHORT).results(60)
        assert engine.runtime == result.stats.runtime == of_torch and result.stats.new_tokens == 3
