"""seodang fill-mask: what Python's fill_mask finds, for people and as JSON Lines, streamed over a file."""

import json

import pytest

from seodang.data.errors import UserError
from seodang.data.formats import Text
from seodang.infer import fill_mask, load
from seodang.infer.encoders.encoder import Encoder
from seodang.infer.encoders.fill_mask import Candidate, Filling, MaskedText, MaskFiller
from seodang.recipes.fill_mask import main, shown
from seodang.recipes.generate import main as generate
from seodang.recipes.sft import main as sft
from seodang.train.stages.sft import SFT

TEXT, TWO = "the capital of [MASK] is seoul.", "[MASK] is the [MASK] of korea"
WHERE = ["--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def folder(save_encoder):
    return save_encoder("bert")


@pytest.fixture
def found(folder):
    """`found(text, **options)`: what Python finds."""
    model, tokenizer = load(folder, device="cpu", dtype="float32")
    return lambda text, **options: fill_mask(model, tokenizer, [text], **options)[0]


def as_line(record: str, text: str, found) -> dict:
    fillings = [
        {
            "text": each.text, "probability": pytest.approx(each.probability, rel=1e-4), "logprob": pytest.approx(each.logprob, rel=1e-4),
            "tokens": [one.token for one in each.candidates], "ids": [one.id for one in each.candidates],
            "probabilities": pytest.approx([one.probability for one in each.candidates], rel=1e-4),
        }
        for each in found.fillings
    ]  # fmt: skip
    masks = [[{"token": one.token, "id": one.id, "probability": pytest.approx(one.probability, rel=1e-4)} for one in column] for column in found.marginals]
    return {"record": record, "text": text, "fillings": fillings, **({"masks": masks} if len(masks) > 1 else {})}


def test_a_text_is_shown_with_its_fillings_the_likeliest_first(folder, found, capsys):
    assert main([str(folder), TEXT, TWO, "--top_k", "3", *WHERE]) == 0
    expected = []
    for text in (TEXT, TWO):
        own = found(text, top_k=3).fillings
        tokens = [" ".join(one.token for one in each.candidates) for each in own]
        width = max(map(len, tokens))
        expected += [text, *(f"  {each.probability:8.4f}  {token:<{width}}  {each.text}" for each, token in zip(own, tokens))]
    assert capsys.readouterr().out.splitlines() == expected


def test_tokens_that_would_not_be_seen_are_shown_as_python_writes_them(capsys):
    fillings = [Filling([Candidate(1, token, 0.0)], "filled") for token in (" sea", "\x1b", " ", "\n")]
    shown(Text("a [MASK]", "text 1"), MaskedText(fillings, []))
    assert capsys.readouterr().out.splitlines() == ["a [MASK]", *(f"    1.0000  {told:<6}  filled" for told in ("sea", "'\\x1b'", "' '", "'\\n'"))]


def test_lines_of_json_have_all_of_it(folder, found, capsys):
    assert main([str(folder), TEXT, TWO, "--json", "--how", "in_turn", *WHERE]) == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert lines == [as_line(f"text {number}", text, found(text, how="in_turn")) for number, text in ((1, TEXT), (2, TWO))]
    assert main([str(folder), TEXT, "--json", "--targets", "paris", "seoul", *WHERE]) == 0
    assert json.loads(capsys.readouterr().out) == as_line("text 1", TEXT, found(TEXT, targets=["paris", "seoul"]))


def test_a_file_is_read_and_written_as_it_goes(folder, found, tmp_path, monkeypatch, capsys):
    texts = [TEXT, "[MASK]", TWO] * 4
    data, output = tmp_path / "texts.jsonl", tmp_path / "filled.jsonl"
    data.write_text("".join(json.dumps({"n": n, "sentence": text}) + "\n" for n, text in enumerate(texts)))
    output.write_text("of an earlier run\n")
    written, fill = [], MaskFiller.fill
    monkeypatch.setattr("seodang.recipes.fill_mask.TEXTS_A_CALL", 5)
    monkeypatch.setattr(MaskFiller, "fill", lambda self, some: written.append((len(some), len(output.read_text().splitlines()))) or fill(self, some))
    assert main([str(folder), "--data", str(data), "--columns", "text=sentence", "--output", str(output), *WHERE]) == 0
    assert written == [(5, 0), (5, 5), (2, 10)] and capsys.readouterr().out == ""
    lines = list(map(json.loads, output.read_text().splitlines()))
    assert lines == [as_line(f"texts.jsonl line {n}", text, found(text)) for n, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("records", "argv", "message"),
    [
        (None, ["no mask"], "text 1 has no mask: write [MASK] where a token is to be filled in"),
        ([TEXT, "no mask"], [], "texts.jsonl line 2 has no mask"),
        ([TEXT, "a " * 60 + "[MASK]"], [], "texts.jsonl line 2 has 63 tokens, more than the 40 positions of the encoder"),
        (None, [TEXT, "a <mask>"], "text 2 has <mask>, but this checkpoint's mask is spelled [MASK]"),
        (None, [], 'give texts ("The capital of [MASK] is Seoul.") or --data, one of them'),
        ([TEXT], [TEXT], "or --data, one of them"),
        (None, [TEXT, "--top_k", "0"], "top_k must be a whole number from 1 on, got 0"),
        (None, [TEXT, "--top_k", "99"], "top_k=99 is more than the 25 tokens that there are"),
        (None, [TEXT, "--how", "both"], "how must be jointly or in_turn, got 'both'"),
        (None, [TEXT, "--targets", "unbelievable"], "'unbelievable' is no single token"),
        (None, [TEXT, "--weights", "int8"], "unknown option 'weights'"),
        ([3], [], "texts.jsonl line 1"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_before_any_compute(folder, tmp_path, monkeypatch, capsys, records, argv, message):
    monkeypatch.setattr(Encoder, "_logits", lambda *_: pytest.fail("computed something"))
    if records is not None:
        (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
        argv = [*argv, "--data", str(tmp_path / "texts.jsonl")]
    output = tmp_path / "kept.jsonl"
    output.write_text("of an earlier run\n")
    assert main([str(folder), *argv, "--output", str(output), *WHERE]) == 2
    [error] = capsys.readouterr().err.splitlines()[-1:]
    assert error.startswith("error: ") and message in error and output.read_text() == "of an earlier run\n"


def test_each_kind_of_model_is_refused_where_it_does_not_belong(folder, base, declared, save_encoder, encoder, tmp_path, capsys):
    body = save_encoder("bert", encoder("bert").base_model)
    records = tmp_path / "records.jsonl"
    records.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    for command, argv, message in (
        (main, [base, TEXT], "llama is a decoder, which reads from left to right and fills in no masks: use `seodang generate`"),
        (main, [body, TEXT], "holds a BertModel without a masked-language head"),
        (generate, [folder, "a"], "bert attends in both directions and cannot continue a text: it is an encoder"),
        (generate, [body, "a"], "bert attends in both directions and cannot continue a text: it is an encoder"),
        (sft, ["--model", folder, "--data", records, "--output_dir", tmp_path / "run"], "cannot learn to continue a text: it is an encoder"),
        (main, ["./nowhere", TEXT], "is not a folder"),
    ):
        assert command([*map(str, argv)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match="bert attends in both directions and cannot learn to continue a text"):
        SFT.check(encoder("bert"), [{"input_ids": [2, 5, 3], "labels": [2, 5, 3]}])
    assert main([str(declared()), TEXT]) == 2
    assert "this llama is a masked-diffusion model" in capsys.readouterr().err
