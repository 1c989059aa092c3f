"""The tasks are the package's own: layouts, observations, rewards of the untouched package.

The reference was recorded with the versions the package pins (see upstream_reference.py). The
physics of MuJoCo changed since for Car (accelerometer, contacts) and Racecar: there the layout and
costs alone are compared.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from environments.upstream_reference import SEED, unit_actions

from algd.environments.make import make_env

REFERENCE = json.loads(Path(__file__).with_name("upstream_reference.json").read_text())
OTHER_PHYSICS = ("SafetyCarGoal1-v0", "SafetyRacecarGoal1-v0")


@pytest.mark.parametrize("env_id", REFERENCE)
def test_numbers_are_those_of_the_untouched_package(env_id):
    expected = REFERENCE[env_id]
    env = make_env(env_id)
    first, _ = env.reset(seed=SEED)
    if "layout" in expected:
        layout = env._env._builder.task.world_info.layout
        assert {name: xy.tolist() for name, xy in layout.items()} == expected["layout"]
    steps = [env.step(action) for action in unit_actions(env.action_dim)]
    assert [info["cost"] for *_, info in steps] == expected["costs"]
    if env_id not in OTHER_PHYSICS:
        np.testing.assert_allclose(first, expected["first_obs"], rtol=1e-5, atol=1e-6)
        # The contact solver differs in its last digits, and five steps of 10 substeps amplify it.
        np.testing.assert_allclose(steps[-1][0], expected["last_obs"], rtol=2e-4, atol=2e-4)
        rewards = [reward for _, reward, *_ in steps]
        np.testing.assert_allclose(rewards, expected["rewards"], rtol=1e-4, atol=1e-5)
