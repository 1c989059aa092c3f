"""Runs the cells of an ablation in worker processes; a finished cell is never run again.

In: cells. Out: in each cell's directory the run and measures.json, written last and at once. A grid
that was interrupted goes on where it stopped: finished cells are read, unfinished runs resumed.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algd.errors import ConfigError, UserError
from algd.experiments.ablation_plan import TASKS, Cell
from algd.experiments.config_values import first_difference, flatten
from algd.experiments.schema import show
from algd.experiments.sweep_child import stop_this_process, train_or_continue
from algd.training.run_directory import CONFIG_FILE

if TYPE_CHECKING:
    from algd.diffusion.policy import DiffusionPolicyConfig
    from algd.diffusion.release import ReleasePolicyConfig
    from algd.experiments.config import ExperimentConfig

MEASURES_FILE = "measures.json"
_SAMPLER_BATCH = 256
_KILLS = 2  # of processes in a row, with no cell finished in between, before cells count as failed
_ORPHANED = 1  # exit code


@dataclass(frozen=True)
class CellResult:
    """A cell and what was measured; ``error`` instead of measures where it failed."""

    cell: Cell
    measures: dict[str, float]
    error: str = ""


def run_cells(
    cells: Sequence[Cell], *, jobs: int, updates: int, say: Callable[[str], None] = print
) -> list[CellResult]:
    """Run what is not finished, ``jobs`` cells at a time, and return every cell's result.

    Args:
        cells: the grid.
        jobs: worker processes; 1 runs the cells in this one.
        updates: gradient steps of cells without an environment.
        say: receives a line per finished cell.

    Raises:
        ConfigError: a directory holds a cell of other settings, or a variant does not fit.
    """
    from algd.experiments.sweep_plan import require_same_config

    plans = {cell.directory: _settings(cell, updates) for cell in cells}
    results: dict[Path, CellResult] = {}
    for cell in cells:
        found = _finished(cell, plans[cell.directory])
        if found is not None:
            results[cell.directory] = CellResult(cell, found)
        elif (cell.directory / CONFIG_FILE).is_file():
            require_same_config(cell.directory, _config(cell), may_grow=False)
    waiting = [cell for cell in cells if cell.directory not in results]
    if results:
        say(f"{len(results)} of {len(cells)} cells are finished already")
    started = time.monotonic()
    for result in _results(waiting, plans, jobs, updates):
        results[result.cell.directory] = result
        left = len(cells) - len(results)
        pace = (time.monotonic() - started) / (len(waiting) - left)
        cell, state = result.cell, result.error or "done"
        say(
            f"[{len(results)}/{len(cells)}] {cell.task.name}, {cell.variant.name}, "
            f"seed {cell.seed}: {state}; about {left * pace / 60:.1f} min left"
        )
    return [results[cell.directory] for cell in cells]


def finished_cells(cells: Sequence[Cell], *, updates: int) -> list[CellResult]:
    """Return the results of those cells that were finished with the settings they have here."""
    results = []
    for cell in cells:
        if (cell.directory / MEASURES_FILE).is_file():
            with contextlib.suppress(ConfigError):
                found = _finished(cell, _settings(cell, updates))
                results += [CellResult(cell, found)] if found is not None else []
    return results


def _results(
    cells: Sequence[Cell], plans: dict[Path, dict[str, Any]], jobs: int, updates: int
) -> Iterator[CellResult]:
    if jobs == 1 or len(cells) <= 1:
        for cell in cells:
            yield run_cell(cell, plans[cell.directory], updates)
        return
    waiting, kills = list(cells), 0
    while waiting:
        try:
            for result in _pooled(waiting, plans, jobs, updates):
                waiting.remove(result.cell)
                kills = 0
                yield result
        except BrokenProcessPool:  # one process was killed, and the pool ended the others
            kills += 1
            if kills > _KILLS:
                for cell in waiting:
                    yield CellResult(cell, {}, "its process was killed (out of memory?)")
                return


def _pooled(
    cells: Sequence[Cell], plans: dict[Path, dict[str, Any]], jobs: int, updates: int
) -> Iterator[CellResult]:
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(
        min(jobs, len(cells)),
        mp_context=get_context("spawn"),
        initializer=_stop_with_grid,
    )
    with pool:
        futures = [pool.submit(run_cell, cell, plans[cell.directory], updates) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _stop_with_grid() -> None:
    """End this process when that of the grid has died in whatever way: a run writes a checkpoint.

    Otherwise workers would train on, and then wait for ever on a queue that they hold themselves.
    """
    grid = parent_process()

    def watch() -> None:
        if grid is not None:
            grid.join()
        stop_this_process()

    threading.Thread(target=watch, daemon=True).start()


def run_cell(cell: Cell, settings: dict[str, Any], updates: int) -> CellResult:
    """Train and measure one cell; what a user can act on becomes its ``error``."""
    import torch

    from algd.training.trainer import Interrupted

    torch.set_num_threads(1)
    try:
        with Path(os.devnull).open("w") as silence, contextlib.redirect_stdout(silence):
            measures = _train_sampler(cell, updates) if cell.task.sampler_dim else _train(cell)
    except UserError as error:
        return CellResult(cell, {}, str(error))
    except Interrupted as stop:  # its checkpoint is written; the whole grid is to stop
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(_ORPHANED)
        raise KeyboardInterrupt from stop
    _write(cell.directory / MEASURES_FILE, {"settings": settings, "measures": measures})
    return CellResult(cell, measures)


def _train(cell: Cell) -> dict[str, float]:
    from algd.experiments.ablation_measures import measure_run

    started = time.process_time()
    continued = train_or_continue(_config(cell), cell.directory)
    # Of a run that was interrupted only the last part was timed.
    spent = {} if continued else {"cpu_seconds": time.process_time() - started}
    return measure_run(cell.directory) | spent


def _config(cell: Cell) -> "ExperimentConfig":
    from algd.experiments.config import load_config

    return load_config(cell.presets, cell.overrides)


def _train_sampler(cell: Cell, updates: int) -> dict[str, float]:
    from algd.analysis.sampling_error import (
        draw_samples,
        exact_density,
        train_sampler,
        two_mode_energy,
    )
    from algd.diffusion.policy import DiffusionPolicyConfig
    from algd.experiments.ablation_measures import measure_sampler

    config = _denoising_policy(cell)
    if isinstance(config, DiffusionPolicyConfig):
        # Nothing competes for the time of a critic here: every row carries the score term.
        config = replace(config, score_batch_size=None)
    dim = cell.task.sampler_dim
    energy = two_mode_energy(dim)
    started = time.process_time()
    policy = train_sampler(
        config,
        energy,
        dim,
        updates=updates * cell.task.length,
        batch_size=_SAMPLER_BATCH,
        score_only=isinstance(config, DiffusionPolicyConfig),
        seed=cell.seed,
    )
    spent = time.process_time() - started
    samples = draw_samples(policy, 10_000, seed=cell.seed)
    measures = measure_sampler(samples, *exact_density(energy, dim))
    cell.directory.mkdir(parents=True, exist_ok=True)
    return measures | {"cpu_seconds": spent}


def _denoising_policy(cell: Cell) -> "DiffusionPolicyConfig | ReleasePolicyConfig":
    """Return the policy of a cell without an environment; refuse one that is no sampler."""
    from algd.diffusion.policy import DiffusionPolicyConfig
    from algd.diffusion.release import ReleasePolicyConfig

    config = _config(cell).policy
    if not isinstance(config, DiffusionPolicyConfig | ReleasePolicyConfig):
        raise ConfigError(
            f"{cell.task.name} needs a denoising policy (diffusion, release), got {config.kind}"
        )
    return config


def require_trainable(cells: Sequence[Cell]) -> None:
    """Look at every setting once, before anything is written.

    Raises:
        ConfigError: a key, a task or an id that does not exist, or a task that a policy cannot
            train on.
        EnvironmentFault: the environment cannot be made here.
    """
    from algd.environments.make import make_env

    made: set[str] = set()
    for cell in cells:
        if cell.seed != cells[0].seed:
            continue
        if cell.task.sampler_dim:
            _denoising_policy(cell)
            continue
        config = _config(cell)
        if cell.task.name in made:
            continue
        made.add(cell.task.name)
        try:
            make_env(config.env).close()
        except ConfigError as error:
            if cell.task.name in TASKS:
                raise
            known = ", ".join(TASKS)
            raise ConfigError(f"--env must name a task ({known}) or an id: {error}") from error


def _settings(cell: Cell, updates: int) -> dict[str, Any]:
    """All that determines a cell, as JSON reads it back."""
    from algd.experiments.config import to_dict

    tree: dict[str, Any] = to_dict(_config(cell))
    if cell.task.sampler_dim:
        tree = {"seed": cell.seed, "policy": tree["policy"]}
        tree["updates"] = updates * cell.task.length
    return json.loads(json.dumps(tree))


def _finished(cell: Cell, settings: dict[str, Any]) -> dict[str, float] | None:
    path = cell.directory / MEASURES_FILE
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    there, here = flatten(stored["settings"]), flatten(settings)
    key = first_difference(there, here)
    if key is not None:
        raise ConfigError(
            f"{cell.directory} holds a cell of other settings: {key} was "
            f"{show(there.get(key))}, now it is {show(here.get(key))}; name another folder "
            "with --dir, or remove this one"
        )
    return stored["measures"]


def _write(path: Path, content: dict[str, Any]) -> None:
    from algd.training.durable_files import replace_durably

    replace_durably(path, json.dumps(content, indent=1, sort_keys=True).encode())


def default_jobs() -> int:
    """Return the number of cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
