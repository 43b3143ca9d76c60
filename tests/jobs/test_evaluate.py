"""Evaluated against fresh drawings: right images teach nearly what real ones do, wrong ones do not, and the filter is worth its while."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs import evaluate as module
from jobs.cli import cli
from jobs.evaluate import Evaluation, evaluate, to_json
from jobs.real_features import real_features
from jobs.run_dir import RunDir
from pipeline.encode import encode
from pipeline.models.demo import grammar
from pipeline.models.demo.render import render
from pipeline.store import open_store
from schemas import layout
from schemas.errors import ConfigError, QueryError
from schemas.records import Draw, Outcome, Prompt
from tests import runs

SHAPES = ("circle", "star", "cross", "a/b")
DRAWN = {"a/b": "heart"}


def drawing(shape: str, seed: int) -> np.ndarray:
    rng = random.Random(seed)
    scene = grammar.one(DRAWN.get(shape, shape), rng.choice(("red", "blue", "green")), rng.choice(grammar.SIZES), "white")
    return render(scene, seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """320 drawings; each third one has another shape than its label says, and a score that rejects it."""
    config = runs.make_config(draws_per_prompt=20, shard_size=80)

    def outcome(draw: Draw) -> Outcome:
        wrong = draw.seed % 3 == 0
        label = draw.label or ""
        shape = SHAPES[(SHAPES.index(label) + 1) % len(SHAPES)] if wrong else label
        made = encode(drawing(shape, draw.seed), config.output)
        common = replace(runs.make_outcome(replace(draw, prompt_id="p0"), config), draw=draw)
        hashes = {"image_sha256": hashlib.sha256(made.data).hexdigest(), "phash": made.phash}
        return replace(common, image=made.data, scores={"clip": 0.1 if wrong else 0.9}, **hashes)

    def prompts(count: int) -> list[Prompt]:
        return [Prompt(id=f"p{n}", text=f"{SHAPES[n % 4]} {n}", label=SHAPES[n % 4], tags={"kind": "one"}) for n in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_prompts", prompts)
        run = runs.plan_run(tmp_path_factory.mktemp("evaluate") / "run", prompts=16, config=config)
    for shard_id in range(run.plan.num_shards):
        runs.commit(run, shard_id, outcomes=[outcome(draw) for draw in run.read_shard(shard_id).draws])
    return run


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawings of each shape, and one class more."""
    folder = tmp_path_factory.mktemp("real")
    for number, (name, shape) in enumerate(
        (("circle", "circle"), ("star", "star"), ("cross", "cross"), ("a_b-c14cddc0", "a/b"), ("more", "star"))
    ):
        (folder / name).mkdir()
        for index in range(60):
            Image.fromarray(drawing(shape, 10_000 * (number + 1) + index)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def found(run: RunDir, real: Path) -> Evaluation:
    return evaluate(run.store.root, real)


def test_the_filtered_set_teaches_nearly_what_real_images_do_and_more_than_the_unfiltered_one(found: Evaluation) -> None:
    by_name = {row.name: row for row in found.rows}
    assert by_name["real"].accuracy > 0.9
    assert by_name["accepted"].accuracy >= 0.95 * by_name["real"].accuracy
    assert by_name["all, unfiltered"].accuracy < by_name["accepted"].accuracy
    assert {row.images for row in found.rows} == {120}, "all sets are equally large"
    assert by_name["real"].spread is None, "it has no more"
    assert by_name["all, unfiltered"].spread is not None


def test_classes_are_those_of_both_sides(found: Evaluation) -> None:
    assert found.classes == ("a/b", "circle", "cross", "star")
    assert found.left_out == ("more",)
    assert found.tested_on == 120
    assert found.encoder.startswith("demo/sha256:")


def test_it_says_the_same_each_time_and_in_json(run: RunDir, real: Path, found: Evaluation) -> None:
    result = CliRunner().invoke(cli, ["evaluate", run.store.root, "--against", str(real), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == json.loads(to_json(found))


def test_features_of_real_images_are_kept_until_an_image_or_the_model_is_another(
    run: RunDir, real: Path, found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(run.store.list(layout.REAL)) == 2, "the half to learn from and the half for the test"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", lambda files: pytest.fail("it was encoded before"))
        assert evaluate(run.store.root, real) == found
    store, files = open_store(tmp_path / "run"), [tmp_path / "0.png", tmp_path / "1.png"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    made: list[np.ndarray] = []

    def make() -> np.ndarray:
        made.append(np.random.default_rng(len(made)).normal(size=(2, 3)))
        return made[-1]

    def get(version: str, of: list[Path]) -> list[list[float]]:
        return real_features(store, version, of, make).tolist()

    assert get("a", files) == get("a", files) == made[0].tolist()
    assert get("b", files) == made[1].tolist()
    assert get("a", files[::-1]) == made[2].tolist()
    files[0].write_bytes(b"other")
    assert get("a", files) == made[3].tolist()
    for name in store.list(layout.REAL):
        data = bytearray(store.get(name))
        data[data.index(made[3].tobytes()) if made[3].tobytes() in data else 20] ^= 1
        store.put(name, bytes(data))
    assert get("a", files) == get("a", files) == made[4].tolist(), "what is damaged is made again"


def test_the_command_prints_a_table(run: RunDir, real: Path) -> None:
    result = CliRunner().invoke(cli, ["evaluate", run.store.root, "--against", str(real), "--limit", "40"])
    assert result.exit_code == 0, result.output
    assert "left out: more" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["learned", "from", "real", "accepted", "all,", "unfiltered"] in lines
    assert ["images", "40", "40", "40"] in lines


def test_what_cannot_be_compared_is_told(run: RunDir, real: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        evaluate(run.store.root, tmp_path / "none")
    with pytest.raises(ConfigError, match="0 classes in common; two are needed"):
        evaluate(run.store.root, tmp_path)
    with pytest.raises(QueryError, match="no such column"):
        evaluate(run.store.root, real, label="nothing")
    for name in ("circle", "star"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"0\.png: cannot be read as an image"):
        evaluate(run.store.root, tmp_path)
    for name in ("circle", "star"):
        Image.fromarray(drawing(name, 1)).save(tmp_path / name / "0.png")
    with pytest.raises(ConfigError, match="the smallest set has 1 images; more than 5 are needed"):
        evaluate(run.store.root, tmp_path)
