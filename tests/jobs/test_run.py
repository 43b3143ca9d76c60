"""Promises of a run, for both executors: same bytes, resume, extension, refusal, failures told.

The fake model stands in for diffusers here; tests/jobs/test_demo.py makes the same promises with the real one.
"""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import run as run_verb
from jobs.prepare import Prepared
from jobs.run_dir import RunDir
from schemas import layout
from schemas.errors import RunFolderError, UserError
from schemas.records import ShardResult
from schemas.tables import SCHEMA_VERSION
from tests import fakes
from tests.fakes import DEATHS, LOADER, fake_job

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves sockets and files to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LOCAL, RAY1, RAY2 = {"kind": "local"}, {"kind": "ray", "actors": 1}, {"kind": "ray", "actors": 2}
executors = pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
VOLATILE = (layout.DONE, layout.EVENTS, layout.JOB)


@dataclass(frozen=True)
class RayNode:
    """A Ray node for many runs, one after the other. In ``folder`` the models that misbehave note what they did."""

    address: str
    folder: Path


def make(prepared: Prepared, out: Path, **options) -> run_verb.RunReport:
    return run_verb.run(prepared, out=out, model_loader=LOADER, **options)


def dataset(folder: Path) -> dict[str, bytes]:
    """All files of a run but those that may differ between two runs."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith(VOLATILE)}


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / layout.EVENTS).read_text().splitlines()]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset of the fake job, made here in one go."""
    folder = tmp_path_factory.mktemp("reference")
    assert make(fake_job(folder), folder / "run").exit_code == 0
    return dataset(folder / "run")


@pytest.fixture(scope="module")
def ray_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNode]:
    """Two cores. Ray's start takes longer than most runs of this module; those that start it themselves are in others: once a process
    has done that, it finds no workers on a node that it knew before.
    """
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:  # its workers have the environment of this moment
        patch.setenv("RAY_raylet_start_wait_time_s", "120")
        patch.setenv("PROMPTMILL_TEST_NODE", str(folder))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield RayNode(str(made.address), folder)
    with contextlib.suppress(Exception):
        made.shutdown()


@pytest.fixture
def ray1(ray_node: RayNode) -> dict:
    """One actor on that node."""
    return RAY1 | {"address": ray_node.address}


@pytest.fixture
def ray2(ray_node: RayNode) -> dict:
    """Two actors on that node."""
    return RAY2 | {"address": ray_node.address}


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> dict:
    return LOCAL if request.param == "local" else request.getfixturevalue("ray2")


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2])
def test_ray_writes_the_bytes_of_a_local_run(tmp_path: Path, reference: dict[str, bytes], ray1: dict, actors: int) -> None:
    report = make(fake_job(tmp_path, executor=ray1 | {"actors": actors}), tmp_path / "run")
    assert (report.exit_code, report.accepted, report.workers) == (0, 20, actors)
    assert dataset(tmp_path / "run") == reference


