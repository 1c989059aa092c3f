"""A trainer taken a step on by hand, for what measures or watches single steps."""

from contextlib import suppress

from algd.training.metric_window import stacked
from algd.training.trainer import Trainer


def step_and_update(trainer: Trainer) -> None:
    """Step the environments once, and take the updates that are due then."""
    trainer._finish_step(trainer._start_step())
    trainer._earn_updates()
    asks = trainer._spend_updates()
    with suppress(StopIteration):
        next(asks)
        while True:
            asks.send(stacked(trainer.agent.update(trainer.sample_batch())))
