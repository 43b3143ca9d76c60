"""One batch of draws to images and scores. A draw that breaks its batch is isolated; its neighbours go on.

The batch that the model sees always has the planned size: short batches are filled by repeating a draw, so
that every image is made at one batch shape and its bytes do not depend on who else was in the batch.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from pipeline.inputs import BadInput, conditions
from pipeline.models.base import Generated, ImageModel
from pipeline.scorers.base import Scorer, TextScorer
from schemas.errors import UserError
from schemas.records import Draw

T = TypeVar("T")
GetInput = Callable[[str], bytes]

ATTEMPTS = 3  # of a draw by itself, before it is dead-lettered

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Sampled:
    """One draw after sampling and scoring: an image (uint8 (H, W, 3)) or an error, not both."""

    draw: Draw
    image_HWC: np.ndarray | None = None
    prompt_tokens: int | None = None
    prompt_truncated: bool | None = None
    safety_flagged: bool | None = None
    scores: dict[str, float] = field(default_factory=dict)
    scores_truncated: dict[str, bool | None] = field(default_factory=dict)
    batch_shape: str = ""
    error: str | None = None
    attempts: int = 1


class OutOfMemory(Exception):
    """The device's memory does not hold a batch of this size."""


def sample_batch(model: ImageModel, draws: Sequence[Draw], batch_size: int, get_input: GetInput) -> list[Sampled]:
    """Images of the draws, in order. A batch that raises is halved until the draws that break it stand alone;
    each of these is tried ``ATTEMPTS`` times. ``get_input`` gives the bytes of an input image by its sha256.

    Raises OutOfMemory.
    """
    if len(draws) == 1:
        return [_sample_alone(model, draws[0], batch_size, get_input)]
    try:
        return _generate(model, draws, batch_size, get_input, attempts=1)
    except UserError:
        raise
    except Exception as error:
        _raise_if_out_of_memory(error)
        log.warning("a batch of %d draws failed (%s); trying its halves", len(draws), _brief(error))
    half = len(draws) // 2
    return [one for part in (draws[:half], draws[half:]) for one in sample_batch(model, part, batch_size, get_input)]


def failed(draw: Draw, batch_size: int, code: str, why: str, *, attempts: int) -> Sampled:
    """A draw that is given up."""
    return Sampled(draw=draw, batch_shape=_batch_shape(draw, batch_size), error=f"{code}: {why}", attempts=attempts)


def score_batch(scorers: Sequence[Scorer], sampled: Sequence[Sampled], batch_size: int) -> None:
    """Add every scorer's score to the draws that have an image. Raises OutOfMemory."""
    made = [one for one in sampled if one.image_HWC is not None]
    if not made:
        return
    for scorer in scorers:
        try:
            _score(scorer, made, batch_size)
        except UserError:
            raise
        except Exception as error:
            _raise_if_out_of_memory(error)
            log.warning("scorer %s failed on a batch (%s); trying each image by itself", scorer.name, _brief(error))
            for one in made:
                _score_alone(scorer, one, batch_size)
        made = [one for one in made if one.error is None]


def _sample_alone(model: ImageModel, draw: Draw, batch_size: int, get_input: GetInput) -> Sampled:
    why = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _generate(model, [draw], batch_size, get_input, attempts=attempt)[0]
        except UserError:
            raise
        except BadInput as error:  # stays as bad as it is
            return failed(draw, batch_size, "bad_input", _brief(error), attempts=attempt)
        except Exception as error:
            _raise_if_out_of_memory(error)
            why = _brief(error)
    return failed(draw, batch_size, "sampler_error", why, attempts=ATTEMPTS)


def _generate(model: ImageModel, draws: Sequence[Draw], batch_size: int, get_input: GetInput, *, attempts: int) -> list[Sampled]:
    inputs = [conditions(draw, get_input) for draw in draws]
    generated = model.generate(_filled(draws, batch_size), _filled(inputs, batch_size))
    return [_sampled(draw, generated, index, batch_size, attempts) for index, draw in enumerate(draws)]


def _sampled(draw: Draw, generated: Generated, index: int, batch_size: int, attempts: int) -> Sampled:
    finite = bool(generated.finite[index])
    not_finite = None if finite else "not_finite: latents or pixels held NaN or infinity; try dtype float32, or another guidance or sampler"
    error = generated.errors.get(index, not_finite)
    return Sampled(
        draw=draw,
        image_HWC=generated.images_NHWC[index] if error is None else None,
        prompt_tokens=generated.prompt_tokens[index],
        prompt_truncated=generated.prompt_truncated[index],
        safety_flagged=generated.safety_flagged[index],
        batch_shape=_batch_shape(draw, batch_size),
        error=error,
        attempts=attempts,
    )


def _score(scorer: Scorer, made: Sequence[Sampled], batch_size: int) -> None:
    images = _filled([one.image_HWC for one in made], batch_size)
    prompts = [one.draw.words for one in made]
    values = scorer.score(np.stack(images), _filled(prompts, batch_size))  # type: ignore[arg-type]
    cut = scorer.truncates(prompts) if isinstance(scorer, TextScorer) else [None] * len(made)
    for index, one in enumerate(made):
        one.scores[scorer.name] = float(values[index])
        one.scores_truncated[scorer.name] = cut[index]


def _score_alone(scorer: Scorer, one: Sampled, batch_size: int) -> None:
    try:
        _score(scorer, [one], batch_size)
    except Exception as error:
        _raise_if_out_of_memory(error)
        one.image_HWC, one.error = None, f"scorer_error: {scorer.name}: {_brief(error)}"


def _filled(items: Sequence[T], size: int) -> list[T]:
    return [*items, *[items[-1]] * (size - len(items))]


def _raise_if_out_of_memory(error: Exception) -> None:
    """Torch's error is known by its name, so that torch need not be imported here."""
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower():
        raise OutOfMemory(_brief(error)) from None


def _batch_shape(draw: Draw, batch_size: int) -> str:
    return f"{batch_size}x{draw.height}x{draw.width}"


def _brief(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:300]}"
