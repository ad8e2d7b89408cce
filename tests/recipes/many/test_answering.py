"""seodang generate --backend ray without Ray: its workers are in this process, and whoever is lost, the file is that of one process."""

import json
import random
import sys
from collections import Counter

import pytest
from many_pools import InProcess

from seodang.recipes.generate import main
from seodang.recipes.many import answering
from seodang.recipes.many.ray_pool import reason
from seodang.recipes.options.many import AnsweringOptions
from seodang.recipes.run.results_file import line_of

COUNT = 11
SAMPLED = ["--temperature", "1.0", "--seed", "7", "--num_return_sequences", "2"]
GREEDY = ["--do_sample", "false", "--seed", "0"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing waits for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def pools(monkeypatch):
    """`pools(dies)`: what Ray would have is in this process from now on; the pools that were made."""
    made = []

    def use(dies=lambda call, given: None):
        def pool(opener, workers, resources, address):
            made.append(InProcess(opener, workers, dies, seed=len(made)))
            return made[-1]

        monkeypatch.setattr(answering, "RayPool", pool)
        return made

    monkeypatch.setattr(answering, "library", lambda: None)
    use()
    return use


@pytest.fixture
def prompts(tmp_path):
    """A file of prompts, with lines between them that count and are empty."""
    path = tmp_path / "prompts.jsonl"
    words = [" ".join(random.Random(index).choices(["so", "be", "it", "now"], k=index % 4 + 1)) for index in range(COUNT)]
    path.write_text("\n\n".join(json.dumps({"prompt": word}) for word in words) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def generate(base, prompts, tmp_path, monkeypatch):
    """`generate(name, *argv)`: answer the prompts into a file of that name; the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *argv: main([str(base), "--prompts", str(prompts), "--raw", "--output", str(tmp_path / name), "--max_new_tokens", "5", "--device", "cpu", "--dtype", "float32", *argv])


def many(*argv: str, rows: int = 3) -> list[str]:
    return ["--backend", "ray", "--workers", "2", "--shard_rows", str(rows), *argv]


@pytest.mark.parametrize(("rows", "how"), [(1, SAMPLED), (3, GREEDY), (3, [*SAMPLED, "--token_ids", "--logprobs", "2"]), (COUNT, SAMPLED), (100, GREEDY)])
def test_the_file_is_that_of_one_process(rows, how, generate, pools, tmp_path):
    assert generate("one.jsonl", *how) == generate("many.jsonl", *many(*how, rows=rows)) == 0
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not (tmp_path / "many.jsonl.shards").exists()
    texts = {json.loads(line)["text"] for line in (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()}
    assert how == GREEDY or len(texts) > COUNT  # every record draws by its own seed


@pytest.mark.parametrize("seed", range(2))
def test_workers_and_the_command_may_be_killed_anywhere(seed, generate, pools, tmp_path):
    """The command is killed by what no handler sees, again and again, and given again: each shard is answered once in the end."""
    generate("one.jsonl", *SAMPLED)
    draw, losses = random.Random(seed), Counter()

    class Killed(BaseException):
        pass

    def dies(call, given):
        if draw.random() < 0.2:
            raise Killed
        losses[given] += draw.random() < 0.2
        return "killed" if 0 < losses.pop(given, 0) else None

    pools(dies)
    for _ in range(100):
        try:
            code = generate("many.jsonl", *many(*SAMPLED))
            if code == 0:
                break
        except Killed:
            assert not (tmp_path / "many.jsonl").exists()
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_what_was_answered_is_not_asked_again(generate, pools, tmp_path, capsys):
    made = pools(lambda call, given: "out of memory" if call == "answer" and given[0] == 6 else None)
    assert generate("many.jsonl", *many(*GREEDY)) == 1
    err = capsys.readouterr().err
    assert "error: shard 2, lines 13 to 17 of prompts.jsonl, cannot be answered: out of memory" in err
    assert f"8 of {COUNT} prompts have their answers" in err and not (tmp_path / "many.jsonl").exists()
    pools()
    assert generate("many.jsonl", *many(*GREEDY)) == 0
    assert [given[0] for _, call, given in made[-1].calls if call != "open"] == [6]  # nor are prompts checked again
    generate("one.jsonl", *GREEDY)
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def halfway(generate, pools) -> None:
    pools(lambda call, given: "gone" if call == "answer" and given[0] == 6 else None)
    assert generate("many.jsonl", *many(*GREEDY)) == 1
    pools()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (many("--do_sample", "false", "--seed", "1"), "--seed 0, now 1"),
        (many(*GREEDY, "--repetition_penalty", "1.5"), "--repetition_penalty not given, now 1.5"),
        (many(*GREEDY, rows=4), "--shard_rows 3, now 4"),
        (many(*GREEDY, "--num_return_sequences", "1", "--max_new_tokens", "6"), "--max_new_tokens 5, now 6"),
    ],
)
def test_other_options_are_refused_by_name(changed, named, generate, pools, capsys):
    halfway(generate, pools)
    assert generate("many.jsonl", *changed) == 2
    assert named in capsys.readouterr().err


def test_other_prompts_and_another_model_are_refused(generate, pools, prompts, base, fresh_tiny, capsys):
    halfway(generate, pools)
    whole = prompts.read_text(encoding="utf-8")
    prompts.write_text(whole.replace("so", "no", 1), encoding="utf-8")
    assert generate("many.jsonl", *many(*GREEDY)) == 2 and "answers to other prompts than those of now" in capsys.readouterr().err
    prompts.write_text(whole + '{"prompt": "more"}\n', encoding="utf-8")
    assert generate("many.jsonl", *many(*GREEDY)) == 2 and "then 11, now 12" in capsys.readouterr().err
    prompts.write_text(whole, encoding="utf-8")
    fresh_tiny("qwen2").save_pretrained(base)
    assert generate("many.jsonl", *many(*GREEDY)) == 2 and "a model whose files are" in capsys.readouterr().err
    assert generate("many.jsonl", *many(*GREEDY, "--resume", "false")) == 0


def test_a_prompt_that_is_too_long_is_told_with_its_line_before_any_is_answered(generate, pools, prompts, tmp_path, capsys):
    made = pools()
    whole = prompts.read_text(encoding="utf-8").splitlines()
    whole[14] = json.dumps({"prompt": "so be it " * 300})
    prompts.write_text("\n".join(whole), encoding="utf-8")
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert "error: prompts.jsonl line 15 " in (err := capsys.readouterr().err) and "256" in err
    assert "answer" not in {call for _, call, _ in made[-1].calls}
    assert not (tmp_path / "many.jsonl.shards").exists()  # a prompt that is mended is no other run's


def test_a_record_of_no_shape_is_told_before_a_worker_is_opened(generate, pools, prompts, tmp_path, capsys):
    made = pools()
    with prompts.open("a", encoding="utf-8") as file:
        file.write('{"nothing": 1}\n')
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert "prompts.jsonl line 22" in capsys.readouterr().err and not made
    assert [path.name for path in tmp_path.iterdir() if "many" in path.name] == []


def test_prompts_that_end_in_an_error_are_asked_again_with_resume(generate, pools, monkeypatch, tmp_path, capsys):
    """An answer's error stands in its place, and the exit code is 1; shards without one are kept."""
    made = pools()
    assert generate("one.jsonl", *GREEDY) == 0
    want = (tmp_path / "one.jsonl").read_bytes()

    def failing(asked, *how):
        line = line_of(asked, *how)
        return lambda result: line(result) | ({"text": "", "error": "out of order"} if asked.numbers[result.prompt_index] == 3 else {})

    with monkeypatch.context() as patch:
        patch.setattr("seodang.recipes.many.worker.line_of", failing)
        assert generate("many.jsonl", *many(*GREEDY, rows=6)) == 1
    assert f"1 of {COUNT} prompts ended in an error" in capsys.readouterr().err
    assert [json.loads(line)["error"] for line in (tmp_path / "many.jsonl").read_text(encoding="utf-8").splitlines()] == [None, "out of order", *[None] * 9]
    assert generate("many.jsonl", *many(*GREEDY, "--resume", rows=6)) == 0
    assert (tmp_path / "many.jsonl").read_bytes() == want and not (tmp_path / "many.jsonl.shards").exists()
    assert [given[0] for _, call, given in made[-1].calls if call == "answer"] == [0]
    assert generate("many.jsonl", *many(*GREEDY, "--resume", rows=6)) == 0 and len(made) == 2
    assert "all 11 prompts have their answers" in capsys.readouterr().err


def test_one_process_goes_on_from_what_many_workers_wrote(generate, pools, tmp_path, capsys):
    assert generate("many.jsonl", *many(*GREEDY)) == 0
    assert generate("many.jsonl", *GREEDY, "--resume") == 0
    assert "all 11 prompts have their answers" in capsys.readouterr().err


def test_answers_of_an_interrupted_process_are_not_written_over(generate, pools, tmp_path, capsys):
    assert generate("many.jsonl", *GREEDY) == 0
    header = tmp_path / "many.jsonl.run"
    header.write_text(header.read_text(encoding="utf-8").replace('"finished": true', '"finished": false'), encoding="utf-8")
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert "in one process that was interrupted" in capsys.readouterr().err
    header.unlink()
    assert generate("many.jsonl", *many(*GREEDY, "--resume")) == 2 and "does not say what it was asked" in capsys.readouterr().err


def test_a_shard_that_was_changed_is_refused(generate, pools, tmp_path, capsys):
    halfway(generate, pools)
    shard = tmp_path / "many.jsonl.shards" / "answers-00001.jsonl"
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:2]))
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert "answers-00001.jsonl is not what was written there" in capsys.readouterr().err and not (tmp_path / "many.jsonl").exists()
    shard.unlink()
    assert generate("many.jsonl", *many(*GREEDY)) == 0
    generate("one.jsonl", *GREEDY)
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_references_are_measured_as_in_one_process(base, pools, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"so {n}", **({"answer": "be it"} if n == 4 else {})}) + "\n" for n in range(5)), encoding="utf-8")
    how = [str(base), "--prompts", str(path), "--raw", "--max_new_tokens", "3", "--device", "cpu", "--references", *GREEDY]
    assert main([*how, "--output", "one.jsonl"]) == 0
    one = capsys.readouterr().out
    assert main([*how, "--output", "many.jsonl", *many(rows=2)]) == 0
    assert capsys.readouterr().out == one and "references" in one
    for name in ("{}.jsonl", "{}.jsonl.metrics.json"):
        assert (tmp_path / name.format("many")).read_bytes() == (tmp_path / name.format("one")).read_bytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--backend", "ray"], "name it, --output answers.jsonl"),
        (["--backend", "ray", "--output", "/dev/stdout"], "name it, --output answers.jsonl"),
        (["--backend", "ray", "--output", "out.jsonl", "--order", "finished"], "leave --order finished out"),
        (["--backend", "ray", "--output", "out.jsonl", "--workers", "0"], "workers must be at least 1, got 0"),
        (["--backend", "ray", "--output", "out.jsonl", "--shard_rows", "0"], "shard_rows must be at least 1, got 0"),
        (["--backend", "ray", "--output", "out.jsonl", "--ray_engine", "tensorrt"], "ray_engine must be seodang, vllm or openai, got 'tensorrt'"),
        (["--backend", "ray", "--output", "out.jsonl", "--concurrency", "3"], "--concurrency is for --ray_engine openai and vllm, and seodang answers"),
        (["--backend", "ray", "--output", "out.jsonl", "--tasks", "apart"], "--tasks asks for one answer after the other"),
        (["--backend", "ray", "--output", "out.jsonl", "--shard_rows", "99999999999999999999"], "shard_rows must be at most 1,000,000,000, got 99,999"),
        (["--backend", "ray", "--output", "out.jsonl", "--worker_gpus", "1.5"], "worker_gpus must be a whole number, or a share of one from 0.0001 on, got 1.5"),
        (["--backend", "ray", "--output", "out.jsonl", "--worker_cpus", "0.00001"], "worker_cpus must be a whole number, or a share of one from 0.0001 on, got 1e-05"),
        (["--backend", "ray", "--output", "out.jsonl", "--ray_address", ""], "ray_address must be HOST:PORT or auto, got ''"),
        (["--workers", "2"], "--workers is for --backend ray, and seodang answers"),
        (["--backend", "vllm", "--ray_address", "auto"], "--ray_address is for --backend ray, and vllm answers"),
    ],
)
def test_what_does_not_go_together_is_refused(argv, said, base, pools, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(base), "say so", *argv]) == 2
    assert said in capsys.readouterr().err


