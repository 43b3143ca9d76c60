"""Pages of docs/ whose figures the scripts of this folder put between marks of their own."""

from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "speed.md"
EVALUATE = REPOSITORY / "docs" / "evaluate.md"


def fill(name: str, texts: Sequence[str], *, page: Path = PAGE) -> None:
    """Put paragraphs between ``<!-- name: begin -->`` and ``<!-- name: end -->``, in the place of what stands there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n" + "\n\n".join(texts) + f"\n\n{end}{rest.split(end)[1]}")
