"""A run saved and loaded goes on as if it had never stopped, and only what it needs is kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_runs import (
    ACTION_DIM,
    OBS_DIM,
    ROWS_PER_SEGMENT,
    add_rows,
    assert_restores,
    files_under,
    make_replay,
    make_run,
    open_store,
    same_bits,
    tree_of,
)

from alam.critics import CriticConfig
from alam.gaussian import GaussianPolicyConfig
from alam.multiplier_config import (
    FixedConfig,
    MultiplierConfig,
    ScalarADRCConfig,
    ScalarDualConfig,
    ScalarPIDConfig,
    StatewiseALaMConfig,
    StatewiseDualConfig,
)
from alam.replay import ReplayBuffer
from alam.sac import SACAgent, SACConfig
from algd.diffusion.agent import ALGDAgent, ALGDConfig
from algd.diffusion.policy import DiffusionPolicyConfig
from algd.errors import CheckpointError, ConfigError
from algd.training import replay_store
from algd.training.checkpoint import CheckpointStore, Task, claim_run_dir, require_run_dir


@pytest.fixture(autouse=True, scope="module")
def _no_waiting() -> Iterator[None]:
    """No test can cut the power, and hypothesis saves hundreds of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


MULTIPLIERS = [
    FixedConfig(),
    ScalarDualConfig(),
    ScalarPIDConfig(),
    ScalarADRCConfig(),
    StatewiseDualConfig(hidden=(8,)),
    StatewiseALaMConfig(hidden=(8,), dual_target_interval=2),
]


def make_agent(kind: str, multiplier: MultiplierConfig, seed: int) -> SACAgent | ALGDAgent:
    critics = CriticConfig(hidden=(8,))
    sizes = {"episode_length": 10, "seed": seed}
    if kind == "gaussian":
        policy = GaussianPolicyConfig(hidden=(8,))
        config = SACConfig(policy=policy, critics=critics, multiplier=multiplier)
        return SACAgent(OBS_DIM, ACTION_DIM, config, **sizes)
    policy = DiffusionPolicyConfig(hidden=(8,))
    config = ALGDConfig(policy=policy, critics=critics, multiplier=multiplier)
    return ALGDAgent(OBS_DIM, ACTION_DIM, config, **sizes)


def train(
    agent: SACAgent | ALGDAgent, replay: ReplayBuffer, generator: torch.Generator, updates: int
) -> list[Any]:
    """Return the metrics of some updates and the actions after them."""
    seen: list[Any] = []
    for _ in range(updates):
        seen.append(agent.update(replay.sample(4, generator)))
        agent.observe_episode_cost(30.0)
    obs = np.ones((2, OBS_DIM), dtype=np.float32)
    return [*seen, agent.act(obs, generator=generator), generator.get_state()]


@pytest.mark.parametrize("multiplier", MULTIPLIERS, ids=lambda config: config.kind)
@pytest.mark.parametrize("kind", ["gaussian", "diffusion"])
def test_loaded_agent_continues_bit_for_bit(
    tmp_path: Path, kind: str, multiplier: MultiplierConfig
) -> None:
    agent, replay = make_agent(kind, multiplier, seed=1), make_replay()
    add_rows(replay, 40, seed=0)
    generator = torch.Generator().manual_seed(2)
    train(agent, replay, generator, updates=3)
    tree = {"agent": agent.state_dict(), "generator": generator.get_state()}
    path = open_store(tmp_path).save(40, tree, replay)
    expected = train(agent, replay, generator, updates=3)

    resumed, replay_again = make_agent(kind, multiplier, seed=9), make_replay()
    store = open_store(tmp_path)
    loaded = store.load(path)
    resumed.load_state_dict(loaded["agent"])
    store.restore_replay(path, replay_again)
    again = torch.Generator()
    again.set_state(loaded["generator"])
    assert same_bits(train(resumed, replay_again, again, updates=3), expected)
    assert same_bits(resumed.state_dict(), agent.state_dict())


