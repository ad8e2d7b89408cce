import re

import pytest
import torch

from seodang.train.run.heat_map import heat_figure, heat_map
from seodang.train.run.run_page import to_html

WEIGHTS = torch.tensor([[0.9, 0.05, 0.05], [0.125, 0.625, 0.25]])
DOWN, ACROSS = ["삼", "a$b$"], ["3", "<b>", "</s>"]


def test_each_cell_is_as_opaque_as_its_weight():
    drawn = heat_figure(WEIGHTS.tolist(), DOWN, ACROSS).axes[0]
    cells = {(round(cell.get_y() + 0.5), round(cell.get_x() + 0.5)): cell.get_alpha() for cell in drawn.patches}
    assert cells == {(row, column): pytest.approx(WEIGHTS[row, column].item()) for row in range(2) for column in range(3)}
    assert [each.get_text() for each in drawn.get_yticklabels()] == DOWN and [each.get_text() for each in drawn.get_xticklabels()] == ACROSS
    assert drawn.get_ylim() == (1.5, -0.5)  # the first row is the uppermost


def test_the_picture_has_the_weights_in_the_pages_colour_and_tells_them_in_words_and_as_a_table():
    picture = heat_map("LSTM: 3", WEIGHTS, DOWN, ACROSS)
    opacities = [float(found) for found in re.findall(r'fill: var\(--c0\); opacity: ([\d.]+)', picture.svg)]
    assert opacities == pytest.approx(WEIGHTS.flatten().tolist(), abs=1e-5)
    assert 'aria-label="LSTM: 3. 삼: most at 3, 0.90; a$b$: most at &lt;b&gt;, 0.62."' in picture.svg and "<b>" not in picture.svg
    page = to_html({}, pictures=[picture], notes=["one <i>"])
    row = re.search(r'<tr><th scope="row">a\$b\$</th>(.*)</tr>', page)[1]
    assert re.findall(r"<td>([^<]*)</td>", row) == ["0.12", "0.62", "0.25"] and '<th scope="col">&lt;b&gt;</th>' in page and "<p>one &lt;i&gt;</p>" in page
