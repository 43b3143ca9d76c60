"""``promptmill models``: the tables of what can be run."""

import json

import pytest

from jobs.cli import main
from pipeline.models import modes
from pipeline.models.families import FAMILIES
from pipeline.models.modes import pipelines
from schemas.modes import INPUTS, column

KNOWN_SAMPLERS = {
    *("ddpm", "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm2", "dpm++_2m", "dpm++_2m_karras", "dpm++_sde"),
    *("unipc", "deis", "lcm", "tcd", "edm", "flow_euler", "flow_heun"),
}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["models", *arguments])
    assert not ended.value.code
    return capsys.readouterr().out


def test_all_that_is_listed_runs_with_the_diffusers_that_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "--json"))
    assert [one for one in found["families"] + found["samplers"] if not one["runs_here"]] == []


def test_the_samplers_that_people_know_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert {one["name"] for one in json.loads(said(capsys, "--json"))["samplers"]} >= KNOWN_SAMPLERS


def test_an_older_diffusers_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.families.diffusers_has", lambda name: name != "FluxPipeline")
    found = json.loads(said(capsys, "--json"))
    assert [one["name"] for one in found["families"] if not one["runs_here"]] == ["FLUX.1"]


def test_modes_are_those_that_a_job_may_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "--json"))
    assert {one["name"]: one["columns"] for one in found["modes"]} == {
        mode: [column(role) for role in roles] for mode, roles in INPUTS.items()
    }
    for family in found["families"]:
        assert [(one["name"], one["pipeline"]) for one in family["modes"]] == list(pipelines(family["pipeline"]).items())
    listed = {one["pipeline"] for family in found["families"] for one in family["modes"]}
    assert listed == {name for family in modes._FAMILIES for name in family.values()} | {one.pipeline for one in FAMILIES}


def test_a_mode_that_an_older_diffusers_lacks_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.families.diffusers_has", lambda name: name != "ZImageInpaintPipeline")
    [row] = [line.split() for line in said(capsys).splitlines() if "Z-Image" in line and "Turbo" not in line]
    assert row == ["Z-Image", "yes", "no"]


def test_the_table_names_families_modes_upscalers_and_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    for name in ("DiT", "FLUX.2 [klein]", "image-to-image", "T2I-Adapter", "stable-diffusion-x4-upscaler", "dpm++_2m_karras"):
        assert name in text
