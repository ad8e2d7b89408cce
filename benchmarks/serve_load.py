"""Servers under load, over HTTP on this machine: what they cost over the engine offline, and how long their clients wait.

python benchmarks/serve_load.py                               1, 8 and 32 streams, about a quarter of an hour on two cores
python benchmarks/serve_load.py --in_flight 8 --rounds 5

At each level so many clients in a closed loop stream greedy answers of `--tokens` tokens to mixed prompts, a third of which share a system prompt, against
`generate` of the same requests at the same rows: in turn, as often as `--rounds` says, each round under a salt of its own, so that nothing of an earlier
one is in the cache. A JSON line tells the medians of both and of their ratio, the median and 95th percentile of the times to the first token and between
tokens, the processor time of `generate` over the server's (which hangs less on what else the machine does), how many answers are word for word those of
`generate`, and the most memory that the server's process held.

The clients share the cores with the server, so they do the least that tells the time: sockets on one event loop that count `data:` lines as they come;
what these say is read when the clock has stopped. `client_cpu` is their part of all processor time. Servers are started and stopped here; a further one is
a line of `SERVERS`.
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
from contextlib import contextmanager
from dataclasses import dataclass, field

from engine_load import Texts, rounded, status, told, turns  # it sets OMP_WAIT_POLICY before torch is imported

from seodang.infer import SamplingParams, generate, load

START, ROUND = 180, 900  # seconds that a server's start and a round may take
SERVERS = {  # the command, and where its /v1 is
    "seodang": (f"{shlex.quote(sys.executable)} -m seodang serve {{model}} --port {{port}} --dtype {{dtype}} --max_rows {{rows}}", "http://127.0.0.1:{port}/v1"),
}  # fmt: skip
GREEDY = {"temperature": 0, "ignore_eos": True, "stream": True}


@dataclass
class Server:
    """A running server: its process, where it listens, and what it calls the model."""

    pid: int
    host: str
    port: int
    path: str
    model: str

    def request(self, body: dict) -> bytes:
        """A request to continue a text, as it goes over the wire."""
        content = json.dumps({"model": self.model, **body}).encode()
        head = f"POST {self.path}/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content


@contextmanager
def running(name: str, args, rows: int) -> Iterator[Server]:
    """Start a server, wait until it is well, and stop it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, base = (text.format(model=args.model, port=port, dtype=args.dtype, rows=rows) for text in SERVERS[name])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START
            while not answers(base.removesuffix("/v1") + "/health"):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"{command} did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield Server(process.pid, "127.0.0.1", port, "/" + base.split("/", 3)[3], args.model)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(address: str) -> bool:
    """Whether a server answers there by 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


@dataclass
class Answer:
    """What came of one request: when it was sent, when each part came, and the parts."""

    sent: float
    times: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The parts' text."""
        events = [line[6:] for line in b"".join(self.parts).split(b"\n") if line.startswith(b"data: {")]
        return "".join(choice["text"] for event in map(json.loads, events) for choice in event["choices"])


class Client(asyncio.Protocol):
    """A connection that sends the next request of a list as soon as its last one is answered."""

    def __init__(self, waiting: list[tuple[int, bytes]], answers: dict[int, Answer], done: asyncio.Future):
        self.waiting, self.answers, self.done = waiting, answers, done

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Send the next, or end."""
        if not self.waiting:
            self.done.set_result(None)
            self.transport.close()
            return
        number, request = self.waiting.pop(0)
        self.answer = self.answers[number] = Answer(time.perf_counter())
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self.answer.parts and not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(data.decode(errors="replace"))
        self.answer.parts.append(data)
        self.answer.times += [time.perf_counter()] * data.count(b"data: {")
        if data.endswith(b"0\r\n\r\n"):  # the end of a body that comes in chunks
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed a connection"))


async def closed_loop(server: Server, bodies: list[dict], in_flight: int) -> tuple[float, list[Answer]]:
    """Have so many clients send all requests; return the seconds that it took, and the answers."""
    waiting = [(number, server.request(body)) for number, body in enumerate(bodies)]
    answers: dict[int, Answer] = {}
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    ends = [loop.create_future() for _ in range(in_flight)]
    async with asyncio.timeout(ROUND):
        for end in ends:
            await loop.create_connection(lambda: Client(waiting, answers, end), server.host, server.port)
        await asyncio.gather(*ends)
    return time.perf_counter() - began, [answers[number] for number in range(len(bodies))]


def level(name: str, model, tokenizer, texts: Texts, args, in_flight: int) -> None:
    """Measure a server at so many streams, and print the line."""
    prompts = texts.mixed(max(3 * in_flight, 6), random.Random(in_flight))
    params = SamplingParams(max_new_tokens=args.tokens, ignore_eos=True)
    heard: list[list[Answer]] = []
    said: list[str] = []
    shares: list[float] = []
    work: dict[str, list[float]] = {"offline": [], "server": []}

    def offline() -> float:
        began, worked = time.perf_counter(), time.process_time()
        said[:] = [result.text for result in generate(model, tokenizer, prompts, params, max_rows=in_flight)]
        work["offline"].append(time.process_time() - worked)
        return len(prompts) * args.tokens / (time.perf_counter() - began)

    with running(name, args, in_flight) as server:

        def over_http() -> float:
            salt = f"round {len(heard)}"
            bodies = [{**GREEDY, "prompt": prompt, "max_tokens": args.tokens, "cache_salt": salt} for prompt in prompts]
            mine, theirs = time.process_time(), processor_seconds(server.pid)
            seconds, answers = asyncio.run(closed_loop(server, bodies, in_flight))
            mine, theirs = time.process_time() - mine, processor_seconds(server.pid) - theirs
            heard.append(answers)
            shares.append(mine / (mine + theirs))
            work["server"].append(theirs)
            return len(prompts) * args.tokens / seconds

        asyncio.run(closed_loop(server, [{**GREEDY, "prompt": "Warm.", "max_tokens": 4, "cache_salt": "warm"}], 1))
        generate(model, tokenizer, ["Warm."], SamplingParams(max_new_tokens=4))
        ours, theirs = turns([over_http, offline], args.rounds)
        memory = status("VmHWM", server.pid)

    answers = [answer for each in heard for answer in each]
    first = [answer.times[0] - answer.sent for answer in answers]
    between = [after - before for answer in answers for before, after in zip(answer.times[: args.tokens], answer.times[1 : args.tokens])]
    same = sum(answer.text == said[place % len(said)] for place, answer in enumerate(answers))
    more = {
        "requests": len(prompts), "first_token_s": spread(first), "between_tokens_s": spread(between),
        "processor_time": rounded(statistics.median(a / b for a, b in zip(work["offline"], work["server"]))),
        "same_text": f"{same} of {len(answers)}", "server_peak_MB": memory, "client_cpu": rounded(statistics.median(shares)),
    }  # fmt: skip
    told(f"tokens/s of {name} over HTTP, {in_flight} streams, against generate", ours, theirs, 0.9, at_least=True, **more)


def processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process has taken, where the system tells it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
    except OSError:
        return float("nan")
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def spread(values: list[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    ordered = sorted(values)
    return {"p50": rounded(statistics.median(ordered)), "p95": rounded(ordered[int(0.95 * (len(ordered) - 1))])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--in_flight", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu", dtype=args.dtype)
    for in_flight in args.in_flight:
        for name in args.servers:
            level(name, model, tokenizer, Texts(tokenizer), args, in_flight)


if __name__ == "__main__":
    main()
