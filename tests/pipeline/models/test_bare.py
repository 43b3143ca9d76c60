"""The loop that ``promptmill bench`` compares with makes the job's images, whatever lies over the model and goes into it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.inputs import with_kept_pixels
from pipeline.models import load_model
from pipeline.models.bare import BareLoop
from pipeline.models.resolve import resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from schemas.modes import Mode
from schemas.records import Draw
from tests.pipeline.models import tiny, tiny_families
from tests.pipeline.models.test_modes import a_draw, beside, inputs

pytestmark = [  # of diffusers' own calls
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning"),
]
ROWS: list[tuple[str, Callable[[Path], Path], Mode, bool]] = [  # family, its maker, mode, a reference beside it
    ("sd", tiny.sd, "text-to-image", False),
    ("sd", tiny.sd, "control", True),
    ("sd", tiny.sd, "image-prompt", False),
    ("sdxl", tiny.sdxl, "inpainting", True),
    ("sd-t2i", tiny.sd_for_adapters, "control", False),
    ("flux", tiny.flux, "image-to-image", False),
    ("upscaler", tiny.upscaler, "super-resolution", False),
    ("lcm", tiny_families.lcm, "text-to-image", False),
]


@pytest.mark.parametrize(("family", "make", "mode", "reference"), ROWS)
def test_the_loop_makes_the_images_of_the_job(
    tmp_path: Path, family: str, make: Callable[[Path], Path], mode: Mode, reference: bool
) -> None:
    folder = make(tmp_path / family)
    more = beside(folder, family, mode) | (beside(folder, family, "image-prompt") if reference else {})
    more |= _addons(tmp_path, folder) if (family, mode) == ("sd", "text-to-image") else {}
    config = ModelConfig.model_validate({"id": str(folder), **more})
    card = resolve_model(config, base_dir=tmp_path, mode=mode)
    scale = {"reference_scale": 1.0} if reference else {}
    draws: list[Draw] = [replace(a_draw(number, mode, **scale), prompt=f"a <cat> {number}") for number in (0, 1)]
    given = [inputs(number, mode, reference=number if reference else None) for number in (0, 1)]
    made = load_model(card, config).generate(draws, given if mode != "text-to-image" else ()).images_NHWC.astype(int)
    looped = with_kept_pixels(BareLoop(card, config, 1).draw(draws, given), given)
    apart = np.abs(looped - made).mean()  # not nothing, since the loop reads the texts of a batch together
    assert apart < np.abs(looped - made[::-1]).mean() / 3


def _addons(folder: Path, model: Path) -> dict[str, Any]:
    torch.manual_seed(5)
    tiny.vae().save_pretrained(folder / "vae")
    save_file({"<cat>": torch.full((32,), 3.0)}, folder / "cat.safetensors")
    lora = tiny.lora(folder / "style.safetensors", model, 1)
    return {"loras": [lora], "embeddings": ["cat.safetensors"], "vae": "vae"}


@pytest.mark.parametrize(
    ("make", "mode", "message"),
    [
        (tiny.sd_wide, "inpainting", "inpaints by blending, which no loop over StableDiffusionImg2ImgPipeline compares with"),
        (tiny_families.dit, "text-to-image", "DiTPipeline reads no text, which the loop to compare with does; bench another model"),
    ],
)
def test_what_no_such_loop_does_is_refused(tmp_path: Path, make: Callable[[Path], Path], mode: Mode, message: str) -> None:
    config = ModelConfig.model_validate({"id": str(make(tmp_path / "model"))})
    with pytest.raises(ModelError, match=f"^model model: {message}"):
        BareLoop(resolve_model(config, base_dir=tmp_path, mode=mode), config, 1)
