"""llama.cpp, which reads what is written here, and files of tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("xllamacpp")


class LlamaCpp:
    """A process that has a GGUF file open in llama.cpp."""

    def __init__(self):
        script = Path(__file__).with_name("llama_cpp.py")
        self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ask(self, **asked):
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, self.process.stderr.read()[-3000:]
        return json.loads(answer)

    def load(self, file) -> "LlamaCpp":
        self.ask(load=str(file))
        return self

    def ids_of(self, *texts: str) -> list[list[int]]:
        return self.ask(ids_of=texts)

    def likely_after(self, ids: list[int], count: int) -> torch.Tensor:
        told = self.ask(likely_after=ids, count=count)
        return torch.tensor([told[str(id)] for id in range(count)])

    def after(self, ids: list[int], count: int) -> list[int]:
        return self.ask(after=ids, count=count)


@pytest.fixture(scope="session")
def llama_cpp():
    engine = LlamaCpp()
    yield engine
    engine.process.stdin.close()
    engine.process.wait()
