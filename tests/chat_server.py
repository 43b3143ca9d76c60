"""A real HTTP server on this machine that speaks OpenAI's chat API. Words in a prompt make it misbehave.

``BUSY`` (429 with Retry-After, once), ``BROKEN`` (500, twice), ``DOWN`` (503, always), ``SLOW`` (answers too late, once), ``GARBLED``
(no JSON, once), ``PROSE`` (no list, always), ``FEW`` (too few texts, once), ``RUDE`` (bad words in one, once), ``REFUSED`` (the model
declines), ``BLOCKED`` (content policy).
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-another-secret-of-the-tests"


class ChatServer(ThreadingHTTPServer):
    """``asked`` holds every body, ``tries`` counts them by prompt; ``most_at_once`` is how many requests were open together. The first
    ``answered_at_once`` are answered, if that is set, the others once ``go`` is.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds = seconds
        self.asked: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.open_now = self.most_at_once = 0
        self.lock = threading.Lock()
        self.answered_at_once: int | None = None
        self.go = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up, or are killed, are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer  # pyright: ignore[reportIncompatibleVariableOverride] - it serves nobody else
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with server.lock:
            server.asked.append(body)
            late = server.answered_at_once is not None and len(server.asked) > server.answered_at_once
            server.tries[prompt] += 1
            number = server.tries[prompt]
            server.open_now += 1
            server.most_at_once = max(server.most_at_once, server.open_now)
        try:
            time.sleep(server.seconds)
            if late:
                server.go.wait(60)
            self._answer(prompt, number)
        finally:
            with server.lock:
                server.open_now -= 1

    def _answer(self, prompt: str, number: int) -> None:
        if self.path != "/v1/chat/completions":
            self._error(404, "not_found", "no such path")
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            self._error(401, "invalid_api_key", f"Incorrect API key provided: {self.headers.get('Authorization')}")
        elif "BUSY" in prompt and number == 1:
            self._error(429, "rate_limit_exceeded", "slow down", {"Retry-After": "0.1"})
        elif "BROKEN" in prompt and number <= 2:
            self._error(500, "server_error", "oops")
        elif "DOWN" in prompt:
            self._error(503, "overloaded", "come back later")
        elif "BLOCKED" in prompt:
            self._error(400, "content_policy_violation", "Your request was rejected")
        elif "GARBLED" in prompt and number == 1:
            self._reply(200, b'{"choices": [{"mess')
        elif "REFUSED" in prompt:
            self._say(None, refusal="I will not write about that.")
        elif "PROSE" in prompt:
            self._say("Certainly! What would you like?")
        else:
            if "SLOW" in prompt and number == 1:
                time.sleep(1.0)
            self._write(prompt, 1 if "FEW" in prompt and number == 1 else 2, " in Bad\nWords" if "RUDE" in prompt and number == 1 else "")

    def _write(self, prompt: str, count: int, first: str) -> None:
        """An answer that is a function of the prompt, in the manner of models that are not to be stopped from talking."""
        texts = json.dumps([f"{prompt}, version {n}\nat dusk{'' if n else first}" for n in range(count)])
        self._say(f"<think>a list [of what?]</think>Here you are:\n```json\n{texts}\n```\nEnjoy!")

    def _say(self, content: str | None, **more: Any) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
        self._reply(200, json.dumps({"model": "writer-2026-11-01", "choices": [choice], "usage": usage}).encode())

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._reply(status, json.dumps({"error": {"code": code, "message": message, "type": "error"}}).encode(), headers)

    def _reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def chatting(**settings: Any) -> Iterator[ChatServer]:
    """A server for the time of a test."""
    server = ChatServer(**settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
