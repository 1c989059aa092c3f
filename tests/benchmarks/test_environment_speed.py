"""The gains of the fast tasks stay above floors that leave room for a disturbed machine."""

import statistics

import pytest
from benchmarks.environment_speed import TASKS, measure_resets, measure_steps

MOST_OF_BARE = {"fast": 1.7, "trained": 2.0}
"""Measured: 1.1 to 1.3 and 1.2 to 1.5; aimed at is 1.5."""
LEAST_GAIN = {"SafetyPointGoal1-v0": 3.2}
"""Measured: 4.2 to 4.7."""


@pytest.mark.slow
@pytest.mark.parametrize("env_id", TASKS)
def test_a_step_costs_little_more_than_its_physics(env_id: str) -> None:
    us = measure_steps(env_id, rounds=7, steps=60)
    assert {name: us[name] / us["bare"] < most for name, most in MOST_OF_BARE.items()} == {
        "fast": True,
        "trained": True,
    }, us
    assert us["untouched"] / us["fast"] > LEAST_GAIN.get(env_id, 2.5), us


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "most_ms"), [("SafetyPointGoal1-v0", 5.0), ("SafetyPointButton1-v0", 20.0)]
)
def test_a_reset_does_not_compile(env_id: str, most_ms: float) -> None:
    times = {name: statistics.median(ms) for name, ms in measure_resets(env_id, seeds=7).items()}
    assert times["fast"] < most_ms
    assert times["untouched"] > 4 * times["fast"]
