"""Every strategy with every option, in a batch, streamed, on a decoder and on an encoder-decoder: it works exactly or says why not."""

import re
from dataclasses import fields

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Committed, SamplingParams, Span, generate, stream
from seodang.infer.engine.params import OPTIONS, WARPING
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.strategies.assistants import ASSISTED_OPTIONS
from seodang.infer.strategies.registry import STRATEGIES

PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22]]
NEW = 5

# what each strategy needs to be itself: the least, and for some of them what makes more of their options tell
MORE = {
    "beam": {"num_beams": 3},
    "stochastic_beam": {"num_beams": 3, "do_sample": True},
    "diverse_beam": {"num_beams": 4},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]], "max_new_tokens": 8},
    "contrastive": {"penalty_alpha": 0.4, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "assisted": {"prompt_lookup_num_tokens": 3},
    "self_consistency": {"answer_of": lambda text: text[:1]},
}
MEANT = {name: {**spec.least, **MORE.get(name, {})} for name, spec in STRATEGIES.items()}


REPEATS = {"logit_bias": {18: 1e5}}  # "/" is said again and again
ENDS = {"logit_bias": {2: 1e5}}  # at once
MAY_END = {"logit_bias": {2: 21.0, 30: 20.0, 31: 20.0}}  # hypotheses of all lengths
# how likely an end is, and what length counts for, where a search that stops early misses a longer answer
ENDS_EARLY = {("t5", "beam"): (2.0, 2.0), ("t5", "diverse_beam"): (4.0, 9.0)}
# filters that leave more of one hypothesis's distribution than of another's
UNEVEN = {("llama", "constrained_beam"): {"logit_bias": {id: 4.0 * (id % 3) for id in range(3, 128)}}, ("t5", "constrained_beam"): {"repetition_penalty": 0.05}}
HIDES_THE_FIRST = "of each prompt's own length"


def example(option: str | None) -> dict:
    return {} if option is None else {option: OPTIONS[option].example}


