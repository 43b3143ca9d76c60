"""What a job finds around it: Python, the machine, the bundled weights, the hub's cache, a folder to write to."""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.doctor.check import Check, size

FREE_BYTES = 2**30


def python(folder: Path) -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    yield Check(name="python", ok=ok, detail=f"{platform.python_version()} at {sys.prefix}", remedy="promptmill needs Python 3.11 or later")


def machine(folder: Path) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = f", {size(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))} of memory" if hasattr(os, "sysconf") else ""
    yield Check(name="machine", ok=True, detail=f"{cores} CPU cores{memory}, {platform.system()} {platform.machine()}")


def weights(folder: Path) -> Iterator[Check]:
    from pipeline.models.resolve import WEIGHTS
    from pipeline.weights import PINNED

    yield weights_check(WEIGHTS / PINNED)


def weights_check(pins: Path) -> Check:
    """The bundled weights against the sha256s that ``pins`` lists, by paths relative to itself."""
    from pipeline.digests import file_sha256

    restore = "restore it (git checkout), or install promptmill again"
    if not pins.is_file():
        return Check(name="weights", ok=False, detail="the bundled demo models are missing", remedy="install promptmill again")
    wanted = json.loads(pins.read_text(encoding="utf-8"))
    total = 0
    for name, sha256 in wanted.items():
        path = pins.parent / name
        if not path.is_file():
            return Check(name="weights", ok=False, detail=f"{name} is missing", remedy=restore)
        if file_sha256(path) != sha256:
            return Check(name="weights", ok=False, detail=f"{name} differs from its pinned sha256", remedy=restore)
        total += path.stat().st_size
    return Check(name="weights", ok=True, detail=f"bundled demo models: {len(wanted)} files, {size(total)}, sha256 right")


def hub(folder: Path) -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    mode = "HF_HUB_OFFLINE is set: only what is in the cache" if constants.HF_HUB_OFFLINE else "online: fetches what a job names"
    if not cache.is_dir() or os.access(cache, os.W_OK) or constants.HF_HUB_OFFLINE:
        yield Check(name="hub", ok=True, detail=f"{mode}; {models} models in {cache}")
    else:
        yield Check(
            name="hub", ok=False, detail=f"{cache} cannot be written", remedy="mend its permissions, or set HF_HOME to another folder"
        )


def folder(path: Path) -> Iterator[Check]:
    """A run folder need not exist yet: then the nearest one above it counts."""
    place = next((place for place in (path.absolute(), *path.absolute().parents) if place.exists()), Path("/"))
    elsewhere = "choose another --out, or mend its permissions"
    if not place.is_dir():
        yield Check(name="folder", ok=False, detail=f"{place} is a file", remedy="choose another --out")
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield Check(name="folder", ok=False, detail=f"{place} cannot be written ({error.strerror})", remedy=elsewhere)
        return
    yield Check(
        name="folder",
        ok=free >= FREE_BYTES,
        detail=f"{place} is writable, {size(free)} free",
        remedy="free some space, or choose another --out",
    )
