"""Golden outputs of strategies that transformers no longer has, with the models that gave them; a tokenizer that knows pieces of JSON."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import run
from seodang.infer.engine.params import SamplingParams
from seodang.infer.kernels.quantised_linear import OutputSlice, Quantised
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.stop import AnswerText
from seodang.infer.runners.encoder_decoder import decoder_start
from seodang.infer.runners.native import library as native_library
from seodang.infer.runners.native.library import ROW, NativeModel, built_for, loaded
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser

GOLDEN = Path(__file__).parent / "golden"
PIECES_OF_JSON = [
    '","', '":"', '":', '{"', '["', '":{"', '","a":1,"', '"a":', ',"a"', 'a":', 'ge":', '"}', '"}]', '},{"', '\\u00', "\\u", "61", '"\\u0061',
    ', "', ': "', ": ", ",", "00", "-02-", "29", ":60Z", "true", "null", "가", "이름", "나", "나무", '"이름"', "9007199254740992", "0.", "00000",
]  # fmt: skip


@pytest.fixture(scope="session")
def wordy_tokenizer():
    """Every byte, and pieces of JSON that reach over its parts."""
    spelled = [ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece)[0][0] for piece in PIECES_OF_JSON]
    names = list(dict.fromkeys(["<pad>", "<s>", "<end>", *sorted(ByteLevel.alphabet()), *spelled]))
    backend = Tokenizer(models.BPE({name: id for id, name in enumerate(names)}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<end>")


@pytest.fixture
def double(fresh_tiny):
    """`double(kind, **config)`: a tiny model in float64."""
    return lambda kind="llama", **config: fresh_tiny(kind, **config).double()


@pytest.fixture
def varied(fresh_tiny):
    """`varied(kind, **config)`: a tiny model whose norms and biases are random too."""

    def build(kind="llama", **config):
        model = fresh_tiny(kind, **config)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.normal_(mean=0.5, std=0.3, generator=generator)
        return model

    return build


@pytest.fixture
def natively(monkeypatch):
    """A list that comes to hold how many rows each native pass has."""
    rows, run = [], NativeModel.run
    monkeypatch.setattr(NativeModel, "run", lambda self, numbers, *rest: rows.append(len(numbers) // ROW) or run(self, numbers, *rest))
    return rows


@pytest.fixture
def reading(monkeypatch):
    """`reading(natively)`: prompts of models that are laid out from now on run natively, or through torch, whichever this machine does sooner."""
    return lambda natively: monkeypatch.setattr(native_library, "quick_with_many", lambda dtype: natively)


@pytest.fixture
def other_build(monkeypatch):
    """`other_build(march, needs)`: have steps run in a library that is compiled for another kind of CPU; skips where this one lacks what it needs."""

    def change(march: str, needs: str) -> str:
        if not torch.cpu.get_capabilities().get(needs):
            pytest.skip(f"this CPU has no {needs}")
        monkeypatch.setenv("SEODANG_NATIVE_MARCH", march)
        loaded.cache_clear()
        return built_for()

    yield change
    monkeypatch.undo()
    loaded.cache_clear()


@pytest.fixture(scope="session")
def dequantised():
    """`dequantised(model)`: the same model in float32 with the weights that its quantised layers stand for."""

    def twin_of(model):
        twin = copy.deepcopy(model)
        for module in list(twin.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, OutputSlice | Quantised) and not isinstance(module, OutputSlice):
                    whole, part = (layer.whole, slice(layer.start, layer.stop)) if isinstance(layer, OutputSlice) else (layer, slice(None))
                    linear = torch.nn.Linear(whole.in_features, 1, bias=whole.bias is not None)
                    linear.weight = torch.nn.Parameter(whole.dequantised()[part])
                    if whole.bias is not None:
                        linear.bias = torch.nn.Parameter(whole.bias[part])
                    setattr(module, name, linear)
        return twin.float()

    return twin_of


@pytest.fixture(scope="session")
def write_adapter():
    """`write_adapter(model, folder, seed, **lora)`: a random LoRA adapter over a model, strong enough to change its answers, saved by peft."""

    def write(model, folder, seed, **lora):
        targets = {"gpt2": ["c_attn", "c_proj", "c_fc"], "cohere": "all-linear", "t5": ["q", "v", "wo"]}.get(model.config.model_type, ["q_proj", "v_proj", "gate_proj", "down_proj"])
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 9, "target_modules": targets, **lora}))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3, generator=generator)
        adapted.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def resident():
    """`resident()`: how much physical memory this process' blocks of cache take, on Linux: all that is mapped without reserve and without huge pages."""

    def taken() -> int:
        total = size = 0
        with open("/proc/self/smaps", encoding="utf-8") as maps:
            for line in maps:
                if line.startswith("Rss:"):
                    size = int(line.split()[1]) * 1024
                elif line.startswith("VmFlags:") and {"nr", "nh"} <= set(line.split()):
                    total += size
        return total

    return taken


