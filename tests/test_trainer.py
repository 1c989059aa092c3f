"""The training loop: repeatable, resumable, any combination, one line for what breaks."""

import csv
import errno
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from replayed_calls import record

import algd
from alam.multiplier import MULTIPLIERS
from alam.replay import ReplayBuffer
from alam.sac import SACAgent
from algd.environments.make import make_env
from algd.environments.subprocess_vector import SubprocessVectorEnv
from algd.errors import CheckpointError, ConfigError, EnvironmentFault
from algd.experiments.config import dump_yaml, load_config
from algd.training.checkpoint import CheckpointStore
from algd.training.durable_files import replace_durably
from algd.training.evaluation import evaluate_policy
from algd.training.stopping import Interrupted
from algd.training.trainer import Trainer, resume, train

# They cost most of the time of a small run; the tests of the agents have them on.
pytestmark = pytest.mark.usefixtures("no_shape_checks")

TINY = {
    "env.id": "AnalyticBandit2-v0",
    "constraint.cost_limit": 0.5,
    "policy.hidden": [16, 16],
    "critics.hidden": [16, 16],
    "critics.num_cost_critics": 2,
    "train.total_steps": 200,
    "train.learning_starts": 50,
    "train.batch_size": 16,
    "train.log_interval": 50,
    "train.checkpoint_interval": 100,
    "evaluation.interval": 100,
    "evaluation.episodes": 2,
    "evaluation.video": False,
    "tracking.wandb": "disabled",
    "tracking.progress": False,
}
POLICIES = {
    "gaussian": {"policy.kind": "gaussian"},
    "ve": {"policy.schedule": {"kind": "ve", "num_train_timesteps": 3}},
    "vp": {"policy.schedule": {"kind": "vp", "num_train_timesteps": 3}},
    "release_vesde": {"policy.kind": "release", "policy.variant": "vesde"},
    "release_ddpm": {"policy.kind": "release", "policy.variant": "ddpm"},
}


