"""Ray's Prometheus endpoint carries what a run has done."""

import re
import time
import urllib.request
from pathlib import Path

import pytest

from jobs.run import Tally
from tests.fakes import fake_job
from tests.jobs.test_run import RAY2, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LINE = re.compile(r"^ray_promptmill_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
TAG = re.compile(r'(\w+)="([^"]*)"')


def scrape(run: Path) -> dict[tuple[str, str], float]:
    """What the endpoint of this machine's node says of a run, by metric and tag."""
    import ray

    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in LINE.findall(text):
        tags = dict(TAG.findall(labels))
        if tags["run"] == str(run):
            found[name, tags.get("verdict") or tags.get("stage") or tags.get("kind") or ""] = float(value)
    return found


def test_draws_seconds_mishaps_and_workers_are_scraped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    texts = ["fine", "RAISE", "NAN", "BLANK", *(f"picture {n}" for n in range(8)), f"EXIT {tmp_path / 'died'}"]
    found: dict[tuple[str, str], float] = {}

    def counted() -> float:
        return sum(value for (name, _), value in found.items() if name == "draws_total")

    def on_tally(tally: Tally) -> None:
        deadline = time.monotonic() + 60
        while tally.committed == 26 and counted() < 26 and time.monotonic() < deadline:
            time.sleep(0.5)
            found.update(scrape(tmp_path / "run"))

    report = make(fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 2}, executor=RAY2), tmp_path / "run", on_tally=on_tally)
    assert (report.accepted, report.rejected, report.failed) == (20, 2, 4)
    assert {key: n for key, n in found.items() if key[0] == "draws_total"} == {
        ("draws_total", "accepted"): 20.0,
        ("draws_total", "rejected"): 2.0,
        ("draws_total", "failed"): 4.0,
    }
    assert found["mishaps_total", "worker_lost"] == 1.0
    assert found["mishaps_total", "shard_retry"] >= 1.0
    assert found["stage_seconds_total", "sample"] == pytest.approx(report.stages["sample"], abs=0.02)
    assert found["workers", ""] in (1.0, 2.0)
