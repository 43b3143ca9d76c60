"""Kills a run at random moments, again and again, lets it finish, and compares: ``python -m tests.chaos FOLDER --kills 20 --seed 1``.

Each time a forked process takes the run up, and after a random time, counted from its start, from its first committed shard,
or, much shorter, from the first file of a shard that it publishes, it gets SIGKILL; or SIGTERM, so that it puts its batches
aside, and SIGKILL some time later, while it does. After each kill all that is published must be whole, and what has a marker
must be what the marker says. In the end the dataset must be that of an undisturbed run, byte for byte, and ``verify`` must find
nothing. Prints one JSON object, which also tells after how many kills a shard was half published; the same seed draws the same
moments. The run has more draws than the kills leave time for.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

import jobs.local  # noqa: F401 - imported here, once, not in each process
from jobs.run import run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import layout
from tests import fakes

DRAWS_PER_KILL = 60
SLOW_SECONDS = 0.02  # per draw
LONGEST_SECONDS = 1.0  # to a kill
COMMIT_SECONDS = 0.01  # in which the other files of a shard follow its first
VOLATILE = (layout.DONE, layout.EVENTS, layout.JOB, layout.LEASE)


def main() -> int:
    """Run the whole; 0 if nothing was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", file=sys.stderr)
    out, found = asked.folder / "run", []
    texts = _texts(DRAWS_PER_KILL * asked.kills)
    kills, half, finished = _kill(out, texts, random.Random(asked.seed), asked.kills, found)
    report = {"seed": asked.seed, "kills": kills, "half_published": half, "finished": finished, "shards_before_the_end": _made(out)}
    found += _finish(out, asked.folder / "undisturbed", texts)
    print(json.dumps(report | {"found": found}))
    return int(bool(found))


def _texts(draws: int) -> list[str]:
    return [("RAISE" if n % 97 == 13 else "BLANK" if n % 89 == 7 else "SLOW") + f" picture {n}" for n in range(draws)]


def _kill(out: Path, texts: list[str], chance: random.Random, kills: int, found: list[str]) -> tuple[int, int, bool]:
    """How many were killed at work, how often a shard was half published then, and whether the run was finished before its time."""
    half = 0
    for number in range(kills):
        since, drains = chance.choice(("the start", "a shard", "a file")), chance.random() < 0.3
        seconds, later = chance.uniform(0, LONGEST_SECONDS), chance.uniform(0, LONGEST_SECONDS)
        folder = "images" if since == "a file" else "done"
        before, pid = _made(out, folder), _fork(lambda: _run(out, texts, SLOW_SECONDS))
        if since != "the start":
            _wait(lambda before=before, folder=folder: _made(out, folder) > before)
        time.sleep(seconds * COMMIT_SECONDS if since == "a file" else seconds)
        if drains:
            os.kill(pid, signal.SIGTERM)
            time.sleep(later)
        os.kill(pid, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 1):  # some draws fail by intent
            return number, half, True
        half += _made(out, "images") > _made(out)
        found += [f"after kill {number + 1}: {problem}" for problem in _damage(out)]
    return kills, half, False


def _finish(out: Path, undisturbed: Path, texts: list[str]) -> list[str]:
    """Let the run finish, make another one in one go, and compare."""
    for folder in (out, undisturbed):
        code = os.waitstatus_to_exitcode(os.waitpid(_fork(lambda folder=folder: _run(folder, texts, 0.0)), 0)[1])
        if code != 1:
            return [f"{folder}: ended with exit status {code}"]
    made, wanted = _dataset(out), _dataset(undisturbed)
    differing = sorted(name for name in made | wanted if made.get(name) != wanted.get(name))
    return [f"{name} differs" for name in differing] + [str(problem) for problem in verify(RunDir.open(out)).problems]


def _run(out: Path, texts: list[str], slow_seconds: float) -> int:
    logging.disable(logging.WARNING)
    fakes.SLOW_SECONDS = slow_seconds
    out.parent.mkdir(parents=True, exist_ok=True)
    job = fakes.fake_job(out.parent, prompts={"texts": texts, "draws_per_prompt": 1}, output={"shard_size": 8})
    return run(job, out=out, model_loader=fakes.LOADER).exit_code


def _fork(work: Callable[[], int]) -> int:
    """The process that does the work and ends with its result. This one never runs anything itself, so it has no threads."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


def _damage(out: Path) -> list[str]:
    """What is published and not whole."""
    problems = []
    for file in [*out.glob("metadata/*.parquet"), *out.glob("images/*.parquet"), *out.glob("partial/*.parquet")]:
        try:
            pq.read_table(file, page_checksum_verification=True)
        except Exception as error:
            problems.append(f"{file.relative_to(out)}: {error}")
    for file in out.glob("done/*.json"):
        try:
            marker = json.loads(file.read_bytes())
        except ValueError as error:
            problems.append(f"{file.relative_to(out)}: {error}")
            continue
        for name in ("metadata", "images"):
            data = (out / name / f"{file.stem}.parquet").read_bytes()
            if hashlib.sha256(data).hexdigest() != marker[f"{name}_sha256"]:
                problems.append(f"{name}/{file.stem}.parquet is not what its marker says")
    return problems


def _made(out: Path, folder: str = "done") -> int:
    """Files that are published in a folder of the run."""
    try:
        return sum(not name.startswith(".") for name in os.listdir(out / folder))
    except FileNotFoundError:
        return 0


def _dataset(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(VOLATILE)}


if __name__ == "__main__":
    sys.exit(main())
