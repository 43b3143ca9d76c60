"""How a command looks while it goes on: one live line on a terminal, plain lines elsewhere. Always on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from jobs.run import Tally

PLAIN_SECONDS = 10.0


class Display(Protocol):
    """What a command tells the user."""

    def tally(self, tally: Tally) -> None:
        """New counts."""
        ...

    def count(self, what: str, done: int, total: int) -> None:
        """How many of so many shards, files, images are done."""
        ...

    def message(self, text: str) -> None:
        """Something worth a line of its own."""
        ...


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """A live bar if ``console`` is a terminal, else plain lines every ten seconds."""
    if not console.is_terminal:
        yield _Plain(console)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), _Counts())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Live(progress)


class _Live:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting")

    def tally(self, tally: Tally) -> None:
        self._progress.update(
            self._task,
            description="sampling" if tally.workers else "loading the models",
            total=tally.planned,
            completed=_drawn(tally),
            tally=tally,
        )

    def count(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=what, total=total, completed=done)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class _Counts(ProgressColumn):
    """Counts in colour; no maximum refresh rate of its own."""

    def render(self, task: Task) -> Text:
        tally = task.fields.get("tally")
        if tally is None:
            return Text(f"{int(task.completed):,}/{task.total:,}" if task.total else "")
        return Text.assemble(
            f"{_drawn(tally):,}/{tally.planned:,}  ",
            (f"{rate(tally):.1f} images/s", "bold"),
            f"  ETA {eta(tally)}  ",
            (f"{tally.accepted:,} accepted", "green"),
            "  ",
            (f"{tally.rejected:,} rejected", "yellow"),
            "  ",
            (f"{tally.failed:,} failed", "red" if tally.failed else "dim"),
            (f"  {tally.workers} workers", "dim"),
        )


class _Plain:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def tally(self, tally: Tally) -> None:
        if not self._due():
            return
        self.message(
            f"{_drawn(tally)}/{tally.planned} draws, {rate(tally):.2f} images/s, ETA {eta(tally)}, {tally.accepted} accepted,"
            f" {tally.rejected} rejected, {tally.failed} failed, {tally.workers} workers"
        )

    def count(self, what: str, done: int, total: int) -> None:
        if self._due():
            self.message(f"{done:,}/{total:,} {what}")

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _due(self) -> bool:
        """Whether the last line was printed ten seconds ago."""
        if time.monotonic() - self._last < PLAIN_SECONDS:
            return False
        self._last = time.monotonic()
        return True


def rate(tally: Tally) -> float:
    """Images per second since the first worker was ready."""
    return max(tally.sampled, tally.committed) / (time.monotonic() - tally.first_ready) if tally.first_ready else 0.0


def eta(tally: Tally) -> str:
    """Time left at the present rate, as 1:02:03."""
    speed = rate(tally)
    if not speed:
        return "-:--"
    minutes, seconds = divmod(round((tally.planned - _drawn(tally)) / speed), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _drawn(tally: Tally) -> int:
    """Draws that are made, committed or not."""
    return min(tally.planned, tally.before + max(tally.sampled, tally.committed))
