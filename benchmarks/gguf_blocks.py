"""GGUF files in their own blocks: seconds to load and tokens a second, llama.cpp with the same file beside in turns.

python benchmarks/gguf_blocks.py FILE.gguf [FILE.gguf ...] [--llama_cpp ENVIRONMENT/bin/python] [--rounds 5]

Prints a line of JSON for each file and number of rows: tokens a second (the median of the rounds), and ours as a share of llama.cpp's. A file's vocabulary
must have more than 40,000 tokens, of which prompts are drawn. Files of the K kinds are made by llama.cpp's own quantiser (llama-quantize, or
llama_cpp.llama_model_quantize) of a file in F32 (`seodang export --gguf f32`) whose widths are multiples of 256. `peers.py` says what is to be installed.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from peers import NEW, decoding
from sides import Calls, Side, serve

FOLDER = Path(__file__).parent


def begin(path: str) -> tuple[Calls, dict]:
    """Our side: the file loaded, in how long, and into how many bits a weight."""
    from seodang.infer import SamplingParams, generate, load, open_runner, runtime_of
    from seodang.infer.kernels.quantised_linear import Quantised
    from seodang.infer.runners.native.grouped_linear import missing_kernels

    missing_kernels()  # compiled, and tried
    began = time.perf_counter()
    model, tokenizer = load(path)
    seconds = time.perf_counter() - began

    def run(asked: list[list[int]], new: int) -> list[list[int]]:
        return [result.ids for result in generate(model, tokenizer, asked, SamplingParams(max_new_tokens=new, ignore_eos=True))]

    packs = [module for module in model.modules() if isinstance(module, Quantised)]
    bits = 8 * sum(each.nbytes for module in packs for each in module.buffers()) / max(1, sum(module.in_features * module.out_features for module in packs))
    return decoding(run), {"load_s": round(seconds, 2), "bits": round(bits, 3), "runtime": str(runtime_of(open_runner(model)))}


def compare(path: str, llama_cpp: str | None, rounds: int) -> None:
    sides = {"seodang": Side("seodang", [sys.executable, __file__, path, "--side"], {})}
    if llama_cpp is not None:
        sides["llama.cpp"] = Side("llama.cpp", [llama_cpp, str(FOLDER / "peers.py"), "llama.cpp", path, "--side"], {})
    print(json.dumps({"file": path, **{name: side.said for name, side in sides.items()}}), flush=True)
    for rows in (1, 8, 32):
        found = {name: [] for name in sides}
        for number in range(1 + rounds):  # the first warms up
            for name, side in sides.items():
                seconds = side.ask("decode", rows=rows, new=NEW)["seconds"]
                found[name] += [rows * NEW / seconds] if number else []
        pace = {name: round(statistics.median(each), 1) for name, each in found.items()}
        share = {"share": round(pace["seodang"] / pace["llama.cpp"], 2)} if llama_cpp is not None else {}
        print(json.dumps({"file": path, "rows": rows, **pace, **share}), flush=True)
    for side in sides.values():
        side.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--llama_cpp", default=None, help="the interpreter of an environment with llama-cpp-python or xllamacpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", action="store_true", help="answer to what is asked on stdin")
    options = parser.parse_args()
    if options.side:
        serve(partial(begin, options.files[0]))
        return
    for path in options.files:
        compare(path, options.llama_cpp, options.rounds)


if __name__ == "__main__":
    main()
