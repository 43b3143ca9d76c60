"""Which split an image belongs to: a function of one of its values and of nothing else, so images that share it stay together."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from schemas.errors import QueryError

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")  # what `datasets` takes for a split


@dataclass(frozen=True, slots=True)
class Splits:
    """Names and shares, in order; the shares add up to 1."""

    shares: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """``train=.9,val=.1``. Raises QueryError."""
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, share = part.strip().partition("=")
            try:
                shares[name] = float(share) if name not in shares and _NAME.fullmatch(name) else -1.0
            except ValueError:
                shares[name] = -1.0
            if not 0 < shares[name] <= 1:
                raise QueryError(f"--split {text}: {part.strip()!r} is no split; write different names and shares, such as train=.9,val=.1")
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise QueryError(f"--split {text}: the shares add up to {sum(shares.values()):g}; they must add up to 1")
        return cls(tuple(shares.items()))

    @property
    def names(self) -> list[str]:
        """In order."""
        return [name for name, _ in self.shares]

    def of(self, value: str | None) -> str:
        """The split of all images with this value."""
        digest = hashlib.sha256(b"split\0" + (value or "").encode("utf-8", "surrogatepass")).digest()
        point, upto = int.from_bytes(digest[:8]) / 2**64, 0.0
        for name, share in self.shares:
            upto += share
            if point < upto:
                return name
        return self.shares[-1][0]
