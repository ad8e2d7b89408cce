"""The first token of `seodang generate`: from the start of the process, against importing torch and transformers and loading the model and its tokenizer.

python benchmarks/first_token.py                         processes of the two in turn, medians and their ratio
python benchmarks/first_token.py --rounds 7

`wall` is from the start of the process until the first text on its stdout, `cpu` what the whole process took, its end included. Both in float32 on the
default model, which is converted before anything is timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from seodang.infer.checkpoint.default_model import default_model

LOADED = """
import sys, torch, transformers
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
print("loaded", flush=True)
"""
OURS = ["-m", "seodang", "generate", "default", "hi", "--max_new_tokens", "1", "--device", "cpu", "--dtype", "float32"]


def measured(arguments: list[str]) -> tuple[float, float]:
    """Wall seconds until a Python process writes to its stdout, and the CPU seconds of all of it."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not process.stdout.read(1):
        raise RuntimeError(f"{arguments} said nothing")
    wall = time.perf_counter() - begun
    process.stdout.read()
    _, _, used = os.wait4(process.pid, 0)
    return wall, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    sides = {"loaded": ["-c", LOADED, str(default_model())], "ours": OURS}
    times = {side: [] for side in sides}
    for _ in range(rounds):
        for side, arguments in sides.items():
            times[side].append(measured(arguments))
    medians = {side: [statistics.median(values) for values in zip(*each)] for side, each in times.items()}
    for place, name in enumerate(("wall", "cpu")):
        ours, loaded = medians["ours"][place], medians["loaded"][place]
        print(json.dumps({"what": name, "ours": round(ours, 2), "loaded": round(loaded, 2), "ratio": round(ours / loaded, 3)}), flush=True)


if __name__ == "__main__":
    main()
