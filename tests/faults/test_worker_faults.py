"""A crashing environment worker: restarted, its episode dropped and counted, no row made up."""

import csv
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.tiny_runs import run, saved_steps, training_stream
from saved_runs import same_bits

from algd.environments.episodes import episode_seed
from algd.environments.make import EnvConfig
from algd.environments.subprocess_vector import SubprocessVectorEnv
from algd.environments.vector import StepResult
from algd.errors import EnvironmentFault
from algd.experiments.config import load_config
from algd.training import recording, trainer

CRASHING = "faults.crashing_envs:Crashing-v0"
HOW = {
    "segfault": "ended with exit code -11",
    "killed": "ended with exit code -9",
    "exception": "step raised ZeroDivisionError: the physics blew up",
    "hang": r"did not answer within 3 s \(env.worker_timeout\)",
}


@pytest.fixture(autouse=True)
def _one_worker_per_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers on any machine: one of them crashes, the other must not notice."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def make(**kwargs: Any) -> SubprocessVectorEnv:
    options = {"num_envs": 2, "max_restarts": 2, **kwargs}
    options = {"vector": "subprocess", **options}
    return SubprocessVectorEnv(EnvConfig(id=CRASHING, **options), seed=0)


def steps(env: SubprocessVectorEnv, count: int) -> list[StepResult]:
    return [env.step(np.zeros((2, 1), np.float32)) for _ in range(count)]


@pytest.mark.parametrize("how", HOW)
def test_a_crash_drops_one_episode_and_the_next_one_starts(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    timeout = 3.0 if how == "hang" else 60.0
    with make(kwargs={"how": how}, worker_timeout=timeout) as env:
        if how == "hang":
            env._workers[0]._timeout = env._workers[1]._timeout = 3.0
        env.reset()
        results = steps(env, 14)
    assert [k for k, step in enumerate(results) if step.dropped] == [7]
    assert results[7].dropped == (1,)
    # Environment 0 lives on undisturbed; environment 1 goes on with its episode 2.
    assert results[7].obs[0, 0] == 3.0
    mark = np.random.default_rng(episode_seed(0, 1, 2)).random()
    assert results[7].obs[1].tolist() == [0.0, np.float32(mark)]
    assert results[8].obs[1].tolist() == [1.0, np.float32(mark)]
    ended = [(k, e.env_index, e.episode_index) for k, s in enumerate(results) for e in s.episodes]
    assert ended == [(4, 0, 0), (4, 1, 0), (9, 0, 1), (12, 1, 2)]
    complete = [e for step in results for e in step.episodes]
    assert {(e.return_, e.cost, e.length) for e in complete} == {(5.0, 5.0, 5)}
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "\n" not in message
    assert re.search(HOW[how], message)
    assert "restarted (1 of at most 2)" in message


@pytest.mark.parametrize(("how", "index"), [("exception", 1), ("exception", 0), ("killed", 0)])
def test_in_parallel_exceptions_of_every_block_and_deaths_of_workers_are_survived(
    how: str, index: int
) -> None:
    # Of two processes the worker has environment 0, this process environment 1.
    with make(vector="parallel", kwargs={"how": how, "index": index}, worker_timeout=60.0) as env:
        assert len(env._workers) == 1
        env.reset()
        results = steps(env, 14)
    assert [(k, step.dropped) for k, step in enumerate(results) if step.dropped] == [(7, (index,))]
    assert results[7].obs[1 - index, 0] == 3.0
    mark = np.random.default_rng(episode_seed(0, index, 2)).random()
    assert results[7].obs[index].tolist() == [0.0, np.float32(mark)]
    ended = {(k, e.env_index, e.episode_index) for k, s in enumerate(results) for e in s.episodes}
    assert ended == {(4, 0, 0), (4, 1, 0), (9, 1 - index, 1), (12, index, 2)}


def test_crashes_beyond_the_allowed_number_are_one_fault() -> None:
    with make(kwargs={"how": "exception", "always": True}, num_envs=2) as env:
        env.reset()
        with pytest.raises(EnvironmentFault, match=r"blew up.*crash 3, env\.max_restarts is 2$"):
            steps(env, 20)


def test_a_worker_lost_between_two_steps_is_found_by_the_snapshot() -> None:
    with make() as env:
        env.reset()
        steps(env, 2)
        pid = env._workers[1]._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        snapshot = env.snapshot()
        assert [len(one["actions"]) for one in snapshot["envs"]] == [2, 0]
        assert [one["episode_index"] for one in snapshot["envs"]] == [0, 1]
        (step,) = steps(env, 1)
        assert step.dropped == (1,)
        assert step.obs[:, 0].tolist() == [3.0, 0.0]
        (step,) = steps(env, 1)
        assert step.dropped == ()
        assert step.obs[:, 0].tolist() == [4.0, 1.0]


def test_repeating_running_episodes_may_take_as_long_as_their_steps() -> None:
    options = {"kwargs": {"episode": 99, "seconds": 0.3}, "worker_timeout": 60.0}
    with make(**options) as env:
        env.reset()
        taken = steps(env, 4)
        snapshot = env.snapshot()
    with make(**options) as env:
        for worker in env._workers:
            worker._timeout = 1.0  # four steps take 1.2 s
        obs, dropped = env.restore(snapshot)
    assert dropped == []
    assert np.array_equal(obs, taken[-1].obs)


def test_training_survives_and_stores_no_row_of_the_crash(tmp_path: Path) -> None:
    config = load_config(
        [],
        {
            "env.id": CRASHING,
            "env.num_envs": 2,
            "env.vector": "subprocess",
            "env.kwargs": {"how": "killed"},
            "policy.kind": "gaussian",
            "policy.hidden": [8],
            "critics.hidden": [8],
            "train.total_steps": 40,
            "train.learning_starts": 10,
            "train.batch_size": 8,
            "train.log_interval": 20,
            "train.normalize_obs": True,
            "evaluation.episodes": 1,
            "evaluation.video": False,
            "tracking.wandb": "disabled",
            "tracking.progress": False,
        },
    )
    run_dir = tmp_path / "run"
    made = []
    original = trainer.Trainer.run

    def run(self: trainer.Trainer) -> None:
        made.append(self)
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "run", run)
        trainer.train(config, run_dir)
    (one,) = made
    assert one.dropped_episodes == 1
    assert one.replay.total_added == 39
    rows = one.replay.rows(0, 39)
    obs, next_obs = rows[:, :2], rows[:, -3:-1]
    assert (next_obs[:, 0] == obs[:, 0] + 1).all()  # each row is one step of one episode
    assert (next_obs[:, 1] == obs[:, 1]).all()
    with (run_dir / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["train/dropped_episodes"]) == 1.0
    assert float(last["train/cost"]) == 5.0
    with (run_dir / "episodes.csv").open() as file:
        episodes = [(row["env_index"], row["episode_index"]) for row in csv.DictReader(file)]
    assert ("1", "1") not in episodes


