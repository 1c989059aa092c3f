"""Kill or stop training at random moments, resume it, and compare with an undisturbed run.

In: a number of kills and a seed. Out: a table, and exit code 1 unless every resumed run equals its
undisturbed twin bit for bit: metrics, episodes, weights, optimisers, generators, replay, kept
policy; and unless every checkpoint on the disk after every kill was readable.

    python tests/faults/kill_and_resume.py --kills 100 --seed 0

Each kill falls into one phase of the run, in turn: the k-th time that the child process enters it,
k random, the parent waits a random part of what the phase takes and sends SIGKILL, or SIGTERM, upon
which the child saves and ends. Processes are forked after the imports, so that a trial costs about
the time of its training.
"""

# ruff: noqa: E402 - the path comes first, so that this file runs by its name alone

import argparse
import functools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import torch
from saved_runs import same_bits

from alam.replay import ReplayBuffer
from algd.experiments.config import load_config
from algd.training import finishing, lockstep, recording, trainer
from algd.training.checkpoint import CheckpointStore
from algd.training.stopping import Interrupted
from algd.training.trainer import Trainer, resume, train
from algd.training.wandb_file import offline_rows

PHASES: dict[str, tuple[Any, str]] = {
    "update": (lockstep._OneByOne, "update"),
    "evaluation": (recording, "evaluate"),
    "checkpoint": (CheckpointStore, "save"),
    "video": (finishing, "_record_final_video"),
    "step": (Trainer, "_finish_step"),
    "resume": (trainer, "restore_training"),
}
STOPPED = 75  # exit code of a child that SIGTERM has ended
_STOP_SHARE = 0.4  # of the signals are SIGTERM
TINY = {
    "env.id": "AnalyticCorridor-v0",
    "constraint.cost_limit": 2.0,
    "policy.hidden": [16, 16],
    "critics.hidden": [16, 16],
    "critics.num_cost_critics": 2,
    "train.total_steps": 240,
    "train.learning_starts": 40,
    "train.batch_size": 16,
    "train.buffer_size": 150,
    "train.log_interval": 20,
    "train.checkpoint_interval": 30,
    "evaluation.interval": 60,
    "evaluation.episodes": 2,
    "evaluation.video_steps": 20,
    "tracking.wandb": "disabled",
    "tracking.progress": False,
}
GAUSSIAN = {"policy.kind": "gaussian"}
DIFFUSION = {"policy.schedule": {"kind": "ve", "num_train_timesteps": 3}}
VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian, statewise_alam, tails": GAUSSIAN
    | {"train.normalize_obs": True, "train.tail_share": 0.1},
    "diffusion, scalar_pid, 3 environments": DIFFUSION
    | {"multiplier.kind": "scalar_pid", "env.num_envs": 3, "train.updates_per_step": 0.4},
    "gaussian, scalar_dual": GAUSSIAN | {"multiplier.kind": "scalar_dual"},
    "diffusion, statewise_alam, normalised": DIFFUSION
    | {"train.normalize_obs": True, "train.normalize_reward": True},
    "gaussian, statewise_dual, 2 environments": GAUSSIAN
    | {"multiplier.kind": "statewise_dual", "env.num_envs": 2},
    "diffusion, scalar_adrc": DIFFUSION | {"multiplier.kind": "scalar_adrc"},
    "released, fixed": {"policy.kind": "release", "multiplier.kind": "fixed"},
    "diffusion, scalar_dual on episodes": DIFFUSION
    | {"multiplier.kind": "scalar_dual", "multiplier.signal": "episode"},
}
ROWS_PER_SEGMENT = 32


@dataclass
class Reference:
    """An undisturbed run: its state, and how often and how long it was in each phase."""

    state: dict[str, Any]
    entries: dict[str, int]
    seconds: dict[str, float]


