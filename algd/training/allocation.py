"""What the C library does with the memory that tensors leave.

In: nothing. Out: nothing. glibc hands large blocks back to the system when they are freed, and asks
for them again a moment later: an update of the released setting pays 2,500 page faults and a fifth
of its time for that. Told to keep them it pays none.
"""

import ctypes
import sys

# Of mallopt(3): blocks below the first come from the heap, which shrinks above the second.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST_BLOCK = 1 << 25  # bytes; the most that glibc allows, and more than any tensor of an update
_KEPT = 1 << 30  # bytes; more than all that one update holds


def keep_freed_memory() -> bool:
    """Tell glibc, for this process, to keep freed memory; return whether it listened.

    Elsewhere (musl, macOS, Windows) nothing happens and False is returned.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
    )
