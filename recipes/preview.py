"""Print records as the model sees them: trained tokens told from masked ones, with counts.

seodang preview data.jsonl --max_length 512 --html preview.html
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from seodang.data.chat import set_chat_template
from seodang.data.errors import UserError
from seodang.data.files.sources import Example, read
from seodang.data.formats import SHAPES
from seodang.data.labels import Counts, Labeller
from seodang.data.preference_rows import PreferenceCounts, PreferenceTokenizer, prompt_rows
from seodang.data.preferences import PREFERENCE_SHAPES, PROMPT_SHAPES, UNPAIRED_SHAPES, PromptExample, RankedPreference, UnpairedPreference
from seodang.data.preview import BRACKETS, Row, length, preview, totals
from seodang.data.preview_page import to_html
from seodang.data.seq2seq.languages import set_languages
from seodang.data.seq2seq.records import Exchange, one_exchange, seq2seq_shapes
from seodang.data.seq2seq.rows import Seq2SeqCounts, Seq2SeqLabeller, told_languages
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.recipes.evaluation.overlap import warn_of_overlap
from seodang.recipes.options.parser import command, parse
from seodang.recipes.options.record import RecordOptions
from seodang.recipes.options.tasks import refuse_turns, task_lines

Shown = list[tuple[str, list[Row]]]

# Records of preferences first: a pair has a prompt too, and a judged answer looks like one to teach. A prompt alone is told by its shape's name.
ALL_SHAPES = {**PREFERENCE_SHAPES, **UNPAIRED_SHAPES, **SHAPES, **{name: shape for name, shape in PROMPT_SHAPES.items() if name not in SHAPES}}

TEACHING = "records to teach"
FAMILIES = {RankedPreference: "ranked answers", UnpairedPreference: "judged answers", PromptExample: "prompts alone"}


@dataclass
class PreviewOptions(RecordOptions):
    """What is looked at, and as whose model sees it."""

    model: str = field(default="default", metadata={"help": "Whose tokenizer and template: a folder, hub name or default."})
    source_prefix: str = field(default="", metadata={"help": "Of an encoder-decoder: a text before every source."})
    source_lang: str | None = field(default=None, metadata={"help": "Of an encoder-decoder: the language of the sources, and the key in a translation."})
    target_lang: str | None = field(default=None, metadata={"help": "Of an encoder-decoder: the language of the targets, and the key in a translation."})
    rows: int = field(default=5, metadata={"help": "Records shown; all are counted."})
    html: str | None = field(default=None, metadata={"help": "Write the same as a page to this file."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources: warn of records in them that the data has too."})

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise UserError(f"rows must not be below zero, got {self.rows}")


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, PreviewOptions, prog="seodang preview", positional=("data",), description=__doc__)
    config = known_config(options.model)
    paired = config is not None and config.is_encoder_decoder
    if paired:
        refuse_turns(options.layout())
        shapes = options.shapes(seq2seq_shapes(options.source_lang, options.target_lang), one_exchange)
    else:
        shapes = options.shapes(ALL_SHAPES)
    examples = read(options.data, weights=options.weights, shape=options.shape, split=options.split, shapes=shapes, **options.reading())
    tokenizer = load_tokenizer(options.model)
    if not paired or options.chat_template is not None:
        set_chat_template(tokenizer, options.chat_template)
    shown, counts, lengths = (read_exchanges if paired else read_records)(examples, tokenizer, options)
    counts.told = task_lines(shapes)
    console = Console()
    colours = console.color_system is not None and not console.no_color
    console.print(preview(shown, tokenizer, colours=colours))
    told = [] if colours else [f"trained         between {' and '.join(BRACKETS)}"]
    if len(shown) < counts.records:
        told.append(f"shown           the first {len(shown):,} of {counts.records:,} records; --rows {counts.records} shows all")
    console.print(*told, *totals(counts, lengths), sep="\n", markup=False, highlight=False)
    if options.eval_data:
        warn_of_overlap(options.data, options.eval_data, options.encoding)
    if options.html:
        title = f"Preview of {', '.join(options.data)}"
        Path(options.html).write_text(to_html(shown, tokenizer, counts, lengths, title), encoding="utf-8")
        console.print(f"page            {options.html}", markup=False, highlight=False)
    return 0


def read_records(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, options: PreviewOptions
) -> tuple[Shown, Counts | PreferenceCounts, list[int]]:
    """The first records with their rows, and the counts and row lengths of all. Raises UserError for records of two families."""
    labeller, brancher = Labeller(tokenizer, **options.labelling()), PreferenceTokenizer(tokenizer, options.max_length, options.literal, options.unusable)
    counts: Counts | PreferenceCounts | None = None
    first = ""
    shown: Shown = []
    lengths: list[int] = []
    for number, example in enumerate(tqdm(examples, desc="records", unit="", disable=None)):
        family = FAMILIES.get(type(example), TEACHING)
        if counts is None:
            first, counts = family, (Counts if family == TEACHING else PreferenceCounts)(remembers=None)
        if family != first:
            raise UserError(f"{example.where}: {family} behind {first}, which are not trained together: preview them one after the other")
        if isinstance(example, PromptExample):
            rows = prompt_rows(example, tokenizer, counts, max_prompt_length=options.max_length, literal=options.literal, too_long=options.unusable)
        else:
            rows = (labeller if family == TEACHING else brancher).rows(example, counts)
        lengths += map(length, rows)
        if number < options.rows:
            shown.append((example.where, rows))
    return shown, counts, lengths


def read_exchanges(examples: Iterable[Exchange], tokenizer: PreTrainedTokenizerBase, options: PreviewOptions) -> tuple[Shown, Seq2SeqCounts, list[int]]:
    """The same of an encoder-decoder: either side may have `max_length` tokens. What the decoder is shown first is not looked at here."""
    examples = list(examples)
    set_languages(tokenizer, *told_languages(tokenizer, options.source_lang, options.target_lang, any(each.translated for each in examples)))
    how = {name: getattr(options, name) for name in ("source_prefix", "literal", "empty_answers", "unusable")}
    labeller = Seq2SeqLabeller(tokenizer, lambda target: target[:1], options.max_length, options.max_length, **how)
    counts = Seq2SeqCounts(remembers=None, max_source_length=options.max_length)
    made = [(each.where, labeller.rows(each, counts)) for each in tqdm(examples, desc="records", unit="", disable=None)]
    return made[: options.rows], counts, [length(row) for _, rows in made for row in rows]


if __name__ == "__main__":
    sys.exit(main())
