"""The command line's options of decoding are the settings themselves."""

from dataclasses import fields

from seodang.infer.engine.params import OPTIONS, SamplingParams
from seodang.recipes.options.decoding import Decoding, SpeakingModel


def test_every_setting_that_can_be_written_is_an_option_with_its_help():
    assert {each.name: each.metadata["help"] for each in fields(Decoding)} == {name: each.help for name, each in OPTIONS.items() if each.command}


def test_without_options_nothing_is_asked_for():
    assert Decoding().params(SpeakingModel()) == SamplingParams()


def test_values_are_read_into_their_own_types(tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "null"}', encoding="utf-8")
    asked = Decoding(json_schema=str(tmp_path / "schema.json"), early_stopping="true", dola_layers=["low"], stop=["END"], suppress_tokens=[5])
    assert asked.params(SpeakingModel()).given == {
        "json_schema": '{"type": "null"}', "early_stopping": True, "dola_layers": "low", "stop": ("END",), "suppress_tokens": (5,),
    }  # fmt: skip
