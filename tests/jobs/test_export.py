"""Exports read back by the libraries that they are for, pixel for pixel; hostile text, damage and existing targets."""

import errno
import gc
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from jobs.cli import cli
from jobs.export import export
from jobs.export.card import cell
from jobs.export.paths import folder_name
from jobs.export.place import HIDDEN, new_folder
from jobs.export.splits import Splits
from jobs.filter import filter_run
from jobs.query import query
from jobs.run_dir import RunDir
from schemas import layout
from schemas.errors import PromptmillError, QueryError, RunFolderError
from schemas.records import Prompt
from tests import runs
from tests.conftest import REPOSITORY
from tests.runs import digest_of_folder, finished_run

FORMATS = ["imagefolder", "webdataset", "hf", "parquet", "coco"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished_run(tmp_path_factory.mktemp("export") / "run", prompts=24)


def chosen(run: RunDir, where: str = "status = 'accepted'") -> dict[str, dict[str, Any]]:
    """Rows with the bytes of their images, straight from the tables."""
    sql = f"select m.*, i.image.bytes as bytes from metadata m join images i using (sample_id) where {where}"
    return {row["sample_id"]: row for row in query([run.store.root], sql).to_pylist()}


def pixels(data: bytes | Image.Image) -> np.ndarray:
    return np.asarray(data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data)))


def load(folder: Path, cache: Path) -> Any:
    """What `datasets` makes of a folder."""
    import datasets

    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_datasets_reads_hf_with_splits_features_and_equal_pixels(run: RunDir, tmp_path: Path) -> None:
    export(run.store.root, tmp_path / "out", form="hf", split="train=.7,val=.3", shard_bytes=2_000)
    loaded = load(tmp_path / "out", tmp_path / "cache")
    rows = chosen(run)
    assert set(loaded) == {"train", "val"}
    assert len(list((tmp_path / "out" / "data").glob("train-*"))) > 2, "files of about shard_bytes"
    found = [row for split in loaded.values() for row in split]
    assert {row["sample_id"] for row in found} == set(rows)
    assert len(found) == len(rows)
    assert loaded["train"].features["label"].names == ["class0", "class1"]
    for row in found:
        expected = rows[row["sample_id"]]
        assert np.array_equal(pixels(row["image"]), pixels(expected["bytes"]))
        assert (row["prompt"], row["seed"], row["tags.number"]) == (expected["prompt"], expected["seed"], dict(expected["tags"])["number"])
        assert f"class{row['label']}" == expected["label"]
    assert not {row["prompt"] for row in loaded["train"]} & {row["prompt"] for row in loaded["val"]}, "no prompt is in two splits"


