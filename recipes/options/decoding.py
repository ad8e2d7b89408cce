"""Options of every command that speaks."""

import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from seodang.infer.requests.params import DEFAULT_BREAKERS, DEFAULT_MAX_NEW_TOKENS, SamplingParams


def option(help: str, default=None):
    return field(default=default, metadata={"help": help})


@dataclass
class SpeakingModel:
    model: str = option("Folder, hub name, or default (SmolLM2-135M-Instruct).", "default")
    adapter: str | None = option("Folder or hub name of an adapter on the model.")
    device: str = option("auto, cpu, cuda or mps.", "auto")
    dtype: str = option("auto, float32, bfloat16 or float16.", "auto")
    chat_template: str | None = option("A built-in chat template's name or a Jinja file, for a model that has none.")

    def open(self):
        """Load the model and its tokenizer, and say on stderr which dtype the machine decided on."""
        from seodang.data.chat import set_chat_template
        from seodang.infer.checkpoint.load import load
        from seodang.infer.kernels.device import choose_dtype

        model, tokenizer = load(self.model, device=self.device, dtype=self.dtype, adapter=self.adapter)
        if self.dtype == "auto":
            dtype, reason = choose_dtype("auto", model.device)
            print(f"{self.model} in {str(dtype).removeprefix('torch.')} on {model.device}: {reason}", file=sys.stderr)
        if self.chat_template is not None:
            set_chat_template(tokenizer, self.chat_template)
        return model, tokenizer


