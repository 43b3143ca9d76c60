"""A model that cannot be loaded, or should not be, is refused in one line before anything is loaded."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.models import resolve
from pipeline.models.resolve import ModelCard, check_sampling, resolve_model
from schemas.config import ModelConfig, SamplingConfig
from schemas.errors import ModelError


def card_of(folder: Path, **settings: str) -> ModelCard:
    return resolve_model(ModelConfig(id=folder.name, **settings), base_dir=folder.parent)  # type: ignore[arg-type]


def refusal(folder: Path, **settings: str) -> str:
    with pytest.raises(ModelError) as caught:
        card_of(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model my-model")
    return message


def test_a_card_says_all_that_a_plan_needs(own_copy: Path) -> None:
    card = card_of(own_copy)
    assert (card.name, card.pipeline_class) == ("my-model", "StableDiffusionPipeline")
    assert (card.width, card.height, card.size_multiple) == (32, 32, 8)
    assert (card.scheduler, card.prediction_type) == ("DDIMScheduler", "epsilon")
    assert card.folder == str(own_copy)
    plain = json.dumps(asdict(card))  # raises at anything but plain values
    assert json.dumps(json.loads(plain)) == plain


@pytest.mark.parametrize(
    ("family", "width", "prediction", "max_size"), [("sdxl", 32, "epsilon", None), ("sd3", 32, "flow", 64), ("flux", 1024, "flow", None)]
)
def test_sizes_and_predictions_of_families(
    model_folder: Callable[[str], Path], family: str, width: int, prediction: str, max_size: int | None
) -> None:
    card = card_of(model_folder(family))
    assert (card.width, card.height, card.prediction_type, card.max_size) == (width, width, prediction, max_size)


def test_the_revision_covers_every_file_that_is_loaded_and_no_other(own_copy: Path) -> None:
    before = card_of(own_copy).revision
    (own_copy / "README.md").write_text("a note")
    (own_copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not loaded, so of no account")
    assert card_of(own_copy).revision == before
    for name in ("scheduler/scheduler_config.json", "vae/config.json"):
        changed = own_copy / name
        changed.write_text(changed.read_text() + "\n")
        assert card_of(own_copy).revision != before
        before = card_of(own_copy).revision


def test_a_variant_is_loaded_where_a_component_has_it(own_copy: Path) -> None:
    plain = card_of(own_copy).revision
    shutil.copy(own_copy / "unet/diffusion_pytorch_model.safetensors", own_copy / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert card_of(own_copy).revision == plain
    assert card_of(own_copy, variant="fp16").revision != plain


def test_a_pickle_is_refused_with_the_reason(own_copy: Path) -> None:
    (own_copy / "unet/diffusion_pytorch_model.safetensors").rename(own_copy / "unet/diffusion_pytorch_model.bin")
    message = refusal(own_copy)
    assert "unet: diffusion_pytorch_model.bin is a pickle, which runs any code" in message
    assert "save_file" in message


def test_a_single_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "model.ckpt").write_bytes(b"")
    assert "model.ckpt is a pickle" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_a_missing_file_is_named(own_copy: Path, name: str) -> None:
    (own_copy / name).unlink()
    assert f"{Path(name).name} " in refusal(own_copy)
    assert "missing" in refusal(own_copy)


def test_a_missing_component_is_named(own_copy: Path) -> None:
    shutil.rmtree(own_copy / "text_encoder")
    assert "the folder text_encoder/ (CLIPTextModel), which model_index.json names, is missing" in refusal(own_copy)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_weight_file_is_named(own_copy: Path, keep: int) -> None:
    file = own_copy / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "unet: diffusion_pytorch_model.safetensors is damaged" in refusal(own_copy)


def test_a_weight_file_with_bytes_too_many_or_no_header_is_damaged(own_copy: Path) -> None:
    file = own_copy / "unet/diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole + b"\0", b"PK\3\4" + whole, b"\x10" + b"\0" * 7 + b"not JSON at all!"):
        file.write_bytes(damaged)
        assert "is damaged" in refusal(own_copy)


def test_a_config_that_is_no_json_is_named(own_copy: Path) -> None:
    (own_copy / "unet/config.json").write_text("{")
    assert "unet: config.json cannot be read as JSON" in refusal(own_copy)


def test_a_missing_shard_is_named(own_copy: Path) -> None:
    unet = own_copy / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {
        "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}
    }
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "unet: the weight file diffusion_pytorch_model-00002-of-00002.safetensors is missing" in refusal(own_copy)


def test_an_index_cannot_reach_outside_its_folder(own_copy: Path) -> None:
    (own_copy / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../other.safetensors"}})
    )
    assert "no safetensors file of this folder" in refusal(own_copy)


@pytest.mark.parametrize("name", ["pipeline.py", "unet/modeling.py"])
def test_code_in_the_folder_is_refused(own_copy: Path, name: str) -> None:
    (own_copy / name).write_text("raise SystemExit")
    assert f"brings code, {name}" in refusal(own_copy)


@pytest.mark.parametrize("kind", ["MyOwnPipeline", ["pipeline", "MyOwnPipeline"], 'StableDiffusionPipeline", "', None])
def test_a_pipeline_that_diffusers_does_not_have_is_refused(own_copy: Path, kind: object) -> None:
    index = json.loads((own_copy / "model_index.json").read_text())
    (own_copy / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    assert "code that comes with a model is never run" in refusal(own_copy)


def test_a_component_of_another_library_is_refused(own_copy: Path) -> None:
    index = json.loads((own_copy / "model_index.json").read_text())
    (own_copy / "model_index.json").write_text(json.dumps(index | {"unet": ["my_models", "UNet"]}))
    assert "component unet comes from 'my_models'" in refusal(own_copy)


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    for name in ("./nothing", "nothing", "/nowhere/at/all"):
        with pytest.raises(ModelError, match="there is no such folder"):
            resolve_model(ModelConfig(id=name), base_dir=tmp_path)  # pyright: ignore[reportCallIssue]


def test_demo_weights_are_found_by_the_package_and_checked(own_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "WEIGHTS", own_copy.parent)
    monkeypatch.setitem(resolve.BUNDLED, "demo", own_copy.name)
    demo = ModelConfig(id="demo")  # pyright: ignore[reportCallIssue]
    assert resolve_model(demo, base_dir=tmp_path).name == "demo"
    (own_copy.parent / "sha256.json").write_text(json.dumps({"my-model/unet/config.json": "0" * 64}))
    with pytest.raises(ModelError, match=r"my-model/unet/config\.json differs from its pinned sha256"):
        resolve_model(demo, base_dir=tmp_path)


def test_the_bundled_controlnet_and_upscaler_are_found_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(resolve.WEIGHTS, weights)
    monkeypatch.setattr(resolve, "WEIGHTS", weights)
    upscaler = ModelConfig(id="demo-upscaler")
    card = resolve_model(upscaler, base_dir=tmp_path, mode="super-resolution")
    assert (card.name, card.input_scale, card.width) == ("demo-upscaler", 4, 64)
    guided = ModelConfig.model_validate({"id": "demo", "controlnet": "demo"})
    assert resolve_model(guided, base_dir=tmp_path, mode="control").controlnet == str(weights / "controlnet")
    flipped = weights / "controlnet" / "diffusion_pytorch_model.safetensors"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=r"model.controlnet demo: controlnet/\S+ differs from its pinned sha256"):
        resolve_model(guided, base_dir=tmp_path, mode="control")


SD = ModelCard(
    name="m",
    revision="r",
    folder="f",
    pipeline_class="StableDiffusionPipeline",
    width=512,
    height=512,
    size_multiple=8,
    max_size=1024,
    scheduler="DDIMScheduler",
    prediction_type="epsilon",
)


@pytest.mark.parametrize(
    ("card", "settings", "message"),
    [
        (SD, {"width": 500}, "sampling.width: m makes multiples of 8 pixels, not 500; use 496 or 504"),
        (SD, {"height": 3}, "sampling.height: m makes multiples of 8 pixels, not 3; use 8 or 16"),
        (SD, {"height": 2048}, "sampling.height: m makes at most 1024 pixels, not 2048; use 1024 or less"),
        (SD, {"scheduler": "eulr"}, "sampling.scheduler: unknown sampler 'eulr'; did you mean 'euler'?"),
        (
            SD,
            {"scheduler": "flow_euler"},
            "sampling.scheduler: flow_euler cannot step with the epsilon prediction of m; use one of: default, ddpm",
        ),
        (
            replace(SD, prediction_type="flow"),
            {"scheduler": "ddim"},
            "sampling.scheduler: ddim cannot step with the flow prediction of m; use one of: default, flow_euler, flow_heun",
        ),
        (replace(SD, prediction_type="sample"), {"scheduler": "heun"}, "heun cannot step with the sample prediction"),
        (replace(SD, scheduler="EDMEulerScheduler"), {"scheduler": "euler"}, "use one of: default, edm, edm_dpm++_2m"),
        (replace(SD, scheduler="DPMSolverSDEScheduler"), {}, "m's own DPMSolverSDEScheduler ignores the seed"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_it_is_loaded(card: ModelCard, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_sampling(card, SamplingConfig(**settings))  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_a_model_can_do_passes() -> None:
    for settings in ({}, {"width": 8, "height": 1024}, {"scheduler": "dpm++_2m_karras"}):
        check_sampling(SD, SamplingConfig(**settings))  # type: ignore[arg-type]


def test_resolving_imports_neither_torch_nor_diffusers(own_copy: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from schemas.config import ModelConfig; from pipeline.models.resolve import resolve_model;"
        f"import pipeline.scorers, pipeline.models; resolve_model(ModelConfig(id={str(own_copy)!r}), base_dir=Path('.'));"
        "print(sorted({'torch', 'diffusers', 'transformers', 'open_clip', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["lms", "heun", "dpm2", "dpm2_a", "dpm++_2m_sde_karras"])
def test_a_sampler_that_cannot_start_from_pure_noise_is_refused_for_models_that_do(own_copy: Path, name: str) -> None:
    demo = resolve_model(ModelConfig(id="demo"), base_dir=Path.cwd())
    with pytest.raises(
        ModelError, match=rf"{re.escape(name)} cannot start from the pure noise in which the schedule of demo ends; use one of: default"
    ) as caught:
        check_sampling(demo, SamplingConfig(scheduler=name))
    assert f" {name}," not in str(caught.value)
    check_sampling(resolve_model(ModelConfig(id=str(own_copy)), base_dir=Path.cwd()), SamplingConfig(scheduler=name))
