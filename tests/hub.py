"""A model hub on this machine: as much of the API of huggingface.co as a download needs, from a folder."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.digests import git_sha1
from tests.loopback import Handler, answering

REPO = "acme/painter"


@dataclass(kw_only=True)
class Hub:
    """``commits`` are folders by commit, ``main`` is the newest. ``asked`` are the files that were fetched.

    ``answer``: (status, X-Error-Code, X-Error-Message) in the place of everything. ``stall``: the file that is sent for half before
    ``go`` is set, ``stalled`` tells that one is. ``flip``: the file that comes with another byte.
    """

    url: str
    commits: dict[str, Path]
    main: str
    asked: list[str] = field(default_factory=list)
    answer: tuple[int, str, str] | None = None
    stall: str | None = None
    flip: str | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hub_server(commits: dict[str, Path], main: str) -> Iterator[Hub]:
    """A hub with one repository."""

    class Answers(Handler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = re.fullmatch(rf"/{REPO}/resolve/(\w+)/(.+)", path)
            tree = re.fullmatch(rf"/api/models/{REPO}/tree/(\w+)", path)
            revision = re.fullmatch(rf"/api/models/{REPO}/revision/(.+)", path)
            if hub.answer:
                status, code, message = hub.answer
                self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})
            elif revision and (commit := hub.main if revision[1] == "main" else revision[1]) in hub.commits:
                self._send(200, json.dumps({"id": REPO, "sha": commit, "siblings": []}).encode())
            elif tree:
                self._send(200, json.dumps(_tree(hub.commits[tree[1]])).encode())
            elif file and file[1] in hub.commits:
                self._file(file[1], file[2])
            else:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if REPO in path else "RepoNotFound"})

        do_HEAD = do_GET

        def _file(self, commit: str, name: str) -> None:
            source = hub.commits[commit] / name
            data, size = source.read_bytes(), source.stat().st_size
            headers = {
                "X-Repo-Commit": commit,
                "ETag": f'"{_blob(source)}"',
                "X-Linked-Etag": f'"{_blob(source)}"',
                "X-Linked-Size": str(size),
            }
            if self.command == "GET":
                hub.asked.append(name)
                data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:] if name == hub.flip else data
            self._send(200, data, headers, stall=name == hub.stall and self.command == "GET")

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, stall: bool = False) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            half = len(body) // 2 if stall else 0
            self.wfile.write(body[:half])
            if stall:
                self.wfile.flush()
                hub.stalled.set()
                hub.go.wait(60)
            self.wfile.write(body[half:])

    with answering(Answers) as url:
        hub = Hub(url=url, commits=commits, main=main)
        try:
            yield hub
        finally:
            hub.go.set()


def in_cache(source: Path, cache: Path, *, commit: str) -> Path:
    """Snapshot of a folder in a cache as huggingface_hub lays it out: links to files that are named by their content."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    for folder in ("refs", "blobs"):
        (repo / folder).mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        blob, link = repo / "blobs" / _blob(file), snapshot / file.relative_to(source)
        shutil.copy(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def flip(path: Path) -> None:
    """Another bit near the end of a file, same size."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def _tree(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        entry: dict[str, object] = {"type": "file", "path": str(path.relative_to(folder)), "size": size, "oid": git_sha1(path)}
        found.append(entry | ({"lfs": {"oid": _blob(path), "size": size, "pointerSize": 134}} if _is_large(path) else {}))
    return found


def _blob(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if _is_large(path) else git_sha1(path)


def _is_large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin")
