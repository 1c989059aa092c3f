"""An update never asks the host for a value: on a GPU each such question stalls the queue.

Seen on a CPU by a dispatch mode: reading a scalar is ``_local_scalar_dense``, data-dependent shapes
come from ``nonzero``. A CUDA graph can hold neither.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from benchmarks.pairs import agent_of, make_batch
from replayed_calls import refuse_host_asks
from torch.utils._python_dispatch import TorchDispatchMode

from alam.multiplier import MULTIPLIERS
from alam.types import Batch
from algd.diffusion.joint import join

POLICIES = ("sac_alam", "algd", "release_vesde", "release_ddpm")
SMALL: dict[str, Any] = {"policy.hidden": [16, 16], "critics.hidden": [16, 16]}


class NoHostSync(TorchDispatchMode):
    """Raises at the first operation that needs a value of the device on the host."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        refuse_host_asks(func, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_update_reads_no_value_of_the_device(policy: str, multiplier: str) -> None:
    changes: dict[str, Any] = {"multiplier.kind": multiplier}
    if multiplier != "fixed":
        changes["multiplier.interval"] = 1
    agent = agent_of(policy, **SMALL, **changes)
    batch = make_batch(32)
    agent.update(batch)  # the optimisers build their state
    with NoHostSync():
        for _ in range(2):  # one of two moves the targets of the release
            agent.update(batch)


@pytest.mark.parametrize("mode", ["raw", "relative", "entropy"])
def test_every_temperature_is_held_without_host_sync(mode: str) -> None:
    agent = agent_of("algd", **SMALL, **{"policy.temperature.mode": mode})
    batch = make_batch(32)
    agent.update(batch)
    with NoHostSync():
        agent.update(batch)


@pytest.mark.parametrize("multiplier", ["statewise_alam", "scalar_dual"])
@pytest.mark.parametrize("policy", POLICIES)
def test_joint_update_of_several_seeds_reads_no_value_of_the_device(
    policy: str, multiplier: str
) -> None:
    agents = [agent_of(policy, **SMALL, **{"multiplier.kind": multiplier}) for _ in range(2)]
    joint = join(agents)
    batch = Batch(*(torch.stack([column, column]) for column in make_batch(32)))
    joint.update(batch)
    with NoHostSync():
        for _ in range(2):
            joint.update(batch)


@pytest.mark.parametrize("ask", [torch.Tensor.item, torch.Tensor.nonzero, lambda x: x[x > 0], bool])
def test_the_mode_sees_what_it_is_for(ask: Callable[[torch.Tensor], object]) -> None:
    with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
        ask(torch.tensor([1.0]))
