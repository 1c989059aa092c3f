"""The trials of a sweep: every setting of the parameters with every seed.

In: a ``SweepFile`` and seeds. Out: a ``SweepPlan`` of settings and of ``Trial``s, each with the
arguments of its `algd train` and a run directory whose name follows from those arguments alone.
Hence a sweep that is started again finds its trials, and one with more values, seeds or steps keeps
what it has. All configurations are built here, so that a mistake stops the sweep before its first
trial.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from algd.errors import ConfigError
from algd.experiments.arguments import Override, load_overridden
from algd.experiments.config import ExperimentConfig, load_config, to_dict
from algd.experiments.config_values import first_difference, flatten
from algd.experiments.schema import show
from algd.experiments.sweep_child import is_complete
from algd.experiments.sweep_file import SweepFile
from algd.experiments.yaml_files import COMMAND_LINE
from algd.training.run_directory import CONFIG_FILE

SEED = "seed"
_STEPS = "train.total_steps"
_MAX_TRIALS = 100_000
_SEED = re.compile(r"(?:^|,)s(\d+)-[0-9a-f]{8}$")  # at the end of a trial's name
_MAX_NAME = 100  # characters before the digest; file systems take 255
_MAX_TAG = 64  # characters W&B takes
_MAX_GROUP = 128  # characters W&B takes


@dataclass(frozen=True)
class Setting:
    """One combination of values by dotted key, in file order, without the seed."""

    values: Mapping[str, Any]

    def describe(self) -> str:
        """Return "a=1, b=2"."""
        return ", ".join(f"{key}={as_text(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: a setting, a seed, and what `algd train` is called with.

    name: of the run directory. setting: its number in the plan.
    arguments: what follows `algd train`, without the directory. config: what they amount to.
    """

    name: str
    run_dir: Path
    setting: int
    seed: int
    arguments: tuple[str, ...]
    config: ExperimentConfig

    @property
    def is_complete(self) -> bool:
        """Whether it was trained to its end."""
        return is_complete(self.run_dir, self.config.train.total_steps)


@dataclass(frozen=True)
class SweepPlan:
    """Settings and trials in the order in which they start: seed by seed, all settings of each."""

    file: SweepFile
    settings: tuple[Setting, ...]
    trials: tuple[Trial, ...]


def plan_sweep(
    file: SweepFile,
    directory: Path,
    *,
    seeds: Sequence[int],
    only: Mapping[str, Sequence[str]] | None = None,
) -> SweepPlan:
    """Return the trials of a sweep under ``directory``.

    Args:
        file, directory, seeds: what is trained, and where.
        only: values of some parameters, as text; settings with others are left out. Trials keep
            their names, so that parts of a sweep join.

    Raises:
        ConfigError: a parameter is no key of the configuration, a value is not allowed, ``only``
            leaves nothing, or a run directory there was made with another configuration.
    """
    everything = _settings(file)
    if len(everything) * len(seeds) > _MAX_TRIALS:
        raise ConfigError(
            f"{file.path}: {len(everything)} settings with {len(seeds)} seeds are more than "
            f"{_MAX_TRIALS} trials"
        )
    settings = everything
    for key, texts in (only or {}).items():
        settings = _kept(file, settings, key, texts)
    trials = _trials(file, directory, everything, settings, seeds)
    for trial in trials:
        require_same_config(trial.run_dir, trial.config, may_grow=True)
    return SweepPlan(file, tuple(settings), trials)


def with_earlier(plan: SweepPlan, directory: Path) -> SweepPlan:
    """Return a plan that also holds what other parts of its sweep have completed there."""
    mine = {trial.name for trial in plan.trials}
    others = [_SEED.search(path.name) for path in directory.iterdir() if path.name not in mine]
    numbers = {int(match[1]) for match in others if match}
    if not numbers:
        return plan
    seeds = sorted({trial.seed for trial in plan.trials} | numbers)
    everything = _settings(plan.file)
    kept = [
        trial
        for trial in _trials(plan.file, directory, everything, everything, seeds)
        if trial.name in mine or (trial.is_complete and _is_same(trial))
    ]
    used = sorted({trial.setting for trial in kept})
    trials = tuple(replace(trial, setting=used.index(trial.setting)) for trial in kept)
    return SweepPlan(plan.file, tuple(everything[number] for number in used), trials)


