"""A machine with other CLIP weights, another head or another scorer of one's own scores nothing."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipeline.scorers.here import on_this_machine
from pipeline.scorers.resolve import ScorerCard, resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

WEIGHTS = "open_clip_model.safetensors"


def resolved(base_dir: Path, **settings: object) -> tuple[ScorerCard, ScorerConfig]:
    config = ScorerConfig(**settings)  # type: ignore[arg-type]
    return resolve_scorer("quality", config, base_dir=base_dir), config


def refusal(card: ScorerCard, config: ScorerConfig) -> str:
    with pytest.raises(ModelError) as caught:
        on_this_machine(card, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("settings", [{"type": "clip"}, {"type": "choice", "choices": {"colour": ["red", "blue"]}}], ids=["clip", "choice"])
def test_other_weights_are_refused(own_clip: Path, settings: dict) -> None:
    card, config = resolved(own_clip.parent, model="my-clip", **settings)
    assert on_this_machine(card, config) == card
    flip(own_clip / WEIGHTS)
    message = refusal(card, config)
    assert message.startswith(f"scorers.quality: {own_clip} is my-clip/sha256:")
    assert message.endswith(f"the plan was made with {card.version}; copy the same files there")
    shutil.rmtree(own_clip)
    assert f"there is no folder {own_clip} on this machine" in refusal(card, config)


def test_another_head_is_refused(own_clip: Path, tmp_path: Path) -> None:
    head = tmp_path / "head.safetensors"
    save_file({"0.weight": torch.ones(1, 16)}, head)
    card, config = resolved(tmp_path, type="aesthetic", model="my-clip", head="head.safetensors")
    assert on_this_machine(card, config) == card
    flip(head)
    assert refusal(card, config).startswith(f"scorers.quality: {head} is another file")
    head.unlink()
    assert f"the file {head} is missing on this machine" in refusal(card, config)


def test_another_class_of_one_s_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text("class Light: pass\n")
    card, config = resolved(tmp_path, type="light:Light")
    assert on_this_machine(card, config) == card
    (tmp_path / "light.py").write_text("class Light: ...\n")
    assert "the class light:Light is light:Light/sha256:" in refusal(card, config)


def test_the_bundled_clip_and_pixels_are_found_where_promptmill_is_installed(tmp_path: Path) -> None:
    card, config = resolved(tmp_path, model="demo")
    assert on_this_machine(replace(card, folder="/elsewhere/clip"), config) == card
    card, config = resolved(tmp_path, type="sharpness")
    assert on_this_machine(card, config) == card


def test_published_weights_are_found_in_this_machine_s_cache(own_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "hub/models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("c" * 40)
    (repo / "snapshots").mkdir()
    own_clip.rename(repo / "snapshots" / ("c" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    card, config = resolved(tmp_path, model="ViT-B-32/laion2b_s34b_b79k")
    (tmp_path / "hub").rename(tmp_path / "other")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    found = on_this_machine(card, config)
    assert found == replace(card, folder=str(card.folder).replace("/hub/", "/other/"))
