"""Classifier-free guidance in a part of the steps only (Kynkäänniemi et al. 2024, arXiv 2404.07724), for pipelines of any kind.

Pipelines ask their network about each image twice, with the prompt and without it, and have no say about single steps. So for
the length of a call ``Interval`` stands in the network's place: in other steps it asks about the prompt alone and gives that
answer twice, whose difference is zero; that saves half of the step's work. ``pipeline.models.modes.PASSES`` tells which half it is.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.models.modes import Passes

_OF_ALL_IMAGES = "image_rotary_emb"  # an argument whose first axis is not the batch


class Interval:
    """Stands for a network that is asked about ``num_images`` images."""

    def __init__(self, pipe: Any, core: Any, interval: tuple[float, float], num_images: int, passes: Passes) -> None:
        self._pipe, self._core = pipe, core
        self._start, self._stop = interval
        self._num_images, self._passes = num_images, passes
        self._with = slice(num_images, None) if passes == "without first" else slice(num_images)
        self._step = 0
        self._answer: Any = None  # to the first call of a step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self._start <= self._step / self._num_steps() < self._stop:
            return self._core(*given, **named)
        if self._passes == "two calls":
            self._answer = self._core(*given, **named) if self._answer is None else self._answer
            return self._answer
        kept = {name: value if name == _OF_ALL_IMAGES else self._with_prompt(value) for name, value in named.items()}
        made = self._core(*self._with_prompt(given), **kept)
        twice = made[0] * 2 if isinstance(made[0], list) else torch.cat([made[0]] * 2)
        return (twice,) if isinstance(made, tuple) else type(made)(twice)

    def end_step(self) -> None:
        """The scheduler has made a step."""
        self._step, self._answer = self._step + 1, None

    def _num_steps(self) -> int:
        """Steps that the pipeline makes in this call; fewer than the scheduler has where it starts from an image."""
        return getattr(self._pipe, "_num_timesteps", None) or len(self._pipe.scheduler.timesteps)

    def _with_prompt(self, value: Any) -> Any:
        """The half of a batch that has the prompt, wherever there is one among the arguments."""
        if isinstance(value, torch.Tensor):
            return value[self._with] if value.shape[:1] == (2 * self._num_images,) else value
        if isinstance(value, list) and self._passes == "lists":
            return value[self._with]
        if isinstance(value, dict):
            return {name: self._with_prompt(one) for name, one in value.items()}
        return type(value)(self._with_prompt(one) for one in value) if isinstance(value, list | tuple) else value


@contextmanager
def guided_in(pipe: Any, interval: tuple[float, float], num_images: int, passes: Passes) -> Iterator[None]:
    """Guidance in the steps from the first to before the second share of them; of a cascade, in those of its decoder."""
    pipe = getattr(pipe, "decoder_pipe", pipe)
    name = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
    core, scheduler = getattr(pipe, name), pipe.scheduler
    stand_in, step = Interval(pipe, core, interval, num_images, passes), scheduler.step

    @functools.wraps(step)  # pipelines look which arguments it takes
    def counted(*given: Any, **named: Any) -> Any:
        made = step(*given, **named)
        stand_in.end_step()
        return made

    scheduler.step = counted
    vars(pipe)[name] = stand_in  # not by setattr, with which diffusers would take it for a part to save
    try:
        yield
    finally:
        vars(pipe)[name] = core
        scheduler.step = step
