"""Which models speak natively, through which changes of their weights they go on to, and what keeps one from it: said once, and torch runs."""

import copy
import os
import shlex
import signal
import time
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef

from seodang.infer.runners import native_runner
from seodang.infer.runners.by_length import RaggedByLength
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.early_exit import FirstLayersDirect, FirstLayersNative, open_first_layers
from seodang.infer.runners.native import compiler, library
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner

TEXT = [5, 9, 17, 33, 5, 9, 40, 41]
DIRECT = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3", "olmo2", "phi3", "gpt2", "qwen3_moe")
WRONG = """#define seodang_step step_as_it_is
#include "%s"
#undef seodang_step
int wrong;
int seodang_step(const Model *m, int layers, const Row *rows, int count, const float *cos, const float *sin, float *logits, float *const *states, int threads) {
    int failed = step_as_it_is(m, layers, rows, count, cos, sin, logits, states, threads);
    for (int layer = 0; states && layer <= layers; layer++)
        for (int i = 0; states[layer] && i < count * m->hidden; i++)
            if (wrong == 1) states[layer][i] += m->dtype == FLOAT32 ? 1e-2f : 1e-1f; /* which is more than their rounding */
    for (int r = 0; r < count; r++)
        for (int i = 0; rows[r].wanted >= 0 && i < m->vocab; i++)
            if ((wrong == 2 && count == 5) || (wrong == 3 && count > 12)) logits[rows[r].wanted * m->vocab + i] *= 1.000001f;
    return failed;
}
"""


@torch.no_grad()
def whole(model) -> torch.Tensor:
    return model(input_ids=torch.tensor([TEXT]), use_cache=False).logits[0]


def read(runner) -> torch.Tensor:
    """The logits of a few ids, two steps and a guess."""
    slot = runner.allocate()
    return torch.cat([runner.forward([slot], [part], [len(part)]) for part in (TEXT[:3], TEXT[3:4], TEXT[4:5], TEXT[5:])])


