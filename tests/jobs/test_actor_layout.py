"""What one actor needs must be on one node; what is asked for on a named cluster is not cut down."""

import pytest

from jobs.actor_layout import layout
from schemas.config import ExecutorConfig
from schemas.errors import ConfigError

HEAD, GPU8, CPU64 = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 8.0}, {"CPU": 64.0, "memory": 1e9}


def executor(**settings: object) -> ExecutorConfig:
    return ExecutorConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "settings", "threads", "room", "gpus", "cpus"),
    [
        ([CPU64], {}, 1, 64, 0.0, 1.0),
        ([HEAD, CPU64], {}, 3, 1 + 21, 0.0, 3.0),
        ([HEAD, GPU8, GPU8], {}, 1, 16, 1.0, 1.0),
        ([GPU8], {}, 4, 8, 1.0, 2.0),
        ([GPU8, CPU64], {"gpus_per_actor": 0.5}, 1, 16, 0.5, 1.0),
        ([{"CPU": 9.0, "GPU": 3.0}], {"gpus_per_actor": 0.1}, 1, 30, 0.1, 0.3),
        ([HEAD, GPU8], {"gpus_per_actor": 2.0}, 4, 4, 2.0, 4.0),
        ([HEAD, GPU8], {"gpus_per_actor": 0.0}, 4, 1 + 4, 0.0, 4.0),
    ],
)
def test_room_is_counted_node_by_node(nodes: list, settings: dict, threads: int, room: int, gpus: float, cpus: float) -> None:
    found = layout(nodes, executor(**settings), threads)
    assert (found.room, found.num_gpus, found.num_cpus) == (room, gpus, pytest.approx(cpus))


@pytest.mark.parametrize(
    ("memory_gb", "room", "cpus"),
    [(None, 2 + 8, 1.0), (1.0, 2 + 8, 1.0), (30.0, 1 + 3, 1.0), (50.0, 2, 1.0)],
)
def test_memory_counts_where_it_is_asked_for(memory_gb: float | None, room: int, cpus: float) -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0, "memory": 40e9}, {"CPU": 8.0, "GPU": 8.0, "memory": 100e9}]
    found = layout(nodes, executor(memory_gb=memory_gb), 1)
    assert (found.room, found.num_cpus) == (room, cpus)
    assert found.share == {"num_gpus": 1.0, "num_cpus": 1.0} | ({} if memory_gb is None else {"memory": int(memory_gb * 1e9)})


@pytest.mark.parametrize(
    ("nodes", "settings", "threads", "message"),
    [
        ([CPU64], {"memory_gb": 1.5}, 1, "executor.memory_gb: an actor needs 1.5 GB, the largest node has 1.0; lower it"),
        ([HEAD, GPU8, GPU8], {"gpus_per_actor": 9.0}, 1, r"needs 9 GPUs, the largest node of the cluster has 8 \(all together 16,"),
        ([HEAD], {"gpus_per_actor": 1.0}, 1, "an actor needs 1 GPUs, the largest node of the cluster has 0"),
        ([], {"gpus_per_actor": 1.0}, 1, "the largest node of the cluster has 0"),
        ([HEAD, HEAD], {}, 5, "an actor needs 5 CPU cores, the largest node has 4; lower it"),
        ([CPU64, GPU8], {}, 20, "an actor needs 20 CPU cores, the largest node that has the GPUs has 16; lower it"),
    ],
)
def test_what_no_node_has_is_refused(nodes: list, settings: dict, threads: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layout(nodes, executor(**settings), threads)


@pytest.mark.parametrize(
    ("settings", "num_shards", "count"),
    [({}, 100, 8), ({}, 3, 3), ({"actors": 20}, 100, 8), ({"actors": 20, "address": "auto"}, 100, 20), ({"actors": 2}, 100, 2)],
)
def test_the_number_of_actors(settings: dict, num_shards: int, count: int) -> None:
    config = executor(**settings)
    assert layout([GPU8], config, 1).count(config, num_shards) == count
