"""The typed configuration of a run: defaults, YAML files, command line, in this order.

In: files or preset names and dotted overrides. Out: a frozen, validated ``ExperimentConfig``; its
dump is run_dir/config.yaml, from which the same run can be repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Discriminator

from alam.config import Config
from alam.critics import CriticConfig
from alam.cvpo import CVPOAgent, CVPOConfig, CVPOPolicyConfig
from alam.gaussian import GaussianPolicyConfig
from alam.lagrangian import ConstraintConfig
from alam.multiplier_config import MultiplierConfig, StatewiseALaMConfig
from alam.sac import SACAgent, SACConfig
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.diffusion.release import ReleasePolicyConfig
from algd.environments.make import EnvConfig
from algd.errors import ConfigError
from algd.experiments.layers import build
from algd.experiments.schema import plain
from algd.experiments.yaml_files import COMMAND_LINE, Layer, read_layers, write_yaml
from algd.training.evaluation import EvaluationConfig
from algd.training.tracking import TrackingConfig
from algd.training.train_config import TrainConfig

_MAX_SEED = 2**32 - 1  # what numpy's generators take

PolicyConfig = DiffusionPolicyConfig | ReleasePolicyConfig | GaussianPolicyConfig | CVPOPolicyConfig
TrainedAgent = SACAgent | ALGDAgent | CVPOAgent


@dataclass(frozen=True)
class ExperimentConfig(Config):
    """Everything that determines a run.

    seed: of weights, exploration, minibatches and environments, in [0, 2^32).
    """

    seed: int = 0
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: Annotated[PolicyConfig, Discriminator("kind")] = field(
        default_factory=DiffusionPolicyConfig
    )
    critics: CriticConfig = field(default_factory=CriticConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    multiplier: Annotated[MultiplierConfig, Discriminator("kind")] = field(
        default_factory=StatewiseALaMConfig
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= _MAX_SEED:
            raise ValueError(f"seed must be in [0, {_MAX_SEED}], got {self.seed}")
        if self.train.overlap and self.env.vector != "subprocess":
            raise ValueError(
                f"train.overlap needs env.vector: subprocess, got {self.env.vector}; no other kind "
                "steps while the agent updates"
            )
        if self.train.buffer_size < self.env.num_envs:
            raise ValueError(
                f"train.buffer_size must hold a step of all env.num_envs ({self.env.num_envs}), "
                f"got {self.train.buffer_size}"
            )
        agent_config(self)  # refuses what does not go together


def load_config(
    names: Sequence[str | Path], overrides: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """Return the configuration of files or presets, later ones winning, then of overrides.

    Args:
        names: paths of YAML files, or names of shipped presets.
        overrides: values by dotted key, as the command line gives them.

    Raises:
        ConfigError: one line that names key, allowed, got, and source.
    """
    layers = read_layers(names)
    layers.append(Layer(COMMAND_LINE, load_overrides(overrides or {})))
    return build(ExperimentConfig, layers)


def config_from_dict(tree: Mapping[str, Any], *, source: str = "mapping") -> ExperimentConfig:
    """Return the configuration of nested mappings: a full dump, or differences alone."""
    return build(ExperimentConfig, [Layer(source, plain(tree))])


def load_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys as a nested mapping; a later key wins over an earlier one.

    This is what the parameters of a sweep are, too.
    """
    tree: dict[str, Any] = {}
    for dotted, value in overrides.items():
        *parents, name = dotted.split(".")
        if not all([*parents, name]):
            raise ConfigError(f"{COMMAND_LINE}: {dotted!r} is not a key; write group.key")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{COMMAND_LINE}: {dotted} and {parent} are both given")
        node[name] = _merged(node.get(name), plain(value))
    return tree


def _merged(earlier: Any, later: Any) -> Any:
    """Return two values of one key: groups join, where W&B's agents hand over a whole one."""
    if not (isinstance(earlier, dict) and isinstance(later, dict) and later):
        return later
    return earlier | {key: _merged(earlier.get(key), value) for key, value in later.items()}


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return the full configuration as dicts, lists and scalars; W&B and JSON take it."""
    return plain(config)


def dump_yaml(config: ExperimentConfig) -> str:
    """Return the full configuration as YAML; loading it gives an equal configuration."""
    return write_yaml(to_dict(config))


def agent_config(config: ExperimentConfig) -> SACConfig | CVPOConfig | ALGDConfig:
    """Return what the agent of an experiment is made of.

    Raises:
        ValueError: its parts do not go together.
    """
    policy, rest = config.policy, (config.critics, config.constraint, config.multiplier)
    if isinstance(policy, GaussianPolicyConfig):
        return SACConfig(policy, *rest)
    if isinstance(policy, CVPOPolicyConfig):
        return CVPOConfig(policy, *rest)
    return ALGDConfig(policy, *rest)


def make_agent(
    config: ExperimentConfig,
    obs_dim: int,
    action_dim: int,
    episode_length: int,
    device: torch.device | str,
) -> TrainedAgent:
    """Build the agent of a configuration.

    Args:
        config: the experiment; its seed is that of weights and update noise.
        obs_dim, action_dim: widths of the environment.
        episode_length: steps that the cost limit refers to.
        device: of all parameters.
    """
    shape = {"episode_length": episode_length, "seed": config.seed, "device": device}
    agent = agent_config(config)
    if isinstance(agent, SACConfig):
        return SACAgent(obs_dim, action_dim, agent, **shape)
    if isinstance(agent, CVPOConfig):
        return CVPOAgent(obs_dim, action_dim, agent, **shape)
    return ALGDAgent(obs_dim, action_dim, agent, **shape)
