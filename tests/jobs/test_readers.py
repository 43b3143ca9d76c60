"""The run folder is the public interface: readers that know nothing of promptmill get the dataset right."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from schemas import layout
from schemas.tables import images_schema, metadata_columns, metadata_schema
from tests.runs import SIZE_PX, SUBJECTS, finished_run, make_config

NAMES = [name for name, *_ in metadata_columns(["clip"])]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("readers") / "run"
    finished_run(path)
    return path


def from_duckdb(run: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        return connection.sql(f"from read_parquet('{run}/metadata/*.parquet')").to_arrow_table().to_pylist()


def from_pyarrow_dataset(run: Path) -> list[dict[str, Any]]:
    return ds.dataset(run / "metadata", format="parquet").to_table().to_pylist()


def from_pyarrow_parquet(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "metadata").to_pylist()


@pytest.mark.parametrize("read", [from_duckdb, from_pyarrow_dataset, from_pyarrow_parquet])
def test_metadata_reads_alike_everywhere(run: Path, read: Any):
    rows = read(run)
    assert len(rows) == len({row["sample_id"] for row in rows}) == 16
    assert list(rows[0]) == NAMES
    row = next(row for row in rows if row["prompt_id"] == "p1" and row["draw_index"] == 0)
    assert row["prompt"] == "a blue square on grey"
    assert row["label"] == "class1"
    assert dict(row["tags"]) == {"source": "made up", "number": "1"}
    assert row["clip_score"] == pytest.approx(0.36)
    assert (row["status"], row["reason"], row["is_best"]) == ("accepted", None, False)
    assert {row["reason"] for row in rows if row["status"] == "failed"} == {"out_of_memory"}


def test_pandas_reads_the_metadata_folder(run: Path):
    frame = pd.read_parquet(run / "metadata")
    assert list(frame.columns) == NAMES
    assert frame["status"].value_counts().to_dict() == {"accepted": 10, "rejected": 4, "failed": 2}
    assert frame["seed"].dtype == "int64"
    assert frame["steps"].dtype == "int32"
    assert frame["clip_score"].dtype == "float32"
    assert frame.loc[frame["status"] == "failed", "image_sha256"].isna().all()
    assert dict(frame.set_index("prompt_id").loc["p2", "tags"].iloc[0]) == {"source": "made up", "number": "2"}  # type: ignore[union-attr]


def test_duckdb_looks_into_the_tags(run: Path):
    with duckdb.connect() as connection:
        sql = f"select prompt_id from read_parquet('{run}/metadata/*.parquet') where tags['number'] = '3' group by 1"
        assert connection.sql(sql).fetchall() == [("p3",)]


@pytest.mark.parametrize("image_format", ["webp", "png", "jpeg"])
def test_datasets_shows_decoded_pictures_with_their_text(tmp_path: Path, image_format: str):
    finished_run(tmp_path / "run", prompts=6, config=make_config(image_format=image_format))
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "run" / "images" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded, datasets.Dataset)
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.num_rows == 10
    first = loaded[0]
    assert isinstance(first["image"], Image.Image)
    assert first["image"].size == (SIZE_PX, SIZE_PX)
    assert (first["image"].format or "").lower() == image_format
    assert first["text"] == "a red circle"
    assert set(loaded["text"]) == set(SUBJECTS) - {SUBJECTS[4]}, "prompt 4 fails"


def test_every_image_belongs_to_a_row_of_the_metadata_and_carries_its_prompt(run: Path):
    with duckdb.connect() as connection:
        sql = f"""
            select count(*), count(*) filter (m.prompt = i.text and m.image_sha256 = i.sha256 and m.num_bytes = octet_length(i.image.bytes))
            from read_parquet('{run}/images/*.parquet') i left join read_parquet('{run}/metadata/*.parquet') m using (sample_id)"""
        assert connection.sql(sql).fetchall() == [(14, 14)]


def test_every_file_has_the_one_schema_of_the_run_with_its_descriptions(run: Path):
    for folder, schema in (("metadata", metadata_schema(["clip"])), ("images", images_schema())):
        for path in sorted((run / folder).iterdir()):
            found = pq.read_schema(path)
            assert found.equals(schema), path
            assert found.metadata == schema.metadata
            assert [field.metadata for field in found] == [field.metadata for field in schema]


def test_images_are_stored_as_they_are_with_page_checksums(run: Path):
    path = run / layout.images_file(0)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        group = file.metadata.row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        stored = columns["image.bytes"]
        assert stored.compression == "UNCOMPRESSED"
        assert not stored.has_dictionary_page
        assert not stored.is_stats_set
        row = file.read_row_group(0, columns=["image"]).to_pylist()[0]
    assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (SIZE_PX, SIZE_PX)
    assert row["image"]["bytes"] in path.read_bytes()


def test_dead_letters_name_the_failed_draws(run: Path):
    letters = [letter for path in sorted((run / "failed").iterdir()) for letter in json.loads(path.read_text())]
    assert {letter["draw"]["prompt_id"] for letter in letters} == {"p4"}
    assert {letter["error"].split(":")[0] for letter in letters} == {"out_of_memory"}
    frame = pd.read_parquet(run / "metadata", columns=["sample_id", "status"])
    assert set(frame.loc[frame["status"] == "failed", "sample_id"]) == {letter["sample_id"] for letter in letters}