def samples(tiny, kind: str, name: str, tokenizer) -> dict[str, tuple[dict, dict]]:
    """For every option what stands beside it, and a value that makes another answer of it: where nothing else is said, its example alone."""
    other = tiny("llama", seed=1)
    thinking, guided, amateur = {"thinking_budget": 1, "thinking_end": "!"}, {"guidance_scale": 1.5}, {"amateur_model": other, "amateur_alpha": 1e-9}
    drafted, dry = {"assistant_model": tiny(kind, seed=1), "prompt_lookup_num_tokens": None}, {**REPEATS, "dry_multiplier": 1e6}
    likely, weight = ENDS_EARLY.get((kind, name), (5.0, 9.0))
    uneven = UNEVEN.get((kind, name), {"suppress_tokens": list(range(60, 128))})
    drawn = {"do_sample": True} if name in ("sampling", "dola", "assisted", "diffusion") else {}  # else all greedy answers would be the same
    usual = {option: (example(each.part_of), example(option)) for option, each in OPTIONS.items()}
    return usual | {
        "strategy": ({}, {}), "do_sample": ({}, {"do_sample": True}), "num_return_sequences": (drawn, {"num_return_sequences": 2}), "seed": ({"do_sample": True}, {"seed": 7}),
        "max_new_tokens": ({}, {"max_new_tokens": 3}), "max_length": ({}, {"max_length": {"llama": 8, "t5": 4}[kind]}), "min_new_tokens": (ENDS, {"min_new_tokens": 3}),
        "min_length": (ENDS, {"min_length": {"llama": 8, "t5": 4}[kind]}), "max_time": ({}, {"max_time": 600.0}), "stop": (REPEATS, {"stop": ["//"]}),
        "stop_token_ids": (REPEATS, {"stop_token_ids": [18]}), "stop_regex": (REPEATS, {"stop_regex": "/{3}"}), "stop_when": (REPEATS, {"stop_when": lambda text: "//" in text}),
        "ignore_eos": (ENDS, {"ignore_eos": True}), "thinking_budget": ({}, thinking), "thinking_end": (thinking, {"thinking_end": "?"}),
        "temperature": ({}, {"temperature": 0.3}), "dynatemp_range": ({"temperature": 1.0}, {"dynatemp_range": 1.0}),
        "dynatemp_exponent": ({"temperature": 1.0, "dynatemp_range": 1.0}, {"dynatemp_exponent": 30.0}), "top_k": ({}, {"top_k": 8}), "top_p": ({}, {"top_p": 0.3}),
        "min_p": ({}, {"min_p": 0.5}), "typical_p": ({}, {"typical_p": 0.3}), "epsilon_cutoff": ({}, {"epsilon_cutoff": 0.01}), "eta_cutoff": ({}, {"eta_cutoff": 0.3}),
        "top_h": ({}, {"top_h": 0.3}), "top_n_sigma": ({}, {"top_n_sigma": 0.5}), "xtc_probability": ({}, {"xtc_probability": 1.0, "xtc_threshold": 0.02}),
        "xtc_threshold": ({"xtc_probability": 1.0}, {"xtc_threshold": 0.01}), "mirostat_tau": ({}, {"mirostat_tau": 3.0}),
        "mirostat_eta": ({"mirostat_tau": 1.0 if name == "dola" else 3.0}, {"mirostat_eta": 1.0}), "repetition_penalty": ({}, {"repetition_penalty": 0.01}),
        "encoder_repetition_penalty": ({}, {"encoder_repetition_penalty": 90.0}), "presence_penalty": (REPEATS, {"presence_penalty": 1e6}),
        "frequency_penalty": (REPEATS, {"frequency_penalty": 1e6}), "dry_multiplier": (REPEATS, {"dry_multiplier": 1e6}),
        "dry_base": ({**REPEATS, "dry_multiplier": 1.0}, {"dry_base": 1e9}), "dry_allowed_length": (dry, {"dry_allowed_length": 1}),
        "dry_sequence_breakers": (dry, {"dry_sequence_breakers": ["/"]}),
        "dry_penalty_last_n": (dry, {"dry_penalty_last_n": 1}), "no_repeat_ngram_size": (REPEATS, {"no_repeat_ngram_size": 2}),
        "encoder_no_repeat_ngram_size": ({"logit_bias": {5: 1e5}}, {"encoder_no_repeat_ngram_size": 1}), "bad_words": (REPEATS, {"bad_words": ["/"]}),
        "bad_words_ids": (REPEATS, {"bad_words_ids": [[33], [18, 18]]}), "suppress_tokens": (REPEATS, {"suppress_tokens": [18]}),
        "begin_suppress_tokens": (REPEATS, {"begin_suppress_tokens": [18]}), "logit_bias": ({}, {"logit_bias": {35: 90.0}}), "sequence_bias": ({}, {"sequence_bias": {(36,): 90.0}}),
        "forced_bos_token_id": ({}, {"forced_bos_token_id": 38}), "forced_eos_token_id": ({}, {"forced_eos_token_id": 2}),
        "exponential_decay_length_penalty": ({}, {"exponential_decay_length_penalty": (1, 90.0)}),
        "prefix_allowed_tokens_fn": ({}, {"prefix_allowed_tokens_fn": lambda ids: [30, 31, 40, 41]}), "filters": ({}, {"filters": [lambda logits, history: -logits]}),
        "filter_order": ({**REPEATS, "repetition_penalty": 20.0 if name == "dola" else 1e6}, {"filter_order": ["repetition_penalty", "logit_bias"]}), "prefix": ({}, {"prefix": "ab"}),
        "token_healing": ({}, {"token_healing": True}), "forced_text": ({}, {"forced_text": {1: "b"}}), "trie": ({}, {"trie": [[30, 31], [30, 31, 40]]}),
        "json_schema": ({}, {"json_schema": {"enum": [";<", "a;<"]}}), "regex": ({}, {"regex": "[ab;<]{2,9}"}), "choice": ({}, {"choice": ["a;<", "b;<"]}),
        "grammar": ({}, {"grammar": 'start: "a;<" | "b;<"'}), "hide": ({}, {"hide": [Span(0, 1)]}), "attention_mask": ({}, {"attention_mask": HIDES_THE_FIRST}),
        "num_beams": ({}, {"num_beams": 2 if name == "beam" else 6}), "num_beam_groups": ({}, {"num_beam_groups": 4}), "diversity_penalty": ({"num_return_sequences": 4} if name == "diverse_beam" else {}, {"diversity_penalty": 50.0}),
        "length_penalty": (MAY_END, {"length_penalty": 9.0}), "renormalize_logits": (uneven, {"renormalize_logits": True}), "early_stopping": ({"logit_bias": {2: likely}, "length_penalty": weight}, {"early_stopping": True}), "force_words": ({}, {"force_words": ["a"]}),
        "force_words_ids": ({}, {"force_words_ids": [[30]]}), "penalty_alpha": ({}, {"penalty_alpha": 0.1}), "dola_layers": ({}, {"dola_layers": [0, 1]}),
        "guidance_scale": ({}, {"guidance_scale": 3.0}), "negative_prompt": (guided, {"negative_prompt": [9, 10]}), "amateur_model": ({}, amateur),
        "amateur_alpha": (amateur, {"amateur_alpha": 0.5}), "amateur_temperature": (amateur, {"amateur_temperature": 0.2}), "assistant_model": ({}, drafted),
        "assistant_tokenizer": (drafted, {"assistant_tokenizer": tokenizer}), "assistant_early_exit": ({}, {"assistant_early_exit": 1, "prompt_lookup_num_tokens": None}),
        "prompt_lookup_num_tokens": ({}, {"prompt_lookup_num_tokens": 2}), "max_matching_ngram_size": ({}, {"max_matching_ngram_size": 3}),
        "num_assistant_tokens": (drafted, {"num_assistant_tokens": 2}), "num_assistant_tokens_schedule": (drafted, {"num_assistant_tokens_schedule": "constant"}),
        "assistant_confidence_threshold": (drafted, {"assistant_confidence_threshold": 0.0}), "best_of": ({}, {"best_of": 16}),
        "source_lang": ({}, {"source_lang": "deu_Latn"}), "target_lang": ({}, {"target_lang": "kor_Hang"}), "decoder_input_ids": ({}, {"decoder_input_ids": [40, 41]}),
        "template": ({}, {"template": ("a", 3, "b")}), "suffix": ({}, {"suffix": "b"}),
        "logprobs": ({}, {"logprobs": 2}), "prompt_logprobs": ({}, {"prompt_logprobs": 1}),
        "steps": ({}, {"steps": 2}), "alg": ({}, {"alg": "origin"}), "alg_temp": ({}, {"alg_temp": 9.0}),
        "block_length": ({}, {"block_length": 1}), "confidence_threshold": ({"steps": None}, {"confidence_threshold": 0.01}), "entropy_bound": ({"steps": None}, {"entropy_bound": 9.0}),
        "remask": ({"steps": 5, "do_sample": True}, {"remask": 1.0}), "cfg_scale": ({}, {"cfg_scale": 3.0}), "cache_refresh": ({}, {"cache_refresh": 2}), "dual_cache": ({"cache_refresh": 2, "block_length": 2}, {"dual_cache": True}), "eos_penalty": ({"logit_bias": {2: 5.0}, "do_sample": True}, {"eos_penalty": 9.0}),
        "generation_tokens_hook_func": ({}, {"generation_tokens_hook_func": lambda step, canvas, logits: canvas.where(torch.arange(canvas.shape[1]) != 2, 40)}),
        "generation_logits_hook_func": ({}, {"generation_logits_hook_func": lambda step, canvas, logits: -logits}),
        "reward": ({}, {"reward": lambda prompt, text: -float(sum(map(ord, text)))}), "answer_of": ({}, {"answer_of": len}), "utility": ({}, {"utility": lambda a, b: float(sum(map(ord, a)))}),
    }  # fmt: skip


