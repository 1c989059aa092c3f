"""Parameters of a sweep: what W&B's sweep format allows for one, and the values it takes.

In: the mapping that a sweep file gives for a parameter. Out: a ``Parameter`` that lists its values
for a grid, or draws one. Distributions and their defaults are those of W&B's schema for sweep
files (package ``sweeps`` 0.3.0, config/schema.json; https://docs.wandb.ai/models/sweeps).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from algd.errors import ConfigError
from algd.experiments.schema import did_you_mean, nearest, show

_QUANTIZED = "q_"
_SUM_TOLERANCE = 1e-8
_LARGEST_GRID = 100_000  # values of one parameter; more is a slip of the bounds

Fields = Mapping[str, Any]


class _Law(NamedTuple):
    """Fields a distribution needs, those it may have with their defaults, and how it draws."""

    required: tuple[str, ...]
    optional: Fields
    draw: Callable[[np.random.Generator, Fields], Any]


def _uniform(random: np.random.Generator, fields: Fields) -> float:
    return float(random.uniform(fields["min"], fields["max"]))


def _choice(random: np.random.Generator, fields: Fields) -> Any:
    return fields["values"][int(random.choice(len(fields["values"]), p=fields["probabilities"]))]


def _log_uniform_values(random: np.random.Generator, fields: Fields) -> float:
    low, high = math.log(fields["min"]), math.log(fields["max"])
    # exp(log(x)) may leave the bounds by a rounding error.
    return min(max(math.exp(random.uniform(low, high)), fields["min"]), fields["max"])


_BOUNDS = ("min", "max")
_NORMAL = {"mu": 0.0, "sigma": 1.0}
_BETA = {"a": 1.0, "b": 1.0}
_CONTINUOUS = {
    "uniform": _Law(_BOUNDS, {}, _uniform),
    "log_uniform": _Law(_BOUNDS, {}, lambda r, f: math.exp(_uniform(r, f))),
    "log_uniform_values": _Law(_BOUNDS, {}, _log_uniform_values),
    "inv_log_uniform": _Law(_BOUNDS, {}, lambda r, f: math.exp(-_uniform(r, f))),
    "inv_log_uniform_values": _Law(_BOUNDS, {}, _log_uniform_values),
    "normal": _Law((), _NORMAL, lambda r, f: float(r.normal(f["mu"], f["sigma"]))),
    "log_normal": _Law((), _NORMAL, lambda r, f: float(r.lognormal(f["mu"], f["sigma"]))),
    "beta": _Law((), _BETA, lambda r, f: float(r.beta(f["a"], f["b"]))),
}


def _quantized(law: _Law) -> _Law:
    def draw(random: np.random.Generator, fields: Fields) -> Any:
        q = fields["q"]
        return round(law.draw(random, fields) / q) * q

    return _Law(law.required, {**law.optional, "q": 1.0}, draw)


_LAWS = (
    {
        "constant": _Law(("value",), {}, lambda _, f: f["value"]),
        "categorical": _Law(("values",), {"probabilities": None}, _choice),
        "categorical_w_probabilities": _Law(("values", "probabilities"), {}, _choice),
        "int_uniform": _Law(_BOUNDS, {}, lambda r, f: int(r.integers(f["min"], f["max"] + 1))),
    }
    | _CONTINUOUS
    | {
        f"{_QUANTIZED}{name}": _quantized(law)
        for name, law in _CONTINUOUS.items()
        if not name.startswith("inv_")
    }
)
_POSITIVE_BOUNDS = ("log_uniform_values", "inv_log_uniform_values", "q_log_uniform_values")
_NUMBERS = ("min", "max", "q", "mu", "sigma", "a", "b")


@dataclass(frozen=True)
class Parameter:
    """A configuration key of a sweep: the law of its values, with every field of that law."""

    key: str
    distribution: str
    fields: Fields

    def draw(self, random: np.random.Generator) -> Any:
        """Return one value drawn from the law."""
        return _LAWS[self.distribution].draw(random, self.fields)

    def grid(self) -> list[Any] | None:
        """Return every value in order, or None where a grid cannot list them."""
        fields = self.fields
        if self.distribution == "constant":
            return [fields["value"]]
        if self.distribution == "categorical" and fields["probabilities"] is None:
            return list(fields["values"])
        if self.distribution == "int_uniform":
            return list(range(fields["min"], fields["max"] + 1))
        if self.distribution == "q_uniform":  # without the upper bound, as W&B lists them
            count = math.ceil((fields["max"] - fields["min"]) / fields["q"])
            return [fields["min"] + index * fields["q"] for index in range(count)]
        return None


def read_parameter(key: str, given: Fields, source: str) -> Parameter:
    """Return the parameter that a sweep file describes.

    Args:
        key: dotted configuration key.
        given: its fields as in the file.
        source: what to call the parameter in messages.

    Raises:
        ConfigError: unknown or missing fields, bounds in the wrong order, no value at all.
    """
    distribution = given.get("distribution", None) or _implied(given, source)
    if distribution not in _LAWS:
        near = nearest(str(distribution), _LAWS)
        hint = did_you_mean(near) or f"; the distributions are {', '.join(_LAWS)}"
        raise ConfigError(f"{source}: unknown distribution {show(distribution)}{hint}")
    law = _LAWS[distribution]
    allowed = ("distribution", *law.required, *law.optional)
    for name in given:
        if name not in allowed:
            hint = did_you_mean(nearest(name, allowed)) or f"; it has {', '.join(allowed)}"
            raise ConfigError(f"{source}: {name} is not a field of {distribution}{hint}")
    missing = [name for name in law.required if name not in given]
    if missing:
        raise ConfigError(f"{source}: {distribution} needs {' and '.join(missing)}")
    fields = {name: given.get(name, law.optional.get(name)) for name in allowed[1:]}
    _require_usable(distribution, fields, source)
    return Parameter(key, distribution, fields)


def _implied(given: Fields, source: str) -> str:
    """Return the distribution that W&B takes where the file names none."""
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    if "min" in given and "max" in given:
        kinds = {type(given["min"]), type(given["max"])}
        if kinds == {int}:
            return "int_uniform"
        if kinds == {float}:
            return "uniform"
        raise ConfigError(
            f"{source}: min and max must both be whole numbers or both have a decimal point, "
            f"got {show(given['min'])} and {show(given['max'])}"
        )
    raise ConfigError(
        f"{source}: a parameter needs value, values, min and max, or nested parameters, got "
        f"{show(given)}"
    )


def _require_usable(distribution: str, fields: Fields, source: str) -> None:
    for name in _NUMBERS:
        _require_number(name, fields, source, whole=distribution == "int_uniform")
    if "min" in fields:
        low, high = fields["min"], fields["max"]
        if not low < high:
            raise ConfigError(f"{source}: min must be < max, got {show(low)} and {show(high)}")
        if distribution in _POSITIVE_BOUNDS and not low > 0:
            raise ConfigError(f"{source}: min of {distribution} must be > 0, got {show(low)}")
        step = fields.get("q", 1)
        if distribution in ("int_uniform", "q_uniform") and (high - low) / step > _LARGEST_GRID:
            raise ConfigError(
                f"{source}: lists more than {_LARGEST_GRID} values from {show(low)} to {show(high)}"
            )
    for name in ("q", "a", "b"):
        if name in fields and not fields[name] > 0:
            raise ConfigError(f"{source}: {name} must be > 0, got {show(fields[name])}")
    if "sigma" in fields and not fields["sigma"] >= 0:
        raise ConfigError(f"{source}: sigma must be >= 0, got {show(fields['sigma'])}")
    if "values" in fields:
        _require_values(fields, source)


def _require_number(name: str, fields: Fields, source: str, *, whole: bool) -> None:
    if name not in fields:
        return
    value = fields[name]
    wanted = (int,) if whole else (int, float)
    if type(value) not in wanted or not math.isfinite(value):
        what = "a whole number" if whole else "a finite number"
        raise ConfigError(f"{source}: {name} must be {what}, got {show(value)}")


def _same_as_one(value: Any, others: Sequence[Any]) -> bool:
    """Whether a value stands among others: 1 and 1.0 are one, true and 1 are two."""
    return any(
        show(value) == show(other)
        or (
            (isinstance(value, int | float) and value == other)
            and isinstance(value, bool) == isinstance(other, bool)
        )
        for other in others
    )


def _require_values(fields: Fields, source: str) -> None:
    values, weights = fields["values"], fields["probabilities"]
    if not isinstance(values, list):
        raise ConfigError(f"{source}: values must be a list, got {show(values)}")
    if not values:
        raise ConfigError(f"{source}: values is empty, so the sweep has no trial")
    repeated = [value for k, value in enumerate(values) if _same_as_one(value, values[:k])]
    if repeated:
        raise ConfigError(f"{source}: values holds {show(repeated[0])} twice")
    if weights is None:
        return
    if not isinstance(weights, list) or not all(
        type(w) in (int, float) and w >= 0 and math.isfinite(w) for w in weights
    ):
        raise ConfigError(f"{source}: probabilities must be numbers >= 0, got {show(weights)}")
    if len(weights) != len(values) or abs(sum(weights) - 1) > _SUM_TOLERANCE:
        raise ConfigError(
            f"{source}: probabilities must be one per value with sum 1, got {show(weights)} for "
            f"{len(values)} values"
        )
