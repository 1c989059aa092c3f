"""A W&B server on loopback: it lets a run start, and then treats its uploads in one bad way.

In: a way to behave. Out: an address for WANDB_BASE_URL, the rows that arrived, a count of requests.
It knows only as much of W&B's protocol as one run needs.
"""

import gzip
import json
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal["good", "hang", "error", "drop", "slow", "refuse"]
SLOW_SECONDS = 2.0


class WandbServer:
    """Answers what a run asks when it starts; of all later requests, ``how`` decides."""

    def __init__(self, how: Behaviour) -> None:
        self.how = how
        self.started = 0
        self.spoiled = 0
        self.rows: list[dict[str, Any]] = []
        self._closing = threading.Event()
        handler = type("Bound", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def environment(self) -> dict[str, str]:
        """Return the variables that send a run here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0123456789" * 4}

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def spoil(self, request: BaseHTTPRequestHandler) -> bool:
        """Do to a request what the behaviour says; return whether it is to be answered."""
        if self.how == "good" or self.started == 0:
            return True
        self.spoiled += 1
        if self.how == "slow":
            self._closing.wait(SLOW_SECONDS)
            return True
        if self.how == "hang":
            self._closing.wait()
        elif self.how in ("error", "refuse"):
            code = 500 if self.how == "error" else 401
            request.send_response(code)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return False
        with suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)
        request.close_connection = True
        return False


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    fake: WandbServer

    def log_message(self, *_: Any) -> None:
        """Keep the terminal for the tests."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        starts = self.path == "/graphql" and _is_start(body)
        if not starts and not self.fake.spoil(self):
            return
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            answer = _answer(json.loads(body))
        elif self.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            lines = files.get("wandb-history.jsonl", {}).get("content", [])
            self.fake.rows += [json.loads(line) for line in lines]
        data = json.dumps(answer).encode()
        with suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        if starts and "upsertBucket" in answer["data"]:
            self.fake.started += 1

    do_PUT = do_GET = do_POST  # noqa: N815 - the names that http.server calls


def _is_start(body: bytes) -> bool:
    """Say whether a query is one of those that a run asks before its first row."""
    return any(
        name in body
        for name in (b"query Viewer", b"ServerInfo", b"RunResumeStatus", b"mutation UpsertBucket")
    )


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    query, variables = request["query"], request.get("variables") or {}
    if "mutation UpsertBucket" in query:
        entity = {"id": "ZW50", "name": "someone"}
        bucket = {
            "id": "YnVj",
            "name": variables.get("name"),
            "displayName": variables.get("displayName") or "run",
            "description": None,
            "config": "{}",
            "sweepName": None,
            "historyLineCount": 0,
            "project": {"id": "cHJv", "name": variables.get("project"), "entity": entity},
        }
        return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
    if "mutation CreateRunFiles" in query:
        return {"data": {"createRunFiles": {"runID": "YnVj", "uploadHeaders": [], "files": []}}}
    if "iewer" in query:
        viewer = {"id": "dXNl", "username": "someone", "entity": "someone", "flags": "{}"}
        return {"data": {"viewer": viewer | {"teams": {"edges": []}}, "serverInfo": None}}
    return {"data": {}}