def test_without_ray_the_error_names_the_extra(base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([str(base), "say so", "--backend", "ray", "--output", "out.jsonl"]) == 2
    assert "pip install 'seodang[ray]'" in capsys.readouterr().err and [*tmp_path.glob("out*")] == []


def test_a_manifest_that_is_something_else_is_not_written_over(generate, pools, tmp_path, capsys):
    halfway(generate, pools)
    manifest = tmp_path / "many.jsonl.shards" / "manifest.json"
    whole = manifest.read_text(encoding="utf-8")
    for text in ("{}", "[]", "no JSON", whole.replace('"shard_rows"', '"rows"'), whole.replace(f'"prompts": {COUNT}', '"prompts": "all"')):
        manifest.write_text(text, encoding="utf-8")
        assert generate("many.jsonl", *many(*GREEDY)) == 2
        assert f"{manifest} is no manifest of shards" in capsys.readouterr().err
    manifest.unlink()
    assert generate("many.jsonl", *many(*GREEDY)) == 2  # eight answers are not thrown away
    assert "many.jsonl.shards has answers and no manifest.json that says to what: move it away, or begin anew" in capsys.readouterr().err
    assert len([*manifest.parent.glob("answers-*.jsonl")]) == 3 and generate("many.jsonl", *many(*GREEDY, "--resume", "false")) == 0


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.write_bytes(b"[]\n")])
def test_prompts_of_a_shard_that_are_gone_or_others_are_told_before_a_worker_is_opened(damage, generate, pools, tmp_path, capsys):
    halfway(generate, pools)
    damage(tmp_path / "many.jsonl.shards" / "prompts-00002.jsonl")
    made = pools()
    before = len(made)
    assert generate("many.jsonl", *many(*GREEDY)) == 2 and len(made) == before
    assert "prompts-00002.jsonl is not as the prompts and references of now would be written: use the same" in capsys.readouterr().err


