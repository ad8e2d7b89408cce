"""seodang synthesise from end to end: by a tiny model, killed and gone on with, and by servers that misbehave."""

import json
import os
import threading
import time
from collections import Counter

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from seodang.data.files.sources import read
from seodang.infer import SamplingParams, generate, load
from seodang.infer.remote import connection
from seodang.recipes.run.results_file import ResultsFile
from seodang.recipes.synthesis import making
from seodang.recipes.synthesis.synthesise import main

SEEDS = [{"instruction": f"Do it {letter}.", "input": "" if letter in "ab" else letter, "output": f"did {letter}"} for letter in "abcdef"]
LOOSE = ["--near_duplicates", "0", "--min_words", "0", "--max_overlap", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(seed) + "\n" for seed in SEEDS), encoding="utf-8")
    return str(path)


@pytest.fixture
def pupil(fresh_tiny, tiny_tokenizer, tmp_path):
    """A tiny model that reads long prompts."""
    folder = tmp_path / "pupil"
    fresh_tiny("llama", max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def table(out: str) -> dict[str, tuple[int, int]]:
    """By the filters' names what they looked at and dropped."""
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    return {each[0]: (int(each[1]), int(each[2])) for each in cells if len(each) == 5 and each[1].strip().isdecimal()}


def own(pupil, seeds, output, *more) -> list[str]:
    how = ["--shots", "3", "--max_chars", "6", "--max_new_tokens", "120", "--round_size", "4", "--device", "cpu", "--dtype", "float32", "--seed", "5"]
    return ["--data", seeds, "--model", pupil, "--output", str(output), *how, *more]


def test_a_model_makes_records_that_say_where_they_come_from(pupil, seeds, tmp_path, capsys):
    output, dropped = tmp_path / "made.jsonl", tmp_path / "dropped.jsonl"
    with open(seeds, "a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": "Much too long.", "output": "x"}) + "\n")
    # the seeds have 8 characters of instruction
    assert main(own(pupil, seeds, output, *LOOSE, "--max_chars", "8", "--count", "10", "--dropped", str(dropped))) == 0
    told = capsys.readouterr()
    assert "1 of 7 have a text of more than 8 characters (max_chars): left out" in told.err
    made, gone = rows(output), rows(dropped)
    assert len(made) == 10 and [*made[0]] == ["instruction", "input", "output", "provenance"]
    assert all(len(row[name]) <= 8 for row in made for name in ("instruction", "input", "output"))
    origins = [row["provenance"] for row in made]
    assert all(origin["seed"] == 4 + origin["attempt"] and origin["style"] == "self_instruct" and origin["model"] == pupil for origin in origins)
    places = {f"attempt {origin['attempt']}" for origin in origins}
    for origin in origins:
        first = origin["attempt"] <= 4
        assert len(origin["seeds"]) == (3 if first else 1) and len(origin["made"]) == (0 if first else 2)
        assert {*origin["made"]} <= places and {*origin["seeds"]} <= {f"seeds.jsonl line {n}" for n in range(1, 7)}
    assert sorted(origin["attempt"] for origin in (*origins, *(row["provenance"] for row in gone))) == [*range(1, len(made) + len(gone) + 1)]
    counts = table(told.out)
    assert counts["no answer"] == (len(made) + len(gone), 0) and Counter(row["dropped"] for row in gone) == {name: n for name, (_, n) in counts.items() if n}
    assert f"made            10 of {len(made) + len(gone)} attempts" in told.out
    assert [dialogue.messages[-1]["content"] for dialogue in read(str(output))] == [row["output"] for row in made]  # as `seodang sft` reads them

    # the first attempt by hand: the shown seeds in the order of its own draws, its own seed, the schema
    from random import Random

    from seodang.data.synthesis import styles
    from seodang.data.synthesis.seeds import SHAPES

    ask = styles.self_instruct(list(read(seeds, shapes=SHAPES))[:6], 3, 2).ask(0, Random("5 0"), [])
    model, tokenizer = load(pupil, device="cpu", dtype="float32")
    params = SamplingParams(temperature=0.8, max_new_tokens=120, seed=5, json_schema=styles.schema_of(styles.FIELDS, 8))
    [result] = generate(model, tokenizer, [[{"role": "user", "content": ask.prompt}]], params)
    first = next(row for row in (*made, *gone) if row["provenance"]["attempt"] == 1)
    said = styles.said_in(result.text, styles.FIELDS)
    assert said is None and first["answer"] == result.text or {name: text.strip() for name, text in said.items()} == {name: first[name] for name in said}


