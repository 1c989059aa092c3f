"""The benchmark's results: from sweep directories to stored rows, and from those to the README.

    python -m tests.benchmarks.evidence keep runs/safety_gymnasium    # a small CSV per finished run
    python -m tests.benchmarks.evidence check runs/safety_gymnasium   # are they the stored ones?
    python -m tests.benchmarks.evidence table [--figures DIR]         # the README's table, figures
    python -m tests.benchmarks.evidence late STEPS TASK PRESET OTHER  # the last training episodes

A stored run holds, behind comment lines (its preset, commit, processor, packages and whole
configuration), one row per evaluation and one per training episode. `check` says for every run
whether its rows equal the stored ones bit for bit, as they do on the same type of processor. On
another one rounding differs, and the last evaluation has to lie where the stored seeds predict it.
"""

import argparse
import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algd.analysis.statistics import mean_interval
from algd.experiments.arguments import positive_int
from algd.experiments.compare import ALL_ENVIRONMENTS, Comparison, compare
from algd.experiments.compare_groups import Group
from algd.experiments.config_values import flatten
from algd.experiments.run_data import RunData, Series, require_runs
from algd.experiments.sweep_child import TRIAL_FILE, is_complete
from algd.training.origin import commits_of
from algd.training.run_directory import CONFIG_FILE
from tests.benchmarks.timing import processor_name

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "results" / "safety_gymnasium"
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
_COLUMNS = ("kind", "env_step", "return", "cost", "violation_rate")
DUAL_ASCENT = "fac"
_LEAST_OSCILLATION = 0.05  # one unit of cost in one of 20 episodes
_PACKAGES = ("torch", "numpy", "mujoco", "gymnasium")


class StoredRun(NamedTuple):
    """What a file holds: comment lines by key, and rows as text."""

    about: dict[str, Any]
    rows: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        """Return the name of its file, in the folder of its number of steps."""
        config = self.about["config"]
        return f"{self.steps}/{config['env.id']},{self.about['base']},s{config['seed']}.csv"

    @property
    def steps(self) -> int:
        """Return its budget in environment steps."""
        return self.about["config"]["train.total_steps"]


def of_run(run: RunData) -> StoredRun:
    """Reduce a finished trial of a sweep."""
    arguments = json.loads((run.path / TRIAL_FILE).read_text())["arguments"]
    bases = [word.partition("=")[2] for word in arguments if word.startswith("--base=")]
    about = {
        "base": bases[-1],
        "arguments": [word for word in arguments if not word.startswith("--tracking.")],
        "commit": ", then ".join(commits_of((run.path / CONFIG_FILE).read_text()))
        or _git("describe", "--always", "--dirty"),
        "processor": processor_name(),
        "packages": {name: version(name) for name in _PACKAGES},
        "config": {key: value for key, value in run.config.items() if "tracking." not in key},
    }
    blank = Series(np.zeros(0, int), np.zeros(0))
    kinds = (
        ("evaluation", run.metrics, "eval/"),
        ("episode", run.episodes, ""),
    )
    rows = []
    for kind, table, prefix in kinds:
        series = [table.get(f"{prefix}{name}", blank) for name in _COLUMNS[2:]]
        for index, step in enumerate(series[0].steps):
            values = [repr(float(one.values[index])) if len(one.steps) else "" for one in series]
            rows.append((kind, str(step), *values))
    return StoredRun(json.loads(json.dumps(about)), tuple(rows))  # as it is read back


