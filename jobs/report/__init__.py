"""``promptmill report``: a run on one HTML page that can be mailed: no script, no network, no file beside it."""

from pathlib import Path

from jobs.report.facts import gather
from jobs.report.page import render
from jobs.run_dir import RunDir
from pipeline.store import LocalStore


def report(path: str | Path, out: Path) -> int:
    """Write the page, replacing an older one at once; its size in bytes. Raises UserError."""
    page = render(gather(RunDir.open(path))).encode("utf-8", "replace")
    LocalStore(out.absolute().parent).put(out.name, page)
    return len(page)
