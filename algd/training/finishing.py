"""The end of a run that reached its last step: video, model artifact, table of evaluations.

In: a ``Trainer`` after its last step. Out: ``videos/final.mp4``, a summary in the tracker, and a
table on stdout.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from algd.errors import EnvironmentFault
from algd.training.evaluation import record_video
from algd.training.stopping import StopAsked

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig
    from algd.training.trainer import Trainer

_log = logging.getLogger("algd")


def finish_run(trainer: "Trainer") -> None:
    """Write video, artifacts and summary, print the table."""
    if trainer.config.evaluation.video:
        _record_final_video(trainer)
    best = trainer.best_safe
    rows = {"start": trainer.evaluations[0], "best safe": best, "last": trainer.evaluations[-1]}
    kept = list((trainer.run_dir / "policies" / "best_safe").glob("step_*"))
    if best is not None and kept:
        trainer.tracker.model_artifact(max(kept), ["best-safe"], int(best["env_step"]), best)
    with trainer.stop.bounded():  # W&B may still have much to send
        trainer.tracker.finish({name: row for name, row in rows.items() if row is not None})
    print_summary(trainer.config, rows, trainer.run_dir)


def _record_final_video(trainer: "Trainer") -> None:
    """Write final.mp4; what cannot be rendered here is one line and no video."""
    config = trainer.config
    try:
        with trainer.stop.bounded(StopAsked):
            path = record_video(
                trainer.agent,
                trainer.normalizer,
                config.env,
                trainer.run_dir / "videos" / "final.mp4",
                mode=config.evaluation.mode,
                seed=config.seed,
                max_steps=config.evaluation.video_steps,
                on_step=trainer.stop.raise_if_asked,
            )
    except EnvironmentFault as fault:
        _log.warning("no video: %s", fault)
        return
    if path is not None:
        trainer.tracker.video(path, trainer.env_step)


def print_summary(
    config: "ExperimentConfig", rows: dict[str, dict[str, float] | None], run_dir: Path
) -> None:
    """Print the table of evaluations: start, best safe, last."""
    evaluation = config.evaluation
    limit = config.constraint.cost_limit
    print(
        f"\n{config.env.id}, {config.policy.kind} policy, {config.multiplier.kind} multiplier, "
        f"seed {config.seed}; {evaluation.episodes} episodes, {evaluation.mode}; "
        f"cost limit {limit:g}"
    )
    print(f"{'':<10} {'step':>9} {'return':>18} {'cost':>18} {'over limit':>11}")
    for name, row in rows.items():
        if row is None:
            print(f"{name:<10} {'none: no evaluation met the cost limit':>40}")
            continue
        returns = f"{row['eval/return']:.2f} ± {row['eval/return_std']:.2f}"
        costs = f"{row['eval/cost']:.2f} ± {row['eval/cost_std']:.2f}"
        print(
            f"{name:<10} {int(row['env_step']):>9} {returns:>18} {costs:>18} "
            f"{row['eval/violation_rate']:>11.0%}"
        )
    print(f"run directory: {run_dir}")
