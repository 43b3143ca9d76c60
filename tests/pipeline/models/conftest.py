"""Tiny models, each made once in a test session and copied where a test damages it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.cli import main
from pipeline.models import load_model
from pipeline.models.base import ImageModel
from pipeline.models.modes import PASSES
from pipeline.models.resolve import resolve_model
from pipeline.models.switches import network
from schemas.config import ModelConfig
from schemas.records import Draw
from tests import fakes
from tests.pipeline.models import tiny


def make_draw(index: int, **changes: object) -> Draw:
    """A 32 px draw of three steps; equal indices are equal draws."""
    values: dict[str, object] = {
        "prompt_id": str(index),
        "prompt": f"a red square {index}",
        "model": "tiny",
        "model_revision": "sha256:0",
        "steps": 3,
        "guidance_scale": 4.0,
        "width": 32,
        "height": 32,
        "seed": 1000 + index,
    }
    return fakes.make_draw(index, **values | changes)


def check_guidance_interval(model: ImageModel, images: Callable[..., np.ndarray]) -> None:
    """Guidance in the last half of four steps is other than in all and in none; where there is none the network is asked once an image.

    ``images`` makes those of three draws, with changes to each.
    """
    core, asked = network(model._pipe), []  # type: ignore[attr-defined]

    def note(_: object, given: tuple, named: dict) -> None:
        asked.append(len(given[0] if given else named["sample" if "sample" in named else "hidden_states"]))

    watch = core.register_forward_pre_hook(note, with_kwargs=True)
    part = images(steps=4, guidance_interval=(0.5, 1.0))
    watch.remove()
    two_calls, at_once = PASSES[type(model._pipe).__name__] == "two calls", 1 if model._needs_to_be_alone else 3  # type: ignore[attr-defined]
    of_a_call = [at_once] * 6 if two_calls else [at_once, at_once, 2 * at_once, 2 * at_once]
    assert asked == of_a_call * (3 // at_once)
    whole, unguided = images(steps=4), images(steps=4, guidance_scale=1.0)
    assert not any(np.array_equal(part[number], other[number]) for number in range(3) for other in (whole, unguided))
    assert np.array_equal(whole, images(steps=4, guidance_interval=(0.0, 1.0)))
    none, none_either = (images(steps=4, guidance_interval=(0.9, 1.0), guidance_scale=scale) for scale in (4.0, 9.0))
    assert np.array_equal(none, none_either)
    if not hasattr(model._pipe, "prior_pipe"):  # type: ignore[attr-defined]  # whose own guidance is for all steps
        assert np.array_equal(none, unguided)
    assert network(model._pipe) is core  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny model by family. Read only: use ``own_copy`` to damage one."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny.BUILDERS[family](root / family)
        return made[family]

    return folder


@pytest.fixture
def own_copy(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Stable Diffusion folder named ``my-model`` that the test may change."""
    return Path(shutil.copytree(model_folder("sd"), tmp_path / "my-model"))


@pytest.fixture(scope="session")
def loaded(model_folder: Callable[[str], Path]) -> Iterator[Callable[[str], ImageModel]]:
    """A loaded tiny model by family."""
    made: dict[str, ImageModel] = {}

    def model(family: str) -> ImageModel:
        if family not in made:
            made[family] = load(model_folder(family))
        return made[family]

    yield model
    made.clear()


def promptmill(*arguments: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def load(folder: Path, **settings: object) -> ImageModel:
    """Load a folder as a job does."""
    config = ModelConfig(id=str(folder), **settings)  # type: ignore[arg-type]
    return load_model(resolve_model(config, base_dir=Path.cwd()), config)
