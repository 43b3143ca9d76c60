"""One tiny CLIP folder per session, and copies of it to damage."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.scorers import tiny_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: use ``own_clip`` to damage one."""
    return tiny_clip.make(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture
def own_clip(clip_folder: Path, tmp_path: Path) -> Path:
    """A folder named ``my-clip`` that the test may change."""
    return Path(shutil.copytree(clip_folder, tmp_path / "my-clip"))
