import json
import re
from html.parser import HTMLParser

import pytest

from seodang.train.run.line_chart import Line, finite, in_words, line_chart, table_of
from seodang.train.run.run_page import CHARTS, Chart, Sample, draw_curves, lines_of, panelled, to_html, write_page

VOID = {"meta", "br"}


class Page(HTMLParser):
    """The page's tags as a tree of counts, its text, and what is left open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):  # which SVG may close itself
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        self.texts.append(data)


def log(rewards, start=1):
    return [{"step": start + i, "reward/mean": reward, "kl": 0.1 * i, "length/mean": 7.0, "entropy": 2.0} for i, reward in enumerate(rewards)]


def curves(chart):
    """The points of each curve, [x, y] in the picture."""
    paths = re.findall(r'<g class="curve">\s*<path d="([^"]*)"', chart)
    return [[tuple(map(float, point)) for point in re.findall(r"[ML] (\S+) (\S+)", path)] for path in paths]


def ticks(chart):
    """The numbers along the axes with where they stand: across by x, up by y (the text's foot is a little under its line)."""
    found = re.findall(r'text-anchor: (middle|end)[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([−\d.]+)<', chart)
    return [{float(text.replace("−", "-")): float(place) for anchor, *places, text in found if anchor == wanted for place in [places[index]]}
            for index, wanted in enumerate(("middle", "end"))]  # fmt: skip


def test_points_stand_where_their_values_say():
    chart = line_chart("Reward", [finite("run", [(0, 0.0), (5, 0.25), (10, 1.0)])])
    [points] = curves(chart)
    across, up = ticks(chart)
    assert {0, 10} <= across.keys() and {0, 1} <= up.keys()
    assert [x for x, _ in points] == pytest.approx([across[0], (across[0] + across[10]) / 2, across[10]], abs=0.01)
    height = up[0] - up[1]
    assert height > 100 and [points[0][1] - y for _, y in points] == pytest.approx([0, height / 4, height], abs=0.01)


def test_bars_reach_as_far_as_the_errors_of_their_values():
    chart = line_chart("Accuracy", [Line("run", [0, 5, 10], [0.0, 0.5, 1.0], errors=[0.0, 0.25, 0.1])], over="source tokens")
    _, up = ticks(chart)
    [points], height = curves(chart), up[0] - up[1]
    bars = re.findall(r'<path d="M \S+ (\S+) \nL \S+ (\S+) \n" style="fill: none; stroke: var\(--c0\)"', chart)
    reached = [(float(low) - y, y - float(high)) for (_, y), (low, high) in zip(points, bars, strict=True)]
    assert reached == [pytest.approx((height * error,) * 2, abs=0.01) for error in (0, 0.25, 0.1)]
    assert ">source tokens<" in chart and "from 0 at source tokens 0 to 1 at source tokens 10" in chart


def test_curves_of_ones_own_stand_before_the_logs_and_say_what_they_are_over():
    page = to_html({"run": log([1, 2])}, curves=[(Chart("Accuracy", "share", over="source tokens"), [Line("LSTM", [7, 9], [0.5, 0.25])])])
    assert re.findall(r"<h3>(\w+)", page)[:2] == ["Accuracy", "Reward"]
    assert re.findall(r'<th scope="col">(source tokens|step)</th>', page) == ["source tokens", *["step"] * 4]
    assert '<tr><th scope="row">9</th><td>0.25</td></tr>' in page


def test_the_same_curves_give_the_same_picture():
    lines = [finite("run", [(0, 0.0), (10, 1.0)]), finite("other", [(0, 3.0), (10, 2.0)], colour=1, dash=1)]
    assert line_chart("Reward", lines) == line_chart("Reward", lines)
    assert len(curves(line_chart("Reward", lines))) == 2 and "var(--c1)" in line_chart("Reward", lines)
    assert lines[1].style == "stroke: var(--c1); stroke-dasharray: 7 4" and lines[0].style.endswith("none")


def test_what_is_no_number_is_left_out():
    line = finite("run", [(1, 0.5), (2, float("nan")), (3, None), (4, float("inf")), (5, 0.7)])
    assert (line.steps, line.values) == ([1, 5], [0.5, 0.7])
    assert line_chart("Reward", [finite("run", [(1, float("nan"))])]) == ""


def test_a_curve_is_told_in_words():
    assert in_words(finite("rounds", [(1, 0.25), (2, -1.0), (8, 0.75)])) == "rounds: from 0.25 at step 1 to 0.75 at step 8, least -1, greatest 0.75."
    assert in_words(finite("one", [(3, 2.0)])) == "one: 2 at step 3."


def test_a_long_table_keeps_the_first_and_the_last_step():
    table = table_of([finite("run", [(step, step / 10) for step in range(1, 101)]), finite("late", [(100, 3.0)])], most=5)
    assert table == [(1, [0.1, None]), (26, [2.6, None]), (51, [5.1, None]), (75, [7.5, None]), (100, [10, 3.0])]
    page = to_html({"run": [{"step": step, "kl": step / 10} for step in (1, 26)]})
    assert re.findall(r'<th scope="row">(\d+)</th><td>([\d.]+)</td>', page) == [("1", "0.1"), ("26", "2.6")]


def test_several_runs_share_a_chart_and_differ_in_colour():
    [reward] = [chart for chart in CHARTS if chart.title == "Reward"]
    lines = lines_of(reward, {"one": log([0, 1]), "two": [*log([1, 2]), {"step": 2, "eval_reward": 3.0}], "none": []})
    assert [(line.name, line.values, line.colour, line.dash) for line in lines] == [
        ("one, sampled", [0, 1], 0, 0),
        ("two, sampled", [1, 2], 1, 0),
        ("two, held out", [3.0], 1, 1),
    ]


def test_the_page_is_whole_loads_nothing_and_tells_its_pictures_in_words():
    page = to_html({"shuffled": log([0.3, 0.2]), "learned": log([0.3, 0.9])}, title="Rewards")
    read = Page(page)
    assert read.open == []  # every tag is closed
    assert read.tags.count("figure") == 4 and read.attributes.count(("g", "class", "curve")) == 8
    labels = [value for tag, name, value in read.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels[0].startswith("Reward. shuffled, sampled: from 0.3 at step 1 to 0.2 at step 2") and "learned, sampled: from 0.3" in labels[0]
    assert not any(name in ("src", "href", "action") for _, name, _ in read.attributes) and "url(" not in page and "<script" not in page
    assert "prefers-color-scheme: dark" in page and '<html lang="en">' in page


def test_everything_from_data_is_escaped():
    nasty = '<script>alert("x")</script>&"\''
    page = to_html({nasty: log([1, 2]), "b": log([2, 1])}, [Sample(nasty, nasty, nasty, 0.5, 1.0)], title=nasty, figures=[(nasty, nasty)])
    read = Page(page)
    assert read.open == [] and "script" not in read.tags
    # title and heading, a sample, a figure; and the run in the legends and the tables of KL, length and entropy
    assert read.texts.count(nasty) == 2 + 3 + 2 + 2 * 3


def test_samples_stand_beside_each_other_with_their_rewards():
    page = to_html({}, [Sample("Where is Suwon?", "Suwon", "SOUTH KOREA", 0.0, 0.98765), Sample("And Leeds?", "", "UK")])
    assert re.findall(r'<td class="number">([^<]*)</td>', page) == ["0.000", "0.988", "", ""]
    assert "Nothing was logged." in page and "reward after" in page
    assert "reward after" not in to_html({}, [Sample("a", "b", "c")])


def test_write_page_reads_the_runs_logs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log([0.1, 0.7])) + '{"step": 3, "rew', encoding="utf-8")
    path = write_page(tmp_path / "out" / "page.html", {"run": run, "missing": tmp_path / "missing"}, title="A page")
    assert "from 0.1 at step 1 to 0.7 at step 2" in path.read_text(encoding="utf-8")
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_curves_are_drawn_where_there_are_any(tmp_path):
    path, drawn = tmp_path / "curves.png", []
    path.write_bytes(b"an earlier run's")
    assert draw_curves(tmp_path) is None and not path.exists()
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log([0.1, 0.7, 0.5])), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("seodang.train.run.run_page.panelled", lambda panels: drawn.append(panelled(panels)) or drawn[-1])
        assert draw_curves(tmp_path, ["reward/mean", "kl", "never", "length/mean"]) == path and path.read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in drawn[0].axes] == ["reward/mean", "kl", "length/mean"]  # and no empty fourth
    [line] = drawn[0].axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [0.1, 0.7, 0.5])
