"""Agreement and steadiness measures against scipy's, and against numbers done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, spearmanr

from algd.analysis.calibration import (
    auroc,
    cost_to_go,
    critic_calibration,
    kkt_residual,
    oscillation,
    rank_correlation,
    relative_l1,
    slackness_residual,
)

# Few distinct values, so that ties are common.
VALUES = st.lists(st.integers(-3, 3), min_size=3, max_size=30)


def test_relative_l1_by_hand():
    assert relative_l1([1.0, 0.0, 2.5], [1.0, 1.0, 2.0]) == pytest.approx(1.5 / 4.0)
    assert relative_l1([1.0, 9.0], [2.0, 0.0], where=[True, False]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="not zero everywhere"):
        relative_l1([1.0], [0.0])
    with pytest.raises(ValueError, match="estimate and truth must match"):
        relative_l1([1.0, 2.0], [1.0])


@given(VALUES, st.randoms(use_true_random=False))
def test_rank_correlation_agrees_with_scipy(values, random):
    other = [random.randint(-3, 3) for _ in values]
    if len(set(values)) == 1 or len(set(other)) == 1:
        assert np.isnan(rank_correlation(values, other))
        return
    assert rank_correlation(values, other) == pytest.approx(spearmanr(values, other).statistic)


def test_rank_correlation_sees_order_not_size():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 0]) == pytest.approx(-1.0)


@given(VALUES, st.data())
def test_auroc_is_the_mann_whitney_statistic(scores, data):
    labels = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    scores, labels = np.array(scores, dtype=float), np.array(labels)
    if labels.all() or not labels.any():
        with pytest.raises(ValueError, match="auroc needs both classes"):
            auroc(scores, labels)
        return
    pairs = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert auroc(scores, labels) == pytest.approx(pairs / (labels.sum() * (~labels).sum()))


def test_auroc_by_hand():
    # Positives 3 and 1 against negatives 2 and 0: three of four pairs in order.
    assert auroc([3, 2, 1, 0], [True, False, True, False]) == pytest.approx(0.75)
    assert auroc([1, 1, 1], [True, False, False]) == pytest.approx(0.5)


def test_residuals_by_hand():
    assert slackness_residual([2.0, 0.0], [-0.1, 0.5]) == pytest.approx(0.1)
    # The second state is violated without a price: only the KKT residual sees it.
    assert kkt_residual([2.0, 0.0], [-0.1, 0.5], penalty_coef=2.0) == pytest.approx(0.6)


@given(st.floats(0.0, 5.0), st.floats(-5.0, 0.0), st.floats(0.01, 10.0))
def test_kkt_residual_vanishes_exactly_where_the_product_does(multiplier, violation, coef):
    residual = kkt_residual([multiplier], [violation], penalty_coef=coef)
    assert residual == pytest.approx(min(multiplier, -coef * violation), abs=1e-9)


def test_oscillation_by_hand():
    # Up 1, down 2 in 500 updates: 3 per 500.
    assert oscillation([0.0, 1.0, -1.0], [0, 100, 500]) == pytest.approx(6.0)
    assert oscillation([0.0, 1.0], [0, 10], per_updates=1.0) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="increasing update counts"):
        oscillation([0.0, 1.0], [5, 5])


def test_cost_to_go_by_hand():
    np.testing.assert_allclose(cost_to_go([1, 0, 1], discount=0.5), [1.25, 0.5, 1.0])
    np.testing.assert_allclose(
        cost_to_go([1, 0, 1], discount=0.5, final_value=4.0), [1.75, 1.5, 3.0]
    )
    np.testing.assert_allclose(cost_to_go([1, 2, 3], discount=0.0), [1, 2, 3])


def test_critic_calibration_of_a_pessimistic_critic():
    observed = np.array([0.0, 1.0, 2.0, 3.0])
    found = critic_calibration(2 * observed + 1, observed)
    assert found.bias == pytest.approx(2.5)
    assert found.root_mean_square_error == pytest.approx(np.sqrt(7.5))
    assert found.slope == pytest.approx(0.5)
    assert found.rank_correlation == pytest.approx(1.0)
    assert np.isnan(critic_calibration(np.ones(4), observed).slope)


def test_a_score_that_is_not_a_number_ranks_nowhere():
    assert np.isnan(rank_correlation([1.0, 2.0, 3.0], [1.0, np.nan, 3.0]))
    assert np.isnan(auroc([0.1, np.nan, 0.3], [False, False, True]))
