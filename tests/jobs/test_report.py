"""The report says what the tables say, in one file that runs no script, whatever prompts and labels hold."""

import html
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli import cli
from jobs.embeddings import Encoder, file_of, write_encoder, write_features
from jobs.filter import filter_run
from jobs.query import query
from jobs.report import facts as module
from jobs.report import report
from jobs.report.facts import BINS, IMAGES_PER_GALLERY, gather
from jobs.run_dir import RunDir
from schemas import layout
from schemas.errors import UserError
from schemas.records import Prompt
from tests import runs
from tests.browser import browsing
from tests.runs import commit, finished_run, make_outcome, plan_run

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "</style><style>body{display:none}",
    "&lt;b&gt; &amp; 'quotes'",
    "\u202etxt.exe 🌟\nsecond line",
    "javascript:alert(1)",
)
INERT = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "b", "i", "span", "svg", "rect", "line"}
INERT |= {"text", "figure", "img", "figcaption", "table", "tr", "th", "td", "details", "summary", "pre"}


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished_run(tmp_path_factory.mktemp("report") / "run", prompts=24)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    def prompts(count: int) -> Sequence[Prompt]:
        return [
            Prompt(id=f"p{number}", text=HOSTILE[number % 6], label=HOSTILE[number % 6], tags={HOSTILE[0]: HOSTILE[number % 6]})
            for number in range(count)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_prompts", prompts)
        return finished_run(tmp_path_factory.mktemp("hostile") / "run", prompts=12)


def test_the_figures_are_those_of_the_tables(run: RunDir, tmp_path: Path) -> None:
    facts = gather(run)
    counts = {row["status"]: row["n"] for row in query([run.store.root], "select status, count(*) n from metadata group by 1").to_pylist()}
    assert (facts.status.accepted, facts.status.rejected, facts.status.failed) == tuple(map(counts.get, ("accepted", "rejected", "failed")))
    scores = query([run.store.root], "select clip_score s, status from metadata where not isnan(clip_score)").to_pylist()
    found = facts.histograms[0]
    for kept, bins in ((True, found.kept), (False, found.rejected)):
        values = [row["s"] for row in scores if (row["status"] == "accepted") == kept]
        assert list(bins) == np.histogram(values, bins=BINS, range=(found.low, found.high))[0].tolist()
    assert (found.unknown, found.limits) == (2, [0.3])
    classes = query([run.store.root], "select label, count(*) n from metadata where status != 'failed' group by 1 order by 1").to_pylist()
    assert [(share.value, share.images) for share in facts.shares["label"]] == [(row["label"], row["n"]) for row in classes]
    assert sum(share.kept for share in facts.shares["tags.number"]) == counts["accepted"]
    assert "steps" not in facts.shares, "a single value tells nothing"
    assert [(one.reason, one.draws) for one in facts.failures] == [("out_of_memory", 2)]
    report(run.store.root, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert f"{counts['accepted'] / (counts['accepted'] + counts['rejected']):.1%}of the images kept" in text
    assert "out_of_memory: 3 GB" in text


def test_galleries_are_best_borderline_worst_and_rejected(run: RunDir) -> None:
    best, borderline, worst, rejected = gather(run).galleries
    ordered = query([run.store.root], "select clip_score s from metadata where isfinite(clip_score) order by s").to_pylist()
    scores = [row["s"] for row in ordered]
    assert [picture.score for picture in best.pictures] == scores[::-1][:IMAGES_PER_GALLERY]
    assert [picture.score for picture in worst.pictures] == scores[:IMAGES_PER_GALLERY]
    assert {picture.score for picture in borderline.pictures} == set(
        sorted(scores, key=lambda score: abs(score - 0.3))[:IMAGES_PER_GALLERY]
    )
    assert {picture.row["status"] for picture in rejected.pictures} == {"rejected"}
    assert any(picture.score is None for picture in rejected.pictures), "an image that the scorer cannot tell about is shown too"


def test_verdicts_and_rules_of_a_later_filter_are_shown(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    filter_run(run.store.root, ['filter.rules=[{"score": "clip", "min": 0.7}]'])
    facts = gather(run)
    assert facts.histograms[0].limits == [0.7]
    assert min(picture.score for picture in facts.galleries[0].pictures if picture.score is not None) >= 0.7
    assert '"min": 0.7' in facts.rules


def test_of_many_small_files_the_same_is_said(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    by_queries = gather(run)
    monkeypatch.setattr(module, "MANY_FILES", 0)
    monkeypatch.setattr(module, "query", lambda *_: pytest.fail("the rows were to be read once"))
    by_rows = gather(run)
    shown = [[picture.webp for gallery in found.galleries for picture in gallery.pictures] for found in (by_queries, by_rows)]
    assert shown[0] == shown[1]
    assert replace(by_rows, galleries=()) == replace(by_queries, galleries=())


def test_nothing_of_a_prompt_or_label_becomes_markup(hostile: RunDir, tmp_path: Path) -> None:
    report(hostile.store.root, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert {tag for tag, _ in page.elements} <= INERT
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "href" for name in attributes)
        assert (attributes.get("src") or "data:image/webp;base64,").startswith("data:image/webp;base64,")
    for prompt in HOSTILE[:4]:
        assert prompt in page.text, "shown as it is, as text"
    assert "\u202e" not in (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html.unescape((tmp_path / "report.html").read_text())


def test_the_page_needs_nothing_from_elsewhere(run: RunDir, tmp_path: Path) -> None:
    report(run.store.root, tmp_path / "report.html")
    assert not re.search(r"https?://|url\(|@import|<link", (tmp_path / "report.html").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_run_without_images_or_scores_has_a_report(tmp_path: Path) -> None:
    report(plan_run(tmp_path / "planned").store.root, tmp_path / "planned.html")
    assert "0of 16 draws made" in Page(tmp_path / "planned.html").text
    finished_run(tmp_path / "unscored", config=runs.make_config(scorers=()))
    report(tmp_path / "unscored", tmp_path / "unscored.html")
    assert "14accepted" in Page(tmp_path / "unscored.html").text


def test_a_damaged_shard_is_told_and_an_older_report_stays(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    report(run.store.root, tmp_path / "report.html")
    before = (tmp_path / "report.html").read_bytes()
    Path(run.store.root, layout.images_file(0)).write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"images/00000\.parquet.*promptmill verify"):
        report(run.store.root, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == before


def test_the_command_names_the_page(run: RunDir, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["report", run.store.root, "-o", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{tmp_path}/report.html: ")


def test_images_that_look_alike_stand_together_with_how_near_they_are(tmp_path: Path) -> None:
    run = plan_run(tmp_path / "run")
    told = {1: "00000000000000ff", 2: "00000000000000fe", 5: "00000000000000ff"}
    for shard_id in range(4):
        outcomes = [make_outcome(draw, run.job.config) for draw in run.read_shard(shard_id).draws]
        commit(run, shard_id, outcomes=[replace(one, phash=told.get(int(one.draw.prompt_id[1:]), one.phash)) for one in outcomes])
    made = query([run.store.root], "select *, clip_score as score from metadata where phash is not null and status != 'failed'").to_pylist()
    near = [row for row in made if row["prompt_id"] in ("p1", "p2", "p5")]
    best = min(near, key=lambda row: (row["status"], -row["score"] if row["score"] == row["score"] else 2, row["sample_id"]))
    (by_hash,) = gather(run).alike
    assert by_hash.found.measure == "hashes that differ in at most 4 of 64 bits"
    first, pictures = by_hash.groups[0]
    assert (first.size, set(first.sample_ids)) == (len(near), {row["sample_id"] for row in near})
    assert pictures[0].row["sample_id"] == first.sample_ids[0] == best["sample_id"]
    bits = {row["sample_id"]: (int(row["phash"], 16) ^ int(best["phash"], 16)).bit_count() for row in near}
    assert first.how == {
        name: "the best of them" if name == best["sample_id"] else f"{count} of 64 bits differ" if count else "the same hash"
        for name, count in bits.items()
    }
    report(run.store.root, tmp_path / "report.html")
    assert f"promptmill show {run.store.root} alike.png --where" in Page(tmp_path / "report.html").text
    filter_run(run.store.root, ['filter.rules=[{"phash_distance": 0, "within": "prompt"}]'])
    write_encoder(run.store, Encoder("v", 2))
    for marker in run.markers():
        ids = [row["sample_id"] for row in made if row["shard_id"] == marker.shard_id]
        angles = [{"p1": 0.0, "p2": 0.01}.get(row["prompt_id"], 0.5 + 0.3 * at) for at, row in enumerate(made) if row["sample_id"] in ids]
        write_features(run.store, file_of(marker, "v"), ids, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    report(run.store.root, tmp_path / "report.html")
    if shutil.which("chromium"):
        with browsing(tmp_path) as browser:
            for width, dark in ((400, True), (1600, False)):
                browser.show((tmp_path / "report.html").as_uri(), width, dark=dark)
                assert browser.ask("document.documentElement.scrollWidth") <= width
                boxes = "[...document.querySelectorAll('.alike figure')].map(one => one.getBoundingClientRect().width)"
                assert min(browser.ask(boxes)) > 100, "pictures are large enough to compare"
    by_hash, by_features = gather(run).alike
    assert by_hash.found.measure == "equal hashes, within each prompt"
    assert {group.size for group, _ in by_hash.groups} == {2}
    assert by_features.found.measure == "CLIP features with a cosine of at least 0.98"
    assert by_features.groups[0][0].size == 4
    assert "cosine 1.000" in by_features.groups[0][0].how.values()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [500, 1600])  # headless Chromium has no narrower window
def test_a_browser_shows_it_and_runs_nothing(hostile: RunDir, tmp_path: Path, width: int) -> None:
    report(hostile.store.root, tmp_path / "report.html")

    def chromium(*options: str) -> str:
        fixed = [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/browser",
            f"--window-size={width},1200",
        ]
        page = (tmp_path / "report.html").as_uri()
        return subprocess.run([*fixed, *options, page], capture_output=True, text=True, check=True, timeout=60).stdout

    assert "<title>run</title>" in chromium("--dump-dom"), "no script changed the title"
    chromium(f"--screenshot={tmp_path}/page.png")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape[:2] == (1200, width)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200, "pictures are drawn"
