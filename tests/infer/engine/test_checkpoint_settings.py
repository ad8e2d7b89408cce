"""A checkpoint's own settings: read as transformers reads them, and what holds where the caller gives some or none."""

import logging

import pytest
import torch
from transformers import GenerationConfig

from seodang.data.errors import UserError
from seodang.infer import generate, stream
from seodang.infer.engine.checkpoint_settings import (
    CONFIG,
    CONFIG_NEUTRAL,
    CONFIG_PASSED_OVER,
    checkpoint_params,
    diffusion_in,
    from_generation_config,
    said,
)
from seodang.infer.engine.params import SamplingParams
from seodang.infer.runners.paradigm import Diffusion, declare

QWEN3 = {
    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643, "temperature": 0.6, "top_k": 20,
    "top_p": 0.95, "transformers_version": "4.51.0",
}  # fmt: skip
LLAMA32 = {
    "bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009], "temperature": 0.6, "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}  # fmt: skip
SMOLLM2 = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "4.42.3"}


@pytest.mark.parametrize("kind", [dict, lambda given: GenerationConfig(**given)])
def test_the_configs_that_checkpoints_come_with(kind):
    read = from_generation_config
    assert read(kind(QWEN3)) == SamplingParams(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    assert read(kind(LLAMA32)) == SamplingParams(do_sample=True, temperature=0.6, top_p=0.9)
    assert read(kind(SMOLLM2)) == SamplingParams()


def test_warpers_of_a_config_that_does_not_sample_are_without_effect_as_in_transformers():
    read = from_generation_config
    assert read({"do_sample": False, "temperature": 0.6, "top_k": 50}) == SamplingParams(do_sample=False)
    assert read({"temperature": 0.6, "top_p": 0.9}) == SamplingParams()
    assert read({"penalty_alpha": 0.6, "top_k": 4}) == SamplingParams(penalty_alpha=0.6, top_k=4)


def test_the_callers_changes_win_over_the_config():
    read = from_generation_config
    assert read(QWEN3, temperature=0.2, max_new_tokens=5) == SamplingParams(temperature=0.2, top_k=20, top_p=0.95, max_new_tokens=5)
    assert not read(QWEN3, temperature=0).samples
    assert read({"do_sample": False}, temperature=0.5).samples


def test_lists_of_a_config_become_what_the_filters_take():
    params = from_generation_config({
        "sequence_bias": [[[5, 6], -2.0]], "exponential_decay_length_penalty": [10, 1.1], "stop_strings": ["END"], "no_repeat_ngram_size": 0,
        "num_assistant_tokens_schedule": "heuristic_transient",
    })  # fmt: skip
    assert params == SamplingParams(sequence_bias={(5, 6): -2.0}, exponential_decay_length_penalty=(10, 1.1), stop="END")


@pytest.mark.parametrize("field", [{"watermarking_config": {"bias": 2}}, {"forced_decoder_ids": [[1, 9]]}, {"constraints": ["x"]}, {"temprature": 1}])
def test_a_field_that_we_cannot_honour_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        from_generation_config(field)


QWEN1 = {"chat_format": "chatml", "max_window_size": 6144, "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1}


def test_fields_of_a_checkpoint_that_transformers_does_not_know_are_named_and_passed_over():
    with pytest.warns(UserWarning, match="has chat_format, max_window_size, passed over"):
        params = from_generation_config(GenerationConfig(**QWEN1))
    assert params == SamplingParams(max_new_tokens=512, do_sample=True, top_k=0, top_p=0.8, repetition_penalty=1.1)
    assert from_generation_config(GenerationConfig(remove_invalid_values=True)) == SamplingParams()
    with pytest.raises(UserError, match="forced_decoder_ids"):
        from_generation_config(GenerationConfig(forced_decoder_ids=[[1, 9]]))


def test_every_field_of_a_generation_config_is_honoured_refused_or_passed_over():
    assert set(GenerationConfig().to_dict()) <= {*CONFIG, *CONFIG_NEUTRAL, *CONFIG_PASSED_OVER}
    assert from_generation_config(GenerationConfig()) == SamplingParams()


def test_a_caller_who_does_not_sample_leaves_out_what_the_checkpoint_samples_by():
    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert from_generation_config(config, do_sample=False) == SamplingParams(do_sample=False, repetition_penalty=1.1)


# what transformers 4 wrote of every field, with the defaults of its class
WRITTEN_OUT = {
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "num_return_sequences": 1, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "renormalize_logits": False, "remove_invalid_values": False, "token_healing": False, "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.4, "use_cache": True, "output_scores": False,
}  # fmt: skip


def test_defaults_that_were_written_out_ask_for_nothing_but_a_length_that_a_file_of_generation_says():
    assert from_generation_config({**WRITTEN_OUT, "_from_model_config": True}) == SamplingParams(do_sample=False)
    assert from_generation_config(WRITTEN_OUT) == SamplingParams(do_sample=False, max_length=20)


def test_what_is_for_another_strategy_than_the_one_that_runs_is_left_out():
    read, beams = from_generation_config, {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}
    assert read({"length_penalty": 2.0, "num_assistant_tokens": 9}) == SamplingParams()
    assert read(beams) == SamplingParams(num_beams=4, length_penalty=2.0, early_stopping=True)
    assert read(beams, penalty_alpha=0.6, top_k=4) == SamplingParams(penalty_alpha=0.6, top_k=4)
    assert read(beams, num_beams=1) == SamplingParams()
    assert read(QWEN3, penalty_alpha=0.6, top_k=4) == SamplingParams(penalty_alpha=0.6, top_k=4)  # draws nothing
    assert read(QWEN3, num_beams=2) == SamplingParams(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, num_beams=2)


def test_a_length_of_the_callers_overrules_those_of_the_checkpoint():
    read, config = from_generation_config, {"max_length": 142, "min_length": 56}
    assert read(config) == SamplingParams(max_length=142, min_length=56)
    assert read(config, max_new_tokens=200) == SamplingParams(max_new_tokens=200, min_length=56)
    assert read(config, max_new_tokens=5) == SamplingParams(max_new_tokens=5)
    assert read({"max_length": 20, "max_new_tokens": 30}) == SamplingParams(max_new_tokens=30)  # as transformers has it
    assert read({"max_new_tokens": 30}, max_length=50) == SamplingParams(max_length=50)


@pytest.fixture
def with_config(tiny):
    """`with_config(kind, **fields)`: a tiny model whose own settings are these."""
    models = []

    def make(kind: str, **fields):
        model = tiny(kind)
        models.append((model, model.generation_config))
        own = {"eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": model.config.decoder_start_token_id} if kind == "bart" else {}
        model.generation_config = GenerationConfig(**own, **fields)
        return model

    yield make
    for model, config in reversed(models):
        model.generation_config = config


SOURCE = [5, 9, 17, 40, 8, 3]


@pytest.mark.parametrize(
    "fields",
    [
        {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "max_new_tokens": 8},
        {"num_beams": 3, "length_penalty": 2.0, "max_length": 12, "bad_words_ids": [[42], [15, 15]]},
        {"renormalize_logits": True, "num_beams": 4, "suppress_tokens": list(range(60, 128)), "max_length": 10},  # Marian's says so
        {"suppress_tokens": [30, 31], "begin_suppress_tokens": [9], "repetition_penalty": 1.3, "max_length": 10, "eos_token_id": [2, 33]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_without_params_the_answer_is_that_of_transformers_without_arguments(with_config, tiny_tokenizer, fields):
    fields = {**fields}
    ends = fields.pop("eos_token_id", 2)
    model = with_config("bart", **fields)
    model.generation_config.eos_token_id = ends
    theirs = model.generate(torch.tensor([SOURCE]))[0, 1:].tolist()
    assert generate(model, tiny_tokenizer, [SOURCE])[0].ids == theirs
    assert [event.id for event in stream(model, tiny_tokenizer, SOURCE) if hasattr(event, "logprob")] == theirs
    assert generate(model, tiny_tokenizer, [SOURCE], SamplingParams(max_new_tokens=len(theirs)))[0].ids != theirs  # greedy, whatever it says


def test_a_checkpoint_that_samples_draws_from_a_seed_that_repeats_the_answer(with_config, tiny_tokenizer):
    model = with_config("llama", do_sample=True, temperature=1.5, top_p=0.9, max_new_tokens=12)
    first, second = generate(model, tiny_tokenizer, [SOURCE, SOURCE])
    assert first.ids != second.ids and first.seed != second.seed
    asked = SamplingParams(temperature=1.5, top_p=0.9, max_new_tokens=12, seed=second.seed)
    assert generate(model, tiny_tokenizer, [SOURCE], asked)[0].ids == second.ids
    greedy = SamplingParams(max_new_tokens=12)
    assert generate(model, tiny_tokenizer, [SOURCE] * 2, [greedy, None])[0].ids == generate(model, tiny_tokenizer, [SOURCE], greedy)[0].ids


def test_a_checkpoint_without_settings_is_greedy_and_one_that_we_cannot_honour_is_refused(with_config, tiny_tokenizer):
    assert checkpoint_params(with_config("llama")) == SamplingParams()
    model = with_config("llama", watermarking_config={"bias": 2.0})
    with pytest.raises(UserError, match=r"watermarking_config.*params=SamplingParams\(\.\.\.\)"):
        generate(model, tiny_tokenizer, [SOURCE])
    with pytest.raises(UserError, match="top_p must be"):
        checkpoint_params(model, top_p=7)
    assert generate(model, tiny_tokenizer, [SOURCE], SamplingParams(max_new_tokens=2))[0].ids
    model = with_config("llama", max_length=4)
    with pytest.raises(UserError, match=r"leaves nothing of max_length=4.*It is a setting of the checkpoint's"):
        generate(model, tiny_tokenizer, [SOURCE])
    with pytest.raises(UserError, match="shorten the prompt$"):
        generate(model, tiny_tokenizer, [SOURCE], SamplingParams(max_length=4))


def test_what_a_person_is_told_of_the_checkpoints_settings():
    changes = {"temperature": 0.2}
    assert said(from_generation_config(QWEN3), {}) == "temperature 0.6, top_k 20, top_p 0.95"
    assert said(from_generation_config(QWEN3, **changes), changes) == "top_k 20, top_p 0.95"
    assert said(from_generation_config({"do_sample": True}), {}) == "do_sample True" and said(SamplingParams(), {}) == ""


def test_of_a_diffusion_model_what_looks_back_from_a_token_is_left_out_and_the_rest_holds(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127))
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, repetition_penalty=1.1, num_beams=3, eos_token_id=2)
    params = checkpoint_params(model, max_new_tokens=4, seed=1)
    assert {name: value for name, value in params.given.items() if name not in ("max_new_tokens", "seed")} == {"do_sample": True, "temperature": 0.7}
    assert len(generate(model, tiny_tokenizer, [[5, 6]], params)[0].ids) <= 4
    model.generation_config = GenerationConfig(**{"steps": 256, "alg": "origin", "max_new_tokens": 4})
    assert checkpoint_params(model).given == {"steps": 256, "alg": "origin", "max_new_tokens": 4}
    for rule in ({"confidence_threshold": 0.9}, {"entropy_bound": 0.1}):  # which says how many passes there are
        assert checkpoint_params(model, **rule).given == {**rule, "max_new_tokens": 4}


def test_what_a_model_is_is_read_without_a_word(fresh_tiny, tmp_path, caplog):
    """transformers warns where a configuration is read as that of no model in particular; one of no model that it knows is told of when that is loaded."""
    logging.getLogger("transformers").addHandler(caplog.handler)
    model = fresh_tiny("llama")
    model.config.save_pretrained(tmp_path)
    assert diffusion_in(tmp_path) is None and not caplog.records
    declare(model.config, Diffusion(127))
    model.config.save_pretrained(tmp_path)
    assert diffusion_in(tmp_path) == Diffusion(127) and not caplog.records
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    assert diffusion_in(tmp_path) is None
    logging.getLogger("transformers").removeHandler(caplog.handler)
