import codecs
import gzip

import pyarrow
import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.files.text_files import checked_encoding, lines_of

KOREAN = "질문,답변\n서울은 어디에 있나요?,한국\n똠방각하?,드라마\n"  # the first syllable of the last line is in cp949, and not in EUC-KR


def said(path, **how):
    return [[message["content"] for message in example.messages] for example in read(path, **how)]


@pytest.mark.parametrize(
    "name, data, encoding",
    [
        ("a.csv", KOREAN.encode(), None),
        ("a.csv", KOREAN.encode("utf-8-sig"), None),  # Excel's "CSV UTF-8"
        ("a.csv", KOREAN.encode("utf-8-sig"), "cp949"),  # the mark is certain
        ("a.csv", KOREAN.encode(), "cp949"),  # one of several, of which others are not UTF-8
        ("a.csv", KOREAN.encode("cp949"), "cp949"),  # Excel's "CSV" in Korean Windows
        ("a.csv", KOREAN.replace("\n", "\r\n").encode("cp949"), "CP949"),
        ("a.tsv", KOREAN.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"), None),  # Excel's "Unicode text"
        ("a.tsv", codecs.BOM_UTF16_BE + KOREAN.replace(",", "\t").encode("utf-16-be"), None),
        ("a.csv", KOREAN.encode("utf-32"), None),
        ("a.csv", KOREAN.encode("utf-16-le"), "utf-16-le"),
        ("a.csv", KOREAN.replace("\n", "\r").encode("utf-8"), None),  # Excel's "CSV (Macintosh)" ends its lines so
    ],
)
def test_files_of_korean_excel_give_their_records_exactly(tmp_path, name, data, encoding):
    (tmp_path / name).write_bytes(data)
    assert said(tmp_path / name, encoding=encoding) == [["서울은 어디에 있나요?", "한국"], ["똠방각하?", "드라마"]]


@pytest.mark.parametrize(
    "text, written, named",
    [
        ("서울", "utf-8", "cp949"), ("“café”", "utf-8", "cp949"), ("naïve café à la crème", "utf-8", "cp949"), ("naïve café à la crème", "utf-8", "cp1252"),
        ("짜", "cp949", "cp949"),  # two bytes, in UTF-8 the letter ¥
        ("짜장면", "cp949", "cp949"), ("naïve café à la crème", "cp1252", "cp1252"), ("서울", "utf-16-le", "utf-16-le"),
    ],
)
@pytest.mark.parametrize("before", [0, 70_000])
def test_a_file_is_utf_8_where_it_can_be_nothing_else_whatever_encoding_is_named(tmp_path, text, written, named, before):
    (tmp_path / "a.txt").write_bytes(("." * before + text).encode(written))
    assert "".join(lines_of(tmp_path / "a.txt", named)) == "." * before + text


@pytest.mark.parametrize(
    "data, encoding, named",
    [
        (KOREAN.encode("cp949"), None, "not UTF-8 text (line 1, byte 1 of it): it looks like cp949 (Korean Windows and Excel), in which it reads '질문,답변': "),
        (KOREAN.encode("cp949"), None, "give --encoding cp949"),
        (b"instruction,output\nHi," + "서울".encode("cp949"), None, "(line 2, byte 4 of it): it looks like cp949 (Korean Windows and Excel), in which it reads 'Hi,서울'"),
        (KOREAN.encode("cp949"), "euc-kr", "not euc_kr text (line 3, byte 1 of it): it looks like cp949"),
        (KOREAN.encode("utf-16-le"), None, "it looks like utf-16-le (without a byte order mark), in which it reads '질문,답변': if that is right, give --encoding utf-16-le"),
        (KOREAN.encode("utf-16-be"), "cp949", "not cp949 text: it looks like utf-16-be"),
        ("日本語のテスト,はい".encode("cp932"), None, "it looks like cp932 (Japanese), in which it reads '日本語のテスト,はい': "),
        ("中国的首都是北京".encode("gb18030"), None, "or gb18030 (Chinese), in which it reads '中国的首都是北京': if that is right, give --encoding cp949 or --encoding gb18030"),
        ("question,answer\nÀ la carte?,Non merci, monsieur".encode("cp1252"), None, "it looks like cp1252"),
        ("서울\n".encode() + "부산\n".encode("cp949"), None, "(line 2, byte 1 of it), though lines before it are: mend that line"),
        (KOREAN.encode("utf-16")[:-1], None, "not utf-16 text to its end"),
        (b"instruction,output\nQ,A\0B\n", None, "holds a NUL byte (byte 23)"),
        (b"PK\x03\x04", None, "a zip archive: an Excel workbook is read as .xlsx"),
        (b"\xd0\xcf\x11\xe0", None, "an old or a protected Excel workbook"),
        (gzip.compress(b"a", mtime=0), None, "compressed by gzip: end its name in .gz"),
    ],
)
def test_what_cannot_be_read_so_is_refused_with_what_it_looks_like(tmp_path, data, encoding, named):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError) as refused:
        list(lines_of(tmp_path / "a.csv", encoding))
    assert named in str(refused.value) and str(refused.value).startswith("a.csv ")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_is_read_as_it_is_asked_for_and_refused_where_it_is_cut_short(tmp_path, ending):
    text = "".join(f"줄 {number}\n" for number in range(100_000))
    packed = gzip.compress(text.encode("cp949"), 1) if ending == ".gz" else pyarrow.compress(text.encode("cp949"), "zstd", asbytes=True)
    whole, cut, other = (tmp_path / f"{name}.jsonl{ending}" for name in ("whole", "cut", "other"))
    whole.write_bytes(packed + packed)  # several parts behind one another are one text
    assert "".join(lines_of(whole, "cp949")) == text + text
    cut.write_bytes(packed[: len(packed) // 2])
    lines = lines_of(cut, "cp949")
    assert [next(lines) for _ in range(3)] == ["줄 0\n", "줄 1\n", "줄 2\n"]
    with pytest.raises(UserError, match=f"cut.jsonl{ending} is cut short or damaged"):
        list(lines)
    other.write_bytes(b"no archive")
    with pytest.raises(UserError, match=f"other.jsonl{ending} is cut short or damaged"):
        list(lines_of(other))


@pytest.mark.parametrize("encoding", ["cp9499", "base64", ""])
def test_an_encoding_that_there_is_not_is_refused_before_anything_is_read(tmp_path, encoding):
    with pytest.raises(UserError, match=f"encoding '{encoding}' is not known: cp949 is"):
        checked_encoding(encoding)
    (tmp_path / "a.jsonl").write_text('{"text": "T"}')
    with pytest.raises(UserError, match=f"encoding '{encoding}' is not known"):
        read(tmp_path / "a.jsonl", encoding=encoding)
