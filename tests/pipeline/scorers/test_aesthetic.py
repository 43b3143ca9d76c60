"""A head over CLIP's features gives what its matrices say; one that does not fit is refused."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.scorers import load_scorer
from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
WIDTH = 16  # of the tiny CLIP's features


def layers(*widths: int) -> dict[str, torch.Tensor]:
    """Named as in LAION's predictor, whose layers 10 and 2 sort wrongly as text."""
    torch.manual_seed(0)
    found = {}
    for number, (inner, outer) in zip((0, 2, 10), pairwise(widths), strict=False):
        found |= {f"layers.{number}.weight": torch.randn(outer, inner), f"layers.{number}.bias": torch.randn(outer)}
    return found


def card(clip_folder: Path, head: Path):
    return resolve_scorer("looks", ScorerConfig(type="aesthetic", model=str(clip_folder), head=str(head)), base_dir=Path.cwd())


@pytest.mark.parametrize("relu", [False, True])
def test_the_score_is_the_product_of_features_and_layers(clip_folder: Path, tmp_path: Path, relu: bool) -> None:
    tensors = layers(WIDTH, 8, 4, 1)
    save_file(tensors, tmp_path / "head.safetensors", metadata={"activation": "relu"} if relu else None)
    clip = ClipScorer(resolve_scorer("clip", ScorerConfig(model=str(clip_folder)), base_dir=Path.cwd()))
    hidden = clip.images(IMAGES).double()
    for number in (0, 2, 10):
        hidden = hidden @ tensors[f"layers.{number}.weight"].double().T + tensors[f"layers.{number}.bias"].double()
        hidden = hidden.clamp(min=0) if relu and number != 10 else hidden
    scorer = load_scorer(card(clip_folder, tmp_path / "head.safetensors"))
    np.testing.assert_allclose(scorer.score(IMAGES, [""] * 4), hidden[:, 0].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "output"), [("sequential", "sigmoid"), ("sequential", None), ("gelu", None), ("relu", "softmax")])
def test_what_a_sequential_network_has_between_its_layers_is_told_by_their_numbers(
    clip_folder: Path, tmp_path: Path, activation: str, output: str | None
) -> None:
    torch.manual_seed(0)
    linear, relu, dropout = torch.nn.Linear, torch.nn.ReLU, torch.nn.Dropout
    network = torch.nn.Sequential(linear(WIDTH, 8), relu(), dropout(0.2), linear(8, 8), relu(), linear(8, 4), linear(4, 1)).eval()
    tensors = {f"layers.{name}": tensor for name, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "head.safetensors", metadata={"activation": activation} | ({"output": output} if output else {}))
    if activation == "gelu" or output == "softmax":
        with pytest.raises(
            ModelError, match=r"says activation: 'gelu'; known is relu, sequential|says output: 'softmax'; known is sigmoid"
        ):
            load_scorer(card(clip_folder, tmp_path / "head.safetensors"))
        return
    clip = ClipScorer(resolve_scorer("clip", ScorerConfig(model=str(clip_folder)), base_dir=Path.cwd()))
    with torch.inference_mode():
        expected = network(clip.images(IMAGES))[:, 0]
        expected = expected.sigmoid() if output else expected
    scorer = load_scorer(card(clip_folder, tmp_path / "head.safetensors"))
    np.testing.assert_allclose(scorer.score(IMAGES, [""] * 4), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_a_head_that_does_not_fit_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    for name, tensors in {
        "narrow": layers(12, 1),
        "wide": layers(WIDTH, 2),
        "torn": layers(WIDTH, 8) | {"1.weight": torch.zeros(1, 7)},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelError, match="must lead from 16 features to 1 number"):
            load_scorer(card(clip_folder, tmp_path / f"{name}.safetensors"))
    save_file({"x": torch.zeros(3)}, tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="holds no linear layers"):
        load_scorer(card(clip_folder, tmp_path / "none.safetensors"))


def test_a_pickle_or_a_missing_file_is_refused_and_other_weights_are_another_version(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="safetensors"):
        card(clip_folder, tmp_path / "head.pth")
    with pytest.raises(ModelError, match="is missing"):
        card(clip_folder, tmp_path / "head.safetensors")
    versions = set()
    for value in (0.0, 1.0):
        save_file({"weight": torch.full((1, WIDTH), value)}, tmp_path / "head.safetensors")
        versions.add(card(clip_folder, tmp_path / "head.safetensors").version)
    assert len(versions) == 2