def test_model_and_scorers_are_called_from_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever shards share the device, and from the loading on: OpenMP keeps a team of threads for each caller."""
    score = fakes.Brightness.score
    monkeypatch.setattr(fakes.Brightness, "score", lambda *args: (fakes.CALLERS.add(threading.get_ident()), score(*args))[1])
    run_verb.run(fake_job(tmp_path), out=tmp_path / "run", model_loader="tests.fakes:load_observed")
    assert len(fakes.CALLERS) == 1
    assert threading.get_ident() not in fakes.CALLERS


def test_a_finished_run_is_left_alone(tmp_path: Path, reference: dict[str, bytes]) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    before = (tmp_path / "run" / layout.done_file(0)).read_bytes()
    report = make(fake_job(tmp_path), tmp_path / "run")
    assert (report.made_now, report.accepted, report.exit_code) == (0, 20, 0)
    assert (tmp_path / "run" / layout.done_file(0)).read_bytes() == before
    assert dataset(tmp_path / "run") == reference


@pytest.mark.parametrize("lost", ["done/00001.json", "metadata/00001.parquet", "images/00002.parquet"])
def test_a_shard_that_is_not_whole_is_made_again(tmp_path: Path, reference: dict[str, bytes], lost: str) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    report = make(fake_job(tmp_path), tmp_path / "run")
    assert report.made_now == {"done/00001.json": 8, "metadata/00001.parquet": 8, "images/00002.parquet": 4}[lost]
    assert dataset(tmp_path / "run") == reference


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path, reference: dict[str, bytes]) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    (tmp_path / "run" / "images" / ".00009.parquet.x.tmp").write_bytes(b"half a file")
    make(fake_job(tmp_path), tmp_path / "run")
    assert dataset(tmp_path / "run") == reference


def test_what_a_worker_left_that_died_before_its_marker_is_removed(tmp_path: Path, reference: dict[str, bytes]) -> None:
    """Dead letters of draws that come out at the next try."""
    make(fake_job(tmp_path), tmp_path / "run")
    (tmp_path / "run" / layout.done_file(1)).unlink()
    leave(tmp_path / "run", layout.failed_file(1), layout.partial_file(1), layout.suspects_file(1))
    make(fake_job(tmp_path), tmp_path / "run")
    assert dataset(tmp_path / "run") == reference


def test_what_a_lost_worker_puts_aside_after_another_one_has_committed_the_shard_is_removed(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    def on_tally(tally: run_verb.Tally) -> None:
        if tally.committed == 20:
            leave(tmp_path / "run", layout.partial_file(1), layout.suspects_file(1))

    make(fake_job(tmp_path), tmp_path / "run", on_tally=on_tally)
    assert dataset(tmp_path / "run") == reference


def leave(run: Path, *names: str) -> None:
    for name in names:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"{}")


def test_the_report_counts_a_shard_whose_worker_died_before_it_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import local

    def run_silently(*arguments: Any) -> Iterator[ShardResult]:
        yield from [result for result in local.run_local(*arguments) if result.shard_id != 1]

    monkeypatch.setattr(run_verb, "_executor", lambda kind: run_silently)
    report = make(fake_job(tmp_path), tmp_path / "run")
    assert (report.accepted, report.made_now) == (20, 12)


@executors
def test_a_stopped_run_commits_and_resumes_to_the_same_bytes(tmp_path: Path, executor: dict) -> None:
    prompts = {"texts": [f"picture {n} UNTIL {tmp_path / 'stopped'}" for n in range(120)], "draws_per_prompt": 1}
    job = fake_job(tmp_path, prompts=prompts, executor=executor)
    stop = threading.Event()

    def on_tally(tally: run_verb.Tally) -> None:
        if tally.sampled and not stop.is_set():
            stop.set()
            os.kill(os.getpid(), signal.SIGINT)

    report = make(job, tmp_path / "run", on_tally=on_tally)
    assert report.stopped
    assert report.exit_code == 130
    assert report.made_now < 120
    (tmp_path / "stopped").touch()
    report = make(job, tmp_path / "run")
    assert (report.exit_code, report.accepted) == (0, 120)
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "whole")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "whole")
    assert events(tmp_path / "run").count("resume") == 1


def test_appended_prompts_extend_the_run_to_what_a_fresh_one_makes(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    job = {"prompts": {"file": "p.txt", "texts": None, "draws_per_prompt": 2}}
    prompts.write_text("".join(f"picture {n}\n" for n in range(6)))
    make(fake_job(tmp_path, **job), tmp_path / "run")
    kept = (tmp_path / "run" / layout.done_file(0)).read_bytes()
    prompts.write_text("".join(f"picture {n}\n" for n in range(11)))
    report = make(fake_job(tmp_path, **job), tmp_path / "run")
    make(fake_job(tmp_path, **job), tmp_path / "fresh")
    assert report.accepted == 22
    assert report.made_now == 14
    assert (tmp_path / "run" / layout.done_file(0)).read_bytes() == kept
    assert dataset(tmp_path / "run") == dataset(tmp_path / "fresh")


def test_a_changed_job_is_refused_with_both_fingerprints_and_the_difference(tmp_path: Path) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    before = dataset(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"holds job \w{16}, this is job \w{16}: sampling.steps was 1, is 2; set it back") as caught:
        make(fake_job(tmp_path, sampling={"steps": 2}), tmp_path / "run")
    assert RunDir.open(tmp_path / "run").job.fingerprint in str(caught.value)
    assert dataset(tmp_path / "run") == before


def test_who_does_the_work_is_no_part_of_the_job(tmp_path: Path) -> None:
    one, other = fake_job(tmp_path).job(), fake_job(tmp_path, executor={"kind": "ray", "actors": 7, "max_attempts": 9}).job()
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != fake_job(tmp_path, seed=1).job().fingerprint


def test_a_run_of_another_schema_is_not_gone_on_with_but_can_be_read(tmp_path: Path) -> None:
    make(fake_job(tmp_path), tmp_path / "run")
    record = tmp_path / "run" / layout.JOB
    record.write_text(record.read_text().replace(f"schema: '{SCHEMA_VERSION}'", "schema: '1'"))
    with pytest.raises(RunFolderError, match=rf"schema was '1', is '{SCHEMA_VERSION}'"):
        make(fake_job(tmp_path), tmp_path / "run")
    assert len(RunDir.open(tmp_path / "run").markers()) == 3


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is not empty and holds no promptmill run"):
        make(fake_job(tmp_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_bad_prompts_leave_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"fine\nb\xe9te\n")
    with pytest.raises(UserError, match="line 2"):
        make(fake_job(tmp_path, prompts={"file": "p.txt", "texts": None}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@executors
def test_failures_are_told_and_nothing_else_suffers(tmp_path: Path, executor: dict) -> None:
    texts = ["fine", "RAISE", "also fine", "NAN", "BLANK"]
    report = make(fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 2}, executor=executor), tmp_path / "run")
    assert (report.accepted, report.rejected, report.failed, report.exit_code) == (4, 2, 4, 1)
    rows = pq.read_table(tmp_path / "run" / "metadata").to_pylist()
    assert {(row["prompt"], row["status"]) for row in rows} == {
        ("fine", "accepted"),
        ("also fine", "accepted"),
        ("RAISE", "failed"),
        ("NAN", "failed"),
        ("BLANK", "rejected"),
    }


@executors
def test_a_model_that_always_fails_stops_the_job(tmp_path: Path, executor: dict) -> None:
    job = fake_job(tmp_path, prompts={"texts": [f"RAISE {n}" for n in range(40)]}, executor=executor)
    with pytest.raises(UserError, match=r"every draw fails: shard .* RuntimeError: the model does not like this prompt"):
        make(job, tmp_path / "run")
    assert not (tmp_path / "run" / "done").exists()


@pytest.mark.slow
def test_a_worker_that_dies_in_a_shard_is_replaced(tmp_path: Path, ray2: dict) -> None:
    texts = [f"picture {n}" for n in range(20)]
    texts[11] = f"EXIT {tmp_path / 'died'}"
    report = make(fake_job(tmp_path, prompts={"texts": texts}, executor=ray2), tmp_path / "run")
    assert (tmp_path / "died").exists()
    assert (report.exit_code, report.accepted) == (0, 40)
    assert {"worker_lost", "shard_retry"} <= set(events(tmp_path / "run"))
    make(fake_job(tmp_path, prompts={"texts": texts}), tmp_path / "undisturbed")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "undisturbed")


@pytest.mark.slow
def test_kill_9_of_an_actor_in_a_shard_changes_nothing(tmp_path: Path, ray2: dict) -> None:
    out, killed = tmp_path / "run", tmp_path / "killed"
    prompts = {"texts": [f"picture {n}" for n in range(20)] + [f"WAIT {killed}"] + [f"picture {n}" for n in range(21, 40)]}

    def on_tally(tally: run_verb.Tally) -> None:
        begun = killed.with_suffix(".begun")
        if not killed.exists() and begun.exists() and (pid := begun.read_text()):
            os.kill(int(pid), signal.SIGKILL)
            killed.touch()

    report = make(fake_job(tmp_path, prompts=prompts, executor=ray2), out, on_tally=on_tally)
    assert (report.exit_code, report.accepted) == (0, 80)
    assert events(out).count("worker_lost") == 1
    make(fake_job(tmp_path, prompts=prompts), tmp_path / "undisturbed")
    assert dataset(out) == dataset(tmp_path / "undisturbed")


class Held:
    """A job of 6 shards of 10 batches, of which the actor that gets the first shard does nothing before the file ``go`` is there: the other
    one makes the rest.
    """

    ALL_BUT_ONE = 36  # draws of the first shard, without the batch that is held

    def __init__(self, folder: Path, executor: dict) -> None:
        self.out, self.go = folder / "run", folder / "go"
        texts = [f"WAIT {self.go}", *(f"picture {n}" for n in range(1, 240))]
        self.sections = {"prompts": {"texts": texts, "draws_per_prompt": 1}, "output": {"shard_size": 40}}
        self.job = fake_job(folder, **self.sections, executor=executor)

    @property
    def lent(self) -> int:
        """Draws of the first shard that were given to the other actor so far."""
        return sum(event["draws"] for event in self.log if event["event"] == "batches_lent" and event["shard_id"] == 0)

    @property
    def log(self) -> list[dict[str, Any]]:
        file = self.out / layout.EVENTS
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def kill(self, role: str) -> None:
        """Kill the lender (``actor``) or the ``helper`` of the first loan."""
        number = next(event[role] for event in self.log if event["event"] == "batches_lent")
        worker = next(event["worker"] for event in self.log if event["event"] == "worker_ready" and event["actor"] == number)
        os.kill(int(worker.split(":")[1]), signal.SIGKILL)

    def ends_well(self, on_tally: Callable[[run_verb.Tally], None]) -> None:
        """Make all of it, and see that it is as if nobody had disturbed it."""
        report = make(self.job, self.out, on_tally=on_tally)
        assert (report.exit_code, report.accepted) == (0, 240)
        assert self.is_as_if_undisturbed()

    def is_as_if_undisturbed(self) -> bool:
        make(fake_job(self.out.parent, **self.sections), self.out.with_name("undisturbed"))
        return dataset(self.out) == dataset(self.out.with_name("undisturbed"))


@pytest.mark.slow
def test_one_slow_worker_does_not_hold_up_the_end(tmp_path: Path, ray2: dict) -> None:
    """It is held in one batch; the idle worker makes all others of the shard."""
    held = Held(tmp_path, ray2)

    def on_tally(_: run_verb.Tally) -> None:
        if held.lent == held.ALL_BUT_ONE:
            held.go.touch()

    held.ends_well(on_tally)
    assert held.lent == held.ALL_BUT_ONE


@pytest.mark.slow
def test_kill_9_of_an_actor_that_helps_changes_nothing(tmp_path: Path, ray2: dict) -> None:
    held, killed = Held(tmp_path, ray2), []

    def on_tally(_: run_verb.Tally) -> None:
        if held.lent and not killed:
            killed.append(held.kill("helper"))
        if "worker_lost" in {event["event"] for event in held.log}:
            held.go.touch()

    held.ends_well(on_tally)
    assert events(held.out).count("worker_lost") == 1


@pytest.mark.slow
def test_kill_9_of_an_actor_that_is_helped_changes_nothing(tmp_path: Path, ray2: dict) -> None:
    held = Held(tmp_path, ray2)

    def on_tally(_: run_verb.Tally) -> None:
        if held.lent == held.ALL_BUT_ONE and not held.go.exists():
            held.kill("actor")
            held.go.touch()

    held.ends_well(on_tally)
    assert events(held.out).count("worker_lost") == 1


@pytest.mark.slow
def test_a_run_that_is_stopped_while_a_worker_helps_goes_on(tmp_path: Path, ray2: dict) -> None:
    held = Held(tmp_path, ray2)

    def on_tally(_: run_verb.Tally) -> None:
        if held.lent and not held.go.exists():
            os.kill(os.getpid(), signal.SIGINT)
            held.go.touch()

    assert make(held.job, held.out, on_tally=on_tally).exit_code == 130
    assert make(held.job, held.out).exit_code == 0
    assert held.is_as_if_undisturbed()


@pytest.mark.slow
def test_kill_9_of_an_actor_at_any_step_of_a_shard_changes_nothing(tmp_path: Path, ray_node: RayNode, ray1: dict) -> None:
    job = fake_job(tmp_path, executor=ray1 | {"max_attempts": 20})
    report = run_verb.run(job, out=tmp_path / "run", model_loader="tests.fakes:load_mortal")
    assert sorted(file.name for file in ray_node.folder.glob("at *")) == sorted(f"at {step}" for step in DEATHS)
    assert events(tmp_path / "run").count("worker_lost") == len(DEATHS)
    assert (report.exit_code, report.accepted) == (0, 20)
    make(fake_job(tmp_path), tmp_path / "undisturbed")
    assert dataset(tmp_path / "run") == dataset(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_prompt_that_kills_every_worker_is_dead_lettered_and_the_rest_goes_on(tmp_path: Path, ray1: dict) -> None:
    """On one worker, so that the other shard waits there for its turn."""
    texts = [f"picture {n}" for n in range(12)]
    texts[5] = "SEGFAULT"
    job = fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 1}, executor=ray1)
    report = make(job, tmp_path / "run")
    assert (report.exit_code, report.accepted, report.failed, report.abandoned) == (1, 11, 1, 0)
    failed = [row for row in pq.read_table(tmp_path / "run" / "metadata").to_pylist() if row["status"] == "failed"]
    assert [(row["prompt"], row["reason"]) for row in failed] == [("SEGFAULT", "process_died")]
    texts[5] = "RAISE"
    make(fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 1}), tmp_path / "clean")
    assert (tmp_path / "run" / layout.images_file(0)).read_bytes() == (tmp_path / "clean" / layout.images_file(0)).read_bytes()


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_its_prompt_found(tmp_path: Path, ray2: dict) -> None:
    texts = [f"picture {n}" for n in range(6)]
    texts[1] = "HANG"
    executor = ray2 | {"batch_seconds": 2.0}
    job = fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 1}, sampling={"batch_size": 2}, executor=executor)
    report = make(job, tmp_path / "run")
    assert (report.exit_code, report.accepted, report.failed) == (1, 5, 1)
    assert "worker_hung" in events(tmp_path / "run")


def test_an_output_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="is a file; choose another --out"):
        make(fake_job(tmp_path), tmp_path / "file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        make(fake_job(tmp_path), tmp_path / "file" / "run")
