"""Steps per second of several environments together, by the kind of vector environment.

In: a task and a number of environments. Out: for each kind the median rate of wall time over short
rounds, which alternate between the kinds. Wall time is disturbed by whatever else runs: rounds in
which other programs took more than a few per cent of a core are left out, and counted.
"""

import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from algd.environments.make import EnvConfig
from algd.environments.vector import VectorCostEnv, make_vector_env

KINDS = ("one", "sync", "subprocess", "parallel")
MOST_FOREIGN = 0.05
"""Cores that other programs may take in a round that counts."""
_ROUND_SECONDS = 0.4
_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 13, 14  # fields of /proc/<pid>/stat
_IDLE = slice(3, 5)  # of the processor line of /proc/stat: idle, and waiting for a disk


def busy_seconds() -> float:
    """Return the CPU time of all programs on this machine since its start."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    ticks = [int(field) for field in first.split()[1:9]]  # without guests, who count as users
    return (sum(ticks) - sum(ticks[_IDLE])) / _TICKS


def own_seconds() -> float:
    """Return the CPU time of this process and its workers."""
    total = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # What follows the name begins with field 3 of the manual, index 2 from 0.
        total += int(fields[_USER - 2]) + int(fields[_SYSTEM - 2])
    return total / _TICKS


def one_round(env: VectorCostEnv, generator: np.random.Generator) -> tuple[float, float]:
    """Step for a while; return environment steps per second and the cores others took."""
    batch = generator.uniform(-1, 1, (50, env.num_envs, env.action_dim)).astype(np.float32)
    taken, foreign = 0, busy_seconds() - own_seconds()
    start = time.perf_counter()
    while time.perf_counter() - start < _ROUND_SECONDS:
        for actions in batch:
            env.step(actions)
        taken += len(batch) * env.num_envs
    seconds = time.perf_counter() - start
    return taken / seconds, (busy_seconds() - own_seconds() - foreign) / seconds


def measure_vectors(
    env_id: str, num_envs: int, rounds: int, seconds: float = 60.0
) -> dict[str, Any]:
    """Measure until each kind has `rounds` quiet ones, or for `seconds`.

    Raises:
        RuntimeError: some kind met no quiet moment.
    """
    envs = {"one": make_vector_env(EnvConfig(id=env_id), seed=0)}
    for kind in KINDS[1:]:
        config = EnvConfig(id=env_id, num_envs=num_envs, vector=kind)  # type: ignore[arg-type]
        envs[kind] = make_vector_env(config, seed=0)
    generator = np.random.default_rng(0)
    quiet: dict[str, list[float]] = {name: [] for name in envs}
    disturbed, deadline = 0, time.monotonic() + seconds
    for env in envs.values():
        env.reset()
        one_round(env, generator)
    while min(map(len, quiet.values())) < rounds and time.monotonic() < deadline:
        for name, env in envs.items():
            rate, foreign = one_round(env, generator)
            if foreign <= MOST_FOREIGN:
                quiet[name].append(rate)
            else:
                disturbed += 1
    for env in envs.values():
        env.close()
    if not all(quiet.values()):
        raise RuntimeError("other programs left no quiet round; measure on an idle machine")
    rates = {name: statistics.median(values) for name, values in quiet.items()}
    return {
        "num_envs": num_envs,
        "steps_per_second": rates,
        "times_one": {name: rates[name] / rates["one"] for name in KINDS[1:]},
        "quiet_rounds": {name: len(values) for name, values in quiet.items()},
        "disturbed_rounds": disturbed,
        "load": os.getloadavg()[0],
    }
