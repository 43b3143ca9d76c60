"""HTTP on 127.0.0.1: who may ask, and how. What is asked for is answered by ``site``.

The pages show text that anybody may have written, and any web page in the user's browser can send requests here. So: only GET, and where
something is taken in, forms of our own pages; only for this machine's own names, since a foreign name may be made to point here
(DNS rebinding); not on behalf of another site; and nothing that is sent may be run, framed or used by other pages.
"""

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs

from jobs.serve.answer import Answer, Pages
from jobs.serve.parts import POLICY
from schemas.errors import UserError

T = TypeVar("T")

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost")
IDLE_SECONDS = 60  # a connection that asks for nothing is closed
FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 10_000
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Threads of it do not keep the process from ending."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, site: Pages, port: int) -> None:
        self.site = site
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); choose another, or 0 for any that is free") from None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError | socket.timeout):
            log.exception("while a request was read")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    @property
    def _server(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        if self._is_ours(("none", "same-origin")):
            path, _, query = self.path.partition("?")
            self._send(self._guarded(lambda: self._server.site.answer(path, query)))

    def do_POST(self) -> None:
        """A form of one of our pages; which one, its token tells the site."""
        if not self._is_ours(("same-origin",)):
            return None
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Content-Type") != FORM or not (length.isascii() and length.isdigit() and int(length) <= MAX_FORM_BYTES):
            return self.send_error(501)
        fields = {name: values[-1] for name, values in parse_qs(self.rfile.read(int(length)).decode("ascii", "replace")).items()}
        answer = self._guarded(lambda: self._server.site.submit(self.path, fields))
        return self._send(answer) if answer else self.send_error(501)

    def _is_ours(self, sites: Sequence[str]) -> bool:
        """Whether the request is for us and comes from where it may; it is refused otherwise. Browsers say both, programs need not."""
        name, origin = _hostname(self.headers.get_all("Host", [])), self.headers.get("Origin")
        if name not in OWN_NAMES:
            self._refuse(421, f"This is not that host; open {self._server.url}")
        elif self.headers.get("Sec-Fetch-Site", sites[0]) not in sites or origin not in (None, f"http://{self.headers['Host'].strip()}"):
            self._refuse(403, f"Another site asked for this; open {self._server.url} yourself")
        else:
            return True
        return False

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no valid GET."""
        if code == 501:
            return self._refuse(405, "Only GET is answered", {"Allow": "GET"})
        return self._refuse(code, message or "This is no request that can be answered")

    def version_string(self) -> str:
        return "promptmill"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""

    def _guarded(self, make: Callable[[], T]) -> T | Answer:
        try:
            return make()
        except Exception:
            log.exception("while %s was made", self.path)
            return self._server.site.says(
                500, "That did not work", "This is a mistake in promptmill; the terminal shows where it happened."
            )

    def _refuse(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        """Without a word about the run."""
        self.close_connection = True
        self._send(Answer(body=f"{text}\n".encode(), kind="text/plain; charset=utf-8", status=status, headers=headers or {}))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in (HEADERS | dict(answer.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)


def _hostname(hosts: list[str]) -> str | None:
    """Of the one Host header, without its port."""
    if len(hosts) != 1:
        return None
    name, _, port = hosts[0].strip().lower().partition(":")
    return name if not port or port.isdigit() else None
