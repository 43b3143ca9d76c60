"""``promptmill plan`` counts what a job would make."""

from pathlib import Path

import pytest
from rich.console import Console

from jobs.plan import summarize
from jobs.prepare import prepare
from jobs.tables import plan_table
from tests.fakes import fake_job
from tests.jobs.conftest import JobFile


def test_prompts_draws_shards_and_repeated_texts_are_counted(tmp_path: Path) -> None:
    texts = [f"picture {n % 7}" for n in range(10)]
    found = summarize(fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 2}))
    assert (found.num_prompts, found.num_draws, found.num_shards, found.repeated_prompts) == (10, 20, 3, 3)
    assert (found.num_batches, found.padded_draws, found.examples) == (5, 0, ("picture 0", "picture 1", "picture 2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("draws", "share"), [(3, 1 / 4), (4, 0)])
def test_shards_that_fill_no_batch_are_told(tmp_path: Path, capsys: pytest.CaptureFixture, draws: int, share: float) -> None:
    """A shard of 8 holds two prompts of three draws each, and batches are of 4."""
    found = summarize(fake_job(tmp_path, prompts={"draws_per_prompt": draws}))
    assert found.wasted == share
    Console(width=120).print(plan_table(found))
    told = capsys.readouterr().out
    assert ("25% of the sampling fills up short batches; a larger output.shard_size leaves fewer of them" in told) == (draws == 3)


def test_a_path_of_the_configuration_may_begin_at_the_home_folder(job: JobFile, monkeypatch: pytest.MonkeyPatch) -> None:
    home = job.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (job.folder / "prompts.txt").rename(home / "prompts.txt")
    prepared = prepare(job.write(prompts={"file": "~/prompts.txt"}, output={"dir": "~/run"}))
    assert len(list(prepared.open_prompts())) == 5
    assert prepared.out == str(home / "run")
    (home / "prompts.txt").rename(job.folder / "~prompts.txt")
    assert len(list(prepare(job.write(prompts={"file": "~prompts.txt"})).open_prompts())) == 5
