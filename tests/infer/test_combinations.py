"""Every strategy with every option, in a batch, streamed, on a decoder and on an encoder-decoder: it works exactly or says why not."""

from dataclasses import fields

import pytest
import torch

from seodang.data.refusal import UserError
from seodang.infer import Committed, SamplingParams, Span, generate, stream
from seodang.infer.runner import open_runner
from seodang.infer.strategies import KINDS

PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22]]
NEW = 5

# what each strategy needs to be itself
MEANT = {
    "sampling": {},
    "beam": {"num_beams": 3},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "contrastive": {"penalty_alpha": 0.4, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "assisted": {"prompt_lookup_num_tokens": 3},
    "best_of_n": {"best_of": 3, "do_sample": True},
    "self_consistency": {"best_of": 3, "do_sample": True, "answer_of": lambda text: text[:1]},
    "minimum_bayes_risk": {"best_of": 3, "do_sample": True, "utility": lambda a, b: float(a == b)},
}


def samples(tiny, kind: str) -> dict[str, dict]:
    """One telling value of every option, with what it needs beside it."""
    other = tiny("llama", seed=1)
    return {
        "strategy": {}, "do_sample": {"do_sample": True}, "num_return_sequences": {"num_return_sequences": 2}, "seed": {"seed": 7},
        "max_new_tokens": {"max_new_tokens": 3}, "max_length": {"max_length": {"llama": 8, "t5": 4}[kind]}, "min_new_tokens": {"min_new_tokens": 3},
        "min_length": {"min_length": 9}, "max_time": {"max_time": 60.0}, "stop": {"stop": ["zz"]}, "stop_token_ids": {"stop_token_ids": [40]},
        "stop_regex": {"stop_regex": "z+"}, "stop_when": {"stop_when": lambda text: "zz" in text}, "ignore_eos": {"ignore_eos": True},
        "thinking_budget": {"thinking_budget": 1, "thinking_end": "!"}, "thinking_end": {"thinking_budget": 2, "thinking_end": "?"},
        "temperature": {"temperature": 0.7}, "dynatemp_range": {"temperature": 1.0, "dynatemp_range": 0.5},
        "dynatemp_exponent": {"temperature": 1.0, "dynatemp_range": 0.5, "dynatemp_exponent": 2.0}, "top_k": {"top_k": 5}, "top_p": {"top_p": 0.7},
        "min_p": {"min_p": 0.05}, "typical_p": {"typical_p": 0.8}, "epsilon_cutoff": {"epsilon_cutoff": 0.01}, "eta_cutoff": {"eta_cutoff": 0.01},
        "top_h": {"top_h": 0.6}, "top_n_sigma": {"top_n_sigma": 1.0}, "xtc_probability": {"xtc_probability": 0.8},
        "xtc_threshold": {"xtc_probability": 0.8, "xtc_threshold": 0.05}, "mirostat_tau": {"mirostat_tau": 3.0},
        "mirostat_eta": {"mirostat_tau": 3.0, "mirostat_eta": 0.2}, "repetition_penalty": {"repetition_penalty": 1.3},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.3}, "presence_penalty": {"presence_penalty": 0.5},
        "frequency_penalty": {"frequency_penalty": 0.5}, "dry_multiplier": {"dry_multiplier": 0.8}, "dry_base": {"dry_multiplier": 0.8, "dry_base": 2.0},
        "dry_allowed_length": {"dry_multiplier": 0.8, "dry_allowed_length": 1},
        "dry_sequence_breakers": {"dry_multiplier": 0.8, "dry_sequence_breakers": ["!"]},
        "dry_penalty_last_n": {"dry_multiplier": 0.8, "dry_penalty_last_n": 4}, "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2}, "bad_words": {"bad_words": ["a"]}, "bad_words_ids": {"bad_words_ids": [[33], [34, 32]]},
        "suppress_tokens": {"suppress_tokens": [33]}, "begin_suppress_tokens": {"begin_suppress_tokens": [34]}, "logit_bias": {"logit_bias": {35: 90.0}},
        "sequence_bias": {"sequence_bias": {(36,): 90.0}}, "forced_bos_token_id": {"forced_bos_token_id": 38}, "forced_eos_token_id": {"forced_eos_token_id": 2},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (2, 1.2)},
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda ids: [30, 31, 40, 41]}, "filters": {"filters": [lambda logits, history: -logits]},
        "filter_order": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "filter_order": ["no_repeat_ngram_size", "repetition_penalty"]},
        "prefix": {"prefix": "ab"}, "token_healing": {"token_healing": True}, "forced_text": {"forced_text": {1: "b"}}, "trie": {"trie": [[30, 31], [30, 31, 40]]},
        "json_schema": {"json_schema": {"type": "integer"}}, "regex": {"regex": "[ab]{2,9}"}, "choice": {"choice": ["aa", "bb"]},
        "grammar": {"grammar": 'start: "a" | "b"'}, "hide": {"hide": [Span(0, 1)]}, "attention_mask": {"attention_mask": None},
        "num_beams": {"num_beams": 3}, "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty": {"diversity_penalty": 0.5},
        "length_penalty": {"length_penalty": 2.0}, "early_stopping": {"early_stopping": True}, "force_words": {"force_words": ["a"]},
        "force_words_ids": {"force_words_ids": [[30]]}, "penalty_alpha": {"penalty_alpha": 0.4}, "dola_layers": {"dola_layers": "low"},
        "guidance_scale": {"guidance_scale": 1.5}, "negative_prompt": {"guidance_scale": 1.5, "negative_prompt": [9, 10]},
        "amateur_model": {"amateur_model": other}, "amateur_alpha": {"amateur_model": other, "amateur_alpha": 0.2},
        "amateur_temperature": {"amateur_model": other, "amateur_temperature": 0.5}, "assistant_model": {"assistant_model": other},
        "assistant_tokenizer": {"assistant_tokenizer": None}, "assistant_early_exit": {"assistant_early_exit": 1},
        "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3}, "max_matching_ngram_size": {"max_matching_ngram_size": 3},
        "num_assistant_tokens": {"num_assistant_tokens": 2}, "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "constant"},
        "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.0}, "best_of": {"best_of": 3}, "reward": {"reward": lambda prompt, text: 1.0},
        "answer_of": {"answer_of": lambda text: text[:1]}, "utility": {"utility": lambda a, b: 1.0},
    }  # fmt: skip


