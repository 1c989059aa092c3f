"""Evaluation on a separate environment: fixed seeds, a stated mode, no trace in training.

In: an agent or a run directory. Out: returns and costs per episode, a table, and a video.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from alam.config import Config
from alam.types import Agent
from algd.environments.gymnasium import CostEnv
from algd.environments.make import EnvConfig, make_env
from algd.training.normalization import Unnormalized

Mode = Literal["deterministic", "stochastic"]
_EVALUATION_STREAM = 2**31  # keeps evaluation seeds apart from those of training environments


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """When and how the policy is evaluated.

    interval: environment steps between evaluations; one more before training and one at the end.
    mode: ``deterministic`` (mean action, noise-free chain, or best of ``candidates``) or
        ``stochastic`` (as it acts in training).
    video: write an mp4 of the final policy. video_steps: its length at most, in steps.
    episodes: per evaluation.
    """

    interval: int = 10_000
    episodes: int = 10
    mode: Mode = "deterministic"
    video: bool = True
    video_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("interval", "episodes", "video_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class EvaluationResult:
    """Undiscounted return, cost and length of each episode."""

    returns: tuple[float, ...]
    costs: tuple[float, ...]
    lengths: tuple[int, ...]

    def metrics(self, cost_limit: float) -> dict[str, float]:
        """Return means, spread, and the share of episodes over the limit."""
        costs = np.array(self.costs)
        return {
            "eval/return": float(np.mean(self.returns)),
            "eval/return_std": float(np.std(self.returns)),
            "eval/cost": float(costs.mean()),
            "eval/cost_std": float(costs.std()),
            "eval/violation_rate": float((costs > cost_limit).mean()),
            "eval/length": float(np.mean(self.lengths)),
        }


def evaluation_seeds(seed: int, episodes: int, first: int = 0) -> list[int]:
    """Return episode seeds from number ``first``: those of every evaluation, none trained on."""
    return [
        int(np.random.SeedSequence([seed, _EVALUATION_STREAM, k]).generate_state(1)[0])
        for k in range(first, first + episodes)
    ]


def first_fresh_episode(config: EvaluationConfig, policy: str) -> int:
    """Return the number of the first evaluation episode that did not select the policy.

    ``best_safe`` was chosen because the evaluations during training stayed within the limit, so
    their episodes would flatter it.
    """
    return config.episodes if policy == "best_safe" else 0


def evaluate_policy(
    agent: Agent,
    normalizer: Unnormalized,
    env: CostEnv,
    *,
    episodes: int,
    mode: Mode,
    seed: int,
    first: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> EvaluationResult:
    """Run whole episodes, from number ``first``, and return what they earned and cost.

    The noise of stochastic modes comes from a generator of its own, seeded with ``seed``;
    ``on_step`` is called after every step and may raise to stop.

    Raises:
        ValueError: ``mode`` is none of the two.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    generator = torch.Generator().manual_seed(seed)
    returns, costs, lengths = [], [], []
    for episode_seed in evaluation_seeds(seed, episodes, first):
        obs, _ = env.reset(seed=episode_seed)
        total, cost, length, ended = 0.0, 0.0, 0, False
        while not ended:
            batch = normalizer.normalize(obs[None])
            action = agent.act(batch, generator=generator, deterministic=mode == "deterministic")
            obs, reward, terminated, truncated, info = env.step(action[0])
            total += float(reward)
            cost += float(info["cost"])
            length += 1
            ended = bool(terminated or truncated)
            on_step()
        returns.append(total)
        costs.append(cost)
        lengths.append(length)
    return EvaluationResult(tuple(returns), tuple(costs), tuple(lengths))


def record_video(
    agent: Agent,
    normalizer: Unnormalized,
    env_config: EnvConfig,
    path: Path,
    *,
    mode: Mode,
    seed: int,
    max_steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> Path | None:
    """Write an mp4 of the first evaluation episode; None where it cannot be encoded here.

    ``on_step`` is called before every step and may raise to stop.
    """
    from algd.training.video import write_video

    env = make_env(env_config, render_mode="rgb_array")
    generator = torch.Generator().manual_seed(seed)
    frames = []
    try:
        obs, _ = env.reset(seed=evaluation_seeds(seed, 1)[0])
        for _ in range(max_steps):
            on_step()
            frames.append(np.asarray(env.render()))
            batch = normalizer.normalize(obs[None])
            action = agent.act(batch, generator=generator, deterministic=mode == "deterministic")
            obs, _, terminated, truncated, _ = env.step(action[0])
            if terminated or truncated:
                break
    finally:
        env.close()
    return write_video(path, frames, fps=30)


def evaluate_run(
    run_dir: Path,
    *,
    episodes: int,
    mode: Mode | None = None,
    policy: str = "latest",
    video: bool = False,
    seed: int | None = None,
) -> EvaluationResult:
    """Evaluate a policy of a run directory and print a table.

    Args:
        run_dir: of a run, or what `algd export` wrote.
        episodes: on a fresh environment; of ``best_safe`` others than selected it. mode, seed:
            None for those of the run.
        policy: as for ``algd.load``.
        video: also write videos/evaluation_STEP.mp4 in the directory.
    """
    from algd.training.load import load

    loaded = load(run_dir, policy=policy)
    config = loaded.config
    mode = config.evaluation.mode if mode is None else mode
    seed = config.seed if seed is None else seed
    env = make_env(config.env)
    try:
        result = evaluate_policy(
            loaded.agent,
            loaded.normalizer,
            env,
            episodes=episodes,
            mode=mode,
            seed=seed,
            first=first_fresh_episode(config.evaluation, loaded.which),
        )
    finally:
        env.close()
    limit = config.constraint.cost_limit
    print(
        f"{config.env.id}, step {loaded.env_step}, {mode} policy, {episodes} episodes, seed {seed}"
    )
    print(f"{'episode':>8} {'return':>10} {'cost':>10} {'length':>7}")
    for k, row in enumerate(zip(result.returns, result.costs, result.lengths, strict=True)):
        print(f"{k:>8} {row[0]:>10.2f} {row[1]:>10.2f} {row[2]:>7}")
    metrics = result.metrics(limit)
    print(
        f"{'mean':>8} {metrics['eval/return']:>10.2f} {metrics['eval/cost']:>10.2f}   "
        f"cost limit {limit:g}, episodes over it {metrics['eval/violation_rate']:.0%}"
    )
    if video:
        path = run_dir / "videos" / f"evaluation_{loaded.env_step}.mp4"
        written = record_video(
            loaded.agent,
            loaded.normalizer,
            config.env,
            path,
            mode=mode,
            seed=seed,
            max_steps=config.evaluation.video_steps,
        )
        if written is not None:
            print(f"video: {written}")
    return result
