from math import log

import pytest

from seodang.train.maths.bits_per_byte import bits_per_byte


def test_by_hand():
    assert bits_per_byte(3 * log(2), 6) == pytest.approx(0.5)  # three tokens of a bit each, over six bytes
    assert bits_per_byte(10 * log(2), 4, uncoded=2, vocab_size=8) == pytest.approx((10 + 2 * 3) / 4)  # two given ones, each one of eight: three bits
    with pytest.raises(ValueError, match="at least one byte"):
        bits_per_byte(1.0, 0)
