"""Inpainting with a pipeline that does image-to-image only: what the mask keeps is laid over the latents after every step.

Blended latent diffusion (Avrahami et al. 2023, arXiv 2206.02779): the init image, noised to the level that the step has
reached with noise of the draw's own, replaces the latents outside the mask; after the last step without noise. So it needs
no U-Net of a certain number of channels, and what is painted sees what is kept while it is drawn.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F


class Blend:
    """For ``callback_on_step_end``. ``init_NCHW`` in 0..1, ``mask_N1HW`` is 1 where the image is painted anew."""

    def __init__(self, pipe: Any, init_NCHW: torch.Tensor, mask_N1HW: torch.Tensor, seeds: Sequence[int]) -> None:
        vae, device = pipe.vae, pipe._execution_device
        with torch.inference_mode():
            encoded = vae.encode((init_NCHW * 2 - 1).to(device, vae.dtype)).latent_dist.mode()
        self._init = encoded * vae.config.scaling_factor
        cell = mask_N1HW.shape[-1] // encoded.shape[-1]
        self._mask = F.max_pool2d(mask_N1HW, cell).to(device, encoded.dtype)  # a cell of which a pixel is painted is painted
        noise = [self._noise(encoded.shape[1:], seed) for seed in seeds]
        self._seeded_noise = torch.stack(noise).to(device, encoded.dtype)

    @staticmethod
    def _noise(shape: Sequence[int], seed: int) -> torch.Tensor:
        """The noise that the pipeline starts from: the second that it draws, after that of the encoder."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.stack([torch.randn(1, *shape, generator=generator)[0] for _ in range(2)])[1]

    def __call__(self, pipe: Any, step: int, latents: torch.Tensor) -> torch.Tensor:
        """Latents after step number ``step`` of the call, with the kept part in its place."""
        scheduler, left = pipe.scheduler, pipe._num_timesteps - step - 1
        kept = self._init
        if left > 0:
            reached = scheduler.timesteps[len(scheduler.timesteps) - left].repeat(len(kept))
            kept = scheduler.add_noise(kept, self._seeded_noise, reached)
        return (latents * self._mask + kept * (1 - self._mask)).to(latents.dtype)