@dataclass
class Result:
    """What became of the kills."""

    kills: dict[str, int] = field(default_factory=dict)  # stops included
    stops: int = 0
    resumes: int = 0
    runs: int = 0
    unequal: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def final_state(run_dir: Path) -> dict[str, Any]:
    """Return everything a run left that must not depend on how often it was killed."""
    store = CheckpointStore(run_dir)
    newest = store.latest()
    assert newest is not None
    record = store.manifest(newest).replay
    assert record is not None
    replay = ReplayBuffer(record.capacity, record.obs_dim, record.action_dim)
    store.restore_replay(newest, replay)
    has_policy = (run_dir / "policies" / "best_safe").is_dir()
    return {
        "metrics": (run_dir / "metrics.csv").read_text(),
        "episodes": (run_dir / "episodes.csv").read_text(),
        "state": store.load(newest),
        "replay": replay.table,
        "rows": replay.total_added,
        "policy": store.load_policy("best_safe") if has_policy else None,
        "video": (run_dir / "videos" / "final.mp4").is_file(),
        "wandb": sorted(map(_stable, filter(_has_step, offline_rows(run_dir))), key=str)
        if (run_dir / "wandb").is_dir()
        else [],
    }


def _has_step(row: dict[str, Any]) -> bool:
    """Say whether a row of W&B is the run's: no system metric, no summary."""
    return "env_step" in row


def _stable(value: Any) -> Any:
    """Return what a row of W&B says, without clocks and the names W&B draws for its files.

    Names in order, and 2 for 2.0: W&B keeps neither.
    """
    if isinstance(value, dict):
        drawn = ("path", "artifact_path", "_latest_artifact_path")
        names = [n for n in sorted(value) if not n.startswith("time/") and n not in drawn]
        return {name: _stable(value[name]) for name in names}
    return float(value) if isinstance(value, int) else value


def unreadable_checkpoints(run_dir: Path) -> list[str]:
    """Return the checkpoints listed under their final name of which not every byte is good."""
    store, bad = CheckpointStore(run_dir), []
    for path in (run_dir / "checkpoints").glob("step_*"):
        try:
            store._verified(path)
        except Exception as error:
            bad.append(f"{path}: {error}")
    return bad


def child(run_dir: Path, overrides: dict[str, Any], pipe: int, log: Path) -> None:
    """Train or continue in this process, a fork, telling the parent of each phase; never return."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        trainer.CheckpointStore = functools.partial(
            CheckpointStore, rows_per_segment=ROWS_PER_SEGMENT
        )
        for index, (owner, name) in enumerate(PHASES.values()):
            setattr(owner, name, _announced(getattr(owner, name), index, pipe))
        if (run_dir / "config.yaml").exists():
            resume(run_dir)
        else:
            shutil.rmtree(run_dir, ignore_errors=True)
            train(load_config([], overrides), run_dir)
        code = 0
    except Interrupted:
        code = STOPPED
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _announced(call: Callable[..., Any], index: int, pipe: int) -> Callable[..., Any]:
    def announced(*args: Any, **named: Any) -> Any:
        os.write(pipe, bytes([index]))
        try:
            return call(*args, **named)
        finally:
            os.write(pipe, bytes([index + 100]))

    return announced


def start(run_dir: Path, overrides: dict[str, Any], log: Path) -> tuple[int, int]:
    """Fork a child; return its process id and the end of the pipe to read."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        child(run_dir, overrides, writer, log)
    os.close(writer)
    return pid, reader


def marks(reader: int) -> Iterator[int]:
    while mark := os.read(reader, 1):
        yield mark[0]


def finish(run_dir: Path, overrides: dict[str, Any], log: Path) -> Reference:
    """Run to the end; return what came out, and the counts and durations of phases."""
    names = list(PHASES)
    entries, seconds, entered = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0), {}
    pid, reader = start(run_dir, overrides, log)
    for mark in marks(reader):
        name = names[mark % 100]
        if mark < 100:
            entries[name] += 1
            entered[name] = time.perf_counter()
        else:
            seconds[name] = max(seconds[name], time.perf_counter() - entered[name])
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError(f"{run_dir} ended with {status}:\n{log.read_text()}")
    return Reference(final_state(run_dir), entries, seconds)


