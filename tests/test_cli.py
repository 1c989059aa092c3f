"""The command line: exit codes, one line per mistake, and what reaches the trainer."""

import contextlib
import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_files import write_sweep

from algd import __version__
from algd.environments import checking
from algd.environments.checking import Finding
from algd.environments.make import EnvConfig
from algd.errors import EnvironmentFault
from algd.experiments import cli, doctor
from algd.experiments.arguments import Override, split_overrides
from algd.experiments.cli import _VERBS, main
from algd.experiments.config import ExperimentConfig, dump_yaml, load_config
from algd.experiments.verbs.train import reserve_run_dir
from algd.experiments.yaml_files import list_presets, parse_yaml
from algd.training import evaluation, trainer
from algd.training.stopping import Interrupted

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "algd.experiments.cli")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run directories must not land in the checkout."""
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of a refused command: one line on stderr, exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("algd: error: ")
    return lines[0].removeprefix("algd: error: ")


def process(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **kwargs,
    )


# ---- the front door


def test_help_takes_less_than_a_second_and_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'yaml', 'wandb', 'gymnasium', 'mujoco', 'diffusers'}"
    code = (
        "import sys; from algd.experiments.cli import main; assert main(['--help']) == 0; "
        f"loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time, since the machine may be busy with other things
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for verb in ("train", "evaluate", "check-env", "doctor", "presets"):
        assert f"\n  {verb} " in out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"algd {__version__}\n"


def test_an_unknown_verb_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "trian") == "unknown verb 'trian'; did you mean train?"
    assert "the verbs are train, evaluate" in fails(capsys, "zzz")


@pytest.mark.parametrize("verb", sorted(set(_VERBS) - {"train"}))
def test_an_option_that_no_verb_knows_is_one_line(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, verb, "--wrong")
    assert message.endswith(f"; see algd {verb} --help") or "--wrong" in message


@pytest.mark.parametrize("verb", sorted(set(_VERBS) - {"train"}))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: algd {verb}" in capsys.readouterr().out


def test_presets_are_listed_with_their_comment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for name, comment in list_presets().items():
        assert any(line.split(maxsplit=1) == [name, comment] for line in out.splitlines()), name


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    """Also the interpreter's own flush at exit, which only a buffered stdout has left to do."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [*COMMAND, "presets"],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


# ---- arguments


def test_overrides_come_with_equals_sign_or_as_the_next_word() -> None:
    known, overrides = split_overrides(
        ["a", "--seed", "3", "b", "--run-dir", "x", "--m.gain=-0.1", "--m.gain", "-0.2", "--help"],
        flags=("--help",),
        with_value=("--run-dir",),
    )
    assert known == ["a", "b", "--run-dir", "x", "--help"]
    assert overrides == [
        Override("--seed", "3"),
        Override("--m.gain", "-0.1"),
        Override("--m.gain", "-0.2"),
    ]


def test_an_override_value_may_hold_an_equals_sign() -> None:
    assert split_overrides(["--a.b=x=y"]) == ([], [Override("--a.b", "x=y")])


# ---- train


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ExperimentConfig, Path]]:
    """Replace the trainer by one that notes what it is given."""
    calls: list[tuple[ExperimentConfig, Path]] = []

    def train(config: ExperimentConfig, run_dir: Path) -> None:
        calls.append((config, run_dir))

    monkeypatch.setattr(trainer, "train", train)
    return calls


