"""Serve the dashboard on this machine while runs go on: `algd dashboard --serve`.

In: run directories. Out: the page, its data again whenever a file of the runs has changed, and the
pictures and videos that the data names. Only the loopback interface is bound, and a request that
names another host is refused: a web page elsewhere cannot make a browser read it (DNS rebinding).
"""

import re
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from algd.errors import UserError
from algd.experiments.dashboard import dashboard_data, version_of
from algd.experiments.dashboard_html import data_json, render
from algd.experiments.dashboard_media import MediaFile
from algd.experiments.run_data import require_runs

LOOPBACK = "127.0.0.1"
SECONDS_BETWEEN_READS = 3
_HOST_NAMES = (LOOPBACK, "localhost")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


class LiveRuns:
    """Reads runs again when their files have changed; threads may share it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.media: dict[str, MediaFile] = {}
        self._lock = threading.Lock()
        self._version = ""
        self._data: dict[str, Any] = {}

    def data(self) -> dict[str, Any]:
        """Return what the page shows, with its version.

        Raises:
            UserError: no run can be read any more.
        """
        with self._lock:
            version = version_of(self.paths)
            if version != self._version:
                self._data = dashboard_data(require_runs(self.paths), self._address)
                self._data |= {
                    "live": True,
                    "version": version,
                    "seconds_between_reads": SECONDS_BETWEEN_READS,
                }
                self._version = version
            return self._data

    def _address(self, file: MediaFile) -> str:
        number = f"{len(self.media)}"
        known = {one.path: address for address, one in self.media.items()}
        address = known.get(file.path, f"media/{number}")
        self.media[address] = file
        return address


class DashboardServer(ThreadingHTTPServer):
    """Serves ``LiveRuns`` on a port of the loopback interface; 0 takes a free one.

    Raises:
        UserError: the port is taken or not ours to take.
    """

    daemon_threads = True

    def __init__(self, runs: LiveRuns, port: int) -> None:
        self.runs = runs
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port: cannot listen on {LOOPBACK}:{port}: {error.strerror}; "
                "choose another, or 0 for a free one"
            ) from error
        self.hosts = {f"{name}:{self.server_port}" for name in _HOST_NAMES}

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    # Declared as any server upstream; this one is made by ``DashboardServer`` alone.
    server: DashboardServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Answer one request."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers to localhost")
            return
        address = urlsplit(self.path)
        try:
            if address.path == "/":
                page = render(self.server.runs.data()).encode()
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page)
            elif address.path == "/data.json":
                self._answer_data(parse_qs(address.query).get("since", [""])[0])
            elif (file := self.server.runs.media.get(address.path.lstrip("/"))) is not None:
                self._answer_file(file)
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
        except UserError as error:
            text = f"{error}\n".encode("utf-8", "replace")
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", text)
        except ConnectionError:  # the browser has turned away
            self.close_connection = True

    def _answer_data(self, since: str) -> None:
        data = self.server.runs.data()
        if data["version"] == since:
            self._answer(HTTPStatus.NO_CONTENT, "application/json", b"")
        else:
            self._answer(HTTPStatus.OK, "application/json", data_json(data).encode())

    def _answer_file(self, file: MediaFile) -> None:
        """Send a file, or the part that a player asks for to seek in it."""
        try:
            content = file.path.read_bytes()
        except OSError:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found")
            return
        asked = _RANGE.match(self.headers.get("Range", ""))
        if asked is None or asked[0] == "bytes=-":
            self._answer(HTTPStatus.OK, file.content_type, content, {"Accept-Ranges": "bytes"})
            return
        size = len(content)
        first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first > last:
            extra = {"Content-Range": f"bytes */{size}"}
            self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "text/plain", b"", extra)
            return
        extra = {"Content-Range": f"bytes {first}-{last}/{size}", "Accept-Ranges": "bytes"}
        part = content[first : last + 1]
        self._answer(HTTPStatus.PARTIAL_CONTENT, file.content_type, part, extra)

    def _answer(
        self, status: HTTPStatus, kind: str, content: bytes, extra: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for name, value in (headers | (extra or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - upstream's
        """Keep the terminal free of one line per request."""
