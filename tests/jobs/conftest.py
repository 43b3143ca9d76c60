"""A job over a tiny real model: Stable Diffusion's architecture with random weights, from a YAML file; and the long run that is killed."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY

ASKS_FOR_CHAOS = "test_a_run_that_is_killed_at_random_moments_ends_in_the_same_bytes"
KILLS = 110  # on 6,600 draws: about three minutes


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder. Read only."""
    from tests.pipeline.models import tiny

    return tiny.BUILDERS["sd"](tmp_path_factory.mktemp("tiny") / "tiny-sd")


class JobFile:
    """``job.yaml`` and its prompt file in a folder of their own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.path = folder / "job.yaml"
        self.out = folder / "run"
        self.raw: dict = {
            "prompts": {"file": "prompts.txt", "draws_per_prompt": 2},
            "model": {"id": str(model)},
            "sampling": {"steps": 2, "batch_size": 4, "width": 32, "height": 32},
            "scorers": {"bright": {"type": "tests.fakes:Brightness"}},
            "output": {"shard_size": 8},
            "executor": {"kind": "local"},
        }
        (folder / "prompts.txt").write_text("".join(f"a red square {n}\n" for n in range(5)))
        self.write()

    def write(self, **sections: object) -> Path:
        """Write the file with some sections changed; a dict is merged, None takes the section out."""
        for name, value in sections.items():
            old = self.raw.get(name)
            self.raw[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
        self.path.write_text(yaml.safe_dump({key: value for key, value in self.raw.items() if value is not None}))
        return self.path


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> JobFile:
    """A fresh valid job file."""
    return JobFile(tmp_path, tiny_model)


@dataclass(frozen=True)
class Chaos:
    """A process of ``tests.chaos``, and what it says."""

    process: subprocess.Popen[bytes]
    folder: Path
    kills: int


@pytest.fixture(scope="session", autouse=True)
def chaos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos | None]:
    """Kills that go on beside the other tests, since that process mostly waits; only if a test is to ask for the outcome."""
    if not any(item.name == ASKS_FOR_CHAOS for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "tests.chaos", str(folder), "--kills", str(KILLS)]
    with (folder / "report").open("wb") as report, (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=report, stderr=log)
    yield Chaos(process, folder, KILLS)
    process.kill()
    process.wait()
