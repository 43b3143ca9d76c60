"""What a worker did when: the stages of its shards by thread, as a Chrome trace (https://ui.perfetto.dev opens it)."""

import json
import os
import threading
from collections import deque

MOST_SPANS = 5000  # the latest


class Timeline:
    """Spans of one process. May be added to from any thread."""

    def __init__(self) -> None:
        self._spans: deque[tuple[str, float, float, int]] = deque(maxlen=MOST_SPANS)
        self._threads: dict[int, str] = {}

    def add(self, stage: str, start_seconds: float, seconds: float) -> None:
        """A stage that the calling thread has just ended; ``start_seconds`` are of any steady clock."""
        thread = threading.get_native_id()
        self._threads[thread] = threading.current_thread().name
        self._spans.append((stage, start_seconds, seconds, thread))

    def to_json(self) -> bytes:
        """The trace."""
        process = os.getpid()
        events: list[dict[str, object]] = [
            {"name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
            for thread, name in list(self._threads.items())
        ]
        events += [
            {"name": stage, "ph": "X", "ts": start * 1e6, "dur": seconds * 1e6, "pid": process, "tid": thread}
            for stage, start, seconds, thread in list(self._spans)
        ]
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
