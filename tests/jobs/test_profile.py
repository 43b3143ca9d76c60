"""``run --profile``: small traces of a real model that a trace viewer reads, and the dataset stays what it is."""

import gzip
import json
from pathlib import Path

import pytest

from jobs.cli import main
from pipeline.models import profiled
from pipeline.timeline import MOST_SPANS, Timeline
from schemas import layout
from tests.jobs.conftest import JobFile
from tests.jobs.test_bad_input import refused
from tests.runs import digest_of_folder

MOST_BYTES = 2_000_000


def run(job: JobFile, out: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(job.path), "--out", str(out), *options])
    assert caught.value.code == 0


def events(file: Path) -> list[dict]:
    return json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]


def test_a_worker_leaves_its_stages_and_one_batch_by_operator(job: JobFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiled, "MOST_EVENTS", 300)
    run(job, job.folder / "plain")
    run(job, job.folder / "profiled", "--profile")
    plain, with_traces = digest_of_folder(job.folder / "plain"), digest_of_folder(job.folder / "profiled")
    same = ("plan/", "metadata/", "images/")
    assert {k: v for k, v in plain.items() if k.startswith(same)} == {k: v for k, v in with_traces.items() if k.startswith(same)}
    assert not any(name.startswith(layout.PROFILE) for name in plain)
    ops, stages = sorted((job.folder / "profiled" / layout.PROFILE).iterdir(), key=lambda file: ".ops." not in file.name)
    assert all(file.stat().st_size < MOST_BYTES for file in (ops, stages))
    timed = [event for event in events(ops) if "dur" in event]
    assert len(timed) == 300
    assert any("conv" in event["name"] for event in timed)
    found = events(stages)
    marker = json.loads((job.folder / "profiled" / layout.done_file(0)).read_text())
    assert {"text", "sample", "decode", "score"} <= marker["seconds"].keys()
    assert {"sample", "score", "encode", "write"} <= {event["name"] for event in found}
    assert any(event["args"]["name"].startswith("encode") for event in found if event["ph"] == "M")


def test_the_stages_of_a_long_run_are_the_latest_ones() -> None:
    timeline = Timeline()
    for number in range(MOST_SPANS + 10):
        timeline.add(f"stage {number}", number, 0.5)
    spans = [event for event in json.loads(timeline.to_json())["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == MOST_SPANS
    assert (spans[0]["name"], spans[-1]["ts"]) == ("stage 10", (MOST_SPANS + 9) * 1e6)


def test_a_server_cannot_be_profiled(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    job.write(model={"id": "x", "endpoint": {"url": "http://127.0.0.1:1/v1"}}, sampling=None)
    assert "an endpoint's server cannot be profiled from here" in refused(capsys, "run", job.path, "--profile", "--out", job.out)
