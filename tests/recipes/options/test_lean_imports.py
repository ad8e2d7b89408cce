"""A command that speaks with a model in few bits imports no compiler and nothing of training; what asks for the compiler afterwards has all of it."""

import json
import subprocess
import sys

import pytest

from seodang.__main__ import VERBS
from seodang.infer.checkpoint.few_bits_folder import write_few_bits
from seodang.infer.checkpoint.quantise import quantise
from seodang.recipes.options import lean_imports

SPEAKING = """
import json, os, sys
sys.argv = ["seodang", "generate", sys.argv[1], "hi", "--max_new_tokens", "2"]
from seodang.__main__ import main
code = main()
names = ["torch._dynamo", "sympy", "torch._inductor", "torch.distributed.tensor", "peft", "trl", "datasets", "pandas", "transformers.trainer"]
there = [name for name in names if name in sys.modules]
import torch
from transformers.utils import import_utils
models = sys.modules["transformers.models"]
own, listed = dict(models._class_to_module), {}
for held in import_utils.define_import_structure(models.__file__).values():
    listed |= {each: module for module, objects in held.items() for each in objects}
differ = sorted(name for name in own.keys() | listed.keys() if own.get(name) != listed.get(name))
from transformers import masking_utils
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
made = type(masking_utils.TransformGetItemToIndex()) is TransformGetItemToIndex
marked = getattr(torch.compiler.disable(lambda: 0), "_torchdynamo_disable", False)
told = {"code": code, "there": there, "listed": len(listed), "differ": differ[:3], "made": made, "marked": marked, "compiler": torch._dynamo.__file__ is not None,
        "available": torch.distributed.is_available()}
print(json.dumps(told))
"""


def test_generate_imports_no_compiler_and_all_is_as_it_was_afterwards(fresh_tiny, tiny_tokenizer, tmp_path):
    model = fresh_tiny("llama")
    quantise(model, "int4")
    write_few_bits(tmp_path, model, "int4")
    tiny_tokenizer.save_pretrained(tmp_path)
    done = subprocess.run([sys.executable, "-c", SPEAKING, str(tmp_path)], capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("listed") > 1000
    assert told == {"code": 0, "there": [], "differ": [], "made": True, "marked": True, "compiler": True, "available": True}, done.stderr


@pytest.mark.full
def test_where_a_library_has_moved_all_is_imported_as_usual():
    """And what stood in is taken away."""
    moved = """
import sys
import seodang.recipes.options.lean_imports as lean
def broken():
    raise AttributeError("moved")
lean.listed_once = broken
lean.import_models()
assert "transformers.modeling_utils" not in sys.modules and "torch._dynamo" not in sys.modules
import torch
assert torch.distributed.is_available() and torch.compiler.disable is not lean.unmarked
from transformers import LlamaForCausalLM
assert "torch._dynamo" in sys.modules and torch._dynamo.__file__
"""
    done = subprocess.run([sys.executable, "-c", moved], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_verbs_are_some():
    assert set(lean_imports.VERBS) < set(VERBS)