def _is_same(trial: Trial) -> bool:
    try:
        require_same_config(trial.run_dir, trial.config, may_grow=False)
    except ConfigError:
        return False
    return True


def _trials(
    file: SweepFile,
    directory: Path,
    everything: Sequence[Setting],
    settings: Sequence[Setting],
    seeds: Sequence[int],
) -> tuple[Trial, ...]:
    """Return the trials of some settings; their names tell what varies among all of them."""
    varied = [
        key for key in file.parameters if len({show(s.values.get(key)) for s in everything}) > 1
    ]
    return tuple(
        _trial(file, directory, number, setting, seed, [key for key in varied if key != SEED])
        for seed in seeds
        for number, setting in enumerate(settings)
    )


def _kept(
    file: SweepFile, settings: Sequence[Setting], key: str, texts: Sequence[str]
) -> list[Setting]:
    """Return the settings where ``key`` has one of the values."""
    if key == SEED:
        raise ConfigError("--only: seeds are chosen by --seeds N, the first N of the file's")
    if key not in file.parameters:
        known = ", ".join(name for name in file.parameters if name != SEED)
        raise ConfigError(f"--only: {file.path} has no parameter {key!r}; it varies {known}")
    there = dict.fromkeys(as_text(setting.values[key]) for setting in settings)
    for text in texts:
        if text not in there:
            raise ConfigError(f"--only: {key} must be one of {', '.join(there)}, got {text!r}")
    return [setting for setting in settings if as_text(setting.values[key]) in texts]


def seeds_of(file: SweepFile) -> list[int] | None:
    """Return the seeds that the file lists, or None where ``seed`` is not a parameter.

    Raises:
        ConfigError: the seed is drawn from a distribution.
    """
    if SEED not in file.parameters:
        return None
    seeds = file.parameters[SEED].grid()
    if seeds is None:
        raise ConfigError(f"{file.path}: parameters.seed must list its values")
    return seeds


def as_text(value: Any) -> str:
    """Return a value as it stands on a command line of `algd train`."""
    return value if isinstance(value, str) else json.dumps(value, allow_nan=True)


def _settings(file: SweepFile) -> list[Setting]:
    """Return the combinations of all parameters but the seed: the last one varies fastest."""
    parameters = [parameter for key, parameter in file.parameters.items() if key != SEED]
    if file.method == "random":
        return _drawn_settings(file)
    grids = [parameter.grid() or [] for parameter in parameters]
    count = math.prod(len(grid) for grid in grids)
    if count > _MAX_TRIALS and file.run_cap is None:
        raise ConfigError(f"{file.path}: the grid has {count} settings, at most {_MAX_TRIALS}")
    combinations = itertools.islice(itertools.product(*grids), file.run_cap or count)
    keys = [parameter.key for parameter in parameters]
    return [Setting(dict(zip(keys, values, strict=True))) for values in combinations]


def _drawn_settings(file: SweepFile) -> list[Setting]:
    """Return ``run_cap`` settings that depend on the parameters alone.

    Each has a generator of its own, so that a larger ``run_cap`` adds settings and changes none.
    """
    laws = {key: p for key, p in file.parameters.items() if key != SEED}
    described = {key: [p.distribution, dict(p.fields)] for key, p in laws.items()}
    word = int.from_bytes(_digest(described)[:8])
    settings: dict[str, Setting] = {}
    for index in range(file.run_cap or 0):
        random = np.random.default_rng([word, index])
        setting = Setting({key: law.draw(random) for key, law in laws.items()})
        settings.setdefault(setting.describe(), setting)  # discrete values may be drawn twice
    return list(settings.values())


