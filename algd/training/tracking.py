"""What a run leaves behind about itself: CSV files always, W&B and TensorBoard where wanted.

In: metrics, episodes, videos and checkpoints, each with its env step. Out, in the run directory:
``metrics.csv`` (a function of config and seed alone, bit for bit), ``timing.csv`` (the names
``time/*``: all that depends on the clock), ``episodes.csv``, ``evaluations.csv`` (one row per
episode of an evaluation), histograms and pictures where W&B or TensorBoard show them, and their
own files.
Tracking only observes: no algorithm reads a value back from here.

For an exact resume, rows of a step are logged before the checkpoint of that step is written: on
resume at step S the rows after S are cut off and those at S stay.
"""

import logging
import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from algd.training.csv_table import CsvTable
from algd.training.media_journal import MediaJournal
from algd.training.progress import Progress
from algd.training.wandb_run import WandbRun, choose_mode

_log = logging.getLogger(__name__)
_TIME = "time/"
_MULTIPLIER = "train/multiplier"


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is recorded besides its CSV files.

    wandb: ``auto`` is online when logged in, else offline, and nothing where wandb is not
        installed; the variable WANDB_MODE is obeyed.
    project, entity, group, tags, job_type, name: where W&B files the run; null takes W&B's default,
        for ``name`` that of the run directory.
    tensorboard: also write event files. progress: show a progress line. video: log the mp4 files.
    picture_interval: steps between pictures of energy and multiplier, taken at the first
        evaluation after so many; null for none. They go to W&B and TensorBoard, with histograms
        of the multiplier at every evaluation, and need matplotlib (extra ``lab``).
    """

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "algd"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    job_type: str = "train"
    name: str | None = None
    tensorboard: bool = False
    progress: bool = True
    video: bool = True
    picture_interval: int | None = 50_000

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("project", "job_type"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty, got {getattr(self, name)!r}")
        if self.picture_interval is not None and self.picture_interval < 1:
            raise ValueError(f"picture_interval must be null or >= 1, got {self.picture_interval}")


class MetricMeans(Protocol):
    """Running means of training metrics; asked only when a progress line is drawn."""

    def means(self) -> dict[str, float]:
        """Return the mean of every metric since the last row."""
        ...


class Tracker:
    """Records one run.

    Args:
        run_dir: exists; files of an earlier process of the same run are continued.
        config: what to record besides CSV.
        resolved_config: the whole configuration, as plain values, for W&B.
        total_steps, cost_limit: shown by the progress line.
        run_id: of the W&B run; drawn when None. A resumed run keeps the id it had.
        resume_step: env step of the checkpoint that the run continues from, None for a new run.
        last_recorded: env step of that checkpoint's last rows; less where a stop came before them.
        keep_refused_rows: hold rows that the disk refuses in memory until it takes them.
        progress_label: begins the progress line.

    Raises:
        CheckpointError: a CSV file cannot be written (here, and in every method that writes one
            unless ``keep_refused_rows``).
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        resolved_config: dict[str, Any],
        *,
        total_steps: int,
        cost_limit: float,
        run_id: str | None = None,
        resume_step: int | None = None,
        last_recorded: int | None = None,
        keep_refused_rows: bool = False,
        progress_label: str = "",
    ) -> None:
        self.config = config

        # Rows of the step itself are made again where the checkpoint does not know of them.
        rows_step = resume_step
        if resume_step is not None and last_recorded is not None and last_recorded < resume_step:
            rows_step = resume_step - 1

        def table(name: str, last_step: int | None) -> CsvTable:
            path = run_dir / name
            return CsvTable(path, resume_step=last_step, keep_refused=keep_refused_rows)

        self._metrics = table("metrics.csv", rows_step)
        self._timing = table("timing.csv", rows_step)
        self._episodes = table("episodes.csv", resume_step)
        self._evaluations = table("evaluations.csv", rows_step)
        histograms = table("histograms.csv", rows_step)
        self._media = MediaJournal(histograms, run_dir / "pictures", resume_step=rows_step)
        self._tables = (self._metrics, self._timing, self._episodes, self._evaluations, histograms)
        self._newest_step = max(resume_step or 0, 0)
        self._progress = Progress(
            total_steps,
            cost_limit=cost_limit,
            enabled=config.progress,
            label=progress_label,
        )
        self._times_to_send: dict[str, float] = {}
        self._multiplier: float | None = None
        self._newest_checkpoint: tuple[Path, int] | None = None
        self._events = _open_tensorboard(run_dir, rows_step) if config.tensorboard else None
        self._wandb: WandbRun | None = None
        mode = choose_mode(config.wandb)
        if mode != "disabled":
            self._wandb = WandbRun(
                run_dir,
                mode,
                config,
                resolved_config=resolved_config,
                run_id=uuid.uuid4().hex[:12] if run_id is None else run_id,
                resumed=resume_step is not None,
            )
            self._hand_over_again(self._wandb)
            if self._wandb.url is not None and config.progress:
                self._progress.write(f"W&B: {self._wandb.url}")

    def log(self, env_step: int, metrics: Mapping[str, float]) -> None:
        """Record a row; ``time/*`` goes to timing.csv, the rest to metrics.csv, all to W&B."""
        row = {name: float(value) for name, value in metrics.items()}
        exact = {name: value for name, value in row.items() if not name.startswith(_TIME)}
        steps, updates = self._progress.speeds()
        speeds = {"time/steps_per_second": steps, "time/updates_per_second": updates}
        known = {name: speed for name, speed in speeds.items() if not math.isnan(speed)}
        self.log_time(env_step, known | {name: row[name] for name in row.keys() - exact.keys()})
        self._newest_step = max(self._newest_step, env_step)
        self._multiplier = exact.get(_MULTIPLIER, self._multiplier)
        if exact:
            self._metrics.append({"env_step": env_step, **exact})
        self._send(env_step, exact)

    def log_time(self, env_step: int, seconds: Mapping[str, float]) -> None:
        """Record clock-dependent values, named ``time/*``; W&B gets them with the next row."""
        wrong = [name for name in seconds if not name.startswith(_TIME)]
        if wrong:
            raise ValueError(f"names of times must start with {_TIME!r}, got {wrong}")
        self._timing.append({"env_step": env_step, **dict(sorted(seconds.items()))})
        self._times_to_send |= seconds

    def episode(self, record: Mapping[str, Any]) -> None:
        """Record one finished training episode; ``record`` holds its ``env_step``."""
        self._episodes.append(record)

    def evaluation(
        self,
        env_step: int,
        returns: Sequence[float],
        costs: Sequence[float],
        lengths: Sequence[int],
    ) -> None:
        """Record the episodes of one evaluation."""
        self._newest_step = env_step
        for index, values in enumerate(zip(returns, costs, lengths, strict=True)):
            row = dict(zip(("return", "cost", "length"), values, strict=True))
            self._evaluations.append({"env_step": env_step, "episode": index, **row})

    @property
    def shows_media(self) -> bool:
        """Whether histograms and images go anywhere."""
        return self._wandb is not None or self._events is not None

    def image(self, name: str, pixels: Any, env_step: int) -> None:
        """Record an RGB array (height, width, 3) of uint8 in W&B and TensorBoard."""
        if self.shows_media:
            self._media.picture(env_step, name, pixels)
        if self._wandb is not None:
            self._wandb.image(env_step, name, pixels)
        if self._events is not None:
            self._events.add_image(name, pixels, env_step, dataformats="HWC")

    def histogram(self, name: str, values: Any, env_step: int) -> None:
        """Record the distribution of finite values (array or tensor) in W&B and TensorBoard."""
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        finite = array[np.isfinite(array)]
        if finite.size == 0 or not self.shows_media:
            return
        counted = self._media.histogram(env_step, name, finite)
        if self._wandb is not None:
            self._wandb.histogram(env_step, name, counted)
        if self._events is not None:
            self._events.add_histogram(name, finite, env_step)

    def video(self, path: Path, env_step: int) -> None:
        """Record an mp4 file."""
        if self._wandb is not None and self.config.video:
            self._wandb.video(env_step, path)

    def model_artifact(
        self,
        checkpoint_dir: Path,
        aliases: Sequence[str],
        env_step: int,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a directory as a version of the run's model, without files named ``replay*``."""
        if self._wandb is not None:
            self._wandb.model_artifact(
                checkpoint_dir,
                env_step=env_step,
                aliases=list(aliases),
                metadata=dict(metadata or {}),
            )

    def checkpoint(self, path: Path, env_step: int) -> None:
        """Note the newest checkpoint; the last one becomes the artifact ``latest`` at the end.

        A checkpoint outlives a power cut, so the rows before it must, too.
        """
        self._newest_checkpoint = (path, env_step)
        for table in self._tables:
            table.sync()
        if self._events is not None:
            self._events.flush()

    def flush(self) -> None:
        """Write rows that the disk refused before; CheckpointError if it still does."""
        for table in self._tables:
            table.flush()

    def progress(
        self,
        *,
        env_step: int,
        num_updates: int,
        episodes: Collection[tuple[float, float]],
        multiplier: MetricMeans,
    ) -> None:
        """Show how far the run is: cheap to call at every step.

        Args:
            env_step, num_updates: counters.
            episodes: (return, cost) of the last few finished episodes.
            multiplier: holds the mean of ``train/multiplier`` since the last row; without an update
                since then that of the row is shown.
        """
        if not self._progress.update(env_step, num_updates):
            return
        self._multiplier = multiplier.means().get(_MULTIPLIER, self._multiplier)
        means = np.mean(list(episodes), axis=0) if episodes else (None, None)
        self._progress.draw(episode_return=means[0], cost=means[1], multiplier=self._multiplier)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """End a run that reached its last step: summary and model artifact; nested names join."""
        if self._wandb is not None:
            if self._newest_checkpoint is not None:
                path, env_step = self._newest_checkpoint
                self.model_artifact(path, ["latest"], env_step, summary.get("last"))
            for name, table in (("training", self._episodes), ("evaluation", self._evaluations)):
                self._wandb.table(self._newest_step, f"episodes/{name}", table.rows())
            self._wandb.finish(_joined(summary))
            self._wandb = None
        self.close()

    def close(self, *, wandb_seconds: float | None = None) -> None:
        """Release everything; a run that was not finished is marked so in W&B. May be repeated.

        ``wandb_seconds``: of patience with W&B, after which what it has not taken stays here.
        """
        if self._wandb is not None:
            self._wandb.finish({}, exit_code=1, seconds=wandb_seconds)
            self._wandb = None
        if self._events is not None:
            self._events.close()
            self._events = None
        for table in self._tables:
            table.close()
        self._progress.close()

    def _hand_over_again(self, wandb: WandbRun) -> None:
        """Give W&B what earlier processes of this run recorded; it skips what it has."""
        for row in self._metrics.rows():
            values = {name: float(text) for name, text in row.items() if text}
            wandb.log(int(values.pop("env_step")), values)
        for env_step, name, counted in self._media.histograms():
            wandb.histogram(env_step, name, counted)
        for env_step, name, pixels in self._media.pictures():
            wandb.image(env_step, name, pixels)

    def _send(self, env_step: int, exact: dict[str, float]) -> None:
        row = exact | self._times_to_send
        self._times_to_send = {}
        if self._wandb is not None:
            self._wandb.log(env_step, row)
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, env_step)


def _open_tensorboard(run_dir: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("TensorBoard: not installed (pip install tensorboard); no event files")
        return None
    purge = None if resume_step is None else resume_step + 1
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)


def _joined(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"best safe": {"eval/cost": 3}} to {"best_safe/eval/cost": 3}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name.replace(' ', '_')}"
        flat |= _joined(value, f"{key}/") if isinstance(value, Mapping) else {key: value}
    return flat
