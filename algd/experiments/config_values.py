"""Configurations as flat mappings: which keys tell runs apart, and how values are shown.

In: configurations by dotted key. Out: text for tables and labels. What looks like a secret is never
shown, whatever a user has put into the free-form keys.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "(hidden)"
ABSENT = "–"
# Bookkeeping: other values give the same policy.
WITHOUT_EFFECT = (
    "seed",
    "tracking.",
    "env.vector",
    "train.log_interval",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.on_save_error",
    "train.device",
    "train.num_threads",
    "evaluation.video",
)
_MAX_SHOWN = 80
_SECRET_KEY = re.compile(
    r"(^|[._-])(api_?key|key|token|secret|password|passwd|credentials?|auth)s?$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(
    r"\b[0-9a-f]{40}\b|\b(hf|sk|ghp|gho|glpat|github_pat|wandb_v1|xox[abp])[_-]\w{8,}|AKIA[0-9A-Z]{12}"
    r"|://[^/\s:@]*:[^/\s@]+@|\beyJ[\w-]{8,}\.\w|-----BEGIN",
    re.IGNORECASE,
)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, by dotted key; lists become tuples."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = tuple(value) if isinstance(value, list) else value
    return flat


def has_effect(key: str) -> bool:
    """Say whether a key may change what is learned; the seed is left out, too."""
    return not any(key == name or key.startswith(name) for name in WITHOUT_EFFECT)


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys with an effect whose values are not the same in all configurations."""
    keys = dict.fromkeys(key for config in configs for key in config if has_effect(key))
    return [key for key in keys if len({identity(config, key) for config in configs}) > 1]


def identity(config: Mapping[str, Any], key: str) -> str:
    """Return text that is equal for equal values: 25 and 25.0 are, true and 1 are not."""
    return _text(config[key]) if key in config else ""


def shown(config: Mapping[str, Any], key: str) -> str:
    """Return the value of a key for a reader."""
    if key not in config:
        return ABSENT
    text = _text(config[key])
    if _SECRET_KEY.search(key) or _SECRET_VALUE.search(text):
        return HIDDEN
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    return str(value)


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return the first key of two flat mappings whose values differ, or None."""
    keys = sorted(there.keys() | here.keys())
    return next((key for key in keys if there.get(key) != here.get(key)), None)
