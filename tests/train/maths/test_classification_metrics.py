import math

import pytest
import torch

from seodang.train.maths.classification_metrics import (
    accuracy,
    class_scores,
    confusion_matrix,
    decisions,
    decisions_of,
    macro_f1,
    micro_f1,
    pearson,
    ranks,
    regression_metrics,
)

TRUTH = torch.tensor([0, 0, 0, 0, 1, 1, 2])
PREDICTED = torch.tensor([0, 0, 0, 1, 1, 0, 1])


def test_a_confusion_matrix_has_a_row_a_true_class():
    assert confusion_matrix(TRUTH, PREDICTED, 3).tolist() == [[3, 1, 0], [1, 1, 0], [0, 1, 0]]


def test_scores_of_three_classes_by_hand():
    matrix = confusion_matrix(TRUTH, PREDICTED, 3)
    precision, recall, f1 = (values.tolist() for values in class_scores(decisions_of(matrix)))
    assert precision == pytest.approx([3 / 4, 1 / 3, 0])  # of class 2 nothing was predicted
    assert recall == pytest.approx([3 / 4, 1 / 2, 0])
    assert f1 == pytest.approx([3 / 4, 2 / (3 + 2), 0])
    assert accuracy(matrix) == pytest.approx(4 / 7)
    assert macro_f1(decisions_of(matrix)) == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)


def test_a_class_that_occurs_nowhere_does_not_count_in_the_mean():
    wide = confusion_matrix(TRUTH, PREDICTED, 5)
    assert macro_f1(decisions_of(wide)) == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)


def test_micro_f1_of_labels_pools_their_decisions():
    truth = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0]]).bool()
    predicted = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 0, 0]]).bool()
    found = decisions(truth, predicted)
    assert found.tolist() == [[2, 0, 0], [0, 1, 1], [1, 0, 1]]
    assert micro_f1(found) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert macro_f1(found) == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_equal_values_share_the_mean_of_their_ranks():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_correlations_and_error_by_hand():
    truth, predicted = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0])
    found = regression_metrics(truth, predicted)
    assert found["mse"] == pytest.approx((0 + 4 + 36) / 3)
    assert found["spearman"] == pytest.approx(1.0)  # the order is right
    assert found["pearson"] == pytest.approx(8 / math.sqrt(2 * 98 / 3))  # centred: -1 0 1 and -11/3 -2/3 13/3
    assert math.isnan(pearson(truth.double(), torch.ones(3).double()))
