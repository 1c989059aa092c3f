"""What a run writes down on its way: rows of metrics, evaluations, episodes.

In: a ``Trainer`` between two steps. Out: rows in its tracker, the list of its evaluations, the best
safe policy. Nothing here changes what is trained next.
"""

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from algd.environments.episodes import EpisodeRecord
from algd.training.evaluation import evaluate_policy
from algd.training.media import record_pictures
from algd.training.run_state import policy_state
from algd.training.stopping import StopAsked

if TYPE_CHECKING:
    from algd.training.trainer import Trainer


def record_row(trainer: "Trainer") -> None:
    """Write a row of metrics and evaluate, where due.

    Raises:
        DivergenceError: a metric or a number of the agent is not finite.
        StopAsked: a stop was asked for during an evaluation.
    """
    log_due = trainer.due(trainer.config.train.log_interval)
    row = _window_row(trainer) if log_due else {}
    if trainer.due(trainer.config.evaluation.interval):
        row |= evaluate(trainer)
    if row:
        trainer.tracker.log(trainer.env_step, row)
    if log_due:
        trainer.window.clear()
        trainer.window_episodes.clear()


def record_episode(trainer: "Trainer", episode: EpisodeRecord) -> None:
    """Write a finished training episode, and count it for the next row."""
    trainer.window_episodes.append((episode.return_, episode.cost, episode.length))
    trainer.recent_episodes.append((episode.return_, episode.cost))
    trainer.tracker.episode(
        {
            "env_step": trainer.env_step,
            "env_index": episode.env_index,
            "episode_index": episode.episode_index,
            "seed": episode.seed,
            "return": episode.return_,
            "cost": episode.cost,
            "length": episode.length,
            "terminated": episode.terminated,
        }
    )


def _window_row(trainer: "Trainer") -> dict[str, float]:
    means = trainer.window.means()
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    trainer.saver.require_finite(trainer.env_step, trainer.agent.state_dict(), *broken)
    trainer.bound_watch.observe(trainer.env_step, means)
    if trainer.window_episodes:
        columns = np.array(trainer.window_episodes, dtype=np.float64).mean(0)
        names = ("train/return", "train/cost", "train/episode_length")
        means |= dict(zip(names, map(float, columns), strict=True))
    if trainer.dropped_episodes:
        means["train/dropped_episodes"] = float(trainer.dropped_episodes)
    if trainer.config.constraint.calibration_rate > 0.0:
        means["train/cost_threshold"] = float(trainer.agent.constraint.threshold)
    if trainer.returns is not None:
        means["train/reward_scale"] = trainer.reward_scale
    return means | {"train/num_updates": float(trainer.num_updates)}


def evaluate(trainer: "Trainer") -> dict[str, float]:
    """Evaluate on the environment kept for it, and keep the best safe policy."""
    config, step, tracker = trainer.config, trainer.env_step, trainer.tracker
    started = time.perf_counter()
    with trainer.stop.bounded(StopAsked):
        result = evaluate_policy(
            trainer.agent,
            trainer.normalizer,
            trainer.evaluation_env,
            episodes=config.evaluation.episodes,
            mode=config.evaluation.mode,
            seed=config.seed,
            on_step=trainer.breathe,
        )
    metrics = result.metrics(config.constraint.cost_limit)
    tracker.evaluation(step, result.returns, result.costs, result.lengths)
    row = {"env_step": float(step), **metrics}
    trainer.evaluations.append(row)
    safe = metrics["eval/cost"] <= config.constraint.cost_limit
    best = trainer.best_safe
    if safe and (best is None or metrics["eval/return"] > best["eval/return"]):
        trainer.best_safe = row
        trainer.saver.save_policy("best_safe", step, policy_state(trainer))
    tracker.log_time(step, {"time/evaluation": time.perf_counter() - started})
    record_pictures(trainer)
    return metrics
