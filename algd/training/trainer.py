"""The training loop: environment -> replay -> agent -> tracker, resumable at any step.

In: an ``ExperimentConfig`` and a run directory. Out: the run directory: config.yaml, metrics.csv,
episodes.csv, checkpoints, videos. Every number in metrics.csv follows from config and seed alone;
wall-clock quantities are kept elsewhere.
"""

import logging
import math
import signal
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from alam.replay import ReplayBuffer
from alam.types import Batch, Metrics
from algd.environments.make import make_env
from algd.environments.vector import make_vector_env
from algd.errors import ConfigError, EnvironmentFault, UserError
from algd.training.checkpoint import CheckpointStore, Task
from algd.training.evaluation import evaluate_policy, record_video
from algd.training.normalization import RunningNormalizer

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig


_log = logging.getLogger("algd")


@dataclass(frozen=True)
class TrainConfig:
    """Length, pace and bookkeeping of a run; all counts are environment steps.

    total_steps: steps to take, over all environments together.
    learning_starts: steps before the first update. warmup: how those act, ``uniform`` actions or
        the untrained ``policy``.
    updates_per_step: gradient steps per environment step, may be a fraction.
    initial_updates_per_step, initial_steps: another pace for the first steps (null, 0: none).
    reward_scale: multiplies rewards before the critics see them; reported returns are not scaled.
    normalize_obs: running normalisation of observations, saved with the policy.
    log_interval, checkpoint_interval: steps between rows of metrics.csv, between checkpoints.
    device: ``auto`` takes CUDA when present. num_threads: of torch on a CPU; more than 1 is slower
        at these sizes, up to 5 times on a busy machine.
    """

    total_steps: int = 1_000_000
    learning_starts: int = 5_000
    warmup: Literal["uniform", "policy"] = "uniform"
    batch_size: int = 256
    buffer_size: int = 1_000_000
    updates_per_step: float = 1.0
    initial_updates_per_step: float | None = None
    initial_steps: int = 0
    reward_scale: float = 1.0
    normalize_obs: bool = False
    log_interval: int = 1_000
    checkpoint_interval: int = 10_000
    keep_checkpoints: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_threads: int = 1

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
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
        for name in ("learning_starts", "updates_per_step", "initial_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.initial_updates_per_step is not None and self.initial_updates_per_step < 0:
            raise ValueError(
                f"initial_updates_per_step must be null or >= 0, got "
                f"{self.initial_updates_per_step}"
            )


class Interrupted(Exception):
    """Training was asked to stop; a checkpoint has been written."""

    def __init__(self, run_dir: Path, env_step: int, signal_number: int) -> None:
        super().__init__(f"stopped at step {env_step}")
        self.run_dir = run_dir
        self.env_step = env_step
        self.signal_number = signal_number


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: whoever owns it handles signals
                break
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal_number is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal_number = number


class _StopEvaluation(Exception):
    """Leaves an evaluation that a stop request has interrupted; it is done again on resume."""


class MetricWindow:
    """Means of detached metrics since the last row, summed on their device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        """Add one value per metric."""
        for name, value in metrics.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the means; the one place where metrics reach the host."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def clear(self) -> None:
        """Start a new window."""
        self.sums, self.counts = {}, {}


class Trainer:
    """One run: builds every part from the config, steps them, and can be saved at each step.

    Args:
        config: the experiment.
        run_dir: a directory claimed for this run.
        checkpoint: state to continue from, None to start.
    """

    def __init__(
        self,
        config: "ExperimentConfig",
        run_dir: Path,
        *,
        checkpoint: Path | None = None,
    ) -> None:
        from algd.experiments.config import make_agent, to_dict
        from algd.training.tracking import Tracker

        self.config = config
        self.run_dir = run_dir
        torch.set_num_threads(config.train.num_threads)
        self.device = resolve_device(config.train.device)
        self.env = make_vector_env(config.env, seed=config.seed)
        self.evaluation_env = make_env(config.env)
        self.agent = make_agent(
            config,
            obs_dim=self.env.obs_dim,
            action_dim=self.env.action_dim,
            episode_length=self.env.max_episode_steps,
            device=self.device,
        )
        self.replay = ReplayBuffer(
            min(config.train.buffer_size, config.train.total_steps),
            self.env.obs_dim,
            self.env.action_dim,
            device=self.device,
        )
        self.normalizer = (
            RunningNormalizer(self.env.obs_dim) if config.train.normalize_obs else None
        )
        streams = np.random.SeedSequence(config.seed).spawn(3)
        words = [int(stream.generate_state(1, np.uint64)[0] >> 1) for stream in streams]
        self.acting = torch.Generator().manual_seed(words[0])
        self.sampling = torch.Generator(self.device).manual_seed(words[1])
        self.exploration = np.random.default_rng(words[2])
        self.env_step = 0
        self.num_updates = 0
        self.update_credit = 0.0
        self.last_recorded = -1
        self.last_saved = -1
        self.window = MetricWindow()
        self.window_episodes: list[tuple[float, float, int]] = []
        self.recent_episodes: deque[tuple[float, float]] = deque(maxlen=10)
        self.evaluations: list[dict[str, float]] = []
        self.best_safe: dict[str, float] | None = None
        self.store = CheckpointStore(
            run_dir, Task(config.env.id, self.env.obs_dim, self.env.action_dim)
        )
        if checkpoint is None:
            self.obs = self.env.reset()
        else:
            self._load(checkpoint)
        self.tracker = Tracker(
            run_dir,
            config.tracking,
            resolved_config=to_dict(config),
            total_steps=config.train.total_steps,
            cost_limit=config.constraint.cost_limit,
            resume_step=None if checkpoint is None else self.env_step,
        )

    def run(self) -> None:
        """Train to the end; raise ``Interrupted`` after saving when asked to stop."""
        with StopRequest() as self.stop:
            try:
                while True:
                    self._record_if_due()
                    self._stop_if_asked()
                    if self.env_step >= self.config.train.total_steps:
                        break
                    self._step_environment()
                    self._update_agent()
                    self.tracker.progress(
                        env_step=self.env_step,
                        num_updates=self.num_updates,
                        episodes=self.recent_episodes,
                        multiplier=self.window,
                    )
                self._finish()
            except _StopEvaluation:
                self._stop_if_asked()
            except EnvironmentFault as fault:
                self._save(with_env=False)
                raise EnvironmentFault(
                    f"{fault}; training stopped at step {self.env_step}, checkpoint kept in "
                    f"{self.run_dir}"
                ) from fault
            finally:
                self.tracker.close()
                self.env.close()
                self.evaluation_env.close()

    def _step_environment(self) -> None:
        """Act, step, store; episodes that ended are reported."""
        config = self.config.train
        if self.env_step < config.learning_starts and config.warmup == "uniform":
            shape = (self.env.num_envs, self.env.action_dim)
            action = self.exploration.uniform(-1.0, 1.0, shape).astype(np.float32)
        else:
            action = self.agent.act(self._normalized(self.obs), generator=self.acting)
        step = self.env.step(action)
        self.replay.add(self.obs, action, step.reward, step.cost, step.next_obs, step.terminated)
        if self.normalizer is not None:
            self.normalizer.update(self.obs)
        self.obs = step.obs
        self.env_step += self.env.num_envs
        for episode in step.episodes:
            self.agent.observe_episode_cost(episode.cost)
            self.window_episodes.append((episode.return_, episode.cost, episode.length))
            self.recent_episodes.append((episode.return_, episode.cost))
            self.tracker.episode({"env_step": self.env_step, **_episode_row(episode)})

    def _normalized(self, obs: np.ndarray) -> np.ndarray:
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    def _update_agent(self) -> None:
        """Spend the updates that the steps since the last call have earned."""
        config = self.config.train
        if self.env_step < max(config.learning_starts, 1):
            return
        pace = config.updates_per_step
        if config.initial_updates_per_step is not None and self.env_step <= config.initial_steps:
            pace = config.initial_updates_per_step
        self.update_credit += pace * self.env.num_envs
        while self.update_credit >= 1.0:
            self.update_credit -= 1.0
            self.window.add(self.agent.update(self._sample_batch()))
            self.num_updates += 1

    def _sample_batch(self) -> Batch:
        """Draw a batch as the agent sees it: rewards scaled, observations normalised."""
        config = self.config.train
        batch = self.replay.sample(config.batch_size, self.sampling)
        if config.reward_scale != 1.0:
            batch = batch._replace(reward=config.reward_scale * batch.reward)
        if self.normalizer is not None:
            batch = batch._replace(
                obs=self.normalizer.normalize_tensor(batch.obs),
                next_obs=self.normalizer.normalize_tensor(batch.next_obs),
            )
        return batch

    def _due(self, interval: int) -> bool:
        """True at multiples of the interval, at the start, and at the end."""
        previous = self.env_step - self.env.num_envs
        total = self.config.train.total_steps
        return (
            self.env_step == 0
            or self.env_step // interval > previous // interval
            or self.env_step >= total
        )

    def _record_if_due(self) -> None:
        """Write a row of metrics, evaluate and save where due; safe to repeat after a resume."""
        if self.last_recorded < self.env_step:
            row: dict[str, float] = {}
            if self._due(self.config.train.log_interval):
                row |= self._window_row()
            if self._due(self.config.evaluation.interval):
                row |= self._evaluate()
            if row:
                self.tracker.log(self.env_step, row)
            if self._due(self.config.train.log_interval):
                self.window.clear()
                self.window_episodes.clear()
            self.last_recorded = self.env_step
        save_due = self.env_step > 0 and self._due(self.config.train.checkpoint_interval)
        if save_due and self.last_saved < self.env_step:
            self._save()

    def _window_row(self) -> dict[str, float]:
        means = self.window.means()
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"{', '.join(broken)} not finite at step {self.env_step} of {self.run_dir}: "
                "lower the learning rates or the penalty coefficient, or check the costs and "
                f"rewards of {self.config.env.id}; the last checkpoint is kept"
            )
        if self.window_episodes:
            columns = np.array(self.window_episodes, dtype=np.float64).mean(0)
            names = ("train/return", "train/cost", "train/episode_length")
            means |= dict(zip(names, map(float, columns), strict=True))
        return means | {"train/num_updates": float(self.num_updates)}

    def _evaluate(self) -> dict[str, float]:
        """Evaluate on the environment kept for it, and keep the best safe policy."""
        config = self.config
        started = time.perf_counter()
        result = evaluate_policy(
            self.agent,
            self.normalizer,
            self.evaluation_env,
            episodes=config.evaluation.episodes,
            mode=config.evaluation.mode,
            seed=config.seed,
            on_step=self._leave_evaluation_if_asked,
        )
        metrics = result.metrics(config.constraint.cost_limit)
        row = {"env_step": float(self.env_step), **metrics}
        self.evaluations.append(row)
        safe = metrics["eval/cost"] <= config.constraint.cost_limit
        best = self.best_safe
        if safe and (best is None or metrics["eval/return"] > best["eval/return"]):
            self.best_safe = row
            self.store.save_policy("best_safe", self.env_step, self._policy_state())
        self.tracker.log_time(self.env_step, {"time/evaluation": time.perf_counter() - started})
        return metrics

    def _leave_evaluation_if_asked(self) -> None:
        if self.stop.signal_number is not None:
            raise _StopEvaluation

    def _stop_if_asked(self) -> None:
        if self.stop.signal_number is None:
            return
        if self.env_step > self.last_saved:
            self._save()
        raise Interrupted(self.run_dir, self.env_step, self.stop.signal_number)

    def _policy_state(self) -> dict[str, Any]:
        """What ``algd.load`` needs: agent, normaliser and the shape of the task."""
        return {
            "agent": self.agent.state_dict(),
            "normalizer": None if self.normalizer is None else self.normalizer.state_dict(),
            "task": {
                "env_id": self.config.env.id,
                "obs_dim": self.env.obs_dim,
                "action_dim": self.env.action_dim,
                "episode_length": self.env.max_episode_steps,
                "action_low": self.evaluation_env.original_action_space.low,
                "action_high": self.evaluation_env.original_action_space.high,
                "env_step": self.env_step,
            },
        }

    def _save(self, *, with_env: bool = True) -> None:
        """Write everything that a bitwise continuation needs."""
        started = time.perf_counter()
        state = self._policy_state() | {
            "env": self.env.snapshot() if with_env else None,
            "acting": self.acting.get_state(),
            "sampling": self.sampling.get_state(),
            "exploration": self.exploration.bit_generator.state,
            "counters": {
                "env_step": self.env_step,
                "num_updates": self.num_updates,
                "update_credit": self.update_credit,
                "last_recorded": self.last_recorded,
            },
            "window": {
                "sums": self.window.sums,
                "counts": self.window.counts,
                "episodes": list(self.window_episodes),
                "recent": list(self.recent_episodes),
            },
            "evaluations": self.evaluations,
            "best_safe": self.best_safe,
        }
        path = self.store.save(
            self.env_step, state, self.replay, keep=self.config.train.keep_checkpoints
        )
        self.last_saved = self.env_step
        self.tracker.checkpoint(path, self.env_step)
        self.tracker.log_time(self.env_step, {"time/checkpoint": time.perf_counter() - started})

    def _load(self, checkpoint: Path) -> None:
        """Restore what ``_save`` wrote; episodes are replayed to their last step."""
        state = self.store.load(checkpoint)
        self.agent.load_state_dict(state["agent"])
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        self.store.restore_replay(checkpoint, self.replay)
        self.acting.set_state(state["acting"])
        self.sampling.set_state(state["sampling"].cpu())
        self.exploration.bit_generator.state = state["exploration"]
        counters = state["counters"]
        self.env_step = counters["env_step"]
        self.num_updates = counters["num_updates"]
        self.update_credit = counters["update_credit"]
        self.last_recorded = counters["last_recorded"]
        self.last_saved = self.env_step
        self.window.sums = {k: v.to(self.device) for k, v in state["window"]["sums"].items()}
        self.window.counts = state["window"]["counts"]
        self.window_episodes = [tuple(row) for row in state["window"]["episodes"]]
        self.recent_episodes.extend(tuple(row) for row in state["window"]["recent"])
        self.evaluations = state["evaluations"]
        self.best_safe = state["best_safe"]
        if state["env"] is None:
            self.obs = self.env.reset()
            return
        self.obs, dropped = self.env.restore(state["env"])
        if dropped:
            print(
                f"algd: the running episodes of environments {dropped} could not be repeated "
                "bit for bit here; they are dropped and new ones started"
            )

    def _finish(self) -> None:
        """Video, summary table, final records."""
        config = self.config
        if config.evaluation.video:
            self._record_video()
        rows = {"start": self.evaluations[0], "best safe": self.best_safe}
        rows["last"] = self.evaluations[-1]
        if self.best_safe is not None:
            newest = max((self.run_dir / "policies" / "best_safe").glob("step_*"))
            step = int(self.best_safe["env_step"])
            self.tracker.model_artifact(newest, ["best-safe"], step)
        self.tracker.finish({name: row for name, row in rows.items() if row is not None})
        print_summary(config, rows, self.run_dir)

    def _record_video(self) -> None:
        """Write final.mp4; what cannot be rendered here is one line and no video."""
        try:
            path = record_video(
                self.agent,
                self.normalizer,
                self.config.env,
                self.run_dir / "videos" / "final.mp4",
                mode=self.config.evaluation.mode,
                seed=self.config.seed,
                max_steps=self.config.evaluation.video_steps,
            )
        except EnvironmentFault as fault:
            _log.warning("no video: %s", fault)
            return
        if path is not None:
            self.tracker.video(path, self.env_step)


def _episode_row(episode: Any) -> dict[str, float | int | bool]:
    return {
        "env_index": episode.env_index,
        "episode_index": episode.episode_index,
        "seed": episode.seed,
        "return": episode.return_,
        "cost": episode.cost,
        "length": episode.length,
        "terminated": episode.terminated,
    }


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


def resolve_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu`` or ``cuda`` stands for here."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("train.device is 'cuda', but torch sees no CUDA device; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def train(config: "ExperimentConfig", run_dir: Path) -> None:
    """Start a run in a new directory and train it to the end."""
    from algd.experiments.config import dump_yaml
    from algd.training.checkpoint import claim_run_dir

    make_env(config.env).close()  # what cannot be made is said before a directory is claimed
    claim_run_dir(run_dir)
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    Trainer(config, run_dir).run()


def resume(run_dir: Path) -> None:
    """Continue a run from its newest valid checkpoint, as if nothing had happened."""
    from algd.experiments.config import load_config

    store = CheckpointStore(run_dir)
    checkpoint = store.latest()
    config = load_config([run_dir / "config.yaml"])
    if checkpoint is None:
        print(f"algd: {run_dir} holds no checkpoint yet; starting it again from step 0")
    Trainer(config, run_dir, checkpoint=checkpoint).run()
