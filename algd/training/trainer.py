"""The training loop: environment -> replay -> agent -> tracker, resumable at any step.

In: an ``ExperimentConfig`` and a run directory. Out: the run directory: config.yaml, metrics.csv,
episodes.csv, checkpoints, videos. Every number in metrics.csv follows from config and seed alone;
wall-clock quantities are kept elsewhere. A checkpoint may fall between any two updates.
"""

import logging
import time
from collections import deque
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from alam.replay import ReplayBuffer
from alam.types import Batch
from algd.environments.make import make_env
from algd.environments.vector import StepResult, make_vector_env
from algd.errors import CheckpointError, ConfigError, DivergenceError, EnvironmentFault
from algd.training.allocation import keep_freed_memory
from algd.training.checkpoint import CheckpointStore, Task
from algd.training.durable_files import replace_durably
from algd.training.finishing import finish_run
from algd.training.lockstep import Lockstep, Row
from algd.training.metric_window import BoundWatch, MetricWindow
from algd.training.normalization import ReturnDeviation, make_normalizer
from algd.training.origin import with_origin
from algd.training.recording import record_episode, record_row
from algd.training.run_directory import CONFIG_FILE, require_config, require_run_dir
from algd.training.run_lock import RunLock
from algd.training.run_state import restore_training, training_state
from algd.training.saving import Saver
from algd.training.stopping import Interrupted, StopAsked, StopRequest, StopWhileWaiting
from algd.training.train_config import resolve_device

if TYPE_CHECKING:
    from algd.experiments.config import ExperimentConfig

_log = logging.getLogger("algd")


