"""Safe off-policy reinforcement learning with a denoising policy: the toolkit's front door.

`algd.load(RUN_DIR)` returns the trained policy of a run; everything else lives in the modules.
Nothing heavy is imported here: torch loads when a policy is loaded, not before.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algd.training.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import `load` on first use (PEP 562)."""
    if name == "load":
        from algd.training.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
