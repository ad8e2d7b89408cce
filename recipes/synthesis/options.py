"""Options of `seodang synthesise`: what is made, of what, how much of it, and what is dropped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.synthesis import styles
from seodang.data.synthesis.personas import built_in, personas_in
from seodang.data.synthesis.seeds import FIELDS, SHAPES, Seed
from seodang.data.synthesis.styles import NEW, OF_RECORDS, OUTPUT_FIRST, STYLES, Style
from seodang.recipes.options.asking import AskingOptions
from seodang.recipes.options.decoding import Decoding, option
from seodang.recipes.options.parser import Repeated
from seodang.recipes.run.results_file import is_regular

CHOICE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed")
ATTEMPTS_EACH = 10  # tries at each wanted record, unless another number is given


@dataclass
class Choice:
    """How the model draws its tokens."""

    temperature: float = option("0 takes the likeliest token each time; more draws more freely.", 0.8)
    top_p: float | None = option("Draw from the likeliest tokens that make up this share.")
    top_k: int | None = option("Draw from so many of the likeliest tokens.")
    min_p: float | None = option("Drop tokens less likely than this share of the likeliest one.")
    repetition_penalty: float | None = option("Above 1: tokens that stand there already become less likely.")
    max_new_tokens: int = option("Tokens of an answer; one that is cut off by it is no record.", 512)
    seed: int = option("With an attempt's number, of all that is drawn for it.", 0)

    def decoding(self, json_schema: str) -> Decoding:
        """These settings, with the schema that answers are held to."""
        return Decoding(json_schema=json_schema, **{name: value for name in CHOICE if (value := getattr(self, name)) is not None})


@dataclass
class Making(AskingOptions):
    """What is made, and where it goes."""

    data: list[str] | None = field(
        default=None, metadata={"help": "Seeds: instruction/input/output, prompt/completion, Self-Instruct's instances."}
    )
    output: str | None = option("Write the records to this JSON Lines file, each with where it comes from.")
    style: str = option("self_instruct, persona, output_first, or of the given records: rephrase, translate.", "self_instruct")
    count: int | None = option("Records wanted, those that filters leave.")
    token_budget: int | None = option("Prompts and answers together take at most so many tokens.")
    attempts: int | None = option(f"Answers asked for at most; {ATTEMPTS_EACH} for each of --count by default.")
    resume: bool | None = field(
        default=None, metadata={"help": "Go on with the interrupted run of this output; false: begin anew, over it.", "nargs": "?", "const": True}
    )
    dropped: str | None = option("Write what was dropped to this file too, with the filter that did.")
    shots: int = option("self_instruct, persona, output_first: records that each prompt shows.", 8)
    made_shots: int = option("Of these so many are records made before, as soon as there are some.", 2)
    personas: str | None = option("persona: a .txt of people, one a line; some 900 are built in.")
    fields: list[str] | None = field(default=None, metadata={"help": "rephrase, translate: the texts written anew; instruction of rephrase, all of translate."})
    source_lang: str | None = option("translate: the language of the records, as en.")
    target_lang: str | None = option("translate: the language wanted, as ko.")
    meanings: list[str] | None = field(default=None, metadata={"help": "output_first: what an output's inputs are in words, as '+=a review by one who liked it'.", "action": Repeated})
    language: str | None = option("self_instruct, persona, output_first: the language to write in, as ko.")
    max_chars: int = option("Characters of each text that is made or shown; 0: no bound (servers whose schemas have no maxLength).", 600)
    round_size: int = option("Attempts in a round; what one round made can be shown from the next on.", 32)

    def __post_init__(self):
        super().__post_init__()
        if self.output is None:
            raise UserError("output is missing: give --output made.jsonl, for what is made takes long and is kept as it comes")
        if self.style not in STYLES:
            raise UserError(f"style must be one of {', '.join(STYLES)}, got {self.style!r}")
        if self.count is self.token_budget is self.attempts is None and self.style not in OF_RECORDS:
            raise UserError("say how much is to be made: --count RECORDS, --token_budget TOKENS, or both")
        for name in ("count", "token_budget", "attempts", "round_size", "shots"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        for name in ("max_chars", "made_shots"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"{name} must be at least 0, got {value}")
        if not is_regular(self.output):
            raise UserError(f"output {self.output} cannot be gone on with: name a file")
        self._check_style()

    def _check_style(self) -> None:
        """Raise UserError for what a style needs and does not have, and for what it has no use for."""
        if self.data is None and self.style != "persona":
            raise UserError(f"data is missing: style {self.style} needs records, as --data seeds.jsonl")
        if self.style == "translate" and not (self.source_lang and self.target_lang):
            raise UserError("translate needs both languages: --source_lang en --target_lang ko, say")
        if self.style == "translate" and self.source_lang == self.target_lang:
            raise UserError(f"translate: source_lang and target_lang are both {self.source_lang!r}")
        users = {"personas": ("persona",), "fields": OF_RECORDS, **dict.fromkeys(("source_lang", "target_lang"), ("translate",)), "language": (*NEW, OUTPUT_FIRST), "meanings": (OUTPUT_FIRST,)}
        for name, of in users.items():
            if getattr(self, name) is not None and self.style not in of:
                raise UserError(f"{name} is for --style {' and '.join(of)}, got {self.style}: leave it out")
        if bad := [text for text in self.meanings or () if not all(text.partition("="))]:
            raise UserError(f"meanings are given as OUTPUT=WORDS, got {bad[0]!r}: put a = between an output and what it means")
        if twice := [output for output, count in Counter(text.partition("=")[0] for text in self.meanings or ()).items() if count > 1]:
            raise UserError(f"meanings gives {twice[0]!r} more than one: leave all but one out")
        if unknown := [name for name in self.fields or () if name not in FIELDS]:
            raise UserError(f"fields are {', '.join(FIELDS)}, got {unknown[0]!r}")

    def most_attempts(self, records: int) -> int | None:
        """How many answers may be asked for: of given records said anew each once where nobody says more; None for as many as the budget allows."""
        once = records if self.style in OF_RECORDS else None
        return self.attempts or (once if self.count is None else ATTEMPTS_EACH * self.count)

    @property
    def wanted_language(self) -> str | None:
        """The language that what is made should be in."""
        return self.target_lang or self.language

    def seeds(self) -> list[Seed]:
        """The records given. Raises UserError for what is no question with its answer."""
        return [] if self.data is None else list(read(self.data, shapes=SHAPES, **self.reading()))

    def fitting(self, seeds: Sequence[Seed]) -> list[Seed]:
        """The seeds that can be shown, and be made anew: no text of them is longer than those that are made may be."""
        return [seed for seed in seeds if not self.max_chars or all(len(text) <= self.max_chars for text in seed.told().values())]

    def style_of(self, seeds: Sequence[Seed]) -> Style:
        """What asks for records, given the seeds that fit. Raises UserError where they are too few."""
        if self.style in OF_RECORDS:
            if not seeds:
                raise UserError(f"no record has texts of at most max_chars={self.max_chars} characters: raise it")
            return self._of_records(seeds)
        if self.data is not None and len(seeds) < self.shots:
            few = f"only {len(seeds)} seeds have texts of at most max_chars={self.max_chars} characters"
            raise UserError(f"shots {self.shots}: {few}: give fewer --shots, more seeds, or a higher --max_chars")
        shown = (seeds, self.shots, self.made_shots, self.language)
        if self.style == OUTPUT_FIRST:
            return styles.output_first(*shown, dict(text.split("=", 1) for text in self.meanings or ()))
        if self.style == "persona":
            return styles.persona(personas_in(self.personas, self.encoding) if self.personas else built_in(), *shown)
        return styles.self_instruct(*shown)

    def _of_records(self, seeds: Sequence[Seed]) -> Style:
        given = tuple(self.fields) if self.fields else ("instruction",) if self.style == "rephrase" else FIELDS
        fields = tuple(name for name in FIELDS if name in given and any(getattr(seed, name) for seed in seeds))
        if not fields:
            raise UserError(f"fields {', '.join(given)}: no record has any text there")
        if self.style == "rephrase":
            return styles.rephrase(seeds, fields)
        return styles.translate(seeds, fields, self.source_lang, self.target_lang)
