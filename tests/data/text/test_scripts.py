import pytest

from seodang.data.text.scripts import SCRIPTS, script_share


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [("서울 is big.", "ko", 2 / 7), ("서울 is big.", "en", 5 / 7), ("café", "fr", 1.0), ("東京へ", "ja", 1.0), ("東京へ", "zh", 2 / 3), ("Жук 3", "ru", 1.0), ("12 + 3", "en", 0.0)],
)
def test_the_share_of_letters_in_a_languages_script(text, language, share):
    assert script_share(text, language) == pytest.approx(share) and language in SCRIPTS
