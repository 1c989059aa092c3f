"""Measure the fast tasks against the untouched package and against bare MuJoCo.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.environment_speed [--parts ...] [--quick]

CPU time of one thread. Rounds alternate between the fast task, the same in all that a trainer steps
(`trained`), the untouched task and bare MuJoCo, all with the same seed and actions; each figure is
the median over rounds of a round's mean. Bare is `mj_step` with the same number of substeps on a
copy of the package's model and state at the start of the round; where gremlins circle, they are
moved once a step instead of once a substep, outside of the clock. The ablation undoes one gain at a
time and leaves the others. What several environments do together: `environment_vectors`.
Prints tables, and writes its parts into results/environment_speed.json beside this file. On a
machine that others use, `chrt -r 1` before the command keeps most of them out.
"""

import argparse
import copy
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from algd.environments.fast.world import moved_world_class
from algd.environments.make import EnvConfig
from algd.environments.safety_gymnasium import make_safety_env
from algd.environments.safety_package import load, untextured_world_class
from algd.environments.vector import make_vector_env
from tests.benchmarks.environment_vectors import measure_vectors

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

TASKS = (
    "SafetyPointGoal1-v0",
    "SafetyPointButton1-v0",
    "SafetyCarButton1-v0",
    "SafetyPointCircle1-v0",
)
VELOCITY_TASKS = tuple(
    f"Safety{robot}Velocity-v1"
    for robot in ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Ant", "Humanoid")
)
VECTOR_TASKS = ("SafetyPointGoal1-v0", "SafetyCarButton1-v0")
ABLATED = ("SafetyPointGoal1-v0", "SafetyPointButton1-v0")
PARTS = ("steps", "velocity", "resets", "ablation", "vectors")
RESULTS = Path(__file__).with_name("results") / "environment_speed.json"
SUBSTEPS = 10
_NO_HIERARCHIES = mujoco.mjtDisableBit.mjDSBL_MIDPHASE


def thread_us(work: Callable[[], Any]) -> float:
    """Return the CPU time of `work` in this thread, in microseconds."""
    start = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start) / 1e3


def make(env_id: str, *, fast: bool = True) -> Any:
    """Make a task without the wrapper that all tasks share."""
    return make_safety_env(env_id, fast=fast)[0]


def actions_of(env: Any, steps: int, seed: int) -> Any:
    space = env.action_space
    return np.random.default_rng(seed).uniform(space.low, space.high, (steps, *space.shape))


def play(env: Any, actions: Any) -> None:
    """Step once with each action; what ends does so outside of the clock, at a reset."""
    for action in actions:
        env.step(action)


class Trained:
    """One environment as the trainer steps it: checked, recorded, in a vector of one."""

    def __init__(self, env_id: str) -> None:
        self._vector: Any = make_vector_env(EnvConfig(id=env_id), seed=0)
        self._vector.reset()

    def reset(self, *, seed: int) -> None:
        """Start an episode, and put that of `seed` in its place."""
        self._vector.reset()
        self._vector._block._runners[0].env.reset(seed=seed)

    def play(self, actions: Any) -> None:
        for action in actions:
            self._vector.step(action)

    def normalized(self, actions: Any) -> Any:
        """Return the policy's actions, (T, 1, A), for those in the task's units."""
        env = self._vector._block._runners[0].env
        return ((actions - env._center) / env._half_range).astype(np.float32)[:, None]


def bare_round(env: Any, actions: Any) -> float:
    """Return microseconds per bare step from the task's present state; the task is not touched."""
    if hasattr(env, "_builder"):
        task, substeps = env._builder.task, SUBSTEPS
        gremlins = next(iter(task._mocaps.values()), None)
    else:
        task, substeps, gremlins = env._inner, env._inner.frame_skip, None
    model, data = copy.copy(task.model), copy.copy(task.data)
    total = 0.0
    for action in actions:
        data.ctrl[:] = action
        if gremlins is not None:
            phase = data.time
            place = [np.sin(phase) * gremlins.travel, np.cos(phase) * gremlins.travel]
            data.mocap_pos[:] = [*place, gremlins.size]
        total += thread_us(lambda: mujoco.mj_step(model, data, substeps))
    return total / len(actions)


