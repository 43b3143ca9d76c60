"""What the commit markers of a run in an object store cost a resume: ``python -m tests.benchmarks.listing [--shards 10000 100000]``.

The server is on this machine, holds nothing, and answers after a pause (``--milliseconds``), as one elsewhere would: so requests that
follow one another, and those that are made at once, take what they take there.
"""

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import asdict
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

from rich.console import Console
from rich.table import Table

from jobs.bench import machine
from jobs.run_dir import RunDir
from pipeline.store import open_store
from schemas import layout
from schemas.records import Marker
from tests.loopback import Handler, answering
from tests.s3 import ENVIRONMENT

PAGE = 1000  # names in one answer, S3's most
SHA256 = "0" * 64
STAGES = ("sample", "score", "encode", "judge", "wait", "decode", "text")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--milliseconds", type=float, default=20.0)
    asked = parser.parse_args()
    columns = ("shards", "what", "requests", "seconds", "processor s")
    table = Table(*columns, title=f"a server that takes {asked.milliseconds:g} ms to answer")
    for shards in asked.shards:
        for what, count, wall, processor in measure(shards, asked.milliseconds / 1000):
            table.add_row(f"{shards:,}", what, f"{count:,}", f"{wall:.1f}", f"{processor:.1f}")
    Console().print(machine())
    Console().print(table)


def measure(shards: int, pause_seconds: float) -> list[tuple[str, int, float, float]]:
    """What was done, its requests, wall-clock seconds and the client's of the processor."""
    processes = multiprocessing.get_context("spawn")
    requests, address = processes.Value("i", 0), processes.Queue()
    server = processes.Process(target=serve, args=(shards, pause_seconds, requests, address), daemon=True)
    server.start()
    found: list[tuple[str, int, float, float]] = []
    try:
        with patch.dict(os.environ, ENVIRONMENT, AWS_ENDPOINT_URL=address.get(timeout=200)):
            store = open_store("s3://bucket/run")
            job: Any = None  # which the markers do not need
            run = RunDir(store, job)
            for what, count in (
                ("list one folder", lambda: len(store.sizes(layout.DONE))),
                ("list it and read the markers", lambda: sum(marker is not None for _, marker in run.each_marker())),
            ):
                requests.value, wall, processor = 0, time.perf_counter(), time.process_time()
                assert count() == shards
                found.append((what, requests.value, time.perf_counter() - wall, time.process_time() - processor))
    finally:
        server.kill()
        server.join()
    return found


def serve(shards: int, pause_seconds: float, requests: Any, address: Any) -> None:
    """In a process of its own: as much of S3 as is asked for."""

    class Answers(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with requests.get_lock():
                requests.value += 1
            time.sleep(pause_seconds)
            parts = urlsplit(self.path)
            body = _page(parse_qs(parts.query), shards) if parts.query else _marker(int(parts.path.rpartition("/")[2].split(".")[0]))
            self.send_response(200)
            for name, value in (("content-length", str(len(body))), ("last-modified", "Sat, 28 Nov 2026 20:00:00 GMT"), ("etag", '"0"')):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with answering(Answers) as url:
        address.put(url)
        while True:
            time.sleep(1)


def _page(query: dict[str, list[str]], shards: int) -> bytes:
    first = int(query.get("continuation-token", ["0"])[0])
    last = min(first + PAGE, shards)
    more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < shards else ""
    objects = "".join(
        f"<Contents><Key>run/{layout.done_file(number)}</Key><LastModified>2026-11-28T20:00:00.000Z</LastModified>"
        f'<ETag>"0"</ETag><Size>900</Size></Contents>'
        for number in range(first, last)
    )
    truncated = str(last < shards).lower()
    return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{objects}</ListBucketResult>".encode()


def _marker(shard_id: int) -> bytes:
    marker = Marker(
        shard_id=shard_id,
        draws=1000,
        accepted=900,
        rejected=100,
        failed=0,
        num_bytes=10**8,
        metadata_sha256=SHA256,
        images_sha256=SHA256,
        draws_sha256=SHA256,
        seconds=dict.fromkeys(STAGES, 1.0),
        worker="host:1",
        finished_at="2026-11-28T20:00:00+00:00",
        reasons={"rejected blank": 100},
    )
    return json.dumps(asdict(marker), indent=1).encode()


if __name__ == "__main__":
    main()
