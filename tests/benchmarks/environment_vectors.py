"""Steps per second of several environments together, by the kind of vector environment.

In: a task and a number of environments. Out: for each kind the median rate of wall time over short
rounds, which alternate between the kinds. Wall time is disturbed by whatever else runs, so the
cores that other programs took meanwhile are measured, too, and the upper quartile says what the
better rounds gave. What the cores themselves give at that hour, beside whatever shares them where
this machine is a virtual one, says "apart": one environment per core, each in a process that waits
for no other.
"""

import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from algd.environments.make import EnvConfig
from algd.environments.vector import VectorCostEnv, make_vector_env

KINDS = ("one", "sync", "subprocess", "parallel")
_ROUND_SECONDS = 0.15
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


class Apart:
    """One environment per core, each in its own process; a round runs in all at once."""

    def __init__(self, env_id: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._lines: list[Connection] = []
        for index in range(len(os.sched_getaffinity(0))):
            ours, theirs = context.Pipe()
            context.Process(target=_serve_rounds, args=(theirs, env_id, index), daemon=True).start()
            self._lines.append(ours)
        self.round()

    def round(self) -> float:
        """Return the environment steps per second of all together."""
        for line in self._lines:
            line.send(True)
        return sum(line.recv() for line in self._lines)

    def close(self) -> None:
        for line in self._lines:
            line.send(False)


def _serve_rounds(line: Connection, env_id: str, seed: int) -> None:
    env, generator = make_vector_env(EnvConfig(id=env_id), seed=seed), np.random.default_rng(seed)
    env.reset()
    while line.recv():
        line.send(one_round(env, generator))
    env.close()


def one_round(env: VectorCostEnv, generator: np.random.Generator) -> float:
    """Step for a while; return environment steps per second."""
    batch = generator.uniform(-1, 1, (25, env.num_envs, env.action_dim)).astype(np.float32)
    for actions in batch[:5]:  # after other environments the caches hold nothing of these
        env.step(actions)
    taken, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _ROUND_SECONDS:
        for actions in batch:
            env.step(actions)
        taken += len(batch) * env.num_envs
    return taken / seconds


def measure_vectors(env_id: str, num_envs: int, rounds: int) -> dict[str, Any]:
    """Return for each kind the median rate, its multiple of one environment's, and what disturbed.

    `others` is the number of cores that other programs took while the kind was measured.
    """
    envs = {"one": make_vector_env(EnvConfig(id=env_id), seed=0)}
    for kind in KINDS[1:]:
        config = EnvConfig(id=env_id, num_envs=num_envs, vector=kind)  # type: ignore[arg-type]
        envs[kind] = make_vector_env(config, seed=0)
    generator = np.random.default_rng(0)
    for env in envs.values():
        env.reset()
        one_round(env, generator)
    apart = Apart(env_id)
    rounds_of: dict[str, Callable[[], float]] = {"apart": apart.round}
    for kind, env in envs.items():
        rounds_of[kind] = functools.partial(one_round, env, generator)
    rates: dict[str, list[float]] = {kind: [] for kind in rounds_of}
    others: dict[str, list[float]] = {kind: [] for kind in rounds_of}
    for _ in range(rounds):
        for kind, take_round in rounds_of.items():
            start, before = time.perf_counter(), busy_seconds() - own_seconds()
            rates[kind].append(take_round())
            taken = busy_seconds() - own_seconds() - before
            others[kind].append(taken / (time.perf_counter() - start))
    for env in (*envs.values(), apart):
        env.close()
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    upper = {kind: float(np.percentile(values, 75)) for kind, values in rates.items()}
    return {
        "num_envs": num_envs,
        "rounds": rounds,
        "steps_per_second": medians,
        "times_one": {kind: medians[kind] / medians["one"] for kind in rates},
        "upper_quartile": upper,
        "upper_times_one": {kind: upper[kind] / upper["one"] for kind in rates},
        "others": {kind: statistics.mean(values) for kind, values in others.items()},
        "load": os.getloadavg()[0],
    }
