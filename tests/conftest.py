"""One tiny model a kind and the real model once, for the whole session."""

import copy
import gc
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, so before anything else
os.environ.setdefault("SEODANG_CACHE_GIB", "0")  # models in few bits that tests make are not kept, but where a test asks for that
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads, of torch or of a command that a test runs, would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from seodang.infer.checkpoint.load import load, load_tokenizer

pytest_plugins = ["encoder_fixtures", "seq2seq_fixtures", "translation_fixtures", "own_architectures"]

THREADS = torch.get_num_threads()
torch.set_num_threads(1)  # tiny models lose more to waking threads than they gain; the real model takes them all


def pytest_collection_finish():
    """What the imports made lives to the end: training calls gc.collect(), which looked through it for 0.3 seconds each time."""
    gc.collect()
    gc.freeze()


SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "qwen2_moe": {  # its window stands in its mask alone, not among what its attention is called with
        "use_sliding_window": True, "sliding_window": 6, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "phi3": {},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "experts_implementation": "eager"},  # the others take no float64
}
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

ENDS = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER_DECODERS = {
    "t5": {**ENDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "bart": {
        **ENDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 256, "decoder_start_token_id": 2, "forced_eos_token_id": None,
    },
}  # fmt: skip
# with 0.3 throughout they repeat one token: the source outweighs the position
DEVIATIONS = {
    "t5": {"shared": 0.5, "DenseReluDense": 1.0, "EncDecAttention": 0.16, "relative_attention_bias": 2.0},
    "bart": {"embed_positions": 0.9, "encoder_attn": 0.16},
}
for like, kinds in {"t5": ("mt5", "umt5"), "bart": ("marian", "mbart", "pegasus", "m2m_100", "blenderbot")}.items():
    ENCODER_DECODERS |= dict.fromkeys(kinds, ENCODER_DECODERS[like])
    DEVIATIONS |= dict.fromkeys(kinds, DEVIATIONS[like])


def build_tiny(kind: str = "llama", seed: int = 0, **changes):
    """A random float32 model of a few thousand weights, in evaluation mode."""
    settings = dict(GPT2) if kind == "gpt2" else ENCODER_DECODERS.get(kind) or {**SIZES, **KINDS[kind]}
    config = AutoConfig.for_model(kind, **{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM).from_config(config)
        for name, parameter in model.named_parameters():  # the default 0.02 makes every distribution nearly flat
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=next((std for part, std in DEVIATIONS.get(kind, {}).items() if part in name), 0.3))
    return model.float().eval()


@pytest.fixture(scope="session")
def tiny():
    """`tiny(kind, seed=0, **config)`: a random model, built once for each call's arguments; do not change its weights."""
    built = {}

    def get(kind: str = "llama", seed: int = 0, **changes):
        key = (kind, seed, repr(sorted(changes.items())))
        if key not in built:
            built[key] = build_tiny(kind, seed, **changes)
        return built[key]

    return get


@pytest.fixture
def fresh_tiny():
    """`fresh_tiny(kind, ...)`: a random model of one's own, to be trained."""
    return build_tiny


@pytest.fixture(scope="session")
def tiny_llama(tiny):
    return tiny("llama")


@pytest.fixture(scope="session")
def _tokenizer():
    return load_tokenizer("default")


@pytest.fixture
def tokenizer(_tokenizer):
    """The real tokenizer, a copy of one's own."""
    return copy.deepcopy(_tokenizer)


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer(size: int = 128) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of so many ids without merges (ASCII only), ChatML its template."""
    letters = sorted(ByteLevel.alphabet(), key=lambda c: (ord(c) > 126, ord(c)))[: size - 4]
    specials = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    vocab = {token: id for id, token in enumerate([*specials, *letters])}
    model = Tokenizer(models.BPE(vocab, [], unk_token=None))
    model.pre_tokenizer, model.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """`byte_tokenizer(size)`: a tokenizer of so many ids."""
    return build_tokenizer


@pytest.fixture
def tiny_tokenizer():
    """A tokenizer with an id for each of the tiny models'."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def _real_model():
    return load("default", device="cpu", dtype="float32")[0]


@pytest.fixture
def real_model(_real_model):
    """SmolLM2-135M-Instruct in float32; do not change its weights."""
    torch.set_num_threads(THREADS)
    yield _real_model
    torch.set_num_threads(1)


@pytest.fixture
def unpainted(request, monkeypatch):
    """Leave pictures of runs empty, but in tests marked `painted`: to paint one takes as long as a tiny run."""
    if request.node.get_closest_marker("painted"):
        return
    from matplotlib.figure import Figure

    def savefig(figure, file, **options) -> None:
        if isinstance(file, str | Path):
            Path(file).touch()
        else:  # a curve within a page
            file.write('<svg viewBox="0 0 1 1"></svg>')

    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture(scope="session")
def _warm():
    """Imports once, ten seconds, what each process of each run would import."""
    command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}) as process:
        yield process
        process.stdin.close()


