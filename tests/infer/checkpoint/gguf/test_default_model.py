"""The default model, exported, says in llama.cpp what it says here."""

from pathlib import Path

import pytest

from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.recipes import export

SAMPLES = Path(__file__).parents[4] / "data" / "samples"
QUESTIONS = (
    "Which country is the city of Suwon located in?",
    "한국의 수도는 어디인가요?",
    "Write a Python function that adds two numbers.",
    "Name three colours. 😀",
    "다음 문장을 영어로 번역하세요: 밖에 눈이 많이 쌓였어요.",
    "What is 1,234 + 5,678?",
)


@pytest.mark.full
def test_ids_and_greedy_answers_are_those_of_here(tmp_path, llama_cpp):
    assert export.main(["default", str(tmp_path / "smol"), "--gguf", "f32"]) == 0
    engine = llama_cpp.load(tmp_path / "smol" / "smol-F32.gguf")
    files = [(SAMPLES / name).read_text(encoding="utf-8") for name in ("korean_english.jsonl", "geography.jsonl", "build.py")]
    lines = [line for file in files for line in file.splitlines()]
    tokenizer = load_tokenizer(tmp_path / "smol")
    asked = [*filter(None, lines[::3]), *(f"<|im_start|>user\n{question}<|im_end|>\n" for question in QUESTIONS)]
    assert engine.ids_of(*asked) == tokenizer(asked)["input_ids"]
    model, tokenizer = load(tmp_path / "smol", device="cpu", dtype="float32")
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    own = [result.text for result in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=32))]
    assert [engine.answer(prompt, 32)["message"]["content"] for prompt in prompts] == own
