"""A real HTTP server on this machine that speaks the part of the Hugging Face hub's API that a push needs. It keeps all in memory.

``faults`` makes it misbehave: a pattern of ``METHOD /path`` and the answers for the next requests that match, a status each, ``0``
for doing what was asked and hanging up without an answer, ``None`` for doing right. ``held`` is set when a request is reached that
``HOLD`` keeps without an answer until the client is gone.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READ_ONLY = "hf_a_secret_of_the_tests", "hf_may_only_read"
HOLD = -1
LARGE = (".parquet", ".tar", ".webp")


@dataclass
class Repo:
    """A dataset: its files now, and one title for each commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.parquet filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])
    branches: dict[str, "Repo"] = field(default_factory=dict)  # beside main

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()

    def at(self, revision: str) -> "Repo":
        """main, or a branch, by name or commit."""
        named = {"main": self, self.sha: self} | {branch.sha: branch for branch in self.branches.values()} | self.branches
        return named[revision]


class HubServer(ThreadingHTTPServer):
    """``asked`` has every request; ``uploads`` the sha256 of every large file that came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, list[int | None]] = {}
        self.asked: list[str] = []
        self.uploads: list[str] = []
        self.lock = threading.Lock()
        self.held, self.released = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride] - it serves nobody else
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.asked.append(f"{method} {path}")
            matching = (left for pattern, left in self.server.faults.items() if left and re.search(pattern, f"{method} {path}"))
            fault = next((left.pop(0) for left in matching), None)
            wrong = fault is not None and fault > 0
            status, answer = (fault or 0, {"error": "as the test wanted it"}) if wrong else self._answer(method, path, body)
        if fault == HOLD:
            self.server.held.set()
            self.server.released.wait(30)
        if fault in (0, HOLD):
            self.close_connection = True
            return
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 429:
            self.send_header("RateLimit", '"api";r=0;t=1')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if found := re.fullmatch(r"/objects/(\w+)", path):
            if hashlib.sha256(body).hexdigest() != found[1]:
                return 400, {"error": "other bytes than were announced"}
            self.server.objects[found[1]] = body
            self.server.uploads.append(found[1])
            return 200, {}
        if path == "/api/validate-yaml":
            wrong = b"license: nonsense" in body
            return (400 if wrong else 200), {"errors": [{"message": '"license" must be one of these'}] if wrong else [], "warnings": []}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            return 401, {"error": "Invalid username or password."}
        if token == READ_ONLY and method != "GET":
            return 403, {"error": "You don't have the rights"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/(?:api/)?datasets/([\w-]+/[\w-]+?)(?:\.git/info/lfs/objects/batch|/(\w+)/(\w+))?", path):
            name, verb, revision = found[1], found[2], found[3]
            if name not in self.server.repos:
                return 404, {"error": "Repository not found"}
            if verb == "branch":
                return self._branch(name, revision)
            try:
                repo = self.server.repos[name].at(revision or "main")
            except KeyError:
                return 404, {"error": "Invalid rev id"}
            if verb in (None, "revision") and method == "GET":
                return 200, {"id": name, "sha": repo.sha, "private": repo.private}
            return {"tree": self._tree, "preupload": self._preupload, "commit": self._commit, None: self._batch}[verb](name, repo, body)
        return 404, {"error": f"no such path: {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name.startswith("others/"):
            return 403, {"error": "You don't have the rights to create a dataset under this namespace"}
        url = {"url": f"{self.server.url}/datasets/{name}"}
        if name in self.server.repos:
            return 409, {"error": "You already created this dataset repo"} | url
        self.server.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return 200, url

    def _branch(self, name: str, branch: str) -> tuple[int, Any]:
        repo = self.server.repos[name]
        if branch in repo.branches:
            return 409, {"error": "Reference already exists"}
        repo.branches[branch] = Repo(private=repo.private, files=dict(repo.files), commits=list(repo.commits))
        return 200, {}

    def _batch(self, name: str, repo: Repo, body: bytes) -> tuple[int, Any]:
        objects = [{"oid": one["oid"], "size": one["size"]} for one in json.loads(body)["objects"]]
        for one in objects:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, repo: Repo, body: bytes) -> tuple[int, Any]:
        files, title = dict(repo.files), ""
        for line in map(json.loads, body.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "header":
                if value.get("parentCommit") not in (None, repo.sha):
                    return 412, {"error": "A commit has happened since. Please refresh and try again."}
                title = value["summary"]
            elif kind == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif kind == "file":
                files[value["path"]] = b64decode(value["content"])
            elif kind == "deletedFile":
                del files[value["path"]]
        repo.files = files
        repo.commits.append(f"{title}: {len(repo.commits)}")
        return 200, {"success": True, "commitOid": repo.sha, "commitUrl": f"{self.server.url}/datasets/{name}/commit/{repo.sha}"}

    def _tree(self, name: str, repo: Repo, body: bytes) -> tuple[int, Any]:
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "data", "oid": "0" * 40}]
        for path, data in repo.files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
            if path.endswith(LARGE):
                entry |= {"oid": "1" * 40, "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
            entries.append(entry)
        return 200, entries

    def _preupload(self, name: str, repo: Repo, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)["files"]
        mode = {True: "lfs", False: "regular"}
        return 200, {
            "files": [{"path": one["path"], "uploadMode": mode[one["path"].endswith(LARGE)], "shouldIgnore": False} for one in asked]
        }


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub for the time of a test."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
