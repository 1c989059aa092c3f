"""Saving a run, and what a refusal means for it: never silence, never a claim to have saved.

In: a state tree and the replay. Out: a checkpoint, or ``CheckpointError``, or a warning and a run
that goes on: ``train.on_save_error`` decides. Numbers that are not finite are never saved, so that
the newest checkpoint is always one to go on from.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from alam.replay import ReplayBuffer
from algd.errors import CheckpointError, DivergenceError
from algd.training.checkpoint import CheckpointStore
from algd.training.metric_window import first_not_finite
from algd.training.run_lock import RunLock
from algd.training.tracking import Tracker

_log = logging.getLogger("algd")


class Saver:
    """Writes the checkpoints and kept policies of one run.

    Args:
        store: where they go.
        lock: held on the run directory.
        tracker: whose rows a checkpoint vouches for.
        on_error: ``stop`` raises, ``continue`` warns and tries again at the next save.
        keep: checkpoints kept.
        last_saved: env step of the checkpoint the run continues from, -1 without.
    """

    def __init__(
        self,
        store: CheckpointStore,
        lock: RunLock,
        tracker: Tracker,
        *,
        on_error: Literal["stop", "continue"],
        keep: int,
        last_saved: int = -1,
    ) -> None:
        self.last_saved = last_saved
        self._store = store
        self._lock = lock
        self._tracker = tracker
        self._on_error = on_error
        self._keep = keep

    def save(self, env_step: int, state: dict[str, Any], replay: ReplayBuffer) -> None:
        """Write a checkpoint; ``last_saved`` tells whether it is on the disk.

        Raises:
            DivergenceError: a number of ``state["agent"]`` is not finite.
            CheckpointError: the disk refused, and ``on_error`` is ``stop``.
        """
        self.require_finite(env_step, state["agent"])
        with self._refusals_handled(env_step, "a checkpoint"):
            self._lock.require_held()
            self._tracker.flush()  # a checkpoint vouches for the rows before it
            path = self._store.save(env_step, state, replay, keep=self._keep)
            self.last_saved = env_step
            self._tracker.checkpoint(path, env_step)

    def save_policy(self, name: str, env_step: int, state: dict[str, Any]) -> None:
        """Keep a policy under ``name``; errors as ``save``."""
        with self._refusals_handled(env_step, f"the policy {name}"):
            self._lock.require_held()
            self._store.save_policy(name, env_step, state)

    def require_finite(self, env_step: int, agent_state: dict[str, Any], *broken: str) -> None:
        """Raise DivergenceError if metrics are ``broken``, or a number of the agent's state is."""
        where = first_not_finite(agent_state)
        names = [*broken, *([] if where is None else [where])]
        if names:
            raise DivergenceError(
                f"{', '.join(names)} not finite at step {env_step} of {self._store.run_dir}: "
                "lower the learning rates or the penalty coefficient, or check the costs and "
                f"rewards of the environment; {self.newest()}"
            )

    def require_saved(self, env_step: int) -> None:
        """Raise CheckpointError if the end of the run was refused: it must not look saved."""
        if self.last_saved < env_step:
            raise CheckpointError(
                f"training ended at step {env_step} UNSAVED in {self._store.run_dir}; "
                f"{self.newest()}"
            )

    def newest(self) -> str:
        """Say of which step the newest checkpoint is."""
        if self.last_saved < 0:
            return "there is no checkpoint yet"
        return f"the newest checkpoint is of step {self.last_saved}"

    @contextmanager
    def _refusals_handled(self, env_step: int, what: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            message = f"step {env_step}: {what} was NOT SAVED: {error}"
            if self._on_error == "stop":
                raise CheckpointError(f"{message}; {self.newest()}") from error
            _log.warning("%s; training goes on, %s", message, self.newest())
