"""A process that makes shards: `python -m seodang.data.prepared.worker`, asked on its stdin by its parent, as pickles, and ending with it."""

import os
import pickle
import signal
import sys
from pathlib import Path

from .shard import Maker


def main() -> None:
    """Read a folder, a tokenizer and settings, then shards; answer each with its facts, or with the exception that it met."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    parent = os.getppid()

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)

    maker = None
    while True:
        try:
            asked = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        except Exception as error:  # a tokenizer of a class that cannot be had here
            asked = error
        try:
            if isinstance(asked, Exception):
                raise asked
            if maker is None:
                folder, tokenizer, labelling = asked
                maker, said = Maker(Path(folder), tokenizer, labelling, alive), None
            else:
                number, records, examples = asked
                said = maker.make(number, records, pickle.loads(examples))
        except Exception as error:
            said = error
        try:
            told = pickle.dumps(said)
        except Exception:
            told = pickle.dumps(RuntimeError(f"{type(said).__name__}: {said}"))
        answers.write(told)
        answers.flush()


if __name__ == "__main__":
    main()
