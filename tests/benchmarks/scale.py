"""What bookkeeping costs as jobs grow: ``python -m tests.benchmarks.scale [--draws 10000 100000 1000000] [--actors 1 4 16]``.

Nothing is sampled here. First table: planning, taking up a run that is half made, and ``status``, each in a process of its own, whose
peak memory is told beside what it had before. Second table: the driver's loop over real Ray actors that return at once
(seconds of the driver's own processor per shard), and over ones that sleep as a device would (the share of the ideal speed).
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.bench import machine
from jobs.executor import Control
from jobs.run_dir import RunDir
from pipeline import plan
from pipeline.worker import SHARDS_AT_ONCE, ShardWorker, WorkOrder
from schemas import layout
from schemas.config import ExecutorConfig
from schemas.records import ShardResult
from tests import fakes

SHARD_SIZE = 100
DRAWS_PER_PROMPT = 4
MANY = 200_000  # shards that wait: more than are handed out
SHARD_SECONDS = 0.8  # of a sleeping device: four batches of 200 ms


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        print(json.dumps(_measure(STAGES[asked.stage], asked.folder, asked.draws[0])))
        return
    console = Console()
    console.print(machine())
    if asked.draws:
        console.print(_bookkeeping(asked.draws))
    if asked.actors:
        console.print(_handing_out(asked.actors))


def _bookkeeping(draws: list[int]) -> Table:
    table = Table("draws", "shards", "stage", "seconds", "processor s", "memory before, MB", "peak, MB", title="bookkeeping")
    for count in draws:
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            for stage in STAGES:
                command = [sys.executable, "-m", "tests.benchmarks.scale", "--stage", stage, "--folder", folder, "--draws", str(count)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                figures = [f"{found[name]:,.{digits}f}" for name, digits in (("wall", 2), ("cpu", 2), ("before", 0), ("peak", 0))]
                table.add_row(f"{count:,}", f"{-(-count // SHARD_SIZE):,}", stage, *figures)
    return table


def _measure(stage: Callable[[Path, int], None], folder: Path, draws: int) -> dict[str, float]:
    wall, cpu, before = time.perf_counter(), time.process_time(), _peak()
    stage(folder, draws)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "before": before, "peak": _peak()}


def _plan(folder: Path, draws: int) -> None:
    (folder / "prompts.txt").write_text("".join(f"a picture of thing number {n}\n" for n in range(draws // DRAWS_PER_PROMPT)))
    job = _job(folder)
    run_dir = RunDir.claim(folder / "run", job.job())
    run_dir.begin()
    assert plan.survey(run_dir.store, job.open_prompts) is None
    plan.write_plan(run_dir.store, job.open_prompts, job.expand, SHARD_SIZE, job.config.batch_size)


def _make_half(folder: Path, draws: int) -> None:
    """Every other shard: one real one, and links to its files under the markers of the others."""
    job, run_dir = _job(folder), RunDir.open(folder / "run")
    index, root = run_dir.plan, folder / "run"
    config = job.config.model_dump(mode="json")
    order = WorkOrder(root=str(root), config=config, model=job.model, scorers=job.scorers, model_loader=fakes.LOADER)
    ShardWorker(order).run(0)
    marker = json.loads(run_dir.store.get(layout.done_file(0)))
    run_dir.log("start", draws=index.num_draws, shards=index.num_shards, shards_done=0)
    for number in range(64):
        run_dir.log("worker_ready", actor=number, worker=f"host:{number}", seconds=1.0)
    for shard_id in range(2, index.num_shards, 2):
        for name in (layout.metadata_file, layout.images_file):
            os.link(root / name(0), root / name(shard_id))
        facts = {"shard_id": shard_id, "draws_sha256": index.shards[shard_id], "worker": f"host:{shard_id % 64}"}
        (root / layout.done_file(shard_id)).write_text(json.dumps(marker | facts))
        run_dir.log("shard_done", shard_id=shard_id, worker=facts["worker"], draws=SHARD_SIZE, failed=0)


def _resume(folder: Path, draws: int) -> None:
    """What a run does before its first shard: read all prompts again, and find out what is done."""
    job = _job(folder)
    run_dir = RunDir.claim(folder / "run", job.job())
    index = plan.survey(run_dir.store, job.open_prompts)
    assert index is not None
    assert len(run_dir.settle(index).todo) == index.num_shards // 2


def _status(folder: Path, draws: int) -> None:
    from jobs.status import status

    assert status(RunDir.open(folder / "run")).shards_done == -(-draws // SHARD_SIZE // 2)


STAGES: dict[str, Callable[[Path, int], None]] = {"plan": _plan, "make half": _make_half, "resume": _resume, "status": _status}


class Instant:
    """An actor as ``jobs.actor.Actor`` is one, whose shards take ``seconds`` on a device that does one at a time, and no work."""

    seconds = 0.0

    def __init__(self, order: WorkOrder) -> None:
        self._device = threading.Lock()

    def load(self) -> tuple[str, dict[str, float]]:
        """At once."""
        return f"host:{os.getpid()}", {}

    def run(self, shard_id: int, is_last: bool, carefully: bool) -> ShardResult:
        """Nothing is made."""
        with self._device:
            time.sleep(self.seconds)
        return ShardResult(shard_id=shard_id, accepted=SHARD_SIZE, worker=f"host:{os.getpid()}", seconds={"sample": self.seconds})

    def stop(self) -> None:
        """There is nothing to put aside."""

    def lend(self, loan: int, idle: int) -> None:
        """Nothing is lent."""

    def pulse(self) -> tuple[int, float, int]:
        """Nothing is sampled, and nothing waits for a store."""
        return 0, 0.0, SHARDS_AT_ONCE


class Sleeping(Instant):
    """As a device that is busy."""

    seconds = SHARD_SECONDS


def _handing_out(actors: list[int]) -> Table:
    sleeping = f"share of the ideal, {SHARD_SECONDS} s a shard"
    table = Table("actors", "driver, processor ms per shard", "shards/s", sleeping, title="handing out")
    for count in actors:
        cpu, rate, _ = _drive(Instant, count, 2000)
        _, _, seconds = _drive(Sleeping, count, 10 * count)
        table.add_row(str(count), f"{1000 * cpu:.2f}", f"{rate:,.0f}", f"{10 * SHARD_SECONDS / seconds:.1%}")
    return table


def _drive(kind: type, actors: int, shards: int) -> tuple[float, float, float]:
    """Processor seconds of the driver per shard, shards per second, and seconds; from when all actors are ready."""
    from ray.cluster_utils import Cluster

    from jobs import ray_pool

    ready, started = [0], [0.0, 0.0]

    def on_event(event: str, **facts: object) -> None:
        ready[0] += event == "worker_ready"

    def order() -> WorkOrder:
        return WorkOrder(root="/nowhere", config={}, model=fakes.CARD, scorers=())

    os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112 - Ray's own spelling
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": actors, "num_gpus": 0})
    ray_pool.Actor = kind
    try:
        config = ExecutorConfig(kind="ray", address=cluster.address, actors=actors, gpus_per_actor=0)
        control = Control(config=config, cpu_threads=1, on_event=on_event)
        done = -1
        for _ in ray_pool.run_on_ray(order(), range(MANY), control):
            if done < 0 and ready[0] == actors:
                done, started = 0, [time.perf_counter(), time.process_time()]
            elif done >= 0:
                done += 1
            if done == shards:
                seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
                return cpu / shards, shards / seconds, seconds
        raise SystemExit(f"{actors} actors were not ready in time; use a machine with more cores")
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()


def _job(folder: Path) -> fakes.Prepared:
    prompts = {"file": "prompts.txt", "texts": None, "draws_per_prompt": DRAWS_PER_PROMPT}
    return fakes.fake_job(folder, prompts=prompts, output={"shard_size": SHARD_SIZE})


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory() -> str | None:
    """A file system in memory, where there is one: disks differ."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
