"""Several tasks of one input from a file to a file: taught, answered, measured, gone on with, by a model here and by a server."""

import json
import re

import pytest

from seodang.recipes import generate, prepare, preview, seq2seq, sft
from seodang.recipes.tasks.measuring import same

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "50", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
HERE = ["--dtype", "float32", "--device", "cpu", "--temperature", "0", "--max_new_tokens", "60"]


def written(path, records) -> str:
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return str(path)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(text, outputs=True) -> dict:
    tasks = [("up", "up", text.upper()), ("letters", "list", [*text])]
    return {"input": text, "tasks": [{"name": name, "instruction": asked} | ({"output": output} if outputs else {}) for name, asked, output in tasks]}


TEXTS = ["ab", "cd", "ef"]


@pytest.fixture
def data(tmp_path):
    return written(tmp_path / "tasks.jsonl", map(record, TEXTS))


@pytest.mark.parametrize("layout", ["together", "sequence"])
def test_what_is_taught_in_a_layout_is_answered_in_it(layout, base, data, tmp_path, capsys):
    model, results = tmp_path / "model", tmp_path / "results.jsonl"
    how = ["--tasks", layout, "--task_format", "json"]
    assert sft.main(["--model", str(base), "--data", data, "--output_dir", str(model), "--max_steps", "70", "--save_strategy", "no", *how, *QUICK]) == 0
    assert f"{layout}, 3 dialogues of 3 records" in capsys.readouterr().out
    assert generate.main([str(model), data, "--output", str(results), "--references", *how, *HERE]) == 0
    found = lines(results)
    assert [[task["output"] for task in each["tasks"]] for each in found] == [[text.upper(), [*text]] for text in TEXTS]
    assert [(each["line"], each["input"], each["error"], [task["name"] for task in each["tasks"]]) for each in found] == [
        (number, text, None, ["up", "letters"]) for number, text in enumerate(TEXTS, 1)
    ]
    assert capsys.readouterr().out.splitlines() == [f"{name:<16}exact 1.000, chrf 100.0 of 3" for name in ("up", "letters")]
    kept = json.loads((tmp_path / "results.jsonl.metrics.json").read_text())
    assert kept["up"] == {"results": 3, "errors": 0, "measured": 3, "exact": 1.0, "chrf": pytest.approx(100)}


def pupil(scripted_server, spoiled=lambda body: None):
    """A server that does the tasks of `record` by what the last message says; `spoiled` may give another answer."""

    def script(body):
        if (other := spoiled(body)) is not None:
            return other
        said = body["messages"][-1]["content"]
        text, asked = body["messages"][0]["content"].split("\n\n")[0], said.split("\n\n")[-1]
        if text in ("up", "list"):  # apart, the task comes first
            text, asked = asked, text
        results = {"up": text.upper(), "letters": [*text]}
        if "Do all of these" in said:
            keyed = "\n".join(f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in results.items())
            return scripted_server.said(keyed if "colon" in said else json.dumps(results))
        return scripted_server.said(text.upper() if asked == "up" else json.dumps([*text]))

    return scripted_server(script)


def ask(server, data, out, layout, *more) -> int:
    argv = ["pupil", data, "--backend", "openai", "--base_url", server.base_url, "--tasks", layout, *more]
    return generate.main([*argv, "--output", str(out)] if out else argv)


@pytest.mark.parametrize("layout", ["together", "sequence", "cumulative", "apart"])
@pytest.mark.parametrize("task_format", ["json", "keyed"])
def test_a_server_answers_every_layout_too(layout, task_format, scripted_server, data, tmp_path):
    server, out = pupil(scripted_server), tmp_path / "out.jsonl"
    assert ask(server, data, out, layout, "--task_format", task_format) == 0
    assert [[task["output"] for task in each["tasks"]] for each in lines(out)] == [[text.upper(), [*text]] for text in TEXTS]
    assert [each["tokens"] for each in lines(out)] == [2 if layout == "together" else 4] * 3  # the server says 2 of each answer
    bodies = [body for path, body, _ in server.asked if body]
    formats = [body.get("response_format", {}).get("json_schema", {}).get("schema") for body in bodies]
    if layout == "together":
        assert len(bodies) == 3 and all((schema is not None) == (task_format == "json") for schema in formats)
    else:
        assert len(bodies) == 6 and sorted(map(str, formats)) == ["None"] * 3 + ["{}"] * 3  # the lists are JSON, in whatever format
    rounds = [body["messages"][-1]["content"].split("\n\n")[-1] == "up" for body in bodies]
    assert layout not in ("sequence", "cumulative") or rounds[:3] == [True] * 3  # all records' first task comes first


