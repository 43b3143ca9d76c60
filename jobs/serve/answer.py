"""What a page of a run is asked for, and what comes back; HTTP itself is in ``server``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

TYPES = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
KEPT = {"Cache-Control": "private, max-age=3600"}  # an image is a function of its draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status, media type, bytes and further headers of a reply."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Pages(Protocol):
    """The pages that a server shows."""

    def answer(self, path: str, query: str) -> Answer:
        """What an address leads to."""
        ...

    def submit(self, path: str, fields: Mapping[str, str]) -> Answer | None:
        """What a form that was sent leads to; None where nothing is taken in."""
        ...

    def says(self, status: int, title: str, text: str) -> Answer:
        """A page that only says something."""
        ...


def html(page: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A page that no browser keeps."""
    return Answer(body=page.encode("utf-8", "replace"), status=status, headers={"Cache-Control": "no-store", **(headers or {})})
