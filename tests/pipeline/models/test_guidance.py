"""Guidance rescale: where a pipeline takes it, it does what the paper says; elsewhere it is refused before anything is loaded."""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.base import ImageModel
from pipeline.models.families import FAMILIES
from pipeline.models.modes import RESCALES_GUIDANCE, pipelines
from pipeline.models.resolve import check_sampling, resolve_model
from schemas.config import ModelConfig, SamplingConfig
from schemas.errors import ModelError
from schemas.modes import Mode
from tests.pipeline.models.conftest import make_draw
from tests.pipeline.models.tiny import diffusers

Loaded = Callable[[str], ImageModel]


def test_the_table_lists_every_known_pipeline_that_takes_it() -> None:
    known = {name for family in FAMILIES for name in pipelines(family.pipeline).values()} | RESCALES_GUIDANCE
    takes = {name for name in known if "guidance_rescale" in inspect.signature(getattr(diffusers, name).__call__).parameters}
    assert takes == RESCALES_GUIDANCE


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_rescaling_changes_guided_images_only(loaded: Loaded, family: str) -> None:
    model = loaded(family)

    def image(scale: float, rescale: float | None) -> np.ndarray:
        return model.generate([make_draw(0, guidance_scale=scale, guidance_rescale=rescale)]).images_NHWC

    assert not np.array_equal(image(7.5, None), image(7.5, 0.7))
    assert not np.array_equal(image(7.5, 0.7), image(7.5, 1.0))
    assert np.array_equal(image(1.0, None), image(1.0, 0.7))


def test_the_guided_prediction_gets_the_contrast_of_the_unguided_one(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equations 15 and 16 of the paper, on what reaches the sampler: with phi = 1 the standard deviations are equal."""
    model, seen, core = loaded("sd"), [], []
    unet = model._pipe.unet  # type: ignore[attr-defined]
    forward, schedule = unet.forward, model._seeded_scheduler  # type: ignore[attr-defined]

    def watched(name: str, generators: list) -> object:
        scheduler = schedule(name, generators)
        step = scheduler.step
        scheduler.step = lambda noise, *rest, **more: seen.append(noise) or step(noise, *rest, **more)
        return scheduler

    monkeypatch.setattr(unet, "forward", lambda *args, **more: core.append(forward(*args, **more)) or core[-1])
    monkeypatch.setattr(model, "_seeded_scheduler", watched)
    model.generate([make_draw(0, guidance_scale=7.5, guidance_rescale=1.0), make_draw(1, guidance_scale=7.5, guidance_rescale=1.0)])
    for guided, (predicted, *_) in zip(seen, core, strict=True):
        with_text = predicted.chunk(2)[1]
        assert torch.allclose(guided.flatten(1).std(1), with_text.flatten(1).std(1), rtol=1e-4)


def test_a_pipeline_that_does_not_take_it_is_refused(model_folder: Callable[[str], Path]) -> None:
    refused: list[tuple[str, Mode]] = [("flux", "text-to-image"), ("sd", "image-to-image")]
    for family, mode in refused:
        card = resolve_model(ModelConfig(id=str(model_folder(family))), base_dir=Path.cwd(), mode=mode)
        with pytest.raises(ModelError, match=rf"sampling.guidance_rescale: {family} \({card.pipeline_class}\) does not take it"):
            check_sampling(card, SamplingConfig(mode=mode, guidance_rescale=0.7))
