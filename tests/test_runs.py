"""`algd runs`: what is there, how far it is, and a line for what cannot be read."""

import json
import os
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from algd.experiments.cli import main
from algd.experiments.config import dump_yaml, load_config
from algd.training.run_lock import LOCK_FILE, RunLock

HEADER = ["run", "env", "agent", "seed", "step", "return", "cost", "state"]


def make_run(
    directory: Path, *, step: int = 100, returns: float = 1.0, cost: float = 0.5, **changes: Any
) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(config_text(tuple(changes.items())))
    (directory / "metrics.csv").write_text(
        f"env_step,eval/return,eval/cost,train/energy\n0,-9.0,9.0,\n{step},{returns},{cost},2.5\n"
    )
    return directory


@cache
def config_text(changes: tuple[tuple[str, Any], ...]) -> str:
    overrides = {"env.id": "AnalyticBandit1-v0", "train.total_steps": 100}
    overrides |= {name.replace("__", "."): value for name, value in changes}
    return dump_yaml(load_config(["sac_alam"], overrides))


@pytest.fixture
def three_runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root / "a", returns=-2.0, cost=3.0, seed=1)
    make_run(root / "group" / "b", returns=5.0, step=50, seed=2)
    make_run(root / "group" / "c", returns=1.0, cost=0.25, env__id="AnalyticBandit2-v0", seed=10)
    return root


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Return the cells of each line below the header."""
    assert main(["runs", *arguments]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == HEADER
    return [row.replace("gaussian statewise_alam", "agent").split() for row in rows]


def names(rows: list[list[str]]) -> list[str]:
    return [row[0] for row in rows]


def test_a_line_per_run_says_what_is_there(
    three_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bandit = "AnalyticBandit1-v0"
    assert listed(capsys, str(three_runs)) == [
        ["a", bandit, "agent", "1", "100/100", "-2.00", "3.00", "finished"],
        ["group/b", bandit, "agent", "2", "50/100", "5.00", "0.50", "crashed"],
        ["group/c", "AnalyticBandit2-v0", "agent", "10", "100/100", "1.00", "0.25", "finished"],
    ]


def test_the_default_is_the_folder_runs(
    three_runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(three_runs.parent)
    assert names(listed(capsys)) == ["a", "group/b", "group/c"]


def test_a_run_with_a_living_writer_is_running(
    three_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLock(three_runs / "group" / "b"):
        states = [row[-1] for row in listed(capsys, str(three_runs))]
    assert states == ["finished", "running", "finished"]
    assert [row[-1] for row in listed(capsys, str(three_runs))][1] == "crashed"


def test_a_run_stopped_in_its_last_evaluation_is_not_finished(
    three_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (three_runs / "group" / "b" / "timing.csv").write_text("env_step,time/checkpoint\n100,0.1\n")
    assert [row[-2:] for row in listed(capsys, str(three_runs))][1] == ["0.50", "crashed"]


def test_a_dead_writer_is_not_running(three_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a process of this machine that is gone nor a silent one of another."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1, text=True, check=True
    )
    lock = three_runs / "group" / "b" / LOCK_FILE
    owner = {"pid": int(gone.stdout), "host": socket.gethostname(), "since": time.time()}
    lock.write_text(json.dumps(owner))
    assert listed(capsys, str(three_runs))[1][-1] == "crashed"
    lock.write_text(json.dumps(owner | {"host": "elsewhere"}))
    assert listed(capsys, str(three_runs))[1][-1] == "running"
    os.utime(lock, (time.time() - 3600,) * 2)
    assert listed(capsys, str(three_runs))[1][-1] == "crashed"


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["env=AnalyticBandit1*"], ["a", "group/b"]),
        (["seed=2"], ["group/b"]),
        (["seed=2.0"], ["group/b"]),
        (["state=finished", "env.id=*2-v0"], ["group/c"]),
        (["constraint.cost_limit=25"], ["a", "group/b", "group/c"]),
        (["train.normalize_obs=false"], ["a", "group/b", "group/c"]),
        (["agent=*pid*"], []),
        (["run=group/*"], ["group/b", "group/c"]),
    ],
    ids=" ".join,
)
def test_filters_keep_what_matches_all_of_them(
    three_runs: Path, capsys: pytest.CaptureFixture[str], filters: list[str], kept: list[str]
) -> None:
    arguments = [word for text in filters for word in ("--filter", text)]
    assert names(listed(capsys, str(three_runs), *arguments)) == kept


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (["--sort", "return"], ["a", "group/c", "group/b"]),
        (["--sort", "return", "--reverse"], ["group/b", "group/c", "a"]),
        (["--sort", "eval/cost"], ["group/c", "group/b", "a"]),
        (["--sort", "seed"], ["a", "group/b", "group/c"]),
        (["--sort", "step"], ["group/b", "a", "group/c"]),
        (["--sort", "run", "--reverse"], ["group/c", "group/b", "a"]),
        (["--sort", "state"], ["group/b", "a", "group/c"]),
    ],
    ids=" ".join,
)
def test_runs_are_sorted_by_a_column_or_metric(
    three_runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], order: list[str]
) -> None:
    assert names(listed(capsys, str(three_runs), *arguments)) == order


def test_runs_without_the_metric_come_last(
    three_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = three_runs / "a" / "metrics.csv"
    path.write_text("env_step,train/energy\n100,2.5\n")
    rows = listed(capsys, str(three_runs), "--sort", "return", "--reverse")
    assert names(rows) == ["group/b", "group/c", "a"]
    assert rows[-1][5:7] == ["-", "-"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", "env: {id: [", "config.yaml:1: not valid YAML"),
        ("config.yaml", "", "config.yaml is missing or empty"),
        ("config.yaml", "seed: 1", "config.yaml: env.id must be text"),
        ("metrics.csv", "env_step,a\n0,x\n", "metrics.csv: a: could not convert"),
        ("metrics.csv", "env_step,a\n0,1,2\n", "metrics.csv:2: 3 fields in a row, expected 2"),
        ("metrics.csv", "\x00\x01\n", "metrics.csv: "),
    ],
)
def test_a_corrupt_run_is_a_line_and_the_others_are_listed(
    three_runs: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, reason: str
) -> None:
    (three_runs / "group" / "b" / name).write_text(content)
    assert main(["runs", str(three_runs)]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()[1:]] == ["a", "group/c"]
    (line,) = captured.err.splitlines()
    assert line.startswith(f"algd: skipped {three_runs / 'group' / 'b'}: {reason}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sort", "retrun"], "--sort: retrun is logged by no run; did you mean return"),
        (["--filter", "sede=1"], "--filter: sede is not a key of any run; did you mean seed"),
        (["--filter", "seed"], "must read KEY=VALUE, got 'seed'"),
        (["--filter", "state=finshed"], "state must be one of running, finished, crashed, got"),
        (["--reverse"], "--reverse goes with --sort KEY"),
        (["nowhere"], "nowhere does not exist"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(
    three_runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    where = [] if arguments == ["nowhere"] else [str(three_runs)]
    assert main(["runs", *where, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_listing_runs_loads_nothing_heavy(three_runs: Path) -> None:
    code = (
        "import sys; from algd.experiments.cli import main; "
        f"assert main(['runs', {str(three_runs)!r}]) == 0; "
        "loaded = {'torch', 'wandb', 'gymnasium', 'matplotlib'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, stdout=subprocess.DEVNULL)