# honoured, these cannot leave the answer as it was
TELLING = {
    "max_new_tokens", "max_length", "thinking_budget", "thinking_end", "logit_bias", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id",
    "prefix_allowed_tokens_fn", "filters", "prefix", "forced_text", "trie", "json_schema", "regex", "choice", "grammar", "num_return_sequences",
}  # fmt: skip


def test_there_is_a_value_for_every_option_and_a_meaning_for_every_strategy(tiny):
    assert set(samples(tiny, "llama")) == {each.name for each in fields(SamplingParams)}
    assert set(MEANT) == set(KINDS)


def outcome(model, tokenizer, prompts, settings) -> list | str:
    """The answers' ids, or the reason for which there are none."""
    try:
        params = SamplingParams(**settings)
        return [(r.row, r.choice, r.ids, r.text, r.finish_reason) for r in generate(model, tokenizer, prompts, params, on_error="raise")]
    except UserError as error:
        return str(error)


def streamed(model, tokenizer, prompt, settings) -> tuple[list[int], str]:
    events = [event for event in stream(model, tokenizer, prompt, SamplingParams(**settings)) if isinstance(event, Committed) and event.choice == 0]
    assert [event.position for event in events] == list(range(len(events)))
    return [event.id for event in events], "".join(event.text for event in events)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("name", list(MEANT))
def test_every_option_works_exactly_or_is_refused_by_name(tiny, fresh_tiny, tiny_tokenizer, monkeypatch, name, kind):
    model = fresh_tiny(kind).double()
    runner, passes = type(open_runner(model)), []
    observe = runner.observe
    monkeypatch.setattr(runner, "observe", lambda *args: passes.append(1) or observe(*args))
    plain = outcome(model, tiny_tokenizer, PROMPTS, {"max_new_tokens": NEW, "seed": 3, "strategy": name, **MEANT[name]})
    for option, more in samples(tiny, kind).items():
        settings = {"max_new_tokens": NEW, "seed": 3, "strategy": name, **MEANT[name], **more}
        passes.clear()
        together = outcome(model, tiny_tokenizer, PROMPTS, settings)
        if isinstance(together, str):
            # words that cannot stand in the language of a control are found missing by the search alone
            assert not passes or "answers within its filters, words and time" in together, f"{name} with {option} was refused after the first pass: {together}"
            assert "answers within its filters" in together or option in together or name in together or set(more) & set(together.replace("=", " ").split()), f"{name} with {option}: {together}"
            continue
        assert together != plain or option not in TELLING, f"{name} ignores {option}"
        for row, prompt in enumerate(PROMPTS):
            alone = outcome(model, tiny_tokenizer, [prompt], settings)
            assert [each[1:] for each in together if each[0] == row] == [each[1:] for each in alone], f"{name} with {option} in a batch"
        ids, text = streamed(model, tiny_tokenizer, PROMPTS[0], settings)
        assert (ids, text) == (together[0][2], together[0][3]), f"{name} with {option} streamed"


def test_strategies_of_all_kinds_in_one_run_find_what_each_finds_alone(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama", num_hidden_layers=4).double()
    every = [SamplingParams(max_new_tokens=12, seed=5, **settings) for settings in MEANT.values()]
    every.append(SamplingParams(max_new_tokens=12, seed=5, temperature=1.3, top_p=0.9, num_return_sequences=2))
    every.append(SamplingParams(max_new_tokens=12, assistant_model=fresh_tiny("llama", seed=1).double()))
    every.append(SamplingParams(max_new_tokens=12, num_beams=3, guidance_scale=1.5, negative_prompt=[9, 10]))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 120, (n,), generator=generator).tolist() for n in range(3, 3 + len(every))]
    together = generate(model, tiny_tokenizer, prompts, every)
    for place, (prompt, params) in enumerate(zip(prompts, every)):
        alone = generate(model, tiny_tokenizer, [prompt], params)
        assert [r.ids for r in together if r.row == place] == [r.ids for r in alone], params.given
