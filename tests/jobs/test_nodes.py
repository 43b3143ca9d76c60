"""Nodes that join and leave while a run goes on. GPUs are pretended, Ray is real."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from jobs import ray_pool
from jobs.prepare import prepare
from jobs.run import Tally, run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas.errors import ConfigError, ModelError
from tests.fakes import fake_job
from tests.hub import REPO, flip, in_cache
from tests.jobs.conftest import JobFile
from tests.jobs.test_run import dataset, events, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@contextlib.contextmanager
def started(**head: Any) -> Iterator[Any]:
    """A cluster with this head node."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One node with a GPU beside the head."""
    monkeypatch.setattr(ray_pool, "LOOK_SECONDS", 0.5)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    with started(num_cpus=0, num_gpus=0) as made:
        made.add_node(num_cpus=1, num_gpus=1)
        yield made


def test_nodes_that_join_are_used_and_those_that_are_lost_change_no_byte(tmp_path: Path, cluster) -> None:
    """One node's raylet is killed with -9, so that its actor lives on for a moment; another node is gone at once."""
    enough = tmp_path / "enough"  # until then the draws are slow
    prompts = {"texts": [f"picture {n} UNTIL {enough}" for n in range(1600)], "draws_per_prompt": 1}
    job = fake_job(tmp_path, prompts=prompts, executor={"kind": "ray", "address": cluster.address})
    nodes = []

    def kill_raylet() -> None:
        (raylet,) = nodes[0].all_processes["raylet"]
        raylet.process.kill()

    steps = [  # when there are so many workers: what happens
        (1, lambda: nodes.append(cluster.add_node(num_cpus=1, num_gpus=1))),
        (2, kill_raylet),
        (1, lambda: nodes.append(cluster.add_node(num_cpus=1, num_gpus=1))),
        (2, lambda: cluster.remove_node(nodes[1], allow_graceful=False)),
        (1, enough.touch),
    ]

    def on_tally(tally: Tally) -> None:
        if steps and tally.workers == steps[0][0] and tally.committed:
            steps.pop(0)[1]()

    report = make(job, tmp_path / "run", on_tally=on_tally)
    assert (report.exit_code, report.accepted, len(steps)) == (0, 1600, 0)
    assert events(tmp_path / "run").count("worker_lost") == 2
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "undisturbed")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "undisturbed")
    assert verify(RunDir.open(tmp_path / "run")).ok


@pytest.mark.timeout(600)
def test_a_node_whose_model_is_damaged_does_nothing_and_the_other_goes_on(
    tmp_path: Path, job: JobFile, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real model of the hub in the caches of two nodes, in one of them with a flipped bit.

    The other one's worker draws nothing before that node has refused, or the run might be over by then.
    """
    gate, weights = tmp_path / "gate", "unet/diffusion_pytorch_model.safetensors"
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    _, damaged, _ = [in_cache(tiny_model, tmp_path / at / "huggingface/hub", commit="c" * 40) for at in ("driver", "bad", "good")]
    flip((damaged / weights).resolve())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "driver/huggingface/hub"))
    said: list[str] = []

    def on_message(text: str) -> None:
        said.append(text)
        if "refused" in text:
            gate.touch()

    def with_cache(name: str) -> dict[str, Any]:
        return {"num_cpus": 1, "num_gpus": 1, "env_vars": {"XDG_CACHE_HOME": str(tmp_path / name), "PROMPTMILL_TEST_GATE": str(gate)}}

    with started(**with_cache("good")) as cluster:
        cluster.add_node(**with_cache("bad"))
        job.write(model={"id": REPO}, output={"shard_size": 2}, executor={"kind": "ray", "address": cluster.address})
        planned = prepare(job.path)
        shutil.rmtree(tmp_path / "driver")  # else the nodes, which are on this machine, would find what the driver found
        report = run(planned, out=tmp_path / "run", model_loader="tests.fakes:load_real_before_a_gate", on_message=on_message)
    assert (report.exit_code, report.workers, report.accepted + report.rejected) == (0, 1, 10)
    (line,) = [line for line in said if "refused" in line]
    assert line.startswith("worker refused: actor ")
    assert line.endswith(
        f"error {socket.gethostname()}: model {REPO}: {weights} is damaged: its name is of other bytes;"
        f" delete {(damaged / weights).resolve()} and download it again"
    )
    assert len({marker.worker for marker in RunDir.open(tmp_path / "run").markers()}) == 1
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "good/huggingface/hub"))
    job.write(executor={"kind": "local", "address": None})
    run(prepare(job.path), out=tmp_path / "here")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "here")


def test_a_cluster_of_which_no_node_can_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_TEST_BARE", "1")
    job = fake_job(tmp_path, executor={"kind": "ray", "actors": 2})
    with pytest.raises(ModelError, match=f"{socket.gethostname()}: model fake: there is no folder /nowhere on this machine"):
        run(job, out=tmp_path / "run", model_loader="tests.fakes:load_where_it_may")
    assert events(tmp_path / "run").count("worker_refused") == 2


def test_a_full_object_store_changes_nothing(tmp_path: Path) -> None:
    """Somebody fills it twice over; no image goes through it, and what the actors answer travels in the answer itself."""
    import numpy as np
    import ray

    prompts = {"texts": [f"SLOW picture {n}" for n in range(40)]}
    held = []

    def on_tally(tally: Tally) -> None:
        if tally.committed and not held:
            held.extend(ray.put(np.zeros(4 * 1024**2, np.uint8)) for _ in range(40))

    with started(num_cpus=1, num_gpus=0, object_store_memory=80 * 1024**2) as cluster:
        job = fake_job(tmp_path, prompts=prompts, executor={"kind": "ray", "address": cluster.address})
        report = make(job, tmp_path / "run", on_tally=on_tally)
        held.clear()
    assert (report.exit_code, report.accepted) == (0, 80)
    assert "shard_retry" not in events(tmp_path / "run")
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "undisturbed")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "undisturbed")


def test_a_cluster_with_too_few_gpus_is_refused_at_once(tmp_path: Path, cluster) -> None:
    cluster.add_node(num_cpus=1, num_gpus=1)
    job = fake_job(tmp_path, executor={"kind": "ray", "address": cluster.address, "gpus_per_actor": 2.0})
    with pytest.raises(
        ConfigError, match=r"an actor needs 2 GPUs, the largest node of the cluster has 1 \(all together 2, .*must be Ray's second"
    ):
        make(job, tmp_path / "run")
    assert os.listdir(tmp_path / "run")
