"""Options of every command that speaks."""

import os
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from seodang.infer.params import DEFAULT_MAX_NEW_TOKENS, SamplingParams


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
        from seodang.infer.checkpoint import load
        from seodang.infer.device import choose_dtype

        model, tokenizer = load(self.model, device=self.device, dtype=self.dtype, adapter=self.adapter)
        if self.dtype == "auto":
            dtype, reason = choose_dtype("auto", model.device)
            print(f"{self.model} in {str(dtype).removeprefix('torch.')} on {model.device}: {reason}", file=sys.stderr)
        if self.chat_template is not None:
            set_chat_template(tokenizer, self.chat_template)
        return model, tokenizer


@dataclass
class Decoding:
    max_new_tokens: int = option("The answer ends after so many tokens.", DEFAULT_MAX_NEW_TOKENS)
    min_new_tokens: int | None = option("It does not end before.")
    max_time: float | None = option("It ends after so many seconds.")
    stop: list[str] = field(default_factory=list, metadata={"help": "Texts that end the answer."})
    stop_regex: str | None = option("A regular expression that ends the answer where it matches.")
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
    xtc_probability: float | None = option("How often all but the least of the likely tokens are left out.")
    mirostat_tau: float | None = option("Keep the surprise near so many bits (mirostat 2).")
    # what looks back, what may not or must come
    repetition_penalty: float | None = option("Above 1 makes tokens of prompt and answer less likely.")
    presence_penalty: float | None = option("Taken from the logit of every token that the answer has.")
    frequency_penalty: float | None = option("Taken from it for each time that it is there.")
    dry_multiplier: float | None = option("Strength of the penalty on repeating a run of tokens (DRY).")
    no_repeat_ngram_size: int | None = option("No run of so many tokens comes twice.")
    bad_words: list[str] = field(default_factory=list, metadata={"help": "Texts that do not come."})
    # beams
    num_beams: int = option("Beams of the search.", 1)
    num_beam_groups: int = option("Groups of beams that are held apart by diversity_penalty.", 1)
    diversity_penalty: float = option("Taken from a token for each earlier group that chose it.", 0.0)
    length_penalty: float = option("Scores of beams are divided by their length to this power.", 1.0)
    force_words: list[str] = field(default_factory=list, metadata={"help": "Texts that must come somewhere."})
    # contrast and guidance
    penalty_alpha: float | None = option("Contrastive search: weight of the likeness to what was said before.")
    dola_layers: str | None = option("DoLa: contrast the last layer with low or high ones.")
    guidance_scale: float | None = option("Classifier-free guidance, away from negative_prompt.")
    negative_prompt: str | None = option("What guidance leads away from.")
    amateur_model: str | None = option("Contrastive decoding: the model whose liking counts against a token.")
    # speculation
    assistant_model: str | None = option("A smaller model that drafts; the answer stays the same.")
    assistant_early_exit: int | None = option("The first so many layers draft.")
    prompt_lookup_num_tokens: int | None = option("Drafts of so many tokens are copied from the text so far.")
    # control
    prefix: str | None = option("The answer begins with this.")
    token_healing: bool = option("Let the end of the prompt be written in other tokens.", False)
    regex: str | None = option("The answer matches this regular expression.")
    json_schema: str | None = option("The answer is JSON of this schema (a file, or the schema itself).")
    choice: list[str] = field(default_factory=list, metadata={"help": "The answer is one of these."})
    grammar: str | None = option("The answer follows this Lark grammar (a file, or the grammar itself).")
    # choosing among answers
    best_of: int | None = option("Sample so many answers and give the likeliest.")

    def params(self, offset: int = 0) -> SamplingParams:
        """Check the values; `offset` gives the prompts of one command seeds of their own."""
        given = dict(vars(self))
        given["seed"] = None if self.seed is None else self.seed + offset
        for name in ("stop", "bad_words", "force_words", "choice"):
            given[name] = tuple(given[name])
        for name in ("json_schema", "grammar"):
            if given[name] is not None and os.path.isfile(given[name]):
                given[name] = Path(given[name]).read_text(encoding="utf-8")
        for name in ("assistant_model", "amateur_model"):
            given[name] = self.opened(given[name])
        return SamplingParams(**given)

    @staticmethod
    @cache
    def opened(path: str | None):
        """Load a further model once, in the dtype of the machine."""
        from seodang.infer.checkpoint import load

        return None if path is None else load(path)[0]
