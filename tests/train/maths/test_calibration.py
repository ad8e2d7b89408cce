import pytest
import torch

from seodang.train.maths.calibration import expected_calibration_error, reliability


def test_the_error_of_five_predictions_by_hand():
    confidence = torch.tensor([0.10, 0.30, 0.40, 0.80, 1.00])
    right = torch.tensor([0, 1, 0, 1, 1])
    found = reliability(confidence, right, bins=2)
    assert found.counts.tolist() == [3, 2]
    assert found.confidence.tolist() == pytest.approx([0.8 / 3, 0.9])
    assert found.accuracy.tolist() == pytest.approx([1 / 3, 1.0])
    assert expected_calibration_error(found) == pytest.approx(3 / 5 * (1 / 3 - 0.8 / 3) + 2 / 5 * 0.1)


def test_a_bin_has_its_upper_border():
    found = reliability(torch.tensor([0.0, 0.5, 0.5001, 1.0]), torch.ones(4), bins=2)
    assert found.counts.tolist() == [2, 2]


def test_who_is_right_as_often_as_he_says_has_no_error():
    confidence = torch.tensor([0.75] * 4 + [0.5] * 2)
    assert expected_calibration_error(reliability(confidence, torch.tensor([1, 1, 1, 0, 1, 0]))) == pytest.approx(0)


def test_who_is_sure_and_always_wrong_has_an_error_of_one():
    assert expected_calibration_error(reliability(torch.ones(3), torch.zeros(3))) == pytest.approx(1.0)
