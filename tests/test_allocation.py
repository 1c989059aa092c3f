"""Memory that tensors leave stays with the process: no page faults in the steady state."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys, torch
from algd.training.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def blocks():
    for size in (1 << 18, 1 << 20, 1 << 22, 1 << 23):
        a, b = torch.ones(size // 4), torch.ones(size // 4)
        del a, b
for _ in range(10):
    blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


def faults(mode: str) -> int:
    command = [sys.executable, "-c", _SCRIPT, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    assert faults("default") > 500
    assert faults("keep") < 20
