"""The gains of the fast tasks stay above floors that leave room for a disturbed machine.

Measured in a process of its own: under pytest the types of every call are checked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MOST_OF_BARE = {"fast": 1.7, "trained": 2.0}
"""Measured: 1.0 to 1.2 and 1.2 to 1.4; aimed at is 1.5."""
LEAST_GAIN = 3.0
"""Measured: 3.8 (PointCircle1) to 7.5 (PointButton1)."""
TASKS = ("SafetyPointGoal1-v0", "SafetyPointButton1-v0", "SafetyPointCircle1-v0")


def measured(call: str) -> Any:
    """Return what a function of the benchmark returns."""
    code = f"import json; from tests.benchmarks import environment_speed as e; r = e.{call}"
    return json.loads(
        subprocess.run(
            [sys.executable, "-c", code + "; print(json.dumps(r))"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("env_id", TASKS)
def test_a_step_costs_little_more_than_its_physics(env_id: str) -> None:
    us = measured(f"measure_steps({env_id!r}, rounds=7, steps=100)")
    above = {name: us[name] for name, most in MOST_OF_BARE.items() if us[name] > most * us["bare"]}
    assert not above, us
    assert us["untouched"] > LEAST_GAIN * us["fast"], us


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "most_ms"), [("SafetyPointGoal1-v0", 5.0), ("SafetyPointButton1-v0", 20.0)]
)
def test_a_reset_does_not_compile(env_id: str, most_ms: float) -> None:
    times = measured(f"summary(e.measure_resets({env_id!r}, seeds=7))")
    assert times["fast"]["median"] < most_ms
    assert times["untouched"]["median"] > 4 * times["fast"]["median"]
