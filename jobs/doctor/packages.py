"""Are the packages there, in versions that fit, and can they be imported? And what can torch compute on?

The heavy ones are imported in a process of their own (``probe.py``), so that even one that crashes the interpreter
is told by name.
"""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.doctor.check import REINSTALL, Check, size

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROBED = {  # module -> package
    "torch": "torch",
    "torchvision": "torchvision",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
}
TOLD = ("ray", "pyarrow", "duckdb")  # packages that get a line of their own; their version is enough
PROBE_SECONDS = 300


def heavy_packages(folder: Path) -> Iterator[Check]:
    """Versions, and whether importing works; then what torch can compute on."""
    wanted, told = _requirements("promptmill"), _probe()
    for module, package in PROBED.items():
        check = _version(package, wanted.get(_normal(package)), name=module)
        error = told.get(module, {}).get("error")
        if check.ok and error:
            check = Check(name=module, ok=False, detail=f"{check.detail}, and cannot be imported ({error})", remedy=REINSTALL)
        if check.ok and module == "torchvision":
            check = _pair(check)
        yield check
    if "error" not in told.get("torch", {"error": ""}):
        yield from _devices(told["torch"])


def _pair(check: Check) -> Check:
    """torchvision is built for one version of torch."""
    needs, have = _requirements("torchvision").get("torch"), importlib.metadata.version("torch")
    if needs is None or needs.specifier.contains(have.split("+")[0], prereleases=True):
        return check
    remedy = f"install both anew: pip install --force-reinstall 'torch{needs.specifier}' torchvision=={check.detail.split()[0]}"
    return Check(name=check.name, ok=False, detail=f"{check.detail} is built for torch{needs.specifier}, there is {have}", remedy=remedy)


def _devices(torch: dict[str, Any]) -> Iterator[Check]:
    for number, gpu in enumerate(torch["gpus"]):
        bf16 = "yes" if gpu["bf16"] else "no, use float16"
        detail = f"{gpu['name']}, {size(gpu['free'])} of {size(gpu['total'])} free, bfloat16 in hardware: {bf16}"
        yield Check(name=f"gpu {number}", ok=True, detail=detail)
    if not torch["gpus"]:
        built = f"torch is built for CUDA {torch['cuda']} and finds no device" if torch["cuda"] else "torch is built without CUDA"
        yield Check(name="gpu", ok=True, detail=f"none, so jobs run on the CPU ({built})")
    flags = _cpu_flags()
    fast = "yes" if {"amx_bf16", "avx512_bf16"} & flags else "no, float32 is the better choice"
    yield Check(name="cpu", ok=True, detail=f"{torch['cpu']}{', AMX' if 'amx_bf16' in flags else ''}, bfloat16 in hardware: {fast}")


def packages(folder: Path) -> Iterator[Check]:
    """Versions against what promptmill asks for."""
    wanted = _requirements("promptmill")
    others = [name for name in wanted if name not in TOLD and name not in {_normal(package) for package in PROBED.values()}]
    for name in TOLD:
        yield _version(name, wanted.get(name))
    wrong = [check for check in (_version(name, wanted[name]) for name in others) if not check.ok]
    yield from wrong
    if not wrong:
        detail = f"{len(others)} more, all as required" if others else "promptmill is run from its source; requirements are not known"
        yield Check(name="packages", ok=True, detail=detail)


def _probe() -> dict[str, dict[str, Any]]:
    """What ``probe.py`` tells, by module; a module at which it died has an error."""
    script = Path(__file__).with_name("probe.py")
    command = [sys.executable, "-P", "-W", "ignore", str(script), *PROBED]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        output, end = done.stdout, f"the interpreter ended with status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        output, end = (expired.stdout or b"").decode(), f"no answer after {PROBE_SECONDS} s"
    told: dict[str, dict[str, Any]] = {module: {"error": "was not reached"} for module in PROBED}
    for line in output.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            told[answer["module"]] = {"error": end} if answer.get("begin") else answer
    return told


def _requirements(package: str) -> dict[str, "Requirement"]:
    """What a package requires, by name; extras left out. Empty if it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in lines]
    return {_normal(one.name): one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})}


def _version(package: str, wanted: "Requirement | None", *, name: str | None = None) -> Check:
    name = name or package
    bounds = str(wanted.specifier) if wanted else ""
    remedy = f"pip install '{package}{bounds}'"
    try:
        have = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(name=name, ok=False, detail="is not installed", remedy=remedy)
    if wanted and not wanted.specifier.contains(have, prereleases=True):
        return Check(name=name, ok=False, detail=f"{have} does not fit, {bounds} is needed", remedy=remedy)
    return Check(name=name, ok=True, detail=f"{have}{f' ({bounds})' if bounds else ''}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
