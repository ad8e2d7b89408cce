"""The server held under a mixed load: its memory stays, no request is lost, every stream ends in order, and at the end nothing is left over.

python benchmarks/serve_soak.py                                a quarter of an hour
python benchmarks/serve_soak.py --minutes 2 --against 1 --lead_in 1500   two minutes, against minute 1, which begins once 1,500 requests are answered

It starts `seodang serve` and lets `--clients` clients ask in a closed loop (`soak_traffic.py`): chats, completions, responses and embeddings, whole and streamed, long
and short, with grammars, beams, several answers and log-probabilities, of the model and of three random LoRA adapters over it. Some clients go away while they
wait or are streamed to, some read slowly, some send half a body, some ask for what cannot be had; every `BURST` seconds a crowd comes for which there is no room.

A table tells each minute; then follows the verdict, and the exit status is 1 where anything of this does not hold:
- from minute `--against` on the server's resident memory, the median of a minute's seconds, is within 5% of that minute's;
- each request has an answer, an error of its own making (4xx, or a full queue), or was left by its client; no connection breaks off, and no answer takes `PATIENCE` seconds;
- every stream ends with a finish reason for each choice or an error event, and [DONE] where its path has it;
- when all clients have gone nothing runs, nothing waits, no byte is reserved and no row of the cache in use; SIGTERM ends the server, whose log tells of no defect.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from engine_load import running_text
from soak_traffic import Ask, Traffic, Wrong, check_stream, check_whole

from seodang.infer import load

HOST = "127.0.0.1"
ROWS, WAITING = 8, 12  # so few that queues fill
BURST, CROWD = 20, 40  # seconds between two crowds, and how many come
PATIENCE = 180  # seconds
MARGIN = 0.05


class Lost(Exception):
    """A request that has no answer, though its client waited for it."""


class Soak:
    """What has become of all requests, and how much memory the server held."""

    def __init__(self, port: int, traffic: Traffic, draw: random.Random):
        self.port, self.traffic, self.draw = port, traffic, draw
        self.over = False
        self.handed_in = 0
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.minutes: list[list[float]] = []  # MB, a second each

    async def client(self) -> None:
        """Ask, one request behind the other."""
        while not self.over:
            await self.ask()

    async def crowds(self) -> None:
        """Come in crowds, a stream each."""
        while not self.over:
            await asyncio.sleep(BURST)
            await asyncio.gather(*(self.ask("stream") for _ in range(CROWD)))

    async def ask(self, how: str | None = None) -> None:
        """Ask once, and note what came of it."""
        ask = self.traffic.next(how)
        self.handed_in += 1
        try:
            async with asyncio.timeout(PATIENCE):
                outcome = await self.answered(ask)
        except TimeoutError:
            outcome = self.noted(f"no answer within {PATIENCE} s", ask)
        except (Wrong, Lost, OSError, asyncio.IncompleteReadError, ValueError, LookupError, TypeError) as error:
            outcome = self.noted(repr(error), ask)
        self.outcomes[outcome] += 1
        if outcome == "full":
            await asyncio.sleep(self.draw.random())

    def noted(self, why: str, ask: Ask) -> str:
        """Note a request that went wrong."""
        self.wrong.append(f"{why} ({ask.how}, {ask.path}: {ask.content[:200]!r})")
        return "wrong"

    async def answered(self, ask: Ask) -> str:
        """Send a request and do with it what its client does; return what came of it."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(ask.head + (ask.content[: len(ask.content) // 2] if ask.how == "cut" else ask.content))
            if ask.how in ("cut", "leaves"):
                await asyncio.sleep(self.draw.choice([0.0, 0.05, 0.3, 1.5]))
                return "left"
            status, headers = await head_of(reader)
            parts = parts_of(reader, headers)
            if status == 200 and ask.how == "leaves while it streams":
                for _ in range(self.draw.randrange(12)):
                    if not await anext(parts, b""):
                        break
                return "left"
            content = bytearray()
            async for part in parts:
                content += part
                if ask.how == "slow":
                    await asyncio.sleep(0.1)
            return self.judged(ask, status, headers, bytes(content))
        finally:
            writer.close()

    def judged(self, ask: Ask, status: int, headers: dict[str, str], content: bytes) -> str:
        """Return what an answer is; raises Wrong for one that the protocol does not allow."""
        if status >= 400:
            error = json.loads(content)["error"]
            if error["code"] == "queue_full":
                return "full"
            if status >= 500 or ask.how != "mistake":
                raise Wrong(f"{status}: {error}")
            return "refused"
        if ask.how == "mistake":
            raise Wrong(f"a mistake was answered by {status}: {content[:300]!r}")
        if headers["content-type"].startswith("text/event-stream"):
            if (told := check_stream(ask, content)) is not None:
                raise Wrong(f"a stream was broken off: {told}")
            return "streamed"
        check_whole(ask, content)
        return "whole"

    async def watch(self, process: psutil.Process, minutes: int, lead_in: int) -> None:
        """Note the server's memory each second once so many requests have ended, and print a line each minute; at the last, all is over."""
        while sum(self.outcomes.values()) < lead_in:
            await asyncio.sleep(0.1)
        began, before, columns = time.monotonic(), self.outcomes.copy(), ("whole", "streamed", "refused", "full", "left", "wrong")
        print(f"{'minute':>6} {'asked':>6} " + " ".join(f"{name:>8}" for name in columns) + f" {'tokens':>7} {'memory MB':>9} {'most':>6} {'kept MB':>7}")
        handed_in, tokens = self.handed_in, (await asyncio.to_thread(metrics, self.port))["seodang_generated_tokens_total"]
        for minute in range(1, minutes + 1):
            self.minutes.append([])
            while time.monotonic() < began + 60 * minute:
                self.minutes[-1].append(process.memory_info().rss / 1e6)
                await asyncio.sleep(1)
            found = await asyncio.to_thread(metrics, self.port)
            counts = " ".join(f"{self.outcomes[name] - before[name]:>8}" for name in columns)
            memory = self.minutes[-1]
            told = f"{found['seodang_generated_tokens_total'] - tokens:>7.0f} {statistics.median(memory):>9.1f} {max(memory):>6.0f}"
            print(f"{minute:>6} {self.handed_in - handed_in:>6} {counts} {told} {found['seodang_prefix_cache_bytes'] / 1e6:>7.1f}", flush=True)
            before, handed_in, tokens = self.outcomes.copy(), self.handed_in, found["seodang_generated_tokens_total"]
        self.over = True

    def grown(self, against: int) -> list[str]:
        """Return what is wrong with the memory, minute by minute."""
        medians = [statistics.median(each) for each in self.minutes]
        wanted = medians[against - 1]
        later = enumerate(medians[against:], against + 1)
        return [f"memory of minute {n}: {each:.1f} MB, {each / wanted:.3f} of minute {against}'s" for n, each in later if abs(each / wanted - 1) > MARGIN]


