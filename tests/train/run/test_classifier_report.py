import re

import torch

from seodang.infer.explain.diffusion_picture import families
from seodang.train.maths.classification_metrics import measure
from seodang.train.run.classifier_report import confusion_figure, matrix_lines, pictures, reliability_lines, report_lines, write_pictures
from seodang.train.run.run_page import Picture, to_html

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def found():
    """Two of class a, one of which is taken for b, and two of b that are found; how sure the model is stands in the probabilities."""
    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.2, 0.8]]).log()
    return measure(logits, torch.tensor([0, 0, 1, 1]), SINGLE)


def test_scores_and_confusions_as_text():
    lines = report_lines(found(), ["bad", "very good"])
    assert lines[:3] == [
        "class      precision  recall      F1  records",
        "bad            1.000   0.500   0.667        2",
        "very good      0.667   1.000   0.800        2",
    ]
    assert lines[4:7] == ["true        bad  very good  (predicted)", "bad           1          1", "very good     0          2"]


def test_of_many_classes_the_pairs_that_are_mistaken_most():
    names = [f"c{number}" for number in range(13)]
    matrix = torch.diag(torch.full((13,), 5))
    matrix[3, 4], matrix[4, 3] = 2, 7
    assert matrix_lines(matrix.tolist(), names)[1:] == ["      7  c4 as c3", "      2  c3 as c4"]


def test_a_bar_of_the_share_that_is_right_is_marked_where_it_should_end():
    [head, line] = reliability_lines(measure(torch.tensor([[0.8, 0.2]] * 2).log(), torch.tensor([0, 1]), SINGLE).reliability)
    assert re.split(r"\s{2,}", line.strip()) == ["0.800", "0.500", "2", "█" * 15, "|"] and line.index("|") - line.index("█") == 24  # 0.8 of 30


def test_pictures_say_their_numbers_in_words_and_follow_the_pages_colours(tmp_path):
    [(title, matrix, _), (other, reliable, _)] = pictures(found(), ["a", "b <i>"])
    assert (title, other) == ("Confusion matrix", "Reliability")
    assert "a: 1 as a, 1 as b &lt;i&gt;; b &lt;i&gt;: 2 as b &lt;i&gt;." in matrix and "0.700 0.000 1" in reliable
    assert "var(--c0)" in matrix and "#1f66ad" not in matrix + reliable and "<i>" not in matrix
    page = to_html({}, pictures=[Picture(title, matrix)], tables={"Worst": [("said",), ("<b>",)]})
    assert matrix in page and "&lt;b&gt;" in page
    drawn = write_pictures(tmp_path, found(), ["a", "b"])
    assert [path.name for path in drawn] == ["confusion.png", "reliability.png"] and all(path.read_bytes()[:4] == b"\x89PNG" for path in drawn)
    several = measure(torch.zeros(2, 3), torch.ones(2, 3), MULTI)
    assert [path.name for path in write_pictures(tmp_path, several, ["a", "b", "c"])] == ["reliability.png"]
    assert not (tmp_path / "confusion.png").exists()  # the earlier run's


def test_names_of_classes_stand_in_the_picture_as_they_are(tmp_path):
    """Hangul in a font of this machine that has it, and no dollar sign begins a formula."""
    axes = confusion_figure([[1, 0], [0, 1]], ["긍정", "a$b$c"]).axes[0]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    assert [label.get_text() for label in labels] == ["긍정", "a$b$c"] * 2
    assert all(label.get_fontfamily() == families() and not label.get_parse_math() for label in labels)
