"""Modes: what conditions an image besides its text, and which columns of a prompt source bring it."""

from typing import Literal, get_args

Mode = Literal["text-to-image", "image-to-image", "inpainting", "outpainting", "control", "image-prompt", "super-resolution"]
Role = Literal["init", "mask", "control", "reference"]

MODES: tuple[Mode, ...] = get_args(Mode)
ROLES: tuple[Role, ...] = get_args(Role)

INPUTS: dict[Mode, tuple[Role, ...]] = {
    "text-to-image": (),
    "image-to-image": ("init",),
    "inpainting": ("init", "mask"),
    "outpainting": ("init",),
    "control": ("control",),
    "image-prompt": ("reference",),
    "super-resolution": ("init",),
}

STRENGTH: dict[str, float] = {"image-to-image": 0.6, "inpainting": 1.0, "outpainting": 1.0}
"""Default share of the noise schedule that is run over the init image; modes that are not here take no strength."""


SCALED: tuple[Mode, ...] = ("control", "image-prompt")
"""Modes whose input has a weight, ``control_scale``."""


def roles(mode: Mode, *, reference: bool = False) -> tuple[Role, ...]:
    """Input images of a draw: those of the mode, and with ``reference`` one that is a prompt beside them."""
    return (*INPUTS[mode], "reference") if reference and "reference" not in INPUTS[mode] else INPUTS[mode]


def column(role: Role) -> str:
    """Column of a prompt source that holds the image of this role."""
    return f"{role}_image"
