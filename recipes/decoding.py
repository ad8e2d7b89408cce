"""Options of every command that speaks."""

import sys
from dataclasses import dataclass, field

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
    temperature: float | None = option("Below 1 sharper, above 1 flatter; 0 is greedy. Any of the next four turns sampling on.")
    top_k: int | None = option("Draw from the k likeliest tokens.")
    top_p: float | None = option("Draw from the likeliest tokens that together reach this probability.")
    min_p: float | None = option("Drop tokens less likely than this times the likeliest.")
    do_sample: bool | None = option("Sample, or take the likeliest token; without it, sampling is on where one of its options is given.")
    repetition_penalty: float | None = option("Above 1 makes tokens of prompt and answer less likely.")
    seed: int | None = option("Makes sampled answers repeatable.")
    stop: list[str] = field(default_factory=list, metadata={"help": "Texts that end the answer."})

    def params(self, offset: int = 0) -> SamplingParams:
        """Check the values; `offset` gives the prompts of one command seeds of their own."""
        seed = None if self.seed is None else self.seed + offset
        return SamplingParams(**{**vars(self), "seed": seed, "stop": tuple(self.stop)})
