"""Seconds until commands answer, and until a run's first images: `python -m tests.benchmarks.startup [--rounds 2] [--write]`.

Every command runs in a process of its own, in turns; figures are means of the rounds. `--write` puts them into docs/speed.md.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from jobs.bench import machine
from schemas import layout
from tests.benchmarks.page import fill
from tests.conftest import REPOSITORY

ROUNDS = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 2
EXECUTORS = {"local": "promptmill, local executor", "ray": "promptmill, Ray, an actor per core"}
PARTS = ("plan", "workers", "model", "scorers")


def seconds_of(*arguments: object) -> float:
    """Wall-clock seconds of one command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jobs.cli", *map(str, arguments)], cwd=REPOSITORY, capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> None:
    answers: dict[str, list[float]] = defaultdict(list)
    starts: dict[str, list[dict]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for number in range(ROUNDS):
            runs = {kind: Path(name, f"{kind}-{number}") for kind in EXECUTORS}
            for kind, run in runs.items():
                seconds_of("run", "configs/demo.yaml", "--out", run, "--executor", kind, "--set", "prompts.draws_per_prompt=1")
                starts[kind].append(json.loads((run / layout.EVENTS).read_text().splitlines()[-1]))
            run = runs["local"]
            for command in (["--help"], ["status", run], ["query", run, "select status, count(*) from metadata group by all"]):
                answers[str(command[0])].append(seconds_of(*command))
    rows = ["| way | " + " | ".join(PARTS) + " | all | first images |", "| --- |" + " --- |" * (len(PARTS) + 2)]
    for kind, each in starts.items():
        parts = [statistics.mean(one["startup"][part] for one in each) for part in PARTS]
        whole, first = (statistics.mean(one[key] for one in each) for key in ("startup_seconds", "first_images_seconds"))
        rows.append(f"| {EXECUTORS[kind]} | " + " | ".join(f"{value:.1f}" for value in (*parts, whole, first)) + " |")
    commands = [f"| `promptmill {command}` | {statistics.mean(each):.2f} |" for command, each in answers.items()]
    texts = [
        f"Seconds, means of {ROUNDS} rounds, on {machine()}. Until the first worker is ready, by part, and until the first images:",
        "\n".join(rows),
        "\n".join(["| command | seconds |", "| --- | --- |", *commands]),
    ]
    print("\n\n".join(texts))
    if "--write" in sys.argv:
        fill("start-up", texts)


if __name__ == "__main__":
    main()
