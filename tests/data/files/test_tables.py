import pytest

from seodang.data.errors import UserError
from seodang.data.files.tables import delimiter_of, text_table

NAMES = ("instruction", "output", "text")


def records(path, content, **how):
    path.write_bytes(content.encode())
    return [record for _, record in text_table(path, **how)]


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("a.csv", "instruction,output\nQ,A\n", [{"instruction": "Q", "output": "A"}]),
        ("a.csv", 'instruction,output\n"a;b;c","d;e"\n"f;g;h;i","j"\n', [{"instruction": "a;b;c", "output": "d;e"}, {"instruction": "f;g;h;i", "output": "j"}]),
        ("a.csv", "instruction;output\nQ, or so;A, b\n", [{"instruction": "Q, or so", "output": "A, b"}]),  # Excel where the comma is a decimal point
        ("a.csv", "instruction\toutput\nQ, or so;\tA\n", [{"instruction": "Q, or so;", "output": "A"}]),
        ("a.csv", "instruction|output\nQ, or so|A\n", [{"instruction": "Q, or so", "output": "A"}]),
        ("a.tsv", "instruction\toutput\n쉼표, 그리고;\tA\n", [{"instruction": "쉼표, 그리고;", "output": "A"}]),
        ("a.csv", "sep=;\ninstruction;output\nQ;A\n", [{"instruction": "Q", "output": "A"}]),  # Excel's own first line
        ("a.csv", "text\nfoo\n\nbar; baz\n", [{"text": "foo"}, {"text": "bar; baz"}]),
        ("a.csv", "text;more, here\nfoo;bar\nbaz;bee\n", [{"text": "foo", "more, here": "bar"}, {"text": "baz", "more, here": "bee"}]),  # semicolons name a key
        ("a.csv", 'instruction,output\n"Q\nand ""more""",A\n,,\n ,\nR,\n', [{"instruction": 'Q\nand "more"', "output": "A"}, {"instruction": "R", "output": ""}]),
        ("a.csv", "instruction,output,,\nQ,A,,\nR,B,,,,\n", [{"instruction": "Q", "output": "A"}, {"instruction": "R", "output": "B"}]),
        ("a.csv", "instruction,output\nQ,0.50\nR,1e5\n", [{"instruction": "Q", "output": "0.50"}, {"instruction": "R", "output": "1e5"}]),
        ("a.csv", ",instruction,output\n0,Q,A\n1,R,B\n", [{"instruction": "Q", "output": "A"}, {"instruction": "R", "output": "B"}]),
        ("a.csv", 'instruction, output\nQ, "A, ""or"" B"\nR, B\n', [{"instruction": "Q", "output": 'A, "or" B'}, {"instruction": "R", "output": "B"}]),
        ("a.csv", "instruction,output\nQ, A\n", [{"instruction": "Q", "output": " A"}]),  # the first row has no such space
        ("a.csv", "text\ntext\n", [{"text": "text"}]),
        ("a.csv", "instruction,output\n", []),
        ("a.csv", "", []),
    ],
)
def test_a_table_is_parted_where_its_first_row_is(tmp_path, name, content, found):
    assert records(tmp_path / name, content, known=NAMES) == found


def test_a_row_is_named_by_its_first_line(tmp_path):
    (tmp_path / "a.csv").write_text('sep=,\ntext\n"a\n\nb"\nc\n')
    assert [where for where, _ in text_table(tmp_path / "a.csv")] == ["a.csv line 3", "a.csv line 6"]


@pytest.mark.parametrize(
    "content, named",
    [
        ("instruction,output\nQ,A\nR\n", "a.csv line 3: only 1 of the 2 fields that the header names (instruction, output): put a text that holds a line break in quotes"),
        ("instruction,output\nQ,first\nsecond half\n", "a.csv line 3: only 1 of the 2 fields"),
        ("instruction,output\nQ,A, or B\n", "a.csv line 2: more fields than the header has, such as ' or B': put a text that holds the delimiter in quotes"),
        ("instruction,output,output\nQ,A,B\n", "a.csv line 1: two columns are called 'output': rename or delete one of them"),
        ("instruction,,output\nQ,x,A\n", "a.csv line 2: column 2 holds 'x' and has no name: give it one in the first row, or delete it"),
        ('instruction,output\nQ,A\n"R,B\nS,C\n', "a.csv line 3: not a table of commas: unexpected end of data: close each quoted text"),
        ('instruction,output\n"안녕" 하고,A\n', "a.csv line 2: not a table of commas: ',' expected after '\"'"),
        ("instruction,output\nQ,A\ninstruction,output\nR,B\n", "a.csv line 3: another table begins here, with 'instruction, output': delete that line"),
        ("\ufeffinstruction,output\nQ,A\n\ufeffoutput,instruction\nB,R\n", "a.csv line 3: another table begins here"),
        ("question;kind,answer\na;b,c\n", "a.csv: its first row can be parted at commas or semicolons"),
    ],
)
def test_a_torn_table_is_refused_where_it_is_torn(tmp_path, content, named):
    with pytest.raises(UserError) as refused:
        records(tmp_path / "a.csv", content)
    assert named in str(refused.value)


def test_a_nul_byte_far_into_a_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="a.csv line 20002: it holds a NUL byte"):
        records(tmp_path / "a.csv", "text\n" + "fine\n" * 20000 + "not\0fine\n")


def test_a_long_first_row_may_run_over_many_lines():
    assert delimiter_of(['"a\n', *["b\n"] * 60, 'c";d\n', "1;2\n"][:50], "a.csv") == ","  # cut: nothing is parted
    assert delimiter_of(['"a\n', 'c";d\n', "1;2\n"], "a.csv") == ";"
