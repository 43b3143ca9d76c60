"""Drawings that are wrong on purpose, and distortions that are not: what the judge and CLIP must refuse, or see through.

`malformed` makes what a weak generator makes: a blob between two shapes, an object too many or too few, a smeared colour,
a bite out of an outline, a size between two sizes, a ghost. `loosen` places objects more freely than `render.lay_out`,
because a right drawing stays right wherever its objects are. `distort` blurs, shifts and adds noise to pixels.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.models.demo.grammar import BACKGROUNDS, COLOURS, SHAPES, Scene
from pipeline.models.demo.render import RADIUS_PX, RGB, Layout, Placed, jittered_rgb, paint, shifted

Rgb = tuple[float, float, float]
MILD_WARP_PX = 0.5
STRONG_WARP_PX = 2.0


def malformed(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    """A layout that no prompt of the grammar describes, made from a right one; None where this fault does not apply."""
    faults = [_blob] * 4 + [_bite, _smear, _mixed_colour, _faded, _speck, _ghost, _crowd, _touching] + [_mixed_background] * 2
    faults += {"one": [_between_sizes] * 3 + [_empty], "two": [_missing, _diagonal], "count": [_odd_one] * 4}[scene.kind]
    return rng.choice(faults)(scene, layout, rng)


def loosen(scene: Scene, layout: Layout, rng: random.Random) -> Layout:
    """The objects of a pair or a count anywhere, as long as they keep apart and their relation is plain."""
    for _ in range(20):
        scale = rng.uniform(0.88, 1.05)
        objects = [replace(o, x=rng.uniform(12, 52), y=rng.uniform(12, 52), radius=o.radius * scale) for o in layout.objects]
        gaps = [math.hypot(a.x - b.x, a.y - b.y) - 1.12 * (a.radius + b.radius) for a in objects for b in objects if a is not b]
        if min(gaps, default=0.0) >= 1 and (scene.kind != "two" or _is_plain(scene, objects)):
            return Layout(tuple(objects), layout.background_rgb)
    return layout


def bleed(layout: Layout, rng: random.Random) -> NDArray[np.uint8]:
    """Pixels (64, 64, 3) of a layout in which one object's colour runs into another across its middle."""
    index, placed = _any(layout, rng)
    other = jittered_rgb(_other_colour(placed.rgb, layout.background_rgb, rng), rng)
    plain, changed = (paint(drawn).astype(np.float32) for drawn in (layout, _change(layout, index, replace(placed, rgb=other))))
    turn, width = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 3.0)
    y, x = np.mgrid[: plain.shape[0], : plain.shape[1]] + 0.5
    side = math.cos(turn) * (x - placed.x) + math.sin(turn) * (y - placed.y) + rng.uniform(-0.3, 0.3) * placed.radius
    share = 1 / (1 + np.exp(-np.clip(side / width, -30, 30)))[..., None]
    return (plain + share * (changed - plain) + 0.5).astype(np.uint8)


def distort(pixels: Tensor, warp_px: Tensor, *, generator: torch.Generator) -> Tensor:
    """Warp smoothly by about `warp_px` (N,) pixels, blur a little, shift shades, add noise: (N, 3, 64, 64) in -1..1."""
    count = len(pixels)
    coarse = torch.randn(count, 2, 9, 9, generator=generator)
    field = functional.interpolate(coarse, size=pixels.shape[2:], mode="bicubic", align_corners=True)
    lines = torch.linspace(-1, 1, pixels.shape[2])
    grid = torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1)
    grid = grid + (field * warp_px.view(-1, 1, 1, 1) * 2 / 63).permute(0, 2, 3, 1)
    out = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=True)
    kernel = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = functional.pad(out, (2, 2, 2, 2), mode="replicate")
    blurred = functional.conv2d(padded, kernel.expand(3, 1, 5, 5), groups=3)
    out = torch.lerp(out, blurred, 0.8 * torch.rand(count, 1, 1, 1, generator=generator) ** 2)
    shade = 0.05 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    noise = 0.06 * torch.rand(count, 1, 1, 1, generator=generator) ** 2 * torch.randn(out.shape, generator=generator)
    return (out + shade + noise).clamp(-1, 1)


