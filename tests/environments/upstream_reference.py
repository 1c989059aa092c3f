"""Write upstream_reference.json: numbers of the untouched package on the versions it pins itself.

Not run by the tests. To regenerate, on Python 3.10 (the last that can install those versions):
    pip install safety-gymnasium==1.0.0 "numpy<2" && python upstream_reference.py
It gave gymnasium 0.28.1, mujoco 2.3.3, numpy 1.23.5.
"""

import json
from pathlib import Path

import numpy as np

SEED = 7
STEPS = 5
IDS = (
    "SafetyPointGoal1-v0",
    "SafetyPointGoal2-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyPointCircle1-v0",
    "SafetyPointRun0-v0",
    "SafetyCarGoal1-v0",
    "SafetyRacecarGoal1-v0",
    "SafetyDoggoGoal1-v0",
    "SafetyDoggoButton2-v0",
    "SafetyAntGoal1-v0",
    "SafetyAntPush2-v0",
    "SafetyHalfCheetahVelocity-v1",
    "SafetyHopperVelocity-v1",
    "SafetySwimmerVelocity-v1",
    "SafetyWalker2dVelocity-v1",
)


def unit_actions(action_dim):
    """Yield the test's actions in [-1, 1]."""
    generator = np.random.default_rng(SEED)
    for _ in range(STEPS):
        yield generator.uniform(-1, 1, action_dim).astype(np.float32)


def record(env):
    """Play the test's actions in an environment of the package; return what the test compares."""
    observation, _ = env.reset(seed=SEED)
    result = {"first_obs": digits(observation), "rewards": [], "costs": []}
    task = getattr(env.unwrapped, "task", None)
    if task is not None:
        layout = task.world_info.layout
        result["layout"] = {name: [float(x) for x in xy] for name, xy in layout.items()}
    low, high = env.action_space.low.astype(float), env.action_space.high.astype(float)
    for action in unit_actions(len(low)):
        scaled = (low + high) / 2 + (high - low) / 2 * action
        observation, reward, cost, _, _, _ = env.step(scaled.astype(env.action_space.dtype))
        result["rewards"] += digits([reward])
        result["costs"].append(float(cost))
    return {**result, "last_obs": digits(observation)}


def digits(values):
    """Round to 9 significant digits, more than float32 has."""
    return [float(f"{value:.9g}") for value in values]


if __name__ == "__main__":
    import safety_gymnasium

    results = {env_id: record(safety_gymnasium.make(env_id)) for env_id in IDS}
    Path(__file__).with_suffix(".json").write_text(json.dumps(results) + "\n")
