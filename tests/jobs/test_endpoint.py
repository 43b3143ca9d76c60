"""A whole job over a server that draws: every draw ends in one row, money is counted, the key stands nowhere."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.models import endpoint_client
from tests.image_server import KEY, ImageServer, serving
from tests.jobs.conftest import JobFile


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setenv("IMAGES_KEY", KEY)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving(key=KEY) as running:
        yield running


def job_of(folder: Path, server: ImageServer, *prompts: str, **settings: Any) -> JobFile:
    job = JobFile(folder, Path("gpt-image-1"))
    job.write(sampling=None)
    endpoint = {"url": server.url, "api_key_variable": "IMAGES_KEY", "max_tries": 2, "price_per_image": 0.25, "timeout_seconds": 5.0}
    job.write(
        prompts={"texts": list(prompts), "file": None, "draws_per_prompt": 1},
        model={"endpoint": endpoint | settings},
        sampling={"width": 16, "height": 16, "batch_size": 4},
    )
    return job


def promptmill(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def run(job: JobFile, *more: str) -> int:
    return promptmill("run", job.path, "--out", job.out, *more)


def rows_of(job: JobFile) -> list[dict[str, Any]]:
    return pq.read_table(job.out / "metadata").to_pylist()


def test_every_draw_ends_in_one_row_and_refusals_end_no_job(tmp_path: Path, server: ImageServer) -> None:
    prompts = ["a dog", "a cat REFUSED", "a bird DOWN", *(f"plane {n}" for n in range(9))]
    job = job_of(tmp_path, server, *prompts)
    assert run(job) == 1
    found = {row["prompt"]: row for row in rows_of(job)}
    assert set(found) == set(prompts)
    assert {prompt: row["reason"] for prompt, row in found.items() if row["status"] == "failed"} == {
        "a cat REFUSED": "refused",
        "a bird DOWN": "no_answer",
    }
    assert all(row["model_revision"].startswith("endpoint:") for row in found.values())
    assert promptmill("verify", job.out) == 0


def test_a_shard_of_nothing_but_refusals_is_an_answer(tmp_path: Path, server: ImageServer) -> None:
    job = job_of(tmp_path, server, *(f"a cat REFUSED {n}" for n in range(40)))
    assert run(job) == 1
    assert len(rows_of(job)) == len(server.asked) == 40


def test_cost_stands_in_markers_and_events_and_the_key_nowhere(tmp_path: Path, server: ImageServer) -> None:
    job = job_of(tmp_path, server, *(f"a cat {n}" for n in range(10)), "a dog REFUSED")
    assert run(job) == 1
    usage = [json.loads(path.read_text())["usage"] for path in sorted((job.out / "done").iterdir())]
    assert [one["requests"] for one in usage] == [8, 3]
    assert sum(one["cost"] for one in usage) == 2.5
    events = [json.loads(line) for line in (job.out / "events.jsonl").read_text().splitlines()]
    assert sum(event["usage"]["cost"] for event in events if event["event"] == "shard_done") == 2.5
    assert "cost" not in pq.read_schema(job.out / "metadata/00000.parquet").names
    assert all(KEY.encode() not in path.read_bytes() for path in job.out.rglob("*") if path.is_file())


def test_a_wrong_key_is_one_line_and_the_same_command_finishes_the_job(
    tmp_path: Path, server: ImageServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tmp_path, server, *(f"a cat {n}" for n in range(10)))
    monkeypatch.setenv("IMAGES_KEY", "sk-wrong")
    assert run(job) == 2
    said = capsys.readouterr().err
    assert "does not let us in (401); check the key in IMAGES_KEY" in said
    assert "sk-wrong" not in said
    monkeypatch.setenv("IMAGES_KEY", KEY)
    server.asked.clear()
    assert run(job) == 0
    assert len(rows_of(job)) == len(server.asked) == 10


def test_a_resumed_run_asks_for_nothing_twice_whatever_limits_it_now_has(tmp_path: Path, server: ImageServer) -> None:
    job = job_of(tmp_path, server, *(f"a cat {n}" for n in range(20)))
    assert run(job) == 0
    (job.out / "done/00001.json").unlink()
    server.asked.clear()
    assert run(job, "--set", "model.endpoint.concurrency=1", "--set", "model.endpoint.price_per_image=9.5") == 0
    assert len(server.asked) == 8
    assert len({row["sample_id"] for row in rows_of(job)}) == 20


def test_images_of_a_server_cannot_be_made_again_and_verify_says_so(
    tmp_path: Path, server: ImageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tmp_path, server, "a cat")
    assert run(job) == 0
    assert promptmill("verify", job.out, "--regenerate", 1) == 2
    assert "images of an endpoint cannot be made again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api_key_variable": "sk-a-key-in-the-file"}, "[model.endpoint.api_key_variable]: must be the name of an environment variable"),
        ({"url": "https://me:secret@host/v1"}, "[model.endpoint.url]: must be a URL such as"),
        ({"url": "ftp://host/v1"}, "[model.endpoint.url]: must be a URL such as"),
        ({"request": {"n": 4}}, "[model.endpoint.request]: 'n' is set by promptmill"),
    ],
)
def test_a_mistake_is_named_and_no_secret_is_repeated(
    tmp_path: Path, server: ImageServer, settings: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(job_of(tmp_path, server, "a cat", **settings)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "sk-a-key" not in said
    assert "secret" not in said


def test_a_prompt_that_sets_what_the_server_is_not_told_is_refused(
    tmp_path: Path, server: ImageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tmp_path, server, "x")
    (tmp_path / "prompts.csv").write_text("prompt,negative_prompt\na cat,\na dog,blur\n")
    job.write(prompts={"file": "prompts.csv", "texts": None})
    assert run(job) == 2
    assert "prompt 000001: sampling.negative_prompt: is not sent to the endpoint of" in capsys.readouterr().err
    assert server.asked == []


def test_a_plan_needs_no_key(tmp_path: Path, server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGES_KEY")
    job = job_of(tmp_path, server, "a cat")
    assert promptmill("plan", job.path) == 0
    assert server.asked == []


def test_pictures_of_the_prompt_file_are_edited(tmp_path: Path, server: ImageServer) -> None:
    job = job_of(tmp_path, server, "x")
    for number in range(3):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    (tmp_path / "prompts.csv").write_text("prompt,init_image,mask_image\n" + "".join(f"a cat {n},{n}.png,mask.png\n" for n in range(3)))
    job.write(prompts={"file": "prompts.csv", "texts": None}, sampling={"mode": "inpainting"})
    assert run(job) == 0
    assert [row["mode"] for row in rows_of(job)] == ["inpainting"] * 3
    assert all(asked["image"] and asked["mask"] for asked in server.asked)
    assert promptmill("verify", job.out) == 0
