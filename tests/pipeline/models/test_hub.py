"""A hub id is resolved from the local cache without a network, pinned by its commit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipeline.models.resolve import ModelCard, resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from tests.pipeline.models import tiny

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out: blobs, refs, and snapshots of symbolic links."""
    cache = tmp_path / "hub"
    repo = cache / "models--acme--painter"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    for commit in (COMMIT, OLDER):
        for source in sorted(path for path in model_folder("sd").rglob("*") if path.is_file()):
            name = source.relative_to(model_folder("sd"))
            blob = repo / "blobs" / name.as_posix().replace("/", "-")
            shutil.copy(source, blob)
            link = repo / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return repo


def card(tmp_path: Path, name: str = "acme/painter", **settings: str) -> ModelCard:
    return resolve_model(ModelConfig(id=name, **settings), base_dir=tmp_path)  # type: ignore[arg-type]


@pytest.mark.usefixtures("hub_cache")
def test_the_newest_commit_is_looked_up_and_recorded(tmp_path: Path) -> None:
    found = card(tmp_path)
    assert (found.name, found.revision, found.pipeline_class) == ("acme/painter", COMMIT, "StableDiffusionPipeline")


@pytest.mark.usefixtures("hub_cache")
def test_a_pinned_commit_is_the_one_that_is_used(tmp_path: Path) -> None:
    found = card(tmp_path, revision=OLDER)
    assert found.revision == OLDER
    assert Path(found.folder).name == OLDER


@pytest.mark.usefixtures("hub_cache")
def test_a_controlnet_is_pinned_as_a_model_is(hub_cache: Path, tmp_path: Path) -> None:
    net = hub_cache.parent / "models--acme--edges"
    for commit, seed in ((COMMIT, 1), (OLDER, 2)):
        tiny.controlnet(net / "snapshots" / commit, "sd", seed=seed)
    (net / "refs").mkdir()
    (net / "refs/main").write_text(COMMIT)

    def found(**pin: str) -> ModelCard:
        config = {"id": "acme/painter", "controlnet": {"id": "acme/edges"} | pin}
        return resolve_model(ModelConfig.model_validate(config), base_dir=tmp_path, mode="control")

    assert [Path(one.controlnet or "").name for one in (found(), found(revision=OLDER))] == [COMMIT, OLDER]
    assert found().revision == found(revision=COMMIT).revision != found(revision=OLDER).revision


def test_a_folder_next_to_the_configuration_wins_over_the_hub(hub_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(hub_cache / "snapshots" / COMMIT, tmp_path / "acme/painter")
    assert card(tmp_path).name == "painter"


def test_a_half_downloaded_model_is_refused_by_the_file(hub_cache: Path, tmp_path: Path) -> None:
    (hub_cache / "snapshots" / COMMIT / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model acme/painter: unet: no weights: diffusion_pytorch_model.safetensors"):
        card(tmp_path)


@pytest.mark.usefixtures("hub_cache")
def test_what_is_not_in_the_cache_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        card(tmp_path, "acme/unknown", revision="v2")
    message = str(caught.value)
    assert "\n" not in message
    assert "hf download acme/unknown --revision v2" in message
    assert "or give a local folder" in message
