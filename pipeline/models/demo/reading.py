"""What a drawing shows, as seven labels: the common language of the judge's answers and of a scene's structure.

"A left of B" and "B right of A" are one drawing, so the labels name objects by place: the first is the left or upper one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.models.demo.grammar import BACKGROUNDS, COLOURS, NUMBER_WORDS, SHAPES, SIZES, Scene

NONE = "none"
HEADS: dict[str, tuple[str, ...]] = {
    "arrangement": ("one", "row", "column", "two", "three", "four"),
    "shape_1": SHAPES,
    "colour_1": COLOURS,
    "shape_2": (*SHAPES, NONE),
    "colour_2": (*COLOURS, NONE),
    "size": (*SIZES, NONE),
    "background": BACKGROUNDS,
}


@dataclass(frozen=True)
class Reading:
    """What was seen. `well_formed` is False where it is no drawing of the grammar, whatever the labels say."""

    well_formed: bool
    labels: tuple[str, ...]
    confidence: float = 1.0

    def matches(self, scene: Scene) -> bool:
        """Whether the drawing is exactly what the prompt says: count, shapes, colours by owner, size, relation, background."""
        return self.well_formed and self.labels == labels(scene)

    def differences(self, scene: Scene) -> list[str]:
        """The names of the labels that are not what the prompt says, `malformed` first."""
        wrong = [] if self.well_formed else ["malformed"]
        return wrong + [name for name, seen, said in zip(HEADS, self.labels, labels(scene), strict=True) if seen != said]


def labels(scene: Scene) -> tuple[str, ...]:
    """The labels of a scene, in the order of `HEADS`."""
    objects = list(scene.objects)
    if scene.kind == "two":
        if scene.relation in ("right of", "below"):
            objects.reverse()
        arrangement = "row" if scene.relation in ("left of", "right of") else "column"
        shape_2, colour_2 = objects[1].shape, objects[1].colour
    else:
        arrangement = "one" if scene.kind == "one" else NUMBER_WORDS[scene.count]
        shape_2 = colour_2 = NONE
    first = objects[0]
    return arrangement, first.shape, first.colour, shape_2, colour_2, first.size or NONE, scene.background


def label_indices(scene: Scene) -> list[int]:
    """The labels as class numbers, in the order of `HEADS`."""
    return [names.index(label) for names, label in zip(HEADS.values(), labels(scene), strict=True)]