OURS = re.compile(r"starts untrained$|stopping as soon as|is saved in|^(dropped|warning) ")
BARS = re.compile(r"([A-Z][a-z ]+: +)?\d+%\|.*\[.*\]|\x1b\[A|\d+it \[.*\]")
TORCH = re.compile(r".*reducer\.cpp.* did not find any unused parameters.*")  # transformers lets torch look for them, as some models have some


def noise(errors: str) -> list[str]:
    """The lines that are neither ours nor progress bars."""
    lines = (BARS.sub("", TORCH.sub("", line)).strip() for line in errors.replace("\r", "\n").splitlines())
    return [line for line in lines if line and not OURS.search(line)]


@pytest.fixture
def run_script(_warm, tmp_path):
    """`run_script(path, *argv, processes=1, environment={}, codes=[0], patience=0)`: run a script of the repository in forked processes of one group.

    Gives their errors and what they wrote. Where all are to end by 0 they may write no errors beside our own lines and progress bars. So many
    seconds after one of them has failed the others are killed.
    """

    def run(script: str, *argv, processes: int = 1, environment: dict[str, str] | None = None, codes: list[int] | None = None, patience: float = 0) -> str:
        output = tmp_path / "output of the script"
        asked = {"script": str(Path(__file__).parents[1] / script), "argv": [*map(str, argv)], "processes": processes, "output": str(output)}
        asked |= {"environment": environment or {}, "patience": patience}
        print(json.dumps(asked), file=_warm.stdin, flush=True)
        ended = json.loads(_warm.stdout.readline())
        written, errors = output.read_text(encoding="utf-8"), output.with_name(f"{output.name}.err").read_text(encoding="utf-8")
        assert ended == (codes or [0] * processes), errors[-3000:] + written[-3000:]
        assert codes or not noise(errors)
        return errors + written

    return run


class ScriptedServer(ThreadingHTTPServer):
    """A server of OpenAI's protocol that behaves as `script` says; `asked` holds, in their order, what was asked of it: path, body, headers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.script, self.asked = script, []
        self.models = [{"id": "pupil", "object": "model"}]
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that have gone are no news."""

    @property
    def prompts(self) -> list:
        """What was asked, as texts."""
        return [body["messages"][-1]["content"] if "messages" in body else body["prompt"] for path, body, _ in self.asked if body]


class ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, None, dict(self.headers)))
        models = self.server.models() if callable(self.server.models) else self.server.models
        self.say(*models) if isinstance(models, tuple) else self.say(200, {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        said = self.server.script(body)
        if said is None:  # it hangs up
            self.close_connection = True
        else:
            self.say(*said) if isinstance(said, tuple) else self.say(200, said)

    def say(self, status, body, headers=None, missing=0):
        """An answer of a status, JSON or bytes, of which so many last bytes do not come."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content[: len(content) - missing])
        self.close_connection = bool(missing)

    def log_message(self, *_):
        pass


def said(text: str, **more) -> dict:
    """An answer of the protocol, chat and completion in one."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop", **more}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.fixture
def scripted_server():
    """`scripted_server(script)`: a server of this machine that answers a body as `script(body)` says: an object, (status, body, headers, missing bytes), or None."""
    with ExitStack() as stack:

        @contextmanager
        def running(server):
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield server
            server.shutdown()
            server.server_close()
            thread.join()

        def start(script=lambda body: said("Yes.")):
            return stack.enter_context(running(ScriptedServer(script)))

        start.said = said
        yield start
