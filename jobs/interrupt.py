"""Signals become a drain: the first SIGINT or SIGTERM lets the current batches finish, within the grace that is given; a second one
ends the process at once. Neither loses anything that was committed.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 130  # exit status of a run that was stopped


@contextmanager
def draining(stop: threading.Event, grace_seconds: float | None, on_message: Callable[[str], None]) -> Iterator[None]:
    """Sets ``stop`` at the first signal. Without ``grace_seconds`` the drain takes as long as it takes."""

    def end() -> None:
        os._exit(STOPPED)

    def give_up() -> None:
        on_message(f"stopping: not finished within {grace_seconds:g} s, ending now; what was committed stays, the same command goes on")
        end()

    timers: list[threading.Timer] = []

    def handle(signum: int, frame: object) -> None:
        if stop.is_set():
            end()
        stop.set()
        within = "" if grace_seconds is None else f", for {grace_seconds:g} s at the most"
        on_message(f"stopping: finishing the current batches{within} (press Ctrl-C again to stop at once; nothing is lost either way)")
        if grace_seconds is not None:
            timer = threading.Timer(grace_seconds, give_up)
            timer.daemon = True
            timers.append(timer)
            timer.start()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