def test_saving_does_not_move_the_agent_or_alias_its_weights(tmp_path: Path) -> None:
    agent, replay = make_agent("gaussian", FixedConfig(), seed=1), make_replay()
    add_rows(replay, 40, seed=0)
    train(agent, replay, torch.Generator().manual_seed(2), updates=1)
    store = open_store(tmp_path)
    store.save(1, agent.state_dict(), replay)
    before = store.load()
    train(agent, replay, torch.Generator().manual_seed(3), updates=1)
    assert same_bits(store.load(), before)
    assert not same_bits(agent.state_dict(), before)


@settings(deadline=None, max_examples=60)
@given(
    capacity=st.integers(1, 100),
    rows_per_segment=st.integers(1, 40),
    additions=st.lists(st.tuples(st.integers(0, 120), st.booleans()), min_size=1, max_size=6),
    keep=st.integers(1, 3),
)
def test_ring_comes_back_whatever_its_size_and_the_moments_of_saving(
    tmp_path_factory: pytest.TempPathFactory,
    capacity: int,
    rows_per_segment: int,
    additions: list[tuple[int, bool]],
    keep: int,
) -> None:
    run_dir = tmp_path_factory.mktemp("ring")
    store = CheckpointStore(run_dir, rows_per_segment=rows_per_segment)
    replay = make_replay(capacity)
    for step, (rows, reopen) in enumerate(additions):
        add_rows(replay, rows)
        path = store.save(step, tree_of(step), replay, keep=keep)
        restored = make_replay(capacity)
        other = CheckpointStore(run_dir, rows_per_segment=7)
        assert other.latest() == path
        other.restore_replay(path, restored)
        assert restored.total_added == replay.total_added
        assert torch.equal(restored.table, replay.table)
        assert len(list((run_dir / "checkpoints").iterdir())) == min(keep, step + 1)
        if reopen:
            store, replay = other, restored


def test_wrapped_ring_of_50_rows_is_stored_as_the_segments_that_cover_it(tmp_path: Path) -> None:
    make_run(tmp_path, [20, 40, 100, 138])
    path = open_store(tmp_path).latest()
    assert path is not None
    record = open_store(tmp_path).manifest(path).replay
    assert record is not None
    # Rows 88 to 138 are held. Segment 5 was written at step 100, when it began at row 80.
    assert (record.first, record.total_added, record.row_width) == (88, 138, 11)
    spans = [(rows.name[:16], rows.first, rows.last) for rows in record.files]
    assert spans == [
        ("segment_00000005", 80, 96),
        ("segment_00000006", 96, 112),
        ("segment_00000007", 112, 128),
        ("replay_tail.bin", 128, 138),
    ]
    assert [rows.record.size for rows in record.files] == [16 * 44, 16 * 44, 16 * 44, 10 * 44]


def test_segment_file_is_raw_little_endian_rows(tmp_path: Path) -> None:
    make_run(tmp_path, [20])
    (segment,) = (tmp_path / "replay").iterdir()
    np.testing.assert_array_equal(np.fromfile(segment, dtype="<f4"), np.arange(16 * 11))


def test_a_save_writes_only_the_segments_filled_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = replay_store.replace_durably

    def counted(path: Path, data: memoryview) -> None:
        written.append(f"{path.parent.name}/{path.name[:16]}")
        write(path, data)

    monkeypatch.setattr(replay_store, "replace_durably", counted)
    replay = make_run(tmp_path, [3 * ROWS_PER_SEGMENT])
    assert len(written) == 6
    written.clear()
    store, replay = open_store(tmp_path), make_replay()
    path = store.latest()
    assert path is not None
    store.restore_replay(path, replay)
    add_rows(replay, ROWS_PER_SEGMENT + 1)
    store.save(65, tree_of(65), replay)
    assert written == ["replay/segment_00000003", "replay_copy/segment_00000003"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([50], {0, 1, 2}),
        ([50, 90], {0, 1, 2, 3, 4}),
        ([50, 90, 130], {2, 3, 4, 5, 6, 7}),
    ],
)
def test_segments_live_as_long_as_a_kept_checkpoint_mentions_them(
    tmp_path: Path, steps: list[int], expected: set[int]
) -> None:
    make_run(tmp_path, steps)
    for copy in ("replay", "replay_copy"):
        assert {int(path.name[8:16]) for path in (tmp_path / copy).iterdir()} == expected


