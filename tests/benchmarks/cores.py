"""Who has the cores while `promptmill run` samples on Ray: `python -m tests.benchmarks.cores [--seconds 40]`.

The narrow U-Net of `narrow_sd.py`, an actor per core. Counts from the moment at which each actor has sampled for a while.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from jobs.bench import machine
from tests.benchmarks import narrow_sd
from tests.benchmarks.ways import CORES
from tests.conftest import REPOSITORY

DRAWS = 256  # more than it will come to
WARM_SECONDS = 30.0  # of processor time: an actor's models are loaded after a third of it


def spent(driver: psutil.Process) -> dict[str, list[float]]:
    """Seconds of processor time of each process so far, by its part."""
    found: dict[str, list[float]] = {"actors": [], "driver": [], "Ray's own": []}
    for process in (driver, *driver.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times, name = process.cpu_times(), " ".join(process.cmdline()[:1])
            part = "driver" if process == driver else "actors" if name.startswith("ray::Actor") else "Ray's own"
            found[part].append(times.user + times.system)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.ways", "promptmill_ray", str(narrow_sd.job(Path(folder))), str(DRAWS)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as ran:
            try:
                driver = psutil.Process(ran.pid)
                while len(warm := spent(driver)["actors"]) < CORES or min(warm) < WARM_SECONDS:
                    if ran.poll() is not None:
                        raise SystemExit("the run ended before it was looked at")
                    time.sleep(1)
                before, started = spent(driver), time.perf_counter()
                time.sleep(seconds)
                after, lasted = spent(driver), time.perf_counter() - started
            finally:
                ran.terminate()
    print(f"Shares of all cores' time in {lasted:.0f} s, on {machine()}:")
    for part, each in after.items():
        print(f"{part}: {(sum(each) - sum(before[part])) / lasted / CORES:.1%}")


if __name__ == "__main__":
    main()
