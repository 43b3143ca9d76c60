"""A run may die or see an error at each of its I/O operations, on a disk and on S3: a resume makes the same dataset.

The work is done by ``tests.crash_points``; here it is started, and shown to notice code that is broken.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.s3 import BUCKET, s3_server

pytestmark = pytest.mark.slow


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "disk":
        memory = Path("/dev/shm")  # where it can be had: thousands of fsyncs
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            yield folder
        return
    with s3_server():
        yield f"s3://{BUCKET}/points"


def crash(place: str, how: str, *more: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_points", place, how, *more], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", ["kill", "error"])
def test_every_operation_may_fail(place: str, how: str) -> None:
    found = crash(place, how)
    print(f"{found['points']} points")
    assert found["failures"] == []
    assert found["points"] > 20


def test_the_harness_notices_markers_that_come_first_and_are_trusted(tmp_path: Path) -> None:
    found = crash(str(tmp_path), "kill", "--broken", "marker first")
    assert "is missing" in found["failures"][0]