async def head_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer; raises Lost where the connection is closed before them."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    except asyncio.IncompleteReadError as error:
        raise Lost(f"the connection was closed before the answer, after {error.partial[:100]!r}") from None
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def parts_of(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """Yield the parts of a body; raises IncompleteReadError where the connection is closed before its end."""
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


def told(port: int, path: str) -> str:
    """What the server says at a path."""
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=PATIENCE) as response:
        return response.read().decode()


def metrics(port: int) -> dict[str, float]:
    """The server's counts that have no labels."""
    lines = [line.split() for line in told(port, "/metrics").splitlines() if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in lines}


def left_over(port: int, seconds: float = 30) -> list[str]:
    """Return what is left in a server's hands when its clients have gone, as soon as nothing is, or after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        health, found = json.loads(told(port, "/health")), metrics(port)
        names = ("seodang_requests_running", "seodang_requests_waiting", "seodang_cache_reserved_bytes", "seodang_cache_rows_in_use")
        left = [f"{name} is {found[name]:g}" for name in names if found[name]]
        left += [f"/health says {name}={health[name]}" for name in ("running", "waiting", "bytes_reserved") if health[name]]
        if health["status"] != "ok":
            left.append(f"/health says {health}")
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


def random_adapters(model: str, folder: Path, count: int = 3) -> dict[str, Path]:
    """Save so many random LoRA adapters over a model, each strong enough to change what is said; return their folders by name."""
    from many_adapters import write
    from peft import LoraConfig

    base, found = load(model, device="cpu", dtype="float32")[0], {}
    for n in range(count):
        found[f"adapter-{n}"] = folder / f"adapter-{n}"
        write(base, found[f"adapter-{n}"], n, LoraConfig(r=4 << n, target_modules=["q_proj", "v_proj", "down_proj"]))
    return found


@contextmanager
def serving(args: argparse.Namespace, folder: Path) -> Iterator[tuple[psutil.Process, int, list[str], Path]]:
    """Run `seodang serve`; yield its process, its port, the names of its models and the file that its log goes to."""
    command = [sys.executable, "-m", "seodang", "serve", args.model, "--port", "0", "--served_model_name", "base", "--dtype", "float32"]
    command += ["--max_rows", str(ROWS), "--max_waiting", str(WAITING), "--cache_gib", str(args.cache_gib)]
    names = ["base"]
    if args.adapters:
        adapters = random_adapters(args.model, folder)
        command += ["--adapters", *(f"{name}={path}" for name, path in adapters.items())]
        names += adapters
    print(shlex.join(command), flush=True)
    log = folder / "log"
    with open(log, "wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8") as process:
        try:
            address = next((line.split()[3] for line in process.stdout if line.startswith("serving base at ")), None)
            if address is None:
                raise RuntimeError(f"the server did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
            yield psutil.Process(process.pid), int(address.rpartition(":")[2]), names, log
        finally:
            process.kill()


async def soak(args: argparse.Namespace, process: psutil.Process, port: int, names: list[str]) -> Soak:
    """Keep a server busy for so many minutes; return when the last client has gone."""
    found = Soak(port, Traffic(names, running_text(), args.seed), random.Random(args.seed))
    clients = [found.client() for _ in range(args.clients)]
    await asyncio.gather(found.watch(process, args.minutes, args.lead_in), found.crowds(), *clients)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--minutes", type=int, default=15)
    parser.add_argument("--against", type=int, default=3, help="the minute whose memory later ones are held against")
    parser.add_argument("--lead_in", type=int, default=0, help="requests that are answered before minute 1 begins")
    parser.add_argument("--clients", type=int, default=14)
    parser.add_argument("--cache_gib", type=float, default=0.2, help="so little that the prefix cache has its full size before the minute that counts")
    parser.add_argument("--adapters", action=argparse.BooleanOptionalAction, default=True, help="serve three random LoRA adapters over the model too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not 0 < args.against < args.minutes:
        parser.error(f"--against must be a minute before the last, got {args.against} of {args.minutes}")
    with tempfile.TemporaryDirectory() as folder, serving(args, Path(folder)) as (process, port, names, log):
        found = asyncio.run(soak(args, process, port, names))
        failures = [*found.wrong[:20], *found.grown(args.against), *left_over(port)]
        if sum(found.outcomes.values()) != found.handed_in:
            failures.append(f"{found.handed_in} requests were handed in, and {sum(found.outcomes.values())} ended")
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(60)) not in (143, -signal.SIGTERM):
            failures.append(f"SIGTERM ended the server with the status {code}")
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if '"total_ms"' not in line]
        if strange := [line for line in lines if line.strip() and not line.startswith(("Loading weights", "terminated"))]:
            failures.append("the server's log says:\n" + "\n".join(strange[:60]))
    print(f"{found.handed_in} requests of {len(names)} models: {dict(found.outcomes)}")
    print("\n".join(["failed:", *failures]) if failures else "passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
