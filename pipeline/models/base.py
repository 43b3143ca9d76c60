"""The seam between the pipeline and whatever makes images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.inputs import Conditions
from schemas.records import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A batch of images and what is known of each.

    ``images_NHWC``: uint8 (N, H, W, 3). ``finite``: bool (N,), False where latents or pixels held NaN or inf
    (such an image is a failure, whatever it looks like). ``errors``: why a draw has no image (``code: what happened``),
    by its number in the call. ``prompt_tokens``: tokens of each prompt before
    truncation, None if the model cannot tell. ``safety_flagged``: None without a safety checker.
    """

    images_NHWC: np.ndarray
    finite: np.ndarray
    prompt_tokens: Sequence[int | None]
    prompt_truncated: Sequence[bool | None]
    safety_flagged: Sequence[bool | None]
    errors: Mapping[int, str] = field(default_factory=dict)


class ImageModel(Protocol):
    """Makes images of draws. All draws of one call share their ``call_key``, and are of one mode.

    The image of a draw may depend on the draw and on the number of draws in the call, never on its
    neighbours or its place among them.
    """

    name: str
    revision: str

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        """Images of the draws, in order. ``conditions`` hold their input images, one entry per draw; none for text-to-image.

        Raises anything; the caller isolates the draw that is to blame.
        """
        ...


@runtime_checkable
class Metered(Protocol):
    """An ImageModel that counts what it uses, such as requests and cost."""

    def take_usage(self) -> Mapping[str, float]:
        """What was used since the last call, by name; sums over calls."""
        ...


@runtime_checkable
class Timed(Protocol):
    """An ImageModel that knows what its time was spent on, beside the network that is called at each step."""

    def take_seconds(self) -> Mapping[str, float]:
        """Seconds by part since the last call; the rest of a call is the network's."""
        ...
