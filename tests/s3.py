"""A real S3 server on this machine, and a proxy before it that fails on demand."""

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.loopback import Handler, answering

BUCKET = "bucket"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}

Fault = Callable[[str, str, int], str | None]


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a fresh moto server with one bucket; the environment points to it meanwhile."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=endpoint)
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield endpoint
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


@contextmanager
def proxy(endpoint: str, fault: Fault) -> Iterator[str]:
    """An endpoint that passes requests on, unless ``fault(method, path, number)`` names what goes wrong.

    ``500``: refused. ``late 500``: done, but the answer is an error. ``hang``: no answer for 20 seconds.
    ``cut``: the body is read for half and the connection closed. ``slow``: the body is read a piece at a time.
    """
    seen = iter(range(10**9))
    stopped = threading.Event()

    class Answers(Handler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            what = fault(self.command, self.path, next(seen))
            length = int(self.headers.get("content-length", 0))
            if what == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = b"".join(self._pieces(length)) if what == "slow" else self.rfile.read(length)
            if what == "hang":
                stopped.wait(20)
                self.close_connection = True
                return
            if what == "500":
                self._answer(500, {}, b"")
                return
            connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                data, headers = response.read(), dict(response.getheaders())
            finally:
                connection.close()
            self._answer(*((500, {}, b"") if what == "late 500" else (response.status, headers, data)))

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def _pieces(self, length: int) -> Iterator[bytes]:
            for start in range(0, length, 65536):
                yield self.rfile.read(min(65536, length - start))
                time.sleep(0.05)

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            skipped = ("content-length", "connection", "transfer-encoding", "date", "server")
            for name, value in headers.items():
                if name.lower() not in skipped:
                    self.send_header(name, value)
            head = self.command == "HEAD"
            self.send_header(
                "content-length", headers.get("content-length", headers.get("Content-Length", "0")) if head else str(len(data))
            )
            self.end_headers()
            if not head:
                self.wfile.write(data)

    with answering(Answers) as url:
        try:
            yield url
        finally:
            stopped.set()


@contextmanager
def denying() -> Iterator[str]:
    """An endpoint that answers every request as S3 does where permission is missing."""
    body = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'

    class Answers(Handler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Answers) as url:
        yield url