def test_a_tasks_failure_is_its_own_and_what_was_not_answered_is_asked_again(scripted_server, data, tmp_path, capsys):
    out, refusing = tmp_path / "out.jsonl", [True]

    def spoiled(body):
        said = [each["content"] for each in body["messages"]]
        if said == ["cd\n\nup"] and refusing:
            return 400, {"error": {"message": "not this one"}}, {}, 0
        if said[0] == "ef\n\nup" and said[-1] == "list":
            return scripted_server.said("no list")
        return None

    server = pupil(scripted_server, spoiled)
    assert ask(server, data, out, "sequence", "--references") == 1
    one, two, three = lines(out)
    assert one["error"] is None and "not this one" in two["error"]
    up, letters = two["tasks"]
    assert "not this one" in up["error"] and letters["output"] == ["c", "d"]  # asked as if the first had not been
    assert [each["content"] for body in [b for _, b, _ in server.asked if b] for each in body["messages"] if "cd" in each["content"]] == ["cd\n\nup", "cd\n\nlist"]
    assert three["error"] is None and three["tasks"][1]["error"].startswith("not JSON") and three["tasks"][1]["text"] == "no list"
    said = capsys.readouterr()
    assert "exact 0.667" in said.out and "1 errors" in said.out and "of 1 of 3 records a prompt was not answered" in said.err
    refusing.clear()
    before = len(server.asked)
    assert ask(server, data, out, "sequence", "--references", "--resume") == 0
    assert [body["messages"][0]["content"] for _, body, _ in server.asked[before:] if body] == ["cd\n\nup"] * 2  # that record alone
    assert [each["line"] for each in lines(out)] == [1, 2, 3] and lines(out)[1]["tasks"][0]["output"] == "CD" and lines(out)[0] == one
    assert ask(server, data, out, "sequence", "--references", "--resume") == 0
    assert "all 3 records have their results" in capsys.readouterr().err
    assert ask(server, data, out, "cumulative", "--references", "--resume") == 2
    assert "--tasks sequence, now cumulative" in capsys.readouterr().err


def test_a_server_that_refuses_every_record_in_the_same_words_is_not_asked_for_all_their_tasks(scripted_server, tmp_path, capsys):
    data = written(tmp_path / "many.jsonl", [record(f"{number}") for number in range(40)])
    server = scripted_server(lambda body: (400, {"error": {"message": "no such model"}}, {}, 0))
    assert ask(server, data, tmp_path / "out.jsonl", "sequence", "--concurrency", "2") == 1
    assert "no such model" in capsys.readouterr().err and len([body for _, body, _ in server.asked if body]) < 16


def test_results_are_printed_where_no_file_is_named(scripted_server, data, capsys):
    server = pupil(scripted_server, lambda body: scripted_server.said('{"up": "AB"') if body["messages"][0]["content"].startswith("ab") else None)
    assert ask(server, data, None, "together") == 0
    said = capsys.readouterr()
    assert said.out.startswith('> ab\nup: AB\n> cd\nup: CD\nletters: ["c", "d"]\n> ef')
    assert "error: line 1, letters: no key 'letters' in the answer: not JSON" in said.err
    assert re.search(r"letters +3 results \(1 errors: 1 no key 'letters' in the answer\)", said.err)


def test_records_without_outputs_are_answered_in_columns_of_other_names_too(scripted_server, tmp_path):
    asked = [{"text": text, "system": "Be short.", "tasks": record(text, outputs=False)["tasks"]} for text in TEXTS[:1]]
    path, out = tmp_path / "asked.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps(asked), encoding="utf-8")
    server = scripted_server(lambda body: scripted_server.said(body["messages"][0]["content"]))
    assert ask(server, str(path), out, "apart", "--columns", "input=text") == 0
    [line] = lines(out)
    assert line["record"] == 1 and line["system"] == "Be short." and [task["output"] for task in line["tasks"]] == ["Be short."] * 2