@pytest.mark.parametrize("vector", ["sync", "parallel"])
def test_a_run_resumed_after_a_fault_goes_on_with_the_next_episodes(
    tmp_path: Path, vector: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    crashing = {"how": "exception", "index": 1, "episode": 2}
    settings = {"env__num_envs": 2, "env__vector": vector, "env__max_restarts": 0}
    with pytest.raises(EnvironmentFault, match="training stopped at step 24, checkpoint kept"):
        run(run_dir, env__id=CRASHING, env__kwargs=crashing, **settings)
    trainer.resume(run_dir)
    assert "environments [0, 1] cannot be repeated" in caplog.text
    with (run_dir / "episodes.csv").open() as file:
        episodes = [(row["env_index"], row["episode_index"]) for row in csv.DictReader(file)]
    # 120 steps, of which two of each environment fell into the episodes that were given up.
    expected = [(str(env), str(n)) for n in (0, 1, *range(3, 12)) for env in (0, 1)]
    assert episodes == expected
    with (run_dir / "metrics.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["train/dropped_episodes"]) == 2.0


def test_a_run_resumed_after_a_reset_that_raised_does_not_repeat_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    broken = {"how": "reset", "index": 0, "episode": 3}
    with pytest.raises(EnvironmentFault, match="reset raised ZeroDivisionError: no layout"):
        run(run_dir, env__id=CRASHING, env__kwargs=broken)
    trainer.resume(run_dir)
    with (run_dir / "episodes.csv").open() as file:
        episodes = [int(row["episode_index"]) for row in csv.DictReader(file)]
    # The step whose reset raised is lost, and with it the record of episode 2.
    assert episodes[:4] == [0, 1, 4, 5]


def test_a_fault_in_an_evaluation_costs_no_episode_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(tmp_path / "undisturbed")
    evaluate = recording.evaluate_policy

    def fail_at_60(agent: Any, normalizer: Any, env: Any, **options: Any) -> Any:
        if (tmp_path / "run" / "checkpoints" / "step_000000000030").exists():
            raise EnvironmentFault("the scene is gone")
        return evaluate(agent, normalizer, env, **options)

    with monkeypatch.context() as patched:
        patched.setattr(recording, "evaluate_policy", fail_at_60)
        for attempt in (run, lambda directory: trainer.resume(directory)):
            with pytest.raises(
                EnvironmentFault, match=r"the scene is gone; .* step 60, checkpoint"
            ):
                attempt(tmp_path / "run")
            assert saved_steps(tmp_path / "run") == [30, 60]
    trainer.resume(tmp_path / "run")
    assert same_bits(*(training_stream(one) for one in (tmp_path / "run", undisturbed)))
    for name in ("metrics.csv", "evaluations.csv"):
        assert (tmp_path / "run" / name).read_text() == (undisturbed / name).read_text()
