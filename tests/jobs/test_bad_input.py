"""Whatever is wrong with the input: one line on stderr that says what and what to do, exit status 2, nothing written."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from tests.jobs.conftest import JobFile

Edit = Callable[[JobFile], object]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; its one line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if "images/s, ETA" not in line]  # progress
    assert caught.value.code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("promptmill: ")
    assert captured.out == ""
    return lines[0]


def own_model(job: JobFile) -> Path:
    folder = job.folder / "model"
    shutil.copytree(job.raw["model"]["id"], folder)
    job.write(model={"id": "model"})
    return folder


def drop(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def to_pickles(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


UNET = "unet/diffusion_pytorch_model.safetensors"
CASES: dict[str, tuple[Edit, str]] = {
    "unknown key": (lambda job: job.write(sampling={"step": 3}), "job.yaml [sampling]: unknown key 'step'; did you mean 'steps'?"),
    "wrong type": (lambda job: job.write(sampling={"steps": "ten"}), "[sampling.steps]: must be a valid integer; found 'ten'"),
    "zero size": (lambda job: job.write(sampling={"width": 0}), "[sampling.width]: must be greater than or equal to 1; found 0"),
    "negative size": (lambda job: job.write(sampling={"height": -8}), "[sampling.height]: must be greater than or equal to 1"),
    "impossible size": (
        lambda job: job.write(sampling={"width": 33}),
        "sampling.width: tiny-sd makes multiples of 8 pixels, not 33; use 32 or 40",
    ),
    "unknown sampler": (lambda job: job.write(sampling={"scheduler": "eulr"}), "unknown sampler 'eulr'; did you mean 'euler'?"),
    "unfit sampler": (lambda job: job.write(sampling={"scheduler": "flow_euler"}), "flow_euler cannot step with the epsilon prediction"),
    "missing prompt file": (lambda job: job.write(prompts={"file": "none.txt"}), "there is no such prompt file"),
    "empty prompt file": (lambda job: (job.folder / "prompts.txt").write_text("\n"), "holds no prompts"),
    "not UTF-8": (lambda job: (job.folder / "prompts.txt").write_bytes(b"ok\n\xe9\n"), "prompts.txt: line 2: byte 1 (0xe9) is not UTF-8"),
    "repeated ids": (
        lambda job: (job.write(prompts={"file": "p.csv"}), (job.folder / "p.csv").write_text("id,prompt\na,x\nb,y\na,z\n")),
        "prompt id 'a' stands at prompts 0 and 2",
    ),
    "unknown model": (lambda job: job.write(model={"id": "no-such-folder"}), "there is no such folder"),
    "hub model without a hub": (lambda job: job.write(model={"id": "nobody/nothing"}), "model nobody/nothing"),
    "missing part": (
        lambda job: shutil.rmtree(own_model(job) / "vae"),
        "the folder vae/ (AutoencoderKL), which model_index.json names, is missing",
    ),
    "missing weights": (lambda job: drop(own_model(job) / UNET), "unet"),
    "truncated weights": (lambda job: truncate(own_model(job) / UNET), "unet"),
    "only pickled weights": (lambda job: to_pickles(own_model(job)), "pickle"),
    "no model folder": (lambda job: drop(own_model(job) / "model_index.json"), "model_index.json is missing"),
    "unknown scorer": (lambda job: job.write(scorers={"bright": {"type": "nonsense"}}), "scorers.bright: unknown type 'nonsense'"),
    "unknown scorer in a rule": (lambda job: job.write(filter={"rules": [{"score": "clip", "min": 0.2}]}), "there is no scorer 'clip'"),
}


@pytest.mark.parametrize(("edit", "expected"), CASES.values(), ids=CASES.keys())
def test_a_bad_job_is_refused_before_anything_is_loaded_or_written(
    job: JobFile, capsys: pytest.CaptureFixture[str], edit: Edit, expected: str
) -> None:
    edit(job)
    assert expected in refused(capsys, "run", job.path, "--out", job.out)
    assert not job.out.exists()


def test_plan_refuses_the_same(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    job.write(sampling={"scheduler": "eulr"})
    assert "did you mean 'euler'?" in refused(capsys, "plan", job.path)


def test_a_folder_of_another_job_is_refused(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    run(job)
    capsys.readouterr()
    assert "this is job" in refused(capsys, "run", job.path, "--out", job.out, "--set", "seed=1")


def test_an_output_folder_that_cannot_be_written_is_refused(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / "file").write_text("")
    assert "cannot be written: Not a directory" in refused(capsys, "run", job.path, "--out", job.folder / "file" / "run")


@pytest.mark.parametrize("command", ["status", "verify", "query"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    more = ["select 1"] if command == "query" else []
    assert "is not a run folder" in refused(capsys, command, tmp_path, *more)


def test_a_very_long_prompt_is_kept_and_flagged(job: JobFile) -> None:
    import pyarrow.parquet as pq

    text = "a very long prompt " * 530
    (job.folder / "prompts.txt").write_text(text.strip() + "\nshort\n")
    run(job)
    rows = pq.read_table(job.out / "metadata").to_pylist()
    assert [row["prompt_truncated"] for row in rows] == [True, True, False, False]
    assert len(rows[0]["prompt"]) > 10_000
    assert rows[0]["prompt_tokens"] > 1000


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(job: JobFile, capsys: pytest.CaptureFixture[str]) -> None:
    (job.folder / "prompts.txt").write_text("".join(f"a red square {n}\n" for n in range(40)))
    disk = job.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    try:
        line = refused(capsys, "run", job.path, "--out", disk / "run")
        assert "the disk is full; nothing is lost: free some space and run the same command again" in line
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        run(job, out=disk / "run")
        run(job)
        for folder in ("metadata", "images"):
            names = sorted(path.name for path in (job.out / folder).iterdir())
            assert names == sorted(path.name for path in (disk / "run" / folder).iterdir())
            assert all((disk / "run" / folder / name).read_bytes() == (job.out / folder / name).read_bytes() for name in names)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def run(job: JobFile, out: Path | None = None) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(job.path), "--out", str(out or job.out)])
    assert caught.value.code == 0
    assert json.loads((out or job.out).joinpath("plan/plan.json").read_text())["num_prompts"]
