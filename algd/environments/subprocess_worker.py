"""The worker of a `SubprocessVectorEnv`: makes its environments and answers its parent's commands.

In: a pipe with commands, each one byte and the raw bytes of its arrays. Out: replies, one byte and
the raw bytes of theirs; an exception becomes a reply and the worker lives on. Ctrl-C and SIGTERM
are the parent's to handle; the worker ends when the parent's end of the pipe closes.
"""

import signal
import traceback
from enum import Enum
from multiprocessing.connection import Connection

import numpy as np

from algd.environments.block import EnvBlock, Rows, transition_dtype
from algd.environments.make import EnvConfig
from algd.environments.waiting import Waiter
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
    block: EnvBlock | None = None
    try:
        try:
            survives = config.max_restarts > 0
            block = EnvBlock(config, seed, indices, episode_indices, survives=survives)
            connection.send_bytes(Reply.DONE + np.array(block.sizes, np.int64).tobytes())
        except Exception as error:
            connection.send_bytes(_failure(error))
            connection.recv_bytes()  # nothing but the order to close can follow
            return
        _answer_all(connection, block, len(indices))
    except (EOFError, OSError):
        pass  # the parent has ended; so does its worker
    finally:
        if block is not None:
            block.close()


def _answer_all(connection: Connection, block: EnvBlock, num_envs: int) -> None:
    rows = Rows(np.zeros(num_envs, transition_dtype(block.sizes[0])))
    waiter = Waiter(connection)
    while True:
        waiter.wait()
        message = connection.recv_bytes()
        if message == Command.CLOSE:
            return
        try:
            _answer(connection, block, rows, message)
        except Exception as error:
            connection.send_bytes(_failure(error))


def _answer(connection: Connection, block: EnvBlock, rows: Rows, message: bytes) -> None:
    command = Command(message[:1])
    if command is Command.STEP:
        actions = np.frombuffer(message, np.float32, offset=1).reshape(len(rows.records), -1)
        crashes = block.step(actions, rows)
        text = "; ".join(crashes).encode()  # after the rows, whose length the parent knows
        connection.send_bytes(Reply.DONE + rows.records.tobytes() + text)
    elif command is Command.RESET:
        connection.send_bytes(Reply.DONE + block.reset().tobytes())
    elif command is Command.SNAPSHOT:
        snapshots = block.snapshot()
        connection.send_bytes(Reply.DONE)
        connection.send(snapshots)
    else:
        restored = block.restore(connection.recv())
        connection.send_bytes(Reply.DONE)
        connection.send(restored)


def _failure(error: Exception) -> bytes:
    if isinstance(error, ConfigError):
        return Reply.CONFIG_ERROR + str(error).encode()
    if isinstance(error, UserError):
        return Reply.FAULT + str(error).encode()
    return Reply.CRASH + traceback.format_exc().encode()
