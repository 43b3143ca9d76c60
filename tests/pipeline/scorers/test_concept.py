"""A concept's probability is the softmax that one writes by hand; nudity is such a concept, or what a head or a detector says."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file

from jobs.cli import cli
from jobs.query import query
from pipeline.encode import encode
from pipeline.models.demo.grammar import one
from pipeline.models.demo.render import render
from pipeline.scorers import load_scorer, resolve
from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.here import on_this_machine
from pipeline.scorers.resolve import NSFW, resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError
from tests import runs

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
RULE = "filter.rules=[{score: nude, max: 0.4}]"
needs_nudenet = pytest.mark.skipif(importlib.util.find_spec("nudenet") is None, reason="nudenet is not installed")


def card(**settings: object):
    return resolve_scorer("odds", ScorerConfig(**settings), base_dir=Path.cwd())  # type: ignore[arg-type]


def score(images: np.ndarray, **settings: object) -> np.ndarray:
    return load_scorer(card(**settings)).score(images, ["whatever"] * len(images))


def by_hand(clip_folder: Path, texts: dict[str, list[str]]) -> list[float]:
    clip = ClipScorer(card(model=str(clip_folder)))
    found = []
    for image in IMAGES:
        cosines = np.array([clip.score(image[None], [text])[0] for text in [*texts["concept"], *texts["other"]]], dtype=np.float64)
        odds = np.exp(clip.logit_scale * cosines)
        found.append(odds[: len(texts["concept"])].sum() / odds.sum())
    return found


def test_the_score_is_the_concept_s_share_of_the_softmax(clip_folder: Path) -> None:
    texts = {"concept": ["a dog", "a puppy"], "other": ["a cat", "a bird", "snow"]}
    scores = score(IMAGES, type="concept", model=str(clip_folder), choices=texts)
    np.testing.assert_allclose(scores, by_hand(clip_folder, texts), rtol=1e-3)
    np.testing.assert_array_equal(score(IMAGES[[1, 1, 2]], type="concept", model=str(clip_folder), choices=texts)[:2], scores[[1, 1]])
    np.testing.assert_allclose(score(IMAGES, type="nsfw", model=str(clip_folder)), by_hand(clip_folder, NSFW), rtol=1e-3)


def test_the_bundled_clip_knows_its_concepts() -> None:
    images = np.stack([render(one(shape, "red", "large", "white"), 5) for shape in ("circle", "star")])
    texts = {
        f: [f"a large {colour} {shape} on a white background" for colour in ("red", "blue") for shape in shapes]
        for f, shapes in (("concept", ["circle"]), ("other", ["star", "square"]))
    }
    circle, star = score(images, type="concept", model="demo", choices=texts)
    assert circle > 0.9
    assert star < 0.1


def test_nsfw_goes_by_a_head_as_laion_s_are_made(clip_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = {
        "norm.mean": torch.randn(16) / 10,
        "norm.variance": torch.rand(16) + 0.5,
        **{f"linear_{at}.weight": torch.randn(outer, inner) for at, (inner, outer) in enumerate([(16, 8), (8, 4), (4, 1)], 1)},
        **{f"linear_{at}.bias": torch.randn(outer) for at, outer in enumerate([8, 4, 1], 1)},
    }
    save_file(head, tmp_path / "head.safetensors", metadata={"activation": "relu", "output": "sigmoid"})
    hidden = (ClipScorer(card(model=str(clip_folder))).images(IMAGES) - head["norm.mean"]) / head["norm.variance"].sqrt()
    for at in (1, 2):
        hidden = (hidden @ head[f"linear_{at}.weight"].T + head[f"linear_{at}.bias"]).relu()
    expected = (hidden @ head["linear_3.weight"].T + head["linear_3.bias"])[:, 0].sigmoid()
    settings = {"type": "nsfw", "model": str(clip_folder), "head": str(tmp_path / "head.safetensors")}
    np.testing.assert_allclose(score(IMAGES, **settings), expected.numpy(), rtol=1e-4)
    assert card(**settings).version.startswith("nsfw_head/1/")
    assert on_this_machine(card(**settings), ScorerConfig.model_validate(settings)) == card(**settings)
    save_file(head | {"2.running_mean": torch.zeros(4)}, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match=r"2\.running_mean, no part of a linear layer"):
        score(IMAGES, **settings)
    save_file(head | {"norm.mean": torch.zeros(15)}, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match="not of 16 features"):
        score(IMAGES, **settings)


def test_other_texts_are_another_version_and_mistakes_are_told(clip_folder: Path) -> None:
    folder = str(clip_folder)
    versions = {card(type="concept", model=folder, choices={"concept": ["a dog"], "other": [other]}).version for other in ("x", "y")}
    assert len(versions | {card(type="nsfw", model=folder).version}) == 3
    for choices in ({"concept": ["a dog"]}, {"concept": ["a dog"], "other": []}, {"concept": [" "], "other": ["x"]}):
        with pytest.raises(ModelError, match="must be two lists of texts"):
            card(type="concept", model=folder, choices=choices)
    with pytest.raises(ModelError, match="concept needs 'choices'"):
        card(type="concept", model=folder)
    with pytest.raises(ModelError, match="knows drawings of shapes only"):
        card(type="nsfw", model="demo")


def torso() -> np.ndarray:
    """What NudeNet takes for one: discs on a ground of skin's colour, uint8 (256, 256, 3)."""
    picture = Image.new("RGB", (256, 256), (60, 90, 140))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((30, 0, 226, 256), fill=(225, 170, 135))
    for x in (80, 176):
        for radius, colour in ((48, (200, 145, 110)), (44, (225, 170, 135)), (10, (180, 90, 80))):
            draw.ellipse((x - radius, 110 - radius, x + radius, 110 + radius), fill=colour)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))


