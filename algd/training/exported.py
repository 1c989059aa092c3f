"""A policy that stands alone: weights, configuration and normaliser in plain files, no run needed.

In: a loaded policy. Out: a directory, and the same policy from it.

    model.safetensors   policy, critics, multiplier; ``normalizer.*`` in double precision
    config.yaml         the resolved configuration of the run
    policy.json         format, task (widths, action box, episode length, step), count of the
                        normaliser, and whatever the writer adds (``onnx``, ``statistics``)

Optimisers, target critics and replay stay behind: training cannot go on from here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from algd.errors import CheckpointError, ConfigError
from algd.training.load import LoadedPolicy

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
POLICY_FILE = "policy.json"
FORMAT = 1
_NORMALIZER = "normalizer"


def is_export(directory: Path) -> bool:
    """Say whether a policy was exported to ``directory``."""
    return (directory / POLICY_FILE).is_file()


def write_export(policy: LoadedPolicy, directory: Path, extra: dict[str, Any]) -> None:
    """Write the three files; ``extra`` joins policy.json."""
    from algd.experiments.config import dump_yaml

    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in _modules(policy).items()
        for name, tensor in module.state_dict().items()
    }
    state = policy.normalizer.state_dict()
    count = state.pop("count", None)
    # The others are what only further training needs.
    state = {k: v for k, v in state.items() if k not in ("sample", "stride")}
    tensors |= {f"{_NORMALIZER}.{k}": torch.from_numpy(v.copy()) for k, v in state.items()}
    description = {
        "format": FORMAT,
        "policy": policy.which,
        "task": _plain_task(policy.task),
        "normalizer_count": count,
    }
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    (directory / WEIGHTS_FILE).write_bytes(weights)
    (directory / CONFIG_FILE).write_text(dump_yaml(policy.config), encoding="utf-8")
    text = json.dumps(description | extra, indent=2, allow_nan=False)
    (directory / POLICY_FILE).write_text(text + "\n", encoding="utf-8")


def load_export(directory: Path) -> LoadedPolicy:
    """Return the policy of a directory that ``write_export`` made.

    Raises:
        CheckpointError: a file is missing, damaged or of another format; names it.
    """
    from algd.experiments.config import load_config

    description = read_description(directory)
    try:
        config = load_config([directory / CONFIG_FILE])
        tensors = safetensors.torch.load_file(directory / WEIGHTS_FILE)
        which = description.get("policy", "latest")  # which earlier exports do not say
        policy = LoadedPolicy(config, _task_arrays(description["task"]), which)
        for part, module in _modules(policy).items():
            state = _under(part, tensors)
            if state or part != "constraint":  # which earlier exports lack
                module.load_state_dict(state)
        state = {k: v.numpy() for k, v in _under(_NORMALIZER, tensors).items()}
        policy.normalizer.load_state_dict({"count": description["normalizer_count"]} | state)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(
            f"{directory} holds no complete exported policy: {str(error) or type(error).__name__}"
        ) from error
    return policy


def read_description(directory: Path) -> dict[str, Any]:
    """Return the contents of policy.json.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """
    path = directory / POLICY_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe an exported policy: {error}") from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version!r}; this version reads {FORMAT}")
    return description


def _modules(policy: LoadedPolicy) -> dict[str, nn.Module]:
    """What is exported, by the first part of its names in the weights file."""
    agent = policy.agent
    return {
        "policy": agent.policy,
        "reward_critic": agent.critics.reward,
        "cost_critic": agent.critics.cost,
        "multiplier": agent.multiplier,
        "constraint": agent.constraint,  # its threshold may have been calibrated
    }


def _under(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _plain_task(task: dict[str, Any]) -> dict[str, Any]:
    """Return the task with its bounds as lists of floats and counters as ints."""
    plain: dict[str, Any] = {}
    for name, value in task.items():
        array = np.asarray(value)
        plain[name] = array.astype(float).tolist() if array.ndim else array.item()
    return plain


def _task_arrays(task: dict[str, Any]) -> dict[str, Any]:
    bounds = {name: np.array(task[name]) for name in ("action_low", "action_high")}
    return task | bounds
