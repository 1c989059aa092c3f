"""A W&B server that hangs, fails, drops or refuses: no row is lost here, and training goes on."""

import csv
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults.tiny_runs import run, training_stream
from faults.wandb_server import Behaviour, WandbServer
from saved_runs import same_bits

from algd.training import wandb_run
from algd.training.wandb_file import offline_rows

_END = b"Connection: close\r\n\r\n"
ANSWERS = {
    "error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n" + _END,
    "refused": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n" + _END,
    "drop": b"",
}


class Server:
    """A loopback server that treats every connection in one bad way, and counts them."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.connections = 0
        self._held: list[socket.socket] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                self._held.append(connection)
                if self.how == "hang":
                    continue
                if self.how != "drop":
                    connection.recv(65536)
                    connection.sendall(ANSWERS[self.how])
                connection.close()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self._held:
            connection.close()


@pytest.fixture
def serve(
    monkeypatch: pytest.MonkeyPatch, no_wandb_login: None
) -> Iterator[Callable[[str], Server]]:
    """Return a function that starts a bad server and points W&B at it, logged in."""
    servers: list[Server] = []

    def start(how: str) -> Server:
        servers.append(Server(how))
        monkeypatch.setenv("WANDB_BASE_URL", servers[0].url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setattr(wandb_run, "_INIT_SECONDS", 8.0)
        return servers[0]

    yield start
    import wandb

    wandb.teardown()
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("untracked") / "run")


@pytest.mark.parametrize("how", ["hang", *ANSWERS])
def test_a_bad_server_costs_no_row_and_does_not_stop_training(
    how: str,
    serve: Callable[[str], Server],
    untracked: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    server = serve(how)
    began = time.monotonic()
    directory = run(tmp_path / "run", tracking__wandb="online")
    assert time.monotonic() - began < 120
    assert server.connections > 0
    for name in ("metrics.csv", "episodes.csv"):
        assert (directory / name).read_bytes() == (untracked / name).read_bytes()
    assert same_bits(training_stream(directory), training_stream(untracked))
    (notice,) = [m for m in caplog.messages if m.endswith("; recording offline instead")]
    assert notice.startswith("W&B: ")
    import wandb

    wandb.teardown()
    recorded = {row["env_step"] for row in offline_rows(directory) if "env_step" in row}
    with (directory / "metrics.csv").open() as file:
        assert recorded >= {int(row["env_step"]) for row in csv.DictReader(file)}


@pytest.fixture
def serve_then(
    monkeypatch: pytest.MonkeyPatch, no_wandb_login: None
) -> Iterator[Callable[[Behaviour], WandbServer]]:
    """Return a function that starts a server which turns bad once a run has started."""
    servers: list[WandbServer] = []

    def start(how: Behaviour) -> WandbServer:
        servers.append(WandbServer(how))
        for name, value in servers[0].environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(wandb_run, "_FINISH_SECONDS", 4.0)
        return servers[0]

    yield start
    import wandb

    for server in servers:
        server.close()
    wandb.teardown()


def test_a_good_server_gets_every_row(
    serve_then: Callable[[Behaviour], WandbServer], untracked: Path, tmp_path: Path
) -> None:
    """What the bad ones are measured against: the server of these tests is one that W&B takes."""
    server = serve_then("good")
    directory = run(tmp_path / "run", tracking__wandb="online")
    with (directory / "metrics.csv").open() as file:
        steps = [int(row["env_step"]) for row in csv.DictReader(file)]
    sent = [row["env_step"] for row in server.rows if "train/num_updates" in row]
    assert sent == steps
    assert server.started > 0


@pytest.mark.parametrize("how", ["hang", "error", "drop", "slow", "refuse"])
def test_a_server_that_turns_bad_under_a_run_costs_no_row(
    how: Behaviour,
    serve_then: Callable[[Behaviour], WandbServer],
    untracked: Path,
    tmp_path: Path,
) -> None:
    server = serve_then(how)
    began = time.monotonic()
    directory = run(tmp_path / "run", tracking__wandb="online")
    assert time.monotonic() - began < 120
    assert server.started > 0
    assert server.spoiled > 0
    for name in ("metrics.csv", "episodes.csv"):
        assert (directory / name).read_bytes() == (untracked / name).read_bytes()
    assert same_bits(training_stream(directory), training_stream(untracked))
