import re

import pytest

from seodang.infer.checkpoint.manifest import verify
from seodang.recipes import demo


def test_the_demo_ends_with_its_figures_and_the_checkpoint(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    """The whole demo on a tiny model; `make demo` runs it on the real one."""
    base, out = tmp_path / "base", tmp_path / "out"
    fresh_tiny("llama", max_position_embeddings=2048).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    code = demo.main(["--model", str(base), "--heldout", "10", "--minutes", "0.02", "--output_dir", str(out), "--device", "cpu", "--dtype", "float32"])
    assert code == 0
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"heldout n=10 exact before=\d\.\d{3} after=\d\.\d{3} contains before=\d\.\d{3} after=\d\.\d{3}", printed[-2])
    assert printed[-1] == str(out)
    verify(out)
    assert (out / "loss.png").is_file()


def test_held_out_questions_keep_the_files_shares_and_begin_with_suwon():
    questions = demo.choose_questions(200)
    assert len(questions) >= 200
    assert questions[0].prompt[-1]["content"] == "Which country is the city of Suwon located in?"
    korean = [q for q in questions if q.prompt[-1]["content"] in {k.prompt[-1]["content"] for k in demo.choose_questions(10_000)[288:]}]
    assert len(korean) == round(200 * 104 / 392)


@pytest.mark.parametrize("option", ["--heldout", "--minutes"])
def test_values_that_make_no_sense_are_refused(option, capsys):
    assert demo.main([option, "0"]) == 2
    assert "must be above 0" in capsys.readouterr().err
