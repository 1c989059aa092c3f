"""Turn a run into a policy that can be given away: files, ONNX graphs, a card, the hub.

In: a run directory. Out: a directory with weights, configuration, normaliser, the episodes it was
judged by, a model card, and ONNX graphs if wanted; written whole or not at all.
"""

import csv
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from algd.environments.gymnasium import CostEnv
from algd.environments.make import make_env
from algd.errors import ConfigError
from algd.experiments.export_card import CostStatistics, cost_statistics, model_card
from algd.training.durable_files import TEMPORARY_PREFIX
from algd.training.evaluation import (
    EvaluationResult,
    Mode,
    evaluate_policy,
    evaluation_seeds,
    first_fresh_episode,
)
from algd.training.exported import is_export, write_export
from algd.training.load import LoadedPolicy, load
from algd.training.run_directory import make_output_directory

if TYPE_CHECKING:
    from algd.experiments.export_onnx import OnnxReport

EPISODES_FILE = "episodes.csv"
CARD_FILE = "README.md"
_PARITY_OBSERVATIONS = 1_000


@dataclass(frozen=True)
class ExportReport:
    """What was written and measured."""

    directory: Path
    statistics: CostStatistics
    graphs: "list[OnnxReport]"


def export_run(
    run_dir: Path,
    out: Path,
    *,
    episodes: int = 100,
    policy: str = "latest",
    onnx: bool = False,
    mode: Mode | None = None,
    repo: str | None = None,
) -> ExportReport:
    """Export the policy of a run.

    Args:
        run_dir: a run, or an earlier export.
        out: the directory to write; an earlier export there is replaced.
        episodes: evaluation episodes behind the statistics of the card; of ``best_safe`` others
            than selected it.
        policy: ``latest`` or ``best_safe``.
        onnx: also write ONNX graphs and check them on 1,000 observations.
        mode: how the policy acts in the episodes; None takes the run's own evaluation mode.
        repo: ``OWNER/NAME`` on the hub, for the card; None names the card after the run.

    Raises:
        ConfigError: ``out`` holds something else.
        CheckpointError: no such policy.
        UserError: a package for ONNX is missing, or a graph failed its check.
    """
    out = out.absolute()
    _require_free(out)
    if onnx:
        from algd.experiments.export_onnx import require_onnx

        require_onnx()
    loaded = load(run_dir, policy=policy)
    chosen = loaded.config.evaluation.mode if mode is None else mode
    make_output_directory(out.parent)
    unfinished = out.with_name(TEMPORARY_PREFIX + out.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    make_output_directory(unfinished)
    try:
        first = first_fresh_episode(loaded.config.evaluation, loaded.which)
        report = _export(loaded, unfinished, episodes=episodes, first=first, onnx=onnx, mode=chosen)
        name = run_dir.resolve().name
        card = model_card(loaded, report.statistics, report.graphs, name=name, repo=repo)
        (unfinished / CARD_FILE).write_text(card, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ExportReport(out, report.statistics, report.graphs)


def _export(
    policy: LoadedPolicy, directory: Path, *, episodes: int, first: int, onnx: bool, mode: Mode
) -> ExportReport:
    seed = policy.config.seed
    env = make_env(policy.config.env)
    try:
        result = evaluate_policy(
            policy.agent,
            policy.normalizer,
            env,
            episodes=episodes,
            mode=mode,
            seed=seed,
            first=first,
        )
        graphs: list[OnnxReport] = []
        if onnx:
            from algd.experiments.export_onnx import export_onnx

            graphs = export_onnx(policy, directory, visited_observations(policy, env))
    finally:
        env.close()
    limit = policy.config.constraint.cost_limit
    statistics = cost_statistics(result, cost_limit=limit, mode=mode, seed=seed)
    extra = {"statistics": asdict(statistics), "onnx": [asdict(graph) for graph in graphs]}
    write_export(policy, directory, extra)
    seeds = evaluation_seeds(seed, episodes, first)
    _write_episodes(result, seeds, directory / EPISODES_FILE)
    return ExportReport(directory, statistics, graphs)


def visited_observations(
    policy: LoadedPolicy, env: CostEnv, count: int = _PARITY_OBSERVATIONS
) -> NDArray[np.float32]:
    """Return ``count`` raw observations (count, O) that the acting policy meets."""
    generator = torch.Generator().manual_seed(policy.config.seed)
    seeds = iter(evaluation_seeds(policy.config.seed, count))
    seen: list[NDArray[np.float32]] = []
    while len(seen) < count:
        obs, _ = env.reset(seed=next(seeds))
        ended = False
        while not ended and len(seen) < count:
            seen.append(obs)
            action = policy.agent.act(policy.normalizer.normalize(obs[None]), generator=generator)
            obs, _, terminated, truncated, _ = env.step(action[0])
            ended = terminated or truncated
    return np.stack(seen)


def _require_free(out: Path) -> None:
    if out.is_dir() and not is_export(out) and any(out.iterdir()):
        raise ConfigError(f"{out} holds something else than an exported policy; choose another")
    if out.resolve() == Path.cwd():
        raise ConfigError(f"{out} is the working directory; --out names one to be made")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names a directory")


def _write_episodes(result: EvaluationResult, seeds: list[int], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["episode", "seed", "return", "cost", "length"])
        rows = zip(seeds, result.returns, result.costs, result.lengths, strict=True)
        writer.writerows([index, *row] for index, row in enumerate(rows))


def print_report(report: ExportReport) -> None:
    """Say what was written, in a few lines."""
    s = report.statistics
    print(
        f"{s.episodes} episodes, {s.mode}: return {s.return_mean:.2f} ± {s.return_std:.2f}, "
        f"cost {s.cost_mean:.2f} ± {s.cost_std:.2f} (limit {s.cost_limit:g}), "
        f"{s.within_limit:.0%} of them within the limit"
    )
    for graph in report.graphs:
        print(
            f"{graph.file}: differs from torch by at most {graph.max_difference:.1e} of half the "
            f"action range over {graph.observations:,} observations"
        )
    print(f"exported to {report.directory}")
