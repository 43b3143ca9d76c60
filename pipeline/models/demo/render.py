"""Drawings of scenes: scene + seed -> 64 x 64 pixels.

`lay_out` decides where, how large and how turned every object is, `paint` makes pixels of it. Shapes are signed distance
fields (https://iquilezles.org/articles/distfunctions2d), so edges are anti-aliased exactly: coverage = clip(1/2 - distance).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.models.demo.grammar import Scene

SIZE_PX = 64
RGB = {
    "red": (222, 40, 36),
    "orange": (245, 140, 20),
    "yellow": (242, 214, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "purple": (140, 50, 180),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
    "gray": (150, 150, 150),
    "pink": (250, 185, 200),
}
RADIUS_PX = {"small": (7.5, 8.5), "medium": (13.2, 14.8), "large": (20.8, 23.2)}
PAIR_RADIUS_PX = (10.0, 11.2)
COUNT_RADIUS_PX = {2: (9.6, 10.6), 3: (9.2, 10.2), 4: (9.2, 10.2)}
CENTRE_JITTER_PX = {"small": 6.0, "medium": 5.0, "large": 3.5}
COLOUR_JITTER = 5
TURN_DEGREES = 10.0


@dataclass(frozen=True)
class Placed:
    """One object on the canvas; lengths in pixels, angle in radians. `shape_2`/`morph` blend in a second shape."""

    shape: str
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float
    angle: float
    shape_2: str = ""
    morph: float = 0.0


@dataclass(frozen=True)
class Layout:
    """What is painted: the objects over a plain background."""

    objects: tuple[Placed, ...]
    background_rgb: tuple[float, float, float]


def render(scene: Scene, seed: int) -> NDArray[np.uint8]:
    """The drawing of `scene` with render seed `seed`: uint8 (64, 64, 3). Equal arguments give equal pixels."""
    return paint(lay_out(scene, random.Random(f"render/{seed}")))


def lay_out(scene: Scene, rng: random.Random) -> Layout:
    """Positions, sizes, turns and shades for a scene; objects never touch and stay inside the canvas."""
    rgb = [jittered_rgb(thing.colour, rng) for thing in scene.objects]
    if scene.kind == "count":
        rgb = rgb[:1] * scene.count
    low, high = _radius_range(scene)
    radius = rng.uniform(low, high)
    placed = tuple(
        Placed(thing.shape, colour, x, y, radius * rng.uniform(0.98, 1.02), np.radians(rng.uniform(-1, 1) * TURN_DEGREES))
        for thing, colour, (x, y) in zip(scene.objects, rgb, _centres(scene, rng), strict=True)
    )
    return Layout(placed, jittered_rgb(scene.background, rng))


def jittered_rgb(colour: str, rng: random.Random) -> tuple[float, float, float]:
    """A shade of the named colour, 0..255 per channel."""
    red, green, blue = (min(255.0, max(0.0, v + rng.uniform(-1, 1) * COLOUR_JITTER)) for v in RGB[colour])
    return red, green, blue


def paint(layout: Layout) -> NDArray[np.uint8]:
    """Pixels of a layout, uint8 (64, 64, 3)."""
    canvas = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
    canvas[:] = layout.background_rgb
    for placed in layout.objects:
        blend(canvas, placed)
    return (canvas + 0.5).astype(np.uint8)


def blend(canvas: NDArray[np.float32], placed: Placed) -> None:
    """Paint one object over the canvas, in place."""
    reach = placed.radius * 1.25 + 2
    x0, x1 = max(0, int(placed.x - reach)), min(SIZE_PX, int(placed.x + reach) + 1)
    y0, y1 = max(0, int(placed.y - reach)), min(SIZE_PX, int(placed.y + reach) + 1)
    if x0 >= x1 or y0 >= y1:
        return
    dx = (np.arange(x0, x1, dtype=np.float32) + 0.5 - np.float32(placed.x))[None, :] / np.float32(placed.radius)
    dy = (np.arange(y0, y1, dtype=np.float32) + 0.5 - np.float32(placed.y))[:, None] / np.float32(placed.radius)
    cos, sin = np.float32(np.cos(placed.angle)), np.float32(np.sin(placed.angle))
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    distance = signed_distance(placed.shape, u, v)
    if placed.shape_2:
        distance = (1 - placed.morph) * distance + placed.morph * signed_distance(placed.shape_2, u, v)
    alpha = np.clip(0.5 - distance * np.float32(placed.radius), 0, 1)[..., None]
    region = canvas[y0:y1, x0:x1]
    region += alpha * (np.asarray(placed.rgb, np.float32) - region)


def signed_distance(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance to the outline of the unit shape, negative inside; `u` points right and `v` down."""
    if shape == "circle":
        return np.hypot(u, v) - np.float32(0.94)
    if shape == "ring":
        return np.abs(np.hypot(u, v) - np.float32(0.74)) - np.float32(0.24)
    return _polygon_distance(u, v, *_edges(shape))


