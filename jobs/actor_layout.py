"""How many actors a cluster has room for, and what each asks for. Arithmetic over its nodes; knows nothing of Ray.

An actor lives on one node: four nodes of one GPU each have no room for an actor of two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.config import ExecutorConfig
from schemas.errors import ConfigError

Resources = Mapping[str, float]  # of one node: "GPU", "CPU", "memory" in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """``room`` is how many actors fit now; each asks for ``num_gpus``, ``num_cpus`` and ``memory`` bytes."""

    room: int
    num_gpus: float
    num_cpus: float
    memory: int = 0

    @property
    def share(self) -> dict[str, float]:
        """What one actor asks Ray for."""
        return {"num_gpus": self.num_gpus, "num_cpus": self.num_cpus} | ({"memory": self.memory} if self.memory else {})

    def count(self, config: ExecutorConfig, num_shards: int) -> int:
        """Actors to start. On a named cluster a number that is asked for is not cut down to the room: actors that wait are
        what an autoscaler starts nodes for.
        """
        wanted = config.actors or self.room
        return max(1, min(wanted if config.address else min(wanted, self.room), num_shards))


def layout(nodes: Sequence[Resources], config: ExecutorConfig, cpu_threads: int) -> Layout:
    """The layout on nodes that are alive. Raises ConfigError if no node has what one actor needs."""
    num_gpus = config.gpus_per_actor
    if num_gpus is None:
        num_gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= num_gpus]
    if not with_gpus:
        most, total = max((node.get("GPU", 0.0) for node in nodes), default=0.0), sum(node.get("GPU", 0.0) for node in nodes)
        raise ConfigError(
            f"executor.gpus_per_actor: an actor needs {num_gpus:g} GPUs, the largest node of the cluster has {most:g}"
            f" (all together {total:g}, but an actor lives on one node); lower it, or set it to 0"
        )
    fitting = [node for node in with_gpus if node.get("CPU", 0.0) >= cpu_threads]
    if not fitting:
        cores = max(node.get("CPU", 0.0) for node in with_gpus)
        beside = " that has the GPUs" if num_gpus else ""
        raise ConfigError(f"model.cpu_threads: an actor needs {cpu_threads} CPU cores, the largest node{beside} has {cores:g}; lower it")
    memory = int((config.memory_gb or 0) * 1e9)
    room = {number: _room(node, num_gpus, cpu_threads, memory) for number, node in enumerate(fitting)}
    if not any(room.values()):
        most = max(node.get("memory", 0.0) for node in fitting) / 1e9
        raise ConfigError(f"executor.memory_gb: an actor needs {config.memory_gb:g} GB, the largest node has {most:.1f}; lower it")
    cpus_of_one = min(fitting[number]["CPU"] / count for number, count in room.items() if count)
    return Layout(room=sum(room.values()), num_gpus=num_gpus, num_cpus=min(cpu_threads, cpus_of_one), memory=memory)


def _room(node: Resources, num_gpus: float, cpu_threads: int, memory: int) -> int:
    """GPUs decide where there are some: an actor on a GPU waits for it most of the time, and shares the cores with the others."""
    room = int(node["GPU"] / num_gpus + 1e-6) if num_gpus else int(node["CPU"] // cpu_threads)
    return min(room, int(node.get("memory", 0.0) // memory)) if memory else room