def test_triplets_become_records_and_records_triplets(tmp_path, capsys):
    triplets = [{"instruction": f"{name}?", "input": text, "output": f"{name} {text}"} for name in "ab" for text in ("x", "y")]
    source, tasks, back = written(tmp_path / "triplets.jsonl", triplets), tmp_path / "tasks.jsonl", tmp_path / "back.jsonl"
    assert prepare.main(["--tasks_from", source, "--output", str(tasks)]) == 0
    assert "4 triplets with 2 inputs, 0 of these with one task alone" in capsys.readouterr().out
    assert [[task["output"] for task in each["tasks"]] for each in lines(tasks)] == [["a x", "b x"], ["a y", "b y"]]
    assert prepare.main(["--triplets_from", str(tasks), "--output", str(back)]) == 0
    assert sorted(map(str, lines(back))) == sorted(map(str, triplets))


def test_preview_shows_that_results_alone_are_learned(data, base, capsys):
    assert preview.main([data, "--tasks", "cumulative", "--model", str(base), "--rows", "0"]) == 0
    out = capsys.readouterr().out
    assert "6 read, 6 kept in 6 rows" in out and "cumulative, 6 dialogues of 3 records" in out


def test_no_record_is_both_trained_on_and_held_out(base, tmp_path, capsys):
    data = written(tmp_path / "ten.jsonl", [record(letter * 2) for letter in "abcdefghij"])
    argv = ["--model", str(base), "--data", data, "--tasks", "apart", "--eval_fraction", "0.2", "--dry_run", "--output_dir", str(tmp_path / "m"), *QUICK]
    assert sft.main([*argv, "--eval_samples", "0"]) == 0
    out = capsys.readouterr().out
    assert "16 read, 16 kept" in out and "4 read, 4 kept" in out  # two whole records held out
    assert "held out and trained on" not in out


def test_an_encoder_decoder_learns_them_but_for_dialogues(t5_like, data, tmp_path, capsys):
    argv = ["--model", t5_like, "--data", data, "--dry_run", "--output_dir", str(tmp_path / "m"), *QUICK]
    assert seq2seq.main([*argv, "--tasks", "cumulative"]) == 0
    assert "6 read, 6 kept" in capsys.readouterr().out
    assert seq2seq.main([*argv, "--tasks", "sequence"]) == 2
    assert "tasks sequence is a dialogue of several answers" in capsys.readouterr().err
    assert generate.main([t5_like, data, "--tasks", "sequence"]) == 2
    assert "use cumulative" in capsys.readouterr().err


def test_a_model_of_masked_diffusion_answers_them_without_a_grammar(declared, data, tmp_path, capsys):
    folder, out = str(declared()), tmp_path / "out.jsonl"
    for layout, answers in (("together", 1), ("sequence", 2)):
        assert generate.main([folder, data, "--tasks", layout, "--output", str(out), *HERE]) == 0
        assert "task_grammar    off" in capsys.readouterr().err
        assert all(each["error"] is None and each["tokens"] == 60 * answers for each in lines(out))  # whole canvases, unreadable of a random model
        assert generate.main([folder, data, "--tasks", layout, "--task_grammar", "true", "--output", str(out), *HERE]) == (2 if answers == 1 else 1)
        said = capsys.readouterr().err
        assert "json_schema hangs on" in said if answers == 1 else "of 3 of 3 records a prompt was not answered" in said


@pytest.fixture
def t5_like(fresh_tiny, tiny_tokenizer, tmp_path):
    folder = tmp_path / "t5"
    fresh_tiny("t5").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


PLAIN = {"instruction": "up", "input": "ab", "output": "AB"}


