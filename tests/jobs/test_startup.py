"""Commands that read start at once, a local run starts no Ray, and a run tells what its start-up was spent on."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from schemas import layout
from tests.jobs.conftest import JobFile
from tests.runs import finished_run

HEAVY = {"torch", "ray", "diffusers", "transformers", "open_clip", "torchvision", "pandas", "scipy", "cv2"}
SCRIPT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr))
from jobs.cli import main
main(sys.argv[1:])
"""


def modules_of(*arguments: object) -> tuple[set[str], float]:
    """Top-level modules that a command had imported when it ended, and the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return set(json.loads(ran.stderr.splitlines()[-1])), seconds


def test_help_imports_next_to_nothing() -> None:
    modules, seconds = modules_of("--help")
    assert not modules & (HEAVY | {"duckdb", "pyarrow", "numpy", "pydantic", "rich"})
    assert seconds < 0.5


@pytest.mark.parametrize("verb", [["query", "select count(*) from metadata"], ["status"]], ids=["query", "status"])
def test_what_reads_a_run_starts_at_once(tmp_path: Path, verb: list[str]) -> None:
    """In half a second on an idle machine; processor time goes up by half and more on a busy one."""
    finished_run(tmp_path / "run")
    modules, seconds = modules_of(verb[0], tmp_path / "run", *verb[1:])
    assert not modules & HEAVY
    assert seconds < 1.5


def test_a_local_run_starts_no_ray_and_tells_the_parts_of_its_start(job: JobFile) -> None:
    modules, _ = modules_of("run", job.path, "--executor", "local", "--out", job.out)
    assert "ray" not in modules
    assert "torch" in modules  # else this test would see nothing
    events = [json.loads(line) for line in (job.out / layout.EVENTS).read_text().splitlines()]
    ready = next(event for event in events if event["event"] == "worker_ready")
    finish = events[-1]
    assert ready["loading"].keys() == {"model", "scorers"}
    assert list(finish["startup"]) == ["plan", "workers", "model", "scorers"]
    assert sum(finish["startup"].values()) == pytest.approx(finish["startup_seconds"], abs=0.05)
    assert finish["startup"]["model"] > 0.1  # torch and diffusers are imported in it
    assert finish["first_images_seconds"] >= finish["startup_seconds"]
