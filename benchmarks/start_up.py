"""The start of `seodang generate MODEL "hi" --weights int4`, until its first token: beside importing torch and transformers, and beside llama.cpp.

python benchmarks/start_up.py                                                 ours, from the cache and from a saved folder, and the bare imports
python benchmarks/start_up.py --peer ENVIRONMENT/bin/python                   llama.cpp too: an environment with llama-cpp-python, the same GGUF file
python benchmarks/start_up.py --rounds 9 --weights int8 --gguf model.gguf

Processes one after the other, in turns; the first turn fills caches (bytecode, the conversion, the compiled step, the files' pages) and is not counted.
`wall` is from the start of the process until the first text on its stdout (`bare`: until the imports are done), `cpu` what the whole process took, its end
included, `peak` its largest resident memory, pages of mapped files included, as VmHWM has it. A line a side has medians; a line a comparison the medians of
the rounds' own differences (seconds beyond the bare imports) and ratios (to llama.cpp). Nothing else should run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from seodang.infer.checkpoint.default_model import GGUF, PACKAGE, packaged

PROMPT = "hi"
BARE = "import torch, transformers; print('there', flush=True)"
LLAMA_CPP = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
for part in model.create_chat_completion([{"role": "user", "content": sys.argv[3]}], max_tokens=1, temperature=0, stream=True):
    if text := part["choices"][0]["delta"].get("content"):
        print(text, flush=True)
"""


def measured(command: list[str]) -> dict[str, float]:
    """Wall seconds until a process writes to its stdout, the CPU seconds of all of it, and its largest resident memory in MB."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    if not process.stdout.read(1):
        raise RuntimeError(f"{command} said nothing")
    wall = time.perf_counter() - begun
    process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="default", help="what ours speaks with")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--peer", metavar="PYTHON", help="the interpreter of an environment with llama_cpp")
    parser.add_argument("--gguf", default=packaged(PACKAGE, GGUF), help="the file that llama.cpp opens; without, the one that the default model is made of")
    options = parser.parse_args()
    own = [sys.executable, "-m", "seodang", "generate"]
    asked = [PROMPT, "--max_new_tokens", "1"]
    with tempfile.TemporaryDirectory() as parent:
        folder = str(Path(parent) / "saved")
        subprocess.run([sys.executable, "-m", "seodang", "export", options.model, folder, "--weights", options.weights], check=True, stdout=subprocess.DEVNULL)
        sides = {"bare": [sys.executable, "-c", BARE], "ours": [*own, options.model, *asked, "--weights", options.weights], "saved": [*own, folder, *asked]}
        if options.peer:
            sides["llama.cpp"] = [options.peer, "-c", LLAMA_CPP, str(options.gguf), str(os.cpu_count()), PROMPT]
        rounds = [{side: measured(command) for side, command in sides.items()} for _ in range(options.rounds + 1)][1:]
    for side in sides:
        print(json.dumps({"side": side, **{what: round(statistics.median(each[side][what] for each in rounds), 2) for what in ("wall", "cpu", "peak")}}))
    for side in ("ours", "saved"):
        told = {f"{what} beyond bare": round(statistics.median(each[side][what] - each["bare"][what] for each in rounds), 2) for what in ("wall", "cpu")}
        if options.peer:
            ratios = {what: round(statistics.median(each[side][what] / each["llama.cpp"][what] for each in rounds), 2) for what in ("wall", "peak")}
            told |= {f"{what} to llama.cpp's": ratio for what, ratio in ratios.items()}
        print(json.dumps({"side": side, **told}), flush=True)


if __name__ == "__main__":
    main()
