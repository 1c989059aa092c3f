"""Examine an environment as a user would want to know before training on it.

In: an `EnvConfig`. Out: findings, one line each: facts, and problems with their remedy. The
examination itself never raises: an environment that fails yields the finding that says so.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from algd.environments.make import EnvConfig, make_env
from algd.errors import UserError

if TYPE_CHECKING:
    from algd.environments.gymnasium import CostEnv

DEFAULT_COST_LIMIT = 25.0
"""The cost per episode that Safety-Gymnasium's published results are held to."""

_SEED = 12345
_DETERMINISM_STEPS = 100
_LARGE_OBSERVATION = 100.0


@dataclass(frozen=True)
class Finding:
    """One result: a problem keeps training away, a note something else; a fact is information."""

    kind: Literal["fact", "note", "problem"]
    topic: str
    message: str

    def __str__(self) -> str:
        mark = {"fact": "ok", "note": "note", "problem": "PROBLEM"}[self.kind]
        return f"{mark:7} {self.topic}: {self.message}"


def check_env(
    config: EnvConfig, *, steps: int = 2000, cost_limit: float = DEFAULT_COST_LIMIT
) -> list[Finding]:
    """Make the environment and run a random policy for `steps` steps; report what was seen.

    `cost_limit` is the cost per episode that the random policy's is compared with.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        findings = list(_examine(config, steps, cost_limit))
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    findings += [Finding("problem", "warning", text) for text in texts]
    return findings


def _examine(config: EnvConfig, steps: int, cost_limit: float) -> Iterator[Finding]:
    try:
        env = make_env(config)
    except Exception as error:
        yield _problem("construction", error)
        return
    yield from _guarded("spaces", _spaces, env)
    yield from _guarded("determinism", _determinism, env)
    yield from _guarded("random policy", _random_policy, env, steps, cost_limit)
    yield from _guarded("closing", _closing, env)
    for finding in _guarded("rendering", _rendering, config):
        if finding.kind == "fact":
            yield finding
        else:
            yield replace(finding, kind="note", message=f"{finding.message} (no videos, then)")


def _guarded(
    topic: str, examine: Callable[..., Iterator[Finding]], *args: Any
) -> Iterator[Finding]:
    try:
        yield from examine(*args)
    except Exception as error:
        yield _problem(topic, error)


def _problem(topic: str, error: Exception) -> Finding:
    text = " ".join(str(error).split())
    return Finding(
        "problem",
        topic,
        text if isinstance(error, UserError) else f"{type(error).__name__}: {text}",
    )


def _spaces(env: "CostEnv") -> Iterator[Finding]:
    box = env.original_action_space
    yield Finding("fact", "observation", f"{env.obs_dim} numbers")
    yield Finding(
        "fact",
        "action",
        f"{env.action_dim} numbers in [{box.low.min():g}, {box.high.max():g}], "
        "which the policy's [-1, 1] is mapped onto",
    )
    points = np.flatnonzero(box.low == box.high)
    if len(points):
        yield Finding(
            "problem",
            "action",
            f"low equals high in dimension {', '.join(map(str, points))}: leave what cannot be "
            "chosen out of the action space",
        )
    yield Finding("fact", "horizon", f"{env.max_episode_steps} steps")


def _actions(env: "CostEnv") -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(_SEED)
    while True:
        yield generator.uniform(-1.0, 1.0, env.action_dim).astype(np.float32)


def _fingerprints(env: "CostEnv") -> Iterator[bytes]:
    observation, _ = env.reset(seed=_SEED)
    yield observation.tobytes()
    for _, action in zip(range(_DETERMINISM_STEPS), _actions(env), strict=False):
        observation, reward, terminated, truncated, info = env.step(action)
        yield observation.tobytes() + np.array([reward, info["cost"]]).tobytes()
        if terminated or truncated:
            return


def _determinism(env: "CostEnv") -> Iterator[Finding]:
    first, second = list(_fingerprints(env)), list(_fingerprints(env))
    differing = [
        step for step, pair in enumerate(zip(first, second, strict=False)) if len({*pair}) > 1
    ]
    if not differing and len(first) == len(second):
        message = f"same seed and actions gave the same bits over {len(first) - 1} steps"
        yield Finding("fact", "determinism", message)
        return
    where = differing[0] if differing else min(len(first), len(second))
    yield Finding(
        "problem",
        "determinism",
        f"same seed and actions differ from step {where} on: draw all randomness from a generator "
        "that reset(seed=...) seeds; until then runs cannot be repeated or resumed exactly",
    )


@dataclass
class _Statistics:
    """What a random policy met; `finished` leaves out the last episode where it was cut off."""

    finished: int
    returns: list[float]
    episode_costs: list[float]
    episode_steps: list[int]
    terminations: int
    largest: float
    outside: int
    step_seconds: float
    reset_seconds: float


def _run_random_policy(env: "CostEnv", steps: int) -> _Statistics:
    seen = _Statistics(0, [], [], [], 0, 0.0, 0, 0.0, 0.0)
    ended = True
    for _, action in zip(range(steps), _actions(env), strict=False):
        started = time.perf_counter()
        if ended:
            env.reset(seed=_SEED + len(seen.returns))
            seen.reset_seconds += time.perf_counter() - started
            seen.returns.append(0.0)
            seen.episode_costs.append(0.0)
            seen.episode_steps.append(0)
            started = time.perf_counter()
        observation, reward, terminated, truncated, info = env.step(action)
        seen.step_seconds += time.perf_counter() - started
        ended = terminated or truncated
        seen.finished += ended
        seen.terminations += terminated
        seen.returns[-1] += reward
        seen.episode_costs[-1] += info["cost"]
        seen.episode_steps[-1] += 1
        seen.largest = max(seen.largest, float(np.abs(observation).max()))
        seen.outside += not env.observation_space.contains(observation)
    return seen


def _random_policy(env: "CostEnv", steps: int, cost_limit: float) -> Iterator[Finding]:
    seen = _run_random_policy(env, steps)
    count, per_step = seen.finished, f"{sum(seen.episode_costs) / steps:.4f} per step"
    if count:
        means = (np.mean(column[:count]) for column in (seen.episode_steps, seen.returns))
        told = "of {:.0f} steps and return {:.2f}".format(*means)
        yield Finding(
            "fact",
            "random policy",
            f"{steps} steps, {count} episode{'s' * (count != 1)} finished, {told}, "
            f"{seen.terminations} ended by termination",
        )
        mean_cost = np.mean(seen.episode_costs[:count])
        cost = f"{mean_cost:.2f} per episode (limit {cost_limit:g}), {per_step}"
    else:
        yield Finding(
            "fact",
            "random policy",
            f"no episode finished in {steps} steps; --steps={env.max_episode_steps} finishes one",
        )
        cost = f"{per_step} (limit {cost_limit:g} per episode)"
    yield Finding("fact", "cost", cost)
    if not any(seen.episode_costs):
        never = f"a random policy paid nothing in {steps} steps: the constraint may never act"
        yield Finding("fact", "cost", never)
    yield Finding(
        "fact",
        "speed",
        f"{seen.step_seconds / steps * 1e6:.0f} us per step, "
        f"{seen.reset_seconds / len(seen.returns) * 1e3:.1f} ms per reset",
    )
    yield from _observation_findings(seen, steps)


def _observation_findings(seen: _Statistics, steps: int) -> Iterator[Finding]:
    if seen.outside:
        yield Finding(
            "problem",
            "observation",
            f"{seen.outside} of {steps} lie outside the announced bounds: widen observation_space",
        )
    if seen.largest > _LARGE_OBSERVATION:
        yield Finding(
            "problem",
            "observation",
            f"values up to {seen.largest:.3g}: scale them, or train with observation normalisation",
        )


def _closing(env: "CostEnv") -> Iterator[Finding]:
    env.close()
    return iter(())


def _rendering(config: EnvConfig) -> Iterator[Finding]:
    env = make_env(config, render_mode="rgb_array")
    try:
        env.reset(seed=_SEED)
        frame = np.asarray(env.render())
    finally:
        env.close()
    if frame.ndim == 3 and frame.shape[2] == 3:
        yield Finding("fact", "rendering", f"frames of {frame.shape[1]} x {frame.shape[0]} pixels")
    else:
        yield Finding(
            "problem",
            "rendering",
            f"render() gives {frame.dtype} of shape {frame.shape}, not an RGB frame: "
            'videos need render_mode "rgb_array"',
        )