def killed(argv, after: int) -> None:
    """Run the command in a process that ends, as by SIGKILL, when so many answers have been written."""
    pid = os.fork()
    if pid == 0:
        count, show = [0], ResultsFile.__call__

        def counted(self, result):
            if count[0] == after:
                os._exit(9)
            count[0] += 1
            show(self, result)

        ResultsFile.__call__ = counted
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os._exit(main(argv))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_run_that_is_killed_again_and_again_makes_the_file_of_an_unbroken_one(pupil, seeds, tmp_path, capsys):
    more = ["--round_trip", "chrf:2", "--token_budget", "7000"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    argv = lambda path: own(pupil, seeds, path, *LOOSE, "--max_chars", "8", "--dropped", f"{path}.dropped", *more)
    code = main(argv(whole))
    unbroken = capsys.readouterr().out
    for after in (2, 4):
        killed(argv(broken) + ["--resume"], after)
    assert broken.read_bytes() != whole.read_bytes()
    capsys.readouterr()
    assert main(argv(broken)) == 2 and "is of a run that was interrupted: --resume goes on from there" in capsys.readouterr().err
    assert main(argv(broken) + ["--resume"]) == code
    assert capsys.readouterr().out == unbroken.replace(str(whole), str(broken))
    assert broken.read_bytes() == whole.read_bytes() and len(rows(whole)) > 4 and "the budget is spent" in unbroken
    assert (tmp_path / "broken.jsonl.dropped").read_bytes() == (tmp_path / "whole.jsonl.dropped").read_bytes()


def test_a_budget_is_kept_and_a_run_may_be_gone_on_with_for_more(pupil, seeds, tmp_path, capsys):
    output = tmp_path / "made.jsonl"
    argv = own(pupil, seeds, output, *LOOSE, "--max_chars", "8")
    assert main([*argv, "--token_budget", "5000"]) == 0
    spent, told = 0, capsys.readouterr().out
    for path in (tmp_path / "made.jsonl.rounds").glob("*.jsonl"):
        for line in rows(path):
            prompt = line["prompt"][0]["content"]
            assert line["prompt_length"] >= len("".join(prompt.split())) and line["tokens"] > line["prompt_length"]  # the tiny tokenizer has letters alone
            spent += line["tokens"]
    assert 3000 < spent <= 5000 and f"{spent:,} tokens" in told and "the budget is spent" in told
    before = output.read_bytes()
    assert main([*argv, "--token_budget", "9000", "--resume"]) == 0
    assert output.read_bytes().startswith(before) and len(output.read_bytes()) > len(before)
    assert main([*argv, "--token_budget", "9000", "--resume", "--style", "rephrase"]) == 2
    assert "--style self_instruct, now rephrase: use the same" in capsys.readouterr().err
    with open(seeds, "a", encoding="utf-8") as file:
        file.write('{"instruction": "a", "output": "b"}\n')
    assert main([*argv, "--token_budget", "9000", "--resume"]) == 2 and "seeds that say" in capsys.readouterr().err


def test_a_reward_model_decides(pupil, seeds, tmp_path, fresh_tiny, tiny_tokenizer, capsys):
    config = fresh_tiny("llama").config
    config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    tiny_tokenizer.save_pretrained(tmp_path / "reward")
    output, dropped = tmp_path / "made.jsonl", tmp_path / "dropped.jsonl"
    argv = own(pupil, seeds, output, *LOOSE, "--max_chars", "8", "--attempts", "10", "--count", "10", "--dropped", str(dropped))
    main([*argv, "--reward_model", str(tmp_path / "reward"), "--min_reward", "0.0"])
    scored = [row for row in (*rows(output), *rows(dropped)) if "reward" in row["provenance"]["filters"]]
    assert len(scored) > 4 and {row.get("dropped") for row in scored} == {None, "reward"}
    model, tokenizer = load(str(tmp_path / "reward"), device="cpu", dtype="float32", model_class=AutoModelForSequenceClassification, num_labels=1)
    for row in scored:
        question = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}], tokenize=False)
        score = model(**tokenizer(text.rstrip("\n"), return_tensors="pt", add_special_tokens=False)).logits.item()
        assert row["provenance"]["filters"]["reward"] == pytest.approx(score, abs=1e-3) and (score >= 0) == ("dropped" not in row)