def run(directory: Path, **changes: object) -> Path:
    overrides = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    train(load_config([], overrides), directory)
    return directory


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("policy", "multiplier"), list(itertools.product(POLICIES, MULTIPLIERS)), ids="-".join
)
def test_every_combination_trains_200_steps(tmp_path: Path, policy: str, multiplier: str) -> None:
    overrides = TINY | POLICIES[policy] | {"multiplier.kind": multiplier}
    train(load_config([], overrides), tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert int(last["env_step"]) == 200
    assert float(last["train/num_updates"]) == 151
    assert np.isfinite(float(last["eval/return"]))


@pytest.mark.parametrize("policy", ["gaussian", "ve"])
def test_same_config_and_seed_give_the_same_bytes(tmp_path: Path, policy: str) -> None:
    first = run(tmp_path / "a", **POLICIES[policy])
    second = run(tmp_path / "b", **POLICIES[policy])
    other = run(tmp_path / "c", seed=1, **POLICIES[policy])
    for name in ("metrics.csv", "episodes.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()


@pytest.mark.parametrize("policy", ["gaussian", "ve"])
def test_a_run_by_captured_updates_is_the_eager_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """By what stands in for CUDA graphs on a CPU; stopped and resumed in between.

    Graphs read batches from memory of their own, in another layout, which moves last bits.
    """
    overrides = TINY | POLICIES[policy] | {"train.cuda_graph": True}
    train(load_config([], overrides), tmp_path / "eager")
    monkeypatch.setattr(Trainer, "captures_updates", True)
    monkeypatch.setattr("alam.captured.CUDACapture", lambda: record)
    captured = stopped_at_130(tmp_path / "captured", overrides, monkeypatch)
    resume(captured)
    for actual, expected in zip(rows(captured), rows(tmp_path / "eager"), strict=True):
        numbers = {name: float(value) for name, value in expected.items() if value}
        assert {name: float(actual[name]) for name in numbers} == pytest.approx(numbers, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("policy", ["gaussian", "ve"])
def test_a_run_by_cuda_graphs_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    changes = {"train.device": "cuda", "train.cuda_graph": True}
    overrides = TINY | POLICIES[policy] | changes
    directory = stopped_at_130(tmp_path / "run", overrides, monkeypatch)
    resume(directory)
    last = rows(directory)[-1]
    assert int(last["env_step"]) == 200
    assert np.isfinite(float(last["eval/return"]))


def test_evaluation_frequency_does_not_change_training(tmp_path: Path) -> None:
    often = run(tmp_path / "a", evaluation__interval=20)
    rarely = run(tmp_path / "b", evaluation__interval=200)
    assert (often / "episodes.csv").read_bytes() == (rarely / "episodes.csv").read_bytes()
    assert rows(often)[-1]["loss/policy"] == rows(rarely)[-1]["loss/policy"]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "policy.kind": "gaussian",
            "train.normalize_obs": True,
            "train.tail_share": 0.1,
            "train.reward_scale": 2.0,
            "train.normalize_reward": True,
            "constraint.calibration_rate": 0.05,
        },
        {"env.num_envs": 3, "multiplier.kind": "scalar_pid", "train.updates_per_step": 0.4},
        {"policy.kind": "gaussian", "env.vector": "subprocess", "train.overlap": True},
    ],
    ids=["gaussian-normalised", "diffusion-vector-pid", "gaussian-overlapping"],
)
def test_resume_gives_the_same_bytes_as_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    task = {"env.id": "AnalyticCorridor-v0", "constraint.cost_limit": 2.0}
    overrides = TINY | task | changes
    whole = tmp_path / "whole"
    train(load_config([], overrides), whole)
    broken = stopped_at_130(tmp_path / "broken", overrides, monkeypatch)
    resume(broken)
    for name in ("metrics.csv", "episodes.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"policy.kind": "gaussian", "train.buffer_size": 80},
        {"env.num_envs": 3, "multiplier.kind": "scalar_pid", "train.updates_per_step": 0.4},
    ],
    ids=["overwriting-rows", "vector"],
)
def test_a_run_trained_on_is_the_longer_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    overrides = TINY | {"env.id": "AnalyticCorridor-v0", "constraint.cost_limit": 2.0} | changes
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(load_config([], overrides), whole)
    train(load_config([], overrides | {"train.total_steps": 100}), parts)
    resume(parts)
    assert "parts has taken all of its 100 steps; to train on, add --train.total_" in caplog.text
    caplog.clear()
    resume(parts, 200)
    assert "has taken all" not in caplog.text
    for name in ("metrics.csv", "episodes.csv", "config.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    ends = [CheckpointStore(run_dir).load()["agent"]["policy"] for run_dir in (whole, parts)]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"can only grow: .*parts has 200, got 150"):
        resume(parts, 150)


def test_an_edited_configuration_that_does_not_fit_is_named(tmp_path: Path) -> None:
    train(load_config([], TINY | POLICIES["gaussian"]), tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("hidden: [", "hidden: [7, "))
    with pytest.raises(CheckpointError, match=r"config.yaml does not fit .* edited"):
        resume(tmp_path / "run")


def test_a_length_that_cannot_be_written_down_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = TINY | POLICIES["gaussian"] | {"train.total_steps": 100}
    train(load_config([], overrides), tmp_path / "run")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("algd.training.trainer.replace_durably", full)
        with pytest.raises(CheckpointError, match=r"config\.yaml cannot be written: No space left"):
            resume(tmp_path / "run", 200)
    assert load_config([tmp_path / "run" / "config.yaml"]).train.total_steps == 100
    resume(tmp_path / "run", 200)  # the lock was let go
    assert int(rows(tmp_path / "run")[-1]["env_step"]) == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train.learning_starts": 200}, r"train.learning_starts \(200\) is not less than"),
        ({"train.updates_per_step": 0}, "train.updates_per_step is 0"),
        (
            {
                "train.updates_per_step": 0,
                "train.initial_updates_per_step": 1.0,
                "train.initial_steps": 39,
                "train.learning_starts": 40,
            },
            "train.updates_per_step is 0",
        ),
    ],
)
def test_a_run_that_never_updates_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], reason: str
) -> None:
    train(load_config([], TINY | {"evaluation.episodes": 1} | changes), tmp_path / "never")
    assert re.search(f"nothing will be learnt: {reason}", caplog.text)