def test_torchvision_and_datasets_read_imagefolder(run: RunDir, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    export(run.store.root, tmp_path / "out", form="imagefolder")
    rows = chosen(run)
    folder = ImageFolder(str(tmp_path / "out" / "train"))
    assert folder.classes == ["class0", "class1"]
    for path, number in folder.samples:
        expected = rows[Path(path).stem]
        assert Path(path).read_bytes() == expected["bytes"]
        assert folder.classes[number] == expected["label"]
    loaded = load(tmp_path / "out", tmp_path / "cache")["train"]
    assert {row["sample_id"]: row["prompt"] for row in loaded} == {key: row["prompt"] for key, row in rows.items()}
    assert all(np.array_equal(pixels(row["image"]), pixels(rows[row["sample_id"]]["bytes"])) for row in loaded)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")  # webdataset leaves tars open
def test_webdataset_reads_the_tars(run: RunDir, tmp_path: Path) -> None:
    from webdataset.compat import WebDataset

    export(run.store.root, tmp_path / "out", form="webdataset", shard_bytes=30_000)
    tars = sorted(map(str, (tmp_path / "out").glob("train-*.tar")))
    assert len(tars) > 1
    loaded: Any = WebDataset(tars, shardshuffle=False).decode("pil")
    found = list(loaded)
    rows, classes = chosen(run), json.loads((tmp_path / "out" / "classes.json").read_text())
    assert {one["__key__"] for one in found} == set(rows)
    for one in found:
        expected = rows[one["__key__"]]
        assert np.array_equal(pixels(one["webp"]), pixels(expected["bytes"]))
        assert (one["txt"], classes[one["cls"]]) == (expected["prompt"], expected["label"])
        assert one["json"]["seed"] == expected["seed"]
    gc.collect()


def test_torchvision_and_pycocotools_read_coco_captions(run: RunDir, tmp_path: Path) -> None:
    from torchvision.datasets import CocoCaptions

    export(run.store.root, tmp_path / "out", form="coco", split="train=.7,val=.3")
    rows = chosen(run)
    seen = []
    for split in ("train", "val"):
        loaded = CocoCaptions(str(tmp_path / "out" / split), str(tmp_path / "out" / "annotations" / f"captions_{split}.json"))
        for place, number in enumerate(loaded.ids):
            picture, captions = loaded[place]
            info: Any = loaded.coco.loadImgs(number)[0]
            expected = rows[info["sample_id"]]
            assert np.array_equal(pixels(picture), pixels(expected["bytes"]))
            assert captions == [expected["prompt"]]
            assert (info["width"], info["height"], info["seed"]) == (*picture.size, expected["seed"])
            seen.append(info["sample_id"])
    assert sorted(seen) == sorted(rows)
    assert len(list((tmp_path / "out" / "annotations").iterdir())) == 2


def test_an_empty_split_is_readable_coco_too(run: RunDir, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    export(run.store.root, tmp_path / "out", form="coco", split="train=.5,val=.5", split_by="model")
    sizes = [len(COCO(str(path)).imgs) for path in sorted((tmp_path / "out" / "annotations").iterdir())]
    assert sorted(sizes) == [0, len(chosen(run))]


def test_plain_parquet_has_images_and_metadata_in_one_table(run: RunDir, tmp_path: Path) -> None:
    export(run.store.root, tmp_path / "out", form="parquet", only="all", where="clip_score < 0.5 or isnan(clip_score)")
    table = pq.read_table(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").to_pylist()
    rows = chosen(run, "clip_score < 0.5 or isnan(clip_score)")
    assert {row["sample_id"]: row["image"] for row in table} == {key: row["bytes"] for key, row in rows.items()}
    assert {row["status"] for row in table} == {"accepted", "rejected"}
    assert any(row["clip_score"] is None for row in table), "NaN is null"


@pytest.mark.parametrize("form", FORMATS)
def test_equal_exports_have_equal_bytes_and_none_is_written_over(run: RunDir, tmp_path: Path, form: str) -> None:
    for name in ("one", "two"):
        export(run.store.root, tmp_path / name, form=form, split="train=.5,val=.5")
    assert digest_of_folder(tmp_path / "one") == digest_of_folder(tmp_path / "two")
    with pytest.raises(RunFolderError, match="is there already; choose another target"):
        export(run.store.root, tmp_path / "one", form=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


KILLED = """
import os, sys
from pathlib import Path
import jobs.export.place
from jobs.export import export

def die(*args):
    os.kill(os.getpid(), 9)

run, target, form, images = sys.argv[1:]
if images == "all":
    jobs.export.place._sync = die
options = {"split": "train=.7,val=.3", "provenance": True, "shard_bytes": 8_000}
export(run, target, form=form, **options, on_count=lambda what, done, total: done == int(images.replace("all", "0")) and die())
"""
OPTIONS: dict[str, Any] = {"split": "train=.7,val=.3", "provenance": True, "shard_bytes": 8_000}


def killed(run: RunDir, target: Path, form: str, images: str = "25") -> tuple[Path, dict[str, Path]]:
    """An export with OPTIONS that was killed with -9 after so many images, or when all were written: what it left, its finished files."""
    died = subprocess.run([sys.executable, "-c", KILLED, run.store.root, str(target), form, images], cwd=REPOSITORY, check=False)
    assert died.returncode == -9
    [left] = target.parent.glob(".*")
    lines = [json.loads(line) for line in (left / ".parts" / "journal.jsonl").read_text().splitlines()[1:]]
    return left, {name: left / name for line in lines for name in line["files"]}


def identities(folder: Path) -> dict[int, int]:
    """When each file was written, by its inode."""
    return {path.stat().st_ino: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Digests of exports that nothing befell, by format."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for form in FORMATS:
        export(run.store.root, folder / form, form=form, **OPTIONS)
    return {form: digest_of_folder(folder / form) for form in FORMATS}


@pytest.mark.parametrize(("form", "images"), [*((form, "25") for form in FORMATS), ("hf", "all"), ("coco", "all")])
def test_a_killed_export_goes_on_and_makes_no_finished_part_again(
    run: RunDir, undisturbed: dict[str, dict[str, str]], tmp_path: Path, form: str, images: str
) -> None:
    target, copy = tmp_path / "out", tmp_path / "run"
    shutil.copytree(run.store.root, copy)
    left, finished = killed(run, target, form, images)
    assert not target.exists()
    assert len(finished) >= 3
    before = identities(left)
    spoil_an_image(copy / layout.images_file(0))  # all of that shard is in finished parts, so nobody reads it
    told: list[str] = []
    seen: list[int] = []
    export(copy, target, form=form, **OPTIONS, on_message=told.append, on_count=lambda what, done, total: seen.append(done))
    assert [re.sub(r"\d+", "N", line) for line in told] == ["N finished parts are there, with N of N images; going on"]
    assert digest_of_folder(target) == undisturbed[form]
    published = [name for name in finished if not name.startswith(".parts")]
    assert len(before.items() & identities(target).items()) == len(published), "the same files, not written again"
    assert seen[0] > 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("form", ["webdataset", "imagefolder"])
def test_a_finished_part_that_was_damaged_since_is_made_again(
    run: RunDir, undisturbed: dict[str, dict[str, str]], tmp_path: Path, form: str
) -> None:
    _, finished = killed(run, tmp_path / "out", form)
    path = next(iter(finished.values()))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    export(run.store.root, tmp_path / "out", form=form, **OPTIONS)
    assert digest_of_folder(tmp_path / "out") == undisturbed[form]


def test_what_another_export_left_is_cleared_away(run: RunDir, tmp_path: Path) -> None:
    killed(run, tmp_path / "out", "imagefolder")
    told: list[str] = []
    options: dict[str, Any] = OPTIONS | {"where": "clip_score > 0.5"}
    export(run.store.root, tmp_path / "out", form="imagefolder", **options, on_message=told.append)
    export(run.store.root, tmp_path / "whole", form="imagefolder", **options)
    assert told == []
    assert digest_of_folder(tmp_path / "out") == digest_of_folder(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_an_export_that_is_stopped_with_ctrl_c_keeps_its_finished_parts(
    run: RunDir, undisturbed: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(run.store.root, tmp_path / "out", form="hf", **OPTIONS, on_count=stop)
    told: list[str] = []
    export(run.store.root, tmp_path / "out", form="hf", **OPTIONS, on_message=told.append)
    assert len(told) == 1
    assert digest_of_folder(tmp_path / "out") == undisturbed["hf"]


def test_of_two_exports_to_one_target_the_second_is_refused_and_the_first_not_disturbed(run: RunDir, tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").write_text("half done")
        with pytest.raises(RunFolderError, match=r"out: another export is writing it; wait for it"):
            export(run.store.root, tmp_path / "out", form="hf")
    assert (tmp_path / "out" / "mine").read_text() == "half done"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_folders_cannot_be_locked_an_export_works_too(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # what NFS says of a folder

    monkeypatch.setattr("jobs.export.place.fcntl.flock", flock)
    export(run.store.root, tmp_path / "out", form="parquet")
    assert (tmp_path / "out" / "README.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_every_file_and_folder_is_on_the_disk_before_the_target_has_its_name(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def noted(handle: int) -> None:
        if not (tmp_path / "out").exists():
            synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr("jobs.export.place.os.fsync", noted)
    export(run.store.root, tmp_path / "out", form="imagefolder")
    found = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(found) > 20
    assert {path.stat().st_ino for path in found} <= synced


def test_a_link_in_the_hidden_place_is_not_followed(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").write_text("mine")
    (tmp_path / f".out{HIDDEN}").symlink_to(tmp_path / "precious")
    with pytest.raises(RunFolderError, match="cannot be written"):
        export(run.store.root, tmp_path / "out", form="hf")
    assert (tmp_path / "precious" / "thesis").read_text() == "mine"


def test_verdicts_of_a_later_filter_count(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    filter_run(run.store.root, ['filter.rules=[{"score": "clip", "min": 0.8}]'])
    export(run.store.root, tmp_path / "out", form="parquet")
    table = pq.read_table(tmp_path / "out" / "data")
    assert min(table["clip_score"].to_pylist()) >= 0.8
    assert "&quot;" not in (card := (tmp_path / "out" / "README.md").read_text())
    assert '"min"&#58; 0.8' in card


def spoil_an_image(path: Path) -> None:
    """Flip a bit of the first image in a table."""
    data = bytearray(path.read_bytes())
    image = pq.read_table(path)["image"][0].as_py()["bytes"]
    data[data.index(image) + len(image) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_image_is_told_and_nothing_is_published(tmp_path: Path, form: str) -> None:
    run = finished_run(tmp_path / "run")
    spoil_an_image(Path(run.store.root, layout.images_file(2)))
    with pytest.raises(RunFolderError, match=r"images/00002\.parquet: .*'promptmill verify") as caught:
        export(run.store.root, tmp_path / "out", form=form, only="all")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_shard_of_other_images_is_told(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    Path(run.store.root, layout.images_file(1)).write_bytes(run.store.get(layout.images_file(0)))
    with pytest.raises(RunFolderError, match=r"images/00001\.parquet: image \w+ is missing"):
        export(run.store.root, tmp_path / "out", form="hf", only="all")


HOSTILE = (
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "two\nlines | `code` [x](y)",
    "🌟 star",
    "\u202egnp.txt",
    "",
    "CON",
    "a/b",
    "a\\b",
    "...",
    "x" * 500,
)


def test_hostile_labels_and_prompts_never_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompts(count: int) -> Sequence[Prompt]:
        return [Prompt(id=f"p{100 + i}", text=text or "empty", label=text, tags={text: text}) for i, text in enumerate(HOSTILE)]

    monkeypatch.setattr(runs, "make_prompts", prompts)
    run = finished_run(tmp_path / "run")
    for form in FORMATS:
        export(run.store.root, tmp_path / "all" / form, form=form, only="all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "run"]
    folders = [path.name for path in (tmp_path / "all/imagefolder/train").iterdir() if path.is_dir()]
    assert len(folders) == len(HOSTILE)
    assert all(name.isascii() and len(name) < 64 and not set(name) & set("./\\<>\n") for name in folders)
    lines = (tmp_path / "all/imagefolder/train/metadata.jsonl").read_text().splitlines()
    assert {json.loads(line)["label"] for line in lines} == set(HOSTILE)
    loaded = load(tmp_path / "all/hf", tmp_path / "cache")["train"]
    assert set(loaded.features["label"].names) == set(HOSTILE)
    assert {row["tags.🌟 star"] for row in loaded} == {None, "🌟 star"}
    card = (tmp_path / "all/hf/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["configs"]
    outside_code = [line for line in card.splitlines() if not line.startswith("    ")]
    assert not any("<script" in line or "\u202e" in line for line in outside_code)
    assert "\u202e" not in card


def test_different_labels_have_different_folders() -> None:
    labels = ["a b", "a_b", folder_name("a/b"), None, "_unlabelled", "star", "con", "a ", *HOSTILE]
    assert len({folder_name(label) for label in labels}) == len(labels)
    assert folder_name("golden retriever") == "golden retriever"


def test_splits_follow_the_value_and_their_shares() -> None:
    splits = Splits.parse("train=.8,val=.1,test=.1")
    found = [splits.of(f"prompt {number}") for number in range(4000)]
    assert found == [splits.of(f"prompt {number}") for number in range(4000)]
    assert found.count("train") / 4000 == pytest.approx(0.8, abs=0.03)
    assert found.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    # pinned: an export of tomorrow splits as one of today
    assert hashlib.sha256(" ".join(found).encode()).hexdigest()[:16] == "bcc34390b8233ac2"


@pytest.mark.parametrize("text", ["train", "train=.9", "a=.5,a=.5", "../x=1", "train=0,val=1", "train=x", "", "train=nan"])
def test_wrong_splits_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(QueryError, match="--split") as caught:
        Splits.parse(text)
    assert "\n" not in str(caught.value)


def test_a_label_or_tag_can_be_what_splits(run: RunDir, tmp_path: Path) -> None:
    export(run.store.root, tmp_path / "out", form="imagefolder", split="a=.5,b=.5", split_by="tags.number", label="tags.source")
    numbers = [
        {json.loads(line)["tags.number"] for line in (tmp_path / "out" / split / "metadata.jsonl").read_text().splitlines()}
        for split in ("a", "b")
    ]
    assert all(numbers)
    assert not numbers[0] & numbers[1]
    assert (tmp_path / "out" / "a" / "made up").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "nothing = 1"}, "nothing"),
        ({"where": "false"}, "no accepted image satisfies 'false'"),
        ({"where": "true) to '/tmp/x' --"}, "query: "),
        ({"split_by": "nothing"}, "there is no such column"),
        ({"label": 'x" from metadata --'}, "there is no such column"),
    ],
)
def test_what_cannot_be_exported_is_told_and_leaves_nothing(run: RunDir, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptmillError, match=message) as caught:
        export(run.store.root, tmp_path / "out", form="hf", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_card_tells_model_rules_counts_and_provenance(run: RunDir, tmp_path: Path) -> None:
    export(run.store.root, tmp_path / "out", form="hf", split="train=.7,val=.3", license_id="cc0-1.0", where="clip_score > 0.35")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc0-1.0"
    assert [files["split"] for files in front["configs"][0]["data_files"]] == ["train", "val"]
    for fact in (
        run.job.fingerprint,
        run.plan.prompts_sha256,
        runs.CLIP_VERSION,
        "imaginary @ 0000",
        "clip&#95;score &gt; 0.35",
        "steps: 4",
    ):
        assert fact in card
    counts = query([run.store.root], "select label, count(*) n from metadata where status = 'accepted' and clip_score > 0.35 group by 1")
    for row in counts.to_pylist():
        line = next(line for line in card.splitlines() if line.startswith(f"| {row['label']} "))
        assert sum(int(number) for number in line.split("|")[2:-1]) == row["n"]
    assert str(tmp_path) not in card


def test_text_in_a_table_stays_text() -> None:
    assert cell("a|b\n`<b>`") == "a&#124;b&#92;u000a&#96;&lt;b&gt;&#96;"


def test_the_command_prints_what_it_wrote(run: RunDir, tmp_path: Path) -> None:
    arguments = ["export", run.store.root, str(tmp_path / "out"), "--format", "webdataset", "--split", "train=.7,val=.3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert f"{len(chosen(run))} images (train " in result.output
