"""A worker's memory stays as it is, however many images it makes; a model that keeps one image in memory for each is seen."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.memory_growth import ALLOCATOR


def bytes_per_image(*arguments: str) -> float:
    command = [sys.executable, "-m", "tests.pipeline.memory_growth", *arguments]
    ran = subprocess.run(command, cwd=REPOSITORY, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True)
    return float(ran.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("which", "bytes_of_an_image"), [("pipeline", 16 * 16 * 3), ("models", 32 * 32 * 3)])
def test_ten_thousand_images_leave_nothing_behind(which: str, bytes_of_an_image: int) -> None:
    """Ten thousand of a fake model through encoding, judging and writing; some hundred of a real one and a real CLIP."""
    assert bytes_per_image(which, "leak") > bytes_of_an_image / 2
    assert bytes_per_image(which) < bytes_of_an_image / 4
