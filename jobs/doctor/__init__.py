"""``promptmill doctor``: is this installation fit for a job? One line a check, with the remedy where it is not.

Never raises: whatever is broken is a check that failed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from jobs.doctor import packages, surroundings
from jobs.doctor.check import REINSTALL, Check

__all__ = ["EXAMINATIONS", "Check", "doctor"]

EXAMINATIONS: dict[str, Callable[[Path], Iterable[Check]]] = {
    "python": surroundings.python,
    "machine": surroundings.machine,
    "torch": packages.heavy_packages,
    "packages": packages.packages,
    "weights": surroundings.weights,
    "hub": surroundings.hub,
    "folder": surroundings.folder,
}


def doctor(folder: str | Path = ".") -> list[Check]:
    """Look at everything that a job needs; ``folder`` is where its runs would be written."""
    checks: list[Check] = []
    for name, examine in EXAMINATIONS.items():
        checks += _guarded(name, lambda examine=examine: examine(Path(folder)))
    return checks


def _guarded(name: str, examine: Callable[[], Iterable[Check]]) -> list[Check]:
    """Broad on purpose: a doctor that falls ill helps nobody."""
    found: list[Check] = []
    try:
        found.extend(examine())
    except Exception as error:
        found.append(Check(name=name, ok=False, detail=f"could not be examined ({type(error).__name__}: {_line(error)})", remedy=REINSTALL))
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
