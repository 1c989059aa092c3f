"""The ring of transitions: what is kept, in which order, and how it is drawn."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from alam.replay import ReplayBuffer


def transitions(first: int, count: int) -> dict[str, np.ndarray]:
    """Return transitions whose every entry tells its row number."""
    number = np.arange(first, first + count, dtype=np.float32)
    return {
        "obs": np.stack([number, number + 0.1, number + 0.2], axis=1),
        "action": np.stack([number + 0.3, number + 0.4], axis=1),
        "reward": number + 0.5,
        "cost": number + 0.6,
        "next_obs": np.stack([number + 1, number + 1.1, number + 1.2], axis=1),
        "terminated": number % 2 == 0,
    }


def filled(capacity: int, *chunks: int) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, 3, 2)
    for chunk in chunks:
        buffer.add(**transitions(buffer.total_added, chunk))
    return buffer


def test_a_row_holds_the_columns_in_the_documented_order_and_unpacks_to_them():
    buffer = filled(5, 2)
    assert buffer.table.shape == (5, 3 + 2 + 1 + 1 + 3 + 1)
    expected = [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 2, 2.1, 2.2, 0]
    assert buffer.rows(1, 2)[0].tolist() == pytest.approx(expected, rel=1e-6)
    batch = buffer.unpack(buffer.rows(0, 2))
    for name, column in transitions(0, 2).items():
        np.testing.assert_array_equal(getattr(batch, name).numpy(), column.astype(np.float32))


@pytest.mark.parametrize("chunks", [(7,), (3, 4), (5, 2), (4, 3), (1,) * 7, (6, 6, 1)])
def test_the_ring_keeps_exactly_the_last_rows(chunks):
    buffer = filled(7, *chunks, 5)
    total = sum(chunks) + 5
    assert (buffer.total_added, len(buffer)) == (total, 7)
    kept = buffer.rows(total - 7, total)
    assert kept[:, 0].tolist() == list(range(total - 7, total))
    for number in range(total - 7, total):
        assert buffer.table[number % 7, 0].item() == number


def test_length_counts_rows_until_the_ring_is_full():
    buffer = ReplayBuffer(4, 3, 2)
    lengths = []
    for _ in range(3):
        buffer.add(**transitions(0, 2))
        lengths.append(len(buffer))
    assert lengths == [2, 4, 4]


def test_rows_are_copies_and_can_be_appended_to_another_buffer():
    buffer = filled(7, 7, 3)
    rows = buffer.rows(3, 10)
    copy = ReplayBuffer(7, 3, 2)
    copy.append_rows(rows)
    assert torch.equal(copy.rows(0, 7), buffer.rows(3, 10))
    rows.zero_()
    assert buffer.rows(3, 10).abs().sum() > 0


@pytest.mark.parametrize(("first", "last"), [(2, 5), (5, 11), (8, 6)])
def test_rows_that_are_not_held_are_refused_with_what_is_held(first, last):
    buffer = filled(7, 7, 3)
    with pytest.raises(ValueError, match=rf"rows {first} to {last} .* held are 3 to 10"):
        buffer.rows(first, last)


def test_more_rows_than_the_capacity_are_refused():
    with pytest.raises(ValueError, match="at most 7 rows fit at once, got 8"):
        filled(7, 8)


def test_a_buffer_without_room_is_refused():
    with pytest.raises(ValueError, match="capacity must be >= 1, got 0"):
        ReplayBuffer(0, 3, 2)


def test_sampling_is_decided_by_its_generator():
    buffer = filled(10, 10)
    first, second, third = (
        buffer.sample(32, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    for mine, other in zip(first, second, strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(first.obs, third.obs)


@pytest.mark.parametrize(("chunks", "kept"), [((6,), range(6)), ((10, 4), range(4, 14))])
def test_sampling_is_uniform_over_what_is_held_and_keeps_rows_together(chunks, kept):
    buffer = filled(10, *chunks)
    draws = 20_000
    batch = buffer.sample(draws, torch.Generator().manual_seed(0))
    number = batch.obs[:, 0]
    np.testing.assert_allclose((batch.reward - number).numpy(), 0.5, atol=1e-5)
    np.testing.assert_allclose((batch.next_obs[:, 2] - number).numpy(), 1.2, atol=1e-5)
    counts = np.array([(number == row).sum().item() for row in kept])
    assert counts.sum() == draws
    # chi-squared with at most 9 degrees of freedom: 27.9 is its 99.9 % quantile
    expected = draws / len(kept)
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_batches_do_not_alias_the_table():
    buffer = filled(10, 10)
    buffer.sample(4, torch.Generator().manual_seed(0)).obs.zero_()
    assert (buffer.rows(0, 10)[1:, 0] > 0).all()


def resident_bytes() -> int:
    """Memory of this process that is in use; 0 where the system does not tell."""
    sizes = Path("/proc/self/statm")
    return int(sizes.read_text().split()[1]) * mmap.PAGESIZE if sizes.exists() else 0


def test_a_large_table_is_zero_and_takes_memory_only_where_rows_are() -> None:
    before = resident_bytes()
    replay = ReplayBuffer(1_000_000, 60, 2)  # 500 MB
    assert replay.table.dtype == torch.float32
    replay.append_rows(torch.ones(3, 125))
    assert replay.table[:4].sum(1).tolist() == [125.0, 125.0, 125.0, 0.0]
    assert replay.table[[500_000, 999_999]].abs().max() == 0.0
    assert resident_bytes() - before < 50e6


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"obs": np.ones((1, 2)), "action": np.ones((1, 3)), "next_obs": np.ones((1, 2))},
            r"obs must have shape \(1, 3\), got \(1, 2\)",
        ),
        ({"terminated": np.ones((1, 1))}, r"terminated must have shape \(1,\), got \(1, 1\)"),
        ({"terminated": np.ones(2)}, r"terminated must have shape \(1,\), got \(2,\)"),
    ],
)
def test_a_column_of_another_shape_is_refused_and_nothing_is_added(changed, says):
    replay = ReplayBuffer(4, 3, 2)
    row = {
        "obs": np.ones((1, 3)),
        "action": np.ones((1, 2)),
        "reward": np.ones(1),
        "cost": np.ones(1),
        "next_obs": np.ones((1, 3)),
        "terminated": np.ones(1),
    }
    with pytest.raises(ValueError, match=says):
        replay.add(**(row | changed))
    assert len(replay) == 0
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        replay.sample(2, torch.Generator())
