"""Load a trained policy from a run directory.

In: a run directory. Out: an object whose ``act`` takes raw observations of the environment and
returns actions in the environment's own box.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alam.types import Agent
from algd.training.checkpoint import CheckpointStore
from algd.training.normalization import RunningNormalizer

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig


class LoadedPolicy:
    """A trained agent with its normaliser and action box.

    Attributes: ``config`` the resolved experiment, ``env_step`` the step it was saved at, ``agent``
    (normalised observations in, actions in [-1, 1] out) and ``normalizer``.
    """

    def __init__(self, config: "ExperimentConfig", state: dict[str, Any]) -> None:
        from algd.experiments.config import make_agent

        task = state["task"]
        self.config = config
        self.env_step: int = task["env_step"]
        self.obs_dim: int = task["obs_dim"]
        self.action_low = np.asarray(task["action_low"], dtype=np.float64)
        self.action_high = np.asarray(task["action_high"], dtype=np.float64)
        self.agent: Agent = make_agent(
            config,
            obs_dim=task["obs_dim"],
            action_dim=task["action_dim"],
            episode_length=task["episode_length"],
            device=torch.device("cpu"),
        )
        self.agent.load_state_dict(state["agent"])
        self.normalizer: RunningNormalizer | None = None
        if state["normalizer"] is not None:
            self.normalizer = RunningNormalizer(self.obs_dim)
            self.normalizer.load_state_dict(state["normalizer"])
        self.generator = torch.Generator().manual_seed(config.seed)

    def act(self, obs: np.ndarray, *, deterministic: bool = True) -> np.ndarray:
        """Return actions in the environment's box.

        Args:
            obs: (O,) or (N, O) observations as the environment gives them.
            deterministic: the deterministic mode of the agent, or a sample.
        """
        array = np.asarray(obs, dtype=np.float32)
        if array.shape[-1:] != (self.obs_dim,) or array.ndim not in (1, 2):
            raise ValueError(
                f"obs must have shape ({self.obs_dim},) or (N, {self.obs_dim}), got {array.shape}"
            )
        batch = array.reshape(-1, self.obs_dim)
        if self.normalizer is not None:
            batch = self.normalizer.normalize(batch)
        normalised = self.agent.act(batch, generator=self.generator, deterministic=deterministic)
        span = 0.5 * (self.action_high - self.action_low)
        action = self.action_low + span * (normalised.astype(np.float64) + 1.0)
        return action.astype(np.float32).reshape(*array.shape[:-1], -1)


def load(run_dir: str | Path, *, policy: str = "latest") -> LoadedPolicy:
    """Load the ``latest`` checkpoint of a run, or its ``best_safe`` policy.

    Raises:
        CheckpointError: no run there, no such policy, or damaged files.
    """
    from algd.experiments.config import load_config

    directory = Path(run_dir)
    store = CheckpointStore(directory)
    state = store.load() if policy == "latest" else store.load_policy(policy)
    return LoadedPolicy(load_config([directory / "config.yaml"]), state)
