"""Counts on stderr: a live line on a terminal, plain lines now and then elsewhere."""

import io

import pytest
from rich.console import Console

from jobs import progress


def test_elsewhere_a_count_is_a_plain_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: seconds[0])
    sink = io.StringIO()
    with progress.display(Console(file=sink, force_terminal=False)) as shown:
        for done in range(0, 3001, 100):
            seconds[0] += 1
            shown.count("images", done, 3000)
    assert sink.getvalue().splitlines() == ["900/3,000 images", "1,900/3,000 images", "2,900/3,000 images"]


def test_on_a_terminal_a_count_is_part_of_the_live_line() -> None:
    sink = io.StringIO()
    with progress.display(Console(file=sink, force_terminal=True, width=80)) as shown:
        shown.count("images", 1200, 3000)
    assert "images" in sink.getvalue()
    assert "1,200/3,000" in sink.getvalue()