def kill(
    run_dir: Path,
    overrides: dict[str, Any],
    log: Path,
    *,
    phase: str,
    entry: int,
    delay: float,
    number: signal.Signals,
) -> bool:
    """Kill a child ``delay`` seconds after its n-th entry into a phase; return whether it lived.

    Args:
        number: SIGKILL, or SIGTERM and wait for its end.
    """
    index, seen = list(PHASES).index(phase), 0
    pid, reader = start(run_dir, overrides, log)
    for mark in marks(reader):
        seen += mark == index
        if seen == entry:
            break
    time.sleep(delay)
    os.kill(pid, number)  # of a child that has ended too: it is not yet waited for
    if number == signal.SIGTERM:
        for _ in marks(reader):
            pass
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) not in (0, STOPPED):
        raise RuntimeError(f"{run_dir} ended with {status}:\n{log.read_text()}")
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == STOPPED


def kill_and_resume(
    root: Path, *, kills: int, seed: int, wandb_every: int, variants: int
) -> Result:
    """Do the whole experiment in ``root``; every ``wandb_every``-th run records for W&B offline."""
    source, result = random.Random(seed), Result()
    references: dict[str, Reference] = {}
    names = cycle(list(VARIANTS)[:variants])
    phases = [phase for phase in PHASES if phase != "resume"]
    while sum(result.kills.get(phase, 0) for phase in phases) < kills:
        variant = next(names)
        overrides = TINY | VARIANTS[variant]
        if wandb_every and result.runs % wandb_every == wandb_every - 1:
            variant += ", W&B offline"
            overrides = overrides | {"tracking.wandb": "offline"}
        name = f"run_{result.runs:03d}"
        run_dir, log = root / name, root / f"{name}.log"
        if variant not in references:
            references[variant] = finish(root / f"whole_{len(references)}", overrides, log)
        reference = references[variant]
        for number in range(source.choice((1, 1, 2))):
            # A kill that came too late is not counted, and its phase is tried again.
            phase = min(phases, key=lambda phase: result.kills.get(phase, 0))
            if number == 1 and source.random() < 0.3:
                phase = "resume"
            entry = source.randint(1, max(1, reference.entries[phase]))
            delay = source.uniform(0.0, max(reference.seconds[phase], 0.002))
            kind = signal.SIGTERM if source.random() < _STOP_SHARE else signal.SIGKILL
            if kill(run_dir, overrides, log, phase=phase, entry=entry, delay=delay, number=kind):
                result.kills[phase] = result.kills.get(phase, 0) + 1
                result.stops += kind == signal.SIGTERM
            result.unreadable += unreadable_checkpoints(run_dir)
        result.resumes += 1
        equal = same_bits(finish(run_dir, overrides, log).state, reference.state)
        if not equal:
            result.unequal.append(f"{name} ({variant})")
        print(f"{name} ({variant}): {'equal' if equal else 'NOT EQUAL'}", flush=True)
        result.runs += 1
    return result


def main() -> int:
    """Run the experiment and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wandb-every", type=int, default=0, help="0: never")
    parser.add_argument("--variants", type=int, default=len(VARIANTS), help="use the first ones")
    parser.add_argument("--keep", type=Path, help="directory to run in, kept afterwards")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = options.keep or Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    root.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    result = kill_and_resume(
        root,
        kills=options.kills,
        seed=options.seed,
        wandb_every=options.wandb_every,
        variants=options.variants,
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    together = f"{sum(result.kills.values())}, of which {result.stops} by SIGTERM"
    print(f"kills by phase: {result.kills}, together {together}")
    print(f"runs killed and resumed to the end: {result.runs}; unequal: {len(result.unequal)}")
    print(f"unreadable checkpoints after a kill: {len(result.unreadable)}")
    print(f"{time.perf_counter() - began:.0f} s, {children.ru_utime:.0f} s of processor time")
    for line in [*result.unequal, *result.unreadable]:
        print(f"  {line}")
    if options.keep is None:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if result.unequal or result.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