def test_there_is_a_value_for_every_option_and_a_meaning_for_every_strategy(tiny, tiny_tokenizer):
    assert set(samples(tiny, "llama", "sampling", tiny_tokenizer)) == {each.name for each in fields(SamplingParams)}
    assert set(MORE) <= set(MEANT) == set(STRATEGIES)


def of_prompt(settings: dict, prompt: list[int]) -> dict:
    masked = settings.get("attention_mask") == HIDES_THE_FIRST
    return {**settings, "attention_mask": [0] + [1] * (len(prompt) - 1)} if masked else settings


def outcome(model, tokenizer, prompts, settings) -> list | str:
    """The answers' ids, or the reason for which there are none."""
    try:
        params = [SamplingParams(**of_prompt(settings, prompt)) for prompt in prompts]
        return [(r.prompt_index, r.choice, r.ids, r.text, r.finish_reason) for r in generate(model, tokenizer, prompts, params, on_error="raise")]
    except UserError as error:
        return str(error)


def streamed(model, tokenizer, prompt, settings) -> tuple[list[int], str] | str:
    """The first answer's ids and text from the stream of one prompt, or the reason for which there is none."""
    try:
        events = list(stream(model, tokenizer, prompt, SamplingParams(**of_prompt(settings, prompt))))
    except UserError as error:
        return str(error)
    events = [event for event in events if isinstance(event, Committed) and event.choice == 0]
    assert [event.position for event in events] == list(range(len(events)))
    return [event.id for event in events], "".join(event.text for event in events)