# Servers


def remote(server, seeds, output, *more) -> list[str]:
    how = ["--shots", "2", "--round_size", "4", "--concurrency", "2", "--model", "pupil", "--seed", "100"]
    return ["--data", seeds, "--output", str(output), "--backend", "openai", "--base_url", server.base_url, *how, *LOOSE, *more]


def record(number: int) -> str:
    return json.dumps({"instruction": f"Task {number} of many.", "input": "", "output": f"answer {number}"})


def test_a_server_is_held_to_the_schema_and_what_is_no_record_is_counted(scripted_server, seeds, tmp_path, capsys):
    def script(body):
        number = body["seed"] - 99
        text = {2: "Sure! Here is a task.", 3: '{"instruction": "cut off', 5: '{"instruction": "x", "input": "y"}'}.get(number, record(number))
        return (400, {"error": {"message": "no"}}) if number == 6 else scripted_server.said(text)

    server, output, dropped = scripted_server(script), tmp_path / "made.jsonl", tmp_path / "dropped.jsonl"
    assert main(remote(server, seeds, output, "--count", "5", "--dropped", str(dropped), "--max_chars", "40")) == 0
    assert [row["instruction"] for row in rows(output)] == [f"Task {n} of many." for n in (1, 4, 7, 8, 9)]
    assert [(row["provenance"]["attempt"], row["dropped"], row.get("answer")) for row in rows(dropped)][:3] == [
        (2, "no record", "Sure! Here is a task."), (3, "no record", '{"instruction": "cut off'), (5, "no record", '{"instruction": "x", "input": "y"}'),
    ]  # fmt: skip
    assert rows(dropped)[3]["dropped"] == "no answer" and rows(dropped)[3]["error"] == "HTTP 400: no"
    body = server.asked[-1][1]
    form = body["response_format"]["json_schema"]
    assert form["strict"] and form["schema"]["properties"]["output"] == {"type": "string", "minLength": 1, "maxLength": 40} and body["temperature"] == 0.8
    counts = table(capsys.readouterr().out)
    assert counts["no answer"][1] == 1 and counts["no record"][1] == 3


def test_a_late_and_failing_server_is_asked_again_and_nothing_is_lost(scripted_server, seeds, tmp_path, capsys):
    tries, lock, broken, late = Counter(), threading.Lock(), set(), threading.Event()

    def script(body):
        number = body["seed"] - 99
        with lock:
            tries[number] += 1
        if number in broken:
            return 503, {"error": {"message": "gone"}}
        if number == 2 and tries[2] == 1:
            late.wait(5)  # behind --request_timeout
        return None if number == 3 and tries[3] == 1 else scripted_server.said(record(number))

    server, output = scripted_server(script), tmp_path / "made.jsonl"
    broken |= {*range(6, 40)}
    argv = remote(server, seeds, output, "--count", "12", "--request_timeout", "0.3", "--retries", "2")
    began = time.monotonic()
    assert main(argv) == 1 and time.monotonic() - began < 4
    late.set()
    told = capsys.readouterr()
    assert "it answers no more" in told.err and "--resume goes on from there" in told.err and "Traceback" not in told.err
    assert tries[1] == 1 and tries[2] == tries[3] == 2 and tries[6] == 3  # asked again, and no oftener than --retries
    assert [row["provenance"]["attempt"] for row in rows(output)] == [1, 2, 3, 4]
    broken.clear()
    before = Counter(tries)
    assert main([*argv, "--resume"]) == 0
    assert len(rows(output)) == 12 and all(tries[n] == before[n] for n in range(1, 6))  # what was answered is not asked again
    server.asked.clear()
    assert main([*argv, "--resume"]) == 0 and not [body for _, body, _ in server.asked if body]


