"""Weights and long prompts: what they do to an embedding, and that an image still depends on no neighbour."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from pipeline.models.base import ImageModel
from pipeline.models.families import FAMILIES
from pipeline.models.modes import WEIGHS_PROMPTS, pipelines
from pipeline.models.resolve import check_sampling, resolve_model
from schemas.config import ModelConfig, SamplingConfig
from schemas.errors import ModelError
from tests.pipeline.models import tiny_families
from tests.pipeline.models.conftest import make_draw
from tests.pipeline.models.test_families import promptmill
from tests.pipeline.models.tiny import diffusers

Loaded = Callable[[str], ImageModel]
WEIGHING = ["sd", "sdxl"]
LONG = "a red square over a blue circle, " * 12  # 96 words and commas


def embeddings(model: ImageModel, prompt: str, num_windows: int) -> dict[str, torch.Tensor]:
    return model._encoder._one(prompt, num_windows)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", WEIGHING)
def test_a_prompt_without_weights_keeps_every_bit(loaded: Loaded, family: str) -> None:
    model, prompt = loaded(family), "a red square, 4k"
    plain = embeddings(model, prompt, 0)
    for same in (prompt, "a (red:1.0) square, 4k"):
        read = embeddings(model, same, 1)
        assert read.keys() == plain.keys()
        assert all(torch.equal(read[name], plain[name]) for name in plain)
    assert all(torch.equal(one, embeddings(model, "", 1)[name]) for name, one in embeddings(model, "", 0).items())
    draws = [make_draw(0), make_draw(1, negative_prompt="a blue circle")]
    weighing = [replace(draw, prompt_weighting=True) for draw in draws]
    assert np.array_equal(model.generate(draws).images_NHWC, model.generate(weighing).images_NHWC)


@pytest.mark.parametrize("family", WEIGHING)
def test_a_weight_moves_its_tokens_and_no_others(loaded: Loaded, family: str) -> None:
    model = loaded(family)
    plain, empty, heavy = (embeddings(model, text, 1)["prompt_embeds"] for text in ("a red square", "", "a (red:1.5) square"))
    assert torch.allclose(heavy[:, 2], empty[:, 2] + 1.5 * (plain[:, 2] - empty[:, 2]))
    others = [place for place in range(77) if place != 2]
    assert torch.equal(heavy[:, others], plain[:, others])
    nothing = embeddings(model, "(a red square:0)", 1)["prompt_embeds"]
    assert torch.equal(nothing[:, 1:4], empty[:, 1:4])


@pytest.mark.parametrize("family", WEIGHING)
def test_a_long_prompt_is_read_to_its_end(loaded: Loaded, family: str) -> None:
    model = loaded(family)
    red, blue = (make_draw(0, prompt=LONG + end, prompt_weighting=True) for end in ("red", "blue"))
    made = model.generate([red, blue])
    assert not np.array_equal(*made.images_NHWC)
    assert (list(made.prompt_tokens), list(made.prompt_truncated)) == ([99, 99], [False, False])
    assert embeddings(model, LONG, 2)["prompt_embeds"].shape[1] == 2 * 77
    cut = model.generate([replace(red, prompt_weighting=None), replace(blue, prompt_weighting=None)])
    assert list(cut.prompt_truncated) == [True, True]
    assert np.array_equal(*cut.images_NHWC)


@pytest.mark.parametrize("family", WEIGHING)
def test_an_image_does_not_depend_on_how_long_its_neighbours_prompts_are(loaded: Loaded, family: str) -> None:
    model = loaded(family)
    short, long, negative = make_draw(0), make_draw(1, prompt=LONG), make_draw(2, negative_prompt=LONG)
    draws = [replace(draw, prompt_weighting=True) for draw in (short, long, negative)]
    together = model.generate(draws).images_NHWC
    for number, draw in enumerate(draws):
        alike = [replace(draw, prompt_weighting=True) for draw in (make_draw(7), make_draw(8))]
        assert np.array_equal(together[number], model.generate([*alike, draw]).images_NHWC[2])


def test_a_model_of_two_stages_reads_weights_with_the_models_that_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SDXL, then its refiner, which has the second text encoder alone; as a job, whose captions have no brackets."""
    from tests.pipeline.models import tiny

    stage = {"id": str(tiny_families.sdxl_refiner(tmp_path / "refiner")), "steps": 4}
    job = {
        "prompts": {"texts": ["a (red:1.4) square", f"a blue circle, {LONG}"]},
        "model": {"id": str(tiny.sdxl(tmp_path / "sdxl")), "second_stage": stage},
        "sampling": {"steps": 2, "batch_size": 2, "prompt_weighting": True},
        "executor": {"kind": "local"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert promptmill("run", tmp_path / "job.yaml", "--out", tmp_path / "run") == 0, capsys.readouterr().err
    rows = pq.read_table(tmp_path / "run/metadata").to_pylist()
    assert [(row["prompt_tokens"], row["prompt_truncated"], row["prompt_weighting"]) for row in rows] == [
        (5, False, True),
        (102, False, True),
    ]
    assert rows[0]["prompt"] == "a (red:1.4) square"
    assert pq.read_table(tmp_path / "run/images")["text"].to_pylist()[0] == "a red square"
    assert promptmill("verify", tmp_path / "run", "--regenerate", 2) == 0


def test_a_model_that_reads_prompts_as_they_are_is_refused(model_folder: Callable[[str], Path]) -> None:
    card = resolve_model(ModelConfig(id=str(model_folder("sd3"))), base_dir=Path.cwd())
    with pytest.raises(ModelError, match=r"sampling.prompt_weighting: sd3 \(StableDiffusion3Pipeline\) reads prompts as they are; take it"):
        check_sampling(card, SamplingConfig(prompt_weighting=True))


def test_the_table_lists_every_known_pipeline_that_has_no_text_encoder_but_clip(tmp_path: Path) -> None:
    known = {name for family in FAMILIES for name in pipelines(family.pipeline).values()} | WEIGHS_PROMPTS

    def reads(name: str) -> bool:
        kind = getattr(diffusers, name)
        parts, takes = kind._get_signature_types(), kind.__call__.__annotations__
        encoders = {str(types) for part, types in parts.items() if part.startswith("text_encoder")}
        return bool(encoders) and all("CLIPText" in types for types in encoders) and "negative_prompt_embeds" in takes

    assert {name for name in known if reads(name)} == WEIGHS_PROMPTS
