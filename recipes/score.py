"""Log-probability and perplexity of given answers, as JSON Lines.

seodang score MODEL --data answers.jsonl > scores.jsonl

The answer of a record is its last assistant turn, end-of-turn token included; of a plain text, all but its first token. Perplexity is
exp(-logprob / tokens). The last line has the totals.
"""

import json
import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text
from seodang.data.sources import read
from seodang.recipes.generate import open_output
from seodang.recipes.options.decoding import SpeakingModel, option
from seodang.recipes.options.parser import command, parse

RECORDS_A_CALL = 256  # scored together and then written


@dataclass
class Score:
    """What is scored and what is written of it."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names of prompt-completion records, dialogues or texts."})
    shape: str | None = option("Record shape; recognised from the keys by default.")
    output: str | None = option("Write the lines to this file and the totals to the terminal too.")
    raw: bool = option("Score the completion as a continuation of the prompt's text, without the chat template.", False)
    tokens: bool = option("Add each token's log-probability.", False)


@command
def main(argv: list[str] | None = None) -> int:
    model_options, options = parse(argv, SpeakingModel, Score, prog="seodang score", positional=("model",), description=__doc__)
    records = [prompt_and_answer(example, options.raw) for example in read(options.data, shape=options.shape)]
    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else sys.stdout
        model, tokenizer = model_options.open()
        from seodang.infer.runners.open import open_runner

        runner = open_runner(model)
        pairs = [encode_record(tokenizer, record, runner.limit) for record in records]  # all of them before any is scored
        totals = write_scores(runner, [where for where, *_ in records], pairs, options.tokens, output)
    if options.output:
        print(json.dumps(totals))
    return 0


def prompt_and_answer(example: Dialogue | Text, raw: bool):
    """Split an example into where it stands, the prompt (None for a text), and the answer to be scored.

    Raises UserError where there is no answer, or with `raw` no plain text.
    """
    if isinstance(example, Text):
        return example.where, None, example.text
    *prompt, answer = example.messages
    if answer["role"] != "assistant" or not prompt:
        raise UserError(f"{example.where}: the last message must be an assistant's answer to something")
    if not raw:
        return example.where, Dialogue(prompt, example.tools), answer
    if len(prompt) > 1 or not all(isinstance(message["content"], str) for message in (*prompt, answer)):
        raise UserError(f"{example.where}: --raw takes one prompt and one completion, both texts")
    return example.where, prompt[0]["content"], answer["content"]


def encode_record(tokenizer, record, limit: int | None) -> tuple[list[int], list[int]]:
    """Return the ids of a record's prompt and answer; a text is an answer to its first token."""
    from seodang.infer.engine.prompts import encode
    from seodang.infer.engine.scoring import pair_ids

    where, prompt, answer = record
    if prompt is None:
        ids = encode(tokenizer, answer, where)
        prompt, answer = ids[:1], ids[1:]
    return pair_ids(tokenizer, prompt, answer, limit, where)


def write_scores(runner, places: list[str], pairs: list, with_tokens: bool, output) -> dict:
    """Write one line an answer and one with the totals, which is returned."""
    from rich.console import Console
    from rich.progress import track

    from seodang.infer.engine.scoring import score_ids

    logprob = tokens = 0
    starts = range(0, len(pairs), RECORDS_A_CALL)
    for start in track(starts, "scoring", console=Console(file=sys.stderr), disable=len(starts) < 2):
        some = slice(start, start + RECORDS_A_CALL)
        for where, scores in zip(places[some], score_ids(runner, pairs[some])):
            values = scores.tolist()
            logprob, tokens = logprob + math.fsum(values), tokens + len(values)
            line = {"record": where, **summary(math.fsum(values), len(values))}
            output.write(json.dumps({**line, **({"logprobs": values} if with_tokens else {})}, ensure_ascii=False) + "\n")
    totals = {"answers": len(pairs), **summary(logprob, tokens)}
    output.write(json.dumps(totals) + "\n")
    return totals


def summary(logprob: float, tokens: int) -> dict:
    """A log-probability in nats, the tokens it sums over, and the perplexity, held below infinity."""
    return {"logprob": logprob, "tokens": tokens, "perplexity": math.exp(min(-logprob / tokens, 700.0))}


if __name__ == "__main__":
    sys.exit(main())
