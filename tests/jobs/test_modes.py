"""Each mode as a job: from a prompt file with image columns to a dataset that can be made again from its own folder."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.prepare import prepare
from jobs.remake import remaker
from jobs.run import run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas import modes
from schemas.errors import ConfigError, ModelError, PromptError
from schemas.modes import Mode, column
from tests.jobs.conftest import JobFile
from tests.jobs.test_run import dataset
from tests.pipeline.models import tiny

# StableDiffusionAdapterPipeline's own call
pytestmark = pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
ROWS: dict[str, tuple[Mode, dict]] = {  # a mode, and what is set for it
    "image-to-image": ("image-to-image", {"strength": 0.5}),
    "inpainting": ("inpainting", {}),
    "outpainting": ("outpainting", {"margins": {"left": 8, "top": 8}}),
    "control": ("control", {"canny": {"low": 50, "high": 100}, "guidance_interval": [0.5, 1]}),
    "control-t2i": ("control", {"control_scale": 0.5}),
    "image-prompt": ("image-prompt", {"control_scale": 0.5}),
    "inpainting-reference": ("inpainting", {"reference_scale": 0.5}),
    "super-resolution": ("super-resolution", {}),
}


@pytest.fixture(params=ROWS)
def mode_job(request: pytest.FixtureRequest, job: JobFile) -> JobFile:
    """A job of three prompts, each with pictures of its own."""
    mode, settings = ROWS[request.param]
    roles = [column(role) for role in modes.roles(mode, reference="reference" in request.param)]
    side = 8 if mode == "super-resolution" else 40
    rng = np.random.default_rng(0)
    with (job.folder / "prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "label", *roles])
        for number in range(3):
            for role in roles:
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(job.folder / f"{role}{number}.png")
            table.writerow([f"a red square {number}", "red", *[f"{role}{number}.png" for role in roles]])
    job.write(prompts={"file": "prompts.csv"}, model=_model(request.param, job), sampling={"mode": mode, **settings})
    return job


def _model(row: str, job: JobFile) -> dict:
    """What is told of the model, which the tiny one alone is not."""
    if row == "control":
        return {"controlnet": str(tiny.controlnet(job.folder / "net", "sd"))}
    if row == "control-t2i":
        net = tiny.t2i_adapter(job.folder / "net", "sd", in_channels=1)
        return {"id": str(tiny.sd_for_adapters(job.folder / "sd")), "controlnet": str(net)}
    if row in ("image-prompt", "inpainting-reference"):
        return {"ip_adapter": tiny.ip_adapter(job.folder / "adapter", Path(job.raw["model"]["id"]))}
    if row == "super-resolution":
        job.raw["sampling"] |= {"width": None, "height": None}
        return {"id": str(tiny.upscaler(job.folder / "upscaler"))}
    return {}


def test_a_mode_runs_and_its_folder_suffices_to_make_the_images_again(mode_job: JobFile) -> None:
    mode = mode_job.raw["sampling"]["mode"]
    report = run(prepare(mode_job.path), out=mode_job.out)
    assert (report.planned, report.failed) == (6, 0)
    rows = pq.read_table(mode_job.out / "metadata").to_pylist()
    assert {(row["mode"], row["width"], row["height"]) for row in rows} == {(mode, 32, 32)}
    for name in ("guidance_interval", "reference_scale"):
        assert all(row[name] == mode_job.raw["sampling"].get(name) for row in rows)
    inputs = {row[name] for row in rows for name in ("init_sha256", "mask_sha256", "control_sha256", "reference_sha256")} - {None}
    assert {path.name for path in (mode_job.out / "inputs").iterdir()} == inputs
    assert len({row["image_sha256"] for row in rows}) == 6
    for picture in mode_job.folder.glob("*_image*.png"):
        picture.unlink()
    run_dir = RunDir.open(mode_job.out)
    assert verify(run_dir, regenerate=6, remake=remaker(run_dir)).problems == ()


def test_the_latent_upscaler_doubles_a_picture_with_its_own_sampler(job: JobFile) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(job.folder / "a.png")
    (job.folder / "prompts.csv").write_text("prompt,init_image\na,a.png\n")
    job.raw["sampling"] |= {"width": None, "height": None}
    model = {"id": str(tiny.latent_upscaler(job.folder / "upscaler"))}
    job.write(prompts={"file": "prompts.csv"}, model=model, sampling={"mode": "super-resolution"})
    assert run(prepare(job.path), out=job.out).failed == 0
    assert {(row["width"], row["height"]) for row in pq.read_table(job.out / "metadata").to_pylist()} == {(64, 64)}
    run_dir = RunDir.open(job.out)
    assert verify(run_dir, regenerate=2, remake=remaker(run_dir)).problems == ()
    with pytest.raises(ModelError, match=r"works out its steps itself, which ddim does not take; use default$"):
        prepare(job.path, ["sampling.scheduler=ddim"])


def test_shards_and_resume_change_nothing_and_a_changed_picture_is_refused(job: JobFile, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(job.folder / f"{number}.png")
    rows = "".join(f"a square,{number % 2}.png\n" for number in range(4))
    (job.folder / "prompts.csv").write_text("prompt,init_image\n" + rows)
    job.write(prompts={"file": "prompts.csv", "draws_per_prompt": 1}, sampling={"mode": "image-to-image"}, output={"shard_size": 2})
    run(prepare(job.path), out=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "done" / "00001.json").unlink()
    run(prepare(job.path), out=tmp_path / "b")
    assert dataset(tmp_path / "a") == dataset(tmp_path / "b")
    with (job.folder / "prompts.csv").open("a") as file:
        file.write("a square,3.png\n")
    assert run(prepare(job.path), out=tmp_path / "b").planned == 5
    Image.new("RGB", (40, 40), (1, 2, 3)).save(job.folder / "0.png")
    with pytest.raises(PromptError, match=r"the input images of prompt 0 \(from 0, id 000000\) have changed"):
        run(prepare(job.path), out=tmp_path / "b")


def test_a_picture_that_cannot_be_decoded_fails_its_own_draw_only(job: JobFile) -> None:
    rng = np.random.default_rng(0)
    for name in ("good", "torn"):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(job.folder / f"{name}.png")
    (job.folder / "torn.png").write_bytes((job.folder / "torn.png").read_bytes()[:2000])
    (job.folder / "prompts.csv").write_text("prompt,init_image\na,good.png\nb,torn.png\nc,good.png\n")
    job.write(prompts={"file": "prompts.csv", "draws_per_prompt": 1}, sampling={"mode": "image-to-image"})
    assert run(prepare(job.path), out=job.out).failed == 1
    rows = pq.read_table(job.out / "metadata").to_pylist()
    assert [row["reason"] for row in rows] == [None, "bad_input", None]


def test_an_input_that_is_damaged_in_the_run_folder_is_found(job: JobFile) -> None:
    Image.new("RGB", (40, 40), (9, 9, 9)).save(job.folder / "a.png")
    (job.folder / "prompts.csv").write_text("prompt,init_image\na,a.png\n")
    job.write(prompts={"file": "prompts.csv"}, sampling={"mode": "image-to-image"})
    run(prepare(job.path), out=job.out)
    [copy] = (job.out / "inputs").iterdir()
    copy.write_bytes(b"other")
    [problem] = verify(RunDir.open(job.out)).problems
    assert str(problem).startswith(f"inputs/{copy.name}: ")


def test_settings_of_single_rows_reach_the_table_and_group_the_batches(job: JobFile) -> None:
    (job.folder / "prompts.csv").write_text("prompt,guidance_scale,steps,width\na,1.5,,\nb,7.5,3,\nc,,,24\n")
    job.write(prompts={"file": "prompts.csv", "draws_per_prompt": 1})
    assert run(prepare(job.path), out=job.out).failed == 0
    rows = pq.read_table(job.out / "metadata").to_pylist()
    assert [(row["guidance_scale"], row["steps"], row["width"]) for row in rows] == [(1.5, 2, 32), (7.5, 3, 32), (5.0, 2, 24)]


def test_an_ip_adapter_that_does_not_go_with_the_rest_is_refused(job: JobFile) -> None:
    adapter = tiny.ip_adapter(job.folder / "adapter", Path(job.raw["model"]["id"]))
    job.write(model={"ip_adapter": adapter})
    with pytest.raises(ConfigError, match=r"text-to-image with model.ip_adapter is image-prompt; set that"):
        prepare(job.path)
    with pytest.raises(ModelError, match=r"sampling.reference_scale: is for model.ip_adapter .*; use control_scale"):
        prepare(job.path, ["sampling.mode=image-prompt", "sampling.sweep.reference_scale=[0.5, 1]"])


def test_what_a_row_asks_that_the_model_cannot_do_is_refused_before_anything_is_written(job: JobFile) -> None:
    (job.folder / "prompts.csv").write_text("prompt,width\na,\nb,30\n")
    job.write(prompts={"file": "prompts.csv"})
    with pytest.raises(ModelError, match=r"^prompt 000001: sampling.width: tiny-sd makes multiples of 8 pixels, not 30; use 24 or 32"):
        run(prepare(job.path), out=job.out)
    assert not job.out.exists()
