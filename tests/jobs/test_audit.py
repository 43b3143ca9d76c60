"""The audit's shares, diversity and thresholds are those that one counts by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jobs.audit import audit, to_json
from jobs.calibrate import Calibration, Point, calibrate
from jobs.cli import cli
from jobs.embeddings import Encoder, file_of, write_encoder, write_features
from jobs.filter import filter_run
from jobs.query import query
from jobs.report.facts import gather
from jobs.run_dir import RunDir
from pipeline.metrics import vendi_score
from schemas.config import JobConfig
from schemas.errors import ConfigError
from tests.runs import finished_run, make_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = finished_run(tmp_path_factory.mktemp("audit") / "run", prompts=12)
    filter_run(run.store.root, ['filter.rules=[{"score": "clip", "min": 0.4}]'])
    return run


def rows(run: RunDir, sql: str) -> list[dict]:
    return query([run.store.root], sql).to_pylist()


def test_shares_are_counted_by_label_and_tag_without_failed_draws(run: RunDir) -> None:
    found = {(group.by, group.value): (group.images, group.kept) for group in audit(run.store.root).groups}
    for key, column in (("label", "label"), ("tags.number", "tags['number']")):
        counts = f"select {column} v, count(*)::int n, count(*) filter (status = 'accepted')::int k"
        sql = f"{counts} from metadata where status != 'failed' group by 1"
        expected = {(key, row["v"]): (row["n"], row["k"]) for row in rows(run, sql)}
        assert {each: counts for each, counts in found.items() if each[0] == key} == expected
    assert found["run", ""][0] == 22
    assert not any(by in ("model", "steps", "tags.source") for by, _ in found), "a single value tells nothing"


def test_each_setting_of_a_sweep_is_a_group(tmp_path: Path) -> None:
    raw = make_config().model_dump()
    raw["model"]["controlnet"] = {"id": "imaginary"}
    raw["sampling"] |= {"mode": "control", "sweep": {"control_scale": [0.5, 1.0]}}
    run = finished_run(tmp_path / "run", prompts=4, config=JobConfig.model_validate(raw))
    groups = [(group.value, group.images) for group in audit(run.store.root).groups if group.by == "control_scale"]
    assert groups == [("0.5", 8), ("1.0", 8)]
    assert {share.value for share in gather(run).shares["control_scale"]} == {"0.5", "1.0"}


def test_diversity_is_the_mean_over_all_pairs(run: RunDir) -> None:
    kept = [int(row["phash"], 16) for row in rows(run, "select phash from metadata where status = 'accepted'")]
    pairs = [(one ^ other).bit_count() / 64 for one, other in itertools.combinations(kept, 2)]
    assert audit(run.store.root).groups[0].differing_bits_kept == pytest.approx(np.mean(pairs))


def test_with_features_diversity_is_distance_and_vendi_score_by_class_too(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert audit(run.store.root).groups[0].vendi is None
    rng, told = np.random.default_rng(4), {}
    for marker in run.markers():
        made = f"select sample_id from images join metadata using (sample_id) where shard_id = {marker.shard_id}"
        ids = [row["sample_id"] for row in rows(run, made)]
        features = rng.normal(size=(len(ids), 3)).astype(np.float16)
        told |= dict(zip(ids, features, strict=True))
        write_features(run.store, file_of(marker, "v"), ids, features)
    write_encoder(run.store, Encoder("v", 3))
    whole, first = audit(run.store.root).groups[:2]
    for images, vendi, distance in (("!= 'failed'", first.vendi, first.distance), ("= 'accepted'", first.vendi_kept, first.distance_kept)):
        of_label = rows(run, f"select sample_id from metadata where label = '{first.value}' and status {images}")
        features = np.stack([told[row["sample_id"]] for row in of_label])
        assert vendi == pytest.approx(vendi_score(features))
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in itertools.combinations(features.astype(float), 2)]
        assert distance == pytest.approx(1 - np.mean(cosines), abs=1e-4)
    assert first.vendi_kept != first.vendi
    kept = [row["sample_id"] for row in rows(run, "select sample_id from metadata where status = 'accepted'")]
    assert whole.vendi_kept == pytest.approx(vendi_score(np.stack([told[sample_id] for sample_id in kept])))
    assert "Vendi score" in CliRunner().invoke(cli, ["audit", run.store.root]).output


def test_distributions_are_of_all_and_of_kept_images(run: RunDir) -> None:
    everything, kept = audit(run.store.root).scores
    values = [row["clip_score"] for row in rows(run, "select clip_score from metadata where not isnan(clip_score)")]
    assert (everything.images, everything.quantiles[3]) == (20, pytest.approx(np.median(values), abs=1e-5))
    assert kept.quantiles[0] >= 0.4
    assert json.loads(to_json(audit(run.store.root)))["groups"][0]["by"] == "run"


def labels(run: RunDir, path: Path, limit: float) -> Path:
    told = rows(run, "select sample_id, clip_score from metadata where not isnan(clip_score)")
    path.write_text("sample_id,good\n" + "".join(f"{row['sample_id']},{int(row['clip_score'] >= limit)}\n" for row in told))
    return path


def test_a_clean_score_is_calibrated_to_its_true_limit(run: RunDir, tmp_path: Path) -> None:
    found = calibrate(run.store.root, labels(run, tmp_path / "labels.csv", 0.5))
    best = found.threshold_for(1.0)
    assert best is not None
    lowest = rows(run, "select min(clip_score) s from metadata where clip_score >= 0.5")[0]["s"]
    assert (best.threshold, best.precision, best.recall) == (lowest, 1, 1)
    assert found.points[-1].kept == found.images == 20
    assert found.points[-1].recall == 1


def test_precision_and_recall_are_counted() -> None:
    from jobs.calibrate import _points

    points = _points([(0.9, True), (0.8, False), (0.8, True), (0.5, True), (0.1, False)])
    assert points == [
        Point(threshold=0.9, kept=1, precision=1, recall=1 / 3),
        Point(threshold=0.8, kept=3, precision=2 / 3, recall=2 / 3),
        Point(threshold=0.5, kept=4, precision=3 / 4, recall=1),
        Point(threshold=0.1, kept=5, precision=3 / 5, recall=1),
    ]
    found = Calibration(score="clip", images=5, points=tuple(points))
    assert [found.threshold_for(wanted) for wanted in (0.6, 0.7, 0.9)] == [points[2], points[2], points[0]]
    assert Calibration(score="clip", images=5, points=tuple(points[1:])).threshold_for(0.9) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,good\n1,1\n", "must be sample_id and good; found id, good"),
        ("", "found nothing"),
        ("sample_id,good\nx,maybe\n", ":2: good is 'maybe'; write 1 or 0"),
        ("sample_id,good\nx\n", "good is None"),
        ("sample_id,good\nx,1\nx,0\n", ":3: 'x' is labelled good and not good"),
        ("sample_id,good\nx,1\n", "1 of 1 sample ids are no images of the run, the first is 'x'"),
    ],
)
def test_labels_that_are_wrong_are_told_in_one_line(run: RunDir, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        calibrate(run.store.root, tmp_path / "labels.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        calibrate(run.store.root, tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="there is no such scorer; scorers are: clip"):
        calibrate(run.store.root, tmp_path / "labels.csv", score="x")


def test_the_commands_print_tables_and_json(run: RunDir, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        result = CliRunner().invoke(cli, ["audit", run.store.root, *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "class1" in said()
    assert json.loads(said("--json"))["scores"][0]["of"] == "all"
    csv = labels(run, tmp_path / "labels.csv", 0.5)
    assert "has a precision of 100.0% at a recall of 100.0%, over 20 labelled images" in said("--labels", csv, "--precision", 1)
    assert json.loads(said("--labels", csv, "--json"))["score"] == "clip"
