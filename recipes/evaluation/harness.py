"""Run lm-eval's tasks, the Language Model Evaluation Harness, on a model of ours: its own command line, with --model seodang.

seodang lm-eval --model_args pretrained=runs/sft,weights=int8 --tasks hellaswag arc_easy --num_fewshot 5
seodang lm-eval --model_args pretrained=default --include_path tasks --tasks sentiment --output_path results
seodang lm-eval --model local-completions --model_args base_url=http://127.0.0.1:8000/v1/completions,model=NAME,tokenizer=FOLDER --tasks sentiment
seodang lm-eval ls tasks

Figures are those of --model hf, and come sooner: what requests begin with alike is read once. Needs seodang[lm-eval].
All options, also those that are not listed here, are lm-eval's own: seodang lm-eval -- run --help shows them.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import option
from seodang.recipes.options.parser import command, parse

COMMANDS = ("run", "ls", "validate")  # lm-eval's own
OURS = "seodang"  # what --model calls us


@dataclass
class Harness:
    """The options of lm-eval that matter most; it reads them itself."""

    model: str = option("Who answers: seodang, hf, local-completions (a server), or another of lm-eval's.", OURS)
    model_args: list[str] | None = option("NAME=VALUE,...: pretrained=FOLDER, and for seodang dtype, weights, kv_cache_dtype, adapter, max_length, ...")
    tasks: list[str] | None = option("Names of tasks, groups and tags, or YAML files of tasks.")
    include_path: str | None = option("Folder with tasks of your own.")
    num_fewshot: int | None = option("Examples before each question; the task's own number by default.")
    limit: float | None = option("So many questions of each task, or below 1 a share of them.")
    apply_chat_template: str | None = option("Ask through the chat template; a name chooses among several.")
    system_instruction: str | None = option("A system prompt.")
    gen_kwargs: list[str] | None = option("NAME=VALUE,...: how tasks that generate do so, as temperature=0.7,max_gen_toks=64.")
    output_path: str | None = option("Folder or JSON file for the figures.")
    log_samples: bool = option("Keep what was answered to each question, too.", False)
    use_cache: str | None = option("A database of answers, so that a run that is repeated asks only what is new.")


@command
def main(argv: list[str] | None = None) -> int:
    asked = list(argv or [])
    if any(word in ("-h", "--help") for word in asked[: asked.index("--") if "--" in asked else None]):
        parse(asked, Harness, prog="seodang lm-eval", description=__doc__)
    if asked[:1] == ["--"]:
        del asked[0]
    register()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    with patch.object(sys, "argv", ["lm-eval", *with_ours(asked)]):  # where it looks for them
        cli = HarnessCLI()
        cli.execute(cli.parse_args())
    return 0


def register() -> None:
    """Make us known to lm-eval, to be loaded when asked for; raises UserError where there is no lm-eval."""
    try:
        from lm_eval.api.registry import model_registry
    except ImportError:
        raise UserError("lm-eval is not installed: pip install 'seodang[lm-eval]'") from None
    import lm_eval.models  # noqa: F401  (its own models first)

    if OURS not in model_registry:
        model_registry.register(OURS, target="seodang.recipes.evaluation.lm_eval_model:SeodangLM")


def with_ours(asked: list[str]) -> list[str]:
    """The arguments with --model seodang, where a run is asked for and neither they nor their --config say which model."""
    if not asked or asked[0] in COMMANDS[1:]:
        return asked
    named = [place for place, word in enumerate(asked) if word.partition("=")[0] in ("--model", "-M")]
    config = next((path for word, path in zip(asked, asked[1:]) if word in ("--config", "-C")), None)
    if named or config is not None and names_a_model(Path(config)):
        return asked
    rest = asked[1:] if asked[0] == "run" else asked
    return ["run", "--model", OURS, *rest] if rest else asked


def names_a_model(path: Path) -> bool:
    """Whether a YAML file of lm-eval's says which model; what is wrong with it is lm-eval's to say."""
    import yaml

    try:
        return "model" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return False


if __name__ == "__main__":
    sys.exit(main())
