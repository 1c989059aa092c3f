"""Load a trained policy from a run directory, an exported directory or the Hugging Face hub.

In: where it is. Out: an object whose ``act`` takes raw observations of the environment and
returns actions in the environment's own box.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from algd.errors import ConfigError
from algd.training.checkpoint import CheckpointStore
from algd.training.normalization import make_normalizer
from algd.training.run_directory import POLICIES, config_must_fit, require_config

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig, TrainedAgent

HUB_PREFIX = "hf://"


class LoadedPolicy:
    """A trained agent with its normaliser and action box.

    Attributes: ``config`` the resolved experiment, ``task`` the widths and bounds it was trained
    for, ``env_step`` the step it was saved at, ``which`` of the policies of its run it is,
    ``reward_scale`` its critics' rewards over those of the environment, ``agent`` (normalised
    observations in, actions in [-1, 1] out) and ``normalizer``. Built with fresh weights; whoever
    builds it loads them.
    """

    def __init__(
        self, config: "ExperimentConfig", task: dict[str, Any], which: str = "latest"
    ) -> None:
        from algd.experiments.config import make_agent

        self.config = config
        self.task = task
        self.which = which
        self.env_step: int = task["env_step"]
        self.reward_scale: float = task.get("reward_scale", config.train.reward_scale)
        self.obs_dim: int = task["obs_dim"]
        self.action_low = np.asarray(task["action_low"], dtype=np.float64)
        self.action_high = np.asarray(task["action_high"], dtype=np.float64)
        self._center = (self.action_low + self.action_high) / 2  # as the environment rescales
        self._half_range = (self.action_high - self.action_low) / 2
        self._least, self._greatest = _float32_box(self.action_low, self.action_high)
        self.normalizer = make_normalizer(config.train, self.obs_dim)
        self.agent: TrainedAgent = make_agent(
            config,
            obs_dim=self.normalizer.width,
            action_dim=task["action_dim"],
            episode_length=task["episode_length"],
            device=torch.device("cpu"),
        )
        self.generator = torch.Generator().manual_seed(config.seed)

    def act(self, obs: np.ndarray, *, deterministic: bool = True) -> np.ndarray:
        """Return actions in the environment's box, as float32.

        Args:
            obs: (O,) or (N, O) observations as the environment gives them.
            deterministic: the deterministic mode of the agent, or a sample.

        Raises:
            ValueError: observations of another width, or not finite in float32.
        """
        with np.errstate(over="ignore"):
            array = np.asarray(obs, dtype=np.float32)
        if array.shape[-1:] != (self.obs_dim,) or array.ndim not in (1, 2):
            raise ValueError(
                f"obs must have shape ({self.obs_dim},) or (N, {self.obs_dim}), got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"obs must be finite, got {array}")
        batch = self.normalizer.normalize(array.reshape(-1, self.obs_dim))
        normalised = self.agent.act(batch, generator=self.generator, deterministic=deterministic)
        action = self._center + self._half_range * normalised.astype(np.float64)
        inside = np.clip(action.astype(np.float32), self._least, self._greatest)
        return inside.reshape(*array.shape[:-1], len(self.action_low))


def _float32_box(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest float32 inside a box of float64."""
    least, greatest = low.astype(np.float32), high.astype(np.float32)
    least = np.where(least < low, np.nextafter(least, np.float32(np.inf)), least)
    greatest = np.where(greatest > high, np.nextafter(greatest, np.float32(-np.inf)), greatest)
    return least, greatest


def load(source: str | Path, *, policy: str = "latest") -> LoadedPolicy:
    """Load the policy of a run, an exported one, or one from the Hugging Face hub.

    Args:
        source: a run directory, a directory that `algd export` wrote, or ``hf://OWNER/NAME``,
            with ``@REVISION`` if wanted.
        policy: of a run, the ``latest`` checkpoint or its ``best_safe`` policy.

    Raises:
        CheckpointError: no run there, no such policy, or damaged files.
        ConfigError: ``policy`` is neither of the two, or not ``latest`` where there is only one.
        UserError: the hub cannot be reached, or has no such policy.
    """
    from algd.experiments.config import load_config

    if policy not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    from algd.training.exported import is_export, load_export

    directory = Path(source)
    on_hub = str(source).startswith(HUB_PREFIX)
    if (on_hub or is_export(directory)) and policy != "latest":
        raise ConfigError(f"{source} is an export, which holds one policy, got {policy!r}")
    if on_hub:
        from algd.training.hub import load_from_hub

        repo, _, revision = str(source).removeprefix(HUB_PREFIX).partition("@")
        return load_from_hub(repo, revision=revision or None)
    if is_export(directory):
        return load_export(directory)
    store = CheckpointStore(directory)
    state = store.load() if policy == "latest" else store.load_policy(policy)
    config = load_config([require_config(directory)])
    loaded = LoadedPolicy(config, state["task"], policy)
    # The noise of updates, which another kind of device could not take: acting draws its own.
    agent = {name: part for name, part in state["agent"].items() if name != "generator"}
    with config_must_fit(directory):
        loaded.agent.load_state_dict(agent)
        loaded.normalizer.load_state_dict(state["normalizer"])
    return loaded
