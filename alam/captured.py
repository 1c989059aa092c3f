"""Updates as CUDA graphs: all kernels of an update launched at once, without Python in between.

In: an agent, or the joint update of several, whose ``take_update`` asks the host for nothing. Out:
the same updates. What an update launches follows from what is due in it (``alam.types.Due``), so
there is one graph for each kind of update: those that move the lagged multiplier and those that do
not, say. A kind is captured when it has been seen a few times, so that a rare one costs no memory.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from alam.types import Batch, Due, Metrics, Updatable

_WARM_UPS = 3  # of each kind, before its capture: libraries and optimisers make their state

Body = Callable[[], Metrics]
Capture = Callable[[Body, Sequence[torch.Generator]], tuple[Callable[[], None], Metrics]]
"""Runs a body once and returns what runs its kernels again, and the metrics they write to."""


class _Graph(NamedTuple):
    replay: Callable[[], None]
    metrics: Metrics


class CapturedUpdates:
    """Takes the updates of an agent by CUDA graphs, and counts them as the agent does.

    In between, the agent may act, be saved, and have its learning rates scaled. To load a state,
    load it into the agent first and capture afterwards.

    Args:
        agent: whose updates; on a CUDA device.
        capture: how; a test stands in for CUDA here.
    """

    def __init__(self, agent: Updatable, *, capture: Capture | None = None) -> None:
        self.agent = agent
        agent.hold_learning_rates_on_device()
        self._capture = capture_on_cuda if capture is None else capture
        self._seen: Counter[Due] = Counter()
        self._graphs: dict[Due, _Graph] = {}
        self._batch: Batch | None = None

    def update(self, batch: Batch) -> Metrics:
        """Take one update; the metrics are overwritten by the next one.

        Raises:
            ValueError: the batch has another shape than the first one.
        """
        held = self._hold(batch)
        due = self.agent.count_update()
        graph = self._graphs.get(due)
        if graph is not None:
            graph.replay()
            return graph.metrics
        self._seen[due] += 1
        if self._seen[due] <= _WARM_UPS:
            return self.agent.take_update(held, due)
        captured = self._capture(lambda: self.agent.take_update(held, due), self.agent.generators)
        graph = self._graphs[due] = _Graph(*captured)
        return graph.metrics

    def _hold(self, batch: Batch) -> Batch:
        """Copy the batch to where the graphs read it."""
        if self._batch is None:
            self._batch = Batch(*(column.contiguous().clone() for column in batch))
            return self._batch
        for name, held, column in zip(Batch._fields, self._batch, batch, strict=True):
            if held.shape != column.shape:
                raise ValueError(
                    f"captured updates take batches of one shape: {name} had {tuple(held.shape)}, "
                    f"got {tuple(column.shape)}"
                )
            held.copy_(column)
        return self._batch


def capture_on_cuda(
    body: Body, generators: Sequence[torch.Generator]
) -> tuple[Callable[[], None], Metrics]:
    """Capture a body as a CUDA graph and run that once; see ``Capture``."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        metrics = body()
    graph.replay()
    return graph.replay, metrics
