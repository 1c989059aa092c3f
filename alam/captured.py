"""Updates as CUDA graphs: all kernels of an update launched at once, without Python in between.

In: an agent, or the joint update of several, whose ``take_update`` asks the host for nothing. Out:
the same updates, to float32 rounding. What an update launches follows from what is due in it
(``alam.types.Due``), so there is one graph for each kind of update: those that move the lagged
multiplier and those that do not, say. A kind is captured when it has been seen a few times; beyond
so many kinds (a law that steps on as many episodes as have ended makes many) the rest run eagerly.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from alam.types import Batch, Due, Metrics, Updatable

_WARM_UPS = 3  # of each kind, before its capture: libraries and optimisers make their state
_MAX_GRAPHS = 16

Body = Callable[[], Metrics]
Capture = Callable[[Body, Sequence[torch.Generator]], tuple[Callable[[], None], Metrics]]
"""Runs a body once and returns what runs its kernels again, and the metrics they write to."""


class _Graph(NamedTuple):
    replay: Callable[[], None]
    metrics: Metrics


class CapturedUpdates:
    """Takes the updates of an agent by CUDA graphs, and counts them as the agent does.

    In between, the agent may act, be saved, and have its learning rates scaled. A state is loaded
    into the agent first and captured afterwards: graphs write to the memory that they were made on.

    Args:
        agent: whose updates; on a CUDA device.
        capture: how; a test stands in for CUDA here.

    Raises:
        RuntimeError: torch sees no CUDA device; the agent is left as it was.
    """

    def __init__(self, agent: Updatable, *, capture: Capture | None = None) -> None:
        self.agent = agent
        self._capture = CUDACapture() if capture is None else capture
        agent.hold_learning_rates_on_device()
        self._seen: Counter[Due] = Counter()
        self._graphs: dict[Due, _Graph] = {}
        self._batch: Batch | None = None

    def update(self, batch: Batch) -> Metrics:
        """Take one update; the metrics are overwritten by the next one.

        Raises:
            ValueError: the batch has another shape than the first one.
            RuntimeError: a state was loaded into the agent in between.
        """
        if not self.agent.holds_learning_rates_on_device:
            raise RuntimeError("a state was loaded after the capture; capture the agent anew")
        held = self._hold(batch)
        due = self.agent.count_update()
        graph = self._graphs.get(due)
        if graph is not None:
            graph.replay()
            return graph.metrics
        self._seen[due] += 1
        if self._seen[due] <= _WARM_UPS or len(self._graphs) == _MAX_GRAPHS:
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


class CUDACapture:
    """Captures bodies as CUDA graphs that share their working memory; see ``Capture``.

    Between two graphs it holds metrics, which the next one may overwrite, and gradients, which each
    makes anew before it reads them.

    Raises:
        RuntimeError: torch sees no CUDA device.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("captured updates need a CUDA device, and torch sees none")
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, body: Body, generators: Sequence[torch.Generator]
    ) -> tuple[Callable[[], None], Metrics]:
        """Capture a body, and run its graph once."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self._pool):
            metrics = body()
        graph.replay()
        return graph.replay, metrics