@needs_nudenet
def test_nudenet_says_what_the_package_says_of_a_file(tmp_path: Path) -> None:
    from nudenet import NudeDetector

    images = np.stack([torso(), np.zeros((256, 256, 3), np.uint8)])
    scores = score(images, type="nudenet")
    Image.fromarray(images[0]).save(tmp_path / "torso.png")
    found = NudeDetector().detect(str(tmp_path / "torso.png"))
    assert scores.tolist() == [np.float32(max(one["score"] for one in found if "EXPOSED" in one["class"] and "BREAST" in one["class"])), 0]
    assert scores[0] > 0.5


@needs_nudenet
def test_nudenet_scores_the_images_of_a_run_and_a_rule_rejects_them(tmp_path: Path) -> None:
    run = runs.plan_run(tmp_path / "run")
    flagged = encode(torso(), run.job.config.output)
    hashes = {"image_sha256": flagged.sha256, "phash": flagged.phash}
    for shard_id in range(run.plan.num_shards):
        made = [runs.make_outcome(draw, run.job.config) for draw in run.read_shard(shard_id).draws]
        nude = [one.draw.prompt_id == "p0" for one in made]
        runs.commit(
            run,
            shard_id,
            outcomes=[replace(one, image=flagged.data, **hashes) if is_ else one for one, is_ in zip(made, nude, strict=True)],
        )
    for command in (["rescore", run.store.root, "--scorer", "nude={type: nudenet}"], ["filter", run.store.root, "--set", RULE]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    told = (
        "select prompt_id = 'p0' nude, nude_score > 0.5 found, reason is not distinct from 'nude_above_max' rejected, nude_version version"
    )
    rows = query([run.store.root], f"{told} from metadata where status != 'failed'").to_pylist()
    assert {(row["nude"], row["found"], row["rejected"]) for row in rows} == {(True, True, True), (False, False, False)}
    assert {row["version"] for row in rows} == {card(type="nudenet").version}


def test_nudenet_is_asked_for_by_name_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'promptmill\[nudenet\]' \(mind its licence, AGPL-3.0\)"):
        card(type="nudenet")
    with pytest.raises(ModelError, match="brings its own weights; take 'model' out"):
        card(type="nudenet", model="demo")
