"""A process that tries grammars, one a line, and is ended by the system where one takes too long: what compiles it cannot be broken off otherwise.

It is run by its path and needs llguidance alone, so that it is there in a moment.
"""

import json
import random
import signal
import sys

from llguidance import LLMatcher, LLTokenizer

STEPS = 16  # tokens of a text that is tried
MEMORY = 4 << 30  # bytes


class Bytes:
    """A tokenizer of single bytes, as llguidance takes one."""

    is_tokenizer_wrapper = True
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Read how the tokenizer is written, then grammars; answer each with "tried", unless it ends the process."""
    told = json.loads(sys.stdin.readline())
    try:
        tokenizer = LLTokenizer(told["tokenizer"], eos_token=told["eos"])
    except ValueError:  # of a kind that it cannot read
        tokenizer = LLTokenizer(Bytes(), eos_token=Bytes.eos_token_id, slices=[])
    walk(tokenizer, LLMatcher.grammar_from_regex("[a-z]+"))  # most of a second goes into what is made once, which is no grammar's own time
    timed = hasattr(signal, "setitimer")  # of the time that is computed, whose end kills
    if timed:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        if timed:
            signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        walk(tokenizer, asked["grammar"])
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
        print("tried", flush=True)


def walk(tokenizer: LLTokenizer, grammar: str) -> None:
    """Compile a grammar, and go some tokens into one of its texts; where it is wrong, that is found out at once."""
    matcher, draw = LLMatcher(tokenizer, grammar, log_level=0), random.Random(0)
    for _ in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            return
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [id for id in range(bits.bit_length()) if bits >> id & 1] if bits.bit_count() < 64 else None
        if not bits:
            return
        matcher.consume_token(draw.choice(allowed) if allowed else nth(bits, draw.randrange(bits.bit_length())))


def nth(bits: int, at: int) -> int:
    """The first id that is allowed from here on, else the last before."""
    above = bits >> at
    return at + (above & -above).bit_length() - 1 if above else (bits & ((1 << at) - 1)).bit_length() - 1


if __name__ == "__main__":
    main()
