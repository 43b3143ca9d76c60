"""The figures by which the bundled models' other modes are measured."""

import random

import numpy as np
import pytest

from pipeline.inputs import canny
from pipeline.models.demo.evaluate_modes import Row, edge_f1, format_table, psnr
from pipeline.models.demo.grammar import KINDS, is_drawable, sample_scenes
from pipeline.models.demo.render import render
from pipeline.models.demo.write_inputs import recoloured, shrunk


def edges_of(*rows: int) -> np.ndarray:
    """An edge map of 32 x 32 pixels with horizontal lines in these rows."""
    found = np.zeros((32, 32, 3), np.uint8)
    found[list(rows)] = 255
    return found


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ((4,), (4,), 1.0),
        ((5,), (4,), 1.0),
        ((6,), (4,), 0.0),
        ((4, 20), (4,), 2 / 3),
        ((4,), (4, 20), 2 / 3),
        ((), (4,), 0.0),
        ((4,), (), 0.0),
    ],
)
def test_edges_agree_within_a_pixel(found: tuple[int, ...], wanted: tuple[int, ...], expected: float) -> None:
    assert edge_f1(edges_of(*found), edges_of(*wanted)) == pytest.approx(expected)


def test_no_edges_on_either_side_say_nothing() -> None:
    assert np.isnan(edge_f1(edges_of(), edges_of()))


def test_other_colours_have_the_same_edges_nearly() -> None:
    rng = random.Random(0)
    scenes = sample_scenes(30, seed=5)
    wanted = [recoloured(scene, rng, which=range(scene.count)) for scene in scenes]
    pairs = [(canny(render(a, 7), 50, 100), canny(render(b, 7), 50, 100)) for a, b in zip(scenes, wanted, strict=True)]
    assert np.mean([edge_f1(*pair) for pair in pairs]) > 0.9
    for scene, other in zip(scenes, wanted, strict=True):
        assert is_drawable(other)
        assert [thing.shape for thing in scene.objects] == [thing.shape for thing in other.objects]
        assert all(a.colour != b.colour for a, b in zip(scene.objects, other.objects, strict=True))
    assert {scene.kind for scene in scenes} == set(KINDS)


def test_psnr_is_that_of_its_definition() -> None:
    original = np.full((2, 8, 8, 3), 100, np.uint8)
    assert psnr(original + np.uint8(5), original) == pytest.approx(20 * np.log10(255 / 5))


def test_a_small_drawing_has_the_means_of_its_blocks() -> None:
    drawing = np.zeros((8, 8, 3), np.uint8)
    drawing[:4, :2] = 200
    assert shrunk(drawing)[:, :, 0].tolist() == [[100, 0], [0, 0]]


def test_the_table_has_a_line_for_each_way() -> None:
    lines = format_table([Row("control: text alone", 0.5, edges=0.25), Row("bicubic", 1.0, psnr=26.04)]).splitlines()
    assert lines[2:] == ["| control: text alone | 50.0% | 0.250 |  |", "| bicubic | 100.0% |  | 26.0 dB |"]
