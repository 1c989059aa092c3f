"""What a CUDA graph does to an update, on a CPU: kernels again in the same memory, Python never.

``record`` stands in for ``alam.captured.CUDACapture``. It notes every operation below autograd
while a body runs, and repeats exactly those on the same tensors. So what Python decided, counted or
held as a number when the body ran stays as it was, as in a graph.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from alam.captured import Body
from alam.types import Metrics

Call = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any], Any]
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
HOST_ASKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


def refuse_host_asks(func: Any, args: Sequence[Any]) -> None:
    """Refuse what needs a value of the device on the host: numbers, and sizes that follow from one.

    A boolean mask is the latter.
    """
    name = func.overloadpacket.__name__
    masks = name in _INDEXING and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
    asks = masks or name in HOST_ASKS
    assert not asks, f"{func} waits for the device"


class Recorder(TorchDispatchMode):
    """Notes the operations that run; one that asks the host for a value is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        refuse_host_asks(func, args)
        result = func(*args, **kwargs)
        if not func.is_view:
            self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Run what was noted, each result into the memory that it had."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(body: Body, generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], Metrics]:
    """Run a body and return what repeats its operations; see ``alam.captured.Capture``."""
    del generators  # on a CPU they go on by themselves
    with Recorder() as recorder:
        metrics = body()
    return recorder.replay, metrics