class Trainer:
    """One run: builds every part from the config, steps them, and can be saved at each step.

    It holds the lock of the run directory and the signal handlers from here to the end of ``run``.

    Args:
        config: the experiment.
        run_dir: a directory claimed for this run.
        checkpoint: state to continue from, None to start.
        again: without a checkpoint, start over where an earlier process of the run left files.
        stop: the request that several runs of one process share; None for one of its own.
        progress_label: begins the progress line.

    Raises:
        CheckpointError: another process writes this run, or the checkpoint cannot be used.
    """

    def __init__(
        self,
        config: "ExperimentConfig",
        run_dir: Path,
        *,
        checkpoint: Path | None = None,
        again: bool = False,
        stop: StopRequest | None = None,
        progress_label: str = "",
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.env_step = 0
        self.num_updates = 0
        self.update_credit = 0.0
        self.last_recorded = -1
        self.dropped_episodes = 0
        self.window = MetricWindow()
        self.window_episodes: list[tuple[float, float, int]] = []
        self.recent_episodes: deque[tuple[float, float]] = deque(maxlen=10)
        self.evaluations: list[dict[str, float]] = []
        self.best_safe: dict[str, float] | None = None
        self._progress_label = progress_label
        self._env_is_whole = True  # between two steps, from which its episodes can go on
        self.shows_progress = True
        self._resources = ExitStack()
        try:
            self.stop = self._resources.enter_context(StopRequest()) if stop is None else stop
            self.lock = self._resources.enter_context(RunLock(run_dir))
            self.locks = [self.lock]  # of all runs of this process, whose signs of life it gives
            self._build()
            if checkpoint is None:
                self.obs = self.env.reset()
            else:
                restore_training(self, self.store.load(checkpoint))
                self.store.restore_replay(checkpoint, self.replay)
            self._warn_where_nothing_will_be_learnt()
            new = checkpoint is None and not again
            start = -1 if checkpoint is None else self.env_step
            self._record_into(run_dir, start=start, new=new)
        except BaseException:
            self._resources.close()
            raise

    def _build(self) -> None:
        """Make environments, agent, replay, generators and store."""
        from algd.experiments.config import make_agent

        config = self.config
        torch.set_num_threads(config.train.num_threads)
        keep_freed_memory()
        self.device = resolve_device(config.train.device)
        self.env = make_vector_env(config.env, seed=config.seed)
        self._resources.callback(self.env.close)
        self.evaluation_env = make_env(config.env)
        self._resources.callback(self.evaluation_env.close)
        dims = (self.env.obs_dim, self.env.action_dim)
        self.normalizer = make_normalizer(config.train, self.env.obs_dim)
        self.returns = (
            ReturnDeviation(self.env.num_envs, config.critics.discount)
            if config.train.normalize_reward
            else None
        )
        self.agent = make_agent(
            config,
            self.normalizer.width,
            self.env.action_dim,
            episode_length=self.env.max_episode_steps,
            device=self.device,
        )
        # The last step of many environments may go beyond the total.
        most = config.train.total_steps + self.env.num_envs - 1
        capacity = min(config.train.buffer_size, most)
        self.replay = ReplayBuffer(capacity, *dims, device=self.device)
        streams = np.random.SeedSequence(config.seed).spawn(3)
        words = [int(stream.generate_state(1, np.uint64)[0] >> 1) for stream in streams]
        self.acting = torch.Generator().manual_seed(words[0])
        self.sampling = torch.Generator(self.device).manual_seed(words[1])
        self.exploration = np.random.default_rng(words[2])
        self.store = CheckpointStore(self.run_dir, Task(config.env.id, *dims))
        self.bound_watch = BoundWatch(
            multiplier_max=getattr(config.multiplier, "multiplier_max", None),
            cost_limit=config.constraint.cost_limit,
        )

    def _warn_where_nothing_will_be_learnt(self) -> None:
        config = self.config.train
        if config.learning_starts >= config.total_steps:
            _log.warning(
                "nothing will be learnt: train.learning_starts (%d) is not less than "
                "train.total_steps (%d)",
                config.learning_starts,
                config.total_steps,
            )
        elif config.updates_per_step == 0 and (
            not config.initial_updates_per_step
            or config.initial_steps < max(config.learning_starts, 1)
        ):
            _log.warning("nothing will be learnt: train.updates_per_step is 0")

    def _record_into(self, run_dir: Path, *, start: int, new: bool) -> None:
        """Open tracker and saver; rows after env step ``start`` are cut off unless ``new``."""
        from algd.experiments.config import to_dict
        from algd.training.tracking import Tracker

        config = self.config
        with self.stop.bounded():  # a server that hangs; the run is then recorded offline
            self.tracker = Tracker(
                run_dir,
                config.tracking,
                resolved_config=to_dict(config),
                total_steps=config.train.total_steps,
                cost_limit=config.constraint.cost_limit,
                resume_step=None if new else start,
                last_recorded=self.last_recorded,
                keep_refused_rows=config.train.on_save_error == "continue",
                progress_label=self._progress_label,
            )
        self._resources.callback(self._close_tracker)
        self.saver = Saver(
            self.store,
            self.lock,
            self.tracker,
            on_error=config.train.on_save_error,
            keep=config.train.keep_checkpoints,
            last_saved=start,
        )

    def run(self) -> None:
        """Train to the end; raise ``Interrupted`` after saving when asked to stop."""
        Lockstep([self], self.stop).run()

    def training(self) -> Generator[bool, Row | None, None]:
        """Do everything but the updates; see ``Row`` for what is sent.

        Yields where an update is wanted, before anything of it is done: whether it has to be taken
        although a stop was asked for.
        """
        with self._resources:
            try:
                total = self.config.train.total_steps
                while True:
                    if not self.config.train.overlap or self.env_step >= total:
                        yield from self._spend_updates()
                    self._stop_if_asked()
                    self._record_and_save_if_due()
                    self._stop_if_asked()
                    if self.env_step >= total:
                        break
                    action = self._start_step()
                    if self.config.train.overlap:
                        # Also when a stop was asked for: a continued run has to make the same
                        # updates here.
                        yield from self._spend_updates(to_the_last=True)
                    self._finish_step(action)
                    self._earn_updates()
                    self._give_signs_of_life()
                    if self.shows_progress:
                        self.tracker.progress(
                            env_step=self.env_step,
                            num_updates=self.num_updates,
                            episodes=self.recent_episodes,
                            multiplier=self.window,
                        )
                finish_run(self)
                self.saver.require_saved(self.env_step)
            except StopAsked:
                self._stop_if_asked()
            except (StopWhileWaiting, EnvironmentFault) as fault:
                if self.stop.signal_number is None:
                    raise self._after_fault(fault) from fault
                _log.warning("%s; the running episodes are dropped", fault)
                self._stop_if_asked(with_env=False)

    def close(self) -> None:
        """Give up what a run holds that was built and never trained."""
        self._resources.close()

    def _start_step(self) -> np.ndarray:
        """Act, and have the environments begin their step."""
        config = self.config.train
        if self.env_step < config.learning_starts and config.warmup == "uniform":
            shape = (self.env.num_envs, self.env.action_dim)
            action = self.exploration.uniform(-1.0, 1.0, shape).astype(np.float32)
        else:
            obs = self.normalizer.normalize(self.obs)
            action = self.agent.act(obs, generator=self.acting)
        self._env_is_whole = False
        with self.stop.bounded():
            self.env.start(action)
        return action

    def _finish_step(self, action: np.ndarray) -> None:
        """Wait for the environments, store; episodes that ended are reported."""
        with self.stop.bounded():
            step = self.env.finish()
        self._env_is_whole = True
        self._store(action, step)
        self.normalizer.update(self.obs)
        if self.returns is not None:
            self.returns.update(step.reward, step.terminated | step.truncated, step.dropped)
        self.obs = step.obs
        self.env_step += self.env.num_envs
        self.dropped_episodes += len(step.dropped)
        for episode in step.episodes:
            self.agent.observe_episode_cost(episode.cost)
            record_episode(self, episode)

    def _store(self, action: np.ndarray, step: StepResult) -> None:
        """Add the transitions to the replay, without those that a crash left untold."""
        columns = (self.obs, action, step.reward, step.cost, step.next_obs, step.terminated)
        if step.dropped:
            told = [n for n in range(self.env.num_envs) if n not in step.dropped]
            columns = tuple(column[told] for column in columns)
            if not told:
                return
        self.replay.add(*columns)

    def _earn_updates(self) -> None:
        """Add the updates that one step of the environments earns."""
        config = self.config.train
        if self.env_step < max(config.learning_starts, 1) or len(self.replay) == 0:
            return
        pace = config.updates_per_step
        if config.initial_updates_per_step is not None and self.env_step <= config.initial_steps:
            pace = config.initial_updates_per_step
        self.update_credit += pace * self.env.num_envs

    def _spend_updates(self, *, to_the_last: bool = False) -> Generator[bool, Row | None, None]:
        """Ask for the updates that are due; a stop may fall between any two, or after the last."""
        self._decay_learning_rates()
        while self.update_credit >= 1.0 and (to_the_last or self.stop.signal_number is None):
            row = yield to_the_last
            if row is None:
                break
            self.update_credit -= 1.0
            self.window.add(*row)
            self.num_updates += 1

    def _decay_learning_rates(self) -> None:
        """Let the rates fall with the steps taken, by the config's share."""
        config = self.config.train
        if config.final_learning_rate == 1.0:
            return
        length = max(config.total_steps - config.learning_starts, 1)
        progress = min(max((self.env_step - config.learning_starts) / length, 0.0), 1.0)
        self.agent.scale_learning_rates(1.0 - (1.0 - config.final_learning_rate) * progress)

    def sample_batch(self) -> Batch:
        """Draw a batch as the agent sees it: rewards scaled, observations normalised."""
        config = self.config.train
        batch = self.replay.sample(config.batch_size, self.sampling)
        if self.reward_scale != 1.0:
            batch = batch._replace(reward=self.reward_scale * batch.reward)
        return batch._replace(
            obs=self.normalizer.normalize_tensor(batch.obs),
            next_obs=self.normalizer.normalize_tensor(batch.next_obs),
        )

    @property
    def captures_updates(self) -> bool:
        """Return whether updates are CUDA graphs."""
        return self.config.train.cuda_graph and self.device.type == "cuda"

    @property
    def reward_scale(self) -> float:
        """What the agent's rewards are, at this moment, over those of the environment."""
        unit = 1.0 if self.returns is None else self.returns.deviation
        return self.config.train.reward_scale / unit

    def due(self, interval: int) -> bool:
        """Return True at multiples of the interval, at the start, and at the end."""
        previous = self.env_step - self.env.num_envs
        total = self.config.train.total_steps
        return (
            self.env_step == 0
            or self.env_step // interval > previous // interval
            or self.env_step >= total
        )

    def _record_and_save_if_due(self) -> None:
        """Write rows and a checkpoint where due; safe to repeat after a resume."""
        rows_are_new = self.last_recorded < self.env_step
        if rows_are_new:
            record_row(self)
            self.last_recorded = self.env_step
        save_due = self.env_step > 0 and self.due(self.config.train.checkpoint_interval)
        # A stop may have saved this step before its last updates and its rows.
        if save_due and (rows_are_new or self.saver.last_saved < self.env_step):
            self._save()

    def breathe(self) -> None:
        """Look up from long work: tell other machines, leave it if a stop was asked for."""
        self._give_signs_of_life()
        self.stop.raise_if_asked()

    def _give_signs_of_life(self) -> None:
        for lock in self.locks:
            lock.sign_of_life()

    def _stop_if_asked(self, *, with_env: bool = True) -> None:
        if self.stop.signal_number is None:
            return
        self.save_for_stop(with_env=with_env)
        with self.stop.patiently() as seconds:
            self.tracker.close(wandb_seconds=seconds)
        raise Interrupted(self.run_dir, self.env_step, self.stop.signal_number)

    def save_for_stop(self, *, with_env: bool = True) -> None:
        """Save what is not saved yet, or raise CheckpointError."""
        if self.env_step > self.saver.last_saved:
            self._save(with_env=with_env)
            self.saver.require_saved(self.env_step)

    def _close_tracker(self) -> None:
        with self.stop.bounded():
            self.tracker.close()

    def _save(self, *, with_env: bool = True) -> None:
        """Write everything that a bitwise continuation needs."""
        started = time.perf_counter()
        self.saver.save(self.env_step, training_state(self, with_env=with_env), self.replay)
        self.tracker.log_time(self.env_step, {"time/checkpoint": time.perf_counter() - started})

    def _after_fault(self, fault: Exception) -> EnvironmentFault:
        """Save what can be saved, and say so."""
        try:
            if self.env_step > self.saver.last_saved or not self._env_is_whole:
                self._save(with_env=self._env_is_whole)
            self.saver.require_saved(self.env_step)
            kept = "checkpoint kept"
        except (CheckpointError, DivergenceError) as error:
            kept = f"not saved ({error})"
        return EnvironmentFault(
            f"{fault}; training stopped at step {self.env_step}, {kept} in {self.run_dir}"
        )


def train(config: "ExperimentConfig", run_dir: Path) -> None:
    """Start a run in a new directory and train it to the end."""
    # What cannot be had is said before a directory is claimed.
    resolve_device(config.train.device)
    make_env(config.env).close()
    claim(config, run_dir)
    Trainer(config, run_dir).run()


def claim(config: "ExperimentConfig", run_dir: Path) -> None:
    """Make a directory that of a new run, with its configuration in it."""
    from algd.experiments.config import dump_yaml
    from algd.training.checkpoint import claim_run_dir

    claim_run_dir(run_dir)
    replace_durably(run_dir / CONFIG_FILE, with_origin(dump_yaml(config)).encode())


def require_not_shorter(directory: Path, steps: int, total_steps: int | None) -> None:
    """Refuse to continue what is in ``directory``, planned for ``steps``, with fewer."""
    if total_steps is not None and total_steps < steps:
        raise ConfigError(
            f"train.total_steps of a run that is continued can only grow: {directory} has {steps}, "
            f"got {total_steps}"
        )


def resume(run_dir: Path, total_steps: int | None = None) -> None:
    """Continue a run from its newest valid checkpoint, as if nothing had happened.

    Args:
        run_dir: of the run.
        total_steps: train up to this many steps from now on; None keeps what the run was started
            with. On a CPU it is trained as if it had had that many from the start, unless
            ``TrainConfig.depends_on_length``; its rows differ up to the one after its old end,
            where it was evaluated and means began anew.

    Raises:
        ConfigError: fewer steps than the run has.
        CheckpointError: no checkpoint can be used, or another process writes the run.
    """
    continued(run_dir, total_steps).run()


def continued(
    run_dir: Path,
    total_steps: int | None = None,
    *,
    stop: StopRequest | None = None,
    progress_label: str = "",
) -> Trainer:
    """Return the trainer of a run as it was at its newest valid checkpoint; see ``resume``."""
    from algd.experiments.config import dump_yaml, load_config

    require_run_dir(run_dir)
    path = require_config(run_dir)
    with RunLock(run_dir):  # a process that is just ending may save once more
        checkpoint = CheckpointStore(run_dir).latest()
        config = load_config([path])
    before = config.train.total_steps
    require_not_shorter(run_dir, before, total_steps)
    longer = total_steps is not None and total_steps > before
    if longer:
        if config.train.depends_on_length:
            _log.warning(
                "%s will differ from a run of %d steps from the start: learning rates fell, or "
                "steps overlapped with updates, for an end at %d steps",
                run_dir,
                total_steps,
                before,
            )
        config = replace(config, train=replace(config.train, total_steps=total_steps))
    if checkpoint is None:
        _log.warning("%s holds no checkpoint yet; starting it again from step 0", run_dir)
    trainer = Trainer(
        config,
        run_dir,
        checkpoint=checkpoint,
        again=checkpoint is None,
        stop=stop,
        progress_label=progress_label,
    )
    if longer:  # the trainer holds the lock of the directory
        try:
            text = with_origin(dump_yaml(config), path.read_text(encoding="utf-8"))
            replace_durably(path, text.encode())
        except OSError as error:
            trainer.close()
            raise CheckpointError(
                f"{path} cannot be written: {error.strerror}; nothing was done"
            ) from error
    elif trainer.env_step >= before:
        _log.warning(
            "%s has taken all of its %d steps; to train on, add --train.total_steps=N",
            run_dir,
            before,
        )
    return trainer
