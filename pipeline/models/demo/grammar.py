"""The grammar of drawings: every prompt that the demo models know, with its structure.

The demo covers what GenEval measures (Ghosh et al. 2023, arXiv 2310.11513): one object with its attributes, two objects
whose colours must stay with their owners in a given relation, and counts. A `Scene` is one such prompt. This module is
pure Python: it knows neither pixels (`render.py`) nor models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("white", "gray", "black", "pink")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = (2, 3, 4)
KINDS = ("one", "two", "count")
SPLITS = ("generator", "clip", "judge", "test")

NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
RELATION_WORDS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Thing:
    """One object of a scene. `size` is empty where the prompt does not name it."""

    shape: str
    colour: str
    size: str = ""


@dataclass(frozen=True)
class Scene:
    """One prompt: `objects` has an entry for each object drawn; `relation` says where the first is, seen from the second."""

    kind: str
    objects: tuple[Thing, ...]
    background: str
    relation: str = ""

    @property
    def count(self) -> int:
        """Number of objects in the drawing."""
        return len(self.objects)

    def caption(self) -> str:
        """The canonical wording, the one that the demo's prompts use."""
        return f"{self._subject()} on {article(self.background)} {self.background} background"

    def paraphrase(self, rng: random.Random) -> str:
        """One of several wordings of the same prompt, for training."""
        subject = self._subject(rng.choice(relation_words(self.relation)) if self.relation else "")
        if rng.random() < 0.3 and self.kind != "count":
            subject = subject.split(" ", 1)[1]
        background = rng.choice(("gray", "grey")) if self.background == "gray" else self.background
        ending = rng.choice((f"on {article(background)} {background} background",) * 3 + (f"on {background}",))
        return f"{subject} {ending}"

    def columns(self) -> dict[str, str]:
        """The structure as flat text columns for a prompt table; empty where a column does not apply."""
        first, second = self.objects[0], self.objects[1] if self.kind == "two" else None
        return {
            "kind": self.kind,
            "shape": first.shape,
            "colour": first.colour,
            "size": first.size,
            "background": self.background,
            "relation": self.relation,
            "shape_2": second.shape if second else "",
            "colour_2": second.colour if second else "",
            "count": str(self.count),
        }

    def _subject(self, relation: str = "") -> str:
        first = self.objects[0]
        if self.kind == "one":
            return f"{article(first.size)} {first.size} {first.colour} {first.shape}"
        if self.kind == "count":
            return f"{NUMBER_WORDS[self.count]} {first.colour} {plural(first.shape)}"
        a, b = (f"{article(thing.colour)} {thing.colour} {thing.shape}" for thing in self.objects)
        return f"{a} {relation or RELATION_WORDS[self.relation]} {b}"


def article(word: str) -> str:
    """The indefinite article before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def relation_words(relation: str) -> tuple[str, ...]:
    """All wordings of a relation, the canonical one first."""
    if relation in ("above", "below"):
        return (relation,)
    return (f"to the {relation}", relation, f"on the {relation}")


def one(shape: str, colour: str, size: str, background: str) -> Scene:
    """A scene of one object."""
    return Scene("one", (Thing(shape, colour, size),), background)


def two(first: tuple[str, str], relation: str, second: tuple[str, str], background: str) -> Scene:
    """A scene of two (shape, colour) objects in a relation."""
    return Scene("two", (Thing(*first), Thing(*second)), background, relation)


def counted(count: int, shape: str, colour: str, background: str) -> Scene:
    """A scene of several equal objects."""
    return Scene("count", (Thing(shape, colour),) * count, background)


def is_drawable(scene: Scene) -> bool:
    """Whether every object shows on the background, and the two objects of a pair differ in colour."""
    colours = [thing.colour for thing in scene.objects]
    return scene.background not in colours and (scene.kind != "two" or colours[0] != colours[1])


def sample_scene(rng: random.Random, kind: str = "") -> Scene:
    """One drawable scene, uniform within its kind (any kind, equally likely, when `kind` is empty)."""
    kind = kind or rng.choice(KINDS)
    while True:
        shape, colour, background = rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(BACKGROUNDS)
        if kind == "one":
            scene = one(shape, colour, rng.choice(SIZES), background)
        elif kind == "count":
            scene = counted(rng.choice(COUNTS), shape, colour, background)
        else:
            other = (rng.choice(SHAPES), rng.choice(COLOURS))
            scene = two((shape, colour), rng.choice(RELATIONS), other, background)
        if is_drawable(scene):
            return scene


def sample_scenes(count: int, *, seed: int, kinds: tuple[str, ...] = KINDS) -> list[Scene]:
    """`count` scenes, taking the kinds in turn; equal arguments give equal scenes."""
    rng = random.Random(f"scenes/{seed}")
    return [sample_scene(rng, kinds[index % len(kinds)]) for index in range(count)]


def all_scenes(kind: str) -> list[Scene]:
    """Every drawable scene of a kind, in a fixed order: 720 "one", 50,176 "two", 720 "count"."""
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    if kind == "one":
        found = [one(s, c, z, b) for s, c in pairs for z in SIZES for b in BACKGROUNDS]
    elif kind == "count":
        found = [counted(n, s, c, b) for n in COUNTS for s, c in pairs for b in BACKGROUNDS]
    else:
        found = [two(f, r, s, b) for f in pairs for r in RELATIONS for s in pairs for b in BACKGROUNDS]
    return [scene for scene in found if is_drawable(scene)]


def drawing_seed(split: str, index: int) -> int:
    """The render seed of drawing `index` of a split; the splits' seeds never meet, so no two parts share a drawing."""
    return index * len(SPLITS) + SPLITS.index(split)


def drawing(split: str, index: int, *, kind: str = "") -> tuple[Scene, int]:
    """Scene and render seed of drawing `index` of a split: the training sets are these, for index 0, 1, 2, ..."""
    seed = drawing_seed(split, index)
    return sample_scene(random.Random(f"drawing/{seed}"), kind), seed
