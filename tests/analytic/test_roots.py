"""The vectorised root finder obeys complementary slackness and known roots."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algd.analysis.roots import nonnegative_root


def test_known_roots_of_three_shapes_at_once():
    def residual(x):
        return np.array([2.0, np.exp(-x[1]) - 0.01, -1.0]) - np.array([x[0], 0.0, x[2]])

    np.testing.assert_allclose(nonnegative_root(residual, 3), [2.0, np.log(100), 0.0], atol=1e-9)


@given(
    scale=st.floats(1e-3, 1e3),
    target=st.floats(1e-3, 1e4),
    power=st.sampled_from([1.0, 3.0, 0.3]),
)
def test_root_is_found_at_any_scale(scale, target, power):
    root = nonnegative_root(lambda x: scale * (target**power - x**power), 1)
    assert root[0] == pytest.approx(target, rel=1e-8, abs=1e-9)


def test_a_constraint_that_no_multiplier_meets_is_reported():
    with pytest.raises(ArithmeticError, match="no multiplier"):
        nonnegative_root(lambda x: 1.0 + 0.0 * x, 2)
