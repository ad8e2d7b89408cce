"""seodang generate: prompts from the command line and from files, answers to the terminal and to JSON Lines."""

import gc
import io
import json
import os
import signal
import weakref

import pytest
import torch

from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate
from seodang.infer.engine.batch import Batch
from seodang.recipes.generate import main
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.options.parser import parse
from seodang.recipes.prompts.prompt_files import Prompts, read_prompts
from seodang.recipes.run.following import InOrder
from seodang.recipes.run.stopping import Stopping

QUESTION = "Which country is the city of Suwon located in?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model of the real tokenizer's vocabulary, as a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from seodang.infer.checkpoint.load import load_tokenizer

    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"vocab_size": 49152, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **sizes, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=2, pad_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer("default").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def real(monkeypatch, real_model, tokenizer):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (real_model, tokenizer))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_a_prompt_in_the_terminal(real, capsys):
    assert main(["default", QUESTION, "--max_new_tokens", "20"]) == 0
    assert capsys.readouterr().out == "The city of Suwon is located in the Republic of Korea.\n"


def test_prints_several_answers_in_the_order_of_their_prompts(real, capsys):
    assert main(["default", "Count.", QUESTION, "--max_new_tokens", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "> Count." and out[-2:] == [f"> {QUESTION}", "The city of"]


def test_raw_continues_the_prompt_as_it_stands(real, capsys):
    assert main(["default", "The capital of France is", "--raw", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out == " Paris\n"


def test_writes_json_lines_from_a_file_of_any_prompt_shape(real, real_model, tokenizer, tmp_path, capsys):
    records = [
        {"prompt": QUESTION},
        {"instruction": "Translate.", "input": "나무", "output": "tree"},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        "Say hi",
    ]
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("\n\n".join(json.dumps(record) for record in records) + "\n\n", encoding="utf-8")
    both = ["--token_ids", "--logprobs", "--prompt_logprobs", "2"]
    assert main(["default", "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "4", "--batch_size", "2", *both]) == 0
    written = lines(output)
    assert [line["line"] for line in written] == [1, 3, 5, 7]  # empty lines count
    asked = [
        [{"role": "user", "content": QUESTION}],
        [{"role": "user", "content": "Translate.\n\n나무"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Say hi"}],
    ]
    assert [line["prompt"] for line in written] == asked
    expected = generate(real_model, tokenizer, asked, SamplingParams(max_new_tokens=4))
    assert [line["ids"] for line in written] == [result.ids for result in expected]
    assert [line["prompt_length"] for line in written] == [len(prompt_ids(tokenizer, prompt)) for prompt in asked]
    for line in written:
        assert len(line["logprobs"]) == len(line["ids"]) and [each["id"] for each in line["top_logprobs"]] == line["ids"]
        assert line["top_logprobs"][0]["logprob"] == pytest.approx(line["logprobs"][0], abs=1e-5)  # greedy, and no filter
        assert line["prompt_logprobs"][0] is None and len(line["prompt_logprobs"]) == line["prompt_length"]
    first = written[0]["top_logprobs"][0]
    assert (first["token"], first["bytes"], first["top_logprobs"]) == ("The", [84, 104, 101], [])
    assert [len(each["top_logprobs"]) for each in written[0]["prompt_logprobs"][1:3]] == [2, 2]
    assert "4/4" in capsys.readouterr().err  # the progress bar


def test_a_seed_repeats_the_run_and_gives_each_prompt_its_own(checkpoint, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the same\nthe same\n")
    runs = []
    for i in range(2):
        output = tmp_path / f"{i}.jsonl"
        options = ["--output", str(output), "--token_ids", "--temperature", "1.5", "--seed", "7", "--max_new_tokens", "6", "--device", "cpu", "--dtype", "float32"]
        assert main([checkpoint, str(prompts), *options]) == 0
        runs.append(lines(output))
    assert runs[0] == runs[1]
    assert [line["seed"] for line in runs[0]] == [7, 8]
    assert runs[0][0]["ids"] != runs[0][1]["ids"]


def test_stop_texts_and_options_from_a_file_are_honoured(real, tmp_path, capsys):
    config = tmp_path / "speak.yaml"
    config.write_text("stop: [Suwon]\nmax_new_tokens: 20\n")
    assert main(["default", QUESTION, "--config", str(config)]) == 0
    assert capsys.readouterr().out == "The city of \n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["/nowhere/at/all", "hi"], "'/nowhere/at/all'"),
        (["CHECKPOINT"], "no prompts"),
        (["CHECKPOINT", "hi", "--tempersture", "1"], "did you mean temperature?"),
        (["CHECKPOINT", "hi", "--top_p", "7"], "top_p must be in (0, 1], got 7.0"),
        (["CHECKPOINT", "hi", "--top_k", "many"], "top_k"),
        (["CHECKPOINT", "hi", "--batch_size", "0"], "batch_size must be at least 1, got 0"),
        (["CHECKPOINT", "hi", "--max_new_tokens", "256"], "more than the 256 positions of the model"),
        (["CHECKPOINT", "missing.jsonl"], "missing.jsonl does not exist"),
        (["CHECKPOINT", "FOLDER/broken.jsonl"], "broken.jsonl line 2 is not JSON"),
        (["CHECKPOINT", "FOLDER/keys.jsonl"], "keys.jsonl line 1: no known shape has the keys topic"),
        (["CHECKPOINT", "FOLDER/empty.txt"], "empty.txt is empty"),
        (["CHECKPOINT", "FOLDER/latin.txt"], "latin.txt is not UTF-8"),
        (["CHECKPOINT", "FOLDER/number.json"], "number.json must hold a list of records, got int"),
        (["CHECKPOINT", "FOLDER/half.jsonl"], "half.jsonl line 2: prompt has the lone surrogate U+D800 as character 3: it is half a character"),
        (["CHECKPOINT", "fine", "Su\udcecwon"], "prompts[1] has the byte 0xEC, which is not UTF-8, as character 3: convert the text to UTF-8"),
        (["CHECKPOINT", "hi", "--stop", "a", "\ud800"], "stop[1] has the lone surrogate"),
        (["CHECKPOINT", "hi", "--config", "FOLDER/half.yaml"], "choice[0] has the lone surrogate"),
        (["CHECKPOINT", "hi", "--order", "random"], "order must be prompts or finished, got 'random'"),
        (["CHECKPOINT", "hi", "--token_ids"], "token_ids says what is written into a file: give --output too"),
        (["CHECKPOINT", "hi", "--logprobs", "-1"], "logprobs must be a whole number from 0, got -1"),
        (["CHECKPOINT", "hi", "--output", "FOLDER/no/such/folder.jsonl"], "there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_compute(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(Batch, "run", lambda *args: pytest.fail("computed something"))
    (tmp_path / "broken.jsonl").write_text('{"prompt": "fine"}\n{"prompt": \n')
    (tmp_path / "keys.jsonl").write_text('{"topic": "hi"}\n')
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "number.json").write_text("3")
    (tmp_path / "half.jsonl").write_text('{"prompt": "fine"}\n{"prompt": "Su\\ud800"}\n')
    (tmp_path / "half.yaml").write_text('choice: ["\\ud800"]\n')
    arguments = [word.replace("CHECKPOINT", checkpoint).replace("FOLDER", str(tmp_path)) for word in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_several_answers_to_a_prompt_are_all_printed_in_their_order(real, real_model, tokenizer, capsys):
    options = ["--temperature", "1.5", "--seed", "3", "--num_return_sequences", "3", "--max_new_tokens", "4", "--raw"]
    assert main(["default", "One", "Two", *options]) == 0
    params = [SamplingParams(temperature=1.5, seed=3 + i, num_return_sequences=3, max_new_tokens=4) for i in range(2)]
    found = generate(real_model, tokenizer, ["One", "Two"], params)
    wanted = []
    for row, prompt in enumerate(["One", "Two"]):
        wanted += [f"> {prompt}", *(f"[{result.choice}] {result.text}" for result in found if result.prompt_index == row)]
    assert capsys.readouterr().out == "\n".join(wanted) + "\n"
    assert len({result.text for result in found}) == 6


def test_several_answers_to_a_prompt_are_written_with_their_numbers(real, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    assert main(["default", "One", "--raw", "--num_beams", "3", "--num_return_sequences", "2", "--max_new_tokens", "3", "--output", str(output)]) == 0
    assert [(line["record"], line["choice"]) for line in lines(output)] == [(1, 0), (1, 1)]
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num_return_sequences", "2"], "greedy answers would all be the same"),
        (["--num_beams", "2", "--penalty_alpha", "0.5"], "strategy 'contrastive' has no use for num_beams=2"),
        (["--num_beams", "2", "--assistant_model", "/nowhere"], "strategy 'assisted' has no use for num_beams=2"),
        (["--early_stopping", "maybe"], "early_stopping must be True, False or"),
        (["--choice", "yes", "--regex", "a+"], "regex and choice both say what the whole answer is"),
        (["--stop_regex", "("], "is no regular expression"),
        (["--dola_layers", "middle"], "dola_layers must be"),
        (["--filter_order", "top_q"], "which is no filter"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured_are_refused_before_any_model_is_loaded(monkeypatch, capsys, options, message):
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda *args, **kwargs: pytest.fail("loaded a model"))
    assert main(["default", "hi", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_answers_survives_a_run_that_is_refused(checkpoint, tmp_path):
    output = tmp_path / "answers.jsonl"
    output.write_text("precious\n")
    assert main([checkpoint, "hi", "--output", str(output), "--max_new_tokens", "256"]) == 2
    assert output.read_text() == "precious\n"
    assert main([checkpoint, "hi", "--output", str(output), "--max_new_tokens", "2"]) == 0
    assert [line["record"] for line in lines(output)] == [1]


def test_a_further_model_goes_where_the_model_is(monkeypatch):
    loaded = []
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda path, **where: loaded.append((path, where)) or ("its model", "its tokenizer"))
    [beside, decoding] = parse(
        ["--assistant_model", "small", "--assistant_tokenizer", "--device", "cpu", "--dtype", "float32"], SpeakingModel, Decoding, prog="test"
    )
    params = [decoding.params(beside, i) for i in range(3)]
    assert loaded == [("small", {"device": "cpu", "dtype": "float32"})]
    assert (params[2].assistant_model, params[2].assistant_tokenizer) == ("its model", "its tokenizer")


@pytest.mark.parametrize("listed", [False, True])
def test_a_json_file_holds_one_record_or_a_list_of_them(tmp_path, listed):
    record = {"prompt": "Wie groß?", "completion": "-"}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([record] if listed else record, ensure_ascii=False), encoding="utf-8")
    assert read_prompts([str(path)], raw=False) == Prompts([[{"role": "user", "content": "Wie groß?"}]], [1], "record")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeff수원\r\n\r\ntwo\r\n".encode())
    (tmp_path / "prompts.jsonl").write_bytes('\ufeff{"prompt": "수원"}\r\n'.encode())
    assert read_prompts([str(tmp_path / "prompts.txt")], raw=True) == Prompts(["수원", "two"], [1, 3], "line")
    assert read_prompts([str(tmp_path / "prompts.jsonl")], raw=True) == Prompts(["수원"], [1], "line")


def test_files_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    (tmp_path / "prompts.json").write_text('["Größe", "나무"]', encoding="utf-8")
    (tmp_path / "speak.yaml").write_text("stop: [나무]\n", encoding="utf-8")
    monkeypatch.setattr("io.text_encoding", lambda encoding, level=2: encoding or "latin-1")  # what pathlib asks for the locale's
    assert read_prompts([str(tmp_path / "prompts.json")], raw=True) == Prompts(["Größe", "나무"], [1, 2], "record")
    assert parse(["--config", str(tmp_path / "speak.yaml")], Decoding, prog="test")[0].stop == ["나무"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b"])
def test_a_line_ends_where_files_end_lines_alone(tmp_path, character):
    text = f"one{character}two"
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text(text + "\nthree\n", encoding="utf-8")
    assert read_prompts([str(tmp_path / "prompts.jsonl")], raw=True) == Prompts([text], [1], "line")
    assert read_prompts([str(tmp_path / "prompts.txt")], raw=True) == Prompts([text, "three"], [1, 2], "line")


@pytest.fixture
def dead_end(monkeypatch):
    """A filter leaves nothing to a prompt of four words."""

    def nothing(logits, history):
        return logits - float("inf") if len(history[0]) == 4 else logits

    monkeypatch.setattr(Decoding, "params", lambda self, *given: SamplingParams(max_new_tokens=2, filters=[nothing]))


def test_a_prompt_that_fails_has_its_error_in_the_record_and_the_others_their_answers(checkpoint, tmp_path, dead_end, capsys):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("one\none two three four\ntwo\n")
    assert main([checkpoint, str(prompts), "--raw", "--output", str(output)]) == 1
    written = lines(output)
    assert [line["finish_reason"] == "error" for line in written] == [False, True, False]
    assert "left no token to choose after 4 tokens" in written[1]["error"] and written[0]["error"] is None
    assert capsys.readouterr().err.splitlines()[-1] == "1 of 3 prompts ended in an error"


def test_in_the_terminal_an_error_goes_to_stderr_in_its_place(checkpoint, dead_end, capsys):
    assert main([checkpoint, "one", "one two three four", "two", "--raw"]) == 1
    said = capsys.readouterr()
    assert [line for line in said.out.splitlines() if line.startswith(">")] == ["> one", "> one two three four", "> two"]
    assert "error: prompt 2: the filter nothing left no token to choose after 4 tokens\n" in said.err


def test_a_single_prompt_that_fails_is_the_commands_error(checkpoint, dead_end, capsys):
    assert main([checkpoint, "one two three four", "--raw"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: the filter nothing left no token to choose after 4 tokens"


def test_further_models_are_let_go_of_with_the_command(monkeypatch):
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda path, **where: (torch.nn.Identity(), None))
    [beside, decoding] = parse(["--assistant_model", "small"], SpeakingModel, Decoding, prog="test")
    assert decoding.params(beside, 0).assistant_model is decoding.params(beside, 1).assistant_model
    held = weakref.ref(decoding.params(beside, 2).assistant_model)
    del decoding
    gc.collect()
    assert held() is None


SIZED = [7, 2, 5, 2, 3, 2, 6, 2]  # tokens of each answer


@pytest.fixture
def sized(monkeypatch):
    """Each prompt of the file is answered by so many tokens."""
    monkeypatch.setattr(Decoding, "params", lambda self, beside, i=0: SamplingParams(max_new_tokens=SIZED[i], ignore_eos=True))


def file_of(tmp_path, count: int):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"\nsay {i}\n" for i in range(count)))
    return prompts, tmp_path / "answers.jsonl"


@pytest.mark.parametrize("order", ["prompts", "finished"])
def test_answers_stand_in_the_order_of_their_prompts_with_their_lines_or_as_they_finish(checkpoint, tmp_path, sized, order):
    prompts, output = file_of(tmp_path, len(SIZED))
    asked = ["--raw", "--seed", "1", "--token_ids", "--batch_size", "4", "--order", order]
    assert main([checkpoint, str(prompts), "--output", str(output), *asked]) == 0
    written = lines(output)
    own = [2 * (i + 1) for i in range(len(SIZED))]
    assert sorted(line["line"] for line in written) == own and [line["line"] == number for line, number in zip(written, own)].count(False) != (order == "prompts")
    assert all(len(line["ids"]) == SIZED[line["line"] // 2 - 1] and line["prompt"] == f"say {line['line'] // 2 - 1}" for line in written)
    assert "logprobs" not in written[0] and "trace" not in written[0]


def test_what_is_out_of_order_is_held_until_its_turn_and_no_longer(tiny_llama, tiny_tokenizer):
    from seodang.infer.engine.generate import answers

    shown, held, each = [], [], 2
    lengths = [9, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    params = [SamplingParams(max_new_tokens=n, ignore_eos=True, temperature=1.0, seed=n, num_return_sequences=each) for n in lengths]
    show = InOrder(lambda result: shown.append((result.prompt_index, result.choice)), each)
    for result in answers(tiny_llama, tiny_tokenizer, [[5]] * len(lengths), params, max_rows=6, ahead=4):
        show(result)
        held.append(len(show._held))
    assert shown == [(prompt, choice) for prompt in range(len(lengths)) for choice in range(each)]
    assert 0 < max(held) <= 3 * each  # the first takes long: three at most go ahead of it, not the eleven that there are


@pytest.mark.parametrize("number, code, said", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_file_that_is_stopped_has_what_was_finished_in_complete_lines(checkpoint, tmp_path, sized, monkeypatch, capsys, number, code, said):
    prompts, output = file_of(tmp_path, len(SIZED))
    run, passes = Batch.run, []

    def run_until_stopped(batch):
        passes.append(None)
        if len(passes) == 4:  # by then the second and the fourth are finished, and wait for the first
            os.kill(os.getpid(), number)
        run(batch)

    monkeypatch.setattr(Batch, "run", run_until_stopped)
    assert main([checkpoint, str(prompts), "--raw", "--seed", "1", "--batch_size", "4", "--output", str(output)]) == code
    assert [line["line"] for line in lines(output)] == [4, 8]
    assert capsys.readouterr().err.splitlines()[-2:] == [f"2 of {len(SIZED)} answers are in {output} (--resume goes on from there)", said]
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


def test_a_signal_waits_for_the_end_of_what_must_be_whole():
    done = []
    with pytest.raises(KeyboardInterrupt), Stopping() as stopping:
        with stopping.whole():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("whole")
        done.append("never")
    assert done == ["whole"]


def test_a_signal_that_is_ignored_stays_so():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.parametrize("number, code, said", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_single_answer_that_is_stopped_shows_what_it_had(real, monkeypatch, capsys, number, code, said):
    run, heard = Batch.run, []

    def run_until_stopped(batch):
        heard.append(capsys.readouterr().out)
        if len(heard) == 5:
            os.kill(os.getpid(), number)
        run(batch)

    monkeypatch.setattr(Batch, "run", run_until_stopped)
    assert main(["default", QUESTION]) == code
    rest = capsys.readouterr()
    assert heard == ["", "The", " city", " of", " Su"] and (rest.out, rest.err.splitlines()[-1]) == ("\n", said)  # each with its token


@pytest.mark.parametrize("prompts", [["hi"], ["hi", "you"]])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_away_is_no_error_of_ours(checkpoint, monkeypatch, capsys, prompts, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(open(writer, "wb", -1 if buffered else 0), encoding="utf-8", write_through=not buffered) as nobody:
        monkeypatch.setattr("sys.stdout", nobody)
        assert main([checkpoint, *prompts, "--raw", "--max_new_tokens", "4", "--ignore_eos"]) == 141
    assert "Traceback" not in capsys.readouterr().err
