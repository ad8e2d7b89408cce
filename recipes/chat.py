"""Talk with a model in the terminal; its words appear as they are chosen.

seodang chat MODEL --system "You answer in one sentence." --temperature 0.7

/reset forgets the talk so far, /exit or Ctrl-D ends it, Ctrl-C cuts an answer short.
"""

import io
import sys
from dataclasses import dataclass

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.parser import command, parse


@dataclass
class Chat:
    """What a talk begins with."""

    system: str | None = option("What the model is told before the talk.")


@command
def main(argv: list[str] | None = None) -> int:
    model_options, decoding, chat = parse(argv, SpeakingModel, Decoding, Chat, prog="seodang chat", positional=("model",), description=__doc__)
    decoding.check(model_options)
    refuse_several(decoding.num_return_sequences, "drop it, or give best_of")
    model, tokenizer = model_options.open()
    decoding.take_over(model)
    refuse_several(decoding.params(model_options).num_return_sequences, "the checkpoint asks for it, so give --num_return_sequences 1")
    cache = prefix_cache_of(model)
    beginning = [{"role": "system", "content": chat.system}] if chat.system else []
    talk = list(beginning)
    turn = 0
    print("/reset forgets the talk, /exit ends it", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused as a prompt, and the talk goes on
    while (line := listen()) not in (None, "/exit"):
        if line == "/reset":
            talk = list(beginning)
            print("(forgotten)", file=sys.stderr)
        elif line.startswith("/"):
            print(f"unknown command {line}: /reset or /exit", file=sys.stderr)
        elif line:
            talk = answer(model, tokenizer, talk, line, decoding.params(model_options, turn), cache)
            turn += 1
    return 0


def refuse_several(answers: int, remedy: str) -> None:
    """Raise UserError for more answers than one."""
    if answers > 1:
        raise UserError(f"a talk goes on from one answer, but num_return_sequences={answers}: {remedy}")


def listen() -> str | None:
    """Return the next line without the space around it, or None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def prefix_cache_of(model):
    """Return what keeps the talk so far in the model's cache, so that a turn reads only what is new; None for models that cannot be cut back."""
    from seodang.infer.engine.prefix_cache import PrefixCache

    try:
        return PrefixCache(model)
    except UserError:
        return None


def answer(model, tokenizer, talk: list[dict], line: str, params, cache=None) -> list[dict]:
    """Print the answer as it grows and return the talk with it; one that cannot be given leaves the talk as it was."""
    from seodang.infer.engine.generate import stream
    from seodang.infer.requests.events import Committed, PromptRead
    from seodang.recipes.run.token_logprobs import lines

    messages = [*talk, {"role": "user", "content": line}]
    text, of_prompt, of_answer = "", [], []
    try:
        for event in stream(model, tokenizer, messages, params, prefix_cache=cache):
            if isinstance(event, PromptRead):
                of_prompt = event.logprobs
            if isinstance(event, Committed):
                print(event.text, end="", flush=True)
                text += event.text
                of_answer += [event.top_logprobs] * (event.top_logprobs is not None)
    except UserError as error:
        print("\n" if text else "", end="", flush=True)
        print(f"error: {error} (or /reset)", file=sys.stderr)
        return talk
    except KeyboardInterrupt:
        print(" (cut short)", end="")
    print()
    for told in lines(of_prompt, of_answer, tokenizer):
        print(told)
    return [*messages, {"role": "assistant", "content": text}] if text else talk


if __name__ == "__main__":
    sys.exit(main())
