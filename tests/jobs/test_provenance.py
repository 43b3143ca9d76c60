"""``promptmill export --provenance``: generated images say so themselves, and keep every pixel."""

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli import cli
from jobs.export import export
from jobs.export.provenance import IPTC, OWN, RDF, SOURCE_TYPES, XMP, embed
from pipeline.encode import encode
from schemas.config import OutputConfig
from tests.runs import finished_run

ROW = {
    "sample_id": "8f0a",
    "mode": "text-to-image",
    "model": "org/model",
    "model_revision": "abc",
    "prompt": 'a <b>"cat"</b> & dog\nin the snow \u202e 🐈',
    "negative_prompt": "blur",
    "seed": 7,
    "draw_index": 0,
    "scheduler": "ddim",
    "steps": 20,
    "guidance_scale": 7.5,
    "strength": None,
}


def read(data: bytes) -> dict[str, str]:
    """Properties of the packet that Pillow finds in an image file."""
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    tree = ElementTree.fromstring(packet)
    [description] = tree.iter(f"{{{RDF}}}Description")
    return dict(description.attrib)


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", [(16, 24), (17, 31)])
def test_a_file_of_each_format_bears_it_and_keeps_its_pixels(form: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    plain = encode(pixels, OutputConfig.model_validate({"image_format": form})).data
    marked = embed(plain, ROW, version="1.2")
    with Image.open(io.BytesIO(plain)) as before, Image.open(io.BytesIO(marked)) as after:
        after.verify()
        assert (after.format, after.size) == (before.format, before.size)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(plain))), np.asarray(Image.open(io.BytesIO(marked))))
    found = read(marked)
    assert found[f"{{{IPTC}}}DigitalSourceType"] == SOURCE_TYPES + "trainedAlgorithmicMedia"
    assert found[f"{{{IPTC}}}AIPromptInformation"] == ROW["prompt"] + "\nnegative prompt: blur"
    assert (found[f"{{{IPTC}}}AISystemUsed"], found[f"{{{IPTC}}}AISystemVersionUsed"]) == ("org/model", "abc")
    assert (found[f"{{{OWN}}}seed"], found[f"{{{OWN}}}guidance_scale"]) == ("7", "7.5")
    assert found[f"{{{XMP}}}CreatorTool"] == "promptmill 1.2"
    assert f"{{{OWN}}}strength" not in found


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_file_with_an_extended_header_keeps_what_it_has(mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, len(mode)), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels, mode).save(sink, "WEBP", lossless=True, exact=True, icc_profile=b"profile!")
    with Image.open(io.BytesIO(embed(sink.getvalue(), ROW, version="1"))) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert image.info["icc_profile"] == b"profile!"
        assert b"AIPromptInformation" in image.info["xmp"]


@pytest.mark.parametrize("prompt", ["x\0y\x1b[2J", "🐈" * 10_000, '"' * 10_000, "\ud800"])
def test_any_prompt_makes_a_packet_that_fits(prompt: str) -> None:
    data = encode(np.zeros((8, 8, 3), np.uint8), OutputConfig(image_format="jpeg")).data
    found = read(embed(data, ROW | {"prompt": prompt, "negative_prompt": prompt}, version="1"))[f"{{{IPTC}}}AIPromptInformation"]
    assert 0 < len(found) <= 4000
    assert found[0] in (prompt[0], "\ufffd")


def test_an_image_that_keeps_parts_of_another_is_a_composite() -> None:
    data = encode(np.zeros((8, 8, 3), np.uint8), OutputConfig()).data
    found = read(embed(data, ROW | {"mode": "inpainting"}, version="1"))
    assert found[f"{{{IPTC}}}DigitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


def test_an_export_with_provenance_is_told_in_its_card_and_without_it_has_none(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run").store.root
    result = CliRunner().invoke(cli, ["export", run, str(tmp_path / "marked"), "--format", "imagefolder", "--provenance"])
    assert result.exit_code == 0, result.output
    export(run, tmp_path / "plain", form="imagefolder")
    marked, plain = (sorted((tmp_path / name / "train").rglob("*.webp")) for name in ("marked", "plain"))
    assert [path.name for path in marked] == [path.name for path in plain]
    for one, other in zip(marked, plain, strict=True):
        assert read(one.read_bytes())[f"{{{OWN}}}sample_id"] == one.stem
        with Image.open(one) as with_it, Image.open(other) as without:
            assert "xmp" not in without.info
            assert np.array_equal(np.asarray(with_it), np.asarray(without))
    assert "say that they are generated" in (tmp_path / "marked" / "README.md").read_text()
    assert "say that they are generated" not in (tmp_path / "plain" / "README.md").read_text()
