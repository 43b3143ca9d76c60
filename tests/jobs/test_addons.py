"""A job with LoRA weights and the like: its rows name them, its folder is refused when they are others."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.prepare import prepare
from jobs.remake import remaker
from jobs.run import run
from jobs.run_dir import RunDir
from jobs.verify import verify
from schemas.errors import RunFolderError
from tests.jobs.conftest import JobFile
from tests.pipeline.models import tiny


def test_a_job_with_addons_names_them_in_its_rows_and_is_refused_when_they_have_changed(job: JobFile, tiny_model: Path) -> None:
    tiny.lora(job.folder / "style.safetensors", tiny_model, 1)
    tiny.lora(job.folder / "line.safetensors", tiny_model, 3)
    torch.manual_seed(5)
    tiny.vae().save_pretrained(job.folder / "vae")
    save_file({"<cat>": torch.ones(32)}, job.folder / "cat.safetensors")
    job.write(
        prompts={"texts": ["a <cat>"], "file": None},
        model={"loras": [{"id": "style.safetensors", "scale": 0.5}, "line.safetensors"], "embeddings": ["cat.safetensors"], "vae": "vae"},
    )
    assert run(prepare(job.path), out=job.out).failed == 0
    run_dir = RunDir.open(job.out)
    assert {draw.loras for draw in run_dir.read_shard(0).draws} == {("line@1.0", "style@0.5")}
    assert verify(run_dir, regenerate=2, remake=remaker(run_dir)).problems == ()
    moved = job.folder / "elsewhere"
    moved.mkdir()
    (job.folder / "style.safetensors").rename(moved / "style.safetensors")
    job.write(model={"loras": [{"id": "elsewhere/style.safetensors", "scale": 0.5}, "line.safetensors"]})
    assert run(prepare(job.path), out=job.out).planned == 2  # the same weights, wherever they lie
    job.write(model={"loras": [{"id": "elsewhere/style.safetensors", "scale": 0.6}, "line.safetensors"]})
    with pytest.raises(RunFolderError, match=r"model.loras was \['line@1.0', 'style@0.5'\], is \['line@1.0', 'style@0.6'\]"):
        run(prepare(job.path), out=job.out)
    job.write(model={"loras": [{"id": "elsewhere/style.safetensors", "scale": 0.5}, "line.safetensors"]})
    tiny.lora(moved / "style.safetensors", tiny_model, 2)
    with pytest.raises(RunFolderError, match=r"model.revision was 'sha256:"):
        run(prepare(job.path), out=job.out)
