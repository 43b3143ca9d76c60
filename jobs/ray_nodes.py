"""What the nodes of a Ray cluster have room for. Where no node has what an actor needs, an autoscaler that can start one is waited for."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # pyright: ignore[reportAttributeAccessIssue]  # generated

from jobs.actor_layout import Layout, layout
from schemas.config import ExecutorConfig
from schemas.errors import ConfigError

LOOK_SECONDS = 1.0  # between two looks at what the autoscaler says
AUTOSCALER_SECONDS = 3.0  # for an autoscaler to say anything; then there is none


def room(config: ExecutorConfig, cpu_threads: int) -> Layout:
    """For actors, on the nodes that are alive. Raises ConfigError if no node has what one actor needs."""
    return layout([node["Resources"] for node in ray.nodes() if node["Alive"]], config, cpu_threads)


def first_room(
    config: ExecutorConfig,
    cpu_threads: int,
    *,
    on_wait: Callable[[str], None] = lambda needs: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Layout | None:
    """The room, as soon as there is some; None if ``stopped`` became true before.

    A named cluster whose autoscaler (Ray's second, RAY_enable_autoscaler_v2=1) has a node type for it is asked to start nodes, by as
    many small tasks as actors are wanted, and waited for; ``on_wait`` is told what is asked for. Raises ConfigError if no node
    has what one actor needs, and none can be started.
    """
    try:
        return room(config, cpu_threads)
    except ConfigError as error:
        if config.address is None:
            raise
        if not _said(_autoscaler):
            raise ConfigError(f"{error}; an autoscaler that is to start such a node must be Ray's second (docs/cluster.md)") from None
        refusal = error
    needs = Layout(
        room=0, num_gpus=config.gpus_per_actor or 0.0, num_cpus=float(cpu_threads), memory=int((config.memory_gb or 0) * 1e9)
    ).share
    task: Any = ray.remote(_nothing).options(max_retries=-1, **needs)
    asked = [task.remote() for _ in range(config.actors or 1)]
    try:
        on_wait(", ".join(f"{name} {value:g}" for name, value in needs.items()))
        while not stopped():
            if any(_is(bundle, needs) for bundle in _autoscaler()):
                raise ConfigError(f"{refusal}; the cluster's autoscaler has no node type that would do either") from None
            if ray.wait(asked, timeout=LOOK_SECONDS)[0]:
                with contextlib.suppress(ConfigError):  # gone again
                    return room(config, cpu_threads)
        return None
    finally:
        for one in asked:
            ray.cancel(one)


def _nothing() -> None:
    """Needs a place, and leaves it."""


def _said(ask: Callable[[], list[dict[str, float]]]) -> bool:
    """Whether there is an autoscaler."""
    deadline = time.monotonic() + AUTOSCALER_SECONDS
    while True:
        try:
            ask()
        except LookupError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        else:
            return True


def _autoscaler() -> list[dict[str, float]]:
    """What is asked for and fits no node type, as the autoscaler says. Raises LookupError if it has never said anything."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(ray.get_runtime_context().gcs_address).get_cluster_status(timeout_s=10))
    if not reply.autoscaling_state.autoscaler_state_version:
        raise LookupError("no autoscaler")
    return [dict(request.resources_bundle) for request in reply.autoscaling_state.infeasible_resource_requests]


def _is(bundle: dict[str, float], needs: dict[str, float]) -> bool:
    names = {"num_gpus": "GPU", "num_cpus": "CPU", "memory": "memory"}
    return all(abs(bundle.get(names[name], 0.0) - value) <= 1e-6 * value for name, value in needs.items())
