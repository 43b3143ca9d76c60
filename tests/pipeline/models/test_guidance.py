"""Guidance rescale and true classifier-free guidance: what a pipeline takes has its effect; the rest is refused early."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from jobs.plan import summarize
from jobs.prepare import prepare
from pipeline.models.base import ImageModel
from pipeline.models.families import FAMILIES
from pipeline.models.modes import NO_NEGATIVE_PROMPT, RESCALES_GUIDANCE, TRUE_CFG, UNGUIDED, pipelines
from pipeline.models.resolve import check_sampling, resolve_model
from schemas.config import ModelConfig, SamplingConfig
from schemas.errors import ModelError
from schemas.modes import Mode
from tests.pipeline.models import tiny, tiny_families
from tests.pipeline.models.conftest import check_guidance_interval, load, make_draw, promptmill
from tests.pipeline.models.tiny import diffusers

Loaded = Callable[[str], ImageModel]


def test_the_tables_list_every_known_pipeline_that_takes_them() -> None:
    known = RESCALES_GUIDANCE | TRUE_CFG | NO_NEGATIVE_PROMPT
    known |= {name for family in FAMILIES for name in pipelines(family.pipeline).values()}

    def that_take(argument: str) -> set[str]:
        return {name for name in known if argument in inspect.signature(getattr(diffusers, name).__call__).parameters}

    assert that_take("guidance_rescale") == RESCALES_GUIDANCE
    assert that_take("true_cfg_scale") == TRUE_CFG
    assert known - that_take("negative_prompt") == NO_NEGATIVE_PROMPT
    assert known - that_take("guidance_scale") == UNGUIDED


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


@pytest.fixture(scope="module")
def flux_dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.flux_dev(tmp_path_factory.mktemp("models") / "flux-dev")


def test_a_network_that_takes_the_scale_is_asked_twice_where_true_guidance_is_wanted_and_else_once(flux_dev: Path) -> None:
    model, asked = load(flux_dev), []
    core = model._pipe.transformer  # type: ignore[attr-defined]
    core.register_forward_pre_hook(lambda _, given, named: asked.append(float(named["guidance"][0])), with_kwargs=True)

    def images(**changes: object) -> np.ndarray:
        asked.clear()
        return model.generate([make_draw(number, **changes) for number in range(2)]).images_NHWC

    plain = images()
    assert asked == [4.0] * 3
    twice = images(true_cfg_scale=3.0)
    assert asked == [4.0] * 6
    others = [images(true_cfg_scale=5.0), images(true_cfg_scale=3.0, negative_prompt="a blue circle")]
    others.append(images(true_cfg_scale=3.0, guidance_scale=2.0))
    assert not any(np.array_equal(one[0], other[0]) for one in (plain, twice) for other in (*others, plain) if one is not other)
    mixed = [make_draw(5, true_cfg_scale=3.0), make_draw(0, true_cfg_scale=3.0)]
    assert np.array_equal(model.generate(mixed).images_NHWC[1], twice[0])


def test_true_guidance_may_be_for_some_of_the_steps(flux_dev: Path) -> None:
    def images(guidance_scale: float = 4.0, **changes: object) -> np.ndarray:
        true_cfg_scale = guidance_scale if guidance_scale > 1 else None
        return model.generate([make_draw(number, true_cfg_scale=true_cfg_scale, **changes) for number in range(3)]).images_NHWC

    model = load(flux_dev)
    check_guidance_interval(model, images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_prompt": "blurry"}, "sampling.negative_prompt: flux-dev (FluxPipeline) takes guidance_scale as an input"),
        ({"negative_prompt": "blurry", "true_cfg_scale": 1.0}, "asked once a step; set sampling.true_cfg_scale above 1, or leave it empty"),
        ({"guidance_interval": [0.2, 0.8]}, "asked once a step; set sampling.true_cfg_scale above 1, or take it out"),
    ],
)
def test_what_needs_a_second_pass_is_refused_without_one(flux_dev: Path, settings: dict[str, object], message: str) -> None:
    card = resolve_model(ModelConfig(id=str(flux_dev)), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    with pytest.raises(ModelError) as caught:
        check_sampling(card, SamplingConfig.model_validate(settings))
    assert message in str(caught.value)
    check_sampling(card, SamplingConfig.model_validate(settings | {"true_cfg_scale": 3.0}))
    twice = replace(card, name="sd", pipeline_class="StableDiffusionPipeline", guidance="second pass", second_stage=card)
    if "negative_prompt" in settings:
        with pytest.raises(ModelError, match=r"^model.second_stage: sampling.negative_prompt: flux-dev"):
            check_sampling(twice, SamplingConfig.model_validate(settings))


def test_each_row_may_have_its_own_true_guidance_and_the_table_suffices_to_make_it_again(
    flux_dev: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "prompt,negative_prompt,true_cfg_scale\na red square,,\na red square,blurry,2.5\n"
    (tmp_path / "prompts.csv").write_text(rows)
    job = {
        "prompts": {"file": "prompts.csv"},
        "model": {"id": str(flux_dev)},
        "sampling": {"steps": 2, "guidance_scale": 3.0, "batch_size": 2, "width": 32, "height": 32},
        "executor": {"kind": "local"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert promptmill("run", tmp_path / "job.yaml", "--out", tmp_path / "run") == 0
    found = pq.read_table(tmp_path / "run/metadata").to_pylist()
    columns = ("guidance_scale", "true_cfg_scale", "negative_prompt")
    assert [tuple(row[name] for name in columns) for row in found] == [(3.0, None, ""), (3.0, 2.5, "blurry")]
    assert promptmill("verify", tmp_path / "run", "--regenerate", 2) == 0
    assert "2 images made again" in capsys.readouterr().out
    (tmp_path / "prompts.csv").write_text(rows.replace("2.5", "1"))
    assert promptmill("plan", tmp_path / "job.yaml") == 2
    assert "prompt 000001: sampling.negative_prompt: flux-dev (FluxPipeline) takes guidance_scale as an input" in capsys.readouterr().err


def test_a_plan_tells_of_negative_prompts_that_have_no_say(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    job = {
        "prompts": ["a red square", "a blue circle"],
        "model": {"id": str(model_folder("sd"))},
        "sampling": {"negative_prompt": "blurry", "sweep": {"guidance_scale": [1.0, 3.0]}},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert summarize(prepare(tmp_path / "job.yaml")).unread_negatives == 2


def test_a_scale_that_a_distilled_model_ignores_is_refused(tmp_path: Path) -> None:
    folder = tiny_families.flux_2_klein(tmp_path / "klein")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    card = resolve_model(ModelConfig(id=str(folder)), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    check_sampling(card, SamplingConfig(guidance_scale=1.0))
    with pytest.raises(
        ModelError, match=r"sampling.guidance_scale: klein \(Flux2KleinPipeline\) was distilled to draw without guidance; set it"
    ):
        check_sampling(card, SamplingConfig(guidance_scale=4.0))


def test_a_u_net_that_takes_the_scale_reads_no_negative_prompt_whatever_its_pipeline(tmp_path: Path) -> None:
    """As LCM-SDXL: the pipeline has a negative prompt, and ignores it."""
    folder = tiny.sd(tmp_path / "lcm-sd", time_cond_proj_dim=32)
    card = resolve_model(ModelConfig(id=str(folder)), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    for settings in ({"negative_prompt": "blurry"}, {"guidance_interval": [0.2, 0.8]}):
        with pytest.raises(ModelError, match="takes guidance_scale as an input of its network, which is asked once a step; "):
            check_sampling(card, SamplingConfig.model_validate(settings))
    model = load(folder)
    with pytest.raises(ValueError, match="takes no negative prompt"):
        model.generate([make_draw(0, negative_prompt="blurry")])
    weak, strong = (model.generate([make_draw(0, guidance_scale=scale)]).images_NHWC for scale in (2.0, 8.0))
    assert not np.array_equal(weak, strong)
