import lzma
import re
import zlib
from itertools import islice

import pytest

from seodang.data.text.documents import Part
from seodang.data.text.python_documentation import python_documentation
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes.demos import demo_pretrain


@pytest.fixture
def documentation(monkeypatch):
    """A few documents in place of all that Python brings."""
    texts = [(f"module{i}", f"The method number {i} returns the value. If the file is there, it is read {i} times.\n" * 4) for i in range(24)]
    monkeypatch.setattr(demo_pretrain, "python_documentation", lambda: iter(texts))


def test_the_demo_measures_bits_a_byte_beside_compressors_and_writes_by_three_strategies(documentation, tmp_path, capsys):
    """The whole demo on a tiny model and little text; `make demo-pretrain` trains on all of it."""
    out = tmp_path / "out"
    command = ["--hidden_size", 32, "--layers", 1, "--heads", 2, "--vocab_size", 300, "--max_steps", 30, "--learning_rate", 2e-2, "--output_dir", out,
               "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    assert demo_pretrain.main([*map(str, command)]) == 0
    printed = capsys.readouterr().out
    assert "PSF License" in printed and all(f"│ {name}" in printed for name in ("greedy", "top-p", "contrastive"))
    [line] = [line for line in printed.splitlines() if line.startswith("heldout ")]
    bits, step, gzip, xz = map(float, re.fullmatch(r"heldout bits_per_byte=(\S+) step=(\d+) gzip=(\S+) xz=(\S+)", line).groups())
    before = float(re.search(r"untrained\s+│\s+(\S+)", printed)[1])
    assert step == 30 and bits < before / 2 and 0 < gzip < xz  # so little text that the compressors' headers weigh
    verify(out)
    assert read_manifest(out)["paradigm"] == "causal"


def test_compressors_by_hand():
    parts, whole = [Part("a", "so it is" * 9), Part("b", "가나다")], ("so it is" * 9 + "\n가나다").encode()
    assert demo_pretrain.compressors(parts, 72 + 9) == {"gzip -9": 8 * len(zlib.compress(whole, 9)) / 81, "xz -9": 8 * len(lzma.compress(whole, preset=9)) / 81}


def test_pythons_documentation_is_prose_in_documents_of_their_own_the_same_each_time():
    some = [*islice(python_documentation(), 75)]
    assert some == [*islice(python_documentation(), 75)]
    names, texts = zip(*some, strict=True)
    assert len(set(names)) == 75 and min(map(len, texts)) >= 400 and "help('assert')" in names
    paragraphs = [paragraph.strip() for text in texts for paragraph in text.split("\n\n") if len(paragraph) >= 60]
    assert len(paragraphs) == len(set(paragraphs)) > 1000  # what is trained on says nothing word for word of what is held out


@pytest.mark.parametrize(("words", "told"), [(["--minutes", "0"], "minutes must be above 0"), (["--heads", "5"], "hidden_size 192 cannot be shared out among 5 heads")])
def test_values_that_make_no_sense_are_refused(words, told, capsys):
    assert demo_pretrain.main(words) == 2
    assert told in capsys.readouterr().err
