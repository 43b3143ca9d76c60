"""The judge: reads what is really in a drawing. Test and benchmark equipment, apart from generator and CLIP.

A small convolutional network with a head per label of `reading.HEADS` and one for "well formed". It is trained on drawings
of its own split, on mild distortions of them (up to half a pixel of wobble, slight blur and noise: still right) and on
`malform.malformed` drawings (wobble of two pixels and more, blobs between two shapes, an object too many or too few,
smeared or mixed colours, bites, sizes between two sizes: not well formed). `Reading.matches` counts a picture as right only
if it is well formed and all seven labels are what the prompt says.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.models.demo.reading import HEADS, Reading

FOLDER = Path(__file__).parent / "weights" / "judge"


class JudgeNetwork(nn.Module):
    """(N, 3, 64, 64) in -1..1 -> logits (N, 1 + all labels): well formed, then the heads in order."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        plan = [(3, width // 2, 1), (width // 2, width, 2), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]
        plan += [(2 * width, 2 * width, 1), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1), (4 * width, width, 1)]
        self.features = nn.Sequential(*(_stage(*channels) for channels in plan))
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64 * width, 256), nn.SiLU())
        self.heads = nn.Linear(256, 1 + sum(map(len, HEADS.values())))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, 1 + labels)."""
        return self.heads(self.hidden(self.features(pixels)))


class Judge:
    """Reads pictures: `Judge.load()(images)`."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Judge:
        """The bundled judge, or the one in `folder`."""
        config = json.loads((folder / "judge_config.json").read_text())
        network = JudgeNetwork(config["width"])
        network.load_state_dict({name: value.float() for name, value in load_file(folder / "judge.safetensors").items()})
        return cls(network)

    @torch.inference_mode()
    def __call__(self, images_NHWC: NDArray[np.uint8]) -> list[Reading]:
        """A reading of each picture; uint8 (N, 64, 64, 3)."""
        pixels = torch.from_numpy(np.ascontiguousarray(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if pixels.shape[1:] != (3, 64, 64):
            raise ValueError(f"the judge reads pictures of 64 x 64 x 3, found {tuple(images_NHWC.shape[1:])}")
        return [reading for part in pixels.split(256) for reading in readings(self.network(part))]


def split_logits(logits: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The "well formed" logit (N,) and the logits of each head (N, labels)."""
    return logits[:, 0], list(logits[:, 1:].split([len(names) for names in HEADS.values()], dim=1))


def readings(logits: Tensor) -> list[Reading]:
    """What the logits (N, 1 + labels) say; confidence is the least sure answer's probability."""
    formed, parts = split_logits(logits)
    sure = torch.stack([part.softmax(1).max(1).values for part in parts]).min(0).values
    chosen = torch.stack([part.argmax(1) for part in parts], 1).tolist()
    names = list(HEADS.values())
    return [
        Reading(bool(good > 0), tuple(head[k] for head, k in zip(names, row, strict=True)), float(confidence))
        for good, row, confidence in zip(formed, chosen, sure, strict=True)
    ]


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())
