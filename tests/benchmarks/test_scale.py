"""The scripts behind docs/scale.md go through their stages."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.listing import measure
from tests.benchmarks.scale import STAGES
from tests.conftest import REPOSITORY


def test_each_stage_tells_time_and_memory(tmp_path: Path) -> None:
    for stage in STAGES:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--stage", stage, "--folder", str(tmp_path), "--draws", "1200"]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        assert found.keys() == {"wall", "cpu", "before", "peak"}
        assert found["peak"] >= found["before"] > 0


def test_listing_asks_for_a_thousand_names_at_a_time_and_reads_each_marker_once() -> None:
    found = [(requests, seconds > 0, processor > 0) for _, requests, seconds, processor in measure(1100, 0.0)]
    assert found == [(2, True, True), (2 + 1100, True, True)]
