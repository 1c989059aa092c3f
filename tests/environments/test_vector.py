"""Several environments as one: every kind the same, endings, seeds, exact restoration, failures."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from algd.environments.episodes import episode_seed
from algd.environments.make import EnvConfig, make_env
from algd.environments.subprocess_vector import SubprocessVectorEnv
from algd.environments.vector import make_vector_env
from algd.errors import CheckpointError, ConfigError, EnvironmentFault

COUNTING = "environments.faulty_envs:Counting-v0"
PENDULUM_COST = "environments.faulty_envs:pendulum_cost"
KINDS = ("sync", "subprocess", "parallel")
RESUMABLE = (
    EnvConfig(id="SafetyPointGoal1-v0", num_envs=2),
    EnvConfig(id="SafetyHopperVelocity-v1", num_envs=3),
    EnvConfig(id="Pendulum-v1", num_envs=3, cost_fn=PENDULUM_COST),
)


def with_vector(config, kind):
    return EnvConfig(**{**config.__dict__, "vector": kind})


def random_actions(env, steps, seed=0):
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (steps, env.num_envs, env.action_dim)).astype(np.float32)


def as_bytes(result):
    return b"".join(field.tobytes() for field in result[:6]) + repr(result.episodes).encode()


@pytest.mark.parametrize("config", RESUMABLE, ids=lambda config: config.id)
def test_every_kind_gives_the_same_bits(config):
    streams = []
    for kind in KINDS:
        with make_vector_env(with_vector(config, kind), seed=5) as env:
            parts = [env.reset().tobytes()]
            parts += [as_bytes(env.step(actions)) for actions in random_actions(env, 250)]
            streams.append(b"".join(parts))
    assert streams[0] == streams[1] == streams[2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_ended_episode_gives_its_last_observation_and_the_next_episodes_first(kind):
    config = EnvConfig(id=COUNTING, num_envs=2, vector=kind)
    with make_vector_env(config, seed=3) as env:
        assert (env.num_envs, env.obs_dim, env.action_dim, env.max_episode_steps) == (2, 2, 2, 5)
        assert env.reset()[:, 0].tolist() == [0.0, 0.0]
        results = [env.step(actions) for actions in random_actions(env, 7)]
    steps = [result.next_obs[0, 0] for result in results]
    assert steps == [1, 2, 3, 4, 5, 1, 2]
    assert [result.obs[0, 0] for result in results] == [1, 2, 3, 4, 0, 1, 2]
    assert [result.truncated.tolist() for result in results] == [[i == 4, i == 4] for i in range(7)]
    assert not any(result.terminated.any() for result in results)
    # The second entry comes of the episode's seed: old in next_obs, new in obs, at the boundary.
    assert results[4].next_obs[0, 1] == results[3].obs[0, 1] != results[4].obs[0, 1]
    assert results[4].obs[0, 1] == results[5].next_obs[0, 1]
    assert [len(result.episodes) for result in results] == [0, 0, 0, 0, 2, 0, 0]
    assert results[4].episodes[1] == (1, 0, episode_seed(3, 1, 0), 5.0, 2.5, 5, False)
    assert results[0].reward.dtype == results[0].cost.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_termination_is_told_from_truncation(kind):
    config = EnvConfig(id=COUNTING, kwargs={"ends_at": 2}, vector=kind)
    with make_vector_env(config, seed=0) as env:
        env.reset()
        env.step(np.zeros((1, 2), np.float32))
        result = env.step(np.zeros((1, 2), np.float32))
    assert (result.terminated.tolist(), result.truncated.tolist()) == ([True], [False])
    assert result.episodes[0].terminated
    assert result.episodes[0].length == 2


def test_episode_seeds_are_the_documented_words():
    assert episode_seed(0, 0, 0) == np.random.SeedSequence([0, 0, 0]).generate_state(1)[0]
    seeds = {episode_seed(s, e, i) for s in range(5) for e in range(8) for i in range(50)}
    assert len(seeds) == 5 * 8 * 50
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_an_episode_can_be_repeated_from_its_record():
    with make_vector_env(EnvConfig(id="SafetyHopperVelocity-v1", num_envs=2), seed=1) as env:
        env.reset()
        actions = random_actions(env, 120)
        records, starts = [], [0, 0]
        for step, action in enumerate(actions):
            for record in env.step(action).episodes:
                records.append((record, starts[record.env_index]))
                starts[record.env_index] = step + 1
    record, start = records[-1]
    assert record.episode_index > 0
    single = make_env("SafetyHopperVelocity-v1")
    single.reset(seed=record.seed)
    total = 0.0
    for action in actions[start : start + record.length, record.env_index]:
        total += single.step(action)[1]
    assert total == record.return_


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", RESUMABLE, ids=lambda config: config.id)
def test_a_restored_environment_continues_bit_for_bit(config, kind, tmp_path):
    config = with_vector(config, kind)
    with make_vector_env(config, seed=9) as env:
        env.reset()
        before, after = np.split(random_actions(env, 130), [90])
        obs = [env.step(actions) for actions in before][-1].obs
        snapshot = env.snapshot()
        expected = [as_bytes(env.step(actions)) for actions in after]
    with make_vector_env(config, seed=9) as env:
        restored, dropped = env.restore(through_files(snapshot, tmp_path))
        assert dropped == []
        assert restored.tobytes() == obs.tobytes()
        assert [as_bytes(env.step(actions)) for actions in after] == expected


def through_files(snapshot, folder):
    """Write and read a snapshot as a checkpoint does: JSON for scalars, raw arrays for the rest."""
    scalars = {key: value for key, value in snapshot.items() if key != "envs"}
    scalars["envs"] = []
    for index, episode in enumerate(snapshot["envs"]):
        arrays = {key: value for key, value in episode.items() if isinstance(value, np.ndarray)}
        np.savez(folder / f"{index}.npz", **arrays)
        scalars["envs"].append({k: v for k, v in episode.items() if k not in arrays})
    read = json.loads(json.dumps(scalars))
    for index, episode in enumerate(read["envs"]):
        with np.load(folder / f"{index}.npz") as arrays:
            episode.update(dict(arrays))
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_before_the_first_step_restores(kind):
    config = EnvConfig(id="SafetyPointGoal1-v0", vector=kind)
    with make_vector_env(config, seed=2) as env:
        first = env.reset()
        snapshot = env.snapshot()
        assert snapshot["envs"][0]["actions"].shape == (0, 2)
        assert snapshot["envs"][0]["seed"] == episode_seed(2, 0, 0)
        env.step(np.ones((1, 2), np.float32))
        restored, dropped = env.restore(snapshot)
    assert dropped == []
    assert restored.tobytes() == first.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["obs", "return_", "cost", "seed", "actions"])
def test_an_episode_that_does_not_replay_exactly_is_dropped_and_the_next_one_started(kind, field):
    config = EnvConfig(id="SafetyHopperVelocity-v1", num_envs=3, vector=kind)
    with make_vector_env(config, seed=4) as env:
        env.reset()
        for actions in random_actions(env, 9):
            env.step(actions)
        snapshot = env.snapshot()
        episode = snapshot["envs"][1]
        if isinstance(episode[field], np.ndarray):
            episode[field] = episode[field].copy()
            episode[field].flat[0] += np.float32(1e-3)
        else:
            episode[field] += 1
        obs, dropped = env.restore(snapshot)
        assert dropped == [1]
        assert env.snapshot()["envs"][1]["episode_index"] == episode["episode_index"] + 1
        seed = episode_seed(4, 1, episode["episode_index"] + 1)
        fresh, _ = make_env("SafetyHopperVelocity-v1").reset(seed=seed)
        assert obs[1].tobytes() == fresh.tobytes()
        assert obs[0].tobytes() == snapshot["envs"][0]["obs"].tobytes()


def test_an_episode_that_ends_too_early_in_replay_is_dropped():
    config = EnvConfig(id=COUNTING)
    with make_vector_env(config, seed=0) as env:
        env.reset()
        for actions in random_actions(env, 4):
            env.step(actions)
        snapshot = env.snapshot()
    for kwargs in ({"ends_at": 2}, {"bad": "reward", "at": 2}):
        changed = EnvConfig(id=COUNTING, kwargs={**kwargs})
        with make_vector_env(changed, seed=0) as env:
            assert env.restore(snapshot)[1] == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "SafetyPointGoal0-v0"}, "env_id 'SafetyPointGoal1-v0'.*'SafetyPointGoal0-v0'"),
        ({"num_envs": 2}, "num_envs 1, this run has 2"),
    ],
)
def test_a_snapshot_of_another_run_is_refused(change, message):
    config = EnvConfig(id="SafetyPointGoal1-v0")
    with make_vector_env(config, seed=0) as env:
        env.reset()
        snapshot = env.snapshot()
    env = make_vector_env(EnvConfig(**{**config.__dict__, **change}), seed=0)
    with pytest.raises(CheckpointError, match=message):
        env.restore(snapshot)
    env = make_vector_env(config, seed=1)
    with pytest.raises(CheckpointError, match="seed 0, this run has 1"):
        env.restore(snapshot)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_reset_starts_the_next_episodes(kind):
    with make_vector_env(EnvConfig(id=COUNTING, vector=kind), seed=0) as env:
        first = env.reset()
        assert env.snapshot()["envs"][0]["episode_index"] == 0
        second = env.reset()
        assert env.snapshot()["envs"][0]["episode_index"] == 1
    assert first[0, 1] != second[0, 1]


def test_stepping_before_reset_is_refused():
    with make_vector_env(EnvConfig(id=COUNTING), seed=0) as env:
        with pytest.raises(RuntimeError, match="reset the environment before its first step"):
            env.step(np.zeros((1, 2), np.float32))
        with pytest.raises(RuntimeError, match="before taking a snapshot"):
            env.snapshot()


@pytest.mark.parametrize("kind", KINDS)
def test_actions_of_a_wrong_shape_and_a_negative_seed_are_refused(kind):
    config = EnvConfig(id=COUNTING, num_envs=2, vector=kind)
    with make_vector_env(config, seed=0) as env:
        env.reset()
        with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(1, 2\)"):
            env.step(np.zeros((1, 2), np.float32))
    with pytest.raises(ConfigError, match="seed must be >= 0, got -1"):
        make_vector_env(config, seed=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_names_the_environment_and_the_step(kind):
    config = EnvConfig(
        id="environments.faulty_envs:Unlucky-v0", num_envs=3, vector=kind, kwargs={"seed": 6}
    )
    with make_vector_env(config, seed=6) as env:
        env.reset()
        env.step(np.zeros((3, 2), np.float32))
        with pytest.raises(
            EnvironmentFault, match=r"^environment 1 of 3: .*reward is nan at step 2"
        ):
            env.step(np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_what_make_env_refuses_the_vector_refuses_alike(kind):
    with pytest.raises(ConfigError, match="did you mean SafetyPointGoal1-v0"):
        make_vector_env(EnvConfig(id="SafetyPointGaol1-v0", num_envs=2, vector=kind), seed=0)
    with pytest.raises(EnvironmentFault, match="must be continuous"):
        make_vector_env(EnvConfig(id="CartPole-v1", num_envs=2, vector=kind), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_is_closing_once(kind):
    env = make_vector_env(EnvConfig(id=COUNTING, num_envs=2, vector=kind), seed=0)
    env.reset()
    env.close()
    env.close()
    assert multiprocessing.active_children() == []


def wait_until_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    alive = list(pids)
    while alive and time.monotonic() < deadline:
        alive = [pid for pid in alive if is_running(pid)]
        time.sleep(0.02)
    return alive


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_worker_that_dies_is_reported_with_its_exit_code():
    config = EnvConfig(id=COUNTING, num_envs=2, vector="subprocess", max_restarts=0)
    env = SubprocessVectorEnv(config, seed=0)
    env.reset()
    pid = env._workers[0]._process.pid
    os.kill(pid, signal.SIGKILL)
    assert wait_until_gone([pid]) == []
    with pytest.raises(EnvironmentFault, match=r"the worker of environments 0 to .* exit code -9"):
        env.step(np.zeros((2, 2), np.float32))
    env.close()


PARENT = """
import numpy as np
from algd.environments.make import EnvConfig
from algd.environments.vector import make_vector_env