def _trial(
    file: SweepFile,
    directory: Path,
    number: int,
    setting: Setting,
    seed: int,
    varied: Sequence[str],
) -> Trial:
    command = file.command
    chosen = [
        *(Override(f"--{key}", as_text(value)) for key, value in setting.values.items()),
        Override("--seed", str(seed)),
    ]
    given = [*command.overrides, *chosen]
    # What the file and the command say of tracking wins over these.
    tracking = {
        **file.tracking,
        "group": json.dumps(_group(file.name, setting, varied)),
        "tags": [file.name[:_MAX_TAG]],
        "progress": False,
    }
    first = [Override(f"--tracking.{key}", as_text(value)) for key, value in tracking.items()]
    try:
        config = load_overridden(command.configs, [*first, *given])
    except ConfigError as error:
        reason = str(error).removeprefix(f"{COMMAND_LINE}: ")
        raise ConfigError(f"{file.path}: {reason}") from error
    # What has been trained is trained on where the command asks for more steps, not begun anew.
    fixed = [override for override in command.overrides if override.option != f"--{_STEPS}"]
    identity = [command.configs, [f"{o.option}={o.text}" for o in (*fixed, *chosen)]]
    name = f"{_readable(setting, seed, varied)}-{_digest(identity).hex()[:8]}"
    arguments = [*command.configs, *(f"{o.option}={o.text}" for o in (*first, *given))]
    return Trial(name, directory / name, number, seed, tuple(arguments), config)


def _readable(setting: Setting, seed: int, varied: Sequence[str]) -> str:
    """Return "penalty_coef=0.5,s1": short names of what varies, safe in a path."""
    text = ",".join([*_parts(setting, varied), f"s{seed}"])
    return re.sub(r"[^\w.=,+-]+", "_", text)[:_MAX_NAME].lstrip(".-") or "trial"


def _group(name: str, setting: Setting, varied: Sequence[str]) -> str:
    """Return "NAME: penalty_coef=0.5": what W&B files the seeds of a setting under."""
    text = ": ".join([name, *filter(None, [", ".join(_parts(setting, varied))])])
    if len(text) <= _MAX_GROUP:
        return text
    mark = f"... {_digest(text).hex()[:8]}"
    return f"{text[: _MAX_GROUP - len(mark)]}{mark}"


def _parts(setting: Setting, varied: Sequence[str]) -> list[str]:
    """Return "KEY=VALUE" of each key that varies, by its last word where no other has it."""
    last = [key.rpartition(".")[2] for key in varied]
    labels = [
        short if last.count(short) == 1 else key for key, short in zip(varied, last, strict=True)
    ]
    return [f"{k}={as_text(setting.values[v])}" for k, v in zip(labels, varied, strict=True)]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def require_same_config(run_dir: Path, config: ExperimentConfig, *, may_grow: bool) -> None:
    """Refuse a run directory of another configuration: a preset or an option has changed meanwhile.

    Args:
        run_dir: of a run; nothing is refused where there is none yet.
        config: what it is to be trained with.
        may_grow: allow more steps where the run does not depend on how many it is to have.

    Raises:
        ConfigError: naming the first key that differs.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file() or not path.stat().st_size:
        return
    there, here = (
        {
            key: value
            for key, value in flatten(to_dict(one)).items()
            if not key.startswith("tracking.")
        }
        for one in (load_config([path]), config)
    )
    if may_grow and not config.train.depends_on_length and there[_STEPS] < here[_STEPS]:
        del there[_STEPS], here[_STEPS]
    key = first_difference(there, here)
    if key is not None:
        raise ConfigError(
            f"{run_dir} was run with {key} {show(there.get(key))}, now it is "
            f"{show(here.get(key))}; move that directory away or choose another --dir"
        )