def _polygon_distance(
    u: NDArray[np.float32], v: NDArray[np.float32], start: NDArray[np.float32], step: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Signed distance to a closed polygon with corners `start` (E, 2) and edge vectors `step` (E, 2)."""
    px, py = u[None] - start[:, 0, None, None], v[None] - start[:, 1, None, None]
    ex, ey = step[:, 0, None, None], step[:, 1, None, None]
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    nearest = np.sqrt(((px - along * ex) ** 2 + (py - along * ey) ** 2).min(0))
    above = py >= 0
    crosses = (above & (py < ey) & (ex * py > ey * px)) | (~above & (py >= ey) & (ex * py < ey * px))
    inside = crosses.sum(0) % 2 == 1
    return np.where(inside, -nearest, nearest)


@lru_cache(maxsize=16)
def _edges(shape: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    start = np.asarray(_corners(shape), np.float32)
    return start, np.roll(start, -1, axis=0) - start


def _corners(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "diamond":
        return [(0.0, -1.12), (0.7, 0.0), (0.0, 1.12), (-0.7, 0.0)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
    if shape == "cross":
        arm, long = 0.33, 1.0
        quarter = [(arm, -long), (arm, -arm), (long, -arm)]
        turns = [((x, y), (-y, x), (-x, -y), (y, -x)) for x, y in quarter]
        return [turn[k] for k in range(4) for turn in turns]
    if shape == "star":
        spokes = [(k * np.pi / 5, 1.14 if k % 2 == 0 else 0.48) for k in range(10)]
        return [(float(np.sin(a) * r), float(-np.cos(a) * r + 0.06)) for a, r in spokes]
    if shape == "heart":
        turns = [2 * np.pi * k / 28 for k in range(28)]
        x = [16 * np.sin(t) ** 3 / 16.5 for t in turns]
        y = [-(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 15.5 - 0.1 for t in turns]
        return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    raise KeyError(shape)


def _radius_range(scene: Scene) -> tuple[float, float]:
    if scene.kind == "one":
        return RADIUS_PX[scene.objects[0].size]
    return PAIR_RADIUS_PX if scene.kind == "two" else COUNT_RADIUS_PX[scene.count]


def _centres(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    """Centres of the objects in pixels, in the order of `scene.objects`."""
    middle = SIZE_PX / 2
    if scene.kind == "one":
        jitter = CENTRE_JITTER_PX[scene.objects[0].size]
        return [(middle + rng.uniform(-jitter, jitter), middle + rng.uniform(-jitter, jitter))]
    if scene.kind == "two":
        shift = rng.uniform(-5, 5)
        along = [middle + sign * 15 + rng.uniform(-2.2, 2.2) for sign in (-1, 1)]
        if scene.relation in ("right of", "below"):
            along.reverse()
        across = [middle + shift + rng.uniform(-1.5, 1.5) for _ in along]
        pairs = list(zip(along, across, strict=True))
        return pairs if scene.relation in ("left of", "right of") else [(y, x) for x, y in pairs]
    points = [(x * 14.5, y * 14.5) for x, y in rng.choice(_ARRANGEMENTS[scene.count])]
    turn, dx, dy = np.radians(rng.uniform(-7, 7)), rng.uniform(-2.5, 2.5), rng.uniform(-2.5, 2.5)
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    return [(middle + dx + cos * x - sin * y + rng.uniform(-1, 1), middle + dy + sin * x + cos * y + rng.uniform(-1, 1)) for x, y in points]


_Points = tuple[tuple[float, float], ...]
_ARRANGEMENTS: dict[int, tuple[_Points, ...]] = {
    2: (((-1, 0), (1, 0)), ((0, -1), (0, 1)), ((-1, -1), (1, 1)), ((-1, 1), (1, -1))),
    3: (((0, -1), (-1, 0.9), (1, 0.9)), ((0, 1), (-1, -0.9), (1, -0.9))),
    4: (((-1, -1), (1, -1), (-1, 1), (1, 1)),),
}


def shifted(placed: Placed, dx: float, dy: float) -> Placed:
    """The object moved by (dx, dy) pixels."""
    return replace(placed, x=placed.x + dx, y=placed.y + dy)
