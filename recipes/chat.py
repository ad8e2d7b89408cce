"""Talk with a model in the terminal; its words appear as they are chosen.

seodang chat MODEL --system "You answer in one sentence." --temperature 0.7

/retry asks again, /undo takes the last question back, /set temperature 0.7 changes a setting, /system TEXT begins anew, /save FILE.jsonl writes
the talk as a record for sft, /reset forgets it; /help names all commands. /exit or Ctrl-D ends the talk, Ctrl-C cuts an answer short.
"""

import io
import sys
from dataclasses import dataclass

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import Decoding, SpeakingModel, option
from seodang.recipes.options.parser import command, parse
from seodang.recipes.run.talk import Talk, answers_single_turns


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
    model_options.tell(model)
    decoding.take_over(model)
    refuse_several(decoding.params(model_options).num_return_sequences, "the checkpoint asks for it, so give --num_return_sequences 1")
    beginning = [{"role": "system", "content": chat.system}] if chat.system else []
    talk = Talk(model, tokenizer, model_options, decoding, prefix_cache_of(model), beginning)
    print("/help names the commands, /exit ends the talk", file=sys.stderr)
    if answers_single_turns(model, tokenizer):
        print("each line is answered by itself: an encoder-decoder without a chat template sees nothing of what was said before", file=sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is refused as a prompt, and the talk goes on
    while (line := listen()) is not None and talk.take(line):
        pass
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


if __name__ == "__main__":
    sys.exit(main())
