"""The prompt's probability among its distractors: the softmax that one writes by hand, and no neighbour's business."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.models.demo.grammar import one
from pipeline.models.demo.render import render
from pipeline.scorers import load_scorer
from pipeline.scorers.choice import distractors
from pipeline.scorers.clip import ClipScorer
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

COLOURS, SHAPES = ["red", "blue", "green"], ["circle", "square"]
CHOICES = {"colour": COLOURS, "shape": SHAPES}


def load(model: str, choices: dict[str, list[str]] = CHOICES):
    return load_scorer(resolve_scorer("odds", ScorerConfig(type="choice", model=model, choices=choices), base_dir=Path.cwd()))


def test_each_word_at_each_place_is_replaced_by_the_others_of_its_list() -> None:
    assert distractors("a red circle", CHOICES) == ["a blue circle", "a green circle", "a red square"]
    assert distractors("Red over blue", {"colour": ["red", "blue"]}) == ["blue over blue", "Red over red"]
    assert distractors("two circles, credit", CHOICES) == ["two squares, credit"]
    assert distractors("light blue", {"colour": ["blue", "light blue", "red"]}) == ["blue", "red"]
    assert distractors("a (x)", {"odd": ["(x)", "a|b"]}) == ["a a|b"]
    assert distractors("a dog", CHOICES) == []


def test_the_score_is_the_softmax_over_the_texts(clip_folder: Path) -> None:
    scorer = load(str(clip_folder))
    clip = ClipScorer(resolve_scorer("clip", ScorerConfig(model=str(clip_folder)), base_dir=Path.cwd()))
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    prompts = ["a red circle", "a dog", "a green square"]
    scores = scorer.score(images, prompts)
    assert np.isnan(scores[1])
    for at in (0, 2):
        texts = [prompts[at], *distractors(prompts[at], CHOICES)]
        cosines = np.array([clip.score(images[at : at + 1], [text])[0] for text in texts], dtype=np.float64)
        odds = np.exp(clip.logit_scale * cosines)
        assert scores[at] == pytest.approx(odds[0] / odds.sum(), rel=1e-3)
    np.testing.assert_array_equal(scorer.score(images[[2, 2, 0]], ["a green square"] * 3)[0], scores[2])


def test_the_bundled_clip_tells_right_from_wrong_words() -> None:
    scorer = load("demo", {"colour": ["red", "blue", "green", "yellow"], "shape": ["circle", "square", "star", "ring"]})
    rng = random.Random(0)
    images = np.stack([render(one("circle", "red", "large", "white"), rng.randrange(1000)) for _ in range(8)])
    right = scorer.score(images, ["a large red circle on a white background"] * 8)
    assert (right > 0.5).all()
    assert (scorer.score(images, ["a large blue circle on a white background"] * 8) < right / 2).all()
    assert (scorer.score(images, ["a large red square on a white background"] * 8) < right / 2).all()


def test_other_choices_are_another_version_and_mistakes_are_told(clip_folder: Path) -> None:
    def version(**settings: object) -> str:
        return resolve_scorer("odds", ScorerConfig(model=str(clip_folder), **settings), base_dir=Path.cwd()).version  # type: ignore[arg-type]

    assert version(type="choice", choices={"a": ["x", "y"]}) != version(type="choice", choices={"a": ["x", "z"]})
    with pytest.raises(ModelError, match=r"choices\.a needs two different words"):
        version(type="choice", choices={"a": ["x", "x"]})
    with pytest.raises(ModelError, match="choice needs 'choices'"):
        version(type="choice")
    with pytest.raises(ModelError, match="'choices' is for the types choice and concept, not for clip; take it out"):
        version(type="clip", choices={"a": ["x", "y"]})
