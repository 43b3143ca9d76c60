"""The documented walk from prompts to a trained classifier: its commands, as they stand there, do what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

WALK = REPOSITORY / "docs" / "walk.md"
COMMAND = re.compile(r"^    ((?:promptmill|python) .*)$", re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_documented_walk_ends_with_a_classifier_that_has_learned(tmp_path: Path) -> None:
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    said = {}
    for command in COMMAND.findall(WALK.read_text()):
        found = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False)
        assert found.returncode == 0, f"{command}: {found.stderr}"
        verb = command.split()[1]
        said[verb] = found.stdout
    assert set(said) == {"run", "audit", "filter", "query", "report", "export", "-m", "docs/train.py"}
    assert re.search(r"images +160 of 160", said["run"])
    classes = dict(re.findall(r"^(\w+) +(\d+)$", said["query"], re.MULTILINE))
    assert set(classes) == {"circle", "cross", "heart", "star"}
    kept = sum(map(int, classes.values()))
    assert 60 <= kept <= 100
    assert all(int(count) <= 25 for count in classes.values())
    assert f"shapes: {kept} images (train {kept}) of 4 classes" in said["export"]
    assert len(list((tmp_path / "shapes" / "train").glob("*/*.webp"))) == kept
    assert (tmp_path / "shapes.html").stat().st_size > 20_000
    told = re.fullmatch(r"learned from (\d+) images of 4 classes; right on ([\d.]+)% of 399 others\n", said["docs/train.py"])
    assert told
    assert int(told[1]) == kept
    assert float(told[2]) > 50, "a quarter would be chance"
