"""The whole state of a trainer as a tree, and back: what makes a resumed run the same run.

In: a ``Trainer``. Out: a nested dict of numbers, tensors and strings for the checkpoint, and the
trainer as it was, every generator, counter and running episode included.
"""

import logging
from typing import TYPE_CHECKING, Any

from algd.training.run_directory import config_must_fit

if TYPE_CHECKING:
    from algd.training.trainer import Trainer

_log = logging.getLogger("algd")


def policy_state(trainer: "Trainer") -> dict[str, Any]:
    """Return what ``algd.load`` needs: agent, normaliser and the shape of the task."""
    space = trainer.evaluation_env.original_action_space
    return {
        "agent": trainer.agent.state_dict(),
        "normalizer": trainer.normalizer.state_dict(),
        "task": {
            "env_id": trainer.config.env.id,
            "obs_dim": trainer.env.obs_dim,
            "action_dim": trainer.env.action_dim,
            "episode_length": trainer.env.max_episode_steps,
            "action_low": space.low,
            "action_high": space.high,
            "env_step": trainer.env_step,
            "reward_scale": trainer.reward_scale,
        },
    }


def training_state(trainer: "Trainer", *, with_env: bool = True) -> dict[str, Any]:
    """Return everything that a bitwise continuation needs, besides the replay rows.

    ``with_env`` false gives the running episodes up: after a fault they cannot be repeated.
    """
    return policy_state(trainer) | {
        "env": trainer.env.snapshot() if with_env else trainer.env.lost_snapshot(),
        "returns": None if trainer.returns is None else trainer.returns.state_dict(),
        "acting": trainer.acting.get_state(),
        "sampling": trainer.sampling.get_state(),
        "exploration": trainer.exploration.bit_generator.state,
        "counters": {
            "env_step": trainer.env_step,
            "num_updates": trainer.num_updates,
            "update_credit": trainer.update_credit,
            "last_recorded": trainer.last_recorded,
            "dropped_episodes": trainer.dropped_episodes,
        },
        "window": trainer.window.state_dict()
        | {
            "episodes": list(trainer.window_episodes),
            "recent": list(trainer.recent_episodes),
        },
        "evaluations": trainer.evaluations,
        "best_safe": trainer.best_safe,
    }


def restore_training(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Bring back what ``training_state`` returned; episodes are replayed to their last step.

    What a kind of device draws, another cannot go on with: there new streams of noise begin.
    """
    agent, same_kind = state["agent"], len(state["sampling"]) == len(trainer.sampling.get_state())
    if same_kind:
        trainer.sampling.set_state(state["sampling"].cpu())
    else:
        agent = {name: part for name, part in agent.items() if name != "generator"}
        _log.warning(
            "the run was saved on another kind of device; it goes on here (%s), but with other "
            "random numbers than it would have had there",
            trainer.device,
        )
    with config_must_fit(trainer.run_dir):
        trainer.agent.load_state_dict(agent)
        trainer.normalizer.load_state_dict(state["normalizer"])
    if trainer.returns is not None:
        trainer.returns.load_state_dict(state["returns"])
    trainer.acting.set_state(state["acting"])
    trainer.exploration.bit_generator.state = state["exploration"]
    counters = state["counters"]
    trainer.env_step = counters["env_step"]
    trainer.num_updates = counters["num_updates"]
    trainer.update_credit = counters["update_credit"]
    trainer.last_recorded = counters["last_recorded"]
    trainer.dropped_episodes = counters.get("dropped_episodes", 0)  # absent before 1 was possible
    window = state["window"]
    trainer.window.load_state_dict(window, trainer.device)
    trainer.window_episodes = [tuple(row) for row in window["episodes"]]
    trainer.recent_episodes.extend(tuple(row) for row in window["recent"])
    trainer.evaluations = state["evaluations"]
    trainer.best_safe = state["best_safe"]
    if state["env"] is None:  # saved after a fault, before the episodes that ran then were noted
        trainer.obs, dropped = trainer.env.reset(), list(range(trainer.env.num_envs))
    else:
        trainer.obs, dropped = trainer.env.restore(state["env"])
    if trainer.returns is not None:
        trainer.returns.forget(dropped)
    if dropped:
        trainer.dropped_episodes += len(dropped)
        _log.warning(
            "the running episodes of environments %s cannot be repeated bit for bit; "
            "they are dropped and the next ones started",
            dropped,
        )
