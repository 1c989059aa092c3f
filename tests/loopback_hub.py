"""A Hugging Face hub on the loopback interface: what the client says on the wire, and no more.

Repositories live in memory as {path: bytes}; every commit is kept, so that revisions can be asked
for. ``requests`` is the record of (method, path), with the token each of them carried.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
LARGE_FILE_SUFFIX = ".safetensors"


class LoopbackHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repositories[repo][-1][1]

    def commit(self, repo: str, changed: dict[str, bytes]) -> str:
        files = (self.files(repo) if self.repositories[repo] else {}) | changed
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories[repo].append((oid, files))
        return oid


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        path, body = self._begin()
        if path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            return self._json({"errors": [], "warnings": [], "seen": content[:3]})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            if repo in self.server.repositories:
                return self._json({"url": f"{self.server.url}/{repo}"}, 409)
            self.server.repositories[repo] = []
            self.server.private[repo] = wanted.get("visibility") == "private" or bool(
                wanted.get("private")  # older clients
            )
            return self._json({"url": f"{self.server.url}/{repo}"})
        if path.endswith("/info/lfs/objects/batch"):
            return self._lfs_batch(json.loads(body))
        owner, name, verb = path.removeprefix("/api/models/").split("/")[:3]
        repo = f"{owner}/{name}"
        if repo not in self.server.repositories:
            return self._missing_repository()
        if verb == "preupload":
            return self._preupload(json.loads(body))
        if verb == "commit":
            return self._commit(repo, body)
        return self._json({"error": f"unknown POST {path}"}, 500)

    def do_PUT(self) -> None:
        path, body = self._begin()
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._json({})

    def do_GET(self) -> None:
        path, _ = self._begin()
        if path.startswith("/api/models/"):
            return self._describe(path.removeprefix("/api/models/").split("/"))
        return self._resolve(path, with_body=True)

    def do_HEAD(self) -> None:
        path, _ = self._begin()
        self._resolve(path, with_body=False)

    def _begin(self) -> tuple[str, bytes]:
        if self.server.down:
            self.close_connection = True
            raise ConnectionAbortedError
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        return path, self.rfile.read(length)

    def _lfs_batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {"upload": {"href": f"{self.server.url}/objects/{item['oid']}"}},
            }
            for item in wanted["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _preupload(self, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE_FILE_SUFFIX) else "regular",
                "shouldIgnore": False,
            }
            for file in wanted["files"]
        ]
        self._json({"files": files})

    def _commit(self, repo: str, body: bytes) -> None:
        changed: dict[str, bytes] = {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changed[value["path"]] = self.server.objects[value["oid"]]
        oid = self.server.commit(repo, changed)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _describe(self, parts: list[str]) -> None:
        repo = "/".join(parts[:2])
        found = self._revision(repo, parts[3] if len(parts) > 3 else "main")
        if found is None:
            return self._missing_repository()
        oid, files = found
        if len(parts) > 2 and parts[2] == "tree":
            return self._json(
                [
                    {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                    for k, v in files.items()
                ]
            )
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": repo, "sha": oid, "private": False, "siblings": siblings})

    def _revision(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.server.repositories.get(repo)
        if not commits:
            return None
        return commits[-1] if revision == "main" else dict_of(commits).get(revision)

    def _resolve(self, path: str, *, with_body: bool) -> None:
        parts = path.strip("/").split("/")
        if len(parts) < 5:
            return self._json({"error": f"nothing at {path}"}, 404)
        owner, name, _, revision, *rest = parts
        found = self._revision(f"{owner}/{name}", revision)
        if found is None:
            return self._missing_repository()
        oid, files = found
        data = files["/".join(rest)]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return self._answer(200, data, headers, with_body=with_body)

    def _missing_repository(self) -> None:
        data = json.dumps({"error": "Repository not found"}).encode()
        self._answer(404, data, {"X-Error-Code": "RepoNotFound"}, with_body=self.command != "HEAD")

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


def dict_of(
    commits: list[tuple[str, dict[str, bytes]]],
) -> dict[str, tuple[str, dict[str, bytes]]]:
    return {oid: (oid, files) for oid, files in commits}


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Serve until the end of the block."""
    hub = LoopbackHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
