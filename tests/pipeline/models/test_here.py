"""A machine whose files are not the plan's loads nothing: its images would be others, and nothing would tell."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.models import load_model
from pipeline.models.here import on_this_machine
from pipeline.models.resolve import ModelCard, resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from tests.hub import REPO, flip, in_cache
from tests.pipeline.models import tiny

COMMIT = "c" * 40
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def resolved(folder: Path, **settings: str) -> tuple[ModelCard, ModelConfig]:
    config = ModelConfig(id=str(folder), **settings)  # type: ignore[arg-type]
    return resolve_model(config, base_dir=Path.cwd(), mode="control" if "controlnet" in settings else "text-to-image"), config


def refusal(card: ModelCard, config: ModelConfig) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(card, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", [WEIGHTS, "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_a_folder_that_differs_in_any_file_is_refused(own_copy: Path, file: str) -> None:
    card, config = resolved(own_copy)
    assert on_this_machine(card, config) == card
    target = own_copy / file
    flip(target) if file == WEIGHTS else target.write_text(target.read_text() + "\n")
    message = refusal(card, config)
    assert message.startswith(f"model my-model: {own_copy} is sha256:")
    assert message.endswith(f"the plan was made with {card.revision}; copy the same files there")


def test_a_folder_that_is_missing_is_refused(own_copy: Path) -> None:
    card, config = resolved(own_copy)
    shutil.rmtree(own_copy)
    assert refusal(card, config).startswith(f"model my-model: there is no folder {own_copy} on this machine; copy it there")


def test_another_controlnet_is_refused(own_copy: Path, tmp_path: Path) -> None:
    net = tiny.controlnet(tmp_path / "net", "sd")
    card, config = resolved(own_copy, controlnet=str(net))
    assert on_this_machine(card, config) == card
    flip(net / "diffusion_pytorch_model.safetensors")
    assert f"model.controlnet {net}: {net} is sha256:" in refusal(card, config)
    shutil.rmtree(net)
    assert f"there is no folder {net} on this machine" in refusal(card, config)


def test_the_bundled_models_are_found_where_promptmill_is_installed(tmp_path: Path) -> None:
    config = ModelConfig.model_validate({"id": "demo", "controlnet": "demo"})
    card = resolve_model(config, base_dir=tmp_path, mode="control")
    assert on_this_machine(replace(card, folder="/elsewhere/demo", controlnet="/elsewhere/net"), config) == card


@pytest.fixture
def hub(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in this machine's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return in_cache(model_folder("sd"), tmp_path / "hub", commit=COMMIT)


def test_a_hub_model_is_found_in_this_machine_s_cache_at_the_planned_commit(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(id=REPO)
    card = resolve_model(config, base_dir=tmp_path)
    (tmp_path / "hub").rename(tmp_path / "other")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    here = tmp_path / "other" / hub.relative_to(tmp_path / "hub")
    (here.parents[1] / "refs/main").write_text("d" * 40)  # the hub has moved on since
    assert on_this_machine(card, config) == replace(card, folder=str(here))
    assert load_model(card, config).revision == COMMIT


@pytest.mark.parametrize("file", [WEIGHTS, "unet/config.json"])
def test_a_file_of_the_hub_s_cache_that_was_changed_is_refused_by_name(hub: Path, tmp_path: Path, file: str) -> None:
    config = ModelConfig(id=REPO)
    card = resolve_model(config, base_dir=tmp_path)
    blob = (hub / file).resolve()
    flip(blob) if file == WEIGHTS else blob.write_text(blob.read_text() + "\n")
    assert refusal(card, config) == (
        f"model acme/painter: {file} is damaged: its name is of other bytes; delete {blob} and download it again"
    )
