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

from seodang.data.formats import Dialogue, Text
from seodang.data.refusal import UserError
from seodang.data.sources import read
from seodang.recipes.decoding import SpeakingModel, option
from seodang.recipes.generate import open_output
from seodang.recipes.options import command, parse

RECORDS_A_CALL = 256  # scored together; more would only hold more rows of text in memory


@dataclass
class Score:
    data: list[str] = field(metadata={"help": "Files, folders or hub names of prompt-completion records, dialogues or texts."})
    shape: str | None = option("Record shape; recognised from the keys by default.")
    output: str | None = option("Write the lines to this file and the totals to the terminal too.")
    raw: bool = option("Score the completion as a continuation of the prompt's text, without the chat template.", False)
    tokens: bool = option("Add each token's log-probability.", False)


@command
def main(argv: list[str] | None = None) -> int:
    model_options, options = parse(argv, SpeakingModel, Score, prog="seodang score", positional=("model",), description=__doc__)
    pairs = [pair(example, options.raw) for example in read(options.data, shape=options.shape)]
    with ExitStack() as files:
        output = files.enter_context(open_output(options.output)) if options.output else sys.stdout
        model, tokenizer = model_options.open()
        totals = write_scores(model, tokenizer, pairs, options.tokens, output)
    if options.output:
        print(json.dumps(totals))
    return 0


def pair(example: Dialogue | Text, raw: bool):
    """Split an example into where it stands, the prompt, and the answer to be scored."""
    if isinstance(example, Text):
        return example.where, None, example.text
    *asked, said = example.messages
    if said["role"] != "assistant" or not asked:
        raise UserError(f"{example.where}: the last message must be an assistant's answer to something")
    if not raw:
        return example.where, asked, said
    if len(asked) > 1 or not all(isinstance(message["content"], str) for message in (*asked, said)):
        raise UserError(f"{example.where}: --raw takes one prompt and one completion, both texts")
    return example.where, asked[0]["content"], said["content"]


def write_scores(model, tokenizer, pairs: list, with_tokens: bool, output) -> dict:
    """Write one line an answer and one with the totals, which is returned."""
    from rich.console import Console
    from rich.progress import track

    logprob = tokens = 0
    starts = range(0, len(pairs), RECORDS_A_CALL)
    for start in track(starts, "scoring", console=Console(file=sys.stderr), disable=len(starts) < 2):
        some = pairs[start : start + RECORDS_A_CALL]
        for (where, *_), scores in zip(some, score_pairs(model, tokenizer, some)):
            values = scores.tolist()
            logprob, tokens = logprob + math.fsum(values), tokens + len(values)
            line = {"record": where, **summary(math.fsum(values), len(values))}
            output.write(json.dumps({**line, **({"logprobs": values} if with_tokens else {})}, ensure_ascii=False) + "\n")
    totals = {"answers": len(pairs), **summary(logprob, tokens)}
    output.write(json.dumps(totals) + "\n")
    return totals


def score_pairs(model, tokenizer, pairs: list):
    """Score prompts with answers, and texts from their second token on."""
    from seodang.infer.generation import encode
    from seodang.infer.scoring import score

    prompts, answers = [], []
    for where, prompt, answer in pairs:
        if prompt is None:
            ids = encode(tokenizer, answer, where)
            if len(ids) < 2:
                raise UserError(f"{where}: a text of one token has nothing to score")
            prompt, answer = ids[:1], ids[1:]
        prompts.append(prompt)
        answers.append(answer)
    return score(model, tokenizer, prompts, answers)


def summary(logprob: float, tokens: int) -> dict:
    return {"logprob": logprob, "tokens": tokens, "perplexity": math.exp(min(-logprob / tokens, 700.0))}


if __name__ == "__main__":
    sys.exit(main())
