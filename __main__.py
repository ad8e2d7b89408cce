"""The command line: `seodang VERB ...` runs `recipes/VERB.py`."""

import difflib
import importlib
import os
import sys

# Threads that spin while they wait take the core from those they wait for, wherever another program runs. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VERBS = {
    "prepare": "convert the embedded default model into the cache folder",
    "preview": "show records as the model sees them, trained tokens in colour",
    "sft": "fine-tune a model on instructions, completions, dialogues or text",
    "reward": "train a reward model on pairs or rankings of answers",
    "dpo": "learn from pairs or rankings of answers (DPO, IPO, SimPO, ORPO and kin)",
    "kto": "learn from single answers judged good or bad",
    "ppo": "learn from a reward model, a rule or a function by proximal policy optimisation",
    "grpo": "learn from rewards of several answers to each prompt, against their group's mean",
    "rloo": "learn from rewards of several answers to each prompt, against the mean of the others",
    "rlhf": "sample answers, have them ranked, train a reward model and PPO against it, in rounds",
    "generate": "let a model answer prompts",
    "chat": "talk with a model in the terminal",
    "explain": "show how an answer came about: probabilities, filters, beams, drafts, attention",
    "score": "log-probability and perplexity of given answers",
    "export": "merge an adapter into its base model and check that nothing changed",
    "demo": "fine-tune the default model on real triplets, before and after",
    "demo-rlhf": "teach the default model to follow a rule: SFT, reward model, PPO and DPO in turn",
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: seodang VERB [options]     (seodang VERB --help lists them)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Run one verb with the rest of the arguments; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from . import __version__

        print(__version__)
        return 0
    verb = argv[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see seodang --help"
        print(f"error: unknown verb {verb!r}: {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f".recipes.{verb.replace('-', '_')}", __package__).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main())
