"""What W&B shows besides numbers: pictures, histograms, tables of episodes, models with lineage."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from algd.experiments.cli import main
from algd.experiments.config import TrainedAgent, load_config, make_agent
from algd.experiments.run_data import read_runs
from algd.training import media, pictures
from algd.training.pictures import draw_pictures, landscape, multipliers, principal_plane
from algd.training.tracking import Tracker, TrackingConfig
from algd.training.trainer import train
from algd.training.wandb_file import offline_records, offline_rows
from algd.training.wandb_run import WandbRun

SMALL = {"policy.hidden": [16], "critics.hidden": [16]}


def agent_of(preset: str, obs_dim: int = 3, action_dim: int = 2, **keys: Any) -> TrainedAgent:
    overrides = SMALL | {name.replace("__", "."): value for name, value in keys.items()}
    return make_agent(load_config([preset], overrides), obs_dim, action_dim, 100, "cpu")


def observations(obs_dim: int = 3) -> torch.Tensor:
    return torch.randn(64, obs_dim, generator=torch.Generator().manual_seed(0))


# ---- pictures


@pytest.mark.parametrize("action_dim", [1, 2, 4])
def test_a_landscape_is_the_energy_on_a_slice_through_the_deterministic_action(
    action_dim: int,
) -> None:
    agent = agent_of("sac_alam", action_dim=action_dim)
    obs = observations()
    view = landscape(agent, obs, reward_scale=20.0)
    prices = np.sort(multipliers(agent, obs, reward_scale=20.0))
    assert np.array_equal(view.multiplier, prices[[6, 32, 60]])
    assert np.array_equal(view.energy.reshape(3, -1).min(1), np.zeros(3))
    # two points of the slice of the second state, by hand
    index = int(np.argsort(multipliers(agent, obs, reward_scale=20.0), kind="stable")[32])
    first = torch.tensor(view.mode[1], dtype=torch.float32)
    second = first.clone()
    places = (3, 20), (25, 7)
    for action, place in zip((first, second), places, strict=True):
        for entry in range(min(action_dim, 2)):
            action[entry] = float(view.line[place[entry]])
    values = agent.evaluate(obs[index][None], torch.stack([first, second])[:, None])[0][:, 0]
    where = [place[: min(action_dim, 2)] for place in places]
    shown = view.energy[1][where[0]] - view.energy[1][where[1]]
    assert shown == pytest.approx(float((values[0] - values[1]).detach()) / 20.0, abs=1e-6)


def test_multipliers_are_in_reward_per_cost() -> None:
    agent = agent_of("sac_lag")
    agent.multiplier.value.fill_(3.0)
    unit = float(agent.constraint.unit)
    assert unit == pytest.approx(25.0 * (1 - 0.99**100) / (0.01 * 100))
    got = multipliers(agent, observations(), reward_scale=20.0)
    assert got == pytest.approx(np.full(64, 3.0 / (20.0 * unit)))


def test_the_map_spans_the_two_widest_directions() -> None:
    rng = np.random.default_rng(0)
    wide, middle = rng.normal(size=(2, 200)) * [[9.0], [3.0]]
    narrow = 0.01 * rng.normal(size=200)
    plane = principal_plane(np.stack([narrow, wide, narrow[::-1], middle], axis=1) + 7.0)
    assert np.abs(np.corrcoef(plane[:, 0], wide)[0, 1]) > 0.999
    assert np.abs(np.corrcoef(plane[:, 1], middle)[0, 1]) > 0.99
    assert plane[:, 0] @ (wide - wide.mean()) > 0  # the largest entry of a direction is positive


@pytest.mark.parametrize(
    ("preset", "obs_dim", "action_dim"), [("algd", 3, 2), ("sac_lag", 1, 1), ("cvpo", 5, 3)]
)
def test_pictures_are_rgb_and_show_something(preset: str, obs_dim: int, action_dim: int) -> None:
    agent = agent_of(preset, obs_dim, action_dim)
    drawn = draw_pictures(agent, observations(obs_dim), reward_scale=1.0, title="a task, step 10")
    assert list(drawn.images) == ["energy", "multiplier_map"]
    for pixels in drawn.images.values():
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        assert (pixels[0, 0] == 255).all()
    assert drawn.multipliers.shape == (64,)


def test_without_matplotlib_the_multipliers_are_still_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    drawn = draw_pictures(agent_of("sac"), observations(), reward_scale=1.0, title="")
    assert drawn.images == {}
    assert np.array_equal(drawn.multipliers, np.zeros(64))


def test_pictures_come_at_the_first_evaluation_after_each_interval() -> None:
    def due(interval: int | None) -> list[int]:
        return [
            step
            for step in range(100, 1001, 100)
            if media._pictures_due(
                SimpleNamespace(  # type: ignore[arg-type]
                    env_step=step,
                    config=SimpleNamespace(
                        tracking=TrackingConfig(picture_interval=interval),
                        evaluation=SimpleNamespace(interval=100),
                        train=SimpleNamespace(total_steps=1000),
                    ),
                )
            )
        ]

    assert due(350) == [100, 400, 700, 1000]
    assert due(100) == list(range(100, 1001, 100))
    assert due(10_000) == [100, 1000]
    assert due(None) == []


@pytest.mark.parametrize("interval", [0, -5])
def test_an_impossible_interval_is_named(interval: int) -> None:
    with pytest.raises(ValueError, match=f"picture_interval must be null or >= 1, got {interval}"):
        TrackingConfig(picture_interval=interval)


# ---- a run, recorded offline and read back


def run_of(run_dir: Path, mode: str) -> None:
    keys = {
        "env.id": "AnalyticIslands2-v0",
        "train.total_steps": 300,
        "train.learning_starts": 100,
        "train.log_interval": 100,
        "train.checkpoint_interval": 300,
        "train.batch_size": 16,
        "train.updates_per_step": 0.1,
        "constraint.cost_limit": 100.0,
        "evaluation.interval": 100,
        "evaluation.episodes": 3,
        "evaluation.video": False,
        "tracking.wandb": mode,
        "tracking.progress": False,
        "tracking.group": "islands",
        "tracking.tags": ["small"],
        "tracking.picture_interval": 200,
    }
    train(load_config(["sac_alam"], SMALL | keys), run_dir)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import wandb

    run_dir = tmp_path_factory.mktemp("wandb") / "run"
    run_of(run_dir, "offline")
    wandb.teardown()
    return run_dir


def test_media_are_recorded_on_the_env_step_axis(recorded: Path) -> None:
    rows = list(offline_rows(recorded))
    images = {(row["env_step"], "energy") for row in rows if "pictures" in row} | {
        (row["env_step"], name)
        for row in rows
        for name in ("pictures/energy", "pictures/multiplier_map")
        if name in row
    }
    assert {step for step, _ in images} == {100, 200, 300}
    histograms = [row for row in rows if "multiplier/states" in row]
    assert [row["env_step"] for row in histograms] == [100, 200, 300]
    assert sum(histograms[-1]["multiplier/states"]["values"]) == 512
    steps = [row["env_step"] for row in rows]
    assert steps == sorted(steps)
    files = sorted((recorded / "wandb").glob("offline-run-*/files/media/images/pictures/*.png"))
    assert len(files) == 6


def test_runs_are_read_back_from_wandbs_files_alone(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((whole,), _) = read_runs([recorded])
    shutil.copytree(recorded / "wandb", tmp_path / "wandb", symlinks=True)
    lost = shutil.copytree(recorded, tmp_path / "lost", symlinks=True)
    (lost / "metrics.csv").unlink()
    for path in (tmp_path / "wandb", lost):
        ((run,), skipped) = read_runs([path])
        assert skipped == []
        assert dict(run.config) == dict(whole.config)
        # W&B has the clock's values with the next row, hence not those after the last one.
        exact = {name for name in whole.metrics if not name.startswith("time/")}
        assert {name for name in run.metrics if not name.startswith("time/")} == exact
        for name in exact:
            assert np.array_equal(run.metrics[name], whole.metrics[name]), name
        assert np.array_equal(run.episodes["cost"], whole.episodes["cost"])
        assert run.episodes["terminated"].values.all()
    assert main(["runs", str(tmp_path / "wandb")]) == 0
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.startswith("offline-run-")
    assert line.split()[-1] == "finished"


def test_a_damaged_file_of_wandb_is_a_reason(recorded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(recorded / "wandb", tmp_path / "wandb", symlinks=True)
    (file,) = copy.glob("offline-run-*/run-*.wandb")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # a killed run: what is there is read
    assert len(read_runs([copy]).runs) == 1
    file.write_bytes(whole[:14] + bytes(255 - byte for byte in whole[14:400]) + whole[400:])
    (reason,) = read_runs([copy]).skipped
    assert "not a run file of W&B" in reason
    file.write_bytes(b"")
    (reason,) = read_runs([copy]).skipped
    assert reason.endswith("W&B has no row of it")


def test_tables_hold_every_episode(recorded: Path) -> None:
    (row,) = [row for row in offline_rows(recorded) if "episodes/training" in row]
    (evaluation,) = [row for row in offline_rows(recorded) if "episodes/evaluation" in row]
    assert row["env_step"] == evaluation["env_step"] == 300
    tables = {}
    for name, entry in (("training", row), ("evaluation", evaluation)):
        (path,) = (recorded / "wandb").glob(
            f"offline-run-*/files/{entry[f'episodes/{name}']['path']}"
        )
        tables[name] = json.loads(path.read_text())
    assert len(tables["training"]["data"]) == 300  # one-step episodes
    assert tables["evaluation"]["columns"] == ["env_step", "episode", "return", "cost", "length"]
    assert [row[0] for row in tables["evaluation"]["data"]] == [
        step for step in (0, 100, 200, 300) for _ in range(3)
    ]
    with (recorded / "evaluations.csv").open() as file:
        costs = [float(row["cost"]) for row in csv.DictReader(file)]
    assert [row[3] for row in tables["evaluation"]["data"]] == costs


def test_models_carry_aliases_measures_and_their_configuration(recorded: Path) -> None:
    artifacts = {
        (record.type, *sorted(record.aliases)): record
        for record in offline_records(recorded, "artifact")
    }
    # W&B gives each version "latest" when it is logged: the last one keeps it.
    best, latest = ("model", "best-safe", "latest"), ("model", "latest")
    assert set(artifacts) - {("run_table", "latest")} == {("config", "latest"), best, latest}
    assert list(artifacts).index(best) < list(artifacts).index(latest)
    metadata = {
        name: json.loads(artifacts[key].metadata)
        for name, key in (("best-safe", best), ("latest", latest))
    }
    assert metadata["latest"]["env_step"] == 300
    assert metadata["best-safe"]["eval/cost"] <= 100.0
    assert {"eval/return", "eval/cost", "eval/violation_rate"} <= metadata["latest"].keys()
    (entry,) = artifacts["config", "latest"].manifest.contents
    assert entry.path == "config.yaml"


def test_summaries_and_axes_are_declared(recorded: Path) -> None:
    metrics = {m.name or m.glob_name: m for m in offline_records(recorded, "metric")}
    assert metrics["*"].step_metric == "env_step"
    assert metrics["eval/cost"].step_metric == "env_step"
    assert (metrics["eval/cost"].summary.min, metrics["eval/cost"].summary.last) == (True, True)
    assert metrics["eval/return"].summary.max
    (run,) = offline_records(recorded, "run")
    assert (run.run_group, list(run.tags)) == ("islands", ["small"])


def test_recording_changes_no_number_of_the_run(recorded: Path, tmp_path: Path) -> None:
    run_of(tmp_path / "run", "disabled")
    for name in ("metrics.csv", "episodes.csv", "evaluations.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (recorded / name).read_bytes()
    assert not (tmp_path / "run" / "wandb").exists()


def test_evaluation_episodes_are_cut_at_the_checkpoint_on_resume(tmp_path: Path) -> None:
    def tracker(resume_step: int | None) -> Tracker:
        config = TrackingConfig(wandb="disabled", progress=False)
        return Tracker(tmp_path, config, {}, total_steps=9, cost_limit=1.0, resume_step=resume_step)

    first = tracker(None)
    for step in (10, 20, 30):
        first.evaluation(step, [1.0, 2.0], [0.0, step], [5, 6])
    first.close()
    again = tracker(20)
    again.evaluation(30, [3.0], [4.0], [7])
    again.close()
    assert (tmp_path / "evaluations.csv").read_text().splitlines() == [
        "env_step,episode,return,cost,length",
        *("10,0,1.0,0.0,5", "10,1,2.0,10,6", "20,0,1.0,0.0,5", "20,1,2.0,20,6"),
        "30,0,3.0,4.0,7",
    ]


def test_online_the_configuration_is_an_input_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    logged: list[tuple[str, list[str]]] = []
    run = SimpleNamespace(
        offline=False,
        summary={},
        use_artifact=lambda artifact: used.append(artifact.name),
        log_artifact=lambda artifact, aliases: logged.append((artifact.name, aliases)),
    )
    monkeypatch.setattr(WandbRun, "_start", lambda *_: run)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "tensors.safetensors").write_bytes(b"weights")
    recorder = WandbRun(
        tmp_path, "online", TrackingConfig(), resolved_config={}, run_id="abc", resumed=False
    )
    for alias in ("best-safe", "latest"):
        recorder.model_artifact(tmp_path / "step_1", env_step=1, aliases=[alias], metadata={})
    assert used == ["config-abc"]
    assert logged == [("model-abc", ["best-safe"]), ("model-abc", ["latest"])]
