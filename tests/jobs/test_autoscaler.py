"""A cluster that has no GPU node until one is asked for. Ray's autoscaler is real; its nodes are further Ray nodes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from schemas.errors import ConfigError
from tests.fakes import fake_job
from tests.jobs.test_run import dataset, events, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
HEAD = "ray.head.default"  # the provider has this name for it
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
EMPTY = (*(f"{part}_commands" for part in COMMANDS), "cluster_synced_files", "rsync_exclude", "rsync_filter")


@pytest.fixture(scope="module")
def from_zero(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a head without a GPU, and an autoscaler that may start one node with one. (Ray's ``AutoscalingCluster`` begins
    with ``ray stop --force``, which would end what else runs here.)
    """
    folder = tmp_path_factory.mktemp("autoscaler")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    types = {
        HEAD: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    provider = {"type": "external", "module": PROVIDER, "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True, "gcs_address": address}
    config = {"cluster_name": "zero", "max_workers": 1, "provider": provider, "available_node_types": types, "head_node_type": HEAD}
    config |= {"auth": {}, "docker": {}, "file_mounts": {}, "idle_timeout_minutes": 5, "upscaling_speed": 1.0}
    config |= {"file_mounts_sync_continuously": False, **{key: [] for key in EMPTY}}
    (folder / "cluster.json").write_text(json.dumps(config))
    settings = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    settings |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    settings |= {"RAY_raylet_start_wait_time_s": "120", "RAY_AUTH_MODE": "disabled"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--num-gpus=0"]
    start += ["--include-dashboard=false", f"--autoscaling-config={folder / 'cluster.json'}"]
    with (folder / "said").open("wb") as said:
        head = subprocess.Popen(start, env=os.environ | settings, stdout=said, stderr=said, start_new_session=True)
    deadline = time.monotonic() + 120
    while b"Ray runtime started" not in (folder / "said").read_bytes():
        assert time.monotonic() < deadline, (folder / "said").read_text()
        assert head.poll() is None, (folder / "said").read_text()
        time.sleep(0.2)
    yield address
    os.killpg(head.pid, signal.SIGKILL)  # asked to, it would drain for half a minute
    head.wait()


@pytest.mark.timeout(200)  # a node that is waited for never comes
def test_what_no_node_type_has_is_refused_at_once(tmp_path: Path, from_zero: str) -> None:
    job = fake_job(tmp_path, executor={"kind": "ray", "address": from_zero, "gpus_per_actor": 2.0})
    with pytest.raises(
        ConfigError, match=r"^executor.gpus_per_actor: an actor needs 2 GPUs, .*; the cluster's autoscaler has no node type"
    ):
        make(job, tmp_path / "run")


def test_a_node_is_asked_for_and_the_run_starts_on_it(tmp_path: Path, from_zero: str) -> None:
    said: list[str] = []
    job = fake_job(tmp_path, executor={"kind": "ray", "address": from_zero, "gpus_per_actor": 1.0})
    report = make(job, tmp_path / "run", on_message=said.append)
    assert (report.exit_code, report.accepted, report.workers) == (0, 20, 1)
    assert "nodes awaited: actors 1, each_needs num_gpus 1, num_cpus 1" in said
    assert events(tmp_path / "run").index("nodes_awaited") < events(tmp_path / "run").index("worker_ready")
    make(fake_job(tmp_path), tmp_path / "here")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "here")