def test_one_copy_halves_the_space_and_restores_the_same(tmp_path: Path) -> None:
    store, replay = open_store(tmp_path, replay_copies=1), make_replay()
    add_rows(replay, 40)
    store.save(40, tree_of(40), replay)
    assert not (tmp_path / "replay_copy").exists()
    assert_restores(tmp_path, replay, 40, replay_copies=1)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    paths = [store.save(step, tree_of(step), None, keep=3) for step in range(5)]
    assert sorted((tmp_path / "checkpoints").iterdir()) == paths[2:]
    last = store.save(5, tree_of(5), None, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == [last]
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        store.save(6, tree_of(6), None, keep=0)


def test_second_checkpoint_of_a_step_takes_the_place_of_the_first(tmp_path: Path) -> None:
    replay = make_run(tmp_path, [10, 20])
    store = open_store(tmp_path)
    path = store.save(20, tree_of(99), replay)
    assert path.name == "step_000000000020.1"
    assert {p.name for p in path.parent.iterdir()} == {"step_000000000010", path.name}
    assert store.latest() == path
    assert store.load()["step"] == 99
    assert store.save(20, tree_of(98), replay).name == "step_000000000020.2"
    assert store.load()["step"] == 98


def test_a_run_that_went_back_leaves_its_old_future_behind(tmp_path: Path) -> None:
    make_run(tmp_path, [40, 60])
    first = tmp_path / "checkpoints" / "step_000000000040"
    before = files_under(tmp_path)
    store, replay = open_store(tmp_path), make_replay()
    store.restore_replay(first, replay)
    add_rows(replay, 40, seed=5)  # another course than the rows saved at step 60
    assert files_under(tmp_path) == before
    store.save(80, tree_of(80), replay, keep=3)
    names = {path.name for path in first.parent.iterdir()}
    assert names == {"step_000000000040", "step_000000000080"}
    assert_restores(tmp_path, replay, 80)


def test_a_policy_of_a_future_that_was_left_gives_way_to_the_one_before(tmp_path: Path) -> None:
    replay = make_run(tmp_path, [40, 60])
    store = open_store(tmp_path)
    for step in (30, 50):
        store.save_policy("best_safe", step, tree_of(step))
    store, replay = open_store(tmp_path), make_replay()
    store.restore_replay(tmp_path / "checkpoints" / "step_000000000040", replay)
    assert same_bits(store.load_policy("best_safe"), tree_of(50))
    store.save(45, tree_of(45), replay)
    assert same_bits(store.load_policy("best_safe"), tree_of(30))
    store.save_policy("best_safe", 50, tree_of(51))
    store.save(60, tree_of(60), replay)
    assert same_bits(store.load_policy("best_safe"), tree_of(51))


def test_policies_are_kept_beside_the_checkpoints(tmp_path: Path) -> None:
    replay = make_run(tmp_path, [10])
    store = open_store(tmp_path)
    for step in (10, 20, 30):
        path = store.save_policy("best_safe", step, tree_of(step))
    assert path == tmp_path / "policies" / "best_safe" / "step_000000000030"
    assert same_bits(store.load_policy("best_safe"), tree_of(30))
    store.save(40, tree_of(40), replay)
    assert same_bits(open_store(tmp_path).load_policy("best_safe"), tree_of(30))
    assert same_bits(store.load(path), tree_of(30))
    with pytest.raises(CheckpointError, match="saved without replay"):
        store.restore_replay(path, replay)
    with pytest.raises(CheckpointError, match="other holds no usable checkpoint: none was"):
        store.load_policy("other")
    with pytest.raises(ValueError, match="policy name"):
        store.save_policy("../escape", 1, {})


def test_another_task_is_refused_with_both_named(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, Task("Here-v0", 3, 2)).save(1, {}, make_replay())
    assert CheckpointStore(tmp_path, Task("Here-v0", 3, 2)).load() == {}
    assert CheckpointStore(tmp_path).load() == {}
    for task in (Task("There-v0", 3, 2), Task("Here-v0", 4, 2), Task("Here-v0", 3, 1)):
        for read in (CheckpointStore(tmp_path, task).load, CheckpointStore(tmp_path, task).latest):
            with pytest.raises(CheckpointError, match="Here-v0") as caught:
                read()
            assert repr(task) in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "replay", "message"),
    [
        (20, ReplayBuffer(50, 4, ACTION_DIM), "obs_dim 3, this run's has 4"),
        (20, ReplayBuffer(50, OBS_DIM, 1), "action_dim 2, this run's has 1"),
        (20, ReplayBuffer(40, OBS_DIM, ACTION_DIM), "capacity 50, this run's has 40"),
        (60, ReplayBuffer(60, OBS_DIM, ACTION_DIM), "capacity 50, this run's has 60"),
    ],
    ids=["obs", "action", "smaller", "larger, and rows are lost already"],
)
def test_buffer_of_another_shape_is_refused(
    tmp_path: Path, rows: int, replay: ReplayBuffer, message: str
) -> None:
    make_run(tmp_path, [rows])
    store = open_store(tmp_path)
    path = store.latest()
    assert path is not None
    with pytest.raises(CheckpointError, match=message):
        store.restore_replay(path, replay)
    assert len(replay) == 0