def _is_plain(scene: Scene, objects: list[Placed]) -> bool:
    dx, dy = objects[1].x - objects[0].x, objects[1].y - objects[0].y
    along, across = (dx, dy) if scene.relation in ("left of", "right of") else (dy, dx)
    sign = 1 if scene.relation in ("left of", "above") else -1
    return sign * along > 1.8 * abs(across)


def _change(layout: Layout, index: int, placed: Placed, *more: Placed) -> Layout:
    objects = [*layout.objects]
    objects[index] = placed
    return replace(layout, objects=(*objects, *more))


def _any(layout: Layout, rng: random.Random) -> tuple[int, Placed]:
    index = rng.randrange(len(layout.objects))
    return index, layout.objects[index]


def _blob(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    index, placed = _any(layout, rng)
    other = rng.choice([shape for shape in SHAPES if shape != placed.shape])
    blob = replace(placed, shape_2=other, morph=rng.uniform(0.35, 0.65))
    everywhere = tuple(replace(o, shape_2=other, morph=blob.morph) for o in layout.objects)
    return replace(layout, objects=everywhere) if scene.kind == "count" and rng.random() < 0.5 else _change(layout, index, blob)


def _bite(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    index, placed = _any(layout, rng)
    turn, far = rng.uniform(0, 2 * math.pi), placed.radius * rng.uniform(0.5, 0.8)
    radius = placed.radius * rng.uniform(0.45, 0.7)
    bite = Placed("circle", layout.background_rgb, placed.x + far * math.cos(turn), placed.y + far * math.sin(turn), radius, 0.0)
    return _change(layout, index, placed, bite) if len(layout.objects) == 1 or placed.radius < 12 else None


def _smear(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    index, placed = _any(layout, rng)
    turn, far = rng.uniform(0, 2 * math.pi), placed.radius * rng.uniform(0.2, 0.45)
    radius = placed.radius * rng.uniform(0.4, 0.6)
    colour = jittered_rgb(_other_colour(placed.rgb, layout.background_rgb, rng), rng)
    stain = Placed(
        rng.choice(("circle", placed.shape)), colour, placed.x + far * math.cos(turn), placed.y + far * math.sin(turn), radius, 0.0
    )
    return _change(layout, index, placed, stain)


def _mixed_colour(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    index, placed = _any(layout, rng)
    mixed = _mix(placed.rgb, RGB[rng.choice(COLOURS)], rng.uniform(0.35, 0.65))
    if min(_distance(mixed, RGB[name]) for name in COLOURS) < 60:
        return None
    return _change(layout, index, replace(placed, rgb=mixed))


def _faded(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    index, placed = _any(layout, rng)
    faded = _mix(placed.rgb, layout.background_rgb, rng.uniform(0.4, 0.8))
    if min(_distance(faded, RGB[name]) for name in COLOURS) < 60:
        return None
    return _change(layout, index, replace(placed, rgb=faded))


def _speck(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    """A small piece of an object where nothing should be."""
    _, near = _any(layout, rng)
    speck = replace(near, x=rng.uniform(4, 60), y=rng.uniform(4, 60), radius=rng.uniform(2.5, 6), shape=rng.choice(SHAPES))
    if rng.random() < 0.5:
        speck = replace(speck, rgb=jittered_rgb(_other_colour(near.rgb, layout.background_rgb, rng), rng))
    free = all(math.hypot(speck.x - o.x, speck.y - o.y) > 1.1 * o.radius + speck.radius + 1 for o in layout.objects)
    return replace(layout, objects=(*layout.objects, speck)) if free else None


def _ghost(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    """One object too many, faint."""
    _, near = _any(layout, rng)
    rgb = _mix(near.rgb, layout.background_rgb, rng.uniform(0.3, 0.7))
    ghost = replace(near, x=rng.uniform(8, 56), y=rng.uniform(8, 56), rgb=rgb, shape=rng.choice(SHAPES))
    if scene.kind == "one":
        ghost = replace(ghost, radius=rng.uniform(6, 11))
    free = all(math.hypot(ghost.x - o.x, ghost.y - o.y) > o.radius + ghost.radius for o in layout.objects)
    return replace(layout, objects=(*layout.objects, ghost)) if free else None


def _crowd(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    """An object too many: a third beside a pair, five or six of a count."""
    if scene.kind == "one" or (scene.kind == "count" and scene.count < 4):
        return None
    for _ in range(20):
        _, near = _any(layout, rng)
        extra = replace(near, x=rng.uniform(8, 56), y=rng.uniform(8, 56), radius=rng.uniform(6.5, 9.5))
        if all(math.hypot(extra.x - o.x, extra.y - o.y) > 1.05 * (o.radius + extra.radius) for o in layout.objects):
            return replace(layout, objects=(*layout.objects, extra))
    return None


def _touching(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    if scene.kind == "one":
        return None
    index, placed = _any(layout, rng)
    other = layout.objects[(index + 1) % len(layout.objects)]
    share = 1 - rng.uniform(0.9, 1.3) * placed.radius / max(1.0, math.hypot(placed.x - other.x, placed.y - other.y))
    return _change(layout, index, shifted(placed, share * (other.x - placed.x), share * (other.y - placed.y)))


def _mixed_background(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    mixed = _mix(layout.background_rgb, RGB[rng.choice((*BACKGROUNDS, *COLOURS))], rng.uniform(0.35, 0.65))
    return None if min(_distance(mixed, RGB[name]) for name in BACKGROUNDS) < 60 else replace(layout, background_rgb=mixed)


def _between_sizes(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    gaps = [(3.5, 5.5), (10.0, 11.6), (16.4, 19.0), (26.0, 31.0)]
    low, high = rng.choice(gaps)
    return _change(layout, 0, replace(layout.objects[0], radius=rng.uniform(low, high)))


def _empty(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    return replace(layout, objects=())


def _missing(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    return replace(layout, objects=(replace(rng.choice(layout.objects), radius=rng.uniform(*_LOST_PX)),))


def _diagonal(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    sign, far = rng.choice((-1, 1)), rng.uniform(9, 14)
    a, b = layout.objects
    return Layout((replace(a, x=32 - far, y=32 - sign * far), replace(b, x=32 + far, y=32 + sign * far)), layout.background_rgb)


def _odd_one(scene: Scene, layout: Layout, rng: random.Random) -> Layout | None:
    """One of several equal objects has another colour or shape."""
    index, placed = _any(layout, rng)
    if rng.random() < 0.5:
        odd = replace(placed, shape=rng.choice([shape for shape in SHAPES if shape != placed.shape]))
    else:
        odd = replace(placed, rgb=jittered_rgb(_other_colour(placed.rgb, layout.background_rgb, rng), rng))
    return _change(layout, index, odd) if scene.count > 2 or odd.shape != placed.shape else None


def _mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = ((1 - share) * x + share * y for x, y in zip(a, b, strict=True))
    return red, green, blue


def _distance(a: Rgb, b: Rgb) -> float:
    return float(np.abs(np.subtract(a, b)).sum())


def _other_colour(rgb: Rgb, background_rgb: Rgb, rng: random.Random) -> str:
    return rng.choice([name for name in COLOURS if _distance(RGB[name], rgb) > 60 and _distance(RGB[name], background_rgb) > 60])


_LOST_PX = (RADIUS_PX["small"][1] + 1.3, RADIUS_PX["medium"][0] - 1.3)
