"""Noise seeds and sample ids: pure functions, pinned by golden values in the tests.

The seed of a draw depends on the job's seed, the prompt's id and the draw's number and on nothing else, so
the same draw gets the same starting noise on any worker, in any batch, at any retry.
"""

import hashlib
import json
from collections.abc import Mapping

_GOLDEN_RATIO_32 = 0x9E3779B1  # odd, so draw_index * ratio is a bijection modulo 2**32


def noise_seed(job_seed: int, prompt_id: str, draw_index: int) -> int:
    """Seed of one draw, in [0, 2**32).

    32 bits, because torch's CPU generator (mt19937) is seeded from the low 32 bits only: a wider seed would
    promise a difference that the noise does not have. Draws of one prompt never share a seed.
    """
    key = f"promptmill.seed.v1\0{job_seed}\0{prompt_id}".encode()
    base = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
    return (base + draw_index * _GOLDEN_RATIO_32) % 2**32


def second_seed(seed: int) -> int:
    """Seed of the noise that a second stage starts from, in [0, 2**32): noise used twice would show in the image."""
    return int.from_bytes(hashlib.sha256(f"promptmill.second_stage.v1\0{seed}".encode()).digest()[:4], "big")


def sample_id(identity: Mapping[str, object]) -> str:
    """20 hexadecimal digits (80 bits) that name a draw: a hash of everything that decides its image.

    ``identity`` must hold JSON values only; key order does not matter.
    """
    canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(b"promptmill.sample.v2\0" + canonical.encode()).hexdigest()[:20]
