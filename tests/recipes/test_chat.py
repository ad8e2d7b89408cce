"""seodang chat: a talk in the terminal, with its history."""

import io
import json

import pytest
from rich.console import Console
from rich.markdown import Markdown

from seodang.data.formats import to_example
from seodang.infer import SamplingParams, generate
from seodang.recipes.chat import main
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.run import markdown, talk


@pytest.fixture
def said(monkeypatch):
    """Lines that the person will type."""
    lines = []

    def read(prompt=""):
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return lines


@pytest.fixture
def real(monkeypatch, real_model, tokenizer):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (real_model, tokenizer))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_each_answer_is_given_with_the_whole_talk_before_it(real, said, real_model, tokenizer, capsys):
    said += ["My name is Kim.", "What is my name?", "/reset", "What is my name?", "/exit", "never read"]
    assert main(["default", "--max_new_tokens", "8", "--system", "Be brief."]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    system, params = {"role": "system", "content": "Be brief."}, SamplingParams(max_new_tokens=8)
    [one] = generate(real_model, tokenizer, [[system, user("My name is Kim.")]], params)
    talk = [system, user("My name is Kim."), {"role": "assistant", "content": one.text}, user("What is my name?")]
    [two] = generate(real_model, tokenizer, [talk], params)
    [three] = generate(real_model, tokenizer, [[system, user("What is my name?")]], params)
    assert (first, second, third) == (one.text, two.text, three.text)
    assert second != third
    assert said == ["never read"]


def test_the_answer_appears_piece_by_piece(monkeypatch, real_model, tokenizer):
    printed = []
    monkeypatch.setattr(talk, "print", lambda *words, **options: printed.append(*words or [""]), raising=False)
    talk.answer(real_model, tokenizer, [], "Which country is the city of Suwon located in?", SamplingParams(max_new_tokens=5))
    assert printed == ["The", " city", " of", " Su", "won", ""]


def test_a_talk_that_is_too_long_is_refused_and_stays_as_it_was(real, said, capsys, real_model, tokenizer):
    left = talk.answer(real_model, tokenizer, [user("before")], "hi", SamplingParams(max_new_tokens=9000))
    assert left == [user("before")]
    assert "positions of the model" in capsys.readouterr().err


def test_an_answer_cut_short_by_the_person_is_kept_as_far_as_it_came(monkeypatch, real_model, tokenizer, capsys):
    from seodang.infer.engine import generate as calls

    def interrupted(*arguments, **options):
        events = stream(*arguments, **options)
        yield next(events)
        yield next(events)
        raise KeyboardInterrupt

    stream = calls.stream
    monkeypatch.setattr(calls, "stream", interrupted)
    left = talk.answer(real_model, tokenizer, [], "Which country is the city of Suwon located in?", SamplingParams())
    assert left[-1] == {"role": "assistant", "content": "The city"}


def test_unknown_commands_are_not_sent_to_the_model(real, said, capsys):
    said += ["/rest", "/zzz", ""]
    assert main(["default"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "unknown command /rest: did you mean /reset?" in printed.err and "/help names them all" in printed.err


def test_a_line_that_is_not_utf8_is_refused_and_the_talk_goes_on(real, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Su\xecwon\n/reset\n"), encoding="utf-8"))
    assert main(["default"]) == 0
    error = capsys.readouterr().err
    assert "error: prompt 1: messages[0].content has the byte 0xEC, which is not UTF-8, as character 3" in error and "(forgotten)" in error


def test_a_mistake_is_refused_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: pytest.fail("loaded"))
    assert main(["default", "--min_p", "2"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "error: min_p must be in [0, 1], got 2.0\n")


def test_a_talk_of_several_answers_at_once_is_refused_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda *args, **kwargs: pytest.fail("loaded a model"))
    assert main(["default", "--temperature", "1", "--num_return_sequences", "3"]) == 2
    assert "a talk goes on from one answer, but num_return_sequences=3" in capsys.readouterr().err


def test_a_question_is_asked_again_or_taken_back(real, said, real_model, tokenizer, capsys):
    said += ["/retry", "My name is Kim.", "What is my name?", "/undo", "/set temperature 1.5", "/set seed 3", "What is my name?", "/retry", "/set temperature default", "/set"]
    assert main(["default", "--max_new_tokens", "6"]) == 0
    printed = capsys.readouterr()
    one, _, drawn, again = printed.out.splitlines()
    talk = [user("My name is Kim."), {"role": "assistant", "content": one}, user("What is my name?")]
    how = {"max_new_tokens": 6, "temperature": 1.5}
    for turn, said_then in ((2, drawn), (3, again)):  # what was taken back is no part of the talk; each asking has a seed of its own
        assert generate(real_model, tokenizer, [talk], SamplingParams(**how, seed=3 + turn))[0].text.replace("\n", " ") == said_then
    assert "nothing has been asked yet" in printed.err and "(taken back: What is my name?)" in printed.err
    assert "max_new_tokens 6, seed 3" in printed.err.splitlines()[-1] and "temperature" not in printed.err.splitlines()[-1]


def test_a_setting_that_does_not_hold_leaves_all_as_it_was(real, said, capsys):
    said += ["/set temperatur 1", "/set top_p 3", "/set temperature", "/set num_return_sequences 2", "/set top_p", "/set temperature '", "/set"]
    assert main(["default", "--max_new_tokens", "6"]) == 0
    *refused, last = capsys.readouterr().err.splitlines()[-7:]
    wrong = ["did you mean temperature", "top_p must be in (0, 1], got 3", "--temperature: expected one argument", "said at the start alone", "expected one argument", "No closing quotation"]
    for line, part in zip(refused, wrong, strict=True):
        assert line.startswith("error: ") and part in line
    assert last == "max_new_tokens 6"


def test_a_talk_is_saved_as_a_record_that_sft_takes(real, said, tmp_path, capsys):
    file = tmp_path / "talks.jsonl"
    said += ["/system 짧게 답하세요.", "안녕", f"/save {file}", f"/save {file}", "/save", f"/save {tmp_path}/none/x.jsonl", "/reset", f"/save {file}"]
    assert main(["default", "--max_new_tokens", "3"]) == 0
    printed = capsys.readouterr()
    whole, again = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    told = {"role": "system", "content": "짧게 답하세요."}
    assert whole == {"messages": [told, user("안녕"), {"role": "assistant", "content": printed.out.rstrip("\n")}]} == again
    assert to_example(whole).messages == whole["messages"]
    assert "nothing has been said yet" in printed.err and "/save needs a file" in printed.err and "cannot be written (No such file or directory)" in printed.err


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_markdown_stands_there_whole_however_it_comes(cut):
    """Drawn as it grows, the end is what drawing it at once would be; what commands a terminal is left out."""
    text = "# Title\n\nSome *words* and `code`.\n\n- one\n\n- two\n\n```python\nif x:\n\n    pass\n```\n\nLast \x1b[31mred\x1b[0m line.\n\n1. a\n\n2. b\n"
    screen = io.StringIO()
    console = Console(file=screen, width=60, height=20, force_terminal=False)
    with markdown.GrowingMarkdown(console) as drawn:
        for at in range(0, len(text), cut):
            drawn.add(text[at : at + cut])
    at_once = io.StringIO()
    Console(file=at_once, width=60, height=20, force_terminal=False).print(Markdown(markdown.shown(text)))
    assert [line.strip() for line in screen.getvalue().splitlines() if line.strip()] == [line.strip() for line in at_once.getvalue().splitlines() if line.strip()]
    assert "\x1b" not in screen.getvalue()
