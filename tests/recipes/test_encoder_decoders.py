"""Encoder-decoders in the commands that speak, score and export: no template, no --raw, languages by options."""

import json

import pytest
import torch
from translation_fixtures import build_mbart50, build_nllb, build_translator

from seodang.infer import SamplingParams, generate, score
from seodang.infer.checkpoint.load import load
from seodang.recipes import chat, explain, export
from seodang.recipes import generate as generating
from seodang.recipes import score as scoring

EXACT = ["--dtype", "float32", "--device", "cpu"]
PAIRS = [
    {"source": "das Haus", "target": "the house is small", "prefix": "the house"},
    {"translation": {"de": "das Haus", "ko": "the house is small"}},
]


@pytest.fixture
def translating(tmp_path):
    """A folder of an mBART-50 that forces no language."""
    tokenizer = build_mbart50()
    build_translator("mbart50", tokenizer).float().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def t5(fresh_tiny, t5_tokenizer, tmp_path):
    model = fresh_tiny("t5", vocab_size=len(t5_tokenizer))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(tmp_path / "t5")
    t5_tokenizer.save_pretrained(tmp_path / "t5")
    return str(tmp_path / "t5")


def test_generate_answers_a_text_in_the_languages_asked_for(translating, capsys):
    model, tokenizer = load(translating, device="cpu", dtype="float32")
    for languages in ({"source_lang": "de_DE", "target_lang": "ko_KR"}, {"target_lang": "fr_XX"}):
        options = [word for name, value in languages.items() for word in (f"--{name}", value)]
        assert generating.main([translating, "das Haus", *options, "--prefix", "the", "--max_new_tokens", "8", *EXACT]) == 0
        [want] = generate(model, tokenizer, ["das Haus"], SamplingParams(max_new_tokens=8, prefix="the", **languages))
        assert capsys.readouterr().out.strip() == want.text.strip() and want.text.startswith("the")
    assert generating.main([translating, "das Haus", "--target_lang", "ko_RK", *EXACT]) == 2
    assert "prompt 1: " not in (told := capsys.readouterr().err) and "target_lang='ko_RK' is no language of the checkpoint: did you mean ko_KR?" in told


def test_each_line_of_a_talk_is_answered_by_itself(translating, monkeypatch, capsys):
    lines = ["das Haus", "the small house ist klein"]
    model, tokenizer = load(translating, device="cpu", dtype="float32")
    wanted = [generate(model, tokenizer, [line], SamplingParams(max_new_tokens=6, target_lang="ko_KR"))[0].text for line in lines]
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0) if lines else "/exit")
    assert chat.main([translating, "--max_new_tokens", "6", "--target_lang", "ko_KR", *EXACT]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == wanted and wanted[0] != wanted[1] and "each line is answered by itself" in err


def test_score_gives_each_target_what_the_model_gives_it_behind_its_prefix(translating, tmp_path, capsys):
    data = [tmp_path / "pairs.jsonl", tmp_path / "translations.jsonl"]
    for file, record in zip(data, PAIRS):
        file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    data = list(map(str, data))
    asked = ["--source_lang", "de_DE", "--target_lang", "ko_KR", "--tokens"]
    assert scoring.main([translating, "--data", *data, *asked, *EXACT]) == 0
    given, whole, total = map(json.loads, capsys.readouterr().out.splitlines())
    model, tokenizer = load(translating, device="cpu", dtype="float32")
    [want] = score(model, tokenizer, ["das Haus"], ["the house is small"], source_lang="de_DE", target_lang="ko_KR")
    assert whole["logprobs"] == pytest.approx(want.tolist(), abs=1e-5) and given["logprobs"] == pytest.approx(want[3:].tolist(), abs=1e-5)
    assert total["tokens"] == 2 * len(want) - 3
    for more, message in ((["--raw"], "--raw True means nothing to an encoder-decoder"), (["--max_length", "9"], "--max_length 9 means nothing to an encoder-decoder")):
        assert scoring.main([translating, "--data", *data, *asked, *more, *EXACT]) == 2
        assert message in capsys.readouterr().err


def test_score_puts_a_text_before_every_source(t5, tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"instruction": "ab", "output": "나무"}) + "\n", encoding="utf-8")
    assert scoring.main([t5, "--data", str(data), "--source_prefix", "a: ", *EXACT]) == 0
    line, _ = map(json.loads, capsys.readouterr().out.splitlines())
    model, tokenizer = load(t5, device="cpu", dtype="float32")
    [want] = score(model, tokenizer, ["a: ab"], ["나무"])
    assert line["logprob"] == pytest.approx(want.sum().item(), abs=1e-4) and line["tokens"] == len(want)


def test_a_decoder_refuses_to_be_scored_so(base, tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert scoring.main([str(base), "--data", str(data), "--target_lang", "ko"]) == 2
    assert "--target_lang ko is of encoder-decoders, but this llama reads no source" in capsys.readouterr().err


def test_explain_shows_the_source(t5, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert explain.main([t5, "ab 나무", "--max_new_tokens", "3", "--html", str(page), *EXACT]) == 0
    assert "3 tokens" in capsys.readouterr().out and "나무" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["mbart50", "nllb", "forced"])
def test_the_lines_of_an_exported_card_answer_in_the_language(tmp_path, monkeypatch, capsys, kind):
    tokenizer = build_nllb() if kind == "nllb" else build_mbart50(tgt_lang="ko_KR")
    model = build_translator("nllb" if kind == "nllb" else "mbart50", tokenizer).float()
    if kind == "forced":
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids("fr_XX")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert export.main([str(tmp_path / "base"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    language = "ace_Arab" if kind == "nllb" else "ko_KR"
    assert "pipeline_tag: translation" in card and f"--target_lang {language}" in card and "An encoder reads a text as it stands" in card
    assert ("forced_bos_token_id=" in card) == (kind != "forced")
    code = card.partition("```python\n")[2].partition("```")[0].replace("print(", "told = (")
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    with torch.no_grad():
        exec(code, names)  # noqa: S102
    begins = tokenizer.convert_tokens_to_ids("fr_XX" if kind == "forced" else language)
    assert names["answer"][1].item() == begins


@pytest.mark.parametrize(
    ("source", "positions", "vocab", "told"),
    [
        ("abcdefghij", 8, 128, "pairs.jsonl line 1: the source has 10 tokens, more than the 8 positions of the encoder: shorten it"),
        ("e", 64, 8, "of the source is beyond the model's vocabulary of 8: the tokenizer belongs to another model"),
    ],
)
def test_score_refuses_a_source_that_the_encoder_cannot_read(fresh_tiny, t5_tokenizer, tmp_path, capsys, source, positions, vocab, told):
    fresh_tiny("bart", max_position_embeddings=positions, vocab_size=vocab, eos_token_id=1, decoder_start_token_id=1).save_pretrained(tmp_path / "bart")
    t5_tokenizer.save_pretrained(tmp_path / "bart")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"source": source, "target": "a"}) + "\n", encoding="utf-8")
    assert scoring.main([str(tmp_path / "bart"), "--data", str(tmp_path / "pairs.jsonl"), *EXACT]) == 2
    assert told in capsys.readouterr().err
