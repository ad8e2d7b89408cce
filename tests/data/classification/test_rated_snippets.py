import io
import tarfile
import zipfile

import pytest

from seodang.data.classification.rated_snippets import FILES, INNER, clear_snippets, rated_snippets
from seodang.data.errors import UserError

TEXTS = ("1\t2.5\tA fine film.\r\n2\t-0.6\ttepid\r\n3\t-1.5\tBad\there\r\n", "1_1\t0.8\tit works\r\n1_2\t-3\tbroken\r\n2_1\t2.5\tA fine film.\r\n")


def archive(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as packed:
        for name, text in zip(FILES, TEXTS, strict=True):
            info = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            info.size = len(text.encode())
            packed.addfile(info, io.BytesIO(text.encode()))
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as outer:
        outer.writestr(INNER, inner.getvalue())
    return tmp_path / "archive.zip"


def test_snippets_come_with_their_ratings(tmp_path):
    found = rated_snippets(archive(tmp_path))
    assert found == [("A fine film.", 2.5), ("tepid", -0.6), ("Bad\there", -1.5), ("it works", 0.8), ("broken", -3.0), ("A fine film.", 2.5)]
    drawn = clear_snippets(found, 4, seed=0)
    assert sorted(drawn) == [("A fine film.", 2.5), ("Bad\there", -1.5), ("broken", -3.0), ("it works", 0.8)]  # each once, the tepid one not
    assert drawn == clear_snippets(found, 4, seed=0)
    with pytest.raises(UserError, match="5 snippets are asked for, but only 4"):
        clear_snippets(found, 5, seed=0)


def test_an_archive_that_is_not_there_or_another_is_refused_with_what_fetches_it(tmp_path):
    with pytest.raises(UserError, match="pip download"):
        rated_snippets(tmp_path / "none.zip")
    (tmp_path / "other.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is not the source archive of vaderSentiment 0.5"):
        rated_snippets(tmp_path / "other.zip")
