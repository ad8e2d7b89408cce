"""`seodang generate --backend ray`: many prompts answered by many workers, in shards that a run goes on from, joined in the prompts' order."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.recipes.many.dispatch import Dispatcher, Pool
from seodang.recipes.many.ray_pool import RayPool, Resources, library
from seodang.recipes.many.shards import Facts, Shard, Shards
from seodang.recipes.many.worker import Answered, Answerer, Job
from seodang.recipes.options.outputs import refuse_long_name
from seodang.recipes.prompts.prompt_files import (
    Asked,
    Prompts,
    Reading,
    no_prompts,
    prompts_file,
    refuse_without_references,
    stream_prompts,
)
from seodang.recipes.prompts.references import Measured
from seodang.recipes.prompts.sources import truncated_lines
from seodang.recipes.run.backends import backend_for, no_prefix
from seodang.recipes.run.following import answers_bar
from seodang.recipes.run.journal import Journal, partial_of
from seodang.recipes.run.one_writer import only_writer
from seodang.recipes.run.results_file import is_regular, journal_of
from seodang.recipes.run.same_run import ANEW, header_with, refuse_other_options
from seodang.recipes.run.stopping import Stopping

ONE_PROCESS = ("seodang", "openai", "vllm")


def answer_many(where: Any, model: Any, decoding: Any, options: Any) -> int:
    """Answer the prompts and write the file of answers; return the exit code: 1 where a prompt ended in an error, or a shard could not be answered.

    Raises UserError, before a worker is begun, for what many workers do not do, for another run's answers, and for a record that is no prompt.
    """
    refuse_options(where, options)
    library()
    engine = where.engine()
    backend = backend_for(engine, model, decoding, options, Prompts([], []))  # refuses what cannot be honoured; nothing is loaded

    def pool(facts: Facts, unit: str, file: str) -> RayPool:
        job = Job(engine, model, decoding, options, unit, file, bool(facts.references), facts.translated, os.getcwd())
        resources = Resources(where.worker_cpus, where.worker_gpus, model.device == "cpu" or engine.backend == "openai")
        return RayPool(partial(Answerer, job), where.workers, resources, where.ray_address)

    each = backend.params.num_return_sequences
    reading = Reading(options.raw, options.references, decoding.source_lang, decoding.target_lang)
    return ManyRun(options, reading, where.shard_rows, each, backend.identity, pool, own=engine.backend == "seodang").through()


def refuse_options(where: Any, options: Any) -> None:
    """Raise UserError for what many workers do not do."""
    where.refuse_idle()
    if options.layout() is not None:
        raise UserError(f"--tasks asks for one answer after the other, and --backend ray answers prompts in shards: give --backend {' or '.join(ONE_PROCESS)}")
    if options.show_steps:
        raise UserError("show_steps prints the steps of one answer in this process: give --backend seodang")
    if options.output is None or not is_regular(options.output):
        raise UserError("--backend ray keeps the answers of its shards beside the file that it writes at the end: name it, --output answers.jsonl")
    if options.order != "prompts":
        raise UserError(f"--backend ray joins its shards in the order of the prompts: leave --order {options.order} out")


class ManyRun:
    """A run over shards, each prompt with `each` answers, which `identity` decides.

    `pool` makes, of what the prompts are, what their numbers count and their file's name, the pool that answers them; `own` says that its workers have
    models of ours, which know beforehand what they cannot be asked.
    """

    def __init__(
        self, options: Any, reading: Reading, rows: int, each: int, identity: Mapping[str, Any],
        pool: Callable[[Facts, str, str], AbstractContextManager[Pool]], own: bool = True,
    ):  # fmt: skip
        self._options, self._reading, self._each, self._identity, self._pool, self._own = options, reading, each, identity, pool, own
        self._output = Path(options.output)
        self.shards = Shards(self._output.with_name(f"{self._output.name}.shards"), rows)
        refuse_long_name(partial_of(self.shards.folder / "prompts-00000.jsonl"), f"{self._output}, with what is written beside it,")

    def through(self) -> int:
        """Answer what is not answered yet, and join; return the exit code."""
        with only_writer(self.shards.folder, "name another --output"):
            try:
                return self._through()
            finally:
                if not self.shards.has_answers():
                    self.shards.remove()

    def _through(self) -> int:
        source = prompts_file(self._options.prompts)
        self._file = "" if source is None else source.name
        facts = self._plan()
        shards = self.shards.of(facts.prompts)
        todo = [shard for shard in shards if not self.shards.is_answered(shard)]
        if not todo:
            print(f"all {facts.prompts} prompts have their answers (--resume false asks them anew)", file=sys.stderr)
        elif lost := self._answer(facts, shards, todo):
            return self._give_up(facts, shards, lost)
        return self._end(facts, shards)

    def _plan(self) -> Facts:
        """Read all prompts once, and keep them in shards, if an earlier run has not. Raises UserError for another run's answers."""
        options, then = self._options, None
        if options.resume is False:
            self.shards.clear()
        elif self.shards.has_answers() and (then := self.shards.manifest):
            refuse_other_options(self.shards.folder, then, self._header(Facts()))
        elif self.shards.has_answers() and not (header_beside(self._output) or {}).get("finished"):  # else it was ended while it took the folder away
            raise UserError(f"{self.shards.folder} has answers and no manifest.json that says to what: move it away, or begin anew, over it, with --resume false")
        else:
            self._refuse_other_file()
        self._unit, prompts = stream_prompts(options.prompts, **options.reading(), reading=self._reading)
        if not self._own:
            prompts = without_prefixes(prompts, self._unit)
        if not then:
            facts = self.shards.begin(prompts, self._begun)
            if options.resume and (then := header_beside(self._output)):
                refuse_other_prompts(self._output, then, facts)
                self.shards.take_over(self._output, self.shards.of(facts.prompts), self._each, Prompts([], [], self._unit).unit_written)
            return facts
        if then["shard_rows"] != self.shards.rows:
            raise UserError(f"{self.shards.folder} has answers to --shard_rows {then['shard_rows']}, now {self.shards.rows}: {ANEW}")
        facts, other = self.shards.found(prompts)
        refuse_other_prompts(self.shards.folder, then, facts)
        if then["references"] != facts.references:
            raise UserError(f"{self.shards.folder} has answers beside other references than those of now: {ANEW}")
        if other is not None:
            raise UserError(f"{other} is not as the prompts and references of now would be written: {ANEW}")
        return facts

    def _begun(self, facts: Facts) -> dict[str, Any]:
        """The manifest of a run that begins. Raises UserError where there is nothing to answer, or to measure by."""
        if not facts.prompts:
            raise no_prompts()
        if self._reading.references:
            refuse_without_references(facts.references)
        return self._header(facts)

    def _header(self, facts: Facts) -> dict[str, Any]:
        header = header_with(self._identity, facts.prompts, facts.fingerprint, self._each)
        return {**header, "shard_rows": self.shards.rows, "references": facts.references, "checked": False}

    def _refuse_other_file(self) -> None:
        """Raise UserError for a file of answers that a run in one process has not finished, and where it is to be gone on with, for another run's."""
        if not self._output.exists() or not self._output.stat().st_size:
            return
        then = header_beside(self._output)
        if then is not None and not then.get("finished"):
            raise UserError(f"{self._output} has answers of a run in one process that was interrupted: go on with that, or begin anew, over them, with --resume false")
        if then is None and self._options.resume:
            raise UserError(f"{self._output} does not say what it was asked, for there is no {journal_of(self._output).name} beside it: --resume false begins anew, over it")
        if self._options.resume:
            refuse_other_options(self._output, then, self._header(Facts()))

    def _answer(self, facts: Facts, shards: list[Shard], todo: list[Shard]) -> dict[Shard, str]:
        """Have the shards answered; return those that could not be, with what was said of it."""
        done = facts.prompts - sum(shard.count for shard in todo)
        given = lambda shard: (shard.first, self.shards.prompts(shard))
        with self._pool(facts, self._unit, self._file) as pool, Stopping() as stopping:  # Ray sets what signals do to its own
            try:
                workers = Dispatcher(pool, min(pool.workers, len(todo)), opened=said_by_first)
                manifest = self.shards.manifest
                if self._own and not manifest["checked"]:
                    if lost := workers.run("check", shards, given, lambda shard, _: None):
                        return lost
                    self.shards.say({**manifest, "checked": True})
                begun, tokens, truncated = time.monotonic(), 0, []
                with answers_bar() as bar:
                    task = bar.add_task("", total=facts.prompts * self._each, completed=done * self._each, speed="")

                    def taken(shard: Shard, answered: Answered) -> None:
                        nonlocal tokens, done
                        with stopping.whole():
                            self.shards.answered(shard, answered.lines)
                            done += shard.count
                        tokens += answered.tokens
                        truncated.extend(answered.truncated)
                        bar.update(task, advance=shard.count * self._each, speed=f"{tokens / max(time.monotonic() - begun, 1e-9):.0f} tokens/s")

                    lost = workers.run("answer", todo, given, taken)
            except BaseException:
                if done:
                    self._say_kept(done, facts)
                raise
        for line in truncated_lines(len(truncated), max(truncated, default=0), facts.prompts, self._options.max_source_length):
            print(line, file=sys.stderr)
        return lost

    def _give_up(self, facts: Facts, shards: list[Shard], lost: Mapping[Shard, str]) -> int:
        for shard, why in lost.items():
            numbers = self.shards.numbers(shard)
            of = f" of {self._file}" if self._file else ""
            print(f"error: shard {shard.number}, {self._unit}s {numbers[0]} to {numbers[-1]}{of}, cannot be answered: {' '.join(why.split())}", file=sys.stderr)
        self._say_kept(sum(shard.count for shard in shards if self.shards.is_answered(shard)), facts)
        return 1

    def _say_kept(self, done: int, facts: Facts) -> None:
        print(f"{done} of {facts.prompts} prompts have their answers, in {self.shards.folder} (the same command goes on from there)", file=sys.stderr)

    def _end(self, facts: Facts, shards: list[Shard]) -> int:
        """Join the answers, and say how they are."""
        unit = Prompts([], [], self._unit).unit_written
        with Stopping() as stopping, stopping.whole():
            failed = self.shards.join(self._output, shards, self._each, unit)
            header = header_with(self._identity, facts.prompts, facts.fingerprint, self._each)
            journal = Journal(journal_of(self._output), lambda: None)  # as a run in one process leaves it
            journal.begin({**header, "finished": True}, {})
            journal.close()
        if facts.references:
            Measured.of_file(str(self._output), self._with_references(facts, shards)).tell()
        self.shards.remove()
        if failed:
            print(f"{failed} of {facts.prompts} prompts ended in an error", file=sys.stderr)
        return 1 if failed else 0

    def _with_references(self, facts: Facts, shards: list[Shard]) -> Prompts:
        """The numbers of all prompts and their references, in memory: what is measured of a text is measured of all together."""
        numbers, references = [], {}
        for shard in shards:
            for line in map(json.loads, self.shards.prompts(shard).splitlines()):
                if "reference" in line:
                    references[len(numbers)] = line["reference"]
                numbers.append(line["number"])
        return Prompts([None] * facts.prompts, numbers, self._unit, references=references)


def header_beside(path: Path) -> dict[str, Any] | None:
    """What a file of answers was asked, by what lies beside it; None where nothing does, or there is no such file."""
    if not path.exists():
        return None
    with closing(Journal(journal_of(path), lambda: None)) as journal:
        return journal.header


def refuse_other_prompts(path: Path, then: Mapping[str, Any], now: Facts) -> None:
    """Raise UserError where a run was asked other prompts."""
    if (then["prompts"], then["fingerprint"]) != (now.prompts, now.fingerprint):
        raise UserError(f"{path} has answers to other prompts than those of now (then {then['prompts']:,}, now {now.prompts:,}): {ANEW}")


def without_prefixes(prompts: Iterator[tuple[int, Asked]], unit: str) -> Iterator[tuple[int, Asked]]:
    """The same prompts, none of which gives the beginning of its answer. Raises UserError for one that does."""
    for number, asked in prompts:
        if asked.prefix:
            raise no_prefix(f"{unit} {number}")
        yield number, asked


def said_by_first(said: str) -> None:
    """Print what loading the model said, of one worker: the others say the same."""
    print(said, end="", file=sys.stderr)