def in_one_run(model, tokenizer, settings: list[dict]) -> list[list]:
    """For each of the settings what both prompts are answered, all in one batch."""
    requests = [(each, prompt) for each in settings for prompt in PROMPTS]
    params = [SamplingParams(**of_prompt(each, prompt)) for each, prompt in requests]
    found = generate(model, tokenizer, [prompt for _, prompt in requests], params, on_error="raise")
    count = len(PROMPTS)
    told = [(r.prompt_index, (r.prompt_index % count, r.choice, r.ids, r.text, r.finish_reason)) for r in found]
    return [[each for index, each in told if index // count == place] for place in range(len(settings))]


# what no value of theirs changes: a strategy's own name, a time that is not used up, an end that no longer token of this tokenizer heals
SILENT = {"strategy", "max_time", "token_healing", "logprobs", "prompt_logprobs"}
SPOKEN = {"self_consistency": "vote", "t5": "encoder"}  # other words for them


def stays(name: str, kind: str, option: str) -> bool:
    """Whether the option leaves the answer exactly as it is: guesses save time alone, and who chooses among samples samples already."""
    if (name, kind, option) == ("constrained_beam", "llama", "early_stopping"):
        return True  # its words come late: there is nothing to be missed by stopping early
    if (name, option) == ("stochastic_beam", "num_beams"):
        return True  # more of them only add answers behind the first
    return option in SILENT or name == "assisted" and option in ASSISTED_OPTIONS or option == "do_sample" and MEANT[name].get(option, False)


def names_the_reason(refusal: str, name: str, kind: str, given: set[str]) -> bool:
    """Whether a refusal says which of the options given it is about, and which strategy or model does not take it."""
    if refusal == f"strategy {name!r} takes no random choices: drop do_sample and the filters of sampling":
        return bool(given & {"do_sample", *WARPING})
    if kind == "t5" and refusal.startswith(f"strategy {name!r} is not made for encoder-decoder models"):
        return True
    words = set(re.findall(r"\w+", refusal))
    return bool(words & given) and bool(words & {name, kind, name.split("_")[0], SPOKEN.get(name), SPOKEN.get(kind)})


KIN = ("self_consistency", "minimum_bayes_risk", "best_of_n", "stochastic_beam", "diverse_beam", "constrained_beam", "contrastive", "dola")  # made as others are, or out of them
CASES = [
    pytest.param(name, kind, marks=pytest.mark.full if name in KIN or kind == "t5" and name != "beam" else ())
    for kind in ("llama", "t5") for name in MEANT
]  # fmt: skip


@pytest.mark.parametrize("name, kind", CASES)
def test_every_option_changes_the_answer_exactly_or_is_refused_by_name(tiny, fresh_tiny, tiny_tokenizer, monkeypatch, name, kind):
    """In a batch of all options as alone, and streamed; what each option is added to is its neighbour in `samples`."""
    model = fresh_tiny(kind).double()
    if name == "diffusion" and kind == "llama":
        declare(model.config, Diffusion(127, shift=1, attention="prompt_causal"))
    runner, passes = type(open_runner(model)), []
    observe = runner.observe
    monkeypatch.setattr(runner, "observe", lambda *args: passes.append(1) or observe(*args))
    usual = {"max_new_tokens": NEW, "seed": 3, "strategy": name, **MEANT[name]}
    taken = {}
    for option, (beside, more) in samples(tiny, kind, name, tiny_tokenizer).items():
        settings = {**usual, **beside, **more}
        passes.clear()
        alone, told = outcome(model, tiny_tokenizer, PROMPTS[1:], settings), streamed(model, tiny_tokenizer, PROMPTS[0], settings)
        refusal = next((each for each in (alone, told) if isinstance(each, str)), None)
        if refusal is None:
            taken[option] = (beside, settings, alone, told)
            continue
        # that words cannot stand among the tokens that another option leaves is found by the search alone
        late = name == "constrained_beam" and "answers within its filters, words and time" in refusal
        assert late or not passes, f"{name} with {option} was refused after the first pass: {refusal}"
        assert late or names_the_reason(refusal, name, kind, {option, *beside, *more}), f"{name} with {option}: {refusal}"
    plain = [beside for place, (beside, *_) in enumerate(taken.values()) if beside not in [each for each, *_ in list(taken.values())[:place]]]
    found = in_one_run(model, tiny_tokenizer, [settings for _, settings, *_ in taken.values()] + [{**usual, **beside} for beside in plain])
    for together, (option, (beside, settings, alone, told)) in zip(found, taken.items()):
        before = found[len(taken) + plain.index(beside)]
        same = together == before
        if same and not stays(name, kind, option):  # by chance: it must show with another seed
            seeds = [({**settings, "seed": n}, {**usual, **beside, "seed": n}) for n in range(20)]
            same = all(outcome(model, tiny_tokenizer, PROMPTS, one) == outcome(model, tiny_tokenizer, PROMPTS, other) for one, other in seeds)
        assert same == stays(name, kind, option), f"{name} with {option}: {together}, without it {before}"
        assert [each[1:] for each in together if each[0] == 1] == [each[1:] for each in alone], f"{name} with {option} in a batch"
        assert told == together[0][2:4], f"{name} with {option} streamed"


@pytest.mark.parametrize("attention", ["prompt_causal", "bidirectional"])
def test_strategies_of_all_kinds_in_one_run_find_what_each_finds_alone(fresh_tiny, tiny_tokenizer, attention):
    model = fresh_tiny("llama", num_hidden_layers=4).double()
    declare(model.config, Diffusion(127, 1, attention, autoregressive=True))  # which speaks both ways
    every = [SamplingParams(**{"max_new_tokens": 12, "seed": 5, "strategy": name, **settings}) for name, settings in MEANT.items()]
    every.append(SamplingParams(max_new_tokens=12, seed=5, temperature=1.3, top_p=0.9, num_return_sequences=2))  # by diffusion
    every.append(SamplingParams(max_new_tokens=12, seed=5, temperature=1.3, top_p=0.9, num_return_sequences=2, strategy="sampling"))
    every.append(SamplingParams(max_new_tokens=12, assistant_model=fresh_tiny("llama", seed=1).double()))
    every.append(SamplingParams(max_new_tokens=12, num_beams=3, guidance_scale=1.5, negative_prompt=[9, 10]))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(4, 120, (n,), generator=generator).tolist() for n in range(3, 3 + len(every))]
    together = generate(model, tiny_tokenizer, prompts, every)
    for place, (prompt, params) in enumerate(zip(prompts, every)):
        alone = generate(model, tiny_tokenizer, [prompt], params)
        assert [r.ids for r in together if r.prompt_index == place] == [r.ids for r in alone], params.given
