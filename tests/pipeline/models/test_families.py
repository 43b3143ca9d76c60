"""One row per architecture: a tiny folder of it goes through ``promptmill run`` from a YAML, and obeys the draw's laws."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.plan import summarize
from jobs.prepare import prepare
from pipeline.models.base import ImageModel
from pipeline.models.families import FAMILIES
from pipeline.models.folder import INDEX
from pipeline.models.modes import UNSCALED
from pipeline.models.resolve import check_sampling, resolve_model
from pipeline.models.samplers import SAMPLERS, fitting
from pipeline.models.switches import network
from schemas.config import ModelConfig, SamplingConfig
from schemas.config_load import load as load_config
from schemas.errors import ModelError
from tests.pipeline.models import tiny, tiny_families
from tests.pipeline.models.conftest import check_guidance_interval, load, make_draw, promptmill


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a family has: text, a negative prompt, a guidance scale that counts."""

    text: bool = True
    negative: bool = True
    guidance: bool = True


# KandinskyV22CombinedPipeline passes its own decoder what that decoder deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*callback.* is deprecated:FutureWarning")
ROWS = dict.fromkeys(tiny_families.BUILDERS, Row()) | {
    "flux-dev": Row(negative=False),
    "lcm": Row(negative=False),
    "flux-2-klein": Row(negative=False),
    "flux-2-dev": Row(negative=False),
    "dit": Row(negative=False),
    "ddpm": Row(text=False, negative=False, guidance=False),
}
NO_INTERVAL = {"flux-dev", "flux-2-dev", "lcm", "ddpm"}
TAKES_THE_SCALE = {"flux-dev", "flux-2-dev", "lcm"}
EXAMPLES = sorted((Path(__file__).parents[3] / "configs" / "models").glob("*.yaml"))
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root, made = tmp_path_factory.mktemp("families"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_families.BUILDERS[family](root / family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def model_of(folder_of: Made) -> Callable[[str], ImageModel]:
    made: dict[str, ImageModel] = {}

    def model(family: str) -> ImageModel:
        if family not in made:
            made[family] = load(folder_of(family))
        return made[family]

    return model


def draw(number: int, family: str, **changes: Any) -> Any:
    prompts = ["a red square 0", "a blue circle", "tench", "goldfish"]
    return make_draw(number, **{"prompt": prompts[number % 4], "steps": 2, "guidance_scale": 3.0} | changes)


def image(model: ImageModel, *draws: Any) -> np.ndarray:
    return model.generate(draws).images_NHWC


@pytest.mark.parametrize("family", ROWS)
def test_an_image_is_a_function_of_its_draw(model_of: Callable[[str], ImageModel], family: str) -> None:
    model, row, one = model_of(family), ROWS[family], draw(0, family)
    first, second = image(model, one, draw(1, family)), image(model, draw(2, family), one)
    assert first.shape == (2, 32, 32, 3)
    assert np.array_equal(first[0], second[1])
    plain = image(model, one)
    assert not np.array_equal(plain, image(model, draw(0, family, seed=5)))
    assert np.array_equal(plain, image(model, draw(0, family, prompt="a blue circle"))) is not row.text
    assert np.array_equal(plain, image(model, draw(0, family, guidance_scale=9.0))) is not row.guidance
    if row.negative:
        assert not np.array_equal(plain, image(model, draw(0, family, negative_prompt="a blue circle")))
    else:
        with pytest.raises(ValueError, match="takes no negative prompt"):
            model.generate([draw(0, family, negative_prompt="blurry")])


@pytest.mark.parametrize("family", [family for family in ROWS if family not in NO_INTERVAL])
def test_guidance_may_be_for_some_of_the_steps(model_of: Callable[[str], ImageModel], family: str) -> None:
    model = model_of(family)
    check_guidance_interval(model, lambda **changes: image(model, *(draw(number, family, **changes) for number in range(3))))


@pytest.mark.parametrize("family", [family for family in ROWS if ROWS[family].guidance and family not in TAKES_THE_SCALE])
def test_a_scale_of_1_or_less_leaves_out_the_second_pass(model_of: Callable[[str], ImageModel], family: str) -> None:
    model, asked = model_of(family), []
    watch = network(model._pipe).register_forward_pre_hook(lambda *_: asked.append(1))  # type: ignore[attr-defined]
    images = [image(model, draw(0, family, guidance_scale=scale)) for scale in (1.0, 0.5, 0.0)]
    watch.remove()
    assert len(asked) == 3 * 2
    assert all(np.array_equal(images[0], one) for one in images[1:])


@pytest.mark.parametrize("family", ROWS)
def test_guidance_that_a_model_would_not_heed_is_refused(folder_of: Made, family: str) -> None:
    card = resolve_model(ModelConfig(id=str(folder_of(family))), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    model, once = f"{family} ({card.pipeline_class}) ", "takes guidance_scale as an input of its network, which is asked once a step"
    unguided = "draws from noise alone, which nothing guides; take it out"

    def refusal(**settings: Any) -> str:
        with pytest.raises(ModelError) as caught:
            check_sampling(card, SamplingConfig(**settings))
        return str(caught.value)

    if family in NO_INTERVAL:
        why = once if family in TAKES_THE_SCALE else "does not take it; take it out"
        assert refusal(guidance_interval=[0.2, 0.8]).startswith(f"sampling.guidance_interval: {model}{why}")
    if not ROWS[family].negative:
        why = once if family == "flux-dev" else "takes none; leave it empty"
        assert refusal(negative_prompt="blurry").startswith(f"sampling.negative_prompt: {model}{why}")
    if family != "flux-dev":
        why = "cannot be asked twice a step; take it out"
        why = why if family in TAKES_THE_SCALE else "is guided by guidance_scale; set that one instead"
        why = why if ROWS[family].guidance else unguided
        assert refusal(true_cfg_scale=3.0) == f"sampling.true_cfg_scale: {model}{why}"
    if not ROWS[family].guidance:
        assert refusal(guidance_scale=3.0) == f"sampling.guidance_scale: {model}{unguided}"
        for scale in (SamplingConfig().guidance_scale, 1.0):
            check_sampling(card, SamplingConfig(guidance_scale=scale))


@pytest.mark.parametrize("family", ROWS)
def test_a_job_runs_from_a_yaml_and_makes_the_same_bytes_again(
    folder_of: Made, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {
        "prompts": {"texts": ["a red square 0", "a blue circle"], "draws_per_prompt": 2},
        "model": {"id": str(folder_of(family))},
        "sampling": {"steps": 2, "batch_size": 2, "width": 32, "height": 32} | ({"guidance_scale": 3.0} if ROWS[family].guidance else {}),
        "output": {"image_format": "png"},
        "executor": {"kind": "local"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert promptmill("run", tmp_path / "job.yaml", "--out", tmp_path / "run") == 0, capsys.readouterr().err
    images = pq.read_table(tmp_path / "run/images").to_pylist()
    assert len({hashlib.sha256(one["image"]["bytes"]).hexdigest() for one in images}) == 4
    assert promptmill("verify", tmp_path / "run", "--regenerate", 2) == 0
    assert "2 images made again" in capsys.readouterr().out


def test_the_table_of_families_lists_what_is_tested_here_and_nothing_else(folder_of: Made) -> None:
    cards = [resolve_model(ModelConfig(id=str(folder_of(family))), base_dir=Path.cwd()) for family in ROWS]  # pyright: ignore[reportCallIssue]
    table = {one.pipeline: one for one in FAMILIES}
    assert {card.pipeline_class for card in cards} == set(table)
    assert all(card.prediction_type in table[card.pipeline_class].predicts for card in cards)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_job_plans_with_a_model_of_its_kind(folder_of: Made, tmp_path: Path, path: Path) -> None:
    """A tiny one in the place of the checkpoint, which the table of families lists."""
    model, changes = load_config(path).model, ["scorers={}"]
    if not model.endpoint:
        [kind] = [one for one in FAMILIES if model.id in dict(one.checkpoints)]
        folder = next(folder for folder in map(folder_of, ROWS) if json.loads((folder / INDEX).read_text())["_class_name"] == kind.pipeline)
        changes += [f"model.id={folder}", "model.variant=null", "sampling.width=32", "sampling.height=32"]
        if model.controlnet:
            changes.append(f"model.controlnet={tiny.controlnet(tmp_path / 'net', folder.name)}")
        if model.ip_adapter:
            changes.append(f"model.ip_adapter={json.dumps(tiny.ip_adapter(tmp_path / 'adapter', folder))}")
    assert summarize(prepare(path, changes)).num_draws > 0


@pytest.mark.parametrize("family", ["ddpm", "dit"])
def test_a_model_of_one_size_refuses_any_other_before_it_is_loaded(folder_of: Made, family: str) -> None:
    card = resolve_model(ModelConfig(id=str(folder_of(family))), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    assert (card.width, card.height) == (32, 32)
    for width in (16, 64):
        with pytest.raises(ModelError, match=r"sampling\.width"):
            check_sampling(card, SamplingConfig(width=width))


@pytest.mark.parametrize(("prompt", "error"), [("a zebra", "knows no class 'a zebra'"), ("1000", "has classes 0 to 999, not 1000")])
def test_a_label_that_is_no_class_is_named(model_of: Callable[[str], ImageModel], prompt: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        model_of("dit").generate([draw(0, "dit", prompt=prompt)])


def test_a_class_may_be_given_by_number_or_by_any_of_its_names(model_of: Callable[[str], ImageModel]) -> None:
    images = [image(model_of("dit"), draw(0, "dit", prompt=prompt)) for prompt in ("1", "goldfish", "Carassius auratus")]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


@pytest.mark.parametrize("family", ["qwen-image", "z-image"])
def test_a_long_neighbour_does_not_pad_an_image_into_another(folder_of: Made, family: str) -> None:
    """In bfloat16, where one batch of both would differ by up to 0.02 in the latents."""
    model, one = load(folder_of(family), dtype="bfloat16"), draw(0, family, prompt="a red square", steps=4)
    short, long = (draw(1, family, prompt=prompt, steps=4) for prompt in ("red", "a red square " * 20))
    assert np.array_equal(image(model, one, short)[0], image(model, one, long)[0])


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning:numpy")  # KDPM2 with numpy 2
@pytest.mark.parametrize("family", [family for family in ROWS if family != "sd-v"])
def test_every_sampler_that_is_not_refused_draws(folder_of: Made, model_of: Callable[[str], ImageModel], family: str) -> None:
    card = resolve_model(ModelConfig(id=str(folder_of(family))), base_dir=Path.cwd())  # pyright: ignore[reportCallIssue]
    for name, sampler in SAMPLERS.items():
        if name in fitting(card.prediction_type, card.pipeline_class):
            made = model_of(family).generate([draw(number, family, scheduler=name, steps=4) for number in (0, 1)])
            assert made.finite.all(), name
            assert not np.array_equal(*made.images_NHWC), name
        else:
            why = "does not scale latents as" if card.pipeline_class in UNSCALED else "works out its steps itself, which"
            why = why if card.prediction_type in sampler.fits else "cannot step with the"
            with pytest.raises(ModelError, match=why):
                check_sampling(card, SamplingConfig(scheduler=name))


def test_a_model_with_a_noise_schedule_of_edm_takes_its_samplers_alone(tmp_path: Path) -> None:
    """As Playground 2.5, whose other parts are SDXL's."""
    folder, kind = tiny.sdxl(tmp_path / "playground"), "EDMDPMSolverMultistepScheduler"
    getattr(tiny.diffusers, kind)().save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
    card, model = resolve_model(ModelConfig(id=str(folder)), base_dir=Path.cwd()), load(folder)  # pyright: ignore[reportCallIssue]
    drawn = []
    for name in ("default", "edm", "edm_dpm++_2m"):
        check_sampling(card, SamplingConfig(scheduler=name))
        drawn.append(image(model, draw(0, "sdxl", scheduler=name, steps=4)))
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])
    with pytest.raises(ModelError, match="use one of: default, edm, edm_dpm"):
        check_sampling(card, SamplingConfig(scheduler="euler"))


@pytest.mark.parametrize(
    ("family", "scheduler"),
    [("deepfloyd-if", "euler"), *((family, name) for family in ("kandinsky-2.2", "deepfloyd-if") for name in ("dpm++_2m", "ddim"))],
)
def test_a_sampler_reaches_networks_that_learned_their_variance(model_of: Callable[[str], ImageModel], family: str, scheduler: str) -> None:
    model = model_of(family)
    assert not np.array_equal(image(model, draw(0, family)), image(model, draw(0, family, scheduler=scheduler)))
