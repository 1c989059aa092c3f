"""Numbers that explode, vanish or never move: stopped with a name, or lived with; never saved."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.tiny_runs import run, saved_steps

from alam.multiplier import MULTIPLIERS
from algd.errors import DivergenceError, EnvironmentFault
from algd.training.checkpoint import CheckpointStore
from algd.training.metric_window import BoundWatch, first_not_finite
from algd.training.stopping import Interrupted
from algd.training.trainer import Trainer

EXTREME = "faults.extreme_envs:Extreme-v0"
DIFFUSION = {
    "policy__kind": "diffusion",
    "policy__schedule": {"kind": "ve", "num_train_timesteps": 3},
}


def rows(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def assert_finite(run_dir: Path) -> None:
    assert all(math.isfinite(value) for row in rows(run_dir) for value in row.values())
    assert first_not_finite(CheckpointStore(run_dir).load()["agent"]) is None


# ---- gradients, losses, weights, multipliers


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"env__kwargs": {"reward": 1e30}}, "loss/reward_critic"),
        ({"critics__learning_rate": 1e30}, "loss/policy"),
    ],
    ids=["rewards", "learning-rate"],
)
def test_training_stops_at_the_first_row_that_is_not_finite_and_names_it(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(DivergenceError) as found:
        run(tmp_path / "run", env__id=EXTREME, **changes)
    message = str(found.value)
    assert named in message.partition(" not finite at step ")[0]
    assert "not finite at step 6" in message or "not finite at step 7" in message
    assert message.endswith("; the newest checkpoint is of step 30")
    assert saved_steps(tmp_path / "run") == [30]
    assert_finite(tmp_path / "run")


def break_at(step_number: int, path: str, monkeypatch: pytest.MonkeyPatch, stop: bool) -> None:
    """Set one number of the agent to NaN, as a gradient that is NaN would, and maybe stop."""
    step = Trainer._earn_updates

    def breaking(trainer: Trainer) -> None:
        step(trainer)
        if trainer.env_step == step_number:
            named = dict(getattr(trainer.agent, path).named_parameters())
            with torch.no_grad():
                next(iter(named.values())).view(-1)[0] = float("nan")
            trainer.stop.signal_number = 15 if stop else None

    monkeypatch.setattr(Trainer, "_earn_updates", breaking)


@pytest.mark.parametrize("part", ["policy", "multiplier", "critics"])
def test_a_nan_anywhere_in_the_agent_is_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    break_at(82, part, monkeypatch, stop=True)
    kind = {"multiplier__kind": "statewise_alam"}
    with pytest.raises(DivergenceError, match=rf"{part}/.* not finite at step 82 .* of step 60$"):
        run(tmp_path / "run", **kind)
    assert saved_steps(tmp_path / "run") == [30, 60]
    assert_finite(tmp_path / "run")


def test_a_gradient_that_overflows_in_the_optimiser_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam divides by the root of an infinity: all losses stay finite, and no step is taken."""
    step = Trainer._earn_updates

    def overflowing(trainer: Trainer) -> None:
        step(trainer)
        if trainer.env_step == 82:
            moments = next(iter(trainer.agent.critics.optimizer.state.values()))
            moments["exp_avg_sq"].fill_(float("inf"))

    monkeypatch.setattr(Trainer, "_earn_updates", overflowing)
    with pytest.raises(
        DivergenceError, match=r"^critics/optimizer/state/0/exp_avg_sq not finite at step 90 "
    ):
        run(tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [30, 60]


def test_an_agent_that_acts_nan_is_reported_with_the_state_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(82, "policy", monkeypatch, stop=False)
    with pytest.raises(
        EnvironmentFault,
        match=r"agent's action is \[nan.* stopped at step 82, not saved \(.* not finite",
    ):
        run(tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [30, 60]


def test_first_not_finite_names_the_path() -> None:
    tree = {"a": [torch.ones(2), {"b": torch.tensor([1.0, -float("inf")])}], "n": torch.tensor(3)}
    assert first_not_finite(tree) == "a/1/b"
    assert first_not_finite({"a": torch.ones(1), "b": 3, "c": None}) is None
    assert first_not_finite({}) is None


# ---- infeasible tasks


@pytest.mark.parametrize("kind", [k for k in MULTIPLIERS if k != "fixed"])
def test_an_infeasible_task_keeps_the_multiplier_at_its_bound_and_says_so(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    gains = {
        "scalar_dual": {"multiplier__learning_rate": 1.0},
        "scalar_pid": {"multiplier__integral_gain": 1.0, "multiplier__interval": 1},
        "scalar_adrc": {"multiplier__interval": 1, "multiplier__input_gain": -1e-4},
        "statewise_dual": {"multiplier__learning_rate": 0.1},
        "statewise_alam": {"multiplier__learning_rate": 0.1},
    }[kind]
    directory = run(
        tmp_path / "run",
        env__id=EXTREME,
        constraint__cost_limit=0.1,  # the cost is 10 in every episode
        critics__learning_rate=0.01,
        multiplier__kind=kind,
        multiplier__multiplier_max=0.5,
        train__log_interval=5,
        train__total_steps=320,
        **gains,
    )
    assert_finite(directory)
    last = rows(directory)[-1]
    assert last["train/multiplier_at_bound"] > 0.99
    assert 0.99 * 0.5 <= last["train/multiplier"] <= 0.5 * (1 + 1e-6)
    said = [m for m in caplog.messages if "the task may be infeasible" in m]
    assert len(said) == 1
    assert "multiplier.multiplier_max = 0.5" in said[0]
    assert "constraint.cost_limit = 0.1" in said[0]


@pytest.mark.slow
@pytest.mark.timeout(14400)  # minutes on an idle machine
def test_a_hundred_thousand_updates_on_an_infeasible_task_stay_finite(tmp_path: Path) -> None:
    directory = run(
        tmp_path / "run",
        env__id=EXTREME,
        constraint__cost_limit=0.1,
        train__total_steps=100_000,
        train__log_interval=1_000,
        train__checkpoint_interval=50_000,
        evaluation__interval=50_000,
    )
    assert_finite(directory)
    assert rows(directory)[-1]["train/multiplier_at_bound"] > 0.99


def test_a_visit_at_the_bound_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    watch = BoundWatch(multiplier_max=1.0, cost_limit=1.0)
    for row in range(40):
        watch.observe(row, {"train/multiplier_at_bound": 0.0 if row % 10 == 9 else 1.0})
    assert caplog.messages == []


# ---- the edges of a task


@pytest.mark.parametrize("policy", [{}, DIFFUSION], ids=["gaussian", "diffusion"])
@pytest.mark.parametrize(
    "changes",
    [
        {"constraint__cost_limit": 0.0},
        {"constraint__cost_limit": 0.0, "env__kwargs": {"cost": 0.0}},
        {"train__normalize_obs": True},  # observations of variance 0
        {"train__normalize_obs": True, "train__tail_share": 0.1, "env__kwargs": {"obs": 1e18}},
        {"env__kwargs": {"bound": 1e-300}},
        {"env__kwargs": {"bound": 8e307}},
        {"env__kwargs": {"length": 1}},
        {"env__max_episode_steps": 1},
    ],
    ids=[
        *("limit-0", "limit-0-cost-0", "constant-obs", "large-obs", "tiny-bounds", "huge-bounds"),
        *("terminates-at-once", "truncated-at-once"),
    ],
)
def test_the_edges_of_a_task_train_to_the_end_with_finite_numbers(
    tmp_path: Path, changes: dict[str, Any], policy: dict[str, Any]
) -> None:
    changes = {"env__id": EXTREME, "train__learning_starts": 100, **policy, **changes}
    assert_finite(run(tmp_path / "run", **changes))


@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_a_cost_limit_of_0_suits_every_multiplier(tmp_path: Path, kind: str) -> None:
    signal = {} if kind == "fixed" else {"multiplier__signal": "policy"}
    assert_finite(
        run(
            tmp_path / "run",
            env__id=EXTREME,
            constraint__cost_limit=0.0,
            multiplier__kind=kind,
            train__learning_starts=100,
            **signal,
        )
    )


def test_a_stop_with_finite_numbers_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._earn_updates

    def stop_at_82(trainer: Trainer) -> None:
        step(trainer)
        if trainer.env_step == 82:
            trainer.stop.signal_number = 15

    monkeypatch.setattr(Trainer, "_earn_updates", stop_at_82)
    with pytest.raises(Interrupted):
        run(tmp_path / "run")
    assert saved_steps(tmp_path / "run") == [60, 82]
