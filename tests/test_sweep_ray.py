"""Sweeps on a real Ray cluster: a head without work and two worker nodes on this machine."""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from sweep_files import (
    ROOT,
    finish,
    half_done,
    start,
    undisturbed_table,
    wait_until,
    write_sweep,
)

from algd.experiments.cli import main

pytest.importorskip("ray", reason="extra ray")

# A dead node refuses connections and is noticed within seconds; one on a busy machine is late.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 20_000,
    "health_check_failure_threshold": 4,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # By default Ray's workers give way to all else and its nodes must start within 30 seconds;
    # beside other work this test would take hours, or fail.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    head = {"num_cpus": 0, "_system_config": _HEALTH, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default::ResourceWarning")  # Ray's own pipes
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_that_loses_a_worker_node_gives_the_same_table(tmp_path: Path, cluster) -> None:
    parameters = {
        "constraint.penalty_coef": {"values": [0.1, 1.0]},
        "train.updates_per_step": {"values": [0.5, 1.0]},
        "seed": {"values": [0, 1, 2]},
    }
    path = write_sweep(tmp_path, total_steps=600, parameters=parameters)
    doomed, _ = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    out = tmp_path / "out"
    process = start(path, out, "--on", "ray", "--address", cluster.address)
    wait_until(lambda: len(half_done(out)) == 2, process)
    cluster.remove_node(doomed, allow_graceful=False)
    code, printed, told = finish(process, seconds=3000)
    assert code == 0, told
    assert "Ray, 3 machines, 2 cores" in told
    assert told.count("its Ray worker was lost") == 1
    assert (out / "table.csv").read_bytes() == undisturbed_table(path, tmp_path / "whole")
    rows = list(csv.DictReader(StringIO((out / "table.csv").read_text())))
    assert [row["complete"] for row in rows] == ["3"] * 4
    assert printed.splitlines()[-1] == f"table: {out / 'table.csv'}"


def test_no_cluster_at_an_address_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "1")
    path = write_sweep(tmp_path, total_steps=60, parameters={"seed": {"value": 0}})
    arguments = ["--dir", str(tmp_path / "out"), "--on", "ray", "--address", "nonsense"]
    assert main(["sweep", str(path), *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("algd: error: no Ray cluster at nonsense: ")
