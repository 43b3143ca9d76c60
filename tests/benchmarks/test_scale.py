"""The script behind docs/scale.md goes through its stages."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.scale import STAGES
from tests.conftest import REPOSITORY


def test_each_stage_tells_time_and_memory(tmp_path: Path) -> None:
    for stage in STAGES:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--stage", stage, "--folder", str(tmp_path), "--draws", "1200"]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        assert found.keys() == {"wall", "cpu", "before", "peak"}
        assert found["peak"] >= found["before"] > 0
