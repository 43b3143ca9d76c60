"""Features of images are kept beside the run, found only where they fit, and tell what looks alike; no image is made."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from jobs import embed as module
from jobs.cli import cli
from jobs.embed import embed
from jobs.embeddings import read_features
from jobs.encoder import load_encoder
from jobs.filter import filter_run
from jobs.query import query
from jobs.run_dir import RunDir
from pipeline.near_duplicates import near_by_cosine
from schemas import layout
from schemas.errors import ConfigError, ModelError, RunFolderError
from tests.runs import digest_of_folder, finished_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return finished_run(tmp_path / "run")


def features(run: RunDir) -> dict[str, np.ndarray]:
    return {row["sample_id"]: np.array(row["embedding"]) for row in query([run.store.root], "from embeddings").to_pylist()}


def test_features_are_those_of_the_encoder_and_the_run_stays_as_it_is(run: RunDir) -> None:
    before = {name: digest for name, digest in digest_of_folder(Path(run.store.root)).items() if name != layout.EVENTS}
    done = embed(run.store.root, clip="demo")
    assert (done.images, done.shards, done.before) == (14, 4, 0)
    found = features(run)
    images = query([run.store.root], "select sample_id, image.bytes as data from images").to_pylist()
    assert found.keys() == {row["sample_id"] for row in images}
    encoder = load_encoder(run, "demo")
    for row in images:
        [expected] = encoder.images([module._pixels(row["data"])]).numpy()
        assert found[row["sample_id"]] == pytest.approx(expected, abs=2e-3)
    after = digest_of_folder(Path(run.store.root))
    assert {name: digest for name, digest in after.items() if name.split("/")[0] != layout.EMBEDDINGS and name != layout.EVENTS} == before
    joined = "select count(*)::int n from metadata join embeddings using (sample_id) where status = 'accepted'"
    assert query([run.store.root], joined).to_pylist()[0]["n"] > 0


def test_it_goes_on_where_it_stopped_and_only_then_counts(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = module.write_features, []

    def die_at_the_third(*arguments: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]
        written.append(arguments)

    monkeypatch.setattr(module, "write_features", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        embed(run.store.root, clip="demo")
    assert features(run) == {}
    monkeypatch.undo()
    done = embed(run.store.root, clip="demo")
    assert (done.shards, done.before) == (2, 2)
    assert len(features(run)) == 14
    assert embed(run.store.root, clip="demo").shards == 0


def test_features_of_images_that_were_made_again_are_not_found(run: RunDir) -> None:
    embed(run.store.root, clip="demo")
    other = run.store.get(layout.done_file(1)).replace(run.markers()[1].images_sha256.encode(), b"0" * 64)
    run.store.put(layout.done_file(1), other)
    assert len(features(run)) < 14
    assert embed(run.store.root, clip="demo").shards == 1
    assert len(features(run)) == 14
    assert len(run.store.list(layout.EMBEDDINGS)) == 5, "what fits nothing is gone"


def test_images_with_like_features_are_near_duplicates(run: RunDir) -> None:
    embed(run.store.root, clip="demo")
    found = features(run)
    vectors = {name: vector / np.linalg.norm(vector) for name, vector in found.items()}
    cosines = sorted(float(vectors[a] @ vectors[b]) for a in vectors for b in vectors if a < b)
    threshold = cosines[len(cosines) // 2]
    change = filter_run(run.store.root, [f"filter.rules=[{{embedding_cosine: {threshold}, score: clip}}]"])
    assert change.after["rejected", "near_duplicate"] > 0
    rows = query([run.store.root], "select sample_id, status, clip_score from metadata where status != 'failed'").to_pylist()
    kept = [row for row in rows if row["status"] == "accepted"]
    assert max(float(vectors[a["sample_id"]] @ vectors[b["sample_id"]]) for a in kept for b in kept if a != b) < threshold
    for row in rows:
        if row["status"] == "rejected":
            better = [one for one in kept if vectors[one["sample_id"]] @ vectors[row["sample_id"]] >= threshold - 1e-9]
            assert any(not one["clip_score"] < row["clip_score"] for one in better), "a better one that looks alike is kept"


def test_likeness_is_that_of_a_loop_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    embedding = rng.normal(size=(90, 4)).astype(np.float16)
    embedding[::7] = 0
    groups, order = rng.integers(0, 3, 90), rng.permutation(90)[:80]
    unit = embedding.astype(np.float64) / np.maximum(np.linalg.norm(embedding.astype(np.float64), axis=1, keepdims=True), 1e-9)
    kept: list[int] = []
    for row in order:
        if not any(groups[row] == groups[better] and unit[row] @ unit[better] >= 0.8 for better in kept):
            kept.append(int(row))
    for block in (5, 1024):
        monkeypatch.setattr("pipeline.near_duplicates._BLOCK", block)
        drop = near_by_cosine(embedding, groups, order, 0.8)
        assert sorted(np.flatnonzero(~drop[order])) == sorted(np.flatnonzero(np.isin(order, kept)))
        assert not drop[np.setdiff1d(np.arange(90), order)].any()


def test_what_cannot_be_is_told(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run 'promptmill embed .*' first"):
        filter_run(run.store.root, ["filter.rules=[{embedding_cosine: 0.9}]"])
    with pytest.raises(ModelError, match="nothing"):
        embed(run.store.root, clip="nothing/at-all")
    embed(run.store.root, clip="demo")
    name = next(name for name in run.store.list(layout.EMBEDDINGS) if name != layout.EMBEDDINGS_INDEX)
    run.store.put(name, run.store.get(name)[:-5])
    with pytest.raises(RunFolderError, match=r"cannot be read .*run 'promptmill embed' again"):
        read_features(run, run.markers(), ["x"])


def test_the_command_says_what_it_did(run: RunDir) -> None:
    result = CliRunner().invoke(cli, ["embed", run.store.root, "--clip", "demo"])
    assert result.exit_code == 0, result.output
    assert "14 images of 4 shards; 0 shards had their features already" in result.output
