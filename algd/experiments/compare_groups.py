"""Which runs belong together: equal configurations but for seed and bookkeeping.

In: runs. Out: groups with short labels, and which keys tell them apart. Runs of different
environments are never in one group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algd.errors import UserError
from algd.experiments.config_values import differing_keys, has_effect, identity, shown
from algd.experiments.run_data import RunData
from algd.experiments.schema import did_you_mean, nearest

ENVIRONMENT = "env.id"
_KIND = ".kind"


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but the seed, or in nothing named by ``--by``.

    env_id: their environment. label: the values that tell it from groups of the same environment.
    """

    env_id: str
    label: str
    runs: tuple[RunData, ...]


def cut_label(label: str, number: int, longest: int) -> str:
    """Return a label, or its beginning behind a number that tells it from others so cut."""
    return label if len(label) <= longest else f"({number}) {label[:longest]}..."


def group_runs(runs: Sequence[RunData], by: Sequence[str] = ()) -> list[Group]:
    """Return groups in the order of their first runs, those of one environment together.

    Args:
        runs: at least one.
        by: dotted keys or groups of keys whose values define a group; ``env.id`` asks for a
            comparison inside each environment. Without other keys all that differ count.

    Raises:
        UserError: an unknown key, or several environments without ``env.id`` in ``by``.
    """
    environments = list(dict.fromkeys(run.env_id for run in runs))
    keys = expand_keys(runs, [key for key in by if key != ENVIRONMENT])
    if len(environments) > 1 and ENVIRONMENT not in by:
        raise UserError(
            f"the runs are of {len(environments)} environments ({', '.join(environments)}), whose "
            f"returns cannot be compared; add --by {ENVIRONMENT} to compare inside each one"
        )
    if not keys:
        keys = keys_inside_environments(runs)
    cells: dict[tuple[str, ...], list[RunData]] = {}
    for run in sorted(runs, key=lambda run: environments.index(run.env_id)):
        values = tuple(identity(run.config, key) for key in keys)
        cells.setdefault((run.env_id, *values), []).append(run)
    told_by = _fewest_keys(list(cells), keys)
    labels = _labels(
        runs, {cell[1:]: members[0].config for cell, members in cells.items()}, told_by
    )
    return [Group(cell[0], labels[cell[1:]], tuple(members)) for cell, members in cells.items()]


def pooled_keys(groups: Sequence[Group]) -> list[str]:
    """Return keys with an effect that differ between runs of one and the same group."""
    found = (differing_keys([run.config for run in group.runs]) for group in groups)
    return list(dict.fromkeys(key for keys in found for key in keys))


def expand_keys(runs: Sequence[RunData], names: Sequence[str]) -> list[str]:
    """Return the configuration keys that names stand for: a key itself, or all below it.

    Raises:
        UserError: no run has such a key.
    """
    known = dict.fromkeys(key for run in runs for key in run.config)
    keys: dict[str, None] = {}
    for name in names:
        below = [key for key in known if key == name or key.startswith(f"{name}.")]
        if not below:
            raise UserError(
                f"--by: no run has the configuration key {name!r}"
                f"{did_you_mean(nearest(name, known))}"
            )
        keys |= dict.fromkeys(below)
    return list(keys)


def keys_inside_environments(runs: Sequence[RunData]) -> list[str]:
    """Return keys with an effect that differ between runs of one and the same environment."""
    by_environment: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_environment.setdefault(run.env_id, []).append(run.config)
    return list(
        dict.fromkeys(key for configs in by_environment.values() for key in differing_keys(configs))
    )


def drop_repeated(runs: Sequence[RunData]) -> tuple[list[RunData], list[str]]:
    """Return runs without a second one of equal configuration and seed, and a line about each.

    Runs are deterministic: the second carries no information and would make intervals too narrow.
    The one that got further stays.
    """
    kept: dict[tuple[str, ...], RunData] = {}
    lines = []
    for run in runs:
        names = sorted(key for key in run.config if has_effect(key) or key == "seed")
        key = tuple(f"{name}={identity(run.config, name)}" for name in names)
        other = kept.setdefault(key, run)
        if other is not run:
            kept[key] = max(other, run, key=lambda run: run.last_step)
            lost = run if kept[key] is other else other
            lines.append(
                f"skipped {lost.name}: repeats {kept[key].name}, same configuration and seed"
            )
    return list(kept.values()), lines


def _labels(
    runs: Sequence[RunData],
    configs: Mapping[tuple[str, ...], Mapping[str, Any]],
    told_by: Sequence[str],
) -> dict[tuple[str, ...], str]:
    """Return for each combination of values the few of them that tell it from the others."""
    endings = [key.rpartition(".")[2] for key in {key for run in runs for key in run.config}]
    labels = {}
    for cell, config in configs.items():
        present = [key for key in told_by if key in config]
        # A run of an older version, or of another kind, has none of the keys.
        parts = [f"{_short(key, endings)}={shown(config, key)}" for key in present or told_by[:1]]
        labels[cell] = ", ".join(parts) or "all runs"
    if len(set(labels.values())) < len(labels):  # values cut short or hidden
        labels = {cell: f"{label} #{n}" for n, (cell, label) in enumerate(labels.items(), start=1)}
    return labels


def _fewest_keys(cells: Sequence[tuple[str, ...]], keys: Sequence[str]) -> list[str]:
    """Return keys, greedily few, that tell the cells of an environment apart; kinds come first.

    A cell is an environment and the values of the keys.
    """
    order = sorted(
        range(len(keys)), key=lambda k: (not keys[k].endswith(_KIND), keys[k].count("."))
    )
    chosen: list[int] = []

    def told_apart(columns: Sequence[int]) -> int:
        return len({(cell[0], *(cell[1 + k] for k in columns)) for cell in cells})

    while told_apart(chosen) < len(cells):
        chosen.append(max(order, key=lambda k: told_apart([*chosen, k])))
    return [keys[k] for k in sorted(chosen, key=order.index)]


def _short(key: str, endings: Sequence[str]) -> str:
    """Return `policy` for policy.kind, and the last part of a key that no other key has."""
    if key.endswith(_KIND):
        return key.removesuffix(_KIND)
    last = key.rpartition(".")[2]
    return last if endings.count(last) == 1 else key
