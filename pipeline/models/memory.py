"""How much memory the GPU has, and how much of it something takes."""

from collections.abc import Callable

import torch


class GpuMemory:
    """The first GPU that this process sees."""

    def __init__(self) -> None:
        self.total_bytes: int = torch.cuda.get_device_properties(0).total_memory

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """The most that tensors had taken while ``work`` ran, weights included; what the allocator keeps beside is not counted."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def gpu_memory() -> GpuMemory | None:
    """None on a machine without a GPU."""
    return GpuMemory() if torch.cuda.is_available() else None
