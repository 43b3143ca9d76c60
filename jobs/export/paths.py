"""File names out of text that nobody has checked."""

import hashlib
import re

UNLABELLED = "_unlabelled"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,62}(?<! )")
_MARKED = re.compile(r".*-[0-9a-f]{8}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # Windows opens these instead of a file


def folder_name(label: str | None) -> str:
    """One path component for a label: the label itself if it is plain, else what is plain of it and 8 digits of its sha256.

    Different labels have different names: a plain label that looks as if it had such digits gets some too.
    """
    if label is None:
        return UNLABELLED
    if _SAFE.fullmatch(label) and not _MARKED.fullmatch(label) and not _DEVICES.fullmatch(label):
        return label
    plain = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")[:40] or "class"
    return f"{plain}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
