"""The command line: `seodang VERB ...` runs `recipes/VERB.py`.

What can be said without the libraries that a recipe imports, which take seconds, is said before they are imported.
"""

import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TextIO

# Threads that spin while they wait take the core from those they wait for, wherever another program runs. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN, and torch's layer over it, keep 1,024 products each that were compiled, one for each shape and number of rows, 0.3 MB apiece in both; to compile
# one again takes as long as to compute it.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "128")

VERBS = {
    "setup": "fetch what the package does not carry: the default model, the default encoder, sample data and recipes",
    "completion": "print what completes seodang in bash, zsh or fish",
    "prepare": "make ready: the embedded default model, rows of many records on disk, or records of several tasks out of triplets",
    "preview": "show records as the model sees them, trained tokens in colour",
    "init": "write a recipe folder for one's own data, from a few questions or from options",
    "tokenizer": "learn a tokenizer from plain text: byte-level BPE, WordPiece or Unigram",
    "pretrain": "train a small decoder, encoder or encoder-decoder on plain text from nothing, or go on with one (encoders: mlm)",
    "sft": "fine-tune a model on instructions, completions, dialogues, text or several tasks of one input",
    "seq2seq": "fine-tune an encoder-decoder (T5, BART, Marian) on sources and targets",
    "diffusion": "teach a model to speak by masked diffusion: all positions at once, from mask to text",
    "mlm": "teach an encoder what is hidden of a text: BERT-style pretraining on plain text",
    "diffusion-lm": "teach a new model continuous diffusion: Gaussian noise that becomes words (Diffusion-LM)",
    "diffusion-lm-control": "train a classifier on a Diffusion-LM's noised latents, to control it",
    "diffusion-lm-sample": "let a Diffusion-LM speak: freely, around given words, at a length, or controlled by a classifier",
    "reward": "train a reward model on pairs or rankings of answers",
    "dpo": "learn from pairs or rankings of answers (DPO, IPO, SimPO, ORPO and kin)",
    "kto": "learn from single answers judged good or bad",
    "ppo": "learn from a reward model, a rule or a function by proximal policy optimisation",
    "grpo": "learn from rewards of several answers to each prompt, against their group's mean",
    "rloo": "learn from rewards of several answers to each prompt, against the mean of the others",
    "rlhf": "sample answers, have them ranked, train a reward model and PPO against it, in rounds",
    "generate": "let a model answer prompts",
    "synthesise": "make instruction data: new records from seeds, rephrased or translated ones, filtered",
    "eval": "measure models on records, side by side: answers, likelihoods, choices, with intervals",
    "lm-eval": "run tasks of lm-eval, the Language Model Evaluation Harness, on a model of ours",
    "chat": "talk with a model in the terminal",
    "serve": "serve a model over HTTP, in OpenAI's protocol",
    "explain": "show how an answer came about: probabilities, filters, beams, drafts, attention",
    "classify": "train a classifier on labelled texts, or let one say what texts are",
    "tag": "train a tagger on texts with entities (BIO labels), or let one find the entities of texts",
    "score": "log-probability and perplexity of given answers",
    "contrastive": "teach an encoder which texts belong together, by pairs and hard negatives",
    "embed": "turn texts into vectors, or search a file by them",
    "fill-mask": "fill in the masks of texts by an encoder, with probabilities",
    "export": "merge an adapter into its base model and check that nothing changed",
    "demo": "teach the default model eight small tasks and let it answer, before and after",
    "demo-diffusion": "teach the default model to speak by masked diffusion, beside a twin that speaks left to right",
    "demo-pretrain": "train a small decoder from nothing on the documentation of Python, and measure it beside gzip",
    "demo-rlhf": "teach the default model to follow a rule: SFT, reward model, PPO and DPO in turn",
    "demo-encoder": "teach the default encoder to tell good reviews from bad, beside a regression on its frozen vectors",
    "demo-seq2seq": "train a small Transformer from nothing on dates, numbers and countries, and count the right answers",
    "demo-attention": "teach two LSTMs and a Transformer the same rows, and show why attention won",
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: seodang VERB [options]     (seodang VERB --help has those that matter most)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run one verb with the rest of the arguments, by default those of the process; return its exit code."""
    if argv is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a terminal that lacks a letter ends no command
    with ended_by_interrupt():
        run, rest = prepared(sys.argv[1:] if argv is None else argv, alone=argv is None)
    code = run(rest)
    if argv is None:
        gc.freeze()  # the process ends: what it holds need not be looked through for the last time
    return code


def prepared(argv: list[str], alone: bool) -> tuple[Callable[[list[str]], int], list[str]]:
    """What is to be called, and with which arguments; `alone`, the process has nothing else to do."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        return said(usage()), []
    if "--version" in argv[:2]:
        return version_told(argv), []
    verb, *rest = argv
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see seodang --help"
        return said(f"error: unknown verb {verb!r}: {hint}", sys.stderr, 2), []
    from .data.errors import UserError
    from .recipes.options import known, lean_imports

    try:
        if (text := known.help_asked(verb, rest)) is not None:
            return said(text), []
        known.refuse(verb, rest)
    except UserError as error:
        return said(f"error: {error}", sys.stderr, 2), []
    from .data.versions import versions_named

    with no_collection() if alone else nullcontext(), versions_named():
        if alone and verb in lean_imports.VERBS:
            lean_imports.import_models()
        return importlib.import_module(known.module_of(verb)).main, rest


def version_told(argv: list[str]) -> Callable[[list[str]], int]:
    """What prints the version, with --verbose beside it all that a report of a fault should hold."""
    from . import __version__

    if sorted(argv) == ["--verbose", "--version"]:
        from .recipes.starting.environment import report

        return said(report(__version__))
    if argv != ["--version"]:
        return said(f"error: {' '.join(argv)}: the version is told by --version, with --verbose for a report", sys.stderr, 2)
    return said(__version__)


def said(text: str, stream: TextIO | None = None, code: int = 0) -> Callable[[list[str]], int]:
    """What prints a text and returns an exit code."""

    def run(_: list[str]) -> int:
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:  # whoever reads it has enough (`| head`); what Python would flush at its end goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), (stream or sys.stdout).fileno())
        return code

    return run


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the process at once with one line: libraries that are being imported would show a traceback, or swallow it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(*_) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def no_collection() -> Iterator[None]:
    """Make objects that stay, as imports do, without looking through all of them for garbage again and again: a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
