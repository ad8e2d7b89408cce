"""Let a model answer a prompt and show how it came to every token.

seodang explain MODEL "Which country is the city of Suwon located in?" --temperature 0.8 --top_p 0.9 --seed 1
seodang explain MODEL "Name three rivers." --num_beams 4 --html rivers.html --attention 12.3

For each token: its probability and entropy, the likeliest tokens before and after each filter, and its time; the tree of a beam
search, what was drafted and accepted, the layers of DoLa, the two terms of contrastive search. Of a diffusion checkpoint, the canvas after
each step, and when each token became certain. The page shows the same.

seodang explain runs/diffusion "Which country is the city of Suwon located in?" --max_new_tokens 12 --png steps.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.parser import command, parse


@dataclass
class Explain:
    """What is answered and how it is shown."""

    prompt: str | None = option("The prompt.")
    html: str | None = option("Write the same as a page to this file.")
    png: str | None = option("Write a picture of the steps of diffusion to this file: when each token became certain.")
    attention: str | None = option("Also show the attention of a layer, or of one head of it: LAYER or LAYER.HEAD, from 0.")
    shown: int = option("Tokens and steps of the search shown in the terminal; the page has all.", 20)
    raw: bool = option("Continue the prompt as it stands, without the chat template (for base models).", False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UserError('no prompt: give one ("...")')
        if self.shown < 0:
            raise UserError(f"shown must not be below zero, got {self.shown}")
        if self.attention is not None:
            from seodang.infer.explain.attention_map import parse_attention

            parse_attention(self.attention)


@command
def main(argv: list[str] | None = None) -> int:
    model_options, decoding, options = parse(
        argv, SpeakingModel, Decoding, Explain, prog="seodang explain", positional=("model", "prompt"), description=__doc__
    )
    decoding.check(model_options)
    model, tokenizer = model_options.open()
    model_options.tell(model)
    decoding.take_over(model)
    params = decoding.params(model_options)
    from seodang.infer.engine.generate import generate
    from seodang.infer.engine.prompts import encode, encode_source
    from seodang.infer.explain.attention_map import attention_maps, check_attention, parse_attention
    from seodang.infer.explain.diffusion_picture import draw
    from seodang.infer.explain.generation_trace import generation_trace
    from seodang.infer.explain.page import Picture, to_html
    from seodang.infer.explain.terminal import explain, heat_map
    from seodang.infer.runners.architecture import transformers_model
    from seodang.infer.strategies.registry import check_steps, choose
    from seodang.infer.text.token_labels import TokenLabels

    prompt = options.prompt if options.raw else [{"role": "user", "content": options.prompt}]
    layer, head = parse_attention(options.attention) if options.attention else (None, None)
    if layer is not None:
        check_attention(model, layer, head)
    if options.png:
        check_steps(choose(params, decoding.diffusion), "png")
    results = generate(model, tokenizer, [prompt], params, trace=True)
    trace, names = generation_trace(results), TokenLabels(tokenizer)
    console = Console()
    console.print(explain(trace, names, options.shown, console.width))
    if transformers_model(model).config.is_encoder_decoder:
        prompt_ids = encode_source(tokenizer, prompt, "the prompt", len(tokenizer), None, None, params.source_lang, params.target_lang)
    else:
        prompt_ids = encode(tokenizer, prompt)[: results[0].prompt_length]  # token_healing takes its end back
    picture = None
    if layer is not None:
        ids = prompt_ids + results[0].ids
        picture = Picture(layer, head, attention_maps(model, ids, layer), [names(id) for id in ids], len(prompt_ids))
        console.print(Text(picture.title, style="bold cyan"), heat_map(picture.weights, picture.tokens, console.width), sep="\n")
    if options.png:
        draw(trace.steps_of(results[0]), names, Path(options.png), results[0].text)
        console.print(f"picture  {options.png}", markup=False, highlight=False)
    if options.html:
        page = to_html(results, tokenizer, prompt_ids, options.prompt, picture)
        Path(options.html).write_text(page, encoding="utf-8")
        console.print(f"page     {options.html}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
