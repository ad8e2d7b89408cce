"""Every command and every piece of code of docs/ runs, in the order of its page, on tiny models and small files in place of what a reader has."""

import json
import re
import shlex
import shutil
import subprocess
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live_server import behind_a_socket
from markdown_blocks import PAGES, ROOT, Block, blocks
from seldom import full_but
from seq2seq_fixtures import build_t5_tokenizer
from transformers import TrainingArguments

from seodang.data.form_pairs import main as form_pairs
from seodang.infer import LiveEngine, load, load_tokenizer
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

CHEAP = {  # pages that train nothing, and take seconds
    f"docs/{name}.md"
    for name in ("how-generate-works", "records-and-masks", "teacher-forcing", "serving", "ko/records-and-masks", "ko/serving")
}


def lines(records) -> str:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


SUMS = [{"prompt": f"What is {n} + {n}?", "completion": str(2 * n), "topic": ("even", "odd")[n % 2]} for n in range(24)]
TASKS = [
    {"name": "intent", "instruction": "Name the intent.", "output": "Play"}, {"name": "slots", "instruction": "Extract the slots.", "output": {"year": "1959"}},
]  # fmt: skip
REVIEWS = [{"text": f"a {word} film, number {n}", "sentiment": word, "sentence": f"a {word} film"} for n in range(12) for word in ("fine", "dull")]
CONLL = "Anna B-PER\nlives O\nin O\nNew B-LOC\nYork I-LOC\n. O\n\nBen B-PER\nleft O\nRome B-LOC\n. O\n\n" * 6
SAMPLE = (ROOT / "data" / "samples" / "everyday.jsonl").read_text(encoding="utf-8")[:8000]
FILES = {  # what a reader has: a few records of each kind
    "questions.csv": "question,reply\n" + "".join(f"{each['prompt']},{each['completion']}\n" for each in SUMS),
    "mine.py": "def right_number(prompts, completions, answer, **columns):\n    return [0.0] * len(completions)\n",
    "dialogues.jsonl": lines({"conversations": [{"from": "human", "value": each["prompt"]}, {"from": "gpt", "value": each["completion"]}]} for each in SUMS),
    "heldout.jsonl": lines(SUMS[:6]),
    "reviews.jsonl": lines(REVIEWS), "more.csv": "text\na fine film\n", "train.conll": CONLL, "dev.conll": CONLL,
    "texts.txt": "Anna lives in New York.\n",
    "slots.jsonl": lines([{"text": "Anna lives in New York.", "entities": [{"start": 0, "end": 4, "label": "PER"}]}] * 12),
    "tasks.jsonl": lines([{"input": f"Play song {n}", "tasks": TASKS} for n in range(6)]), "new.jsonl": lines([{"input": "Play a song", "tasks": TASKS}]),
    "triplets.jsonl": lines({"input": f"Play song {n}", **task} for n in range(4) for task in TASKS),
    "texts.jsonl": lines([{"sentence": "The capital of [MASK] is Seoul."}]),
    "sentences.jsonl": lines([{"sentence": "Seoul is a city."}]),
    "translations.jsonl": lines([{"translation": {"ko": "나무가 자란다.", "en": "The tree grows."}}] * 4),
    **{f"texts/{n}.txt": SAMPLE[200 * n : 200 * n + 200] for n in range(40)},
    "seeds.jsonl": lines(SUMS[:6]), "records.jsonl": lines(SUMS[:6]),
}
PAGE_FILES = {  # pages on which a name stands for another kind
    "docs/encoders.md": {"pairs.jsonl": lines([{"anchor": f"a cat of {n} years", "positive": f"the cat is {n} years old"} for n in range(16)])},
    "docs/seq2seq.md": {"pairs.jsonl": lines(SUMS), "test.jsonl": lines(SUMS[:4])},
    "docs/pretraining.md": {"pairs.jsonl": lines(SUMS)},
    "docs/transformer.md": {"pairs.jsonl": lines(SUMS)},
    "docs/evaluation.md": {"questions.jsonl": lines([{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}] * 3)},
}
SMALLER = {  # what stands here for what a page names: models of the hub, sizes that small files do not give
    "google-t5/t5-small": "tiny-t5", "google/t5-v1_1-small": "runs/t5", "klue/bert-base": "default-encoder", "--model ENCODER": "--model default-encoder",
    "vocab_size 8192": "vocab_size 300", "vocab_size=8192": "vocab_size=300", "--kind unigram --hidden": "--kind unigram --vocab_size 300 --hidden",
}  # fmt: skip
FORMS = "form_pairs"
MADE = {  # what other pages, or the reader, made before
    "runs/pairs.jsonl": FORMS,
    "runs/sft": "sft --data data/samples/plain.jsonl", "runs/adapter": "sft --data data/samples/plain.jsonl --lora_r 4",
    "runs/diffusion": "diffusion --data data/samples/cities.jsonl --mask_token '<empty_output>' --canvas 16",
    "suwon-diffusion": "diffusion --data data/samples/cities.jsonl --mask_token '<empty_output>' --canvas 16 --attention prompt_causal",
    "suwon-bidirectional": "diffusion --data data/samples/cities.jsonl --mask_token '<empty_output>' --canvas 16",
    "runs/both": "diffusion --data data/samples/cities.jsonl --mask_token '<empty_output>' --canvas 16 --attention prompt_causal --co_loss 0.5",
    "runs/left_to_right": "sft --data data/samples/cities.jsonl",
    "runs/mlm": "mlm --model default-encoder --data data/samples/everyday.jsonl --columns text=input+output",
    "runs/tasks": "sft --data tasks.jsonl --tasks together",
}