def test_train_hands_over_files_overridden_by_the_command_line(
    trained: list[tuple[ExperimentConfig, Path]], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1\nenv: {id: AnalyticBandit1-v0}\n")
    arguments = ["train", "sac", "mine.yaml", "--policy.hidden=[64,64]", "--seed", "5"]
    assert main([*arguments, "--env.cost_fn=null", "--run-dir", "here"]) == 0
    [(config, run_dir)] = trained
    assert run_dir == Path("here")
    assert config == load_config(
        ["sac"], {"seed": 5, "env.id": "AnalyticBandit1-v0", "policy.hidden": [64, 64]}
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_missing_leaves_no_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--env.id=AnalyticBandit1-v0", "--train.device=cuda", "--run-dir", str(run_dir)]
    assert main(["train", "sac_alam", *arguments]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert not run_dir.exists()


def test_the_multiplier_is_swapped_by_one_entry(
    trained: list[tuple[ExperimentConfig, Path]],
) -> None:
    assert main(["train", "algd", "--multiplier.kind=scalar_pid"]) == 0
    assert trained[0][0].multiplier == load_config(["sac_pid"]).multiplier


def test_values_are_read_as_yaml(trained: list[tuple[ExperimentConfig, Path]]) -> None:
    arguments = ["--critics.learning_rate=1e-4", "--constraint.augmented", "false"]
    arguments += ["--policy.chain_steps=", "--env.kwargs={a: [1, x]}", "--tracking.name='12'"]
    assert main(["train", "algd", *arguments]) == 0
    config = trained[0][0]
    assert config.critics.learning_rate == 1e-4
    assert config.constraint.augmented is False
    assert to_policy(config)["chain_steps"] is None
    assert config.env.kwargs == {"a": [1, "x"]}
    assert config.tracking.name == "12"


def to_policy(config: ExperimentConfig) -> dict[str, Any]:
    return parse_yaml(dump_yaml(config), "dump")["policy"]


def test_default_run_dir_names_environment_policy_multiplier_seed_and_time(
    trained: list[tuple[ExperimentConfig, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = time.strftime("%Y%m%d-%H%M%S")
    assert main(["train", "sac", "--env.id=my_module:My/Env-v0", "--seed=7"]) == 0
    run_dir = trained[0][1]
    assert run_dir.parent == Path("runs")
    stem = "my_module_My_Env-v0-gaussian-fixed-s7-"
    assert run_dir.name.startswith(stem)
    assert before <= run_dir.name.removeprefix(stem) <= time.strftime("%Y%m%d-%H%M%S")


def test_default_run_dir_is_made_at_once_and_never_one_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "NOW")
    config = ExperimentConfig()
    first, second, third = (reserve_run_dir(config, root=tmp_path) for _ in range(3))
    assert [second.name, third.name] == [f"{first.name}-2", f"{first.name}-3"]
    assert first.is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert not reserve_run_dir(config, root=tmp_path / "link").exists()


def test_a_run_that_does_not_start_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "sac", "--env.id=Nowhere-v0"]) == 2
    assert "Nowhere-v0" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no CONFIG given; `algd presets` lists the shipped ones; see algd train --help"),
        (
            ["sac_lagg"],
            "command line: 'sac_lagg' is neither a file nor a preset; did you mean sac_lag",
        ),
        (["no/such.yaml"], "command line: no file no/such.yaml"),
        (["sac", "--sede=1"], "command line: sede is not a key, got 1; did you mean seed?"),
        (["sac", "--seed=x"], 'command line: seed must be a whole number, got "x"'),
        (["sac", "--seed"], "command line: --seed has no value; write --seed=VALUE"),
        (["sac", "--seed", "--env.id=X"], "command line: --seed has no value"),
        (["sac", "--env.id=[x"], "command line: --env.id: not valid YAML: expected ',' or ']'"),
        (["sac", "--rundir=x"], "unknown option --rundir; did you mean --run-dir?"),
        (["sac", "--run_dir", "x"], "unknown option --run_dir; did you mean --run-dir?"),
        (["sac", "-x"], "unrecognized arguments: -x; see algd train --help"),
        (["sac", "--run-dir"], "argument --run-dir: expected one argument"),
        (
            ["sac", "--resume", "x"],
            "--resume takes its configuration from the run; only --train.total_steps=N can be",
        ),
        (["--resume", "x", "--seed=1"], "--resume takes its configuration from the run"),
        (["--resume", "nowhere"], "nowhere is not a directory; expected the directory of a run"),
        (["--resume", "."], ". holds no run: found neither config.yaml nor a checkpoints"),
    ],
)
def test_a_mistake_in_train_is_one_line(
    arguments: list[str],
    message: str,
    trained: list[tuple[ExperimentConfig, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails(capsys, "train", *arguments).startswith(message)
    assert not trained


def test_a_run_directory_that_holds_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("seed: 0\n")
    message = fails(capsys, "train", "sac", "--run-dir", "taken")
    assert message.startswith("taken already holds a run; continue it with")
    assert (tmp_path / "taken" / "config.yaml").read_text() == "seed: 0\n"


def test_a_run_that_was_killed_before_its_configuration_was_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    message = fails(capsys, "train", "--resume", "half")
    assert message.startswith("half holds no config.yaml: its run ended before it began")


def test_a_fault_during_training_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: ExperimentConfig, run_dir: Path) -> None:
        raise EnvironmentFault("reward is nan at step 7\nof environment 0")

    monkeypatch.setattr(trainer, "train", train)
    assert fails(capsys, "train", "sac") == "reward is nan at step 7 of environment 0"


def test_a_mistyped_preset_is_told_before_torch_is_imported() -> None:
    script = (
        "import sys; from algd.experiments.cli import main; code = main(['train', 'sac_alm']); "
        "sys.exit(3 if 'torch' in sys.modules else code)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == 2
    assert "did you mean sac_alam" in told.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ablate", "rho", "--env", "bandit", "--dir"],
        ["sweep", "FILE", "--dir"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_cannot_be_made_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, total_steps=100, parameters={"seed": {"values": [0]}})
    words = [str(file) if word == "FILE" else word for word in arguments]
    for place in ("/proc/no/x", str(file / "x")):
        assert "cannot be created: N" in fails(capsys, *words, place)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EISDIR])
def test_what_the_machine_refuses_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: ExperimentConfig, run_dir: Path) -> None:
        raise OSError(number, os.strerror(number), "runs/x")

    monkeypatch.setattr(trainer, "train", train)
    assert fails(capsys, "train", "sac") == f"{os.strerror(number)}: runs/x"


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: ExperimentConfig, run_dir: Path) -> None:
        raise FileNotFoundError(2, "No such file", "x")

    monkeypatch.setattr(trainer, "train", train)
    with pytest.raises(FileNotFoundError):
        main(["train", "sac"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_run_prints_how_to_continue(
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(config: ExperimentConfig, run_dir: Path) -> None:
        raise Interrupted(run_dir, 1234, number)

    monkeypatch.setattr(trainer, "train", train)
    assert main(["train", "sac", "--run-dir", "my runs/a"]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert "stopped at step 1234, checkpoint written" in line
    command = line.partition("continue with: ")[2]
    assert shlex.split(command) == ["algd", "train", "--resume", "my runs/a"]


def test_ctrl_c_elsewhere_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "algd: interrupted\n"


def test_resume_hands_over_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Path, int | None]] = []
    monkeypatch.setattr(trainer, "resume", lambda *given: calls.append(given))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(ExperimentConfig()))
    assert main(["train", "--resume", "run"]) == 0
    assert main(["train", "--resume", "run", "--train.total_steps", "900"]) == 0
    assert calls == [(Path("run"), None), (Path("run"), 900)]
    message = fails(capsys, "train", "--resume", "run", "--train.total_steps=1e")
    assert message.startswith('command line: train.total_steps must be a whole number, got "1e"')


def test_train_help_shows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: algd train CONFIG... [--KEY=VALUE ...] [--seeds N] [--run-dir DIR]" in out
    for key in ("--env.id", "--multiplier.proportional_gain", "--train.total_steps", "--seed"):
        assert f"\n  {key}  " in out


# ---- the other verbs


def test_evaluate_hands_over_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def evaluate_run(run_dir: Path, **options: Any) -> None:
        calls.append({"run_dir": run_dir, **options})

    monkeypatch.setattr(evaluation, "evaluate_run", evaluate_run)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert main(["evaluate", "run"]) == 0
    arguments = ["--episodes", "3", "--mode", "stochastic", "--policy=best_safe"]
    assert main(["evaluate", "run", *arguments, "--video", "--seed=9"]) == 0
    plain = {"episodes": 10, "mode": None, "policy": "latest", "video": False, "seed": None}
    given = {"episodes": 3, "mode": "stochastic", "policy": "best_safe", "video": True, "seed": 9}
    assert calls == [{"run_dir": Path("run"), **plain}, {"run_dir": Path("run"), **given}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN_DIR; see algd evaluate --help"),
        (["nowhere"], "nowhere is not a directory; expected the directory of a run"),
        (["."], ". holds no run"),
        ([".", "--episodes", "0"], "argument --episodes: must be a whole number >= 1, got '0'"),
        ([".", "--episodes", "x"], "argument --episodes: must be a whole number >= 1, got 'x'"),
        ([".", "--seed", "-1"], "argument --seed: "),
        ([".", "--seed", str(2**32)], "argument --seed: must be a whole number in [0, 4294967295]"),
        ([".", "--mode", "best"], "argument --mode: invalid choice: 'best'"),
        ([".", "--vide"], "unrecognized arguments: --vide"),
    ],
)
def test_a_mistake_in_evaluate_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(capsys, "evaluate", *arguments).startswith(message)


