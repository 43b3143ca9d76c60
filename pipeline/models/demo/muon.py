"""Muon: momentum made orthogonal, for weight matrices and convolutions; AdamW for everything else.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. On these small networks it needs about half of AdamW's steps,
and steps are what a CPU is short of. torch's own `torch.optim.Muon` takes no convolutions. Where several processes train
one model, each makes a share of the matrices orthogonal, and they exchange the results.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ENDS = ("embed", "conv_in", "conv_out", "quant", "heads.", "text_projection")


class Muon(torch.optim.AdamW):
    """AdamW whose groups marked `orthogonal` take Muon's step instead."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of all groups."""
        groups = self.param_groups
        orthogonal_groups = [group for group in groups if group.get("orthogonal")]
        for group in orthogonal_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            updates = shared_orthogonal([self._with_momentum(parameter) for parameter in parameters])
            for parameter, update in zip(parameters, updates, strict=True):
                stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * stretch)
        self.param_groups = [group for group in groups if not group.get("orthogonal")]
        super().step(closure)
        self.param_groups = groups

    def _with_momentum(self, parameter: Tensor) -> Tensor:
        """The gradient with Nesterov momentum, as a matrix (m, n)."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # unused; AdamW's loader of checkpoints expects it
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).flatten(1)


def shared_orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of each matrix; with several processes each does every n-th by size, and a sum over all puts them together."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks == 1:
        return [orthogonal(matrix) for matrix in matrices]
    mine = sorted(range(len(matrices)), key=lambda k: (matrices[k].numel(), k))[dist.get_rank() :: ranks]
    done = [orthogonal(matrix) if k in mine else torch.zeros_like(matrix) for k, matrix in enumerate(matrices)]
    flat = torch.cat([matrix.flatten() for matrix in done])
    dist.all_reduce(flat)
    parts = flat.split([matrix.numel() for matrix in matrices])
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


def orthogonal(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Roughly U V^T of the (m, n) matrix's singular value decomposition, by a quintic Newton-Schulz iteration."""
    wide = matrix.bfloat16()
    wide = wide.T if matrix.shape[0] > matrix.shape[1] else wide
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide.T if matrix.shape[0] > matrix.shape[1] else wide).float()


def groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float, muon_scale: float) -> list[dict[str, Any]]:
    """Parameter groups: hidden matrices orthogonal with `muon_scale` times the learning rate, the rest for AdamW."""
    parts: dict[str, list[nn.Parameter]] = {"matrices": [], "ends": [], "vectors": []}
    for name, parameter in named:
        end = any(mark in name for mark in ENDS)
        parts["vectors" if parameter.ndim < 2 else "ends" if end else "matrices"].append(parameter)
    return [
        {"params": parts["matrices"], "orthogonal": True, "lr_scale": muon_scale, "weight_decay": weight_decay},
        {"params": parts["ends"], "weight_decay": weight_decay},
        {"params": parts["vectors"], "weight_decay": 0.0},
    ]