def measure_steps(env_id: str, rounds: int, steps: int) -> dict[str, float]:
    """Return median microseconds per step of the four."""
    fast, slow, trained = make(env_id), make(env_id, fast=False), Trained(env_id)
    times: dict[str, list[float]] = {"fast": [], "trained": [], "untouched": [], "bare": []}
    for index in range(rounds):
        actions = actions_of(fast, steps, index)
        normalized = trained.normalized(actions)
        for env in (fast, slow, trained):
            env.reset(seed=index)
        times["bare"].append(bare_round(slow, actions))
        times["fast"].append(thread_us(lambda: play(fast, actions)) / steps)  # noqa: B023
        times["trained"].append(thread_us(lambda: trained.play(normalized)) / steps)  # noqa: B023
        times["untouched"].append(thread_us(lambda: play(slow, actions)) / steps)  # noqa: B023
    return {name: statistics.median(values) for name, values in times.items()}


def measure_resets(env_id: str, seeds: int) -> dict[str, list[float]]:
    """Return milliseconds per reset of fast and untouched, by seed, after a first reset."""
    envs = {"fast": make(env_id), "untouched": make(env_id, fast=False)}
    first = {name: thread_us(lambda: env.reset(seed=0)) for name, env in envs.items()}  # noqa: B023
    times: dict[str, list[float]] = {name: [] for name in envs}
    for seed in range(1, seeds + 1):
        for name, env in envs.items():
            times[name].append(thread_us(lambda: env.reset(seed=seed)) / 1e3)  # noqa: B023
    return {**times, "first_fast": [first["fast"] / 1e3]}


def _sensors_every_substep(builder: Any) -> None:
    builder.engine.physics._substep_flags = builder.engine.physics._flags


def _no_resuming(builder: Any) -> None:
    builder.engine.physics._resumes = False


def _untouchable_bodies_compiled(builder: Any) -> None:
    # As a world is compiled that somebody looks at.
    task = builder.task
    task.world, builder.engine = moved_world_class(textured=True)(task.agent, task._obstacles), None
    builder.reset(seed=0)


def _hierarchies_of_volumes(builder: Any) -> None:
    physics = builder.engine.physics
    for flags in ("_flags", "_substep_flags"):
        setattr(physics, flags, getattr(physics, flags) & ~int(_NO_HIERARCHIES))


def _state_evaluated_three_times(builder: Any) -> None:
    task, step = builder.task, builder.engine.physics.step

    def three_times(action: Any) -> None:
        step(action)
        for _ in range(2):
            mujoco.mj_forward(task.model, task.data)

    builder.engine.physics.step = three_times


def _package_observation(builder: Any) -> None:
    builder.engine.observer.observe = builder.task.obs


def _package_observation_unchecked(builder: Any) -> None:
    # The package's observation without its check of the space.
    space = builder.task.obs_info.obs_space_dict
    space.contains = lambda _: True
    builder.engine.observer.observe = builder.task.obs


def _package_costs(builder: Any) -> None:
    cost = load().builder.Builder._cost
    builder.engine.costs.judge = lambda: cost(builder)


def _package_rewards(builder: Any) -> None:
    task = builder.task
    builder.engine.reward = lambda: (task.calculate_reward(), task.goal_achieved)


STEP_ABLATIONS: dict[str, Callable[[Any], None]] = {
    "nothing undone": lambda _: None,
    "sensors in every substep": _sensors_every_substep,
    "first half of a step done again": _no_resuming,
    "bodies that nothing touches in the model": _untouchable_bodies_compiled,
    "hierarchies of bounding volumes": _hierarchies_of_volumes,
    "state evaluated three times": _state_evaluated_three_times,
    "package's observation, no space check": _package_observation_unchecked,
    "package's observation": _package_observation,
    "package's costs": _package_costs,
    "package's reward": _package_rewards,
}


