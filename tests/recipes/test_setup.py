"""`seodang setup --examples` in folders that have something in the way."""

import pytest

from seodang.recipes.starting import setup


@pytest.mark.parametrize("place", ["data", "data/samples", "recipes"])
def test_what_stands_in_the_way_of_a_folder_is_told(place, tmp_path, capsys):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to("nowhere")
    assert setup.main(["--examples", str(tmp_path)]) == 2
    assert f"{tmp_path / place}" in (told := capsys.readouterr().err) and "cannot be written (File exists): name another folder, or move away" in told