def test_no_server_is_told_at_once(seeds, tmp_path, capsys):
    class Nowhere:
        base_url = "http://127.0.0.1:9/v1"

    assert main(remote(Nowhere, seeds, tmp_path / "made.jsonl", "--count", "2", "--retries", "1")) == 2
    assert "is this the address of a server that runs" in capsys.readouterr().err


def test_a_filter_that_drops_everything_is_named_with_the_counts(scripted_server, seeds, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(making, "FRUITLESS", 3)
    server = scripted_server(lambda body: scripted_server.said(record(1)))
    argv = remote(server, seeds, tmp_path / "made.jsonl", "--count", "5", "--language", "ko")
    assert main(argv) == 1
    told = capsys.readouterr()
    assert table(told.out)["language"] == (12, 12) and "3 rounds in a row left nothing" in told.out
    assert "nothing is left: the filter 'language' dropped most" in told.err and rows(tmp_path / "made.jsonl") == []
    assert main([*argv[:-2], "--attempts", "3", "--resume", "false"]) == 1
    told = capsys.readouterr()
    assert "3 of 5 records wanted: no more attempts are allowed" in told.err and len(rows(tmp_path / "made.jsonl")) == 3


def test_records_are_rephrased_and_translated_once_each_unless_more_are_wanted(scripted_server, seeds, tmp_path, capsys):
    texts = {"rephrase": {"instruction": "Say it."}, "translate": {"instruction": "하라.", "input": "너", "output": "했다"}}
    for style, said in texts.items():
        server, output = scripted_server(lambda body, said=said: scripted_server.said(json.dumps(said))), tmp_path / f"{style}.jsonl"
        languages = ["--source_lang", "en", "--target_lang", "ko"] if style == "translate" else []
        assert main(remote(server, seeds, output, "--style", style, *languages)) == 0
        made = rows(output)
        assert [row["provenance"]["source"] for row in made] == [f"seeds.jsonl line {n}" for n in range(1, 7)]
        for seed, row in zip(SEEDS, made, strict=True):
            assert {name: row[name] for name in seed} == {name: said.get(name, text) if text else "" for name, text in seed.items()}
        assert server.asked[-1][1]["response_format"]["json_schema"]["schema"]["required"] == [*said]
        assert "each record had its turn" in capsys.readouterr().out
        assert main(remote(server, seeds, output, "--style", style, *languages, "--count", "8")) == 0
        assert rows(output)[7]["provenance"]["source"] == "seeds.jsonl line 2" and rows(output)[7]["provenance"]["seed"] == 107


def test_inputs_are_found_for_each_output_in_its_turn_and_asked_again_beside_all_outputs(scripted_server, tmp_path):
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text("".join(json.dumps({"instruction": "Good?", "input": f"{o} {n}", "output": o}) + "\n" for n in range(3) for o in "+-"), encoding="utf-8")

    def script(body):
        prompt = body["messages"][-1]["content"]
        return scripted_server.said(json.dumps({"input": f"found {body['seed']}"} if prompt.startswith("Each line below is") else {"output": "+"}))

    server, output, dropped = scripted_server(script), tmp_path / "made.jsonl", tmp_path / "dropped.jsonl"
    how = ["--style", "output_first", "--count", "4", "--attempts", "4", "--round_trip", "exact", "--meanings", "+=praise", "--token_budget", "9000", "--dropped", str(dropped)]
    assert main(remote(server, str(reviews), output, *how)) == 1  # the half of them: the pupil finds all praise
    assert [[row[name] for name in ("instruction", "input", "output")] for row in rows(output)] == [["Good?", f"found {n}", "+"] for n in (100, 102)]
    assert [(row["output"], row["dropped"], row["input"]) for row in rows(dropped)] == [("-", "round trip", "found 101"), ("-", "round trip", "found 103")]
    prompts = [*server.prompts]
    assert sum(prompt.startswith("Each line below is praise.") for prompt in prompts) == 2
    again = [prompt for prompt in prompts if prompt.startswith("Tasks with their outputs:")]
    assert len(again) == 4 and all('"output": "+"}' in prompt and '"output": "-"}' in prompt for prompt in again)
    assert rows(output)[0]["provenance"]["source"] in rows(output)[0]["provenance"]["seeds"]


def test_people_ask_without_any_seed(scripted_server, tmp_path):
    server, output, people = scripted_server(lambda body: scripted_server.said(record(body["seed"]))), tmp_path / "made.jsonl", tmp_path / "people.txt"
    people.write_text("a baker\na nurse\n", encoding="utf-8")
    argv = remote(server, "", output, "--style", "persona", "--personas", str(people), "--count", "3")[2:]
    assert main(argv) == 0
    assert [(row["provenance"]["persona"], row["instruction"], "seeds" in row["provenance"]) for row in rows(output)] == [
        ("a baker", "Task 100 of many.", False), ("a nurse", "Task 101 of many.", False), ("a baker", "Task 102 of many.", False),
    ]  # fmt: skip
    assert sum("You are a nurse." in prompt for prompt in server.prompts) == 1
    people.write_text("a baker\na smith\n", encoding="utf-8")
    assert main([*argv, "--resume"]) == 2  # other people


def test_a_folder_of_something_else_is_left_alone(scripted_server, seeds, tmp_path, capsys):
    server, folder = scripted_server(lambda body: scripted_server.said(record(1))), tmp_path / "made.jsonl.rounds"
    folder.mkdir()
    (folder / "precious").touch()
    argv = remote(server, seeds, tmp_path / "made.jsonl", "--count", "1", "--resume", "false")
    assert main(argv) == 2 and "holds something else: move it away" in capsys.readouterr().err
    (folder / "run.json").write_text("[", encoding="utf-8")
    assert main([*argv[:-2], "--resume"]) == 2 and "does not say what its run was asked" in capsys.readouterr().err
    assert main(argv) == 0 and (folder / "precious").exists()


def test_a_budget_needs_a_server_that_tells_its_tokens(scripted_server, seeds, tmp_path, capsys):
    def script(body):
        told = scripted_server.said(record(body["seed"]))
        del told["usage"]
        return told

    assert main(remote(scripted_server(script), seeds, tmp_path / "made.jsonl", "--token_budget", "9000")) == 2
    assert "the server does not tell how many tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--token_budget", "0"], "token_budget must be at least 1, got 0"), (["--count", "0"], "count must be at least 1, got 0"), ([], "say how much is to be made"),
        (["--count", "3", "--style", "poem"], "style must be one of self_instruct, persona, output_first, rephrase, translate, got 'poem'"),
        (["--count", "3", "--shots", "9"], "max_chars=600 characters: give fewer --shots, more seeds, or"),
        (["--token_budget", "700", "--shots", "2"], "token_budget 700: one attempt may take "),
        (["--count", "3", "--style", "translate"], "translate needs both languages"),
        (["--count", "3", "--personas", "x.txt"], "personas is for --style persona, got self_instruct: leave it out"),
        (["--count", "3", "--meanings", "+=praise"], "meanings is for --style output_first, got self_instruct: leave it out"),
        (["--count", "3", "--style", "output_first", "--shots", "3", "--meanings", "+=praise", "--meanings=-=blame", "--meanings", "+=joy"], "meanings gives '+' more than one: leave all but one out"),
        (["--count", "3", "--style", "output_first", "--meanings", "+=praise", "-=blame"], "'-=blame' stands where an option would: join a value that begins with - to its option"),
        (["--count", "3", "--style", "output_first", "--shots", "3", "--meanings", "praise"], "meanings are given as OUTPUT=WORDS, got 'praise'"),
        (["--count", "3", "--style", "output_first", "--shots", "3"], "output_first: 4 of 6 seeds have an input"),
        (["--count", "3", "--style", "rephrase", "--fields", "answer"], "fields are instruction, input, output, got 'answer'"),
        (["--count", "3", "--style", "rephrase", "--max_chars", "3"], "no record has texts of at most max_chars=3 characters"),
        (["--count", "3", "--data", "no.jsonl"], "there is no file or folder no.jsonl"),
        (["--count", "3", "--output", "/dev/stdout"], "cannot be gone on with: name a file"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_a_model_is_loaded(pupil, seeds, tmp_path, capsys, more, said):
    argv = ["--data", seeds, "--model", pupil, "--output", str(tmp_path / "made.jsonl"), "--near_duplicates", "0"]
    assert main([*argv, *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "made.jsonl").exists()