def ablate_steps(env_id: str, rounds: int, steps: int) -> dict[str, float]:
    """Return median microseconds per step with one gain undone at a time."""
    envs: dict[str, Any] = {}
    for name, undo in STEP_ABLATIONS.items():
        envs[name] = make(env_id)
        envs[name].reset(seed=0)
        undo(envs[name]._builder)
    times: dict[str, list[float]] = {name: [] for name in envs}
    for index in range(rounds):
        for name, env in envs.items():
            env.reset(seed=index)
            actions = actions_of(env, steps, index)
            times[name].append(thread_us(lambda: play(env, actions)) / steps)  # noqa: B023
    return {name: statistics.median(values) for name, values in times.items()}


def ablate_resets(env_id: str, seeds: int) -> dict[str, float]:
    """Return median milliseconds per reset with one gain undone at a time."""
    envs = {name: make(env_id) for name in ("nothing undone", "model compiled")}
    package_draws = make(env_id)
    task = package_draws._builder.task
    drawn = load().random_generator.RandomGenerator()
    task.random_generator = task.agent.random_generator = drawn
    envs["package's layout sampling"] = package_draws
    times: dict[str, list[float]] = {name: [] for name in envs}
    for seed in range(seeds + 1):
        for name, env in envs.items():
            if name == "model compiled":
                builder = env._builder
                task = builder.task
                task.world = untextured_world_class()(task.agent, task._obstacles)
                builder.engine = None
            times[name].append(thread_us(lambda: env.reset(seed=seed)) / 1e3)  # noqa: B023
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    packages = ("mujoco", "numpy", "gymnasium", "safety-gymnasium")
    return {
        "processor": sorted(models),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def report_steps(env_id: str, us: dict[str, float]) -> None:
    rates = "  ".join(f"{name} {1e6 / value:6.0f}/s {value:6.1f} us" for name, value in us.items())
    ratios = "  ".join(f"{name}/bare {us[name] / us['bare']:.2f}" for name in us if name != "bare")
    gain = us["untouched"] / us["fast"]
    print(f"{env_id:28s} {rates}  {ratios}  untouched/fast {gain:.1f}", flush=True)


def report_vectors(env_id: str, measured: dict[str, Any]) -> None:
    for kind, rate in measured["steps_per_second"].items():
        times, upper = measured["times_one"][kind], measured["upper_times_one"][kind]
        others = measured["others"][kind]
        print(
            f"{env_id:28s} {kind:10s} {rate:6.0f}/s  {times:.2f} of one (upper quartile "
            f"{upper:.2f})  other programs {others:.2f} cores",
            flush=True,
        )


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return median and worst of each list."""
    return {
        name: {"median": statistics.median(values), "worst": max(values)}
        for name, values in times.items()
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description="Measure the fast tasks.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="navigation tasks")
    parser.add_argument("--quick", action="store_true", help="a few rounds; not stored")
    parser.add_argument("--envs", type=int, default=8, help="environments of the vector figures")
    arguments = parser.parse_args()
    scale = 5 if arguments.quick else 1
    result: dict[str, Any] = {part: {} for part in arguments.parts}
    for part, tasks in (("steps", arguments.tasks), ("velocity", VELOCITY_TASKS)):
        for env_id in tasks if part in result else ():
            us = measure_steps(env_id, rounds=10 // scale, steps=400)
            if part == "velocity":
                del us["trained"]  # robots that fall stand up again there alone
            result[part][env_id] = us
            report_steps(env_id, us)
    for env_id in arguments.tasks if "resets" in result else ():
        result["resets"][env_id] = summary(measure_resets(env_id, seeds=20 // scale))
        print(env_id, "reset ms", json.dumps(result["resets"][env_id]), flush=True)
    if "ablation" in result:
        for env_id in ABLATED:
            result["ablation"][env_id] = {
                "us per step": ablate_steps(env_id, rounds=10 // scale, steps=100),
                "ms per reset": ablate_resets(env_id, seeds=10 // scale),
            }
        print("ablation", json.dumps(result["ablation"], indent=2), flush=True)
    for env_id in VECTOR_TASKS if "vectors" in result else ():
        result["vectors"][env_id] = measure_vectors(env_id, arguments.envs, rounds=40 // scale)
        report_vectors(env_id, result["vectors"][env_id])
    if not arguments.quick:
        store(result)


def store(result: dict[str, Any]) -> None:
    """Put the measured parts, each with its machine, in place of the stored ones."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored |= {part: {"machine": machine(), **values} for part, values in result.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
