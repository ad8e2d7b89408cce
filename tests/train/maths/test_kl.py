import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seodang.data.errors import UserError
from seodang.train.maths.kl import AdaptiveKL, FixedKL, kl_estimate

HALF, QUARTER = math.log(0.5), math.log(0.25)


def test_estimators_by_hand():
    logprobs, reference = torch.tensor([HALF, QUARTER], dtype=torch.float64), torch.tensor([QUARTER, HALF], dtype=torch.float64)  # r: 1/2, 2
    ln2 = math.log(2)
    assert kl_estimate(logprobs, reference, "k1").tolist() == pytest.approx([ln2, -ln2])
    assert kl_estimate(logprobs, reference, "k2").tolist() == pytest.approx([ln2**2 / 2, ln2**2 / 2])
    assert kl_estimate(logprobs, reference, "k3").tolist() == pytest.approx([ln2 - 1 / 2, 1 - ln2])


def mean_estimate(policy, reference, kind):
    """The exact mean over what the policy samples, by enumeration of the vocabulary."""
    return (policy * kl_estimate(policy.log(), reference.log(), kind)).sum().item()


def divergence(policy, reference):
    return sum(p * math.log(p / q) for p, q in zip(policy.tolist(), reference.tolist(), strict=True))


weights = st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5).map(lambda some: torch.tensor(some, dtype=torch.float64) / sum(some))


@settings(max_examples=50, deadline=None)
@given(weights, weights)
def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(policy, reference):
    exact = divergence(policy, reference)
    assert mean_estimate(policy, reference, "k1") == pytest.approx(exact, abs=1e-12)
    assert mean_estimate(policy, reference, "k3") == pytest.approx(exact, abs=1e-12)
    assert kl_estimate(policy.log(), reference.log(), "k3").min() >= 0


def test_k2_is_nearly_unbiased_where_the_distributions_are_near():
    policy = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    near, far = torch.tensor([0.41, 0.29, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    bias = lambda reference: mean_estimate(policy, reference, "k2") / divergence(policy, reference) - 1  # noqa: E731
    assert abs(bias(near)) < 0.01 < 0.1 < abs(bias(far))


def test_a_tiny_difference_keeps_its_k3():
    step = torch.tensor([2.0**-20])  # in float32 r - 1 - log r by its letters would give 0 or worse
    assert kl_estimate(torch.zeros(1), step, "k3").item() == pytest.approx(0.5 * 2.0**-40, rel=0.2, abs=2.0**-44)


def test_unknown_estimators_are_refused():
    with pytest.raises(UserError, match="one of k1, k2, k3, got 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_the_adaptive_coefficient_follows_the_error():
    control = AdaptiveKL(0.1, target=6.0, horizon=1000)
    control.update(6.6, samples=100)  # a tenth too far, a tenth of the horizon: 1.01
    assert control.coefficient == pytest.approx(0.101)
    control.update(6.0, samples=100)
    assert control.coefficient == pytest.approx(0.101)
    control.update(60.0, samples=100)  # the error counts as 0.2
    assert control.coefficient == pytest.approx(0.101 * 1.02)
    control.update(-1.0, samples=100)  # an estimate may be negative: -0.2
    assert control.coefficient == pytest.approx(0.101 * 1.02 * 0.98)


def test_the_adaptive_coefficient_holds_a_policy_at_its_target():
    control = AdaptiveKL(0.01, target=4.0, horizon=500)
    for _ in range(500):
        control.update(1 / control.coefficient, samples=50)  # the weaker the pull, the farther the policy goes
    assert 1 / control.coefficient == pytest.approx(4.0, rel=1e-3)


def test_the_state_goes_on_where_it_was():
    control, again = AdaptiveKL(0.1, 6.0, 1000), AdaptiveKL(0.1, 6.0, 1000)
    control.update(9.0, 100)
    again.load_state_dict(control.state_dict())
    assert again.coefficient == control.coefficient != 0.1


def test_a_fixed_coefficient_stays_as_it_is_set():
    control = FixedKL(0.05)
    control.update(1e6, 100)
    control.load_state_dict({"coefficient": 0.7})
    assert control.coefficient == 0.05
    assert FixedKL(0.0).state_dict() == {"coefficient": 0.0}


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: FixedKL(-0.1), "at least 0, got -0.1"),
        (lambda: FixedKL(math.nan), "got nan"),
        (lambda: AdaptiveKL(0.0, 6.0, 1000), "coefficient must be a number above 0, got 0.0: multiplying never moves it"),
        (lambda: AdaptiveKL(0.1, -6.0, 1000), "target must be a number above 0, got -6.0"),
        (lambda: AdaptiveKL(0.1, 6.0, 0), "horizon must be a number above 0, got 0"),
        (lambda: AdaptiveKL(0.1, 6.0, 10).update(6.0, 50), "50 answers does not fit a horizon of 10"),
    ],
)
def test_settings_out_of_range_are_refused(build, says):
    with pytest.raises(UserError, match=says):
        build()


def test_a_broken_kl_is_never_learned_from():
    with pytest.raises(ValueError, match="the KL is nan"):
        AdaptiveKL(0.1, 6.0, 1000).update(math.nan, 10)
