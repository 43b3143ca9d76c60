"""A run from Python: tables as Arrow, pictures with their rows; the example notebook runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs import open_run
from jobs import selection as selecting
from jobs.filter import filter_run
from jobs.opened import OpenRun
from pipeline.encode import encode
from schemas.errors import QueryError, RunFolderError
from tests.conftest import REPOSITORY
from tests.runs import SIZE_PX, finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    return open_run(finished_run(tmp_path_factory.mktemp("open") / "run").store.root)


def test_metadata_is_an_arrow_table_in_the_plans_order(run: OpenRun) -> None:
    table = run.metadata()
    assert table.num_rows == 16
    assert run.metadata("clip_score > 0.5 -- a comment").num_rows == run.metadata("clip_score > 0.5").num_rows < 16
    assert list(zip(table["shard_id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)) == sorted(
        zip(table["shard_id"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)
    )
    assert table.to_pandas()["status"].value_counts()["failed"] == 2


def test_each_picture_comes_with_its_row(run: OpenRun) -> None:
    found = list(run.images("true"))
    assert len(found) == 14, "failed draws have no picture"
    for picture, row in found:
        assert picture.size == (SIZE_PX, SIZE_PX)
        assert encode(np.asarray(picture), run.config.output).sha256 == row["image_sha256"]
        assert row["tags"]["source"] == "made up"


def test_ranges_of_shards_join_to_the_whole(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [row for _, row in run.images("clip_score > (select avg(clip_score) from metadata where not isnan(clip_score))")]
    for size in (1, 5, 8):
        monkeypatch.setattr(selecting, "ROWS_AT_A_TIME", size)
        parts = [row for _, row in run.images("clip_score > (select avg(clip_score) from metadata where not isnan(clip_score))")]
        assert str(parts) == str(whole)
    assert len(whole) > 2


def test_verdicts_that_change_while_it_reads_are_told(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    images = open_run(run.store.root).images()
    next(images)
    filter_run(run.store.root, ['filter.rules=[{"score": "clip", "min": 0.7}]'])
    with pytest.raises(RunFolderError, match="was judged anew meanwhile; run the same command again"):
        list(images)


def test_wrong_conditions_and_folders_are_told(run: OpenRun, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="nothing"):
        run.metadata("nothing = 1")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        open_run(tmp_path)


def test_the_example_notebook_runs(run: OpenRun) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "open_run.ipynb").read_text())
    assert notebook["nbformat"] == 4
    script = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    command, environment = [sys.executable, "-c", script], os.environ | {"RUN": str(run.path)}
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment).stdout
    assert "accepted    10" in said
    prompts = set(run.metadata("status = 'accepted'")["prompt"].to_pylist())
    assert f"[({len(prompts)}, 10)]" in said
    assert f"({SIZE_PX}, {SIZE_PX}) RGB" in said
