"""The process of a command: quick to start, and ended by Ctrl-C with one line at any time."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRESSED = """
import os, signal, sys, seodang.__main__ as command_line
class Press:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
sys.argv = ["seodang", "sft", "--data", "."]
try:
    sys.exit(command_line.main())
except Exception:  # as libraries do around what they try to import
    print("went on")
"""


@pytest.mark.parametrize("module", ["seodang.recipes.options.known", "seodang.recipes.sft", "torch"])
def test_ctrl_c_while_a_command_is_imported_ends_it_with_one_line(module, tmp_path):
    (tmp_path / "data.jsonl").write_text("{}", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", PRESSED.format(module=module)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


def test_ctrl_c_in_a_recipe_ends_it_with_one_line(monkeypatch, capsys):
    from seodang.__main__ import main
    from seodang.recipes import prepare

    def pressed():
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "default_model", pressed)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_generating_imports_nothing_of_training():
    code = """
import gc; gc.disable()  # a third of the time
import sys
from seodang.recipes.options import lean_imports
lean_imports.import_models()  # as the command does
import seodang.recipes.generate, seodang.infer.engine.generate, seodang.infer.checkpoint.load
print(*[name for name in ("trl", "peft", "datasets", "matplotlib", "plotext", "pandas", "pyarrow", "sklearn", "scipy", "sacrebleu", "rich") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT / "tests") == "\n"