def to_text(stored: StoredRun) -> str:
    """Return the file of a run."""
    text = io.StringIO()
    for key, value in stored.about.items():
        text.write(f"# {key}: {json.dumps(value)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(stored.rows)
    return text.getvalue()


def from_text(text: str) -> StoredRun:
    """Read such a file."""
    lines = text.splitlines()
    comments = [line[2:].partition(": ") for line in lines if line.startswith("# ")]
    _, *rows = csv.reader(line for line in lines if not line.startswith("# "))
    return StoredRun(
        {key: json.loads(value) for key, _, value in comments}, tuple(tuple(row) for row in rows)
    )


def as_run(stored: StoredRun) -> RunData:
    """Return a stored run in the form that `algd compare` takes."""

    def table(kind: str, prefix: str) -> dict[str, Series]:
        rows = [row for row in stored.rows if row[0] == kind]
        steps = np.array([int(row[1]) for row in rows])
        return {
            f"{prefix}{name}": Series(steps, np.array([float(row[column]) for row in rows]))
            for column, name in enumerate(_COLUMNS[2:], start=2)
            if rows and rows[0][column]
        }

    config = flatten(stored.about["config"])
    return RunData(
        STORED / stored.name,
        stored.name,
        config,
        table("evaluation", "eval/"),
        table("episode", ""),
    )


def stored_runs() -> list[StoredRun]:
    """Return all stored runs in the order of their names."""
    return [from_text(path.read_text()) for path in sorted(STORED.glob("*/*.csv"))]


def budgets_of(runs: Sequence[StoredRun]) -> dict[int, list[StoredRun]]:
    """Return the runs of each number of steps, the smallest first."""
    return {
        steps: [run for run in runs if run.steps == steps]
        for steps in sorted({run.steps for run in runs})
    }


def comparisons_of(runs: Sequence[StoredRun]) -> list[Comparison]:
    """Compare presets inside each task, then pool each over its own tasks; runs of one budget."""
    cells: dict[tuple[str, str], list[RunData]] = {}
    for stored in runs:
        run = as_run(stored)
        cells.setdefault((run.env_id, stored.about["base"]), []).append(run)
    groups = [Group(env_id, base, tuple(members)) for (env_id, base), members in cells.items()]
    each = [one for one in compare(groups) if one.env_id != ALL_ENVIRONMENTS]
    # Presets ran on different tasks: a row over the tasks that all share would leave most out.
    labels = dict.fromkeys(group.label for group in groups)
    pooled = [compare([group for group in groups if group.label == label]) for label in labels]
    return [*each, *(ones[-1] for ones in pooled if len(ones) > 1)]


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the README's table: every task and preset, with intervals where seeds allow them."""
    lines = [
        "| task | preset | seeds | steps | return | cost | P(cost ≤ limit) | training over "
        f"| cost oscillation | ratio to `{DUAL_ASCENT}` |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    references = [
        run
        for comparison in comparisons
        for row in comparison.rows
        for run in row.group.runs
        if row.group.label == DUAL_ASCENT and comparison.env_id != ALL_ENVIRONMENTS
    ]
    for comparison in comparisons:
        for row in comparison.rows:
            runs = row.group.runs
            tasks = len({run.env_id for run in runs})
            several = tasks > 1
            steps = {one.final_step for one in row.summaries}
            cells = [
                f"its {tasks} tasks" if several else comparison.env_id,
                f"`{row.group.label}`",
                f"{len(runs)} runs" if several else " ".join(str(run.seed) for run in runs),
                " to ".join(f"{step / 1000:.0f}k" for step in sorted({min(steps), max(steps)})),
                *(
                    _interval(row.values[key], digits)
                    for key, digits in (
                        ("return", 1),
                        ("cost", 1),
                        ("p_safe", 2),
                        ("training_violations", 2),
                    )
                ),
                ""
                if several
                else _interval(mean_interval(_oscillations(runs), bounds=(0.0, math.inf)), 0),
                "" if row.group.label == DUAL_ASCENT else ratio_where_both_ran(runs, references),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_where_both_ran(runs: Sequence[RunData], references: Sequence[RunData]) -> str:
    """Return the ratio of oscillations over the environments of both, and of how many if not all.

    Runs of several environments need two that are shared.
    """
    own, other = ({run.env_id for run in group} for group in (runs, references))
    shared = own & other
    if not shared or len(shared) < min(len(own), 2):
        return ""
    ours, theirs = ([run for run in group if run.env_id in shared] for group in (runs, references))
    text = _interval(oscillation_ratio(ours, theirs), 2)
    return text if shared == own else f"{text}, on {len(shared)}"


def oscillation(run: RunData) -> float:
    """Return the total variation of an evaluation's mean cost after the first third of a run."""
    costs = run.metrics["eval/cost"]
    late = costs.steps >= costs.steps[-1] / 3
    return float(np.abs(np.diff(costs.values[late])).sum())


def oscillation_ratio(
    runs: Sequence[RunData], references: Sequence[RunData]
) -> tuple[float, float, float]:
    """Return the ratio of geometric mean oscillations and its interval of 95 % (Welch, of logs).

    Of several environments it is the geometric mean of their ratios.
    """
    ours, theirs = (
        [np.log(np.maximum(part, _LEAST_OSCILLATION)) for part in _oscillations(group)]
        for group in (runs, references)
    )
    # The mean of both, one side negated, is half of their difference.
    half = mean_interval([*ours, *(-part for part in theirs)])
    ends = half[1:] if min(map(len, [*ours, *theirs])) > 1 else (math.nan, math.nan)
    middle, low, high = (math.exp(2.0 * value) for value in (half.estimate, *ends))
    return middle, low, high


def _oscillations(runs: Sequence[RunData]) -> list[np.ndarray]:
    """Return the oscillations of runs, by environment."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run.env_id, []).append(oscillation(run))
    return [np.array(values) for values in found.values()]


def _interval(interval: Iterable[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in interval)
    if middle == "nan":  # what has no common scale over environments
        return ""
    return middle if "nan" in (low, high) else f"{middle} [{low}, {high}]"


def _git(*words: str) -> str:
    called = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return called.stdout.strip()


def _finished(paths: Sequence[Path]) -> list[StoredRun]:
    found = require_runs(paths)
    for line in found.skipped:
        print(line, file=sys.stderr)
    finished = []
    for run in found.runs:
        if is_complete(run.path, run.total_steps):
            finished.append(of_run(run))
        else:
            print(f"left out {run.name}: at step {run.last_step} of {run.total_steps}")
    return finished


def keep(paths: Sequence[Path]) -> int:
    """Write a file for each finished run; exit code 1 if one holds another configuration."""
    for stored in _finished(paths):
        path = STORED / stored.name
        if path.is_file() and from_text(path.read_text()).about["config"] != stored.about["config"]:
            print(f"{stored.name} is stored with another configuration", file=sys.stderr)
            return 1
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_text(stored))
        print(f"kept {stored.name}")
    return 0


def check(paths: Sequence[Path]) -> int:
    """Compare finished runs with the stored ones; exit code 1 if one differs, or none is stored.

    One of another processor differs where its last evaluation lies outside of the 95 % interval of
    a further run, by the spread of the stored seeds.
    """
    differing = compared = 0
    finished = _finished(paths)
    for stored in finished:
        path = STORED / stored.name
        if not path.is_file():
            print(f"{stored.name}: not stored")
            continue
        compared += 1
        known = from_text(path.read_text())
        if known.rows == stored.rows:
            print(f"{stored.name}: the stored rows, bit for bit")
            continue
        told, is_inside = _against(stored, known)
        other_processor = known.about["processor"] != stored.about["processor"]
        differing += not (other_processor and is_inside)
        here = {key: stored.about[key] for key in ("commit", "processor", "packages")}
        there = {key: known.about[key] for key in here}
        says = "differs"
        if other_processor:
            says = "another processor, as expected of a further run"
            says = says if is_inside else "differs by more than a further run would"
        print(f"{stored.name}: {says} ({told}; stored by {there}, here {here})")
    if not compared:
        print("nothing to compare: no finished run here is among the stored ones")
    return 1 if differing or not compared else 0


def _against(run: StoredRun, known: StoredRun) -> tuple[str, bool]:
    """Return the last evaluations of both in words, and whether the seeds of one predict the other.

    Where they predict nothing, being alone or all equal, nothing is refuted.
    """
    settings = (known.steps, known.about["config"]["env.id"], known.about["base"])
    runs = [
        as_run(one)
        for one in stored_runs()
        if (one.steps, one.about["config"]["env.id"], one.about["base"]) == settings
    ]
    told, is_inside = [], True
    for name in ("return", "cost"):
        there, here, *ends = (
            float(one.metrics[f"eval/{name}"].values[-1])
            for one in (as_run(known), as_run(run), *runs)
        )
        mean, low, high = mean_interval([np.array(ends)])
        reach = math.sqrt(len(ends) + 1)  # of a further run, against that of the mean
        low, high = mean - reach * (mean - low), mean + reach * (high - mean)
        is_inside &= not (here < low or here > high)
        told.append(
            f"{name} {there:.2f} stored, {here:.2f} here, [{low:.2f}, {high:.2f}] predicted"
        )
    return "; ".join(told), is_inside


def table(figures: Path | None) -> int:
    """Put a table per budget between the marks in the README; draw the figures."""
    budgets = {steps: comparisons_of(runs) for steps, runs in budgets_of(stored_runs()).items()}
    text = README.read_text()
    if BEGIN not in text or END not in text:
        print(f"README.md lacks {BEGIN} ... {END}", file=sys.stderr)
        return 1
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    tables = "\n\n".join(map(markdown, budgets.values()))
    README.write_text(f"{before}{BEGIN}\n{tables}\n{after}")
    if figures is not None:
        from algd.experiments.compare_figures import write_figures

        for steps, comparisons in budgets.items():
            folder = figures / str(steps)
            folder.mkdir(parents=True, exist_ok=True)
            for path in write_figures(comparisons, folder):
                print(path)
    return 0


def late(steps: int, env_id: str, presets: Sequence[str], episodes: int) -> int:
    """Print what the last training episodes of stored runs cost and return, and how two differ."""
    print(f"last {episodes} training episodes | return | cost | over the limit")
    values: dict[str, dict[int, np.ndarray]] = {}
    for stored in stored_runs():
        run, base = as_run(stored), stored.about["base"]
        if stored.steps == steps and run.env_id == env_id and base in presets:
            returns, costs = (run.episodes[key].values[-episodes:] for key in ("return", "cost"))
            ends = np.array([returns.mean(), costs.mean(), (costs > run.cost_limit).mean()])
            values.setdefault(base, {})[run.seed] = ends
            print(f"{base}, seed {run.seed} | {ends[0]:.1f} | {ends[1]:.1f} | {ends[2]:.2f}")
    missing = [preset for preset in presets if preset not in values]
    if missing:
        print(f"no stored run of {', '.join(missing)}", file=sys.stderr)
        return 1
    if len(presets) == 2:
        first, second = (values[preset] for preset in presets)
        both = sorted(first.keys() & second.keys())
        if not both:
            return 0  # nothing to pair
        differences = np.stack([second[seed] - first[seed] for seed in both], axis=1)
        cells = [
            _interval(mean_interval([row]), digits)
            for row, digits in zip(differences, (1, 1, 2), strict=True)
        ]
        print(f"{presets[1]} less {presets[0]}, {len(both)} seeds | {' | '.join(cells)}")
    return 0


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="The benchmark's results.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, text in (
        ("keep", "write a file for each finished run of sweeps"),
        ("check", "compare finished runs of sweeps with the stored ones"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("paths", nargs="+", type=Path, metavar="DIR")
    verb = verbs.add_parser("table", help="write the README's table from the stored runs")
    verb.add_argument("--figures", type=Path, metavar="DIR")
    verb = verbs.add_parser("late", help="print how the last training episodes of runs went")
    verb.add_argument("steps", type=positive_int)
    verb.add_argument("env_id", metavar="TASK")
    verb.add_argument("presets", nargs="+", metavar="PRESET")
    verb.add_argument("--episodes", type=positive_int, default=100)
    options = parser.parse_args()
    if options.verb == "late":
        return late(options.steps, options.env_id, options.presets, options.episodes)
    if options.verb == "table":
        return table(options.figures)
    return {"keep": keep, "check": check}[options.verb](options.paths)


if __name__ == "__main__":
    sys.exit(main())
