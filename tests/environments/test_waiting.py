"""Waiting for a pipe: what ends a wait, and how long it is spent awake."""

import time
from multiprocessing import Pipe

import pytest

from algd.environments.waiting import LEAST_AWAKE, MOST_AWAKE, Waiter


def test_a_wait_ends_with_data_with_the_other_end_and_with_the_deadline():
    ours, theirs = Pipe()
    waiter = Waiter(ours)
    assert not waiter.wait_until(time.monotonic() + 0.01, awake=True)
    theirs.send_bytes(b"x")
    waiter.wait()
    assert waiter.wait_until(time.monotonic() - 1.0, awake=False)
    assert ours.recv_bytes() == b"x"
    assert not waiter.wait_until(time.monotonic(), awake=False)
    theirs.close()
    waiter.wait()
    with pytest.raises(EOFError):
        ours.recv_bytes()


def test_answers_that_come_soon_are_awaited_awake_and_late_ones_asleep():
    ours, theirs = Pipe()
    waiter = Waiter(ours)
    assert waiter.awake == LEAST_AWAKE
    theirs.send_bytes(b"x")
    times = []
    for _ in range(10):
        waiter.wait()
        times.append(waiter.awake)
    assert times[:3] == [2 * LEAST_AWAKE, 4 * LEAST_AWAKE, 8 * LEAST_AWAKE]
    assert times[-1] == MOST_AWAKE
    ours.recv_bytes()
    for _ in range(10):
        waiter.wait_until(time.monotonic(), awake=True)
    assert waiter.awake == LEAST_AWAKE
    waiter.wait_until(time.monotonic(), awake=False)
    assert waiter.awake == LEAST_AWAKE
