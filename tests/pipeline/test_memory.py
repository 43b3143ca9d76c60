"""A worker's memory stays as it is, however many images it makes; a model that keeps one image in memory for each is seen."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.prepare import prepare
from pipeline.models import load_model
from tests.conftest import REPOSITORY
from tests.pipeline.memory_growth import ALLOCATOR

IO = Path("/proc/self/io")


def bytes_per_image(which: str) -> tuple[float, float]:
    """As it is, and with a leak of one image for each; measured side by side."""
    command = [sys.executable, "-m", "tests.pipeline.memory_growth", which]
    both = [
        subprocess.Popen([*command, *leak], cwd=REPOSITORY, env=os.environ | ALLOCATOR, stdout=subprocess.PIPE, text=True)
        for leak in ([], ["leak"])
    ]
    without, leaking = (float(process.communicate()[0]) for process in both)
    return without, leaking


def read_by(function: Callable[[], object]) -> int:
    """Bytes that this process asked files for in the meantime; those of memory maps do not count."""
    before, _, after = (int(IO.read_text().split()[1]), function(), int(IO.read_text().split()[1]))
    return after - before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("which", "bytes_of_an_image"), [("pipeline", 16 * 16 * 3), ("models", 32 * 32 * 3)])
def test_ten_thousand_images_leave_nothing_behind(which: str, bytes_of_an_image: int) -> None:
    """Ten thousand of a fake model through encoding, judging and writing; some hundred of a real one and a real CLIP."""
    without, leaking = bytes_per_image(which)
    assert leaking > bytes_of_an_image / 2
    assert without < bytes_of_an_image / 4


@pytest.mark.skipif(not IO.exists(), reason="needs Linux")
def test_weights_are_mapped_and_not_read() -> None:
    """So that all workers of a node take them from one page cache."""
    demo = prepare(REPOSITORY / "configs" / "demo.yaml")
    load_model(demo.model, demo.config.model)  # modules are read here
    files = list(Path(demo.model.folder).rglob("*.safetensors"))
    weights = sum(path.stat().st_size for path in files)
    assert read_by(lambda: load_model(demo.model, demo.config.model)) < weights / 3, "vocabularies are read"
    assert read_by(lambda: [path.read_bytes() for path in files]) >= weights, "what reading them would show"
