"""Episodes of a trained policy, or of uniform actions, kept step by step for measurements.

In: a loaded policy and a count of episodes. Out: ``Rollouts``: observations, normalised actions,
costs and observed costs to go, with the positions of a robot in its arena where there is one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from algd.analysis.calibration import cost_to_go
from algd.environments.gymnasium import CostEnv
from algd.environments.make import make_env
from algd.experiments.lab_arena import arena_position
from algd.training.load import LoadedPolicy

Floats = NDArray[np.float64]
Act = Callable[[NDArray[np.float32]], NDArray[np.floating]]

_STREAM = 2**31 + 1  # keeps these episodes apart from those of training and evaluation
_TAIL_WEIGHT = 0.05  # share of the cost to go that a cut-off episode may leave unseen


@dataclass(frozen=True)
class Rollouts:
    """Steps of whole episodes, in order; N steps in all.

    obs: (N, O) raw. actions: (N, A) in [-1, 1]. rewards, costs: (N,). episode: (N,) index.
    observed: (N,) cost to go on the scale of the cost critic. complete: (N,) whether the episode
    went on long enough for ``observed`` to be all but the whole. positions: (N, 2) metres, or None.
    """

    obs: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: Floats
    costs: Floats
    episode: NDArray[np.int64]
    observed: Floats
    complete: NDArray[np.bool_]
    positions: Floats | None

    @property
    def episode_returns(self) -> Floats:
        """Undiscounted return of each episode."""
        return np.bincount(self.episode, self.rewards).astype(np.float64)

    @property
    def episode_costs(self) -> Floats:
        """Undiscounted cost of each episode."""
        return np.bincount(self.episode, self.costs).astype(np.float64)


def policy_rollouts(loaded: LoadedPolicy, *, steps: int, seed: int) -> Rollouts:
    """Run stochastic episodes of the policy, as it acts in training."""
    generator = torch.Generator().manual_seed(seed)

    def act(obs: NDArray[np.float32]) -> NDArray[np.floating]:
        batch = loaded.normalizer.normalize(obs[None])
        return loaded.agent.act(batch, generator=generator)[0]

    return _rollouts(loaded, act, steps=steps, seed=seed)


def random_rollouts(loaded: LoadedPolicy, *, steps: int, seed: int) -> Rollouts:
    """Run episodes of uniform actions: the random exploration that a multiplier should foresee."""
    rng = np.random.default_rng(seed)
    action_dim = len(loaded.action_low)

    def act(_: NDArray[np.float32]) -> NDArray[np.floating]:
        return rng.uniform(-1.0, 1.0, action_dim)

    return _rollouts(loaded, act, steps=steps, seed=seed)


def _rollouts(loaded: LoadedPolicy, act: Act, *, steps: int, seed: int) -> Rollouts:
    """Run whole episodes until at least ``steps`` steps are taken."""
    critics = loaded.config.critics
    env = make_env(loaded.config.env)
    episodes: list[dict[str, np.ndarray]] = []
    try:
        taken = 0
        while taken < steps:
            words = np.random.SeedSequence([seed, _STREAM, len(episodes)]).generate_state(1)
            episodes.append(_episode(env, act, int(words[0])))
            taken += len(episodes[-1]["costs"])
    finally:
        env.close()
    observed, complete = [], []
    for episode in episodes:
        costs, terminated = episode["costs"], bool(episode["terminated"])
        rule = _worst_ahead if critics.cost_target == "reachability" else _discounted
        observed.append(rule(costs, critics.cost_discount))
        unseen = critics.cost_discount ** np.arange(len(costs), 0, -1)
        complete.append(np.full(len(costs), terminated) | (unseen <= _TAIL_WEIGHT))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([episode[name] for episode in episodes])

    lengths = [len(episode["costs"]) for episode in episodes]
    positions = joined("positions")
    return Rollouts(
        obs=joined("obs"),
        actions=joined("actions"),
        rewards=joined("rewards"),
        costs=joined("costs"),
        episode=np.repeat(np.arange(len(episodes)), lengths),
        observed=np.concatenate(observed),
        complete=np.concatenate(complete),
        positions=positions if np.isfinite(positions).all() else None,
    )


def _episode(env: CostEnv, act: Act, seed: int) -> dict[str, np.ndarray]:
    obs, _ = env.reset(seed=seed)
    seen, actions, rewards, costs, positions = [], [], [], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = np.asarray(act(obs), dtype=np.float32)
        seen.append(obs)
        actions.append(action)
        positions.append(arena_position(env))
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        costs.append(info["cost"])
    return {
        "obs": np.array(seen, dtype=np.float32),
        "actions": np.array(actions),
        "rewards": np.array(rewards, dtype=np.float64),
        "costs": np.array(costs, dtype=np.float64),
        "positions": np.array(positions, dtype=np.float64),
        "terminated": np.array(terminated),
    }


def _discounted(costs: Floats, discount: float) -> Floats:
    return cost_to_go(costs, discount=discount)


def _worst_ahead(costs: Floats, discount: float) -> Floats:
    """What a reachability critic estimates; see ``alam.critics.reachability_target``."""
    values, following = np.empty_like(costs), 0.0
    for index in range(len(costs) - 1, -1, -1):
        cost = costs[index]
        following = (1.0 - discount) * cost + discount * max(cost, following)
        values[index] = following
    return values
