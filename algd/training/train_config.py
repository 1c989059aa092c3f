"""Length, pace and bookkeeping of a run: the ``train`` group of a configuration.

In: values of a configuration. Out: a checked, frozen ``TrainConfig``, and the device it names.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from alam.config import Config
from algd.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig(Config):
    """Length, pace and bookkeeping of a run; all counts are environment steps.

    total_steps: steps to take, over all environments together.
    learning_starts: steps before the first update. warmup: how those act, ``uniform`` actions or
        the untrained ``policy``.
    updates_per_step: gradient steps per environment step, may be a fraction.
    overlap: lets environments in worker processes take their step while the agent takes the updates
        of the step before; the policy then acts one step behind its updates. Reproducible, too.
    initial_updates_per_step, initial_steps: another pace for the first steps (null, 0: none).
    final_learning_rate: share of every optimiser's learning rate that is left at the end; from
        ``learning_starts`` on they fall linearly to it. 1 keeps them constant. The control laws
        of scalar multipliers, projected dual ascent among them, keep theirs.
    reward_scale: multiplies rewards before the critics see them; reported returns are not scaled.
    normalize_reward: divides rewards, before reward_scale, by the running deviation of the
        discounted return, saved with the policy.
    normalize_obs: running normalisation of observations, saved with the policy.
    tail_share: with normalize_obs, adds two inputs for each: how far it is above and below the
        quantiles that leave this share of observations outside (null: none). Critics then find
        rare events, such as contact in lidar readings, from fewer episodes.
    log_interval, checkpoint_interval: steps between rows of metrics.csv, between checkpoints.
    on_save_error: when the disk refuses a checkpoint or a row, ``stop`` with one line, or
        ``continue`` with a warning each time and try again at the next interval.
    device: ``auto`` takes CUDA when present. num_threads: of torch on a CPU; more than 1 is slower
        at these sizes, up to 5 times on a busy machine, and another number gives other last bits.
    cuda_graph: on a GPU, launches the kernels of an update as one CUDA graph instead of one by one;
        a CPU has none.
    batch_size: rows per update. buffer_size: rows of the replay buffer; the oldest make room.
    keep_checkpoints: how many of the latest are kept.
    """

    total_steps: int = 1_000_000
    learning_starts: int = 5_000
    warmup: Literal["uniform", "policy"] = "uniform"
    batch_size: int = 256
    buffer_size: int = 1_000_000
    updates_per_step: float = 1.0
    overlap: bool = False
    initial_updates_per_step: float | None = None
    initial_steps: int = 0
    final_learning_rate: float = 1.0
    reward_scale: float = 1.0
    normalize_reward: bool = False
    normalize_obs: bool = False
    tail_share: float | None = None
    log_interval: int = 1_000
    checkpoint_interval: int = 10_000
    keep_checkpoints: int = 2
    on_save_error: Literal["stop", "continue"] = "stop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cuda_graph: bool = False
    num_threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "total_steps",
            "batch_size",
            "buffer_size",
            "log_interval",
            "checkpoint_interval",
            "keep_checkpoints",
            "num_threads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 < self.reward_scale < float("inf"):
            raise ValueError(f"reward_scale must be positive, got {self.reward_scale}")
        if not 0 < self.final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate must be in (0, 1], got {self.final_learning_rate}"
            )
        for name in ("learning_starts", "updates_per_step", "initial_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        share = self.tail_share
        if share is not None and not 0.0 < share < 0.5:
            raise ValueError(f"tail_share must be null or in (0, 0.5), got {share}")
        if share is not None and not self.normalize_obs:
            raise ValueError("tail_share needs normalize_obs: true, got false")
        pace = self.initial_updates_per_step
        if pace is not None and not 0 <= pace < float("inf"):
            raise ValueError(f"initial_updates_per_step must be null or >= 0, got {pace}")
        if (pace is None) != (self.initial_steps == 0):
            raise ValueError(
                "initial_updates_per_step and initial_steps go together, got "
                f"{'null' if pace is None else pace} and {self.initial_steps}"
            )

    @property
    def depends_on_length(self) -> bool:
        """Whether steps before the end depend on ``total_steps``: rates that fall, or overlap."""
        return self.final_learning_rate != 1.0 or self.overlap


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for here."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "train.device is 'cuda', but torch sees no CUDA device; use auto or cpu (a run that is "
            "continued reads it from its config.yaml)"
        )
    return torch.device("cuda" if name != "cpu" and available else "cpu")