@dataclass
class Decoding:
    max_new_tokens: int | None = option(f"The answer ends after so many tokens; {DEFAULT_MAX_NEW_TOKENS} unless max_length is given.")
    max_length: int | None = option("It ends where prompt and answer have so many tokens, if that is sooner.")
    min_new_tokens: int | None = option("It does not end before.")
    min_length: int | None = option("It does not end before prompt and answer have so many tokens.")
    max_time: float | None = option("It ends after so many seconds.")
    stop: list[str] = field(default_factory=list, metadata={"help": "Texts that end the answer."})
    stop_regex: str | None = option("A regular expression that ends the answer where it matches.")
    stop_token_ids: list[int] = field(default_factory=list, metadata={"help": "Ids that end the answer."})
    ignore_eos: bool = option("The model's own end tokens do not end it.", False)
    thinking_budget: int | None = option("The thinking, with which the answer begins, is ended after so many tokens.")
    thinking_end: str = option("What ends the thinking.", SamplingParams.thinking_end)
    seed: int | None = option("Makes sampled answers repeatable.")
    num_return_sequences: int = option("Answers to each prompt.", 1)
    strategy: str | None = option("Name of the strategy; without it, the options below say which is meant.")
    # sampling and its filters
    do_sample: bool | None = option("Sample, or take the likeliest token; without it, sampling is on where one of its options is given.")
    temperature: float | None = option("Below 1 sharper, above 1 flatter; 0 is greedy. This and the filters up to mirostat_tau turn sampling on.")
    top_k: int | None = option("Draw from the k likeliest tokens; with penalty_alpha, the candidates.")
    top_p: float | None = option("Draw from the likeliest tokens that together reach this probability.")
    min_p: float | None = option("Drop tokens less likely than this times the likeliest.")
    typical_p: float | None = option("Draw from the tokens of typical surprise that together reach this probability.")
    epsilon_cutoff: float | None = option("Drop tokens less likely than this.")
    eta_cutoff: float | None = option("Drop tokens less likely than this or what the entropy makes of it.")
    top_h: float | None = option("Keep the likeliest tokens up to this share of the entropy.")
    top_n_sigma: float | None = option("Keep tokens within so many standard deviations of the largest logit.")
    dynatemp_range: float | None = option("The entropy moves the temperature by up to this much.")
    dynatemp_exponent: float = option("How the entropy does so.", SamplingParams.dynatemp_exponent)
    xtc_probability: float | None = option("How often all but the least of the likely tokens are left out.")
    xtc_threshold: float = option("What is likely there.", SamplingParams.xtc_threshold)
    mirostat_tau: float | None = option("Keep the surprise near so many bits (mirostat 2).")
    mirostat_eta: float = option("How fast mirostat learns.", SamplingParams.mirostat_eta)
    # what looks back, what may not or must come
    repetition_penalty: float | None = option("Above 1 makes tokens of prompt and answer less likely.")
    encoder_repetition_penalty: float | None = option("Above 1 makes tokens that the source, or the prompt, lacks less likely.")
    presence_penalty: float | None = option("Taken from the logit of every token that the answer has.")
    frequency_penalty: float | None = option("Taken from it for each time that it is there.")
    dry_multiplier: float | None = option("Strength of the penalty on repeating a run of tokens (DRY).")
    dry_base: float = option("How fast DRY grows with the run's length.", SamplingParams.dry_base)
    dry_allowed_length: int = option("The longest run that DRY leaves alone.", SamplingParams.dry_allowed_length)
    dry_sequence_breakers: list[str] = field(
        default_factory=lambda: list(DEFAULT_BREAKERS), metadata={"help": "Texts that no run reaches across."}
    )
    dry_penalty_last_n: int | None = option("DRY looks back so many tokens, all without it.")
    no_repeat_ngram_size: int | None = option("No run of so many tokens comes twice.")
    encoder_no_repeat_ngram_size: int | None = option("No run of so many tokens is copied from the source, or the prompt.")
    bad_words: list[str] = field(default_factory=list, metadata={"help": "Texts that do not come."})
    suppress_tokens: list[int] = field(default_factory=list, metadata={"help": "Ids that do not come."})
    filter_order: list[str] = field(default_factory=list, metadata={"help": "The filters by name, in the order in which they apply."})
    # beams
    num_beams: int = option("Beams of the search.", 1)
    num_beam_groups: int = option("Groups of beams that are held apart by diversity_penalty.", 1)
    diversity_penalty: float = option("Taken from a token for each earlier group that chose it.", 0.0)
    length_penalty: float = option("Scores of beams are divided by their length to this power.", 1.0)
    early_stopping: str = option("Beams stop at num_beams answers (true), where none seems to come in (false) or where none can (never).", "false")
    force_words: list[str] = field(default_factory=list, metadata={"help": "Texts that must come somewhere."})
    # contrast and guidance
    penalty_alpha: float | None = option("Contrastive search: weight of the likeness to what was said before.")
    dola_layers: list[str] = field(
        default_factory=list, metadata={"help": "DoLa: contrast the last layer with low or high ones, or with these, by number."}
    )
    guidance_scale: float | None = option("Classifier-free guidance, away from negative_prompt.")
    negative_prompt: str | None = option("What guidance leads away from.")
    amateur_model: str | None = option("Contrastive decoding: the model whose liking counts against a token.")
    amateur_alpha: float = option("Tokens less likely than this times the likeliest are dropped there.", SamplingParams.amateur_alpha)
    amateur_temperature: float = option("Temperature of the amateur.", SamplingParams.amateur_temperature)
    # speculation
    assistant_model: str | None = option("A smaller model that drafts; the answer stays the same.")
    assistant_tokenizer: bool = option("The assistant reads and writes by its own tokenizer, not the model's.", False)
    assistant_early_exit: int | None = option("The first so many layers draft.")
    num_assistant_tokens: int = option("Tokens of the first draft.", SamplingParams.num_assistant_tokens)
    num_assistant_tokens_schedule: str = option("Length of later drafts: heuristic (by success) or constant.", "heuristic")
    assistant_confidence_threshold: float = option("A draft ends below this probability.", 0.4)
    prompt_lookup_num_tokens: int | None = option("Drafts of so many tokens are copied from the text so far.")
    max_matching_ngram_size: int = option("They follow what the newest tokens, at most so many, followed before.", 2)
    # control
    prefix: str | None = option("The answer begins with this.")
    token_healing: bool = option("Let the end of the prompt be written in other tokens.", False)
    regex: str | None = option("The answer matches this regular expression.")
    json_schema: str | None = option("The answer is JSON of this schema (a file, or the schema itself).")
    choice: list[str] = field(default_factory=list, metadata={"help": "The answer is one of these."})
    grammar: str | None = option("The answer follows this Lark grammar (a file, or the grammar itself).")
    # choosing among answers
    best_of: int | None = option("Sample so many answers and give the likeliest.")

    def check(self) -> None:
        """Refuse what can be refused before a model is loaded."""
        from seodang.infer.constraints.build import language_asked
        from seodang.infer.filters.pipeline import order_of
        from seodang.infer.requests.stop import stop_pattern
        from seodang.infer.runners.architecture import Capabilities
        from seodang.infer.strategies.registry import check

        params = SamplingParams(**self._settings())  # with the names of further models in their places
        check(params, Capabilities(**{each.name: True for each in fields(Capabilities)}))
        order_of(params)
        language_asked(params)
        if params.stop_regex is not None:
            stop_pattern(params.stop_regex)

    def params(self, beside: SpeakingModel, offset: int = 0) -> SamplingParams:
        """Return the settings, further models loaded as the one `beside` them; `offset` gives the prompts of a command their own seeds."""
        given = self._settings()
        given["seed"] = None if self.seed is None else self.seed + offset
        for name in ("assistant_model", "amateur_model"):
            if given[name] is not None:
                given[name], tokenizer = self._opened(given[name], beside.device, beside.dtype)
                if name == "assistant_model" and self.assistant_tokenizer:
                    given["assistant_tokenizer"] = tokenizer
        return SamplingParams(**given)

    def _settings(self) -> dict[str, Any]:
        """The options under the names and in the types of `SamplingParams`, files read; further models by their names."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        for name, value in given.items():
            if isinstance(value, list):
                given[name] = tuple(value) or getattr(SamplingParams, name)
        for name in ("json_schema", "grammar"):
            if given[name] is not None and os.path.isfile(given[name]):
                given[name] = Path(given[name]).read_text(encoding="utf-8")
        given["early_stopping"] = {"true": True, "false": False}.get(self.early_stopping.lower(), self.early_stopping)
        given["assistant_tokenizer"] = self.assistant_tokenizer or None
        if self.dola_layers:
            numbers = all(layer.isdecimal() for layer in self.dola_layers)
            given["dola_layers"] = [int(layer) for layer in self.dola_layers] if numbers else " ".join(self.dola_layers)
        return given

    def _opened(self, *where: str) -> tuple[Any, Any]:
        """Load a further model and its tokenizer, once for this command: by its path, device and dtype."""
        from seodang.infer.checkpoint.load import load

        known = vars(self).setdefault("_models", {})
        if where not in known:
            path, device, dtype = where
            known[where] = load(path, device=device, dtype=dtype)
        return known[where]