@pytest.mark.parametrize(("kind", "code"), [("fact", 0), ("problem", 1)])
def test_check_env_prints_its_findings_and_fails_on_problems(
    kind: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[EnvConfig, int, float]] = []
    finding = Finding(kind, "cost", "12.00 per episode")

    def check_env(config: EnvConfig, *, steps: int, cost_limit: float) -> list[Finding]:
        calls.append((config, steps, cost_limit))
        return [finding]

    monkeypatch.setattr(checking, "check_env", check_env)
    arguments = ["--env.kwargs={a: 1}", "--steps", "50", "--constraint.cost_limit=3"]
    assert main(["check-env", "package:Env-v0", *arguments]) == code
    assert calls == [(EnvConfig(id="package:Env-v0", kwargs={"a": 1}), 50, 3.0)]
    assert capsys.readouterr().out == f"{finding}\n"


def test_check_env_refuses_wrong_keys_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert "env.num_env is not a key" in fails(capsys, "check-env", "X-v0", "--env.num_env=2")
    assert "required: ID" in fails(capsys, "check-env")
    message = fails(capsys, "check-env", "")
    assert message == "command line: env.id must be text, got null"


@pytest.mark.parametrize("code", [0, 1])
def test_doctor_gives_the_exit_code_of_the_examination(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run_doctor", lambda: code)
    assert main(["doctor"]) == code


@pytest.mark.parametrize("verb", cli._VERBS)
def test_every_verb_that_help_names_explains_itself(
    verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # argparse's own way out
        assert main([verb, "--help"]) == 0
    assert f"algd {verb}" in capfd.readouterr().out


# ---- as a user meets it


def test_a_mistyped_environment_is_one_line_with_the_nearest_ids() -> None:
    result = process("train", "sac", "--env.id=AnalyticBandit11-v0", "--run-dir=run")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("algd: error: env.id 'AnalyticBandit11-v0' is not known")
    assert "did you mean AnalyticBandit1-v0" in line


QUICK = (
    *("sac", "--env.id=AnalyticBandit1-v0", "--policy.hidden=[8]", "--critics.hidden=[8]"),
    *("--train.learning_starts=50", "--train.log_interval=50", "--evaluation.video=false"),
    *("--tracking.progress=false", "--tracking.wandb=disabled"),
)


def stop_after_first_row(run_dir: Path, *arguments: str) -> tuple[int, str]:
    """Send Ctrl-C to a training process once it has written metrics; return code and stderr."""
    metrics = run_dir / "metrics.csv"
    start = metrics.stat().st_size if metrics.exists() else 0
    running = subprocess.Popen(
        [*COMMAND, "train", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.stat().st_size <= start + 100:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    return running.returncode, error


def test_ctrl_c_saves_and_the_printed_command_continues_the_run(tmp_path: Path) -> None:
    def step_of(error: str) -> int:
        [line] = error.splitlines()
        assert line.endswith(f"continue with: algd train --resume {run_dir}")
        return int(line.partition("stopped at step ")[2].partition(",")[0])

    run_dir = tmp_path / "run"
    code, error = stop_after_first_row(run_dir, *QUICK, "--run-dir", str(run_dir))
    assert code == 130
    first = step_of(error)
    code, error = stop_after_first_row(run_dir, "--resume", str(run_dir))
    assert code == 130
    assert step_of(error) > first
