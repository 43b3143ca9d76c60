"""The grammar and its drawings: what every demo model was trained on must never drift."""

import random

import numpy as np
import pytest

from pipeline.models.demo import grammar
from pipeline.models.demo.grammar import Scene, Thing, all_scenes, counted, drawing, drawing_seed, one, sample_scenes, two
from pipeline.models.demo.malform import loosen, malformed
from pipeline.models.demo.neighbours import neighbour
from pipeline.models.demo.reading import HEADS, Reading, label_indices, labels
from pipeline.models.demo.render import lay_out, paint, render
from pipeline.models.demo.tokenizer import MAX_TOKENS, vocabulary, words


def test_captions_read_like_english() -> None:
    assert one("star", "orange", "small", "gray").caption() == "a small orange star on a gray background"
    assert counted(3, "cross", "blue", "pink").caption() == "three blue crosses on a pink background"
    pair = two(("circle", "orange"), "left of", ("heart", "black"), "white")
    assert pair.caption() == "an orange circle to the left of a black heart on a white background"
    assert two(("ring", "red"), "above", ("star", "blue"), "pink").caption() == "a red ring above a blue star on a pink background"


def test_grammar_has_the_size_it_says() -> None:
    assert [len(all_scenes(kind)) for kind in grammar.KINDS] == [720, 50_176, 720]


def test_no_caption_has_two_meanings() -> None:
    scenes = [scene for kind in grammar.KINDS for scene in all_scenes(kind)]
    assert len({scene.caption() for scene in scenes}) == len(scenes)


def test_columns_are_flat_text_and_complete() -> None:
    columns = two(("circle", "red"), "below", ("heart", "black"), "white").columns()
    assert columns == {
        "kind": "two", "shape": "circle", "colour": "red", "size": "", "background": "white",
        "relation": "below", "shape_2": "heart", "colour_2": "black", "count": "2",
    }  # fmt: skip
    assert counted(4, "ring", "red", "gray").columns()["count"] == "4"


def test_sampled_scenes_are_pinned() -> None:
    captions = [scene.caption() for scene in sample_scenes(3, seed=7)]
    assert captions == GOLDEN_CAPTIONS


def test_splits_share_no_drawing() -> None:
    seeds = [{drawing_seed(split, index) for index in range(1000)} for split in grammar.SPLITS]
    assert len(set().union(*seeds)) == 1000 * len(grammar.SPLITS)


def test_every_paraphrase_is_in_the_vocabulary_and_fits_the_context() -> None:
    rng, known = random.Random(0), set(words())
    for scene in sample_scenes(300, seed=1):
        wording = scene.paraphrase(rng).split()
        assert set(wording) <= known
        assert len(wording) <= MAX_TOKENS - 2
    tokens, _ = vocabulary()
    assert len(set(tokens)) == len(tokens)


def test_drawings_are_pinned() -> None:
    means = []
    for index in range(6):
        scene, seed = drawing("test", index, kind=grammar.KINDS[index % 3])
        picture = render(scene, seed)
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        means.append(picture.mean())
    assert means == pytest.approx(GOLDEN_MEANS, abs=0.02)


def test_equal_seeds_give_equal_pixels_and_others_do_not() -> None:
    scene = one("star", "red", "large", "gray")
    assert np.array_equal(render(scene, 3), render(scene, 3))
    assert not np.array_equal(render(scene, 3), render(scene, 4))


def test_objects_of_a_drawing_keep_apart_and_inside() -> None:
    for index in range(200):
        scene, seed = drawing("test", index)
        layout = lay_out(scene, random.Random(f"render/{seed}"))
        for k, placed in enumerate(layout.objects):
            assert placed.radius <= placed.x <= 64 - placed.radius or scene.kind == "count"
            for other in layout.objects[:k]:
                assert np.hypot(placed.x - other.x, placed.y - other.y) > 0.84 * (placed.radius + other.radius)


def test_equal_drawings_have_equal_labels_whatever_the_wording() -> None:
    a, b = ("circle", "red"), ("heart", "black")
    assert labels(two(a, "left of", b, "white")) == labels(two(b, "right of", a, "white"))
    assert labels(two(a, "above", b, "white")) == labels(two(b, "below", a, "white"))
    assert labels(two(a, "left of", b, "white")) != labels(two(b, "left of", a, "white"))
    assert all(0 <= k < len(names) for k, names in zip(label_indices(one("star", "red", "small", "gray")), HEADS.values(), strict=True))


def test_a_reading_says_what_is_wrong() -> None:
    scene = one("star", "red", "small", "gray")
    seen = labels(Scene("one", (Thing("star", "blue", "small"),), "gray"))
    assert Reading(True, labels(scene)).matches(scene)
    assert not Reading(False, labels(scene)).matches(scene)
    assert Reading(False, seen).differences(scene) == ["malformed", "colour_1"]


@pytest.mark.parametrize("kind", grammar.KINDS)
def test_neighbours_differ_and_can_be_drawn(kind: str) -> None:
    rng = random.Random(kind)
    for scene in sample_scenes(200, seed=2, kinds=(kind,)):
        other = neighbour(scene, rng)
        assert other != scene
        assert grammar.is_drawable(other)
        assert render(other, 0).shape == (64, 64, 3)


@pytest.mark.parametrize("kind", grammar.KINDS)
def test_malformed_drawings_differ_from_the_right_ones(kind: str) -> None:
    rng = random.Random(kind)
    spoilt = 0
    for scene in sample_scenes(100, seed=3, kinds=(kind,)):
        layout = lay_out(scene, rng)
        wrong = malformed(scene, layout, rng)
        if wrong is not None:
            spoilt += 1
            assert np.abs(paint(wrong).astype(int) - paint(layout)).max() > 30
    assert spoilt > 60


def test_loosened_pairs_keep_their_relation() -> None:
    rng = random.Random(0)
    for scene in sample_scenes(100, seed=4, kinds=("two",)):
        first, second = loosen(scene, lay_out(scene, rng), rng).objects
        along = {"left of": second.x - first.x, "right of": first.x - second.x, "above": second.y - first.y, "below": first.y - second.y}
        assert along[scene.relation] > 8


GOLDEN_CAPTIONS = [
    "a medium black ring on a gray background",
    "a blue heart to the left of a green heart on a black background",
    "four blue crosses on a black background",
]
GOLDEN_MEANS = [203.614, 144.673, 144.744, 59.807, 232.448, 240.307]