@pytest.fixture
def clone(tmp_path, monkeypatch, small_defaults):
    """A folder as a fresh clone is, with what the page reads and does not make itself."""
    for name in ("data", "recipes", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small_arguments() -> TrainingArguments:
    return TrainingArguments("runs/script", max_steps=2, save_strategy="no", report_to="none", use_cpu=True)


@contextmanager
def serving(name: str):
    """A server of the small default model; yields where it is."""
    model, tokenizer = load("default", device="cpu", dtype="float32")
    with LiveEngine(model, tokenizer, max_rows=4) as engine, behind_a_socket(build_app(Served(engine, name)), engine) as address:
        yield address


class Reader:
    """Runs the blocks of a page: Python ones share their names, as a session does, and begin with what the page speaks of."""

    def __init__(self, quickly):
        self.quickly = quickly
        self.names = {"torch": torch, "Path": Path, "texts": SAMPLE.splitlines(), "args": small_arguments()}
        self.names |= {"record": {"input": "Play a song", "tasks": TASKS}, "records": [{"input": "Play a song", "tasks": TASKS}]}

    def run(self, block: Block) -> None:
        if block.language == "python":
            if "tokenizer" not in self.names:  # of any model
                self.names["tokenizer"] = load_tokenizer("default")
            exec(compile(block.text, block.where, "exec"), self.names)
        else:
            for words in block.commands:
                self.command(words)

    def command(self, words: list[str]) -> None:
        match words:
            case ["seodang", "serve", *_]:
                pass  # the server of `serving` is that one, where something is asked
            case ["seodang", *_]:
                self.quickly(shlex.join(words))
            case ["python", "-m", "seodang.data.form_pairs", made]:
                some_pairs(made)
            case ["curl", *_]:
                if shutil.which("curl"):
                    told = subprocess.check_output([*words, "--silent", "--fail-with-body", "--max-time", "60"], text=True, encoding="utf-8")
                    assert "error" not in json.loads(told), told
            case _:
                raise AssertionError(f"no way to run {words}: name the reason in the fence, as title=\"not run: ...\"")


def wanted(text: str) -> list[str]:
    """What a page reads before it makes it, of what can stand in for it."""
    first = {name: re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w./-])", text) for name in MADE}
    return [name for name, at in first.items() if at and not re.search(r"(--output_dir|--output|form_pairs) $", text[: at.start()])]


@pytest.fixture
def stand_in(clone, quickly, fresh_tiny):
    """`stand_in(page, text)`: lay out what the code of a page reads and does not make."""

    def lay_out(page: str, text: str) -> None:
        some_pairs("pairs.jsonl")
        for name, content in (FILES | PAGE_FILES.get(page, {})).items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content, encoding="utf-8")
        if "tiny-t5" in text:
            tokenizer = build_t5_tokenizer()
            fresh_tiny("t5", vocab_size=len(tokenizer)).save_pretrained("tiny-t5")
            tokenizer.save_pretrained("tiny-t5")
        for name in wanted(text):
            if MADE[name] == FORMS:
                some_pairs(name)
            else:
                quickly(f"seodang {MADE[name]} --output_dir {name}")

    return lay_out


def some_pairs(path: str) -> None:
    form_pairs(path)
    Path(path).write_text("".join(Path(path).read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")


def here(text: str) -> str:
    """Code with what there is here in place of what is larger, or on the hub."""
    for name, small in SMALLER.items():
        text = text.replace(name, small)
    return text


RUNNING = {page: some for page in PAGES if (some := [block for block in blocks(page) if block.runs])}


@pytest.mark.parametrize("page", full_but(CHEAP, [*RUNNING]))
def test_the_code_of_a_page_runs_from_top_to_bottom(page, stand_in, quickly, unpainted):
    text = here("".join(block.text for block in RUNNING[page]))
    stand_in(page, text)
    with serving("first") if "127.0.0.1:8000" in text else nullcontext("") as address:
        reader = Reader(quickly)
        for block in RUNNING[page]:
            reader.run(replace(block, text=here(block.text).replace("http://127.0.0.1:8000", address)))
