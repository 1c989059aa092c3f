"""The worker of a `SubprocessVectorEnv`: makes its environments and answers its parent's commands.

In: a pipe with commands, each one byte and the raw bytes of its arrays. Out: replies, one byte and
the raw bytes of theirs; an exception becomes a reply and the worker lives on. An environment that
raises in a step is made anew and starts its next episode; the row says so. Ctrl-C and SIGTERM are
the parent's to handle; the worker ends when the parent's end of the pipe closes.
"""

import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.episodes import EpisodeRunner, EpisodeSnapshot, Transition
from algd.environments.make import EnvConfig, make_env
from algd.environments.vector import Float32Array, locating
from algd.errors import ConfigError, EnvironmentCrash, UserError

_GRACE_SECONDS = 10  # what SIGTERM to a whole process group leaves the parent for saving


class Command(bytes, Enum):
    """What the parent asks for."""

    RESET = b"r"
    STEP = b"s"
    SNAPSHOT = b"p"
    RESTORE = b"l"
    CLOSE = b"c"


class Reply(bytes, Enum):
    """How a command ended."""

    DONE = b"d"
    CONFIG_ERROR = b"g"
    FAULT = b"f"
    CRASH = b"x"


def transition_dtype(obs_dim: int) -> np.dtype[np.void]:
    """Return the record of one transition.

    `running` is the index of the episode that runs on. Where `dropped` is set, the environment
    crashed in this step and only `obs` and `running` count; the last five fields count where
    `ended` is set.
    """
    return np.dtype(
        [
            ("next_obs", np.float32, (obs_dim,)),
            ("obs", np.float32, (obs_dim,)),
            ("reward", np.float64),
            ("cost", np.float64),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
            ("running", np.int64),
            ("dropped", np.bool_),
            ("ended", np.bool_),
            ("episode_index", np.int64),
            ("seed", np.int64),
            ("episode_return", np.float64),
            ("episode_cost", np.float64),
            ("length", np.int64),
        ]
    )


def serve(
    connection: Connection,
    config: EnvConfig,
    seed: int,
    indices: list[int],
    episode_indices: list[int],
) -> None:
    """Run a worker: make its environments, then answer commands until told to close.

    Args:
        connection: the worker's end of the pipe.
        config, seed: of the whole vector.
        indices: the environments this worker has.
        episode_indices: for each the last episode before its next one, -1 at the start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    runners: list[EpisodeRunner] = []
    try:
        try:
            # One by one: each is closed below, however far this gets.
            for index, episode in zip(indices, episode_indices, strict=True):
                env = make_env(config)
                runners.append(
                    EpisodeRunner(env, seed=seed, env_index=index, episode_index=episode)
                )
            env = runners[0].env
            sizes = np.array([env.obs_dim, env.action_dim, env.max_episode_steps], np.int64)
            connection.send_bytes(Reply.DONE + sizes.tobytes())
        except Exception as error:
            connection.send_bytes(_failure(error))
        while (message := connection.recv_bytes()) != Command.CLOSE:
            try:
                _answer(connection, runners, config, message)
            except Exception as error:
                connection.send_bytes(_failure(error))
    except (EOFError, OSError):
        pass  # the parent has ended; so does its worker
    finally:
        for runner in runners:
            runner.env.close()


def _answer(
    connection: Connection, runners: Sequence[EpisodeRunner], config: EnvConfig, message: bytes
) -> None:
    command, num_envs = Command(message[:1]), config.num_envs
    if command is Command.STEP:
        actions = np.frombuffer(message, np.float32, offset=1).reshape(len(runners), -1)
        rows, crashes = _step_all(runners, config, actions)
        text = "; ".join(crashes).encode()  # after the rows, whose length the parent knows
        connection.send_bytes(Reply.DONE + rows.tobytes() + text)
    elif command is Command.RESET:
        observations: list[bytes] = []
        for runner in runners:
            with locating(runner.env_index, num_envs):
                observations.append(runner.reset().tobytes())
        connection.send_bytes(Reply.DONE + b"".join(observations))
    elif command is Command.SNAPSHOT:
        snapshots = [runner.snapshot() for runner in runners]
        connection.send_bytes(Reply.DONE)
        connection.send(snapshots)
    else:
        saved: list[EpisodeSnapshot] = connection.recv()
        restored: list[tuple[Float32Array, bool]] = []
        for runner, one in zip(runners, saved, strict=True):
            with locating(runner.env_index, num_envs):
                restored.append(runner.restore(one))
        connection.send_bytes(Reply.DONE)
        connection.send(restored)


def _step_all(
    runners: Sequence[EpisodeRunner], config: EnvConfig, actions: Float32Array
) -> tuple[NDArray[np.void], list[str]]:
    rows = np.zeros(len(runners), transition_dtype(runners[0].env.obs_dim))
    crashes: list[str] = []
    for row, runner, action in zip(rows, runners, actions, strict=True):
        with locating(runner.env_index, config.num_envs):
            try:
                _fill(row, runner.step(action))
            except EnvironmentCrash as crash:
                if config.max_restarts == 0:
                    raise
                crashes.append(f"environment {runner.env_index} of {config.num_envs}: {crash}")
                with suppress(Exception):  # it has crashed already
                    runner.env.close()
                runner.env = make_env(config)
                row["dropped"], row["obs"] = True, runner.reset()
            row["running"] = runner.episode_index
    return rows, crashes


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
        return Reply.CONFIG_ERROR + str(error).encode()
    if isinstance(error, UserError):
        return Reply.FAULT + str(error).encode()
    return Reply.CRASH + traceback.format_exc().encode()
