"""The W&B side of tracking: which mode, one run with ``env_step`` as its axis, never a failure.

In: rows, videos and checkpoints of a run. Out: a W&B run, online or in ``run_dir/wandb``. Nothing
here may stop or slow training: every call is guarded, and what went wrong is said once.

``run_dir/wandb.json`` holds the run's id and how far its rows were handed over, so that a run
killed after its last checkpoint does not hand over the same rows again when it is resumed.
"""

import importlib.util
import json
import logging
import netrc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from algd.training.csv_table import write_atomically

if TYPE_CHECKING:
    from algd.training.tracking import TrackingConfig

Mode = Literal["online", "offline", "disabled"]

_log = logging.getLogger(__name__)
_DEFAULT_SERVER = "https://api.wandb.ai"
_INIT_SECONDS = 30.0  # an unreachable server costs this once, then the run is recorded offline
_FINISH_SECONDS = 120.0  # a slow upload may delay the end of a run by this; the rest is on disk
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


class WandbRun:
    """One W&B run; no method raises, and only start and end wait for a server, for a bounded time.

    Args:
        run_dir: W&B's files go to ``run_dir/wandb``.
        mode: ``online`` falls back to ``offline`` when the server does not answer in time.
        settings: where the run belongs and what it is called.
        resolved_config: stored as the run's config.
        run_id: of the run; an id stored in ``run_dir`` by an earlier call wins.
        resume_step: None for a new run, else the step of the checkpoint it continues from.
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["online", "offline"],
        settings: "TrackingConfig",
        *,
        resolved_config: dict[str, Any],
        run_id: str,
        resume_step: int | None,
    ) -> None:
        self._run_dir = run_dir
        self._state_path = run_dir / "wandb.json"
        self._said: set[str] = set()
        self._run: Any = None
        state = self._read_state() if resume_step is not None else {}
        self.run_id = state.get("run_id", run_id)
        # Both are (env step, how many rows had that step): what this process was given so far, and
        # what W&B has after the checkpoint, from here or from the process that was killed.
        self._given = (-1, 0)
        self._handed = (state.get("env_step", -1), state.get("rows", 0))
        if resume_step is not None and self._handed[0] <= resume_step:
            self._handed = (-1, 0)
        with self._guard("start"):
            self._run = self._start(mode, settings, resolved_config)
        if self._run is not None:
            self._write_state()

    @property
    def url(self) -> str | None:
        """Address of the run when online, None otherwise."""
        return None if self._run is None else self._run.url

    def log(self, env_step: int, values: dict[str, Any]) -> None:
        """Hand over one row, unless a killed predecessor of this run did so already."""
        if self._run is None:
            return
        step, rows = self._given
        self._given = (env_step, rows + 1 if env_step == step else 1)
        if self._given <= self._handed:
            return
        with self._guard("log"):
            self._run.log({"env_step": env_step, **values})
            self._handed = self._given
            self._write_state()

    def histogram(self, env_step: int, name: str, values: Any) -> None:
        """Hand over a histogram of finite values."""
        if self._run is None:
            return
        with self._guard("histogram"):
            import wandb

            self.log(env_step, {name: wandb.Histogram(values)})

    def video(self, env_step: int, path: Path) -> None:
        """Hand over an mp4 file."""
        if self._run is None:
            return
        with self._guard("video"):
            import wandb

            self.log(env_step, {"eval/video": wandb.Video(str(path), format="mp4")})

    def model_artifact(self, directory: Path, *, env_step: int, aliases: list[str]) -> None:
        """Hand over a checkpoint without its replay rows, as ``model-RUN_ID``.

        The files are linked into ``run_dir/wandb``, so a later removal of the checkpoint does not
        take them from an upload that has not happened yet.
        """
        if self._run is None:
            return
        with self._guard("artifact"):
            import wandb

            artifact = wandb.Artifact(
                f"model-{self.run_id}", type="model", metadata={"env_step": env_step}
            )
            kept = self._run_dir / "wandb" / "models" / f"{directory.name}-{aliases[0]}"
            for source in _files_without_replay(directory):
                name = source.relative_to(directory)
                copy = kept / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                _link(source, copy)
                artifact.add_file(str(copy), str(name), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact, aliases=aliases)

    def finish(self, summary: dict[str, Any], *, exit_code: int = 0) -> None:
        """Write the summary and end the run."""
        if self._run is None:
            return
        with self._guard("finish"):
            self._run.summary.update(summary)
            self._run.finish(exit_code=exit_code)
        self._run = None

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
                    init_timeout=_INIT_SECONDS,
                    finish_timeout=_FINISH_SECONDS,
                ),
            )

        try:
            run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            _log.warning("W&B: %s; recording offline instead", _first_line(error))
            run = start("offline")
        # No row ever carries W&B's own step: it must not go back, and rows that do are dropped.
        run.define_metric("env_step")
        run.define_metric("*", step_metric="env_step")
        return run

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._said:
                self._said.add(what)
                _log.warning("W&B: %s failed, training goes on: %s", what, _first_line(error))

    def _read_state(self) -> dict[str, Any]:
        try:
            return json.loads(self._state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _write_state(self) -> None:
        state = {"run_id": self.run_id, "env_step": self._handed[0], "rows": self._handed[1]}
        write_atomically(self._state_path, json.dumps(state).encode())


def _files_without_replay(directory: Path) -> list[Path]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(
        path
        for path in files
        if not any(part.startswith("replay") for part in path.relative_to(directory).parts)
    )


def _link(source: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        copy.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, copy)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
