"""Workbooks written by hand as Excel writes them; those of openpyxl and XlsxWriter have been compared once."""

import zipfile

import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.files.spreadsheet import plain_number, sheet_rows

SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
LINKS = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'
KIND = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
STRINGS = ["질문", "답변", "서울은?", "<r><t>굵</t></r><r><t xml:space='preserve'>게 </t></r><rPh sb='0' eb='1'><t>읽기</t></rPh>", "줄_x000D_바꿈_x005F_x000D_"]
CODES = ["General", "m/d/yy", "0.00E+00", '#,##0"days"', 'yyyy"년" m"월" d"일"', "[h]:mm", "[Red]0.0"]  # by the styles of the cells


def cell(place, value, kind="n", style=0, formula=""):
    formula = f"<f>{formula}</f>" if formula else ""
    return f'<c r="{place}" t="{kind}" s="{style}">{formula}<v>{value}</v></c>'


def workbook(path, sheets, settings=""):
    """Write sheets, each the XML of its rows by their numbers, or of the whole behind them where that is a text."""
    strings = "".join(f"<si>{text if text.startswith('<') else f'<t>{text}</t>'}</si>" for text in STRINGS)
    own = "".join(f'<numFmt numFmtId="{164 + place}" formatCode="{code.replace(chr(34), "&quot;")}"/>' for place, code in enumerate(CODES) if place > 1)
    used = "".join(f'<xf numFmtId="{place and 164 + place if place != 1 else 14}"/>' for place in range(len(CODES)))
    named = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="rId{n}"/>' for n, name in enumerate(sheets, 1)).replace('name="숨김"', 'name="숨김" state="hidden"')
    linked = "".join(f'<Relationship Id="rId{n}" Type="{KIND}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n in range(1, len(sheets) + 1))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_rels/.rels", f'<Relationships {LINKS}><Relationship Id="rId1" Type="{KIND}/officeDocument" Target="xl/workbook.xml"/></Relationships>')
        archive.writestr("xl/workbook.xml", f'<workbook {SPACE} xmlns:r="{KIND}">{settings}<sheets>{named}</sheets></workbook>')
        others = f'<Relationship Id="s" Type="{KIND}/sharedStrings" Target="/xl/sharedStrings.xml"/><Relationship Id="t" Type="{KIND}/styles" Target="styles.xml"/>'
        archive.writestr("xl/_rels/workbook.xml.rels", f"<Relationships {LINKS}>{linked}{others}</Relationships>")
        archive.writestr("xl/sharedStrings.xml", f"<sst {SPACE}>{strings}</sst>")
        archive.writestr("xl/styles.xml", f"<styleSheet {SPACE}><numFmts>{own}</numFmts><cellXfs>{used}</cellXfs></styleSheet>")
        for n, rows in enumerate(sheets.values(), 1):
            rows, behind = rows if isinstance(rows, tuple) else (rows, "")
            written = "".join(f'<row r="{number}">{cells}</row>' for number, cells in rows.items())
            archive.writestr(f"xl/worksheets/sheet{n}.xml", f"<worksheet {SPACE}><sheetData>{written}</sheetData>{behind}</worksheet>")
    return path


HEADER = cell("A1", 0, "s") + cell("B1", 1, "s")


def test_a_cell_is_the_text_that_it_stands_for(tmp_path):
    answers = {
        cell("B2", 3, "s"): "굵게 ",  # in two styles, without the reading above it
        cell("B2", 4, "s"): "줄\r바꿈_x000D_",
        '<c r="B2" t="inlineStr"><is><t>여기</t></is></c>': "여기",
        cell("B2", "3"): "3", cell("B2", "3.0"): "3", cell("B2", "0.30000000000000004"): "0.3", cell("B2", "1E-3"): "0.001",
        cell("B2", "1234", style=2): "1234", cell("B2", "30", style=3): "30", cell("B2", "2.5", style=6): "2.5",
        cell("B2", "46451", style=1): "2027-03-05", cell("B2", "46451.604166666664", style=4): "2027-03-05 14:30:00",
        cell("B2", "0.375", style=1): "09:00:00", cell("B2", "1.25", style=5): "30:00:00", cell("B2", "59", style=1): "1900-02-28",
        cell("B2", 1, "b"): "TRUE", cell("B2", 0, "b"): "FALSE",
        cell("B2", "계산", "str", formula="A2"): "계산", cell("B2", "5", formula="2+3"): "5", cell("B2", "2027-03-05", "d"): "2027-03-05",
    }  # fmt: skip
    for number, (xml, text) in enumerate(answers.items()):
        path = workbook(tmp_path / f"{number}.xlsx", {"데이터": {1: HEADER, 2: cell("A2", 2, "s") + xml}})
        assert sheet_rows(path) == ([(f"{path.name} row 1", ["질문", "답변"]), (f"{path.name} row 2", ["서울은?", text])], []), xml
    mac = workbook(tmp_path / "mac.xlsx", {"데이터": {1: HEADER, 2: cell("A2", 2, "s") + cell("B2", 44989, style=1)}}, '<workbookPr date1904="1"/>')
    assert sheet_rows(mac)[0][1][1] == ["서울은?", "2027-03-05"]


def test_rows_may_begin_anywhere_and_empty_ones_are_no_records(tmp_path):
    rows = {3: cell("C3", 0, "s") + cell("D3", 1, "s"), 4: '<c r="C4" s="1"/>', 6: cell("C6", 2, "s") + cell("D6", "1.5"), 7: cell("C7", 2, "s"), 900: ""}
    [first, second] = read(workbook(tmp_path / "a.xlsx", {"데이터": rows}))
    assert [message["content"] for message in first.messages] == ["서울은?", "1.5"] and first.where == "a.xlsx row 6"
    assert [message["content"] for message in second.messages] == ["서울은?", ""]
    blank = '<c r="XFD3" t="inlineStr"><is><t xml:space="preserve"> </t></is></c>'
    far, _ = sheet_rows(workbook(tmp_path / "far.xlsx", {"데이터": {1: HEADER, 2: cell("A2", 2, "s"), 3: cell("A3", 2, "s") + blank}}))
    assert [len(fields) for _, fields in far] == [2, 2, 16384]  # of a thousand rows each would be as wide


@pytest.mark.parametrize("damage", [cell("B2", 99, "s"), cell("B2", "three"), cell("B2", "1e12", style=1)])
def test_a_value_that_means_nothing_is_a_damaged_workbook(tmp_path, damage):
    with pytest.raises(UserError, match="a.xlsx is not an Excel workbook, or a damaged one"):
        sheet_rows(workbook(tmp_path / "a.xlsx", {"데이터": {1: HEADER, 2: cell("A2", 2, "s") + damage}}))


def test_the_first_sheet_that_is_shown_is_read_and_others_are_named(tmp_path, caplog):
    sheets = {name: {1: HEADER, 2: cell("A2", 2, "s") + cell("B2", n)} for n, name in enumerate(("숨김", "하나", "둘"))} | {"빈": {}}
    path = workbook(tmp_path / "a.xlsx", sheets)
    [example] = read(path)
    assert example.messages[1]["content"] == "1" and example.where == "a.xlsx row 2"
    assert caplog.messages == ["a.xlsx: its first sheet alone is read, not 숨김, 둘; another is named as a.xlsx#숨김"]
    [example] = read(f"{path}#둘")
    assert example.messages[1]["content"] == "2" and example.where == "a.xlsx#둘 row 2" and len(caplog.messages) == 1
    with pytest.raises(UserError, match="a.xlsx has no sheet '셋', only 숨김, 하나, 둘, 빈"):
        read(f"{path}#셋")


@pytest.mark.parametrize(
    "row, behind, named",
    [
        (cell("A2", 2, "s") + cell("B2", "#N/A", "e"), "", "a.xlsx 데이터!B2 holds the error #N/A"),
        (cell("A2", 2, "s") + cell("B2", "", formula="1+1"), "", "a.xlsx 데이터!B2 has a formula that was never computed"),
        (cell("A2", 2, "s"), '<mergeCells><mergeCell ref="B2:B3"/></mergeCells>', "a.xlsx 데이터!B2:B3: these cells are merged: unmerge them"),
        (cell("A2", 2, "s") + cell("B2", 1) + cell("C2", 7), "", "a.xlsx row 2: more fields than the header has, such as '7'"),
    ],
)
def test_a_cell_whose_value_is_not_known_is_refused_by_its_name(tmp_path, row, behind, named):
    with pytest.raises(UserError) as refused:
        read(workbook(tmp_path / "a.xlsx", {"데이터": ({1: HEADER, 2: row}, behind)}))
    assert named in str(refused.value)


@pytest.mark.parametrize("content, named", [(b"text", "not an Excel workbook"), (b"\xd0\xcf\x11\xe0...", "an old or a protected Excel workbook: save it as .xlsx")])
def test_what_is_no_workbook_is_refused(tmp_path, content, named):
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=f"a.xlsx is {named}"):
        read(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        archive.writestr("document.xml", "<document/>")
    with pytest.raises(UserError, match="b.xlsx is not an Excel workbook"):
        read(tmp_path / "b.xlsx")


def test_numbers_have_fifteen_digits_and_no_exponent_and_whole_ones_all_of_theirs():
    assert [plain_number(value) for value in ("-7", "1E+20", "1.5E-7", "123456789012345678")] == ["-7", "1" + "0" * 20, "0.00000015", "123456789012345678"]
