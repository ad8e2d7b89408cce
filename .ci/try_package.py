"""Try an installed Seodang as its user does: by its commands, from an empty folder, without make and without an extra. `package` runs it by the environment's Python.

Each check is told in a line; the first that fails ends all. With --all-extras, those of absent extras are left out: the environment has them.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

SEODANG = str(Path(sysconfig.get_path("scripts")) / "seodang")
QUESTION, ANSWER = "Which country is the city of Suwon located in?", "The city of Suwon is located in the Republic of Korea."
LIKELIEST = ["--dtype", "float32", "--device", "cpu", "--temperature", "0", "--max_new_tokens", "24"]
EXTRAS = {  # a command that wants more than the package does, and the extra that it must name
    "serve default": "seodang[serve]",
    "lm-eval --model default --tasks piqa": "seodang[lm-eval]",
    "sft --data data/samples/plain.jsonl --qlora true --lora_r 4": "seodang[qlora]",
    "synthesise --model default --data data/samples/plain.jsonl --count 1 --near_duplicates 0.8 --output made.jsonl": "seodang[synthesise]",
    "demo-seq2seq --max_steps 1": "seodang[demo]",
}
ROOMS = """
import importlib, pkgutil, sys
import seodang.data, seodang.infer, seodang.train
for room in (seodang.data, seodang.infer, seodang.train):
    for name in room.__all__:
        getattr(room, name)
from seodang.__main__ import VERBS
from seodang.recipes.options import known
for verb in VERBS:
    importlib.import_module(known.module_of(verb))
from seodang.data.sample_data import sample_names, sample_path
assert "everyday" in sample_names() and all(sample_path(name).is_file() for name in sample_names())
"""


def told(what: str) -> None:
    print(f"  {what}", flush=True)


def run(*words: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
    """What a command writes; it must end by the code."""
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})})
    if done.returncode != code:
        sys.exit(f"{' '.join(words)} ended by {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def expect(text: str, output: str, command: str) -> None:
    if text not in output:
        sys.exit(f"{command}: there is no {text!r} in\n{output}")


def main() -> None:
    extras = [] if "--all-extras" in sys.argv else [*EXTRAS.items()]
    place = run(sys.executable, "-I", "-c", "import seodang; print(seodang.__file__)").strip()
    if not place.startswith(sysconfig.get_path("purelib")):
        sys.exit(f"it is {place} that is imported, not the wheel")
    run(sys.executable, "-I", "-c", ROOMS)
    told("each room with all its public names, each command, and the samples")
    before = run(SEODANG, "--version", "--verbose")
    expect("not there: seodang setup", before, "seodang --version --verbose before the set-up") if extras else None
    expect("run `seodang setup`", run(SEODANG, "generate", "default", "Hello", code=2), "seodang generate default") if extras else None
    run(SEODANG, "setup", "--encoder", "--examples", ".")
    after = run(SEODANG, "--version", "--verbose")
    if "not there" in after:
        sys.exit(f"seodang setup left something out:\n{after}")
    told("seodang setup, before and after which --version --verbose says what is there")
    for command, extra in extras:
        expect(extra, run(SEODANG, *command.split(), code=2), command)
    told("commands that want an extra name it" if extras else "(extras are there: not tried without)")
    expect(ANSWER, run(SEODANG, "generate", "default", QUESTION, *LIKELIEST), "seodang generate")
    bare = {"PATH": str(Path(SEODANG).parent), "CC": "", "XDG_CACHE_HOME": str(Path(os.environ["XDG_CACHE_HOME"]))}
    native = Path(os.environ["XDG_CACHE_HOME"]) / "seodang" / "native"
    for library in native.glob("*") if native.is_dir() else ():  # what a compiler made a moment ago
        library.unlink()
    if "ziglang" not in after.partition("absent")[0]:
        expect("no C compiler is there", run(SEODANG, "--version", "--verbose", environment=bare), "seodang --version --verbose without a compiler")
    expect(ANSWER, run(SEODANG, "generate", "default", QUESTION, *LIKELIEST, environment=bare), "seodang generate without a compiler")
    told("the default model's answer, with a C compiler and without one")
    run(SEODANG, "preview", "data/samples/korean_english.jsonl", "--rows", "1")
    run(SEODANG, "sft", "--config", "recipes/sft.yaml", "--data", "data/samples/plain.jsonl", "--dry_run")
    run(SEODANG, "sft", "--config", "recipes/sft.yaml", "--data", "data/samples/plain.jsonl", "--max_steps", "1", "--per_device_train_batch_size", "1", "--output_dir", "runs/one")
    run(SEODANG, "generate", "runs/one", QUESTION, "--max_new_tokens", "4")
    told("a look at the samples, a plan, a step of training by recipes/sft.yaml, and what it saved answers")


if __name__ == "__main__":
    main()
