"""The worker of a `SubprocessVectorEnv`: makes its environments and answers its parent's commands.

In: a line with commands, each one byte and the raw bytes of its arrays. Out: replies, one byte and
the raw bytes of theirs; an exception becomes a reply and the worker lives on. Ctrl-C and SIGTERM
are the parent's to handle; the worker ends when the parent's end of the pipe closes.
"""

import json
import signal
import traceback
from collections.abc import Sequence
from enum import Enum
from multiprocessing.connection import Connection

import numpy as np

from algd.environments.block import EnvBlock, Rows, transition_dtype
from algd.environments.episodes import EpisodeSnapshot
from algd.environments.line import Line
from algd.environments.make import EnvConfig
from algd.errors import ConfigError, UserError

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
    line, block = Line(connection), None
    try:
        try:
            survives = config.max_restarts > 0
            block = EnvBlock(config, seed, indices, episode_indices, survives=survives)
            line.send(Reply.DONE + np.array(block.sizes, np.int64).tobytes())
        except Exception as error:
            line.send(_failure(error))
            line.receive()  # nothing but the order to close can follow
            return
        _answer_all(line, block, len(indices))
    except (EOFError, OSError):
        pass  # the parent has ended; so does its worker
    finally:
        if block is not None:
            block.close()


def _answer_all(line: Line, block: EnvBlock, num_envs: int) -> None:
    rows = Rows(np.zeros(num_envs, transition_dtype(block.sizes[0])))
    while True:
        line.wait()
        message = line.receive()
        if message == Command.CLOSE:
            return
        try:
            answer = Reply.DONE + _answer(block, rows, message)
        except Exception as error:
            answer = _failure(error)
        line.send(answer)


def _answer(block: EnvBlock, rows: Rows, message: bytes) -> bytes:
    command, payload = message[:1], message[1:]
    if command == Command.STEP:
        crashes = block.step(
            np.frombuffer(payload, np.float32).reshape(len(rows.records), -1), rows
        )
        # The words after the rows, whose length the parent knows.
        return rows.records.tobytes() + "; ".join(crashes).encode()
    if command == Command.RESET:
        return block.reset().tobytes()
    if command == Command.SNAPSHOT:
        return pack_episodes(block.snapshot())
    restored = block.restore(unpack_episodes(payload, block.sizes[1]))
    exact = np.array([same for _, same in restored])
    return np.stack([obs for obs, _ in restored]).tobytes() + exact.tobytes()


def pack_episodes(episodes: Sequence[EpisodeSnapshot]) -> bytes:
    """Write running episodes as JSON; it brings every float back to the last bit."""
    arrays = ("actions", "obs")
    return json.dumps(
        [{**episode, **{name: episode[name].tolist() for name in arrays}} for episode in episodes]
    ).encode()


def unpack_episodes(data: bytes, action_dim: int) -> list[EpisodeSnapshot]:
    """Read what `pack_episodes` wrote."""
    episodes: list[EpisodeSnapshot] = json.loads(data)
    for episode in episodes:
        episode["actions"] = np.array(episode["actions"], np.float32).reshape(-1, action_dim)
        episode["obs"] = np.array(episode["obs"], np.float32)
    return episodes


def _failure(error: Exception) -> bytes:
    if isinstance(error, ConfigError):
        return Reply.CONFIG_ERROR + str(error).encode()
    if isinstance(error, UserError):
        return Reply.FAULT + str(error).encode()
    return Reply.CRASH + traceback.format_exc().encode()
