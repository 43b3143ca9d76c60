"""A classifier that learns from one image folder and is tested on another: python docs/train.py shapes/train drawn"""

import sys

import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

STEPS, BATCH = 400, 32


def load(folder: str, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of these classes, float (N, 3, H, W) in -1..1, and the numbers of their classes (N,)."""
    found = ImageFolder(folder)
    known = [(path, classes.index(found.classes[number])) for path, number in found.samples if found.classes[number] in classes]
    images = torch.stack([pil_to_tensor(found.loader(path)) for path, _ in known])
    return images / 127.5 - 1, torch.tensor([number for _, number in known])


def varied(images: torch.Tensor) -> torch.Tensor:
    """Moved, mirrored, in other colours: what does not change the class."""
    images = images.roll(torch.randint(-8, 9, (2,)).tolist(), dims=(2, 3))[:, torch.randperm(3)]
    images = images.flip(3) if torch.rand(()) < 0.5 else images
    return -images if torch.rand(()) < 0.5 else images


torch.set_num_threads(1)  # so small a network is no faster with more
torch.manual_seed(0)
classes = ImageFolder(sys.argv[1]).classes
images, labels = load(sys.argv[1], classes)
layers: list[nn.Module] = []
for channels_in, channels in ((3, 16), (16, 32), (32, 64), (64, 64)):
    layers += [nn.Conv2d(channels_in, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(len(classes)))
model(images[:2])
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
for _ in range(STEPS):
    chosen = torch.randint(len(images), (BATCH,))
    loss = nn.functional.cross_entropy(model(varied(images[chosen])), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

model.eval()
others, expected = load(sys.argv[2], classes)
with torch.no_grad():
    right = (torch.cat([model(part) for part in others.split(256)]).argmax(1) == expected).float().mean().item()
print(f"learned from {len(images)} images of {len(classes)} classes; right on {right:.1%} of {len(others)} others")
