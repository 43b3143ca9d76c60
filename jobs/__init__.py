"""What a user does with a job: one file per verb. ``open_run`` is the way in from Python."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.opened import OpenRun


def open_run(path: str | Path) -> "OpenRun":
    """A run folder or URL, to be read: ``open_run("runs/demo").metadata()``. Raises RunFolderError."""
    from jobs.opened import OpenRun

    return OpenRun(path)
