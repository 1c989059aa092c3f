"""The lab on tiny runs: numbers against direct computation, files, errors."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alam.cvpo import CVPOAgent
from algd.analysis.agent_energy import AgentEnergy
from algd.analysis.calibration import relative_l1
from algd.analysis.finite_solution import solve_statewise
from algd.environments.analytic_finite import FiniteTask
from algd.environments.make import make_env
from algd.experiments.cli import main
from algd.experiments.config import load_config
from algd.experiments.figure_style import new_figure
from algd.experiments.lab import run_lab
from algd.experiments.lab_arena import arena_observations, arena_position, read_arena
from algd.experiments.lab_calibration import _operating_curve
from algd.experiments.lab_denoising import noised_score
from algd.experiments.lab_exact import compare_with_exact
from algd.experiments.lab_landscape import _energy_lines
from algd.experiments.lab_rollouts import policy_rollouts, random_rollouts
from algd.experiments.lab_states import (
    ModeCount,
    choose_states,
    count_modes,
    embed,
    view_state,
)
from algd.training.load import LoadedPolicy, load
from algd.training.trainer import train

TINY = {
    "env.num_envs": 4,
    "train.total_steps": 160,
    "train.learning_starts": 80,
    "train.updates_per_step": 0.25,
    "train.batch_size": 32,
    "train.log_interval": 16,
    "train.reward_scale": 5.0,
    "train.normalize_obs": True,
    "critics.hidden": [16],
    "critics.num_cost_critics": 2,
    "policy.hidden": [16],
    "evaluation.interval": 160,
    "evaluation.episodes": 2,
    "evaluation.video": False,
    "tracking.wandb": "disabled",
    "tracking.progress": False,
}
DIFFUSION = {"policy.schedule.num_train_timesteps": 3, "multiplier.hidden": [16]}
BANDIT = {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.5}


def make_run(folder: Path, preset: str, overrides: dict[str, object]) -> Path:
    extra = DIFFUSION if preset == "algd" else {}
    train(load_config([preset], TINY | extra | overrides), folder)
    return folder


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("lab") / "bandit", "algd", BANDIT)


@pytest.fixture(scope="module")
def bandit(bandit_run: Path) -> LoadedPolicy:
    return load(bandit_run)


def test_lab_writes_every_figure_and_the_table(bandit_run: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = run_lab(bandit_run, tmp_path, steps=60, say=lines.append)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        "energy.png",
        "modes.png",
        "denoising.png",
        "score.png",
        "multiplier.png",
        "calibration.png",
    }
    assert {path.name for path in report.figures} == names
    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["measurement"] for row in rows] == [row.name for row in report.table]
    np.testing.assert_allclose(
        [float(row["value"]) for row in rows], [row.value for row in report.table]
    )
    assert any("exact: multiplier, relative L1" in line for line in lines)
    assert not (bandit_run / "lab").exists()


@pytest.mark.parametrize(
    ("preset", "overrides", "figure"),
    [
        ("sac_alam", {"env.id": "AnalyticCorridor-v0", "constraint.cost_limit": 0.5}, "episodes"),
        (
            "algd",
            {
                "env.id": "AnalyticFinite-v0",
                "constraint.cost_limit": 12.5,
                "critics.cost_discount": 0.0,
                "critics.discount": 0.9,
                "multiplier.kind": "statewise_alam",
            },
            "multiplier",
        ),
        ("algd", {"env.id": "AnalyticIslands2-v0", "constraint.cost_limit": 0.05}, "score"),
        ("sac_lag", {"env.id": "AnalyticBandit4-v0", "constraint.cost_limit": 0.5}, "energy"),
        ("cvpo", {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.5}, "modes"),
    ],
)
def test_lab_runs_on_other_tasks_from_the_command_line(
    preset: str, overrides: dict[str, object], figure: str, tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run", preset, overrides)
    assert main(["lab", str(run_dir), "--steps", "60"]) == 0
    assert (run_dir / "lab" / f"{figure}.png").stat().st_size > 5_000
    # Only a denoising chain has paths to draw.
    assert (run_dir / "lab" / "denoising.png").exists() == (preset == "algd")


def test_a_folder_without_a_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds no run" in error


def test_energies_are_in_reward_and_differ_by_the_penalty(bandit: LoadedPolicy) -> None:
    probe = AgentEnergy(bandit)
    agent = probe.agent
    obs = np.array([0.3], dtype=np.float32)
    actions = np.linspace(-1, 1, 7)[:, None]
    rows, points = probe.tensor(np.tile(obs, (7, 1))), torch.tensor(actions, dtype=torch.float32)
    with torch.no_grad():
        q_reward = agent.critics.q_reward(rows, points).numpy() / 5.0
        violation = (agent.critics.q_cost(rows, points).numpy() - 0.5) / 0.5
        price = agent.multiplier(rows).numpy() / 5.0
    plain = price * violation - q_reward
    rho = bandit.config.constraint.penalty_coef / 5.0
    hinge = np.maximum(price + rho * violation, 0.0)
    augmented = (hinge**2 - price**2) / (2.0 * rho) - q_reward
    np.testing.assert_allclose(probe.energy(obs, actions, "augmented"), augmented, rtol=1e-4)
    np.testing.assert_allclose(probe.energy(obs, actions, "plain"), plain, rtol=1e-4)
    assert probe.penalty_coef == pytest.approx(rho / 0.5**2)
    np.testing.assert_allclose(probe.multiplier(obs[None]), price[:1] / 0.5, rtol=1e-5)


def test_trajectories_end_on_the_samples_of_the_policy(bandit: LoadedPolicy) -> None:
    probe, obs = AgentEnergy(bandit), np.array([0.3], dtype=np.float32)
    paths = probe.trajectories(obs, 50, seed=3)
    assert paths.shape == (4, 50, 1)
    np.testing.assert_allclose(paths[-1], probe.samples(obs, 50, seed=3), atol=1e-6)


def test_rollouts_know_the_cost_to_go(bandit: LoadedPolicy) -> None:
    rollouts = policy_rollouts(bandit, steps=30, seed=0)
    # Episodes of a single terminated step: the cost to go is the cost.
    np.testing.assert_allclose(rollouts.observed, rollouts.costs)
    assert rollouts.complete.all()
    assert rollouts.positions is None
    np.testing.assert_allclose(rollouts.episode_costs, rollouts.costs)
    uniform = random_rollouts(bandit, steps=200, seed=0)
    assert abs(uniform.actions.mean()) < 0.15
    assert uniform.actions.std() == pytest.approx(3**-0.5, abs=0.06)


def test_the_exact_comparison_is_at_the_agents_own_temperature(bandit: LoadedPolicy) -> None:
    exact = compare_with_exact(bandit, AgentEnergy(bandit))
    assert exact is not None
    # A cold law would solve the hard problem, lambda*(0.5) = 2 (0.5 - 0.15) = 0.7.
    near = np.abs(exact.tables.obs[:, 0] - 0.5).argmin()
    assert 0.3 < exact.answer.multiplier[near] < 2.0
    assert 0.0 <= exact.total_variation <= 1.0


def test_the_exact_answer_is_posed_with_the_threshold_that_the_agent_has(
    bandit: LoadedPolicy,
) -> None:
    nominal = compare_with_exact(bandit, AgentEnergy(bandit))
    bandit.agent.constraint.threshold.fill_(0.25)
    try:
        moved = compare_with_exact(bandit, AgentEnergy(bandit))
    finally:
        bandit.agent.constraint.threshold.fill_(0.5)
    assert nominal is not None
    assert moved is not None
    np.testing.assert_allclose(moved.tables.excess, nominal.tables.excess + 0.25, atol=1e-7)
    assert moved.answer.multiplier.mean() > 1.5 * nominal.answer.multiplier.mean()
    assert moved.excess == pytest.approx(nominal.excess)  # over the limit, which has not moved


def test_a_batch_hinge_has_the_energy_of_its_fixed_point(
    bandit: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, obs = AgentEnergy(bandit), np.array([0.5], dtype=np.float32)
    actions = np.linspace(-1.0, 1.0, 21)[:, None]
    plain = probe.energy(obs, actions, "plain")
    assert not np.allclose(probe.energy(obs, actions), plain)
    batch = replace(bandit.agent.constraint.config, hinge="batch")
    monkeypatch.setattr(bandit.agent.constraint, "config", batch)
    np.testing.assert_array_equal(probe.energy(obs, actions), plain)


def test_states_are_chosen_from_low_to_high_multiplier() -> None:
    obs = np.arange(101, dtype=np.float32)[:, None]
    assert choose_states(obs, -obs[:, 0].astype(np.float64))[:, 0].tolist() == [90.0, 50.0, 5.0]


def test_slices_hold_the_other_entries_at_the_mode() -> None:
    actions = embed(np.array([[0.1, 0.2]]), np.array([9.0, 8.0, 7.0]))
    assert actions.tolist() == [[0.1, 0.2, 7.0]]


def test_operating_curve_of_known_scores() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    labels = np.array([True, True, False, False])
    false_rate, true_rate = _operating_curve(scores, labels)
    assert false_rate.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert true_rate.tolist() == [0.0, 0.5, 1.0, 1.0]


def test_the_robot_put_somewhere_sees_that_place_and_is_put_back() -> None:
    env = make_env("SafetyPointGoal1-v0")
    try:
        obs, _ = env.reset(seed=3)
        before = arena_position(env)
        arena = read_arena(env)
        assert arena is not None
        hazards = [thing for thing in arena.objects if thing.name == "hazards"]
        assert len(hazards) == 8
        assert {thing.radius for thing in hazards} == {0.2}
        places = np.array([before, hazards[0].centre])
        seen = arena_observations(env, places, np.array([0.0]))
        assert seen is not None
        # Where the robot stands it sees what it saw, up to the speed and acceleration of its fall.
        np.testing.assert_allclose(seen[0, 0, 12:], obs[12:], atol=1e-4)
        # On a hazard, the nearest thing of the hazards' lidar is as near as can be.
        lidar = slice(28, 44)
        assert seen[1, 0, lidar].max() > 0.98 > seen[0, 0, lidar].max()
        assert arena_position(env) == pytest.approx(before, abs=1e-9)
    finally:
        env.close()


def test_other_environments_have_no_arena() -> None:
    env = make_env("AnalyticCorridor-v0")
    assert read_arena(env) is None
    assert arena_observations(env, np.zeros((1, 2)), np.zeros(1)) is None
    assert np.isnan(arena_position(env)).all()
    env.close()


def test_the_law_of_cvpo_is_its_old_policy_reweighed(tmp_path: Path) -> None:
    run_dir = make_run(
        tmp_path / "run", "cvpo", {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.5}
    )
    probe = AgentEnergy(load(run_dir))
    agent = probe.agent
    assert isinstance(agent, CVPOAgent)
    obs, grid = np.array([0.4], dtype=np.float32), np.linspace(-0.999, 0.999, 4001)
    energies = [probe.energy(obs, grid[:, None], form) for form in ("own", "plain")]
    law, tilt = (np.exp((low.min() - low) / probe.temperature) for low in energies)
    # By drawing from the old policy instead of evaluating its density.
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = agent.old_policy.sample(probe.tensor(obs[None]).expand(200_000, -1), noise)[0]
    weight = np.interp(drawn.numpy()[:, 0], grid, tilt)
    mean = (weight * drawn.numpy()[:, 0]).sum() / weight.sum()
    assert np.trapezoid(law * grid, grid) / np.trapezoid(law, grid) == pytest.approx(mean, abs=5e-3)


def test_modes_are_counted_over_visited_states(
    bandit: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = AgentEnergy(bandit)
    obs = np.linspace(-1.0, 1.0, 300, dtype=np.float32)[:, None]

    def two_wells(row: np.ndarray, actions: np.ndarray) -> np.ndarray:
        barrier = 20.0 * probe.temperature * (row[0] > 0)
        return -barrier * np.abs(actions[:, 0])

    monkeypatch.setattr(probe, "energy", two_wells)
    right = np.full((1_000, 1), 0.9)
    monkeypatch.setattr(probe, "samples", lambda row, count, seed: right[:count])
    count = count_modes(probe, obs)
    assert count == ModeCount(100, pytest.approx(0.5), 0.5)
    assert np.isnan(count_modes(probe, obs[:100]).reached)


class NarrowLaw:
    """In place of an ``AgentEnergy``: clean latents are normal, independent, of one width."""

    action_dim, temperature = 2, 0.5
    alphas = np.array([0.9, 0.9, 0.9])
    sigmas = np.array([0.05, 0.0999, 0.5])

    def __init__(self, width: float) -> None:
        self.width = width

    def energy(self, obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        latent = np.arctanh(np.clip(actions, -1 + 1e-12, 1 - 1e-12))
        log_density = -0.5 * np.square(latent / self.width) - np.log1p(-np.square(actions))
        return -self.temperature * log_density.sum(-1)


@pytest.mark.parametrize("width", [0.07, 0.15, 0.5])
def test_the_noised_score_of_a_narrow_law_is_exact_at_every_level(
    bandit: LoadedPolicy, width: float
) -> None:
    law: Any = NarrowLaw(width)
    view = view_state(AgentEnergy(bandit), np.array([0.5], dtype=np.float32))
    line = np.linspace(-0.3, 0.3, 5)
    latent = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    for level, (alpha, sigma) in enumerate(zip(law.alphas, law.sigmas, strict=True)):
        exact = -latent / (alpha**2 * width**2 + sigma**2)
        found = noised_score(law, view, latent, level)
        assert found is not None
        np.testing.assert_allclose(found, exact, rtol=0.01, atol=0.01)


def test_a_multiplier_that_is_fixed_has_no_constrained_optimum_to_reach(tmp_path: Path) -> None:
    overrides = {"env.id": "AnalyticBandit1-v0", "constraint.cost_limit": 0.1}
    loaded = load(make_run(tmp_path / "run", "sac", overrides))
    assert compare_with_exact(loaded, AgentEnergy(loaded)) is None


def test_where_no_exact_multiplier_is_active_its_relative_error_is_unknown(tmp_path: Path) -> None:
    """With a limit that nobody reaches, solvers leave 1e-8 of a multiplier; 5 % of that is none."""
    overrides = {"env.id": "AnalyticIslands1-v0", "constraint.cost_limit": 5.0}
    loaded = load(make_run(tmp_path / "run", "sac_alam", overrides))
    exact = compare_with_exact(loaded, AgentEnergy(loaded))
    assert exact is not None
    assert exact.answer.multiplier.max() < 1e-6
    assert math.isnan(exact.relative_l1)


def test_an_exact_energy_is_drawn_where_it_is_known(tmp_path: Path) -> None:
    loaded = load(make_run(tmp_path / "run", "sac_alam", {"env.id": "AnalyticBandit1-v0"}))
    view = view_state(AgentEnergy(loaded), np.zeros(1, np.float32))
    energy = np.square(view.grid[0])
    energy[-5:] = np.nan
    _, axes = new_figure(3.0, 2.0)
    _energy_lines(axes[0, 0], view, energy)
    drawn = {line.get_label(): line.get_ydata() for line in axes[0, 0].get_lines()}
    exact = drawn["exact, in the agent's own form"]
    assert np.isnan(exact).sum() == 5
    assert np.nanmin(exact) == 0.0


def test_the_finite_task_of_another_length_has_the_limit_of_its_steps(tmp_path: Path) -> None:
    overrides = {
        "env.id": "AnalyticFinite-v0",
        "env.max_episode_steps": 25,
        "constraint.cost_limit": 6.25,
        "critics.cost_discount": 0.0,
    }
    loaded = load(make_run(tmp_path / "run", "sac_alam", overrides))
    probe = AgentEnergy(loaded)
    exact = compare_with_exact(loaded, probe)
    assert exact is not None
    assert exact.tables.horizon == 25
    # Per step the limit is 0.25, as by default: so is the multiplier of the hard problem.
    hard = solve_statewise(FiniteTask(), discount=0.99).multiplier
    active = hard > 0.05 * hard.max()
    expected = relative_l1(probe.multiplier(exact.tables.obs), hard, where=active)
    assert exact.hard_l1 == pytest.approx(expected)


def test_the_policy_of_a_lab_is_in_its_table_and_folder(bandit_run: Path) -> None:
    for policy, folder in (("latest", "lab"), ("best_safe", "lab_best_safe")):
        if not (bandit_run / "policies" / policy).is_dir():
            continue
        run_lab(bandit_run, policy=policy, steps=1, say=lambda _: None)
        rows = list(csv.DictReader((bandit_run / folder / "table.csv").read_text().splitlines()))
        assert rows[0]["measurement"] == "environment step"
        assert rows[0]["unit"] == f"{policy} policy"
