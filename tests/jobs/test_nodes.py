"""Nodes that join and leave while a run goes on. GPUs are pretended, Ray is real."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from jobs import ray_pool
from jobs.prepare import prepare
from jobs.run import Tally, run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import layout
from schemas.errors import ConfigError, ModelError
from tests.fakes import fake_job
from tests.jobs.conftest import JobFile
from tests.jobs.test_run import dataset, events, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(ray_pool, "LOOK_SECONDS", 0.5)
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    made.add_node(num_cpus=1, num_gpus=1)
    yield made
    with contextlib.suppress(Exception):
        made.shutdown()


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


def test_a_node_with_other_files_does_nothing_and_the_rest_goes_on(tmp_path: Path, cluster) -> None:
    cluster.add_node(num_cpus=1, num_gpus=1, env_vars={"PROMPTMILL_TEST_BARE": "1"})
    texts = [f"SLOW picture {n}" for n in range(100)]
    job = fake_job(tmp_path, prompts={"texts": texts}, executor={"kind": "ray", "address": cluster.address})
    said: list[str] = []
    report = run(job, out=tmp_path / "run", model_loader="tests.fakes:load_where_it_may", on_message=said.append)
    assert (report.exit_code, report.accepted, report.workers) == (0, 200, 1)
    (line,) = [line for line in said if "refused" in line]
    assert line.startswith("worker refused: actor ")
    assert f"error {socket.gethostname()}: model fake: there is no folder /nowhere on this machine; copy it there" in line
    make(fake_job(tmp_path, prompts={"texts": texts}), tmp_path / "here")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "here")


def test_nodes_that_really_hold_other_files_are_set_aside_and_the_run_ends_right(tmp_path: Path, cluster, job: JobFile) -> None:
    """A real model. One node sees another one under its path, by one bit of its weights; another node sees nothing there."""
    model = tmp_path / "models" / "painter"
    for folder in ("models", "others"):
        shutil.copytree(job.raw["model"]["id"], tmp_path / folder / "painter")
    (tmp_path / "none").mkdir()
    weights = tmp_path / "others/painter/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes((data := weights.read_bytes())[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    job.write(model={"id": str(model)}, output={"shard_size": 2}, executor={"kind": "ray", "address": cluster.address})
    said: list[str] = []
    with contextlib.ExitStack() as nodes:
        for seen in ("others", "none"):
            nodes.enter_context(node_that_sees(tmp_path / seen, model.parent, cluster.address))
        deadline = time.monotonic() + 60
        while len(cluster.global_state._live_node_ids()) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        report = run(prepare(job.path), out=tmp_path / "run", on_message=said.append)
    assert (report.exit_code, report.workers, report.accepted + report.rejected) == (0, 1, 10)
    refused = sorted(line.split(f"error {socket.gethostname()}: ")[1] for line in said if line.startswith("worker refused: actor "))
    planned = yaml.safe_load((tmp_path / "run" / layout.JOB).read_text())["model"]["revision"]
    assert [refused[0].split(" sha256:")[0], refused[1].split(";")[0]] == [
        f"model painter: {model} is",
        f"model painter: there is no folder {model} on this machine",
    ]
    assert refused[0].endswith(f" on this machine, the plan was made with {planned}; copy the same files there")
    assert len({marker.worker for marker in RunDir.open(tmp_path / "run").markers()}) == 1
    job.write(executor={"kind": "local", "address": None})
    run(prepare(job.path), out=tmp_path / "here")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "here")


@contextlib.contextmanager
def node_that_sees(seen: Path, at: Path, address: str) -> Iterator[None]:
    """A node to whose processes ``seen`` lies at the path ``at``: they have a mount namespace of their own (man 7 mount_namespaces)."""
    if subprocess.run(["unshare", "--mount", "mount", "--bind", seen, at], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us change what a process sees")
    ray = f"{sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=1 --num-gpus=1 --block"
    start = f'mount --bind "$0" "$1" && exec {ray}'
    node = subprocess.Popen(["unshare", "--mount", "sh", "-c", start, seen, at], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        node.terminate()
        node.wait(30)


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
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 1024**2})
    prompts = {"texts": [f"SLOW picture {n}" for n in range(40)]}
    held = []

    def on_tally(tally: Tally) -> None:
        if tally.committed and not held:
            held.extend(ray.put(np.zeros(4 * 1024**2, np.uint8)) for _ in range(40))

    try:
        job = fake_job(tmp_path, prompts=prompts, executor={"kind": "ray", "address": made.address})
        report = make(job, tmp_path / "run", on_tally=on_tally)
    finally:
        held.clear()
        with contextlib.suppress(Exception):
            made.shutdown()
    assert (report.exit_code, report.accepted) == (0, 80)
    assert "shard_retry" not in events(tmp_path / "run")
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "undisturbed")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "undisturbed")


def test_a_cluster_with_too_few_gpus_is_refused_at_once(tmp_path: Path, cluster) -> None:
    cluster.add_node(num_cpus=1, num_gpus=1)
    job = fake_job(tmp_path, executor={"kind": "ray", "address": cluster.address, "gpus_per_actor": 2.0})
    with pytest.raises(ConfigError, match=r"an actor needs 2 GPUs, the largest node of the cluster has 1 \(all together 2, "):
        make(job, tmp_path / "run")
    assert os.listdir(tmp_path / "run")