def main():
    config = EnvConfig(id="SafetyPointGoal0-v0", num_envs=2, vector="subprocess")
    try:
        print("starting", flush=True)
        with make_vector_env(config, seed=0) as env:
            env.reset()
            print(*[worker._process.pid for worker in env._workers], flush=True)
            while True:
                env.step(np.zeros((2, 2), np.float32))
    except KeyboardInterrupt:
        print("interrupted", flush=True)

if __name__ == "__main__":
    main()
"""


def start_parent(tmp_path):
    """Start a program that steps workers for ever, in a process group of its own."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert parent.stdout.readline() == "starting\n"
    return parent


def read_pids(parent):
    return [int(pid) for pid in parent.stdout.readline().split()]


def test_workers_end_when_the_parent_is_killed(tmp_path):
    parent = start_parent(tmp_path)
    pids = read_pids(parent)
    assert pids
    parent.kill()
    assert parent.communicate(timeout=20) == ("", "")
    assert wait_until_gone(pids) == []


def test_ctrl_c_reaches_the_parent_alone_and_prints_no_worker_traceback(tmp_path):
    parent = start_parent(tmp_path)
    pids = read_pids(parent)
    os.killpg(parent.pid, signal.SIGINT)  # a terminal signals the whole foreground group
    assert parent.communicate(timeout=20) == ("interrupted\n", "")
    assert wait_until_gone(pids) == []


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.25])
def test_ctrl_c_while_workers_start_prints_no_worker_traceback(tmp_path, delay):
    parent = start_parent(tmp_path)
    time.sleep(delay)
    os.killpg(parent.pid, signal.SIGINT)
    out, err = parent.communicate(timeout=20)
    assert out.endswith("interrupted\n")
    assert err == ""


@pytest.mark.parametrize("kind", ["sync", "subprocess"])
def test_actions_in_double_precision_are_stepped_as_they_are_recorded(kind):
    config = with_vector(EnvConfig(id="Pendulum-v1", num_envs=2, cost_fn=PENDULUM_COST), kind)
    with make_vector_env(config, seed=0) as env:
        env.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (20, 2, 1))
        for row in actions:
            env.start(row)
            row[:] = 9.0  # what is stepped is a copy
            last = env.finish()
        snapshot = env.snapshot()
    with make_vector_env(config, seed=0) as env:
        obs, dropped = env.restore(snapshot)
        assert dropped == []
        assert np.array_equal(obs, last.obs)
