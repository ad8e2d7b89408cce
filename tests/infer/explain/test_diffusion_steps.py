"""The steps of diffusion as lines, as a heat map in the terminal and as a picture; from steps written by hand."""

import math

import pytest

from seodang.infer.explain.diffusion_picture import chances, draw
from seodang.infer.explain.diffusion_steps import Moment, fitting, history, moments, shade, stretches, when_certain
from seodang.infer.requests.trace import DiffusionStep
from seodang.infer.text.token_labels import TokenLabels

HALF = math.log(0.5)


@pytest.fixture
def names(byte_tokenizer):
    return TokenLabels(byte_tokenizer(260))


@pytest.fixture
def steps(byte_tokenizer):
    """Of a canvas of five with an `x` given at its end: `a` becomes certain, then `b` and ` `, `b` is open again, and is `c` in the end; one stays open."""
    a, b, c, space, x = (byte_tokenizer(260)(each)["input_ids"][0] for each in ("a", "b", "c", " ", "x"))
    return [
        DiffusionStep(1, ((1, a, 0.9),), (None, a, None, None, x), 1, (HALF,)),
        DiffusionStep(2, ((0, b, 0.8), (2, space, 0.7)), (b, a, space, None, x), 2, (0.0, HALF)),
        DiffusionStep(3, (), (None, a, space, None, x), 3, (), remasked=(0,)),
        DiffusionStep(4, ((0, c, 0.8),), (c, a, space, None, x), 4, (HALF,)),
    ]


def test_a_line_a_step_says_what_is_open_and_what_is_new(steps, names):
    lines = list(history(steps, names))
    assert [line.plain for line in lines] == [
        "Step 1: <|mask|>a<|mask|><|mask|>x", "Step 2: ba <|mask|>x", "Step 3: <|mask|>a <|mask|>x", "Step 4: ca <|mask|>x",
    ]  # fmt: skip
    assert [(line.plain[span.start : span.end], span.style) for line in lines[1:2] for span in line.spans if span.style] == [
        ("b", "bold green"), (" ", "bold green"), ("<|mask|>", "dim"),
    ]  # fmt: skip
    assert [line.plain for line in fitting(steps, names, 34)] == [line.plain for line in lines]
    assert [line.plain for line in fitting(steps, names, 33)] == ["Step 1: ░a░░x", "Step 2: ba ░x", "Step 3: ░a ░x", "Step 4: ca ░x"]


def test_where_there_is_little_room_special_tokens_that_are_repeated_are_counted(names):
    canvas = (40, 2, 2, 2, 40, 2)
    step = DiffusionStep(1, tuple((position, id, 1.0) for position, id in enumerate(canvas)), canvas, 1, (0.0,) * 6)
    letter = names(40)
    assert stretches(step, names) == [("new", f"{letter}<|im_end|>×3{letter}<|im_end|>")]
    assert stretches(step, names, compact=False) == [("new", f"{letter}{'<|im_end|>' * 3}{letter}<|im_end|>")]


def test_a_character_is_whole_where_all_its_tokens_are_there(tokenizer):
    names, ids = TokenLabels(tokenizer), tokenizer("a수원.", add_special_tokens=False)["input_ids"]
    spread = names.whole(ids)
    assert sum(spread) == len(ids) and max(spread) > 1 and names.whole([]) == [] and names.whole([2, ids[1], 2]) == [1, 1, 1]
    last = sum(spread[: spread.index(max(spread)) + 1]) - 1  # what completes the first character that is spread
    before = tuple(id if position != last else None for position, id in enumerate(ids))
    first = DiffusionStep(1, tuple((position, id, 1.0) for position, id in enumerate(before) if id), before, 1, (0.0,) * (len(ids) - 1))
    second = DiffusionStep(2, ((last, ids[last], 1.0),), tuple(ids), 2, (0.0,))
    assert "<0x" in "".join(text for _, text in stretches(first, names))
    assert "".join(text for _, text in stretches(second, names)) == "a수원." and ("old", "a") == stretches(second, names)[0]
    [new] = [text for kind, text in stretches(second, names) if kind == "new"]
    assert new in "수원"


def test_the_moment_of_a_position_is_the_last_in_which_it_became_certain(steps, names):
    a, c, space, x = steps[0].canvas[1], steps[3].canvas[0], steps[1].canvas[2], steps[0].canvas[4]
    assert moments(steps) == [Moment(4, c, HALF, 1), Moment(1, a, HALF, 0), Moment(2, space, HALF, 0), None, Moment(0, x, 0.0, 0)]
    text = when_certain(steps, names, 60)
    head, tokens, numbers = text.plain.splitlines()
    assert head.startswith("when each token became certain: step 1 ") and head.endswith(" step 4; ↺: had been certain before")
    assert tokens.split() == ["c", "a", "␣", "░", "x"] and numbers.split() == ["4↺", "1", "2", "-", "given"]
    assert [tokens.index(each) for each in "ca␣x"] == [numbers.index(each) for each in ("4↺", "1", "2", "given")]  # one over the other
    styles = {text.plain[span.start : span.end].strip(): span.style for span in text.spans if span.start > len(head)}
    assert (styles["4↺"], styles["1"], styles["2"], styles["-"]) == (shade(1.0), shade(0.0), shade(1 / 3), "dim")
    assert [line.split() for line in when_certain(steps, names, 11).plain.splitlines()[1:]] == [["c", "a"], ["4↺", "1"], ["␣", "░"], ["2", "-"], ["x"], ["given"]]


def test_a_picture_has_the_probability_of_each_token_from_its_step_on(steps, names, tmp_path):
    nan = math.nan
    want = [[nan, 0.5, nan, nan, 1], [1, 0.5, 0.5, nan, 1], [nan, 0.5, 0.5, nan, 1], [0.5, 0.5, 0.5, nan, 1]]
    assert chances(steps) == [pytest.approx(row, nan_ok=True) for row in want]
    draw(steps, names, tmp_path / "steps.png", "수원 $5")
    from matplotlib.image import imread

    image = imread(tmp_path / "steps.png")[..., :3]
    grey = (abs(image - 0.88) < 0.01).all(-1).sum()
    dark, middle = (abs(image - colour).max(-1) < 0.02 for colour in ([0.267, 0.005, 0.329], [0.128, 0.567, 0.551]))  # viridis of 1 and of a half
    cells = dark.sum() / 5, middle.sum() / 8, grey / 7  # so many pixels has a cell of each kind
    assert max(cells) < 1.15 * min(cells) and min(cells) > 900


def test_nothing_written_is_cut_off_a_picture_of_one_step(steps, names, tmp_path):
    from matplotlib.image import imread

    draw(steps[:1], names, tmp_path / "step.png", "a title that is wider than five tokens, " * 3)
    image = imread(tmp_path / "step.png")[..., :3]
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 1).all()
