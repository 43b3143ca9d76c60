"""Scenes that differ from a scene in one respect: the hard negatives that a scorer has to tell apart."""

from __future__ import annotations

import random
from dataclasses import replace

from pipeline.models.demo.grammar import BACKGROUNDS, COLOURS, COUNTS, RELATIONS, SHAPES, SIZES, Scene, counted, is_drawable, one

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def neighbour(scene: Scene, rng: random.Random) -> Scene:
    """A drawable scene that differs from `scene` in one colour, shape, size, count, relation, owner or background."""
    changes = [_colour, _shape, _background]
    pair = [_colours_swapped, _relation_flipped, _turned]
    changes += {"one": [_size, _size, _doubled], "two": pair, "count": [_count, _count]}[scene.kind]
    while True:
        found = rng.choice(changes)(scene, rng)
        if found != scene and is_drawable(found):
            return found


def _background(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, background=rng.choice(BACKGROUNDS))


def _colour(scene: Scene, rng: random.Random) -> Scene:
    return _changed(scene, rng, colour=rng.choice(COLOURS))


def _shape(scene: Scene, rng: random.Random) -> Scene:
    return _changed(scene, rng, shape=rng.choice(SHAPES))


def _changed(scene: Scene, rng: random.Random, **change: str) -> Scene:
    chosen = rng.randrange(scene.count)
    objects = (replace(o, **change) if scene.kind == "count" or k == chosen else o for k, o in enumerate(scene.objects))
    return replace(scene, objects=tuple(objects))


def _size(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, objects=(replace(scene.objects[0], size=rng.choice(SIZES)),))


def _doubled(scene: Scene, rng: random.Random) -> Scene:
    return counted(2, scene.objects[0].shape, scene.objects[0].colour, scene.background)


def _count(scene: Scene, rng: random.Random) -> Scene:
    number, thing = rng.choice((scene.count - 1, scene.count + 1)), scene.objects[0]
    if number not in COUNTS:
        return one(thing.shape, thing.colour, "medium", scene.background) if number == 1 else scene
    return counted(number, thing.shape, thing.colour, scene.background)


def _colours_swapped(scene: Scene, rng: random.Random) -> Scene:
    first, second = scene.objects
    return replace(scene, objects=(replace(first, colour=second.colour), replace(second, colour=first.colour)))


def _relation_flipped(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, relation=OPPOSITE[scene.relation])


def _turned(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, relation=rng.choice(RELATIONS))