@pytest.fixture(scope="session")
def golden_models():
    """The module that builds the models of the golden files."""
    spec = importlib.util.spec_from_file_location("golden_models", GOLDEN / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(golden_models):
    """`golden("contrastive")`: (model, case) of every case of that file; each model first proves to compute what it computed then."""
    built = {}

    def cases(name: str) -> list[tuple]:
        content = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        for model, was in content["models"].items():
            if model not in built:
                built[model] = golden_models.build(model)
                assert golden_models.probe(built[model]) == pytest.approx(was["logits"], rel=0, abs=was["tolerance"]), model
        return [(built[case["model"]], case) for case in content["cases"]]

    return cases


@pytest.fixture
def new_request(tokenizer):
    """`new_request(model, prompt, index=0, eos=2, traced=False, **options)`: one of a decoder's prompt ids or an encoder-decoder's source ids."""

    def make(model, prompt: list[int], index: int = 0, eos: int = 2, traced: bool = False, **options) -> Generation:
        params = SamplingParams(**options)
        text = lambda: AnswerText(detokeniser(tokenizer), params.stop)
        source, ids = (prompt, [model.config.decoder_start_token_id]) if model.config.is_encoder_decoder else (None, prompt)
        strategy, seed = choose(params), params.seed or 0
        return Generation(Request(index, ids, params, seed, frozenset({eos}), text, strategy, source_ids=source, traced=traced))

    return make


@pytest.fixture
def golden_request(new_request):
    """`golden_request(model, case, index, traced=False)`: the request that a golden case with one end token is."""

    def make(model, case: dict, index: int, traced: bool = False) -> Generation:
        options = dict(case["options"])
        return new_request(model, case["prompt"], index, options.pop("eos_token_id", 2), traced, **options)

    return make


@pytest.fixture
def solved(tiny_tokenizer):
    """`solved(model, case)`: our answers to a golden case, with the first of several end tokens for all as there, and their scores."""

    def solve(model, case: dict) -> tuple[list[list[int]], list[float]]:
        options = dict(case["options"])
        eos = options.pop("eos_token_id", 2)
        eos = [eos] if isinstance(eos, int) else eos
        source, ids = None, case["prompt"]
        if model.config.is_encoder_decoder:
            source, ids = ids, decoder_start(model)
        params, runner = SamplingParams(**options), open_runner(model)
        text = lambda: AnswerText(detokeniser(tiny_tokenizer))
        generation = Generation(Request(0, ids, params, 0, frozenset(eos), text, choose(params), source_ids=source))
        list(run(Engine(runner), [generation]))
        assert runner.live == 0
        found = [generation.results[i] for i in range(params.num_return_sequences)]
        answers = [[*each.ids[:-1], eos[0]] if each.finish_reason == "eos" else each.ids for each in found]
        return answers, [each.score for each in found]

    return solve


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_runtest_setup(item):
    """Skip what needs a browser where there is none: from here, so that one line tells of all of them."""
    if "browse" in item.fixturenames and (CHROMIUM is None or importlib.util.find_spec("playwright") is None):
        pytest.skip("no Chromium, or no Playwright to drive it: make setup-browser")


@pytest.fixture(scope="module")
def _chromium():
    """Each module has its own: while it is open, no other event loop can run in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


def new_tab(chromium, problems: list[str], **context):
    """A page that writes down whom it asks but where it came from, and the errors that it leaves."""
    page = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **context}).new_page()
    page.set_default_timeout(10_000)

    def look(request) -> None:
        origins = ("file:" if page.url.startswith("file:") else "/".join(page.url.split("/")[:3]), "data:", "blob:")
        if not request.is_navigation_request() and not request.url.startswith(origins):
            problems.append(f"asked {request.url}")

    page.on("request", look)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
    return page


@pytest.fixture(scope="module")
def _tab(_chromium):
    """A page for all tests of a module, which takes a third of the time of one for each; and what it has done wrong."""
    problems: list[str] = []
    return new_tab(_chromium, problems), problems


@pytest.fixture
def browse(_chromium, _tab):
    """`browse(address, **context)`: a page of headless Chromium. It may ask no one but where it came from, and leaves no error."""
    (tab, problems), others = _tab, []

    def browse(address: str, **context):
        page = tab
        if context:
            page = new_tab(_chromium, problems, **context)
            others.append(page)
        page.goto(address)
        return page

    yield browse
    for page in others:
        page.context.close()
    tab.unroute_all()
    if tab.url.startswith("http"):
        tab.goto("/".join(tab.url.split("/")[:3]) + "/version")  # where no script writes any more
        tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.goto("about:blank")
    found, problems[:] = list(problems), []
    assert not found
