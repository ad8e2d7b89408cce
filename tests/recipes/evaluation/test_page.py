from seodang.data.classification.choices import Choices
from seodang.recipes.evaluation.contenders import CHECKPOINT, Contender
from seodang.recipes.evaluation.page import by_change, write_page
from seodang.recipes.evaluation.report import Evaluation, cell, in_words
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.train.evaluation.case import Case
from seodang.train.evaluation.comparison import Estimate, Figure, compared
from seodang.train.evaluation.registry import parse_metrics


def cases(*answers):
    return [Case([answer], "ab cd") for answer in answers]


def test_the_greatest_change_comes_first_and_of_equal_ones_that_of_the_next_metric():
    metrics = parse_metrics(["exact", "chrf"])
    before, after = cases("ab cd", "x", "x", "ab"), cases("x", "x", "ab cd", "ab c")
    order = by_change(metrics, [before, after])
    assert set(order[:2]) == {0, 2} and order[2:] == [3, 1]
    assert by_change(metrics, [before]) == [1, 2, 3, 0]  # of a model alone the worst


def test_the_page_escapes_what_comes_from_outside(tmp_path):
    asked = Prompts([[{"role": "user", "content": "<b>?</b>"}], "raw"], [1, 2], references={0: "<i>", 1: "b"}, choices={1: Choices(("a", "b"), 1)})
    metrics = parse_metrics(["exact"])
    models = [[Case(["<script>alert(1)</script>"], "<i>"), Case(["b"], "b")], [Case(["<i>"], "<i>"), Case([], "b")]]
    contenders = [Contender(name, CHECKPOINT, name) for name in ("one & only", "two")]
    found = Evaluation(asked, contenders, metrics, models, {"all records": compared(metrics, models)}, settings={"resamples": 1000})
    write_page(str(tmp_path / "page.html"), found, 1)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "one &amp; only" in page and "&lt;b&gt;" in page
    assert page.count("<article>") == 1 and "1 of 2, those that differ most first (exact)" in page
    write_page(str(tmp_path / "page.html"), found, 2)
    assert "b (right)" in (tmp_path / "page.html").read_text(encoding="utf-8") and "no answer" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_figures_in_words():
    sure = Figure(Estimate(0.5, 0.4, 0.6, 8), Estimate(0.1, 0.05, 0.15, 7))
    assert cell(sure, 8) == "0.500 [0.400, 0.600]\n+0.100 [+0.050, +0.150] *"
    assert cell(Figure(Estimate(0.5, 0.4, 0.6, 7)), 8) == "0.500 [0.400, 0.600] of 7"
    assert cell(Figure(Estimate(None, None, None, 0)), 8) == "-"
    assert in_words(Estimate(40.25, 38.0, 42.0, 9)) == "40.2 [38.0, 42.0]"
