"""``promptmill serve``: a run in the browser, live on 127.0.0.1 while it goes on. Reads only; needs neither torch nor Ray."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.rows import Rows, WatchedRun
from jobs.serve.server import Server
from jobs.serve.site import Site

FIRST_SECONDS = 1.0  # of reading, before a page is there


def serve(path: str | Path, port: int, *, memory: str = "4GB", on_message: Callable[[str], None], on_ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C. ``on_ready`` is given the address; port 0 is any that is free. ``memory`` is for metadata.

    Raises UserError.
    """
    with suppress(KeyboardInterrupt):
        run = WatchedRun.open(path)
        rows = Rows(run, memory=memory, seconds_at_a_time=FIRST_SECONDS)
        with Server(Site(rows), port) as server:
            if rows.behind:
                on_message(f"{rows.behind:,} shards are not read yet; the pages fill up meanwhile")
            threading.Thread(target=rows.keep_up, name="rows", daemon=True).start()
            on_ready(server.url)
            try:
                server.serve_forever()
            finally:
                rows.stop()
