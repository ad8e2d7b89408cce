"""Every error that a user can mend says the remedy itself, or has its line in docs/troubleshooting.md."""

import ast
import re
from functools import cache

from markdown_blocks import DOCS, ROOT

ROOMS = ("data", "infer", "train", "recipes")
VERBS = (
    "accept|add|allow|ask|begin|build|call|change|check|choose|classify|close|compare|convert|copy|correct|count|cut|delete|drop|"
    "empty|end|export|fetch|fill|force|free|generate|give|go|hide|hold|increase|install|join|keep|leave|let|list|load|log|look|lower|"
    "make|measure|mend|merge|move|name|open|order|pad|part|pass|plan|point|press|preview|put|quote|raise|read|refer|remove|rename|"
    "repeat|restore|resume|rewrite|run|sample|save|say|score|select|send|set|shorten|spell|split|start|state|stop|submit|take|tell|"
    "train|try|turn|unset|upgrade|use|wait|write"
)
IMPERATIVE = re.compile(rf"(?:^|[:;,(] |\b(?:or|and|then|else) )['\"]?(?:{VERBS})\b", re.IGNORECASE)  # a clause that begins with what to do
BOUNDS = re.compile(  # what would be right
    r"\b(must|should|needs?|takes|wants|expects|has to|have to|may be|can be|may not|at (?:most|least)|one of|instead|only)\b"
)
CHOICES = re.compile(r"\b(there are|there is only|among|found:|keys found|the tools are)\b.*\{.*join|did_you_mean|did you mean")  # what there is to choose from
NAMED = re.compile(r"--[a-z]\w+|`[^`{}]+`|\bpip install\b|\bset_\w+\(")  # an option, a command, a call
PASSED_ON = re.compile(  # what is filled in is a remedy, by its name
    r"\{(?:[\w.\[\]']*_)?(?:remedy|remedies|hint|how|anew|option|why_not|reason|told|torn|guess|resume)\w*[({}!:]|\{_remedy|\{misled|_guesses\(",
    re.IGNORECASE,
)


def text_of(node: ast.expr) -> str:
    """The text of an error, what is filled in within braces, as it is written in the code."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return f"{{{ast.unparse(node)}}}"


@cache
def errors() -> list[tuple[str, str]]:
    """Where each UserError of the code is made, and its text."""
    found = []
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", text_of(node.args[0])))
    return found


def own_words(text: str) -> str:
    """What a text says beside what is filled in."""
    return re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "…", text)


def says_the_remedy(text: str) -> bool:
    """Whether a text says what to do: an imperative, what would be right, what there is, an option or a command; or hands on another's words."""
    only_handed_on = len(re.findall(r"[a-z]{2,}", own_words(text))) < 2
    return only_handed_on or bool(BOUNDS.search(own_words(text)) or any(rule.search(text) for rule in (IMPERATIVE, CHOICES, NAMED, PASSED_ON)))


def lines() -> list[str]:
    """The messages of the page, … for what is filled in."""
    return re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)


def is_of(line: str, words: str) -> bool:
    """Whether a line's pieces stand in an error's own words, in this order."""
    at = 0
    for piece in (piece.strip() for piece in line.split("…")):
        at = words.find(piece, at) + len(piece)
        if at < len(piece):
            return False
    return True


def test_the_rule_tells_a_remedy_from_a_complaint():
    for good in (
        "top_p must be in (0, 1], got {top_p!r}", "the answer is empty: fill it in", "{where}: {error}", "no prompt: give one (\"...\")",
        "there is no column {column!r} among {', '.join(columns)}", "unknown metric {text!r}{did_you_mean(text, WRITTEN)}", "{path} is damaged: {REMEDY}",
    ):  # fmt: skip
        assert says_the_remedy(good), good
    for bad in ("the data has no records", "{path.name} is not a Parquet file: {error}", "cannot read {path}", "the useful names were raised"):
        assert not says_the_remedy(bad), bad
    assert own_words("a {b!r} c {d['e']} {f({g})}") == "a … c … …"


def test_every_error_says_its_remedy_or_has_a_line():
    found, page = errors(), lines()
    assert len(found) > 1400
    silent = [(where, text) for where, text in found if not says_the_remedy(text)]
    untold = [f"{where}: {text}" for where, text in silent if not any(is_of(line, own_words(text)) for line in page)]
    assert not untold, "\n".join([f"{len(untold)} errors without a remedy: say it, or add a line to docs/troubleshooting.md", *untold])


def test_no_line_of_the_page_is_of_an_error_that_is_gone():
    texts, page = [own_words(text) for _, text in errors()], lines()
    assert len(page) > 40
    gone = [line for line in page if not any(is_of(line, words) for words in texts)]
    assert not gone, gone


def test_no_line_is_so_general_that_it_hides_what_has_no_remedy():
    texts, page = [own_words(text) for _, text in errors()], lines()
    general = {line: count for line in page if (count := sum(is_of(line, words) for words in texts)) > 25}
    assert not general, general
