"""The rows of an Excel workbook (.xlsx) as texts: a zip archive of XML, by ECMA-376 part 1, chapter 18 (SpreadsheetML)."""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

from ..errors import UserError

Element = ElementTree.Element
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")  # how a cell's text writes a character that XML cannot hold
_NO_DATE = re.compile(r'"[^"]*"|\\.|\[(?![hms]+\])[^\]]*\]|General', re.IGNORECASE)  # of a format's code what says nothing of dates
DATES = {  # the built-in formats of dates and times, Korean ones included, by their numbers: 46 is of time that has passed
    **dict.fromkeys([*range(14, 23), *range(27, 37), 45, 47, *range(50, 59)], "y"), 46: "[h]:mm:ss",
}  # fmt: skip


def sheet_rows(path: Path, sheet: str | None = None) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """The rows of a sheet, by default the first that is not hidden, each with where it stands, at least as wide as the first; and the names of other sheets that hold something.

    A number is written as Excel shows it without a format (3, 0.5), a date as 2027-03-05, with its time behind it where it has one, an empty
    cell as nothing. Raises UserError for what is no workbook or has no such sheet, and for a cell whose value is not known: an error, a formula
    that was never computed, one of several merged ones.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _Workbook(archive, path.name).rows(sheet)
    except UserError:
        raise
    except (zipfile.BadZipFile, LookupError, ValueError, OverflowError, ElementTree.ParseError, EOFError, NotImplementedError) as error:
        with path.open("rb") as file:
            old = file.read(4) == b"\xd0\xcf\x11\xe0"
        protected = "an old or a protected Excel workbook: save it as .xlsx without a password"
        raise UserError(f"{path.name} is {protected if old else f'not an Excel workbook, or a damaged one ({error})'}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


class _Workbook:
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        [main] = [target for kind, target in self._relations("").values() if kind == "officeDocument"][:1] or ["xl/workbook.xml"]
        self.relations = self._relations(main)
        book = self._tree(main)
        linked = lambda sheet: next((value for key, value in sheet.attrib.items() if key.endswith("}id")), "")
        self.sheets = [  # name, place in the archive, whether it is shown
            (sheet.get("name", ""), self.relations[linked(sheet)][1], sheet.get("state", "visible") == "visible")
            for sheet in book.iter(f"{_space(book)}sheet")
            if self.relations.get(linked(sheet), ("", ""))[0] == "worksheet"
        ]
        settings = book.find(f"{_space(book)}workbookPr")
        self.since = datetime(1904, 1, 1) if settings is not None and settings.get("date1904") in ("1", "true") else datetime(1899, 12, 30)

    def rows(self, sheet: str | None) -> tuple[list[tuple[str, list[str]]], list[str]]:
        names = [name for name, _, _ in self.sheets]
        if sheet is not None and sheet not in names:
            raise UserError(f"{self.name} has no sheet {sheet!r}, only {', '.join(names)}")
        shown = [name for name, _, visible in self.sheets if visible] or names
        if not shown:
            raise UserError(f"{self.name} has no sheet")
        chosen = shown[0] if sheet is None else sheet
        others = [name for name, place, _ in self.sheets if name != chosen and self._holds_something(place)] if sheet is None else []
        place = next(place for name, place, _ in self.sheets if name == chosen)
        book = self.name if sheet is None else f"{self.name}#{sheet}"
        self.strings, self.dates = self._shared_strings(), self._date_styles()
        found = []
        for number, cells in self._cells(place, chosen):
            width = max(cells, default=-1) + 1
            found.append((f"{book} row {number}", [cells.get(column, "") for column in range(width)]))
        width = next((len(fields) for _, fields in found if "".join(fields).strip()), 0)  # of the names: a lone blank far to the right widens no other row
        return [(where, fields + [""] * (width - len(fields))) for where, fields in found], others

    def _cells(self, place: str, sheet: str) -> Iterator[tuple[int, dict[int, str]]]:
        """Each row's number and its cells by their columns, from 0."""
        number = 0
        with self.archive.open(place) as file:
            for _, element in ElementTree.iterparse(file):
                kind = _plain(element)
                if kind == "row":
                    number = int(element.get("r") or number + 1)
                    cells, column = {}, -1
                    for cell in element:
                        letters = re.match(r"[A-Z]*", cell.get("r") or "")[0]
                        column = _column(letters) if letters else column + 1
                        if text := self._text(cell, f"{self.name} {sheet}!{cell.get('r') or f'row {number}'}"):
                            cells[column] = text
                    element.clear()
                    yield number, cells
                elif kind == "mergeCell" and len(set(element.get("ref", "").split(":"))) > 1:
                    where = f"{self.name} {sheet}!{element.get('ref')}"
                    raise UserError(f"{where}: these cells are merged: unmerge them, and write the text into each that it is meant for")

    def _text(self, cell: Element, where: str) -> str:
        children = {_plain(child): child for child in cell}
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return _joined(children["is"]) if "is" in children else ""
        value = children["v"].text or "" if "v" in children else ""
        if "f" in children and not value and kind != "str":
            raise UserError(f"{where} has a formula that was never computed: open the workbook in Excel and save it")
        if kind == "e":
            raise UserError(f"{where} holds the error {value}: mend its formula, or write a value")
        if kind == "s":
            return self.strings[int(value)] if value else ""
        if kind == "b":
            return {"1": "TRUE", "0": "FALSE"}.get(value, value)
        if kind != "n" or not value:  # a formula's text, an ISO date
            return _unescaped(value)
        code = self.dates.get(int(cell.get("s") or 0))
        return plain_number(value) if code is None else self._date(float(value), code)

    def _date(self, days: float, code: str) -> str:
        if re.search(r"\[[hms]+\]", code, re.IGNORECASE):  # time that has passed, not a time of day
            minutes, seconds = divmod(round(days * 86400), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
        moment = self.since + timedelta(seconds=round(days * 86400))
        if days < 1 and self.since.year == 1899:
            return f"{moment:%H:%M:%S}"
        if self.since.year == 1899 and days < 60:  # Excel has a 29th of February 1900
            moment += timedelta(days=1)
        return f"{moment:%Y-%m-%d}" if days == int(days) else f"{moment:%Y-%m-%d %H:%M:%S}"

    def _shared_strings(self) -> list[str]:
        place = next((target for kind, target in self.relations.values() if kind == "sharedStrings"), None)
        if place is None:
            return []
        with self.archive.open(place) as file:
            found = []
            for _, element in ElementTree.iterparse(file):
                if _plain(element) == "si":
                    found.append(_joined(element))
                    element.clear()
            return found

    def _date_styles(self) -> dict[int, str]:
        """The cells' styles that show a number as a date or a time, with the codes of their formats."""
        place = next((target for kind, target in self.relations.values() if kind == "styles"), None)
        if place is None:
            return {}
        styles = self._tree(place)
        codes = DATES | {int(each.get("numFmtId", 0)): each.get("formatCode", "") for each in styles.iter(f"{_space(styles)}numFmt")}
        formats = styles.find(f"{_space(styles)}cellXfs")
        used = enumerate(codes.get(int(each.get("numFmtId", 0)), "") for each in (formats if formats is not None else ()))
        return {place: code for place, code in used if re.search("[ymdhs]", _NO_DATE.sub("", code.partition(";")[0]), re.IGNORECASE)}

    def _holds_something(self, place: str) -> bool:
        with self.archive.open(place) as file:
            return any(_plain(element) in ("v", "is") for _, element in ElementTree.iterparse(file))

    def _relations(self, place: str) -> dict[str, tuple[str, str]]:
        """What a part of the archive points to: by its id the kind of thing, and where that lies."""
        folder, name = posixpath.split(place)
        try:
            tree = self._tree(posixpath.join(folder, "_rels", f"{name}.rels"))
        except KeyError:
            return {}
        ends = lambda each: posixpath.normpath(posixpath.join("/", folder, each.get("Target", ""))).lstrip("/")
        return {each.get("Id", ""): (each.get("Type", "").rpartition("/")[2], ends(each)) for each in tree}

    def _tree(self, place: str) -> Element:
        return ElementTree.fromstring(self.archive.read(place))


def plain_number(value: str) -> str:
    """A number as Excel shows it without a format: 15 digits that count, and no exponent; a whole one as it is written.

    >>> [plain_number(value) for value in ("3", "3.0", "0.30000000000000004", "1E-3", "2.5E+3", "12345678901234567")]
    ['3', '3', '0.3', '0.001', '2500', '12345678901234567']
    """
    if value.removeprefix("-").isdecimal():
        return value
    text = format(Decimal(format(float(value), ".15g")), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _joined(element: Element) -> str:
    """The text of a cell in one or several styles, without the reading that may stand above it."""
    runs = [element, *(child for child in element if _plain(child) == "r")]
    return _unescaped("".join(child.text or "" for run in runs for child in run if _plain(child) == "t"))


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _column(letters: str) -> int:
    """A to 0, Z to 25, AA to 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _space(element: Element) -> str:
    """The namespace of an element, as its tag begins."""
    return element.tag[: element.tag.rfind("}") + 1]


def _plain(element: Element) -> str:
    return element.tag.rpartition("}")[2]