@pytest.mark.parametrize("behind", [300, 10])
def test_a_stream_is_read_on_to_the_records_of_several_tasks(behind, base, data, tmp_path, capsys):
    triplets = written(tmp_path / "triplets.jsonl", [PLAIN | {"input": f"{number}"} for number in range(behind)])
    how = ["--model", str(base), "--tasks", "apart", "--streaming", "--max_steps", "1", "--max_length", "128", "--output_dir", str(tmp_path / "m"), "--save_strategy", "no", *QUICK]
    assert sft.main(["--data", triplets, data, *how]) == 0
    said = capsys.readouterr().out
    told = "tasks           apart, 2 dialogues of 1 records, behind 300 others" if behind == 300 else "tasks           apart, 6 dialogues of 3 records\n"
    assert told in said and "streamed        the counts are those of its first 256 records" in said
    assert sft.main(["--data", triplets, triplets, *how]) == 2
    assert "tasks apart: no record has several tasks" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb, argv, message",
    [
        (sft, ["--data", "TASKS"], "`preview` and `generate`, told their layout: --tasks together, sequence, cumulative or apart"),
        (sft, ["--data", "TASKS", "--tasks", "both"], "tasks must be together, sequence, cumulative or apart, got 'both'"),
        (sft, ["--data", "PLAIN", "--tasks", "together"], "tasks together: no record has several tasks"),
        (sft, ["--data", "TASKS", "--task_format", "text"], "task_format text says how several tasks are laid out: give --tasks too"),
        (sft, ["--data", "BAD", "--tasks", "apart"], "bad.jsonl line 2: tasks[1]: the key 'output' holds nothing"),
        (generate, ["BASE", "BAD", "--tasks", "apart", "--references"], "bad.jsonl line 3: tasks must be a list"),
        (generate, ["BASE", "a prompt", "--tasks", "apart"], "tasks: give one file of records"),
        (generate, ["BASE", "TASKS", "--tasks", "apart", "--raw"], "raw: tasks are asked as messages"),
        (generate, ["BASE", "TASKS", "--tasks", "apart", "--num_return_sequences", "2", "--temperature", "1"], "num_return_sequences 2: a task has one result"),
        (generate, ["BASE", "TASKS", "--tasks", "together", "--regex", "a+"], "regex beside the grammar"),
        (generate, ["BASE", "TASKS", "--task_grammar", "false"], "task_grammar is of several tasks"),
        (generate, ["BASE", "PLAIN", "--tasks", "apart"], "plain.jsonl line 1: the key 'tasks' is missing"),
        (prepare, ["--tasks_from", "PLAIN"], "give --output"),
        (prepare, ["--tasks_from", "TASKS", "--output", "OUT"], "tasks.jsonl line 1: this is a record of several tasks already, {input, tasks}, and no triplet"),
        (prepare, ["--tasks_from", "PLAIN", "--triplets_from", "TASKS", "--output", "OUT"], "give one of them"),
        (prepare, ["--tasks_from", "PLAIN", "--output", "PLAIN"], "is what --tasks_from reads: name another file"),
        (prepare, ["--triplets_from", "TASKS", "--output", "TASKS"], "is what --triplets_from reads: name another file"),
        (prepare, ["--triplets_from", "BAD", "--output", "OUT"], "bad.jsonl line 2: tasks[1]: the key 'output' holds nothing"),
    ],
)
def test_mistakes_are_named(verb, argv, message, base, data, tmp_path, capsys):
    bad = [record("ab"), {"input": "cd", "tasks": [PLAIN, {**PLAIN, "output": None}]}, {"input": "ef", "tasks": []}]
    names = {
        "TASKS": data, "PLAIN": written(tmp_path / "plain.jsonl", [PLAIN]), "BAD": written(tmp_path / "bad.jsonl", bad), "BASE": str(base),
        "OUT": str(tmp_path / "out.jsonl"),
    }  # fmt: skip
    more = ["--model", str(base), "--output_dir", str(tmp_path / "m"), *QUICK] if verb is sft else []
    assert verb.main([names.get(word, word) for word in argv] + more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("output, expected, right", [(True, 1, False), ([0, 1], [False, True], False), ({"a": True}, {"a": 1}, False), ({"a": [1.0]}, {"a": [1]}, True), (True, True, True)])
def test_true_is_not_one(output, expected, right):
    assert same(output, expected) is right