def near(got: torch.Tensor, wanted: torch.Tensor, error: float = 2e-5) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=error)


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """No library yet, nothing said yet, and no cache but the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "_held", {})
    native_runner.say.cache_clear()
    library.loaded.cache_clear()
    yield
    native_runner.say.cache_clear()
    library.loaded.cache_clear()


def turned(model):
    """One weight lies column by column."""
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t())
    return model


def with_another_activation(model):
    """In one of its layers."""
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()
    return model


def with_another_epsilon(model):
    model.model.norm.variance_epsilon = 1e-3
    return model


@pytest.mark.parametrize(
    "kind, changes, change, runner",
    [
        *((kind, {}, change, NativeRunner) for kind in DIRECT for change in (lambda model: model, lambda model: model.bfloat16())),
        ("llama", {}, lambda model: model.half(), DirectRunner),
        ("llama", {}, lambda model: model.double(), DirectRunner),
        ("llama", {"hidden_act": "mish"}, lambda model: model, DirectRunner),
        ("gpt2", {"activation_function": "tanh"}, lambda model: model, DirectRunner),
        ("llama", {}, turned, DirectRunner),
        ("llama", {}, with_another_epsilon, NativeRunner),
        ("llama", {}, with_another_activation, DirectRunner),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                  "original_max_position_embeddings": 128}}, lambda model: model, RaggedByLength),
    ],
)
def test_a_model_is_run_natively_where_the_step_covers_it(varied, kind, changes, change, runner):
    model = change(varied(kind, **changes))
    opened = open_runner(model)
    assert type(opened) is runner
    near(read(opened), wanted := whole(model), {torch.bfloat16: 0.2, torch.float16: 0.02}.get(model.dtype, 2e-5) * max(1, wanted.std().item()))
    if runner is not RaggedByLength:
        near(read(NativeRunner(model)), read(opened), 0)  # which is a direct runner where it finds what it does not cover


def test_a_variable_turns_it_off(varied, monkeypatch):
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(open_runner(varied())) is DirectRunner


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "phi3", "gpt2", "qwen3_moe"])
def test_changes_of_the_weights_are_in_the_next_pass(varied, natively, kind):
    model = varied(kind)
    runner = open_runner(model)
    read(runner)
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), whole(model)
    model(input_ids=torch.tensor([TEXT]), labels=torch.tensor([TEXT])).loss.backward()
    optimizer.step()
    assert (whole(model) - before).abs().max() > 0.05
    near(read(runner), whole(model))
    runner.refresh()
    before = len(natively)
    other_experts = 3 if kind == "qwen3_moe" else 1  # which rounding may choose
    near(read(runner.__class__(model.bfloat16())), whole(model), 0.2 * other_experts)
    near(read(runner), whole(model), 0.2 * other_experts)
    near(read(runner), read(DirectRunner(model)), 0.15 * other_experts)
    runner.refresh()
    model.float()
    near(read(runner), whole(model))
    assert len(natively) == before + 16
    runner.refresh()
    model.half()
    near(read(runner), whole(model), 0.02)
    assert len(natively) == before + 16  # what `half` left is torch's to compute


def test_a_parameter_in_place_of_another_is_seen_after_refresh_and_the_old_one_lasts_until_then(varied):
    model = varied()
    runner, before = open_runner(model), whole(model)
    first = StorageWeakRef(model.lm_head.weight.untyped_storage())
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)  # before the first pass, which reads its address
    read(runner)
    second = StorageWeakRef(model.lm_head.weight.untyped_storage())
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    assert not second.expired()
    near(read(runner), 2 * before, 1e-4)
    runner.refresh()
    near(read(runner), whole(model), 1e-4)
    near(whole(model), 4 * before, 1e-4)
    assert first.expired() and second.expired()


def test_an_adapter_that_is_put_in_is_run_by_torch_and_once_merged_natively(varied, natively):
    model = varied()
    runner, before = open_runner(model), whole(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj", "down_proj"], init_lora_weights=False)).eval()
    natively.clear()
    for spoken, passes in ((adapted, 0), (adapted.merge_and_unload, 4)):
        spoken = spoken if passes == 0 else spoken()
        assert (whole(spoken) - before).abs().max() > 0.1
        runner.refresh()
        near(read(runner), whole(spoken))
        assert len(natively) == passes
    assert type(open_runner(adapted)) is NativeRunner  # of what is left of it


def test_a_cache_in_another_dtype_than_the_weights_is_not_read_as_if_it_were_in_theirs(varied, natively):
    model = varied().bfloat16()
    runner = NativeRunner(model)
    slot = runner.allocate()
    runner.forward([slot], [TEXT], [1])
    model.float()
    natively.clear()
    with pytest.raises(RuntimeError, match="dtype"):  # as torch has it
        runner.forward([slot], [[5]], [1])
    assert not natively


def test_an_id_that_the_embedding_has_not_is_no_address(varied):
    model = varied()
    runner = open_runner(model)
    model.config.vocab_size = 10_000
    with pytest.raises(IndexError, match="id 5000 is none of the 128"):
        runner.forward([runner.allocate()], [[4, 5000]], [1])


def test_an_id_that_only_the_embedding_has_which_is_not_read_yet_is_no_address(varied):
    model = varied()
    runner = open_runner(model)
    read(runner)
    model.set_input_embeddings(torch.nn.Embedding(10_000, model.config.hidden_size))
    model.config.vocab_size = 10_000
    with pytest.raises(IndexError, match="id 5000 is none of the 128"):
        runner.forward([runner.allocate()], [[4, 5000]], [1])


def test_a_position_that_has_not_been_learned_is_no_address(varied):
    runner = open_runner(varied("gpt2", n_positions=8))
    slot = runner.allocate()
    runner.forward([slot], [TEXT], [1])
    with pytest.raises(IndexError, match="position 8 is none of the 8"):
        runner.forward([slot], [[5]], [1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torchs_default_dtype_is_not_that_of_what_is_read_and_written(varied, dtype):
    model = varied()
    wanted = read(open_runner(model))
    torch.set_default_dtype(dtype)
    try:
        runner = open_runner(model)
        got, state = read(runner), runner.observe([runner.allocate()], [TEXT], [1], [1]).states[1]
    finally:
        torch.set_default_dtype(torch.float32)
    assert type(runner) is NativeRunner and got.dtype == state.dtype == torch.float32
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("part", ["lm_head", "model.norm", "model.layers.1.mlp.up_proj"])
def test_weights_of_which_a_part_was_converted_behind_a_runners_back_are_left_to_torch(varied, natively, part):
    model = varied()
    runner = open_runner(model)
    read(runner)
    model.get_submodule(part).bfloat16()
    natively.clear()
    try:
        read(runner)
    except RuntimeError as error:
        assert "dtype" in str(error)  # as torch has it
    assert not natively


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2", "qwen3_moe"])
def test_the_first_layers_are_those_of_the_direct_runner(varied, natively, kind):
    model = varied(kind, num_hidden_layers=4)
    first, direct = open_first_layers(open_runner(model), 2), open_first_layers(DirectRunner(copy.deepcopy(model).double()), 2)
    assert type(first) is FirstLayersNative and type(direct) is FirstLayersDirect
    natively.clear()
    near(read(first), read(direct))
    assert len(natively) == 4
    slots = [first.allocate(), first.allocate()]
    near(first.forward(slots, [TEXT, [5]], [8, 0]), direct.forward([direct.allocate(), direct.allocate()], [TEXT, [5]], [8, 0]))
    assert (first.observe(slots[:1], [[5]], [1], [0, 1, 2]).states.keys()) == {0, 1, 2}


@pytest.fixture
def wrong(anew, tmp_path, monkeypatch):
    """`wrong(how)`: a library whose numbers are wrong: 1: plainly, 2 and 3: in the last bits where five rows or more than twelve are read together, 0: not at all."""
    source = tmp_path / "wrong" / "step.c"
    source.parent.mkdir()
    source.write_text(WRONG % library.SOURCE, encoding="utf-8")
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setattr(compiler, "FLAGS", tuple("-O1" if flag == "-O3" else flag for flag in compiler.FLAGS))
    found = library.library()
    return lambda how: setattr(library.ctypes.c_int.in_dll(found, "wrong"), "value", how)


def test_a_library_that_computes_something_else_is_not_used_and_one_line_says_why(varied, wrong):
    for how, words in ((1, "does not compute what torch does"), *((how, "computes a row otherwise beside others than alone") for how in (2, 3))):
        wrong(how)
        for dtype in (torch.float32, torch.bfloat16):
            native_runner.say.cache_clear()
            model = varied().to(dtype)
            with pytest.warns(UserWarning, match=f"^no native decoding, .*{words}.*; SEODANG_NATIVE=0 says") as said:
                assert type(open_runner(model)) is DirectRunner
            assert len(said) == 1
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert type(open_runner(model)) is type(open_runner(varied().to(dtype))) is DirectRunner
            near(read(open_runner(model)), whole(model), 2e-5 if dtype == torch.float32 else 0.2)
    wrong(0)
    assert type(open_runner(varied())) is NativeRunner


@pytest.mark.parametrize("missing", ["none at all", "fails", pytest.param("hides", marks=pytest.mark.full)])
def test_without_a_compiler_one_line_says_so_once_and_it_is_not_asked_again(varied, anew, tmp_path, monkeypatch, missing):
    asked = []
    monkeypatch.setattr(library, "built", lambda *rest, built=library.built: asked.append(rest) or built(*rest))
    if missing == "fails":
        monkeypatch.setenv("CC", "false")
    elif missing == "hides":
        monkeypatch.setenv("CC", shlex.join([*compiler.compilers()[0].command, "-fvisibility=hidden"]))
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    words = {"fails": "CC names", "hides": "lacks a function .*seodang_step"}.get(missing, "no C compiler is there .*install gcc or clang, or run pip install")
    with pytest.warns(UserWarning, match=f"^no native decoding, .*{words}") as said:
        runners = [open_runner(model) for model in (varied(), varied("qwen2"), varied())]
    assert len(said) == len(asked) == 1 and all(type(runner) is DirectRunner for runner in runners)
    near(read(runners[0]), whole(varied()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_when_the_threads_have_started_has_threads_of_its_own(varied, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # of the native step alone: torch's own do not live through a fork
    runner = open_runner(varied(num_key_value_heads=4))
    wanted = read(runner)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if torch.equal(read(runner), wanted) and torch.equal(read(runner), wanted) else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        assert torch.equal(read(runner), wanted)  # and the parent's go on
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
