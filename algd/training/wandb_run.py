"""The W&B side of tracking: which mode, one run with ``env_step`` as its axis, never a failure.

In: rows, videos and checkpoints of a run. Out: a W&B run, online or in ``run_dir/wandb``. Nothing
here may stop or slow training: every call is guarded, and what went wrong is said once.

``run_dir/wandb.json`` holds the run's id. W&B keeps rows in memory for seconds, so a killed run
has logged more than W&B has: a resumed one looks at what is really there, hands over the rows of
metrics.csv that are missing, and skips those that it trains again and W&B already has.
"""

import importlib.util
import json
import logging
import netrc
import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from weakref import WeakSet

from algd.training.durable_files import replace_durably
from algd.training.stopping import StopWhileWaiting
from algd.training.wandb_file import offline_rows, wait_for_writers

if TYPE_CHECKING:
    from algd.training.tracking import TrackingConfig

Mode = Literal["online", "offline", "disabled"]

_log = logging.getLogger(__name__)
_DEFAULT_SERVER = "https://api.wandb.ai"
_INIT_SECONDS = 30.0  # an unreachable server costs this once, then the run is recorded offline
_RETRY_SECONDS = 60.0  # the next run of this process asks such a server no sooner
_FINISH_SECONDS = 120.0  # a slow upload may delay the end of a run by this; the rest is on disk
_AGAIN_SECONDS = 5.0  # the same for the next seed, when one has waited that long in vain
_TEARDOWN_SECONDS = 0.5  # for W&B's process to end by itself, once its run was given up
_WRITER_SECONDS = 10.0  # a killed run's W&B process is gone after less than one
_TABLE_ROWS = 10_000  # what W&B shows of a table
# What the runs table of a project shows of a metric besides its last value.
_SUMMARIES = {
    "eval/return": "max,last",
    "eval/cost": "min,last",
    "eval/violation_rate": "min,last",
    "train/cost": "max,last",
    "train/multiplier": "max,last",
}
_MODE_NAMES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def login_source() -> str | None:
    """Say where W&B would find its key (a variable or a file), None when not logged in.

    Reads no more than whether a key is there; asks no server.
    """
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)).netloc
    named = os.environ.get("NETRC")
    candidates = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for path in candidates:
        try:
            entry = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return str(path)
    return None


def choose_mode(requested: Literal["auto", "online", "offline", "disabled"]) -> Mode:
    """Return the mode to use: ``auto`` obeys WANDB_MODE, then is online when logged in.

    ``disabled`` where wandb is not installed, and ``offline`` in place of ``online`` without a
    login, since W&B would stop and ask; both are said unless the request was ``auto``.
    """
    if requested == "disabled":
        return "disabled"
    if importlib.util.find_spec("wandb") is None:
        if requested != "auto":
            _log.warning("W&B: not installed (pip install wandb); this run is not recorded there")
        return "disabled"
    mode: Mode | None = None if requested == "auto" else requested
    if mode is None:
        mode = _MODE_NAMES.get(os.environ.get("WANDB_MODE", ""))
    if mode is None:
        return "online" if login_source() else "offline"
    if mode == "online" and not login_source():
        _log.warning("W&B: not logged in (wandb login); recording offline instead")
        return "offline"
    return mode


@dataclass
class _Shared:
    """What runs of several seeds share, since one process of W&B serves all of this process."""

    live: "WeakSet[WandbRun]" = field(default_factory=WeakSet)
    left_waiting: bool = False  # a run ended in time for us, and not for its server
    unreachable: dict[str, float] = field(default_factory=dict)  # servers, and since when


_shared = _Shared()


