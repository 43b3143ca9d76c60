"""Jobs of a Ray cluster: what travels, what is refused, and, on a real cluster on this machine, the whole course."""

import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from jobs.bundle import LARGEST_BYTES, bundle
from jobs.cli import cli
from pipeline.prompts import read_prompts
from schemas.config_load import load
from schemas.errors import ConfigError, PromptError
from tests.conftest import REPOSITORY
from tests.jobs.conftest import JobFile
from tests.jobs.test_bad_input import refused
from tests.pipeline.test_inputs import png

CLUSTER = REPOSITORY / "configs" / "cluster"
SCORER = "from tests.fakes import Brightness\n\n\nclass Mine(Brightness):\n    pass\n"
PICTURE = png()
SLOW = """    def score(self, images_NHWC, prompts):
        time.sleep(0 if os.path.exists({file!r}) else 2)
        return super().score(images_NHWC, prompts)
"""


def own_scorer(job: JobFile) -> None:
    (job.folder / "mine.py").write_text(SCORER)
    job.write(scorers={"mine": {"type": "mine:Mine"}})


def empty(folder: Path) -> Path:
    (folder / "bundle").mkdir()
    return folder / "bundle"


class TestBundle:
    def test_config_prompts_and_own_scorers_travel(self, job: JobFile, tmp_path: Path) -> None:
        own_scorer(job)
        made = bundle(job.path, empty(tmp_path), out="s3://bucket/run", overrides=["seed=7"])
        assert sorted(path.name for path in made.folder.iterdir()) == ["job.yaml", "mine.py", "prompts.txt"]
        config = load(made.folder / "job.yaml")
        assert (config.seed, config.executor.kind, config.executor.address) == (7, "ray", "auto")
        assert config.prompts.file == "prompts.txt"
        assert shlex.split(made.command) == ["promptmill", "run", "job.yaml", "--out", "s3://bucket/run"]

    def test_the_job_is_the_one_that_runs_here(self, job: JobFile, tmp_path: Path) -> None:
        from jobs.prepare import prepare

        made = bundle(job.path, empty(tmp_path), out="/shared/run")
        assert prepare(made.folder / "job.yaml").job().fingerprint == prepare(job.path).job().fingerprint

    def test_the_files_that_an_own_scorer_imports_travel(self, job: JobFile, tmp_path: Path) -> None:
        from jobs.prepare import prepare

        own_scorer(job)
        mine = job.folder / "mine.py"
        mine.write_text("import helpers.grey\n" + mine.read_text())
        (job.folder / "helpers").mkdir()
        (job.folder / "helpers" / "grey.py").write_text("LEVEL = 1\n")
        made = bundle(job.path, empty(tmp_path), out="/shared/run")
        assert (made.folder / "helpers" / "grey.py").read_text() == "LEVEL = 1\n"
        assert prepare(made.folder / "job.yaml").job().fingerprint == prepare(job.path).job().fingerprint

    def test_a_dataset_of_prompts_and_the_wildcards_of_a_template_travel(self, job: JobFile, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_dict({"prompt": ["a star", "a ring"]}).save_to_disk(job.folder / "set")
        (job.folder / "words").mkdir()
        (job.folder / "words" / "ground.txt").write_text("grass\n")
        made = bundle(job.write(prompts={"file": "set"}), empty(tmp_path), out="/shared/run")
        assert [prompt.text for prompt in read_prompts(load(made.folder / "job.yaml").prompts, base_dir=made.folder)] == [
            "a star",
            "a ring",
        ]
        job.write(prompts={"file": None, "template": "a star on __ground__", "wildcards": "words"})
        (tmp_path / "other").mkdir()
        made = bundle(job.path, tmp_path / "other", out="/shared/run")
        (prompt,) = read_prompts(load(made.folder / "job.yaml").prompts, base_dir=made.folder)
        assert prompt.text == "a star on grass"

    def test_the_head_of_a_scorer_travels(self, job: JobFile, tmp_path: Path) -> None:
        from jobs.prepare import prepare

        save_file({"weight": np.ones((1, 128), np.float32)}, job.folder / "head.safetensors")
        job.write(scorers={"looks": {"type": "aesthetic", "model": "demo", "head": "head.safetensors"}})
        made = bundle(job.path, empty(tmp_path), out="/shared/run")
        assert prepare(made.folder / "job.yaml").job().fingerprint == prepare(job.path).job().fingerprint

    @pytest.mark.parametrize(
        ("out", "expected"),
        [(None, "a submitted job needs a place"), ("runs/x", "--out runs/x: lies on this machine; give s3://bucket/folder")],
    )
    def test_a_dataset_that_others_cannot_see_is_refused(self, job: JobFile, tmp_path: Path, out: str | None, expected: str) -> None:
        with pytest.raises(ConfigError, match=expected):
            bundle(job.path, tmp_path, out=out)

    @pytest.mark.parametrize("key", ["id", "loras", "embeddings", "vae", "second_stage"])
    def test_weights_of_this_machine_are_refused_by_name(self, job: JobFile, tmp_path: Path, key: str) -> None:
        (job.folder / "weights").mkdir()
        given = {"id": "weights"}
        job.write(model={"id": "weights"} if key == "id" else {key: [given] if key in ("loras", "embeddings") else given})
        with pytest.raises(ConfigError, match=rf"model.{key} weights: is on this machine, and weights do not travel; give a hub name"):
            bundle(job.path, tmp_path, out="/shared/run")

    def test_input_images_that_the_cluster_can_read_are_no_hindrance(self, job: JobFile, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "a.png").write_bytes(PICTURE)
        cells = [{"bytes": PICTURE, "path": "a.png"}, {"bytes": None, "path": str(tmp_path / "shared" / "a.png")}]
        pq.write_table(pa.table({"prompt": ["a", "b"], "init_image": cells}), job.folder / "p.parquet")
        prompts = {"file": "p.parquet", "image_folders": [str(tmp_path / "shared")]}
        made = bundle(job.write(prompts=prompts, sampling={"mode": "image-to-image"}), empty(tmp_path), out="/shared/run")
        (job.folder / "p.parquet").unlink()
        found = read_prompts(load(made.folder / "job.yaml").prompts, base_dir=made.folder, mode="image-to-image")
        assert [prompt.images["init"].data for prompt in found] == [PICTURE, PICTURE]

    @pytest.mark.parametrize(
        ("cells", "left_here"),
        [
            ("s3://bucket/pictures/a.png,/shared/pictures/m.png", None),
            ("s3://bucket/pictures/a.png,m.png", "mask_image m.png"),
            ("pictures/a.png,s3://bucket/pictures/m.png", "init_image pictures/a.png"),
            ("/elsewhere/a.png,/shared/pictures/m.png", "init_image /elsewhere/a.png"),
        ],
    )
    def test_input_images_in_files_of_this_machine_are_refused_by_name(
        self, job: JobFile, tmp_path: Path, cells: str, left_here: str | None
    ) -> None:
        (job.folder / "pictures").mkdir()
        for name in ("pictures/a.png", "m.png"):
            (job.folder / name).write_bytes(PICTURE)
        (job.folder / "p.csv").write_text(f"prompt,init_image,mask_image\nx,{cells}\n")
        folders = ["pictures", "/shared/pictures", "s3://bucket/pictures"]
        job.write(prompts={"file": "p.csv", "image_folders": folders}, sampling={"mode": "inpainting"})
        if left_here is None:
            assert load(bundle(job.path, empty(tmp_path), out="/shared/run").folder / "job.yaml").prompts.image_folders == folders
            return
        with pytest.raises(
            ConfigError, match=rf"p\.csv: line 2: {left_here}: is on this machine, and input images do not travel; put them"
        ):
            bundle(job.path, empty(tmp_path), out="/shared/run")

    def test_a_row_that_is_no_prompt_is_refused_here(self, job: JobFile, tmp_path: Path) -> None:
        (job.folder / "prompts.csv").write_text("prompt,steps\na cat,4\na dog,four\n")
        with pytest.raises(PromptError, match=r"prompts\.csv: line 3: .*steps"):
            bundle(job.write(prompts={"file": "prompts.csv"}), empty(tmp_path), out="/shared/run")

    def test_a_prompt_file_that_cannot_travel_is_named(self, job: JobFile, tmp_path: Path) -> None:
        folder = empty(tmp_path)
        os.truncate(job.folder / "prompts.txt", LARGEST_BYTES + 1)
        with pytest.raises(ConfigError, match=r"prompts.file .*prompts.txt: 100 MiB are too many to travel"):
            bundle(job.path, folder, out="/shared/run")
        (job.folder / "prompts.txt").unlink()
        with pytest.raises(ConfigError, match=r"prompts.file .*prompts.txt: cannot be read: No such file"):
            bundle(job.path, folder, out="/shared/run")


@pytest.mark.parametrize(
    "arguments", [("jobs", "list"), ("jobs", "status", "x"), ("jobs", "logs", "x"), ("jobs", "logs", "x", "-f"), ("jobs", "cancel", "x")]
)
def test_an_address_where_nothing_listens_is_told_in_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    line = refused(capsys, *arguments, "--address", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9: no Ray cluster answers there (ConnectionError); give the address of the head's dashboard" in line


def test_submit_to_nowhere_is_told_in_one_line(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no Ray cluster answers there" in refused(capsys, "submit", job.path, "--out", "/shared/run", "--address", "http://127.0.0.1:9")


def parses(command: str) -> None:
    """The command is one of promptmill's, with options that it has."""
    program, verb, *arguments = shlex.split(command)
    assert program == "promptmill"
    cli.commands[verb].make_context(verb, arguments, resilient_parsing=False)


def test_the_kuberay_manifest_starts_a_run_on_gpus() -> None:
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    parses(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" in workers["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_autoscaler_configuration_is_one_that_ray_accepts() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "autoscaler.yaml").read_text())
    validate_config(prepare_config(config))
    assert not any("--dashboard-host=0.0.0.0" in command for command in config["head_start_ray_commands"])


def test_the_slurm_script_is_sound_and_starts_a_run() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    (command,) = re.findall(r"^promptmill .*(?= &$)", script.read_text(), re.M)
    parses(command)
    assert "--dashboard-host=127.0.0.1" in script.read_text()
    assert "RAY_AUTH_MODE=token" in script.read_text()


def test_every_jobs_command_explains_itself() -> None:
    group = cli.commands["jobs"]
    assert isinstance(group, click.Group)
    assert set(group.commands) == {"list", "status", "logs", "cancel"}
    assert all(command.help for command in group.commands.values())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head with a token on loopback: its dashboard's address, and the environment that knows the token."""
    folder = tmp_path_factory.mktemp("ray")
    port, dashboard = free_port(), free_port()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PATH": path}
    environment |= {"RAY_raylet_start_wait_time_s": "120", "RAY_TMPDIR": f"/tmp/ray{port}"}
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
    ]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--disable-usage-stats", f"--temp-dir=/tmp/ray{port}"]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 180
    while promptmill(environment, "jobs", "list", "--address", address).returncode:
        assert head.poll() is None, (folder / "ray.log").read_text()[-2000:]
        assert time.monotonic() < deadline, (folder / "ray.log").read_text()[-2000:]
        time.sleep(2)
    yield address, environment
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    finally:
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(f"/tmp/ray{port}", ignore_errors=True)


def promptmill(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.slow
class TestOnACluster:
    def test_a_submitted_job_runs_with_its_files_and_is_listed(self, cluster: tuple[str, dict], job: JobFile) -> None:
        address, environment = cluster
        own_scorer(job)
        done = promptmill(environment, "submit", job.path, "--out", job.out, "--address", address, "--wait")
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.strip()
        listed = promptmill(environment, "jobs", "list", "--address", address).stdout
        assert re.search(rf"^{job_id}\tsucceeded\t.*\t{job.out}$", listed, re.M)
        for follow in ([], ["-f"]):
            assert "images" in promptmill(environment, "jobs", "logs", job_id, *follow, "--address", address).stdout
        late = promptmill(environment, "jobs", "cancel", job_id, "--address", address)
        assert (late.returncode, late.stderr.startswith(f"promptmill: job {job_id}: has ended already (succeeded)")) == (2, True)
        assert "10 of 10" in promptmill(environment, "status", job.out).stdout.replace("draws", "").replace(",", "")

    def test_a_cancelled_job_keeps_its_batches_and_goes_on_when_submitted_again(self, cluster: tuple[str, dict], job: JobFile) -> None:
        address, environment = cluster
        own_scorer(job)
        scorer = SCORER.replace("    pass\n", SLOW.format(file=str(job.folder / "cancelled")))
        (job.folder / "mine.py").write_text(f"import os\nimport time\n\n{scorer}")
        (job.folder / "prompts.txt").write_text("".join(f"a red square {n}\n" for n in range(120)))
        first = promptmill(environment, "submit", job.path, "--out", job.out, "--address", address)
        job_id = first.stdout.strip()
        deadline = time.monotonic() + 200
        while not list(job.out.glob("done/*.json")):
            assert time.monotonic() < deadline, promptmill(environment, "jobs", "logs", job_id, "--address", address).stdout
            time.sleep(0.5)
        assert promptmill(environment, "jobs", "cancel", job_id, "--address", address).returncode == 0
        while "running" in promptmill(environment, "jobs", "status", job_id, "--address", address).stdout:
            time.sleep(1)
        assert '"event": "drained"' in (job.out / "events.jsonl").read_text()
        before = len(list(job.out.glob("done/*.json")))
        assert before < 30
        (job.folder / "cancelled").touch()
        done = promptmill(environment, "submit", job.path, "--out", job.out, "--address", address, "--wait")
        assert done.returncode == 0, done.stderr
        assert len(list(job.out.glob("done/*.json"))) == 30

    def test_an_unknown_job_is_told_in_one_line(self, cluster: tuple[str, dict]) -> None:
        address, environment = cluster
        for verb in (["status"], ["logs"], ["logs", "-f"], ["cancel"]):
            done = promptmill(environment, "jobs", verb[0], "nothing", *verb[1:], "--address", address)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr.strip() == f"promptmill: job nothing: is not known at {address}; 'promptmill jobs list' shows those that are"

    @pytest.mark.parametrize("token", [{"RAY_AUTH_TOKEN": "wrong" * 10}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"])
    def test_a_wrong_token_is_told_in_one_line(self, cluster: tuple[str, dict], token: dict[str, str]) -> None:
        address, environment = cluster
        done = promptmill(environment | token, "jobs", "list", "--address", address)
        assert done.returncode == 2
        assert done.stderr.startswith(f"promptmill: {address}: the token is missing or wrong; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN")
        assert len(done.stderr.strip().splitlines()) == 1
