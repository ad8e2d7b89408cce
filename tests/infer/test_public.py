"""What `seodang.infer` offers, and the loop that its docstring shows."""

import subprocess
import sys
import textwrap

import seodang.infer
from seodang.infer import SamplingParams, generate


def test_the_documented_loop_runs_word_for_word_and_says_what_generate_says(real_model, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda path: (real_model, tokenizer))
    shown = textwrap.dedent(seodang.infer.__doc__.split("greedily:")[1].split("Nothing is imported")[0])
    exec(compile(shown, "the documented loop", "exec"), {})  # noqa: S102
    prompt = "The three primary colours are red,"
    length = len(tokenizer(prompt)["input_ids"])
    [expected] = generate(real_model, tokenizer, [prompt], SamplingParams(max_new_tokens=30 - length))
    assert capsys.readouterr().out == prompt + expected.text + "\n"


def test_every_offered_name_is_there():
    for name in seodang.infer.__all__:
        assert callable(getattr(seodang.infer, name)) or name in ("Event", "Strategy")


def test_importing_the_room_imports_nothing_heavy():
    script = "import sys, seodang.infer; assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