class WandbRun:
    """One W&B run; no method raises, and only start and end wait for a server, for a bounded time.

    Args:
        run_dir: W&B's files go to ``run_dir/wandb``.
        mode: ``online`` falls back to ``offline`` when the server does not answer in time.
        settings: where the run belongs and what it is called.
        resolved_config: stored as the run's config.
        run_id: of the run; when ``resumed``, the id stored in ``run_dir`` wins.
        resumed: the run continues one that was recorded before. The caller then logs the rows up
            to the checkpoint once more; those that W&B has are skipped.
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["online", "offline"],
        settings: "TrackingConfig",
        *,
        resolved_config: dict[str, Any],
        run_id: str,
        resumed: bool,
    ) -> None:
        self._run_dir = run_dir
        self._id_path = run_dir / "wandb.json"
        self._said: set[str] = set()
        self._run: Any = None
        self._config_declared = False
        self._end_by: float | None = None
        self.run_id = run_id
        # What W&B has of the steps that a resumed run goes through again.
        self._present: Counter[tuple[int, frozenset[str]]] = Counter()
        self._present_up_to = -1
        with self._guard("start"):
            if resumed:
                self.run_id = self._stored_id(run_id)
                if not wait_for_writers(run_dir, _WRITER_SECONDS):
                    _log.warning("W&B: another process still writes its rows of %s", run_dir)
                self._present = _offline_row_keys(run_dir)
            self._run = self._start(mode, settings, resolved_config)
            if resumed and not self._run.offline:
                self._present.clear()
                self._present_up_to = int(self._run.summary.get("env_step", -1))
            replace_durably(self._id_path, json.dumps({"run_id": self.run_id}).encode())

    @property
    def url(self) -> str | None:
        """Address of the run when online, None otherwise."""
        return None if self._run is None or self._run.offline else self._run.url

    def log(self, env_step: int, values: dict[str, Any]) -> None:
        """Hand over one row, unless W&B has it from a killed predecessor of this process."""
        if self._run is None or env_step <= self._present_up_to:
            return
        key = _row_key(env_step, values)
        if self._present[key] > 0:
            self._present[key] -= 1
            return
        with self._guard("log"):
            self._run.log({"env_step": env_step, **values})

    def histogram(self, env_step: int, name: str, counted: tuple[Any, Any]) -> None:
        """Hand over counts and edges of bins."""
        if self._run is None:
            return
        with self._guard("histogram"):
            import wandb

            self.log(env_step, {name: wandb.Histogram(np_histogram=counted)})

    def video(self, env_step: int, path: Path) -> None:
        """Hand over an mp4 file."""
        if self._run is None:
            return
        with self._guard("video"):
            import wandb

            self.log(env_step, {"eval/video": wandb.Video(str(path), format="mp4")})

    def image(self, env_step: int, name: str, pixels: Any) -> None:
        """Hand over an RGB array (height, width, 3) of uint8."""
        if self._run is None:
            return
        with self._guard("image"):
            import wandb

            self.log(env_step, {name: wandb.Image(pixels)})

    def table(self, env_step: int, name: str, rows: list[dict[str, str]]) -> None:
        """Hand over rows of a CSV file, numbers as numbers; the last 10,000 of them."""
        if self._run is None or not rows:
            return

        def hand_over() -> None:
            import wandb

            columns: list[Any] = list(rows[0])
            data = [[_number(row[name]) for name in columns] for row in rows[-_TABLE_ROWS:]]
            self.log(env_step, {name: wandb.Table(columns=columns, data=data)})

        self._do_in_time("table", hand_over)

    def model_artifact(
        self, directory: Path, *, env_step: int, aliases: list[str], metadata: dict[str, Any]
    ) -> None:
        """Hand over a checkpoint without its replay rows, as ``model-RUN_ID``.

        The files are linked into ``run_dir/wandb``, so a later removal of the checkpoint does not
        take them from an upload that has not happened yet.
        """
        if self._run is None:
            return

        def hand_over() -> None:
            import wandb

            self._declare_config()
            artifact = wandb.Artifact(
                f"model-{self.run_id}", type="model", metadata={"env_step": env_step} | metadata
            )
            kept = self._run_dir / "wandb" / "models" / f"{directory.name}-{aliases[0]}"
            for source in _files_without_replay(directory):
                name = source.relative_to(directory)
                copy = kept / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(source, copy)
                artifact.add_file(str(copy), str(name), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact, aliases=aliases)

        self._do_in_time("artifact", hand_over)

    def _declare_config(self) -> None:
        """Make config.yaml an artifact, once: what the models of this run descend from.

        As an input of the run where W&B allows it, so that its lineage graph reads configuration
        -> run -> model; offline W&B knows outputs alone.
        """
        path = self._run_dir / "config.yaml"
        if self._config_declared or not path.is_file():
            return
        import wandb

        self._config_declared = True
        artifact = wandb.Artifact(f"config-{self.run_id}", type="config")
        artifact.add_file(str(path), policy="immutable", skip_cache=True)
        if self._run.offline:
            self._run.log_artifact(artifact)
        else:
            self._run.use_artifact(artifact)

    def finish(
        self, summary: dict[str, Any], *, exit_code: int = 0, seconds: float | None = None
    ) -> None:
        """Write the summary and end the run; after ``seconds`` what W&B has not sent stays here."""
        if self._run is None:
            return

        def end() -> None:
            self._run.summary.update(summary)
            self._run.finish(exit_code=exit_code)

        if seconds is not None:
            self._end_by = time.monotonic() + seconds
        if not self._do_in_time("finish", end):
            _log.warning("W&B: not all was sent; the rest is in %s", self._run_dir)
            _shared.left_waiting = True
        self._run = None
        _shared.live.discard(self)
        if _shared.left_waiting and not _shared.live:
            _shared.left_waiting = False
            with self._guard("end"):
                _end_service()

    def _do_in_time(self, what: str, call: Callable[[], None]) -> bool:
        """Do what may wait for a server; say whether it ended before the run's end had to.

        Each but the last has half of the time that is left.
        """
        if self._end_by is None:
            hangs = _shared.left_waiting  # the server did not answer the run before this one
            self._end_by = time.monotonic() + (_AGAIN_SECONDS if hangs else _FINISH_SECONDS)

        def guarded() -> None:
            with self._guard(what):
                call()

        thread = threading.Thread(target=guarded, daemon=True)
        left = max(self._end_by - time.monotonic(), 0.0)
        try:
            thread.start()
            thread.join(left if what == "finish" else left / 2)
        except StopWhileWaiting:
            self._end_by = 0.0
        return not thread.is_alive()

    def _start(
        self,
        mode: Literal["online", "offline"],
        settings: "TrackingConfig",
        resolved_config: dict[str, Any],
    ) -> Any:
        import wandb

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                project=settings.project,
                entity=settings.entity,
                group=settings.group,
                tags=list(settings.tags),
                job_type=settings.job_type,
                name=settings.name or self._run_dir.name,
                id=self.run_id,
                resume="allow",
                config=resolved_config,
                dir=str(self._run_dir),
                mode=mode,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    reinit="create_new",  # beside those of other seeds in this process
                    init_timeout=_INIT_SECONDS,
                    finish_timeout=_FINISH_SECONDS,
                ),
            )

        _disable_telemetry()
        _leave_service_of_another_process()
        wandb.setup(wandb.Settings(silent=True))  # the login, before a run has its own settings
        server = os.environ.get("WANDB_BASE_URL", _DEFAULT_SERVER)
        failed = _shared.unreachable.get(server)
        if failed is not None and (_shared.live or time.monotonic() - failed < _RETRY_SECONDS):
            _log.warning("W&B: %s did not answer a moment ago; recording offline instead", server)
            mode = "offline"
        try:
            run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            _log.warning("W&B: %s; recording offline instead", _first_line(error))
            _shared.unreachable[server] = time.monotonic()
            # The attempt holds the run's id for as long as W&B's process lives.
            if _shared.live:
                self.run_id = uuid.uuid4().hex[:12]
            else:
                wandb.teardown()
            run = start("offline")
        # No row ever carries W&B's own step: it must not go back, and rows that do are dropped.
        run.define_metric("env_step")
        run.define_metric("*", step_metric="env_step")
        for name, summary in _SUMMARIES.items():
            run.define_metric(name, step_metric="env_step", summary=summary)
        _shared.live.add(self)
        return run

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._said:
                self._said.add(what)
                _log.warning("W&B: %s failed, training goes on: %s", what, _first_line(error))

    def _stored_id(self, otherwise: str) -> str:
        try:
            return json.loads(self._id_path.read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, KeyError):
            return otherwise


def _row_key(env_step: int, names: Iterable[str]) -> tuple[int, frozenset[str]]:
    """Tell rows of one step apart by what they hold; times may be missing in one of them."""
    return env_step, frozenset(n for n in names if n != "env_step" and not n.startswith("time/"))


def _offline_row_keys(run_dir: Path) -> Counter[tuple[int, frozenset[str]]]:
    rows: Iterator[Mapping[str, Any]] = offline_rows(run_dir)
    return Counter(_row_key(row["env_step"], row) for row in rows if "env_step" in row)


def _files_without_replay(directory: Path) -> list[Path]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(
        path
        for path in files
        if not any(part.startswith("replay") for part in path.relative_to(directory).parts)
    )


def _number(text: str) -> float | str | None:
    """Return what a CSV field holds; nothing for an empty one."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _link(source: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        copy.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)


def _disable_telemetry() -> None:
    """Turn off what wandb reports about itself: at exit it waits up to 30 s for its server."""
    with suppress(ImportError):  # a private part of it
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


def _leave_service_of_another_process() -> None:
    """Have this process start a W&B process of its own, not share that of the one it came from.

    wandb hands its own down to every child, in a variable; that one ends with its owner, cannot be
    ended here when its server hangs, and wandb's threads fail at exit after it was left.
    """
    _, _, owner_and_address = os.environ.get("WANDB_SERVICE", "").partition("-")
    if owner_and_address.partition("-")[0] != str(os.getpid()):
        os.environ.pop("WANDB_SERVICE", None)


def _end_service() -> None:
    """Kill W&B's process, for which wandb would wait at the end of this one without a bound."""
    import wandb

    def forget() -> None:
        with suppress(Exception, SystemExit):  # it exits with its process's code
            wandb.teardown()

    waiting = threading.Thread(target=forget, daemon=True)
    waiting.start()
    waiting.join(_TEARDOWN_SECONDS)
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread or process that ended just now
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text().startswith("wandb"):
                    os.kill(int(child), signal.SIGKILL)
    waiting.join(_TEARDOWN_SECONDS)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
