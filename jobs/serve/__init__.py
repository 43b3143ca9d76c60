"""``promptmill serve``: a run in the browser, live on 127.0.0.1 while it goes on. Reads only; needs neither torch nor Ray."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.serve.rows import Rows, WatchedRun
from jobs.serve.server import Server
from jobs.serve.site import Site

MANY = 50_000  # rows, which take a while to read


def serve(path: str | Path, port: int, *, memory: str = "4GB", on_message: Callable[[str], None], on_ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C. ``on_ready`` is given the address; port 0 is any that is free. ``memory`` is for metadata.

    Raises UserError.
    """
    with suppress(KeyboardInterrupt):
        run = WatchedRun.open(path)
        draws = sum(marker.draws for marker in run.markers())
        if draws > MANY:
            on_message(f"reading {draws:,} rows")
        rows = Rows(run, memory=memory)
        with Server(Site(rows), port) as server:
            on_ready(server.url)
            try:
                server.serve_forever()
            finally:
                rows.stop()