def test_trained_on_after_rates_that_fell_a_run_says_that_it_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    falling = TINY | POLICIES["gaussian"] | {"train.final_learning_rate": 0.1}
    train(load_config([], falling | {"train.total_steps": 100}), tmp_path / "run")
    assert not caplog.text
    resume(tmp_path / "run", 150)
    assert "run will differ from a run of 150 steps from the start" in caplog.text


def test_an_interrupted_run_that_is_trained_on_keeps_its_new_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = TINY | POLICIES["gaussian"]
    train(load_config([], overrides | {"train.total_steps": 300}), tmp_path / "whole")
    directory = stopped_at_130(tmp_path / "run", overrides, monkeypatch)
    stopped_at(250, lambda: resume(directory, 300), monkeypatch)
    resume(directory)
    for name in ("metrics.csv", "episodes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (directory / name).read_bytes()


def stopped_at_130(
    directory: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Train until a stop is asked for in step 130."""
    stopped_at(130, lambda: train(load_config([], overrides), directory), monkeypatch)
    return directory


def stopped_at(step: int, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._earn_updates

    def stop(trainer: Trainer) -> None:
        original(trainer)
        if trainer.env_step >= step:
            trainer.stop.signal_number = 2

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_earn_updates", stop)
        with pytest.raises(Interrupted, match=f"stopped at step {step // 10}"):
            work()


@pytest.mark.parametrize("policy", ["gaussian", "ve"])
def test_a_run_saved_on_another_kind_of_device_goes_on_with_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    policy: str,
) -> None:
    """The checkpoint is given what a CUDA device leaves: short generators, capturable Adam."""
    directory = stopped_at_130(tmp_path / "run", TINY | POLICIES[policy], monkeypatch)
    load, loaded = CheckpointStore.load, []

    def load_of_gpu(store: CheckpointStore, path: Path | None = None) -> Any:
        state = load(store, path)
        state["sampling"] = state["agent"]["generator"] = torch.zeros(16, dtype=torch.uint8)
        for group in state["agent"]["critics"]["optimizer"]["param_groups"]:
            group["capturable"] = True
        loaded.append(state)
        return state

    def run_on_a_cpu(trainer: Trainer) -> None:
        (group,) = trainer.agent.critics.optimizer.param_groups
        assert group["capturable"] is False
        original(trainer)

    original = Trainer.run
    monkeypatch.setattr(CheckpointStore, "load", load_of_gpu)
    monkeypatch.setattr(Trainer, "run", run_on_a_cpu)
    resume(directory)
    assert loaded
    assert "saved on another kind of device; it goes on here (cpu)" in caplog.text
    assert int(rows(directory)[-1]["env_step"]) == 200


def test_updates_overlap_the_steps_of_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for cls, name in ((SubprocessVectorEnv, "start"), (SubprocessVectorEnv, "finish")):
        original = getattr(cls, name)

        def call(env: object, *words: object, _name: str = name, _original: Any = original) -> Any:
            order.append(_name)
            return _original(env, *words)

        monkeypatch.setattr(cls, name, call)
    sample = ReplayBuffer.sample

    def sampled(replay: ReplayBuffer, *words: Any) -> Any:
        order.append(f"update of {len(replay)} rows")
        return sample(replay, *words)

    monkeypatch.setattr(ReplayBuffer, "sample", sampled)
    changes = {"env__vector": "subprocess", "train__overlap": True}
    last = rows(run(tmp_path / "run", policy__kind="gaussian", **changes))[-1]
    begin = order.index("update of 50 rows")
    # The rows that an update may use are those before the step under way.
    assert order[begin - 1 : begin + 5] == [
        "start", "update of 50 rows", "finish", "start", "update of 51 rows", "finish"
    ]  # fmt: skip
    assert order[-1] == "update of 200 rows"  # the last one waits for no step
    assert float(last["train/num_updates"]) == 151
    assert len([word for word in order if word.startswith("update")]) == 151


def test_only_worker_processes_step_meanwhile() -> None:
    with pytest.raises(ConfigError, match=r"train.overlap needs env.vector: subprocess, got sync"):
        load_config([], {"train.overlap": True})


def test_the_agents_rewards_have_the_scale_that_was_asked_for(tmp_path: Path) -> None:
    overrides = TINY | {"train.normalize_reward": True, "train.reward_scale": 3.0}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = load_config([], overrides)
    replace_durably(run_dir / "config.yaml", dump_yaml(config).encode())
    trainer = Trainer(config, run_dir)
    trainer.run()
    # Episodes of this task have one step: its returns are its rewards.
    lines = (run_dir / "episodes.csv").read_text().splitlines()
    rewards = np.array([float(row["return"]) for row in csv.DictReader(lines)])
    assert trainer.reward_scale == pytest.approx(3.0 / np.std(rewards), rel=1e-6)
    raw = trainer.sample_batch().reward.numpy() / trainer.reward_scale
    assert np.abs(raw[:, None] - rewards).min(1).max() < 1e-6
    assert algd.load(run_dir).reward_scale == trainer.reward_scale
    assert float(rows(run_dir)[-1]["train/reward_scale"]) == trainer.reward_scale


@pytest.mark.parametrize(
    ("env_id", "ends"), [("AnalyticBandit2-v0", "terminated"), ("AnalyticFinite-v0", "truncated")]
)
def test_replay_remembers_terminations_and_no_time_limits(
    tmp_path: Path, env_id: str, ends: str
) -> None:
    """One ends each of its steps, the other each episode by its time limit alone."""
    config = load_config([], TINY | {"env.id": env_id, "train.total_steps": 150})
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    trainer = Trainer(config, run_dir)
    trainer.run()
    assert trainer.recent_episodes  # some came to their end
    terminated = trainer.replay.unpack(trainer.replay.table)[5][:150]
    assert terminated.tolist() == [float(ends == "terminated")] * 150


COUNTING = {"env.id": "environments.faulty_envs:Counting-v0", "policy.kind": "gaussian"}


def counting_trainer(tmp_path: Path, **changes: object) -> Trainer:
    """Train on episodes of five steps that pay 1 and cost 0.5 a step; observations count steps."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = load_config([], TINY | COUNTING | dotted)
    replace_durably(run_dir / "config.yaml", dump_yaml(config).encode())
    trainer = Trainer(config, run_dir)
    trainer.run()
    return trainer


def test_a_time_limit_bootstraps_from_the_state_that_it_cut_off(tmp_path: Path) -> None:
    trainer = counting_trainer(tmp_path)
    obs, _, _, _, next_obs, _ = trainer.replay.unpack(trainer.replay.table[:200])
    assert set(obs[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.equal(next_obs[:, 0], obs[:, 0] + 1.0)  # 5 at the limit, not 0 of the next episode


def test_a_batch_holds_both_observations_normalised(tmp_path: Path) -> None:
    trainer = counting_trainer(tmp_path, train__normalize_obs=True)
    state = trainer.sampling.get_state()
    raw = trainer.replay.sample(16, trainer.sampling)
    trainer.sampling.set_state(state)
    batch = trainer.sample_batch()
    for name in ("obs", "next_obs"):
        expected = trainer.normalizer.normalize(getattr(raw, name).numpy())
        np.testing.assert_allclose(getattr(batch, name).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(batch.obs, batch.next_obs)


def test_agents_hear_the_cost_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[float] = []
    monkeypatch.setattr(SACAgent, "observe_episode_cost", lambda _, cost: heard.append(cost))
    counting_trainer(tmp_path)
    assert heard == [2.5] * 40  # their returns are 5


def test_every_environment_earns_updates(tmp_path: Path) -> None:
    """From step 51 on, three steps at a time; the first 60 of all steps at a third of the pace."""
    pace = {"train__updates_per_step": 1.0, "train__total_steps": 90}
    alone = counting_trainer(tmp_path, env__num_envs=3, train__learning_starts=51, **pace)
    assert alone.num_updates == 3 * 14  # 51, 54, ..., 90
    (tmp_path / "slow").mkdir()
    first = {"train__initial_updates_per_step": 1 / 3, "train__initial_steps": 60}
    slow = counting_trainer(
        tmp_path / "slow", env__num_envs=3, train__learning_starts=51, **pace, **first
    )
    assert slow.num_updates == 4 + 3 * 10  # one at each of 51, 54, 57 and 60


def test_a_cost_at_the_limit_is_within_it(tmp_path: Path) -> None:
    """Episodes cost 2.5."""
    env = make_env("environments.faulty_envs:Counting-v0")
    trainer = counting_trainer(tmp_path, constraint__cost_limit=2.5)
    result = evaluate_policy(
        trainer.agent, trainer.normalizer, env, episodes=3, mode="deterministic", seed=0
    )
    assert (result.costs, result.returns, result.lengths) == ((2.5,) * 3, (5.0,) * 3, (5,) * 3)
    assert result.metrics(2.5)["eval/violation_rate"] == 0.0
    assert result.metrics(2.4)["eval/violation_rate"] == 1.0


def test_one_row_a_batch_is_enough(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", train__batch_size=1, train__total_steps=100)
    assert float(rows(directory)[-1]["train/multiplier_std"]) == 0.0


def test_a_replay_holds_a_step_of_all_environments(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", env__num_envs=300)  # more than the 200 steps asked for
    assert int(rows(directory)[-1]["env_step"]) == 300
    with pytest.raises(ConfigError, match=r"must hold a step of all env.num_envs \(4\), got 3"):
        run(tmp_path / "other", env__num_envs=4, train__buffer_size=3)
    assert not (tmp_path / "other").exists()


def test_loaded_policy_acts_in_the_box_of_the_environment(tmp_path: Path) -> None:
    policy = algd.load(run(tmp_path / "run", train__normalize_obs=True))
    env = make_env("AnalyticBandit2-v0")
    obs, _ = env.reset(seed=0)
    action = policy.act(obs)
    assert action.shape == (2,)
    assert np.all(np.abs(action) <= 1)
    assert np.array_equal(action, policy.act(obs))
    assert policy.act(np.stack([obs, obs]), deterministic=False).shape == (2, 2)
    with pytest.raises(ValueError, match=r"obs must have shape \(1,\) or \(N, 1\), got \(3,\)"):
        policy.act(np.zeros(3))


def test_unknown_environment_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AnalyticBandit2-v0"):
        run(tmp_path / "run", env__id="AnalyticBandt2-v0")
    assert not (tmp_path / "run").exists()


def test_directory_of_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run"):
        run(tmp_path / "run")


class BreaksAtStep(gymnasium.Env):
    """Returns a NaN reward in its 120th step; ``make_env`` takes the first to see the cost."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    steps = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float("nan") if self.steps == 120 else 0.0
        return np.zeros(2, np.float32), reward, False, False, {"cost": 0.0}


def test_nan_reward_stops_with_step_and_environment_and_keeps_a_checkpoint(tmp_path: Path) -> None:
    gymnasium.register("BreaksAtStep-v0", BreaksAtStep, max_episode_steps=30)
    directory = tmp_path / "run"
    with pytest.raises(
        EnvironmentFault, match=r"reward is nan at step 29 .*stopped at step 118, checkpoint"
    ):
        run(directory, env__id="BreaksAtStep-v0", evaluation__interval=200)
    assert algd.load(directory).env_step == 118
