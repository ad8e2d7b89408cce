"""Every command that reads records reads those of a Korean Excel, with columns of its user's names, and tells which it took as what."""

import importlib
import json

import pytest

ROWS = [("질의", "좋음", "나쁨", "참"), *((f"say {letter}", letter.upper(), letter * 2, flag) for letter, flag in zip("abcd", ("true", "false") * 2, strict=True))]
TINY = ["--device", "cpu", "--dtype", "float32"]
RUN = [*TINY, "--report_to", "none", "--dry_run", "true"]
PAIRS = ["prompt=질의", "chosen=좋음", "rejected=나쁨"]
PROMPTS = ["prompt=질의", "answer=좋음"]
TOLD = "질의 as prompt, 좋음 as {} in 4 records"


@pytest.mark.parametrize(
    "verb, columns, more, told",
    [
        ("sft", ["prompt=질의", "completion=좋음"], RUN, TOLD.format("completion (not read: 나쁨, 참),")),
        ("dpo", PAIRS, RUN, TOLD.format("chosen, 나쁨 as rejected (not read: 참),")),
        ("kto", ["prompt=질의", "completion=좋음", "label=참"], RUN, TOLD.format("completion, 참 as label (not read: 나쁨),")),
        ("reward", PAIRS, RUN, TOLD.format("chosen, 나쁨 as rejected (not read: 참),")),
        ("ppo", PROMPTS, [*RUN, "--reward", "exact_answer", "--rollouts", "16", "--minibatches", "1", "--max_new_tokens", "8"], TOLD.format("answer,")),
        ("grpo", PROMPTS, [*RUN, "--reward", "exact_answer", "--num_generations", "2", "--max_completion_length", "8"], TOLD.format("answer,")),
        ("rlhf", PROMPTS, [*TINY, "--dry_run", "true", "--ranker", "rule:exact_answer", "--heldout_prompts", "0"], TOLD.format("answer,")),
        ("preview", PAIRS, [], TOLD.format("chosen, 나쁨 as rejected (not read: 참),")),
    ],
)
def test_a_table_in_cp949_is_read_by_its_columns(base, tmp_path, capsys, verb, columns, more, told):
    path = tmp_path / "표.csv"
    path.write_bytes("".join(",".join(row) + "\r\n" for row in ROWS).encode("cp949"))
    out = [] if verb == "preview" else ["--output_dir", str(tmp_path / "out")]
    words = ["--model", str(base), "--data", str(path), *out, *more]
    main = importlib.import_module(f"seodang.recipes.{verb}").main
    assert main([*words, "--columns", *columns]) == 2
    assert "표.csv is not UTF-8 text (line 1, byte 1 of it): it looks like cp949" in capsys.readouterr().err
    assert main([*words, "--columns", *columns, "--encoding", "cp949"]) == 0
    assert f"columns {told}" in " ".join(capsys.readouterr().out.split())  # a narrow terminal breaks it
    assert main([*words, "--columns", columns[0] + "?", "--encoding", "cp949"]) == 2
    assert "there is no column '질의?' among 질의, 좋음, 나쁨, 참: did you mean prompt=질의?" in capsys.readouterr().err


def test_both_sides_are_scored_by_their_columns(base, tmp_path, capsys):
    path = tmp_path / "표.csv"
    path.write_bytes("".join(",".join(row) + "\r\n" for row in ROWS).encode("cp949"))
    from seodang.recipes.score import main

    assert main(["--model", str(base), "--data", str(path), *TINY, "--columns", *PAIRS, "--encoding", "cp949"]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert lines[0]["record"] == "표.csv line 2" and lines[-1]["records"] == lines[-1]["pairs"] == 4
    assert "columns         질의 as prompt, 좋음 as chosen, 나쁨 as rejected (not read: 참), in 4 records" in printed.err
