"""Running normalisation: the statistics of everything seen, whatever the batches."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algd.training.normalization import RunningNormalizer


def rows(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(count, 3)) * [1.0, 50.0, 0.01] + [0.0, 1000.0, -5.0]).astype(
        np.float32
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_merged_statistics_equal_those_of_all_rows_at_once(sizes, seed):
    data, start = rows(sum(sizes), seed), 0
    normalizer = RunningNormalizer(3)
    for size in sizes:
        normalizer.update(data[start : start + size])
        start += size
    assert normalizer.count == len(data)
    np.testing.assert_allclose(normalizer.mean, data.astype(np.float64).mean(0), rtol=1e-9)
    np.testing.assert_allclose(
        normalizer.sum_squares / normalizer.count, data.astype(np.float64).var(0), rtol=1e-7
    )


def test_normalised_rows_have_mean_zero_and_variance_one():
    normalizer = RunningNormalizer(3)
    normalizer.update(rows(5000))
    out = normalizer.normalize(rows(5000))
    np.testing.assert_allclose(out.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(out.std(0), 1.0, atol=1e-3)
    assert out.dtype == np.float32


def test_two_observations_by_hand():
    normalizer = RunningNormalizer(1)
    normalizer.update(np.array([[1.0], [5.0]], dtype=np.float32))  # mean 3, deviation 2
    out = normalizer.normalize(np.array([[3.0], [5.0], [-1.0]], dtype=np.float32))
    assert out[:, 0].tolist() == pytest.approx([0.0, 1.0, -2.0])


def test_before_any_observation_nothing_changes_but_the_clip():
    out = RunningNormalizer(2).normalize(np.array([[0.5, -70.0]], dtype=np.float32))
    assert out[0].tolist() == pytest.approx([0.5, -10.0])


def test_outliers_are_clipped_to_ten_deviations_and_constants_map_to_zero():
    normalizer = RunningNormalizer(2)
    normalizer.update(np.array([[0.0, 7.0], [2.0, 7.0]], dtype=np.float32))
    out = normalizer.normalize(np.array([[1e6, 7.0]], dtype=np.float32))
    assert out[0].tolist() == [10.0, 0.0]


def test_tensors_and_arrays_are_normalised_alike():
    normalizer = RunningNormalizer(3)
    normalizer.update(rows(100))
    data = rows(20, seed=1)
    np.testing.assert_array_equal(
        normalizer.normalize_tensor(torch.from_numpy(data)).numpy(), normalizer.normalize(data)
    )


def test_loaded_statistics_continue_bitwise():
    first = RunningNormalizer(3)
    first.update(rows(37))
    second = RunningNormalizer(3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for normalizer in (first, second):
        normalizer.update(rows(11, seed=1))
    np.testing.assert_array_equal(first.normalize(rows(5)), second.normalize(rows(5)))
    assert first.count == second.count == 48


def test_state_is_no_view_of_running_statistics():
    normalizer = RunningNormalizer(3)
    normalizer.update(rows(10))
    state = normalizer.state_dict()
    kept = copy.deepcopy(state)
    normalizer.update(rows(10, seed=1))
    np.testing.assert_array_equal(state["mean"], kept["mean"])
    np.testing.assert_array_equal(state["sum_squares"], kept["sum_squares"])
