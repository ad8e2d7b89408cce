"""The command line's options of decoding are the settings themselves."""

from dataclasses import fields

import pytest
from transformers import GenerationConfig

from seodang.data.errors import UserError
from seodang.infer.engine.params import OPTIONS, SamplingParams
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.options.parser import parse


def test_every_setting_that_can_be_written_is_an_option_with_its_help():
    told = {each.name: each.metadata["help"] for each in fields(Decoding)}
    assert told.pop("checkpoint_settings") and told == {name: each.help for name, each in OPTIONS.items() if each.command}


def test_without_options_nothing_is_asked_for():
    assert Decoding().params(SpeakingModel()) == SamplingParams()


def test_values_are_read_into_their_own_types(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "null"}', encoding="utf-8")
    asked = Decoding(json_schema=str(tmp_path / "schema.json"), early_stopping="true", dola_layers=["low"], stop=["END"], suppress_tokens=[5])
    assert asked.params(SpeakingModel()).given == {
        "json_schema": '{"type": "null"}', "early_stopping": True, "dola_layers": "low", "stop": ("END",), "suppress_tokens": (5,),
    }  # fmt: skip


QWEN3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
MARIAN = {"num_beams": 4, "forced_eos_token_id": 0, "bad_words_ids": [[7]], "max_length": 20}


@pytest.fixture
def asked(tiny, capsys):
    """`asked(config, *argv)`: the settings of a command line beside a checkpoint's, and what is said of these."""
    model = tiny("llama")
    before = model.generation_config

    def ask(config: dict, *argv: str) -> tuple[dict, str]:
        model.generation_config = GenerationConfig(**config)
        [decoding] = parse(argv, Decoding, prog="test")
        decoding.take_over(model)
        return decoding.params(SpeakingModel()).given, capsys.readouterr().err.strip()

    yield ask
    model.generation_config = before


def test_the_checkpoints_settings_hold_where_nothing_is_given_and_are_told(asked):
    assert asked(QWEN3) == (QWEN3, "settings of the checkpoint: temperature 0.6, top_k 20, top_p 0.95 (--checkpoint_settings false does without)")
    assert asked({}) == ({}, "")
    assert asked(QWEN3, "--checkpoint_settings", "false") == ({}, "")


def test_what_is_written_down_wins_even_where_it_is_the_usual_value(asked):
    assert asked(QWEN3, "--temperature", "1.5")[0] == {"temperature": 1.5, "top_k": 20, "top_p": 0.95}
    assert asked(MARIAN)[0]["num_beams"] == 4 and "num_beams" not in asked(MARIAN, "--num_beams", "1")[0]
    given, told = asked(MARIAN, "--num_beams=2", "--max_new_tokens", "9")
    assert (given["num_beams"], given["max_new_tokens"], given["forced_eos_token_id"]) == (2, 9, 0) and "max_length" not in given
    assert "num_beams" not in told and "forced_eos_token_id 0" in told


def test_a_temperature_of_0_is_greedy_whatever_the_checkpoint_samples_by(asked):
    given, told = asked(QWEN3, "--temperature", "0")
    assert given == {"temperature": 0.0} and not SamplingParams(**given).samples and not told


def test_a_file_of_options_gives_them_too(asked, tmp_path):
    (tmp_path / "speak.yaml").write_text("num_beams: 1\n")
    assert "num_beams" not in asked(MARIAN, "--config", str(tmp_path / "speak.yaml"))[0]


def test_options_that_the_checkpoint_makes_sense_of_are_not_refused_early(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    [decoding] = parse(["--num_return_sequences", "2"], Decoding, prog="test")
    with pytest.raises(UserError, match="would all be the same"):
        decoding.check(SpeakingModel(model=str(tmp_path)))
    GenerationConfig(**QWEN3).save_pretrained(tmp_path)
    decoding.check(SpeakingModel(model=str(tmp_path)))
    [other] = parse(["--num_return_sequences", "2", "--checkpoint_settings", "false"], Decoding, prog="test")
    with pytest.raises(UserError, match="would all be the same"):
        other.check(SpeakingModel(model=str(tmp_path)))


def test_options_reach_the_settings_in_their_own_types():
    asked = ["--early_stopping", "never", "--dola_layers", "8", "10", "--stop_token_ids", "5", "6", "--ignore_eos", "--xtc_probability", "0.5",
             "--xtc_threshold", "0.2", "--thinking_budget", "9", "--filter_order", "xtc"]  # fmt: skip
    [decoding] = parse(asked, Decoding, prog="test")
    wanted = {"early_stopping": "never", "dola_layers": [8, 10], "stop_token_ids": (5, 6), "ignore_eos": True, "xtc_probability": 0.5,
              "xtc_threshold": 0.2, "thinking_budget": 9, "filter_order": ("xtc",)}  # fmt: skip
    assert decoding.params(SpeakingModel()).given == wanted
    [plain] = parse([], Decoding, prog="test")
    assert plain.params(SpeakingModel()).given == {}


def test_words_become_the_settings_they_stand_for(tmp_path):
    (tmp_path / "cities.txt").write_text("Seoul\r\n\n부산\n", encoding="utf-8")
    (tmp_path / "speak.yaml").write_text('logit_bias: {"15": -100, "no": 1}\n', encoding="utf-8")
    words = ["--trie", str(tmp_path / "cities.txt"), "--forced_text", "0=Yes", "3==a= b", "--hide", "secret", "a b", "--forced_bos_token_id", "5"]
    [decoding] = parse([*words, "--config", str(tmp_path / "speak.yaml")], Decoding, prog="test")
    assert decoding.params(SpeakingModel()).given == {
        "trie": ("Seoul", "부산"), "forced_text": {0: "Yes", 3: "=a= b"}, "hide": ("secret", "a b"), "logit_bias": {15: -100.0, "no": 1.0},
        "forced_bos_token_id": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trie", "nowhere.txt"], "trie: there is no file nowhere.txt"),
        (["--forced_text", "Yes"], "forced_text 'Yes' is not written as PLACE=TEXT"),
        (["--forced_text", "one=Yes"], "forced_text has 'one' where a token's place is told"),
        (["--logit_bias", "yes"], "logit_bias 'yes' is not written as TEXT=NUMBER"),
        (["--logit_bias", "yes=much"], "logit_bias has 'much' for 'yes', which is no number"),
        (["--logit_bias", "yes=inf"], "logit_bias must be at most 1e+30, got 'yes': inf"),
        (["--logit_bias", "{yes"], "is no JSON object"),
        (["--hide", ""], "hide must be a list of Span or texts, got the entry ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_written_wrongly_is_refused_before_a_model_is_loaded(words, message):
    [decoding] = parse(words, Decoding, prog="test")
    with pytest.raises(UserError) as refused:
        decoding.check(SpeakingModel(model="default"))
    assert message in str(refused.value)
