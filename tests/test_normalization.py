"""Running normalisation of observations and returns: the statistics of everything seen."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algd.training.normalization import (
    ReturnDeviation,
    RunningNormalizer,
    TailNormalizer,
    Unnormalized,
    make_normalizer,
)
from algd.training.train_config import TrainConfig


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


def tails_of(sizes: list[int], share: float = 0.1, seed: int = 0) -> TailNormalizer:
    normalizer, data, start = TailNormalizer(3, share), rows(sum(sizes), seed), 0
    for size in sizes:
        normalizer.update(data[start : start + size])
        start += size
    return normalizer


def test_tails_by_hand():
    normalizer = TailNormalizer(1, 0.25)
    data = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]], dtype=np.float32)
    normalizer.update(data)  # a quarter lies beyond 3 and beyond 1
    upper, lower = np.array([0, 0, 0, 0, 1.0]), np.array([1.0, 0, 0, 0, 0])
    out = normalizer.normalize(data)
    assert out.shape == (5, 3)
    np.testing.assert_allclose(out[:, 0], RunningNormalizer.normalize(normalizer, data)[:, 0])
    np.testing.assert_allclose(out[:, 1], upper / upper.std(), rtol=1e-6)
    np.testing.assert_allclose(out[:, 2], lower / lower.std(), rtol=1e-6)


def test_tails_have_variance_one_and_the_share_that_was_asked_for():
    normalizer = tails_of([4000], share=0.03)
    out = normalizer.normalize(rows(4000))[:, 3:]
    np.testing.assert_allclose(out.std(0), 1.0, atol=1e-3)
    np.testing.assert_allclose((out > 0).mean(0), 0.03, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_the_sample_is_every_kth_row_whatever_the_batches(sizes):
    normalizer, data = tails_of(sizes), rows(sum(sizes))
    kept = normalizer.state_dict()["sample"]
    assert len(kept) == -(-len(data) // normalizer.stride) <= 4096
    assert len(kept) > 2048 or normalizer.stride == 1
    np.testing.assert_array_equal(kept, data[:: normalizer.stride])


def test_tails_of_constants_are_zero_and_outliers_are_clipped():
    normalizer = TailNormalizer(2, 0.1)
    assert normalizer.normalize(np.ones((1, 2), np.float32)).tolist() == [[1, 1, 0, 0, 0, 0]]
    normalizer.update(np.array([[0.0, 7.0], [2.0, 7.0]], dtype=np.float32))
    out = normalizer.normalize(np.array([[1e6, 9.0]], dtype=np.float32))
    assert out[0, 2:].tolist() == [50.0, 0.0, 0.0, 0.0]


def test_tails_of_tensors_and_arrays_are_alike():
    normalizer, data = tails_of([100]), rows(20, seed=1)
    np.testing.assert_array_equal(
        normalizer.normalize_tensor(torch.from_numpy(data)).numpy(), normalizer.normalize(data)
    )


def test_loaded_tails_continue_bitwise():
    first = tails_of([5000])
    second = TailNormalizer(3, 0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for normalizer in (first, second):
        normalizer.update(rows(1000, seed=1))
    np.testing.assert_array_equal(first.normalize(rows(50)), second.normalize(rows(50)))


def test_the_configuration_says_which_normaliser():
    plain = make_normalizer(TrainConfig(), 3)
    assert type(plain) is Unnormalized
    assert plain.width == 3
    data = rows(5)
    plain.update(data)
    np.testing.assert_array_equal(plain.normalize(data), data)
    assert type(make_normalizer(TrainConfig(normalize_obs=True), 3)) is RunningNormalizer
    tails = make_normalizer(TrainConfig(normalize_obs=True, tail_share=0.03), 3)
    assert isinstance(tails, TailNormalizer)
    assert tails.width == 9


def test_the_deviation_of_returns_by_hand():
    returns = ReturnDeviation(num_envs=2, discount=0.5)
    assert returns.deviation == 1.0
    returns.update(np.array([2.0, 2.0]), np.array([False, False]))  # returns 2, 2
    assert returns.deviation == 1.0  # nothing to measure by
    returns.update(np.array([1.0, 3.0]), np.array([False, True]))  # 2, 4
    returns.update(np.array([0.0, 6.0]), np.array([False, False]))  # 1, and 6 of a new episode
    assert returns.deviation == pytest.approx(np.std([2.0, 2.0, 2.0, 4.0, 1.0, 6.0]))


def test_a_lost_episode_leaves_no_trace_in_the_returns():
    returns = ReturnDeviation(num_envs=2, discount=0.9)
    returns.update(np.array([1.0, 5.0]), np.array([False, False]))
    returns.update(np.array([2.0, 1e9]), np.array([False, False]), lost=(1,))
    returns.update(np.array([0.0, 4.0]), np.array([False, False]))
    assert returns.deviation == pytest.approx(np.std([1.0, 5.0, 2.9, 2.61, 4.0]))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.floats(0.0, 0.999), st.integers(0, 100))
def test_merged_returns_equal_those_of_all_steps_at_once(num_envs, steps, discount, seed):
    generator = np.random.default_rng(seed)
    reward = generator.normal(100.0, 1.0, (steps, num_envs))
    ended = generator.random((steps, num_envs)) < 0.1
    returns, all_returns, running = ReturnDeviation(num_envs, discount), [], np.zeros(num_envs)
    for step in range(steps):
        returns.update(reward[step], ended[step])
        running = discount * running + reward[step]
        all_returns.append(running.copy())
        running[ended[step]] = 0.0
    expected = np.std(all_returns) if steps * num_envs > 1 else 1.0
    assert returns.deviation == pytest.approx(expected, rel=1e-9)


def test_loaded_returns_continue_bitwise():
    generator = np.random.default_rng(0)
    first, second = ReturnDeviation(3, 0.99), ReturnDeviation(3, 0.99)
    for _ in range(20):
        first.update(generator.normal(size=3), generator.random(3) < 0.2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for returns in (first, second):
        returns.update(np.ones(3), np.zeros(3, bool))
    assert first.deviation == second.deviation
    np.testing.assert_array_equal(first.returns, second.returns)


def test_no_observations_change_nothing() -> None:
    normalizer = RunningNormalizer(2)
    normalizer.update(np.array([[1.0, 2.0], [3.0, 5.0]]))
    before = normalizer.normalize(np.ones((1, 2)))
    normalizer.update(np.zeros((0, 2)))
    assert np.array_equal(normalizer.normalize(np.ones((1, 2))), before)
