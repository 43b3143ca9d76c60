"""Images that were made before to scores, in the batches in which they were made: the same scorer gives the same numbers."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pipeline import plan
from pipeline.sample import OutOfMemory, Sampled, score_batch
from pipeline.scorers.base import Scorer
from schemas.errors import ModelError
from schemas.records import Shard


def score_shard(shard: Shard, images: Mapping[str, bytes], scorer: Scorer, batch_size: int) -> dict[str, tuple[float, bool | None]]:
    """By sample id, for draws that have encoded images: score (NaN where it cannot tell) and whether the prompt's end was not seen.

    Raises ModelError if the device's memory does not hold a batch.
    """
    found: dict[str, tuple[float, bool | None]] = {}
    for batch in plan.batches([draw for draw in shard.draws if draw.sample_id in images], batch_size):
        sampled = [Sampled(draw=draw, image_HWC=_pixels(images[draw.sample_id])) for draw in batch]
        try:
            score_batch([scorer], sampled, batch_size)
        except OutOfMemory as error:
            raise ModelError(f"scorers.{scorer.name}: a batch of {batch_size} does not fit ({error}); free memory and try again") from None
        for one in sampled:
            found[one.draw.sample_id] = (one.scores.get(scorer.name, float("nan")), one.scores_truncated.get(scorer.name))
    return found


def _pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
