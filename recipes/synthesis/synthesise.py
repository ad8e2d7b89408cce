"""Make instruction data: a model writes new records from seeds, filters drop what is no good, and each record says where it comes from.

seodang synthesise --data seeds.jsonl --model default --output made.jsonl --count 200
seodang synthesise --output made.jsonl --style persona --token_budget 100000 --backend openai --base_url http://localhost:8000/v1

Answers are held to a JSON schema. A table says what each filter dropped. What was asked is kept in OUTPUT.rounds, and --resume goes on from it.
"""

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.data.synthesis.styles import schema_of
from seodang.infer.checkpoint.load import resolve
from seodang.infer.checkpoint.manifest import fingerprint
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.options.parser import command, parse
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.one_writer import only_writer
from seodang.recipes.run.same_run import contents_of, header_of, refuse_other_run
from seodang.recipes.synthesis.asking import KINDS, Asker
from seodang.recipes.synthesis.filters import Filtering, filters_of
from seodang.recipes.synthesis.making import SPENT, Maker, Rows
from seodang.recipes.synthesis.options import Choice, Making
from seodang.train.run.checkpoints import write_atomically

HEADER = "run.json"
FREE = ("data", "output", "count", "token_budget", "attempts", "resume", "dropped", "batch_size", "eval_data", "personas")  # may change; of files the contents may not


@command
def main(argv: list[str] | None = None) -> int:
    model, choice, making, filtering, where = parse(
        argv, SpeakingModel, Choice, Making, Filtering, BackendOptions, prog="seodang synthesise", description=__doc__
    )
    seeds = making.seeds()
    fitting = making.fitting(seeds)
    style = making.style_of(fitting)
    if len(fitting) < len(seeds):
        many = f"{len(seeds) - len(fitting):,} of {len(seeds):,} have a text of more than {making.max_chars} characters (max_chars)"
        print(f"seeds           {many}: left out", file=sys.stderr)
    folder = Path(f"{making.output}.rounds")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is to be the folder of what was asked, and is something else: move it away, or name another --output")
    try:
        with ExitStack() as stack:
            asker = Asker(where, model, choice.decoding(schema_of(style.fields, making.max_chars)), making, folder, stack)
            filters = filters_of(filtering, making, style.fields, seeds, asker, model)
            again = filtering.round_trip is not None
            most = making.most_attempts(len(fitting))
            maker = Maker(making, style, asker, filters, asker.identity["model"], most, choice.seed, choice.max_new_tokens, again)
            stack.enter_context(only_writer(folder, "name another --output"))
            header = header_of(asker.identity | identity(making, filtering, seeds), Prompts([], []), 1)
            begin(folder, header, making, asker)
            run(maker, stack)
            write_header(folder, header | {"finished": True})
    except GivenUp as reason:
        print(f"error: {where.base_url or 'vLLM'}: {reason}; what has come is kept, --resume goes on from there", file=sys.stderr)
        return 1
    return told(maker)


def identity(making: Making, filtering: Filtering, seeds: list) -> dict[str, Any]:
    """What beside model and settings decides what is made: the options, and what the files say."""
    options = {name: value for name, value in {**asdict(making), **asdict(filtering)}.items() if name not in FREE}
    files: dict[str, Any] = {"seeds that say": fingerprint(repr([seed.told() for seed in seeds]))}
    if filtering.reward_model:
        files["a reward model whose files are"] = contents_of(resolve(filtering.reward_model))
    for name, sources in (("eval_data", filtering.eval_data or []), ("personas", [making.personas] if making.personas else [])):
        files[f"{name} that say"] = [contents_of(source) or source for source in sources]
    return options | files


def begin(folder: Path, header: Mapping[str, Any], making: Making, asker: Asker) -> None:
    """Make the folder of rounds ready: as the interrupted run left it, or empty. Raises UserError for another run's, and where one would be lost."""
    path = folder / HEADER
    if not path.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is to be the folder of what was asked, and holds something else: move it away, or name another --output")
    then = None if making.resume is False or not path.exists() else header_in(path)
    if then is not None and making.resume:
        refuse_other_run(Path(making.output), then, header, Prompts([], []))
    elif then is not None and not then.get("finished") and any(folder.glob("*.jsonl")):
        raise UserError(f"{making.output} is of a run that was interrupted: --resume goes on from there, --resume false begins anew, over it")
    elif making.resume and then is None and Path(making.output).exists() and Path(making.output).stat().st_size:
        raise UserError(f"{making.output} does not say how it was made, for there is no {path} beside it: --resume false begins anew, over it")
    else:
        asker.open()  # before anything is lost of an older run
        for each in (each for kind in KINDS for each in folder.glob(f"*-{kind}.jsonl*")):
            each.unlink()
    write_header(folder, header)


def header_in(path: Path) -> dict[str, Any]:
    """What an earlier run was asked. Raises UserError for a file that does not say so."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} does not say what its run was asked: --resume false begins anew, over it") from None


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """Have the folder say what the run is asked, whole or not at all."""
    write_atomically(folder / HEADER, json.dumps(header, ensure_ascii=False, indent=1) + "\n")


def run(maker: Maker, stack: ExitStack) -> None:
    """Make the records and write them as they come, what was dropped too where a file is named for it."""
    kept = Rows(maker.making.output)
    stack.callback(kept.close)
    dropped = Rows(maker.making.dropped) if maker.making.dropped else None
    if dropped:
        stack.callback(dropped.close)

    def show(left: list, gone: list) -> None:
        kept.add([maker.row(each) for each in left])
        if dropped:
            dropped.add([maker.row(each) for each in gone])

    maker.run(show)


def told(maker: Maker) -> int:
    """Print what became of all attempts; return the exit code: 1 where fewer came than were wanted."""
    made, making = len(maker.kept), maker.making
    print("\n".join(maker.tally.lines()))
    tokens = f"{maker.asker.spent:,} tokens{' and more, for not all were told' if maker.asker.untold else ''}"
    print(f"made            {made:,} of {maker.attempts:,} attempts, {tokens}, in {making.output}: {maker.ended}")
    if not made:
        remedy = "see what it drops, by --dropped FILE, and loosen it or choose another model"
        print(f"error: nothing is left: the filter {maker.tally.most()!r} dropped most; {remedy}", file=sys.stderr)
        return 1
    if making.count is not None and made < making.count and maker.ended != SPENT:
        print(f"error: {made:,} of {making.count:,} records wanted: {maker.ended}; --resume with more --attempts goes on from there", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
