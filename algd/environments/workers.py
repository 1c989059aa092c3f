"""The vector environment whose environments live in worker processes, one worker per core.

In and out as `algd.environments.vector`. Between the processes travel raw bytes of numpy arrays:
actions one way, records of `transition_dtype` the other. A worker ignores Ctrl-C, which is the
parent's to handle, and ends when its parent's end of the pipe closes, however the parent ended.

Workers start by "spawn", so a script that makes such an environment needs the usual
`if __name__ == "__main__":` around its main part.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from algd.environments.episodes import EpisodeRecord, EpisodeRunner, EpisodeSnapshot, Transition
from algd.environments.make import EnvConfig, make_env
from algd.environments.vector import (
    Float32Array,
    StepResult,
    check_actions,
    locating,
    pack_snapshot,
    unpack_snapshot,
)
from algd.errors import ConfigError, EnvironmentFault, UserError

_JOIN_SECONDS = 5.0


class _Command(bytes, Enum):
    RESET = b"r"
    STEP = b"s"
    SNAPSHOT = b"p"
    RESTORE = b"l"
    CLOSE = b"c"


class _Reply(bytes, Enum):
    DONE = b"d"
    CONFIG_ERROR = b"g"
    FAULT = b"f"
    CRASH = b"x"


def transition_dtype(obs_dim: int) -> np.dtype[np.void]:
    """Return the record of one transition; the last five fields count where `ended` is set."""
    return np.dtype(
        [
            ("next_obs", np.float32, (obs_dim,)),
            ("obs", np.float32, (obs_dim,)),
            ("reward", np.float64),
            ("cost", np.float64),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("ended", np.bool_),
            ("episode_index", np.int64),
            ("seed", np.int64),
            ("episode_return", np.float64),
            ("episode_cost", np.float64),
            ("length", np.int64),
        ]
    )


class SubprocessVectorEnv:
    """Steps the environments in parallel, each worker a contiguous block of them."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        self.num_envs = config.num_envs
        self._config = config
        self._seed = seed
        workers = min(config.num_envs, len(os.sched_getaffinity(0)))
        blocks = np.array_split(np.arange(config.num_envs), workers)
        self._workers: list[_Worker] = []
        try:
            with _interrupts_held():
                for block in blocks:
                    self._workers.append(_Worker(config, seed, block.tolist()))
            sizes = [np.frombuffer(reply, np.int64) for reply in self._receive()]
        except BaseException:
            self.close()
            raise
        self.obs_dim, self.action_dim, self.max_episode_steps = (int(n) for n in sizes[0])
        self._dtype = transition_dtype(self.obs_dim)

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        for worker in self._workers:
            worker.send(_Command.RESET)
        return (
            np.frombuffer(b"".join(self._receive()), np.float32).reshape(self.num_envs, -1).copy()
        )

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        check_actions(actions, self.num_envs, self.action_dim)
        actions = np.ascontiguousarray(actions, np.float32)
        for worker in self._workers:
            worker.send(_Command.STEP, actions[worker.rows].tobytes())
        rows = np.frombuffer(b"".join(self._receive()), self._dtype)
        return StepResult(
            next_obs=np.ascontiguousarray(rows["next_obs"]),
            obs=np.ascontiguousarray(rows["obs"]),
            reward=rows["reward"].astype(np.float32),
            cost=rows["cost"].astype(np.float32),
            terminated=rows["terminated"].copy(),
            truncated=rows["truncated"].copy(),
            episodes=[
                _episode_record(rows[index], int(index)) for index in np.flatnonzero(rows["ended"])
            ],
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes (see `VectorCostEnv.snapshot`)."""
        for worker in self._workers:
            worker.send(_Command.SNAPSHOT)
        self._receive()
        episodes = [one for worker in self._workers for one in worker.connection.recv()]
        return pack_snapshot(self._config, self._seed, episodes)

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back (see `VectorCostEnv.restore`)."""
        saved = unpack_snapshot(self._config, self._seed, snapshot)
        for worker in self._workers:
            worker.send(_Command.RESTORE)
            worker.connection.send(saved[worker.rows])
        self._receive()
        restored = [one for worker in self._workers for one in worker.connection.recv()]
        dropped = [index for index, (_, exact) in enumerate(restored) if not exact]
        return np.stack([obs for obs, _ in restored]), dropped

    def close(self) -> None:
        """End every worker; a second call does nothing."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self) -> list[bytes]:
        """Take one reply of each worker; raise the first fault after all have answered."""
        replies: list[bytes] = []
        faults: list[Exception] = []
        for worker in self._workers:
            try:
                replies.append(worker.receive())
            except (UserError, RuntimeError) as fault:
                faults.append(fault)
        if faults:
            raise faults[0]
        return replies


class _Worker:
    """The parent's side of one worker."""

    def __init__(self, config: EnvConfig, seed: int, indices: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.rows = slice(indices[0], indices[-1] + 1)
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, config, seed, indices), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, command: _Command, payload: bytes = b"") -> None:
        try:
            self.connection.send_bytes(command + payload)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> bytes:
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._death() from error
        reply, payload = _Reply(message[:1]), message[1:]
        if reply is _Reply.DONE:
            return payload
        kinds = {_Reply.CONFIG_ERROR: ConfigError, _Reply.FAULT: EnvironmentFault}
        raise kinds.get(reply, RuntimeError)(payload.decode())

    def close(self) -> None:
        with suppress(OSError):  # it may have ended already
            self.connection.send_bytes(_Command.CLOSE)
        self._process.join(_JOIN_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _death(self) -> EnvironmentFault:
        self._process.join(_JOIN_SECONDS)
        first, last = self.rows.start, self.rows.stop - 1
        return EnvironmentFault(
            f"the worker of environments {first} to {last} ended with exit code "
            f"{self._process.exitcode} (a negative one is the signal that killed it)"
        )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: they inherit the mask, so none dies half imported."""
    resource_tracker.ensure_running()  # started later, by the first worker, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _episode_record(row: Any, env_index: int) -> EpisodeRecord:
    return EpisodeRecord(
        env_index=env_index,
        episode_index=int(row["episode_index"]),
        seed=int(row["seed"]),
        return_=float(row["episode_return"]),
        cost=float(row["episode_cost"]),
        length=int(row["length"]),
        terminated=bool(row["terminated"]),
    )


def _serve(connection: Connection, config: EnvConfig, seed: int, indices: list[int]) -> None:
    """Run a worker: make its environments, then answer commands until told to close."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runners: list[EpisodeRunner] = []
    try:
        try:
            for index in indices:  # one by one: each is closed below, however far this gets
                runners.append(  # noqa: PERF401
                    EpisodeRunner(make_env(config), seed=seed, env_index=index)
                )
            env = runners[0].env
            sizes = np.array([env.obs_dim, env.action_dim, env.max_episode_steps], np.int64)
            connection.send_bytes(_Reply.DONE + sizes.tobytes())
        except Exception as error:
            connection.send_bytes(_failure(error))
        while (message := connection.recv_bytes()) != _Command.CLOSE:
            try:
                _answer(connection, runners, config.num_envs, message)
            except Exception as error:
                connection.send_bytes(_failure(error))
    except (EOFError, OSError):
        pass  # the parent has ended; so does its worker
    finally:
        for runner in runners:
            runner.env.close()


def _answer(
    connection: Connection, runners: Sequence[EpisodeRunner], num_envs: int, message: bytes
) -> None:
    command = _Command(message[:1])
    if command is _Command.STEP:
        actions = np.frombuffer(message, np.float32, offset=1).reshape(len(runners), -1)
        rows = _step_all(runners, num_envs, actions)
        connection.send_bytes(_Reply.DONE + rows.tobytes())
    elif command is _Command.RESET:
        observations: list[bytes] = []
        for runner in runners:
            with locating(runner.env_index, num_envs):
                observations.append(runner.reset().tobytes())
        connection.send_bytes(_Reply.DONE + b"".join(observations))
    elif command is _Command.SNAPSHOT:
        snapshots = [runner.snapshot() for runner in runners]
        connection.send_bytes(_Reply.DONE)
        connection.send(snapshots)
    else:
        saved: list[EpisodeSnapshot] = connection.recv()
        restored: list[tuple[Float32Array, bool]] = []
        for runner, one in zip(runners, saved, strict=True):
            with locating(runner.env_index, num_envs):
                restored.append(runner.restore(one))
        connection.send_bytes(_Reply.DONE)
        connection.send(restored)


def _step_all(
    runners: Sequence[EpisodeRunner], num_envs: int, actions: Float32Array
) -> NDArray[np.void]:
    rows = np.zeros(len(runners), transition_dtype(runners[0].env.obs_dim))
    for row, runner, action in zip(rows, runners, actions, strict=True):
        with locating(runner.env_index, num_envs):
            _fill(row, runner.step(action))
    return rows


def _fill(row: Any, transition: Transition) -> None:
    *values, episode = transition
    names = ("next_obs", "obs", "reward", "cost", "terminated", "truncated")
    for name, value in zip(names, values, strict=True):
        row[name] = value
    if episode is not None:
        row["ended"] = True
        row["episode_index"] = episode.episode_index
        row["seed"] = episode.seed
        row["episode_return"] = episode.return_
        row["episode_cost"] = episode.cost
        row["length"] = episode.length


def _failure(error: Exception) -> bytes:
    if isinstance(error, ConfigError):
        return _Reply.CONFIG_ERROR + str(error).encode()
    if isinstance(error, UserError):
        return _Reply.FAULT + str(error).encode()
    return _Reply.CRASH + traceback.format_exc().encode()
