"""seodang chat: a talk in the terminal, with its history."""

import io

import pytest

from seodang.infer import SamplingParams, generate
from seodang.recipes import chat
from seodang.recipes.chat import main
from seodang.recipes.options.decoding import SpeakingModel


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
    monkeypatch.setattr(chat, "print", lambda *words, **options: printed.append(*words or [""]), raising=False)
    chat.answer(real_model, tokenizer, [], "Which country is the city of Suwon located in?", SamplingParams(max_new_tokens=5))
    assert printed == ["The", " city", " of", " Su", "won", ""]


def test_a_talk_that_is_too_long_is_refused_and_stays_as_it_was(real, said, capsys, real_model, tokenizer):
    talk = chat.answer(real_model, tokenizer, [user("before")], "hi", SamplingParams(max_new_tokens=9000))
    assert talk == [user("before")]
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
    talk = chat.answer(real_model, tokenizer, [], "Which country is the city of Suwon located in?", SamplingParams())
    assert talk[-1] == {"role": "assistant", "content": "The city"}


def test_unknown_commands_are_not_sent_to_the_model(real, said, capsys):
    said += ["/rest", ""]
    assert main(["default"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "" and "unknown command /rest: /reset or /exit" in printed.err


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
