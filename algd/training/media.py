"""What a trainer shows of its policy at an evaluation, besides numbers.

In: a ``Trainer``. Out: a histogram of lambda(s) and, at the interval of ``TrackingConfig``,
pictures in the tracker. Draws from the replay by a generator of its own: training does not notice.
"""

import logging
import time
from typing import TYPE_CHECKING

import torch

from algd.training.pictures import can_draw, draw_pictures, multipliers

if TYPE_CHECKING:
    from algd.training.trainer import Trainer

_log = logging.getLogger("algd")
_STATES = 512  # of the replay, in histograms and maps


def record_pictures(trainer: "Trainer") -> None:
    """Record the multipliers of replayed states, and pictures where they are due.

    A picture that fails is one warning: no run ends for it.
    """
    if not trainer.tracker.shows_media or len(trainer.replay) == 0:
        return
    started = time.perf_counter()
    step, scale = trainer.env_step, trainer.reward_scale
    generator = torch.Generator(trainer.device).manual_seed(step)
    obs = trainer.normalizer.normalize_tensor(trainer.replay.sample(_STATES, generator).obs)
    try:
        if _pictures_due(trainer):
            title = f"{trainer.config.env.id}, step {step:,}"
            drawn = draw_pictures(trainer.agent, obs, reward_scale=scale, title=title)
            values = drawn.multipliers
            for name, pixels in drawn.images.items():
                trainer.tracker.image(f"pictures/{name}", pixels, step)
        else:
            values = multipliers(trainer.agent, obs, reward_scale=scale)
        trainer.tracker.histogram("multiplier/states", values, step)
    except (RuntimeError, ValueError, ImportError) as error:
        _log.warning("no pictures at step %d: %s", step, error)
    trainer.tracker.log_time(step, {"time/pictures": time.perf_counter() - started})


def _pictures_due(trainer: "Trainer") -> bool:
    """At the first evaluation after each multiple of the interval, and at the last."""
    interval = trainer.config.tracking.picture_interval
    if interval is None or not can_draw():
        return False
    step = trainer.env_step
    if step >= trainer.config.train.total_steps:
        return True
    every = trainer.config.evaluation.interval
    return step // interval > max(step - every, 0) // interval or step <= every
