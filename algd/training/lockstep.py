"""Runs of one process side by side: their updates are taken together where a device gains by it.

In: trainers that differ in their seed alone. Out: each trained to its end, as it would be alone. A
trainer asks before each update; those that are furthest behind get theirs next, in one joint update
where they are several. So runs that were stopped at different moments catch up and go on together,
and one that failed leaves the others as they are.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from alam.captured import CapturedUpdates
from alam.types import Batch, Metrics, Updatable
from algd.diffusion.joint import is_joinable, join
from algd.errors import UserError
from algd.training.metric_window import stacked
from algd.training.stopping import Interrupted, StopRequest

if TYPE_CHECKING:
    from algd.training.trainer import Trainer

Row = tuple[tuple[str, ...], Tensor]
"""Names and values (M,) of the metrics of the update that was asked for; in its place None where no
update is taken, since the process is to stop."""

_log = logging.getLogger("algd")


class Lockstep:
    """Gives trainers their updates until all have come to their end.

    Args:
        trainers: one or more, built on one device, of configurations that differ in their seed.
        stop: the request that all of them look at.
        joins: update several as one; by default on a GPU, since a CPU is faster one by one, and
            only what ``algd.diffusion.joint`` can join.
    """

    def __init__(
        self, trainers: Sequence["Trainer"], stop: StopRequest, *, joins: bool | None = None
    ) -> None:
        # Those at their end have little left to do, and may wait for a server with it.
        self._trainers = sorted(trainers, key=lambda t: t.env_step >= t.config.train.total_steps)
        self._stop = stop
        self._captures = trainers[0].captures_updates
        self._joins = trainers[0].device.type == "cuda" if joins is None else joins
        self._joins &= len(trainers) > 1 and is_joinable([t.agent for t in trainers])
        self._runs = {trainer: trainer.training() for trainer in self._trainers}
        self._locks = [trainer.lock for trainer in trainers]
        for trainer in trainers:
            trainer.locks = self._locks
        self._wanted: dict[Trainer, bool] = {}
        self._failures: list[Exception] = []
        self._interrupted: Interrupted | None = None
        self._learner: _Learner | None = None

    def run(self) -> None:
        """Train all.

        Raises:
            Interrupted: a stop was asked for, and every run is saved.
            Exception: of the first run that failed, once the others are at their end or saved.
        """
        self._choose_who_shows_progress()
        try:
            for trainer in self._trainers:
                self._advance(trainer, None)
            while self._wanted:
                self._give_next()
        finally:
            for run in self._runs.values():
                run.close()
        for error in (*self._failures, self._interrupted):
            if error is not None:
                raise error

    def _give_next(self) -> None:
        """Let the runs that are furthest behind go on, those that are to stop first."""
        if self._stop.signal_number is not None:
            leaving = [trainer for trainer, must in self._wanted.items() if not must]
            for trainer in leaving:  # before one of them waits for a server or a worker
                self._save(trainer)
            for trainer in leaving:
                if trainer in self._wanted:
                    self._advance(trainer, None)
            if leaving:
                return
        behind = min(trainer.num_updates for trainer in self._wanted)
        group = [t for t in self._trainers if t in self._wanted and t.num_updates == behind]
        if self._learner is None or self._learner.trainers != group:
            if self._learner is not None:
                self._learner.release()
            together = self._joins and len(group) > 1
            self._learner = (_Together if together else _OneByOne)(group, self._captures)
        for trainer, row in zip(group, self._learner.update(), strict=True):
            self._advance(trainer, row)

    def _advance(self, trainer: "Trainer", row: Row | None) -> None:
        """Let a run go on to its next update; a failure is kept until the others have ended."""
        self._wanted.pop(trainer, None)
        try:
            self._wanted[trainer] = self._runs[trainer].send(row)
        except StopIteration:
            self._take_leave(trainer)
        except Interrupted as interrupted:
            self._interrupted = self._interrupted or interrupted
            self._take_leave(trainer)
        except Exception as error:
            self._fail(trainer, error)

    def _save(self, trainer: "Trainer") -> None:
        try:
            trainer.save_for_stop()
        except UserError as error:
            self._wanted.pop(trainer)
            self._runs[trainer].close()
            self._fail(trainer, error)

    def _fail(self, trainer: "Trainer", error: Exception) -> None:
        if len(self._trainers) > 1:
            after = "are saved" if self._stop.signal_number is not None else "go on"
            _log.warning("%s failed: %s; the other seeds %s", trainer.run_dir, error, after)
        self._failures.append(error)
        self._take_leave(trainer)

    def _take_leave(self, trainer: "Trainer") -> None:
        self._locks.remove(trainer.lock)
        if trainer.shows_progress:
            self._choose_who_shows_progress()

    def _choose_who_shows_progress(self) -> None:
        """Of several lines on one terminal, show the first run's that goes on."""
        left = [trainer for trainer in self._trainers if trainer.lock in self._locks]
        for trainer in left:
            trainer.shows_progress = trainer is left[0]


class _Learner(Protocol):
    """Takes one update of every trainer of a group."""

    trainers: "list[Trainer]"

    def update(self) -> Sequence[Row]: ...

    def release(self) -> None: ...


class _OneByOne:
    def __init__(self, trainers: "list[Trainer]", captures: bool) -> None:
        self.trainers = trainers
        self._agents = [_captured(trainer.agent, captures) for trainer in trainers]

    def update(self) -> Sequence[Row]:
        pairs = zip(self.trainers, self._agents, strict=True)
        return [stacked(agent.update(trainer.sample_batch())) for trainer, agent in pairs]

    def release(self) -> None:
        pass


class _Together:
    def __init__(self, trainers: "list[Trainer]", captures: bool) -> None:
        self.trainers = trainers
        self._joint = join([trainer.agent for trainer in trainers])
        self._updates = _captured(self._joint, captures)

    def update(self) -> Sequence[Row]:
        rows = [trainer.sample_batch() for trainer in self.trainers]
        batch = Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))
        names, values = stacked(self._updates.update(batch))
        return [(names, row) for row in values]

    def release(self) -> None:
        self._joint.release()


def _captured(agent: "_Agent", captures: bool) -> "CapturedUpdates | _Agent":
    return CapturedUpdates(agent) if captures else agent


class _Agent(Updatable, Protocol):
    def update(self, batch: Batch) -> Metrics: ...
