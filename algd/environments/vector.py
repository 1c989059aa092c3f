"""Several environments stepped as one, in this process or in worker processes.

In: actions (N, A) in [-1, 1]. Out: `StepResult`, whose `next_obs` are the true successors and whose
`obs` are what to act on next: an ended episode is followed by the next one within the same step.
Episodes are seeded by `episode_seed`, and the running ones can be saved and brought back exactly,
by replaying their actions. All kinds produce the same bits.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from algd.environments.block import EnvBlock, Float32Array, Rows, transition_dtype
from algd.environments.episodes import EpisodeRecord, EpisodeSnapshot, lost_episode
from algd.environments.make import EnvConfig
from algd.errors import CheckpointError, ConfigError

BoolArray = NDArray[np.bool_]
SNAPSHOT_FORMAT = 1


class StepResult(NamedTuple):
    """One step of N environments, (N, O) and (N,)."""

    next_obs: Float32Array
    """The true successor: where an episode ended, its last observation."""
    obs: Float32Array
    """What to act on next: where an episode ended, the first observation of the next one."""
    reward: Float32Array
    cost: Float32Array
    terminated: BoolArray
    truncated: BoolArray
    episodes: list[EpisodeRecord]
    """The episodes that ended in this step, by environment."""
    dropped: tuple[int, ...] = ()
    """Environments whose running episode was lost to a crash: of their rows only `obs` counts."""


class VectorCostEnv(Protocol):
    """N environments with a cost; `max_episode_steps` is the horizon of the cost budget.

    A step that an exception interrupts (Ctrl-C raising KeyboardInterrupt, say) leaves some of the
    environments stepped and others not: let a signal handler set a flag instead.
    """

    num_envs: int
    obs_dim: int
    action_dim: int
    max_episode_steps: int

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        ...

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A): `start`, then `finish`.

        Raises:
            EnvironmentFault: an environment failed; names its index and the step. A crash in a
                worker process is survived instead, up to `max_restarts` times: see `dropped`.
        """
        ...

    def start(self, actions: Float32Array) -> None:
        """Begin a step, and leave worker processes to it; `finish` must follow."""
        ...

    def finish(self) -> StepResult:
        """Return the step that `start` began (see `step`)."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes: dicts and lists of JSON-able values and numpy arrays."""
        ...

    def lost_snapshot(self) -> dict[str, Any]:
        """Return a snapshot that gives up the running episodes; no environment is asked for it.

        For use after a fault: `restore` drops them all and starts the next ones.
        """
        ...

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back by replaying their actions.

        Returns the observations to act on (N, O), and the indices of the environments whose replay
        did not reproduce the last observation, return and cost bit for bit; those dropped their
        episode and started the next one.

        Raises:
            CheckpointError: the snapshot is of another environment, seed or number of them.
        """
        ...

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_vector_env(config: EnvConfig, *, seed: int) -> VectorCostEnv:
    """Make `config.num_envs` environments whose episodes follow from `seed`, an integer >= 0.

    Raises:
        ConfigError: as `make_env`, or a negative seed.
        EnvironmentFault: as `make_env`.
    """
    if seed < 0:
        raise ConfigError(f"the seed must be >= 0, got {seed}")
    if config.vector == "sync":
        return SyncVectorEnv(config, seed=seed)
    from algd.environments.subprocess_vector import SubprocessVectorEnv

    return SubprocessVectorEnv(config, seed=seed)


class SyncVectorEnv:
    """Steps the environments one after another in this process."""

    def __init__(self, config: EnvConfig, *, seed: int) -> None:
        self.num_envs = config.num_envs
        self._config = config
        self._seed = seed
        indices = range(config.num_envs)
        self._block = EnvBlock(config, seed, indices, [-1 for _ in indices], survives=False)
        self.obs_dim, self.action_dim, self.max_episode_steps = self._block.sizes
        self._rows = Rows(np.zeros(config.num_envs, transition_dtype(self.obs_dim)))

    def reset(self) -> Float32Array:
        """Start the next episode of each environment; return the observations (N, O)."""
        return self._block.reset()

    def step(self, actions: Float32Array) -> StepResult:
        """Step each environment with its row of `actions` (N, A)."""
        self.start(actions)
        return self.finish()

    def start(self, actions: Float32Array) -> None:
        """Take a copy of the actions of a step; nothing runs before `finish`."""
        # As float32, in which a snapshot repeats them and other kinds hand them to their workers.
        self._actions = np.array(actions, np.float32)
        check_actions(self._actions, self.num_envs, self.action_dim)

    def finish(self) -> StepResult:
        """Step each environment."""
        self._block.step(self._actions, self._rows)
        return step_result(self._rows)

    def snapshot(self) -> dict[str, Any]:
        """Return the running episodes (see `VectorCostEnv.snapshot`)."""
        return pack_snapshot(self._config, self._seed, self._block.snapshot())

    def lost_snapshot(self) -> dict[str, Any]:
        """Return a snapshot that gives them up (see `VectorCostEnv.lost_snapshot`)."""
        # Episodes whose reset raised are among them: what follows is another one.
        return pack_lost(self._config, self._seed, self._block.episode_indices, self)

    def restore(self, snapshot: dict[str, Any]) -> tuple[Float32Array, list[int]]:
        """Bring the episodes of `snapshot` back (see `VectorCostEnv.restore`)."""
        restored = self._block.restore(unpack_snapshot(self._config, self._seed, snapshot))
        dropped = [index for index, (_, exact) in enumerate(restored) if not exact]
        return np.stack([obs for obs, _ in restored]), dropped

    def close(self) -> None:
        """Close every environment; a second call does nothing."""
        self._block.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_actions(actions: Float32Array, num_envs: int, action_dim: int) -> None:
    """Refuse actions of a wrong shape with a ValueError."""
    if actions.shape != (num_envs, action_dim):
        raise ValueError(f"actions must have shape {(num_envs, action_dim)}, got {actions.shape}")


def step_result(rows: Rows) -> StepResult:
    """Copy the rows of all environments; the next step writes over them."""
    return StepResult(
        next_obs=rows.next_obs.copy(),
        obs=rows.obs.copy(),
        reward=rows.reward.copy(),
        cost=rows.cost.copy(),
        terminated=rows.terminated.copy(),
        truncated=rows.truncated.copy(),
        episodes=rows.episodes(),
        dropped=rows.lost(),
    )


def pack_snapshot(
    config: EnvConfig, seed: int, episodes: Sequence[EpisodeSnapshot]
) -> dict[str, Any]:
    """Put the running episodes together with what they belong to."""
    return {
        "format": SNAPSHOT_FORMAT,
        "env_id": config.id,
        "seed": seed,
        "num_envs": config.num_envs,
        "envs": [dict(episode) for episode in episodes],
    }


def pack_lost(
    config: EnvConfig, seed: int, episode_indices: Sequence[int], env: VectorCostEnv
) -> dict[str, Any]:
    """Put together what drops the running episodes of `env` and starts the next ones."""
    sizes = {"obs_dim": env.obs_dim, "action_dim": env.action_dim}
    return pack_snapshot(config, seed, [lost_episode(one, **sizes) for one in episode_indices])


def unpack_snapshot(
    config: EnvConfig, seed: int, snapshot: dict[str, Any]
) -> list[EpisodeSnapshot]:
    """Return the running episodes of a snapshot that belongs to these environments.

    Raises:
        CheckpointError: it does not; names the first difference.
    """
    expected = pack_snapshot(config, seed, ())
    for key in ("format", "env_id", "seed", "num_envs"):
        if snapshot.get(key) != expected[key]:
            raise CheckpointError(
                f"the environment snapshot has {key} {snapshot.get(key)!r}, "
                f"this run has {expected[key]!r}"
            )
    return snapshot["envs"]
