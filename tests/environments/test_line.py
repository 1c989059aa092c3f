"""A line between two processes: whole messages, what ends a wait, how long it is spent awake."""

import threading
import time
from multiprocessing import Pipe

import pytest

from algd.environments.line import LEAST_AWAKE, MOST_AWAKE, Line


def line():
    return [Line(end) for end in Pipe()]


@pytest.mark.parametrize("size", [0, 1, 7, 65_528, 65_529, 3_000_000])
def test_a_message_of_any_length_arrives_whole(size):
    ours, theirs = line()
    message = bytes(range(256)) * (size // 256 + 1)
    # More than the pipe holds: the sender waits for the receiver.
    sender = threading.Thread(target=ours.send, args=(message[:size],))
    sender.start()
    assert theirs.receive() == message[:size]
    sender.join()
    theirs.send(b"thanks")
    assert ours.receive() == b"thanks"


def test_a_message_cut_short_is_the_end():
    ours, other = Pipe()
    theirs = Line(other)
    ours.send_bytes(b"")  # half a header
    ours.close()
    with pytest.raises(EOFError, match="closed"):
        theirs.receive()
    with pytest.raises(OSError, match="roken"):
        theirs.send(b"x")


def test_a_wait_ends_with_data_with_the_other_end_and_with_the_deadline():
    ours, theirs = line()
    assert not ours.wait_until(time.monotonic() + 0.01, awake=True)
    theirs.send(b"x")
    ours.wait()
    assert ours.wait_until(time.monotonic() - 1.0, awake=False)
    assert ours.receive() == b"x"
    assert not ours.wait_until(time.monotonic(), awake=False)
    theirs.close()
    ours.wait()
    with pytest.raises(EOFError):
        ours.receive()


def test_answers_that_come_soon_are_awaited_awake_and_late_ones_asleep():
    ours, theirs = line()
    assert ours.awake == LEAST_AWAKE
    theirs.send(b"x")
    times = []
    for _ in range(10):
        ours.wait()
        times.append(ours.awake)
    assert times[:3] == [2 * LEAST_AWAKE, 4 * LEAST_AWAKE, 8 * LEAST_AWAKE]
    assert times[-1] == MOST_AWAKE
    ours.receive()
    for _ in range(6):
        assert not ours.wait_until(time.monotonic() + 2 * MOST_AWAKE, awake=True)
    assert ours.awake == LEAST_AWAKE


def test_who_waits_asleep_learns_that_staying_awake_would_have_paid():
    ours, theirs = line()
    for _ in range(200):  # a few would do where nothing else takes the processor meanwhile
        soon = threading.Timer(MOST_AWAKE / 4, theirs.send, (b"x",))
        soon.start()
        ours.wait()
        ours.receive()
        soon.join()
        if ours.awake > MOST_AWAKE / 4:
            break
    assert ours.awake > MOST_AWAKE / 4
