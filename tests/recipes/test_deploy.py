"""The container's and the service's files name paths, commands and options that there are, and their health checks tell a server that is ready from one that is not."""

import configparser
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from seodang.infer.server.run import DRAIN
from seodang.recipes import serve
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.options.parser import parse

TOP = Path(serve.__file__).parents[1]
DEPLOY = TOP / "recipes" / "deploy"
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(name: str) -> dict[str, list[str]]:
    """The instructions of a Dockerfile, lines that go on joined, comments left out."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    found: dict[str, list[str]] = {}
    for word, _, rest in (line.partition(" ") for line in lines if line):
        found.setdefault(word, []).append(rest)
    return found


def options_of(argv: list[str]):
    """What `seodang serve` makes of its arguments."""
    assert argv[:2] == ["seodang", "serve"]
    return parse(argv[2:], SpeakingModel, serve.Serve, prog="seodang serve", positional=("model",), description="")


def waited_for() -> str:
    """The shell's words by which the service waits until it is ready, as the shell gets them."""
    line = next(line for line in (DEPLOY / "seodang.service").read_text(encoding="utf-8").splitlines() if line.startswith("ExecStartPost="))
    shell, option, words = shlex.split(line.partition("=")[2])
    assert (shell, option) == ("/bin/sh", "-c")
    return words.replace("$$", "$")


@pytest.fixture
def answering():
    """A server on a port of its own that answers every path by a status; called, it returns the port and the list of paths it was asked for."""
    servers = []

    def start(status: int) -> tuple[int, list[str]]:
        paths: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                paths.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port, paths

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_container_holds_the_whole_package_and_nothing_else():
    copied = [name for line in instructions("Dockerfile")["COPY"] for name in line.split()[:-1]]
    assert all((TOP / name).exists() for name in copied)
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        parent = next(folders[name] for name in sorted(folders, key=len, reverse=True) if package == name or package.startswith(f"{name}."))
        assert parent == "." or parent in copied, package
    assert {"__init__.py", "__main__.py", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= set(copied)
    assert not {"tests", "benchmarks", "docs"} & set(copied)


def test_the_container_installs_what_the_package_asks_for():
    runs = " ".join(instructions("Dockerfile")["RUN"])
    pinned = re.search(r"^torch==(\S+)$", (TOP / ".ci/constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f'"torch=={pinned[1].partition("+")[0]}"' in runs
    extras = re.findall(r"\.\[([\w,-]+)\]", runs)
    assert extras and all(extra in PROJECT["project"]["optional-dependencies"] for each in extras for extra in each.split(","))


def test_the_container_starts_the_server_on_the_port_that_it_shows():
    found = instructions("Dockerfile")
    model, options = options_of([*json.loads(found["ENTRYPOINT"][0]), *json.loads(found["CMD"][0])])
    assert (model.model, options.host, str(options.port)) == ("/models/default", "0.0.0.0", found["EXPOSE"][0])
    model, options = options_of([*json.loads(found["ENTRYPOINT"][0]), "/models/sft", "--max_rows", "8"])  # what follows the image's name
    assert (model.model, options.max_rows) == ("/models/sft", 8)
    assert found["STOPSIGNAL"] == ["SIGTERM"] and "root" not in found["USER"]


@pytest.mark.parametrize("status, well", [(200, True), (503, False)])
def test_the_containers_health_check_tells_whether_it_is_ready(answering, status, well):
    check = json.loads(instructions("Dockerfile")["HEALTHCHECK"][0].partition("CMD ")[2])
    port, paths = answering(status)
    assert check[0] == "python" and ":8000/" in check[2]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", check[2].replace(":8000/", f":{port}/")], capture_output=True)
    assert (done.returncode == 0) is well and paths == ["/ready"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_service_is_started_once_it_is_ready_and_has_failed_once_its_server_has_ended(answering):
    port, paths = answering(200)
    done = subprocess.run(["/bin/sh", "-c", waited_for().replace(":8000/", f":{port}/")], env={"PATH": os.environ["PATH"], "MAINPID": str(os.getpid())}, timeout=20)
    assert done.returncode == 0 and paths == ["/ready"]
    port, _ = answering(503)
    ended = subprocess.Popen(["true"])
    ended.wait()
    done = subprocess.run(
        ["/bin/sh", "-c", waited_for().replace(":8000/", f":{port}/")], env={"PATH": os.environ["PATH"], "MAINPID": str(ended.pid)}, timeout=20, capture_output=True
    )  # fmt: skip
    assert done.returncode == 1


def test_the_service_starts_the_server_and_waits_for_it_at_its_port():
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read(DEPLOY / "seodang.service", encoding="utf-8")
    service = parser["Service"]
    program, *rest = shlex.split(service["ExecStart"])
    assert Path(program).name in PROJECT["project"]["scripts"]
    model, options = options_of([Path(program).name, *rest])
    assert (model.model, options.host) == ("/srv/models/default", "127.0.0.1")
    assert f"http://{options.host}:{options.port}/ready" in waited_for()
    assert float(service["TimeoutStopSec"]) > DRAIN and service["SuccessExitStatus"] == "143"  # 128 + SIGTERM: tests/recipes/test_serve.py
    cache = f"/var/cache/{service['CacheDirectory']}"
    assert f"XDG_CACHE_HOME={cache}" in service["Environment"].split()
    assert parser["Install"]["WantedBy"] == "multi-user.target"
