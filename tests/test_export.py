"""Exported policies: the same actions from plain files, from ONNX graphs and from the hub."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback_hub import TOKEN, LoopbackHub, loopback_hub
from safetensors.torch import load_file, save_file

import algd
from algd.environments.make import make_env
from algd.errors import CheckpointError, ConfigError, UserError
from algd.experiments import export_onnx as onnx_module
from algd.experiments.cli import main
from algd.experiments.config import ExperimentConfig, dump_yaml, load_config
from algd.experiments.export import export_run, visited_observations
from algd.experiments.export_card import cost_statistics
from algd.experiments.export_onnx import DeployedPolicy, export_onnx, parity
from algd.experiments.yaml_files import parse_yaml
from algd.training.checkpoint import CheckpointStore, claim_run_dir
from algd.training.evaluation import EvaluationResult, evaluation_seeds
from algd.training.exported import is_export, load_export, read_description, write_export
from algd.training.hub import load_from_hub, push_to_hub
from algd.training.load import LoadedPolicy, load

SMALL = {"policy.hidden": [32, 32], "critics.hidden": [16], "env.id": "AnalyticIslands2-v0"}
LOW, HIGH = np.array([-20.0, -0.4]), np.array([20.0, 1.2])  # a box that is not [-1, 1]


def config_of(preset: str, **overrides: Any) -> ExperimentConfig:
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config([preset], SMALL | {"train.normalize_obs": True} | keys)


def policy_of(config: ExperimentConfig, obs_dim: int = 1) -> LoadedPolicy:
    """A policy with random weights whose normaliser has seen shifted observations."""
    task = {
        "env_id": config.env.id,
        "obs_dim": obs_dim,
        "action_dim": 2,
        "episode_length": 1,
        "action_low": LOW,
        "action_high": HIGH,
        "env_step": 700,
    }
    policy = LoadedPolicy(config, task)
    rng = np.random.default_rng(0)
    policy.normalizer.update(rng.normal(3.0, 0.5, (50, obs_dim)).astype(np.float32))
    return policy


def make_run(run_dir: Path, config: ExperimentConfig) -> LoadedPolicy:
    """A run directory that holds one checkpoint and one kept policy, as training leaves them."""
    policy = policy_of(config)
    claim_run_dir(run_dir)
    (run_dir / "config.yaml").write_text(dump_yaml(config))
    parts = {"agent": policy.agent, "normalizer": policy.normalizer}
    state = {name: part.state_dict() for name, part in parts.items()} | {"task": policy.task}
    store = CheckpointStore(run_dir)
    store.save(700, state, None)
    store.save_policy("best_safe", 700, state | {"task": policy.task | {"env_step": 500}})
    return policy


def observations(count: int, obs_dim: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(3.0, 1.0, (count, obs_dim)).astype(np.float32)


# ---- plain files


@pytest.mark.parametrize("preset", ["algd", "release_ddpm", "sac_alam", "sac_lag", "fac"])
def test_an_exported_policy_acts_as_the_run_bit_for_bit(preset: str, tmp_path: Path) -> None:
    policy = policy_of(config_of(preset))
    write_export(policy, tmp_path, {})
    loaded = algd.load(tmp_path)
    assert loaded.config == policy.config
    assert loaded.env_step == 700
    obs = observations(50)
    assert np.array_equal(loaded.act(obs), policy.act(obs))
    samples = [p.act(obs, deterministic=False) for p in (loaded, policy)]
    assert np.array_equal(*samples)
    state = torch.from_numpy(obs)
    for evaluated in zip(
        loaded.agent.evaluate(state, torch.zeros(50, 2)),
        policy.agent.evaluate(state, torch.zeros(50, 2)),
        strict=True,
    ):
        assert torch.equal(*evaluated)


def test_the_normaliser_comes_back_in_double_precision(tmp_path: Path) -> None:
    policy = policy_of(config_of("sac"))
    write_export(policy, tmp_path, {})
    loaded = load_export(tmp_path)
    assert policy.normalizer.state_dict().keys() >= {"count", "mean"}
    for name, value in policy.normalizer.state_dict().items():
        assert np.array_equal(loaded.normalizer.state_dict()[name], value)


def test_a_calibrated_threshold_comes_back_and_an_export_without_one_has_that_of_the_limit(
    tmp_path: Path,
) -> None:
    policy = policy_of(config_of("sac_alam"))
    nominal = policy.agent.constraint.threshold.item()
    policy.agent.constraint.threshold.mul_(0.5)
    write_export(policy, tmp_path, {})
    assert load_export(tmp_path).agent.constraint.threshold.item() == 0.5 * nominal
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if "constraint." not in name}
    save_file(kept, file, {"format": "pt"})
    assert load_export(tmp_path).agent.constraint.threshold.item() == nominal


def test_weights_are_readable_without_algd_and_without_optimisers(tmp_path: Path) -> None:
    from safetensors import safe_open

    policy = policy_of(config_of("sac_alam"))
    write_export(policy, tmp_path, {})
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        names = set(file.keys())
    parts = {name.partition(".")[0] for name in names}
    modules = {"policy", "reward_critic", "cost_critic", "multiplier", "constraint"}
    assert parts == modules | {"normalizer"}
    description = json.loads((tmp_path / "policy.json").read_text())
    assert description["task"]["action_low"] == [-20.0, -0.4]


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        ("model.safetensors", b"cut", "no complete exported policy"),
        ("model.safetensors", None, "No such file"),
        ("config.yaml", b"policy: {kind: gausian}", "kind"),
        ("policy.json", b"{}", "does not describe an exported policy"),
        ("policy.json", b'{"format": 9}', "has format 9; this version reads 1"),
    ],
)
def test_a_damaged_export_is_named(
    file: str, contents: bytes | None, message: str, tmp_path: Path
) -> None:
    write_export(policy_of(config_of("sac")), tmp_path, {})
    (tmp_path / file).unlink()
    if contents is not None:
        (tmp_path / file).write_bytes(contents)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_export(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    write_export(policy_of(config_of("sac")), tmp_path, {})
    text = (tmp_path / "config.yaml").read_text()
    assert "[32, 32]" in text
    (tmp_path / "config.yaml").write_text(text.replace("[32, 32]", "[32, 31]"))
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_export(tmp_path)


# ---- ONNX


# An exported chain takes about a second per reverse step, so the whole ones are slow tests.
SHORT = {"policy__schedule__num_train_timesteps": 2}
POLICIES = [
    pytest.param("algd", SHORT, id="ve"),
    pytest.param("sac_alam", {}, id="gaussian"),
    pytest.param("cvpo", {}, id="cvpo"),
    pytest.param("release_vesde", {"policy__num_timesteps": 2}, id="release_vesde"),
    pytest.param("sac_alam", {"train__tail_share": 0.1}, id="sac_alam-tails"),
    pytest.param("algd", {}, id="ve-10-levels", marks=pytest.mark.slow),
    pytest.param(
        "algd",
        {
            "policy__schedule__kind": "vp",
            "policy__schedule__num_inference_steps": 4,
            "policy__prediction_type": "epsilon",
            "train__normalize_obs": False,
        },
        id="vp-4-of-10-levels",
        marks=pytest.mark.slow,
    ),
    pytest.param("release_ddpm", {}, id="release_ddpm", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("preset", "overrides"), POLICIES)
def test_onnx_equals_torch_on_1000_observations(
    preset: str, overrides: dict[str, Any], tmp_path: Path, no_shape_checks: None
) -> None:
    policy = policy_of(config_of(preset, **overrides), obs_dim=3)
    obs = observations(1000, 3)
    sampled, fixed = export_onnx(policy, tmp_path, obs)
    assert sampled.observations == fixed.observations == 1000
    assert max(sampled.max_difference, fixed.max_difference) <= 1e-5
    assert sampled.inputs["obs"] == [3]
    assert set(fixed.inputs) == {"obs"}
    # onnxruntime against the policy itself, in the units of the environment's box
    session = _session(tmp_path / fixed.file)
    (action,) = session.run(None, {"obs": obs})
    span = (HIGH - LOW) / 2
    assert np.abs((action - policy.act(obs)) / span).max() <= 1e-5
    assert (action >= LOW - 1e-4).all()
    assert (action <= HIGH + 1e-4).all()
    assert action.std(0).min() > 1e-4 * span.min()
    (one,) = session.run(None, {"obs": obs[:1]})
    assert np.abs((one - action[:1]) / span).max() <= 1e-5


def test_onnx_samples_follow_their_noise_and_parity_is_in_half_action_ranges(
    tmp_path: Path, no_shape_checks: None
) -> None:
    policy = policy_of(config_of("sac"))
    export_onnx(policy, tmp_path, observations(5))
    session = _session(tmp_path / "policy.onnx")
    obs = observations(4)
    zero = session.run(None, {"obs": obs, "noise": np.zeros((4, 1, 2), np.float32)})[0]
    one = session.run(None, {"obs": obs, "noise": np.ones((4, 1, 2), np.float32)})[0]
    assert np.abs(zero - policy.act(obs)).max() < 1e-4
    mean, log_std = policy.agent.policy(torch.from_numpy(policy.normalizer.normalize(obs)))
    expected = torch.tanh(mean + log_std.exp()).detach().numpy()
    assert np.abs(one - (LOW + (HIGH - LOW) / 2 * (expected + 1))).max() < 1e-4
    shifted = DeployedPolicy(policy, deterministic=True).eval()
    shifted.center += torch.tensor([2.0, 0.0])  # a tenth of the half range 20
    difference = parity(shifted, tmp_path / "policy_deterministic.onnx", obs)
    assert difference == pytest.approx(0.1, rel=1e-4)


def test_the_best_of_candidates_is_chosen_inside_the_graph(
    tmp_path: Path, no_shape_checks: None
) -> None:
    policy = policy_of(config_of("algd", policy__candidates=3, **SHORT))
    module = DeployedPolicy(policy, deterministic=True).eval()
    assert module.noise_shape == (3, policy.agent.policy.num_noises, 2)
    obs = observations(200)
    onnx_module._write(module, tmp_path / "best.onnx")
    assert parity(module, tmp_path / "best.onnx", obs) <= 1e-5
    noise = module.draw_noise(200, torch.Generator().manual_seed(4))
    assert noise is not None
    (chosen,) = _session(tmp_path / "best.onnx").run(None, {"obs": obs, "noise": noise.numpy()})
    single = DeployedPolicy(policy, deterministic=False).eval()
    state = torch.from_numpy(policy.normalizer.normalize(obs))
    with torch.no_grad():
        boxed = torch.stack([single(torch.from_numpy(obs), noise[:, k]) for k in range(3)])
        energy = policy.agent.evaluate(state, (boxed - single.center) / single.half_range)[0]
    best = boxed[energy.argmin(0), torch.arange(200)].numpy()
    assert np.abs((chosen - best) / single.half_range.numpy()).max() < 1e-4


def test_a_graph_that_computes_something_else_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_shape_checks: None
) -> None:
    policy, other = policy_of(config_of("sac")), policy_of(config_of("sac", seed=1))
    write = onnx_module._write

    def wrong(module: DeployedPolicy, path: Path) -> None:
        write(DeployedPolicy(other, deterministic=module.deterministic).eval(), path)

    monkeypatch.setattr(onnx_module, "_write", wrong)
    with pytest.raises(UserError, match=r"differs from torch by .* allowed is 1e-05"):
        export_onnx(policy, tmp_path, observations(20))
    assert list(tmp_path.iterdir()) == []


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# ---- statistics and card


def test_cost_statistics_of_known_episodes() -> None:
    costs = (*[10.0] * 15, *[40.0] * 3, 60.0, 100.0)
    result = EvaluationResult(tuple(range(20)), costs, (7,) * 20)
    s = cost_statistics(result, cost_limit=10.0, mode="stochastic", seed=3)
    assert (s.episodes, s.mode, s.seed, s.length_mean) == (20, "stochastic", 3, 7.0)
    assert s.cost_mean == pytest.approx(21.5)
    assert (s.cost_median, s.cost_max, s.cost_tail) == (10.0, 100.0, 80.0)
    assert s.cost_p90 == pytest.approx(42.0)  # between 40 and 60, a tenth of the way
    assert s.within_limit == 0.75  # at the limit is within it
    assert s.return_mean == 9.5
    assert s.return_std == pytest.approx(np.sqrt(35.0))
    deviation = np.sqrt((15 * 11.5**2 + 3 * 18.5**2 + 38.5**2 + 78.5**2) / 19)
    assert s.cost_std == pytest.approx(deviation)
    assert s.cost_half_width == pytest.approx(1.96 * deviation / np.sqrt(20), rel=1e-4)


def test_one_episode_has_no_deviation() -> None:
    s = cost_statistics(
        EvaluationResult((1.0,), (2.0,), (3,)), cost_limit=5.0, mode="deterministic", seed=0
    )
    assert (s.cost_std, s.cost_half_width, s.return_std) == (0.0, 0.0, 0.0)
    assert s.within_limit == 1.0


# ---- the verb


def test_algd_export_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_shape_checks: None
) -> None:
    run_dir = tmp_path / "my_run"
    policy = make_run(run_dir, config_of("algd", constraint__cost_limit=0.05, **SHORT))
    assert main(["export", str(run_dir), "--onnx", "--episodes", "20"]) == 0
    out = run_dir / "export"
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.md", "config.yaml", "episodes.csv", "model.safetensors", "policy.json"),
        *("policy.onnx", "policy_deterministic.onnx"),
    ]
    printed = capsys.readouterr().out
    assert "20 episodes, stochastic: return " in printed
    assert "over 1,000 observations" in printed
    front, _, body = (out / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    card = parse_yaml(front, "card")
    assert card["library_name"] == "algd"
    assert card["model-index"][0]["name"] == "my_run"
    assert "AnalyticIslands2-v0" in card["tags"]
    description = read_description(out)
    statistics = description["statistics"]
    values = {m["type"]: m["value"] for m in card["model-index"][0]["results"][0]["metrics"]}
    assert values["mean_cost"] == statistics["cost_mean"]
    assert f"| cost, median | {statistics['cost_median']:.2f} |" in body
    assert "20 episodes, stochastic actions, evaluation seed 0, cost limit 0.05" in body
    measured = "policy.act(obs, deterministic=False)  # (O,) or (N, O); as in the episodes above"
    assert measured in body
    rows = np.loadtxt(out / "episodes.csv", delimiter=",", skiprows=1)
    assert rows.shape == (20, 5)
    assert rows[:, 3].mean() == pytest.approx(statistics["cost_mean"])
    assert [graph["observations"] for graph in description["onnx"]] == [1000, 1000]
    obs = observations(5)
    assert np.array_equal(load(out).act(obs), policy.act(obs))


def test_private_is_of_a_push(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--private"]) == 2
    assert "--private goes with --push OWNER/NAME" in capsys.readouterr().err


def test_a_saturated_policy_stays_in_a_box_that_float32_does_not_hold() -> None:
    policy = policy_of(config_of("sac"))
    for sign in (-1.0, 1.0):
        policy.agent.act = lambda obs, sign=sign, **_: np.full((len(obs), 2), sign, np.float32)
        action = policy.act(observations(3))
        assert action.dtype == np.float32
        assert ((action >= LOW) & (action <= HIGH)).all()
        np.testing.assert_allclose(action, np.tile(HIGH if sign > 0 else LOW, (3, 1)), rtol=1e-6)


def episode_seeds(out: Path) -> list[int]:
    return np.loadtxt(out / "episodes.csv", delimiter=",", skiprows=1, ndmin=2)[:, 1].tolist()


def test_the_best_safe_policy_can_be_exported_and_an_export_replaced(tmp_path: Path) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    make_run(run_dir, config_of("sac"))
    arguments = ["export", str(run_dir), "--out", str(out), "--episodes", "1"]
    assert main(arguments) == 0
    assert load(out).env_step == 700
    assert episode_seeds(out) == evaluation_seeds(0, 1)
    assert main([*arguments, "--policy", "best_safe", "--mode", "stochastic"]) == 0
    assert load(out).env_step == 500
    # Other episodes than those of the evaluations that selected it.
    assert episode_seeds(out) == evaluation_seeds(0, 1 + config_of("sac").evaluation.episodes)[-1:]
    assert read_description(out)["statistics"]["mode"] == "stochastic"
    assert "It is the best of the run's evaluations" in (out / "README.md").read_text()
    # So an export of the export, whose source says which policy it is.
    again = tmp_path / "again"
    assert main(["export", str(out), "--out", str(again), "--episodes", "1"]) == 0
    assert episode_seeds(again) == episode_seeds(out)
    assert load(again).which == "best_safe"
    shutil.rmtree(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_an_edited_configuration_is_named(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    make_run(run_dir, config_of("sac"))
    config = run_dir / "config.yaml"
    text = config.read_text()
    for before, after in (("hidden: [", "hidden: [7, "), (text, "")):
        assert before in text
        config.write_text(text.replace(before, after))
        with pytest.raises(CheckpointError, match=r"config.yaml (does not fit|is empty)"):
            load(run_dir)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"holds no config.yaml"):
        load(run_dir)


def test_the_working_directory_is_no_place_for_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", config_of("sac"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="is the working directory"):
        export_run(tmp_path / "run", Path(), episodes=1)


def test_a_run_of_another_kind_of_device_can_be_loaded(tmp_path: Path) -> None:
    """The state of a CUDA generator has 16 bytes, which one of a CPU refuses."""
    policy = make_run(tmp_path / "run", config_of("algd", **SHORT))
    agent = policy.agent.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}
    state = {"agent": agent, "normalizer": policy.normalizer.state_dict(), "task": policy.task}
    CheckpointStore(tmp_path / "run").save(800, state, None)
    obs = observations(5)
    assert np.array_equal(load(tmp_path / "run").act(obs), policy.act(obs))


def test_which_policy_of_a_run_is_said_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    policy = make_run(run_dir, config_of("sac"))
    for name, step in (("latest", 700), ("best_safe", 500)):
        assert load(run_dir, policy=name).env_step == step
        assert main(["evaluate", str(run_dir), "--episodes", "1", "--policy", name]) == 0
        assert f", step {step}, " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must be one of latest, best_safe, got 'bestsafe'"):
        load(run_dir, policy="bestsafe")
    out.mkdir()
    write_export(policy, out, {})
    with pytest.raises(ConfigError, match="is an export, which holds one policy, got 'best_safe'"):
        load(out, policy="best_safe")
    with pytest.raises(ConfigError, match="hf://someone/thing is an export, which holds one"):
        load("hf://someone/thing", policy="best_safe")


def test_training_does_not_go_on_from_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_export(policy_of(config_of("sac_alam")), tmp_path, {})
    files = sorted(tmp_path.iterdir())
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "is an exported policy, which cannot be trained on" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == files


def test_a_directory_of_something_else_is_not_touched(tmp_path: Path) -> None:
    make_run(tmp_path / "run", config_of("sac"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(ConfigError, match="thesis holds something else"):
        export_run(tmp_path / "run", tmp_path / "thesis", episodes=1)
    with pytest.raises(ConfigError, match="is a file"):
        export_run(tmp_path / "run", tmp_path / "thesis" / "chapter.tex", episodes=1)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_failed_export_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", config_of("sac"))
    export_run(tmp_path / "run", tmp_path / "out", episodes=1)
    before = (tmp_path / "out" / "policy.json").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("algd.experiments.export.write_export", full)
    with pytest.raises(OSError, match="No space left"):
        export_run(tmp_path / "run", tmp_path / "out", episodes=2)
    assert (tmp_path / "out" / "policy.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_a_missing_package_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", config_of("sac"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(tmp_path / "run"), "--onnx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("algd: error: ONNX export needs the package onnxscript: pip install '")
    assert "'onnxscript>=0.5'" in line
    assert not (tmp_path / "run" / "export").exists()


def test_the_observations_of_the_check_are_the_policys_own() -> None:
    policy = policy_of(config_of("sac"))
    env = make_env(policy.config.env)
    try:
        seen = visited_observations(policy, env, 40)
        again = visited_observations(policy, env, 40)
    finally:
        env.close()
    assert seen.shape == (40, 1)
    assert np.array_equal(seen, again)
    assert len(np.unique(seen)) == 40


# ---- the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The real client against a hub on the loopback interface, with a cache of its own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    with loopback_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        disable_progress_bars()
        yield server
        enable_progress_bars()


# huggingface_hub streams large files in a way that its own transport calls deprecated.
streams_large_files = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@streams_large_files
def test_a_pushed_policy_comes_back_bit_for_bit(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = make_run(tmp_path / "run", config_of("sac_alam"))
    arguments = ["export", str(tmp_path / "run"), "--episodes", "2"]
    assert main([*arguments, "--push", "someone/safe-islands", "--private"]) == 0
    files = hub.files("someone/safe-islands")
    export = tmp_path / "run" / "export"
    assert files == {path.name: path.read_bytes() for path in export.iterdir()}
    assert hub.private == {"someone/safe-islands": True}
    assert hub.messages == ["Add the policy of step 700"]
    assert 'algd.load("hf://someone/safe-islands")' in files["README.md"].decode()
    oid = hub.repositories["someone/safe-islands"][0][0]
    assert f"pushed: {hub.url}/someone/safe-islands/commit/{oid}" in capsys.readouterr().out
    loaded = algd.load("hf://someone/safe-islands")
    obs = observations(20)
    assert np.array_equal(loaded.act(obs), policy.act(obs))


@streams_large_files
def test_a_revision_can_be_loaded_and_the_cache_serves_offline(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    for step in (1, 2):
        policy = policy_of(config_of("sac", seed=step))
        policy.task["env_step"] = step
        (tmp_path / str(step)).mkdir()
        write_export(policy, tmp_path / str(step), {})
        push_to_hub(tmp_path / str(step), "someone/two")
    first, second = (oid for oid, _ in hub.repositories["someone/two"])
    assert algd.load(f"hf://someone/two@{first}").env_step == 1
    assert algd.load("hf://someone/two").env_step == 2
    assert load_from_hub("someone/two", revision=second).env_step == 2
    hub.down = True
    assert algd.load(f"hf://someone/two@{first}").env_step == 1


def test_hub_errors_are_one_line(hub: LoopbackHub, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match="loading someone/none: no such repository, or not logged"):
        load_from_hub("someone/none")
    with pytest.raises(UserError, match="a repository is named OWNER/NAME"):
        load_from_hub("some one/none")
    with pytest.raises(UserError, match=r"holds no exported policy; expected a policy\.json"):
        push_to_hub(tmp_path, "someone/none")
    write_export(policy_of(config_of("sac")), tmp_path, {})
    assert is_export(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"pushing to someone/none: .*(refused|not logged in)"):
        push_to_hub(tmp_path, "someone/none")
    hub.repositories["someone/empty"] = []
    hub.commit("someone/empty", {"README.md": b"nothing"})
    with pytest.raises(CheckpointError, match="does not describe an exported policy"):
        load_from_hub("someone/empty")


def test_no_network_is_one_line(hub: LoopbackHub, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="loading someone/policy: the hub cannot be reached"):
        load_from_hub("someone/policy")


def test_observations_that_are_not_finite_are_refused_and_none_give_none(tmp_path: Path) -> None:
    policy = policy_of(config_of("sac_lag"))
    assert policy.act(observations(0)).shape == (0, 2)
    for wrong in (np.nan, np.inf, 1e39):
        with pytest.raises(ValueError, match="obs must be finite, got"):
            policy.act(np.array([wrong]))