def test_a_buffer_may_grow_while_no_row_is_lost(tmp_path: Path) -> None:
    original = make_run(tmp_path, [30, 50])
    store = open_store(tmp_path)
    path = store.latest()
    assert path is not None
    larger = ReplayBuffer(60, OBS_DIM, ACTION_DIM)
    store.restore_replay(path, larger)
    assert torch.equal(larger.rows(0, 50), original.rows(0, 50))
    larger.append_rows(original.rows(0, 20))
    store.save(70, {}, larger)
    again = ReplayBuffer(60, OBS_DIM, ACTION_DIM)
    store = open_store(tmp_path)
    path = store.latest()
    assert path is not None
    store.restore_replay(path, again)
    assert (again.total_added, len(again)) == (70, 60)
    assert torch.equal(again.rows(10, 70), larger.rows(10, 70))


def test_a_run_directory_is_claimed_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    claim_run_dir(run_dir)
    with pytest.raises(ConfigError, match=r"a already holds a run; .*train --resume .*/runs/a"):
        claim_run_dir(run_dir)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        claim_run_dir(tmp_path)
    for path in (tmp_path / "config.yaml", tmp_path / "config.yaml" / "run"):
        with pytest.raises(ConfigError, match=r"cannot be created: .*config\.yaml is not a dir"):
            claim_run_dir(path)


def test_a_directory_that_holds_files_but_no_run_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    claim_run_dir(tmp_path)
    assert require_run_dir(tmp_path) == tmp_path


def test_a_directory_without_a_run_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing is not a directory"):
        open_store(tmp_path / "missing").load()
    for read in (open_store(tmp_path).load, open_store(tmp_path).latest):
        with pytest.raises(CheckpointError, match=r"holds no run: found neither config\.yaml nor"):
            read()


def test_a_run_before_its_first_checkpoint_has_none(tmp_path: Path) -> None:
    claim_run_dir(tmp_path)
    assert open_store(tmp_path).latest() is None
    with pytest.raises(CheckpointError, match="no usable checkpoint: none was saved"):
        open_store(tmp_path).load()


def test_a_mistyped_directory_is_answered_without_torch() -> None:
    code = "import sys, algd.training.run_directory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
