"""A batch size that the run chooses is chosen once."""

from pathlib import Path

import pytest

from jobs import run as run_verb
from jobs.batch_size import _trial
from jobs.plan import summarize
from jobs.run_dir import RunDir
from jobs.tables import plan_table
from pipeline.batch_size import ON_CPU, choose
from pipeline.worker import WorkOrder
from schemas.config import ExecutorConfig
from schemas.errors import RunFolderError
from tests.fakes import CARD, LOADER, fake_job
from tests.runs import digest_of_folder

AUTO = {"batch_size": "auto"}


def run(out: Path, said: list[str], **sections: object) -> run_verb.RunReport:
    return run_verb.run(fake_job(out.parent, **sections), out=out, model_loader=LOADER, on_message=said.append)


def images(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digest_of_folder(folder).items() if name.startswith(("images", "metadata", "plan"))}


def test_the_choice_is_kept_in_the_run_and_makes_the_same_dataset_as_the_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said: list[str] = []
    assert run(tmp_path / "auto", said, sampling=AUTO).accepted == 20
    assert said[0] == f"sampling.batch_size: {ON_CPU}, chosen for this job and this kind of device"
    assert RunDir.open(tmp_path / "auto").job.config.sampling.batch_size == ON_CPU
    run(tmp_path / "number", said, sampling={"batch_size": ON_CPU})
    assert images(tmp_path / "auto") == images(tmp_path / "number")


def test_a_run_that_goes_on_does_not_choose_again(tmp_path: Path) -> None:
    said: list[str] = []
    run(tmp_path / "run", said, sampling={"batch_size": 3})
    report = run(tmp_path / "run", said, sampling=AUTO)
    assert (report.made_now, report.accepted) == (0, 20)
    assert not any("chosen" in line for line in said)
    with pytest.raises(RunFolderError, match=r"sampling.batch_size was 3, is 4"):
        run(tmp_path / "run", said, sampling={"batch_size": 4})


def test_a_plan_does_not_guess(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    found = summarize(fake_job(tmp_path, sampling=AUTO))
    assert (found.num_draws, found.num_shards, found.num_batches, found.padded_draws) == (20, 3, None, None)
    Console(width=120).print(plan_table(found))
    assert "3, in batches of a size that the run chooses" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_on_a_cluster_the_choice_is_made_where_the_actors_are(tmp_path: Path) -> None:
    from jobs.ray_pool import call_on_ray

    job = fake_job(tmp_path, sampling=AUTO)
    order = WorkOrder(root=str(tmp_path), config=job.config.model_dump(mode="json"), model=CARD, scorers=job.scorers, model_loader=LOADER)
    assert call_on_ray(ExecutorConfig(gpus_per_actor=0), 1, choose, order, _trial(job)) == ON_CPU
