"""What a model thought of tokens, as it is written and shown."""

from seodang.infer.requests.events import Committed, PromptRead
from seodang.infer.requests.likelihoods import ScoredToken, TokenLogprobs
from seodang.recipes.run.printing import speak
from seodang.recipes.run.token_logprobs import as_json, lines

HALF = TokenLogprobs(70, -0.5, "\ufffd", b"\xeb", (ScoredToken(70, -0.5, "\ufffd", b"\xeb"), ScoredToken(2, -1.25, "<|im_end|>", None)))


def test_a_token_is_written_as_openai_writes_it_with_its_id():
    others = [{"id": 70, "token": "\ufffd", "logprob": -0.5, "bytes": [235]}, {"id": 2, "token": "<|im_end|>", "logprob": -1.25, "bytes": None}]
    assert as_json(HALF) == {"id": 70, "token": "\ufffd", "logprob": -0.5, "bytes": [235], "top_logprobs": others}


def test_a_line_a_token_under_a_heading_and_nothing_where_nothing_was_asked(tiny_tokenizer):
    [letter] = tiny_tokenizer.encode("a")
    told = TokenLogprobs(letter, -12.5, "a", b"a")
    shown = [*lines([None, told], [HALF], tiny_tokenizer)]
    assert shown[:2] == ["prompt: log-probabilities by the model alone", "  -12.500  a"]
    assert shown[2] == "answer: log-probabilities by the model alone" and shown[3].startswith("   -0.500  ") and shown[3].endswith("<|im_end|> -1.250")
    assert [*lines([], [], tiny_tokenizer)] == []


def test_a_spoken_answer_is_followed_by_what_was_thought_of_it(tiny_tokenizer, capsys):
    known = TokenLogprobs(5, -1.0, "x", b"x")
    speak([PromptRead(0, [None, known]), Committed(0, 0, 5, 0.0, "Yes", 0, known), Committed(0, 1, 6, 0.0, ".", 0, known)], tiny_tokenizer)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Yes." and [line.split()[0] for line in out[1:]] == ["prompt:", "-1.000", "answer:", "-1.000", "-1.000"]