def test_an_empty_prompt_is_told_with_its_line(generate, pools, prompts, capsys):
    with prompts.open("a", encoding="utf-8") as file:
        file.write('{"prompt": ""}\n')
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert f"prompts.jsonl line {2 * COUNT} is empty: give at least one token" in capsys.readouterr().err


def test_a_joined_file_that_was_changed_is_asked_anew_where_it_was(generate, pools, tmp_path):
    made = pools()
    assert generate("many.jsonl", *many(*GREEDY)) == 0
    output = tmp_path / "many.jsonl"
    want = output.read_bytes()
    lines = want.splitlines(keepends=True)
    output.write_bytes(b"".join([*lines[:3], b"no JSON\n", b"[]\n", *lines[5:7], *lines[8:]]))  # the last two shards' lines stand one too early
    assert generate("many.jsonl", *many(*GREEDY, "--resume")) == 0 and output.read_bytes() == want
    assert sorted(given[0] for _, call, given in made[-1].calls if call == "answer") == [3, 6, 9]


def test_a_file_in_the_place_of_the_shards_is_told(generate, pools, tmp_path, capsys):
    (tmp_path / "many.jsonl.shards").write_text("mine", encoding="utf-8")
    assert generate("many.jsonl", *many(*GREEDY)) == 2
    assert "many.jsonl.shards cannot be a folder (File exists): move what is there away, or name another --output" in capsys.readouterr().err


def test_what_ray_says_of_a_lost_process_is_told_in_a_line():
    died = "The actor died unexpectedly before finishing this task.\n\tpid: 7\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes"
    assert reason(Exception(died)) == "Worker unexpectedly exits with a connection error code 2"
    assert reason(Exception("The actor died because of an error\n  File x\nModuleNotFoundError: No module named 'seodang'\n")) == "ModuleNotFoundError: No module named 'seodang'"


def test_workers_get_the_key_of_the_commands_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = AnsweringOptions(backend="ray", ray_engine="openai", base_url="http://there/v1").engine()
    assert (engine.backend, engine.api_key) == ("openai", "secret") and "secret" not in repr(engine)
    assert AnsweringOptions(backend="ray").engine().api_key is None
