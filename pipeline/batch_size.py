"""``sampling.batch_size: auto`` to a number. Part of the configuration ever after, so it follows from the job and the kind of device
alone: from memory, never from a clock, which would give the same job another dataset the next time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.sample import OutOfMemory, sample_batch, score_batch
from pipeline.worker import ShardWorker, WorkOrder
from schemas.config import JobConfig
from schemas.errors import ModelError
from schemas.records import Draw

ON_CPU = 8  # a core gains nothing from more
LARGEST = 64
USABLE = 0.8  # of a GPU's memory; the rest is for what the allocator cannot use, and for prompts of other sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to measure with: the largest draw of the job's settings, the bytes of its input images by their sha256, and how many
    draws a shard has of one setting. ``gpu_share`` is what a worker has of a GPU.
    """

    draw: Draw
    draws_at_once: int
    gpu_share: float = 1.0
    inputs: Mapping[str, bytes] = field(default_factory=dict)


class DeviceMemory(Protocol):
    """The memory of the device that models are loaded onto."""

    total_bytes: int

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most that was in use while ``work`` ran."""
        ...


def choose(order: WorkOrder, trial: Trial) -> int:
    """The batch size for a job, where its workers run. On a GPU loads the models and makes three images. Raises UserError."""
    config = JobConfig.model_validate(order.config)
    if config.model.endpoint:
        return even(config.model.endpoint.concurrency, trial.draws_at_once)
    from pipeline.models.memory import gpu_memory

    memory = gpu_memory()
    return even(_fitting(order, trial, memory) if memory else ON_CPU, trial.draws_at_once)


def even(size: int, draws: int) -> int:
    """The size at most ``size`` that cuts so many draws into equal batches, as near as can be: little is padded."""
    batches = -(-draws // size)
    return -(-draws // batches)


def largest(one: int, two: int, room: int) -> int:
    """The largest power of two that fits, from the peak bytes of batches of one and of two images: a peak is a part that stays
    and a part per image.
    """
    each = max(two - one, 1)
    fits = 1 + max(0, room - one) // each
    return min(LARGEST, 2 ** (fits.bit_length() - 1))


def _fitting(order: WorkOrder, trial: Trial, memory: DeviceMemory) -> int:
    stages = ShardWorker(order).stages
    # a part of the steps, as image-to-image and a second stage make, may be none of two
    few = trial.draw.mode == "text-to-image" and not JobConfig.model_validate(order.config).model.second_stage
    draw = replace(trial.draw, steps=min(trial.draw.steps, 2)) if few else trial.draw

    def make(size: int) -> None:
        made = sample_batch(stages.model, [draw] * size, size, trial.inputs.__getitem__)
        if made[0].error:
            raise ModelError(f"sampling.batch_size: auto needs a draw to measure, and the first one fails ({made[0].error}); give a number")
        score_batch(stages.scorers, made, size)

    try:
        one, two = (memory.peak_bytes(lambda size=size: make(size)) for size in (1, 2))
    except OutOfMemory:
        return 1
    return largest(one, two, int(memory.total_bytes * USABLE * trial.gpu_share))
