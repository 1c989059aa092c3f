"""Timing on a shared machine: alternating runs, CPU time, medians, and what GEMMs alone would take.

In: callables. Out: milliseconds of CPU time; floating-point operations of an update; the processor.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alam import cpu_passes


def alternating_medians(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, repeats: Mapping[str, int]
) -> dict[str, float]:
    """Return the median milliseconds of CPU time of one call, by name.

    Args:
        runs: what to time; round after round each takes its turn (A B A B), so that a busy
            neighbour slows all of them alike.
        rounds: turns each takes, after one to warm up.
        repeats: calls per turn; 1 where not given.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, call in runs.items():
            count = repeats.get(name, 1)
            started = time.process_time_ns()
            for _ in range(count):
                call()
            if turn:
                times[name].append((time.process_time_ns() - started) / count / 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def processor_name() -> str:
    """Return the model of the processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


class _ProductCounter(TorchDispatchMode):
    """Adds up 2 N K M of every matrix product; torch's own counter does not know oneDNN's."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "overloadpacket", func).__name__
        result = func(*args, **(kwargs or {}))
        if name in ("addmm", "baddbmm", "addmv"):
            self.flops += 2 * result.numel() * args[1].shape[-1]
        elif name in ("mm", "bmm", "mv", "_linear_pointwise"):
            self.flops += 2 * result.numel() * args[0].shape[-1]
        return result


def count_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of all matrix products of a call."""
    with _ProductCounter() as counter:
        call()
    return counter.flops


def gemm_run(rows: int = 1024, width: int = 256) -> tuple[Callable[[], Tensor], int]:
    """Return a product of the score target's shape by the fastest kernel here, and its flops."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    transposed = right.t()
    return lambda: cpu_passes.product(left, right, transposed), 2 * rows * width * width


def torch_gemm_run(rows: int = 1024, width: int = 256) -> tuple[Callable[[], Tensor], int]:
    """Return the same product by ``torch.mm``, which published code uses."""
    left, right = torch.randn(rows, width), torch.randn(width, width)
    return lambda: torch.mm(left, right), 2 * rows * width * width


def products_run(call: Callable[[], object]) -> Callable[[], None]:
    """Return a replay of the matrix products of a call and of nothing else, on memory of its own.

    It is what the call would take if all between its products were free.
    """
    products: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
    original = cpu_passes.product

    def record(
        left: Tensor, right: Tensor, right_transposed: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        mine = right.clone(memory_format=torch.preserve_format)
        products.append((left.clone(), mine, mine.t(), None if bias is None else bias.clone()))
        return original(left, right, right_transposed, bias)

    cpu_passes.product = record
    try:
        call()
    finally:
        cpu_passes.product = original

    def replay() -> None:
        for arguments in products:
            original(*arguments)

    return replay
