"""A real HTTP server on this machine that speaks OpenAI's images API. Words in a prompt make it misbehave.

``BUSY`` (429 with Retry-After, once), ``BROKEN`` (500, twice), ``DOWN`` (503, always), ``SLOW`` (answers too late, once), ``DRIP`` (so
slowly that it never ends), ``GARBLED`` (no JSON, once), ``EMPTY`` (no image, always), ``SMALL`` (wrong size), ``NOPICTURE``,
``REFUSED`` (content policy), ``BAD`` (400), ``BROKE`` (no money), ``HANGUP`` (connection closed, once), ``URL`` (image behind an address).
"""

import base64
import email
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

KEY = "sk-a-secret-of-the-tests"


class ImageServer(ThreadingHTTPServer):
    """``asked`` holds every body; ``most_at_once`` how many requests were open together."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, key: str | None = None, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key, self.seconds, self.retry_after = key, seconds, "0.3"
        self.asked: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.times: list[float] = []
        self.keys_seen: list[tuple[str, str | None]] = []
        self.open_now = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ImageServer  # pyright: ignore[reportIncompatibleVariableOverride] - it serves nobody else
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.keys_seen.append((self.path, self.headers.get("Authorization")))
        self._reply(200, picture(16, 16, 3), kind="image/png")

    def do_POST(self) -> None:
        server = self.server
        body = self._body(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.tries[body["prompt"]] += 1
            server.times.append(time.monotonic())
            server.open_now += 1
            server.most_at_once = max(server.most_at_once, server.open_now)
        try:
            time.sleep(server.seconds)
            self._answer(body["prompt"], body, server.tries[body["prompt"]])
        finally:
            with server.lock:
                server.open_now -= 1

    def _body(self, data: bytes) -> dict[str, Any]:
        """Fields of JSON, or of a form: texts as str, files as bytes."""
        kind = self.headers["Content-Type"]
        if kind == "application/json":
            return json.loads(data)
        form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + data)
        parts = [part for part in form.walk() if not part.is_multipart()]
        found = {str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True) for part in parts}
        named = {str(part.get_param("name", header="content-disposition")) for part in parts if part.get_filename()}
        return {name: value if name in named else bytes(value).decode() for name, value in found.items()}  # pyright: ignore[reportArgumentType]

    def _answer(self, prompt: str, body: dict[str, Any], number: int) -> None:
        sent = self.headers.get("Authorization")
        if self.path != f"/v1/images/{'edits' if 'image' in body else 'generations'}":
            self._error(404, "not_found", "no such path")
        elif self.server.key and sent != f"Bearer {self.server.key}":
            self._error(401, "invalid_api_key", f"Incorrect API key provided: {sent}")
        elif "BUSY" in prompt and number == 1:
            self._error(429, "rate_limit_exceeded", "slow down", {"Retry-After": self.server.retry_after})
        elif "BROKEN" in prompt and number <= 2:
            self._error(500, "server_error", "oops")
        elif "DOWN" in prompt:
            self._error(503, "overloaded", f"come back later, {sent}")
        elif "BROKE" in prompt and "BROKEN" not in prompt:
            self._error(429, "insufficient_quota", "You exceeded your current quota")
        elif "REFUSED" in prompt:
            self._error(400, "content_policy_violation", "Your request was rejected\nby the safety system")
        elif "BAD" in prompt:
            self._error(400, "invalid_value", "no")
        elif "GARBLED" in prompt and number == 1:
            self._reply(200, b'{"data": [{"b64_js')
        elif "EMPTY" in prompt:
            self._reply(200, b'{"data": []}')
        elif "HANGUP" in prompt and number == 1:
            self.close_connection = True
        elif "DRIP" in prompt:
            self._drip()
        else:
            if "SLOW" in prompt and number == 1:
                time.sleep(1.0)
            self._picture(prompt, body)

    def _picture(self, prompt: str, body: dict[str, Any]) -> None:
        width, height = map(int, body["size"].split("x"))
        data = picture(width // 2 if "SMALL" in prompt else width, height, len(prompt) + int(body.get("seed", 0)))
        if "URL" in prompt:
            item = {"url": prompt.split("URL ", 1)[1] or "/files/1.png"}
        else:
            item = {"b64_json": base64.b64encode(b"no picture" if "NOPICTURE" in prompt else data).decode(), "revised_prompt": prompt}
        self._reply(200, json.dumps({"created": 1, "data": [item]}).encode())

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)
        self.close_connection = True

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._reply(status, json.dumps({"error": {"code": code, "message": message, "type": "error"}}).encode(), headers=headers)

    def _reply(self, status: int, data: bytes, *, kind: str = "application/json", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def picture(width: int, height: int, seed: int) -> bytes:
    """A PNG of noise."""
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


@contextmanager
def serving(**settings: Any) -> Iterator[ImageServer]:
    """A server for the time of a test."""
    server = ImageServer(**settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
