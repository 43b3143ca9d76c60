"""Images from users: what is refused at once, what is mended in silence never, and what the sampler gets to see."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import inputs
from pipeline.inputs import BadInput, InputReader, conditions
from pipeline.prompts import read_prompts
from pipeline.store import open_store
from schemas.config import PromptsConfig
from schemas.errors import PromptError, RunFolderError
from schemas.modes import Mode
from tests.fakes import make_draw
from tests.s3 import BUCKET, s3_server


def png(width: int = 8, height: int = 8, mode: str = "RGB", colour: object = (200, 40, 40), **options: object) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (width, height), colour).save(sink, "PNG", **options)  # type: ignore[arg-type]
    return sink.getvalue()


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    picture = Image.new("RGB", (width, height), (255, 0, 0))
    picture.paste((0, 0, 255), (width // 2, 0, width, height))
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def made(data: bytes, width: int = 8, height: int = 8, **changes: Any) -> inputs.Conditions:
    draw = make_draw(width=width, height=height, init_sha256="i", **changes)
    return conditions(draw, {"i": data}.__getitem__)


# reading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``in/`` with a picture, and one outside."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    return tmp_path / "in"


def test_a_path_bytes_and_the_struct_of_datasets_give_the_same_image(folder: Path) -> None:
    reader, data = InputReader(folder), png()
    found = [reader.read(value, "row 0") for value in ("a.png", data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"})]
    assert len({one.sha256 for one in found}) == 1
    assert (found[0].width, found[0].height) == (8, 8)


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "link.png"])
def test_a_path_out_of_the_folder_is_refused_unless_it_is_allowed(folder: Path, name: str) -> None:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "sub").mkdir()
    with pytest.raises(PromptError, match=r"lies outside .*/in; add its folder to prompts.image_folders"):
        InputReader(folder).read(name, "p.csv: line 2: init_image")
    assert InputReader(folder, [folder.parent]).read(name, "row 0").sha256


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("none.png", "there is no file"),
        ("https://127.0.0.1/a.png", "is a URL in no folder of prompts.image_folders; name its folder there"),
        (7, "is int; give a path, or bytes"),
        (b"GIF89a not an image", "is no image that can be read; use one of: PNG, JPEG, WEBP, BMP, TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is no image that can be read"),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(folder: Path, value: object, message: str) -> None:
    with pytest.raises(PromptError, match=f"^p.csv: line 2: init_image.*{message}"):
        InputReader(folder).read(value, "p.csv: line 2: init_image")


def test_large_files_and_decompression_bombs_are_refused_by_their_header(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(20_000, 20_000, "1", 0)
    assert len(bomb) < 100_000
    with pytest.raises(PromptError, match=r"has 20000 x 20000 pixels, more than|is no image"):
        InputReader(folder).read(bomb, "row 0")
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    for value, name in (("a.png", " a.png"), (png(), "")):
        with pytest.raises(PromptError, match=rf"^row 0:?{name}:? has 7. bytes, more than 10"):
            InputReader(folder).read(value, "row 0")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.mark.usefixtures("s3")
def test_an_image_may_lie_in_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pictures/a.png", "other/a.png"):
        open_store(f"s3://{BUCKET}/{name.split('/')[0]}").put("a.png", png())
    allowed = f"s3://{BUCKET}/pictures/"
    (folder / "p.csv").write_text(f"prompt,init_image\nx,{allowed}a.png\ny,a.png\n")
    found = read_prompts(PromptsConfig(file="p.csv", image_folders=[allowed]), base_dir=folder, mode="image-to-image")
    assert len({prompt.images["init"].sha256 for prompt in found}) == 1
    reader = InputReader(folder, [allowed])
    for name, message in {
        f"s3://{BUCKET}/other/a.png": "row 0: s3://bucket/other/a.png is a URL in no folder of prompts.image_folders",
        f"{allowed}../other/a.png": "row 0: s3://bucket/pictures/../other/a.png is a URL in no folder of",
        f"{allowed}b.png": "row 0: there is no object s3://bucket/pictures/b.png",
    }.items():
        with pytest.raises(PromptError, match=message.replace(".", r"\.")):
            reader.read(name, "row 0")
    with pytest.raises(
        RunFolderError, match=r"https://127.0.0.1/pictures: a folder is a local path, or a URL that begins with s3:// or gs://"
    ):
        InputReader(folder, ["https://127.0.0.1/pictures"])
    monkeypatch.setattr(inputs, "MAX_BYTES", 10)
    with pytest.raises(PromptError, match=r"pictures/a.png has 7. bytes, more than 10"):
        reader.read(f"{allowed}a.png", "row 0")


@pytest.mark.parametrize(
    ("mode", "header", "message"),
    [
        ("image-to-image", "prompt,init_image\nx,", "line 2: init_image is missing; sampling.mode image-to-image needs one in every row"),
        ("inpainting", "prompt,init_image\nx,a.png", "line 2: mask_image is missing"),
        ("text-to-image", "prompt,init_image\nx,a.png", "init_image is of no use to sampling.mode text-to-image"),
        ("inpainting", "prompt,init_image,mask_image,reference_image\nx,a.png,a.png,a.png", "mode inpainting; give model.ip_adapter, or"),
        ("text-to-image", "prompt,steps\nx,0", "line 2: steps is '0': must be greater than or equal to 1"),
        ("text-to-image", "prompt,steps\nx,2.5", "line 2: steps is '2.5'; write a whole number or leave it empty"),
        ("text-to-image", "prompt,guidance_scale\nx,strong", "guidance_scale is 'strong'; write a number"),
        ("image-to-image", "prompt,init_image,strength\nx,a.png,1.5", "strength is '1.5': must be less than or equal to 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused_with_file_line_and_column(folder: Path, mode: Mode, header: str, message: str) -> None:
    (folder / "p.csv").write_text(header + "\n")
    with pytest.raises(PromptError, match=message):
        list(read_prompts(PromptsConfig(file="p.csv"), base_dir=folder, mode=mode))


def test_a_reference_beside_the_images_of_a_mode_stands_in_every_row(folder: Path) -> None:
    header = "prompt,init_image,reference_image\n"
    (folder / "p.csv").write_text(header + "x,a.png,a.png\n")
    [prompt] = read_prompts(PromptsConfig(file="p.csv"), base_dir=folder, mode="image-to-image", reference=True)
    assert set(prompt.images) == {"init", "reference"}
    (folder / "p.csv").write_text(header + "x,a.png,\n")
    with pytest.raises(PromptError, match=r"line 2: reference_image is missing; model.ip_adapter needs one in every row"):
        list(read_prompts(PromptsConfig(file="p.csv"), base_dir=folder, mode="image-to-image", reference=True))


def test_a_row_sets_its_own_sampling_and_other_columns_stay_tags(folder: Path) -> None:
    (folder / "p.csv").write_text("prompt,steps,guidance_scale,width,size\nx,7,1.5,64,large\ny,,,,\n")
    first, second = read_prompts(PromptsConfig(file="p.csv"), base_dir=folder)
    assert first.sampling == {"steps": 7, "guidance_scale": 1.5, "width": 64}
    assert first.tags == {"size": "large"}
    assert second.sampling == {}


# what the sampler sees


def test_an_image_fills_the_size_about_its_centre() -> None:
    init = made(encoded(halves(40, 10)), 10, 10).init_HWC
    assert init is not None
    assert init.shape == (10, 10, 3)
    assert init[5, 1].tolist() == [255, 0, 0]
    assert init[5, 8].tolist() == [0, 0, 255]


def test_exif_orientation_is_applied_and_transparency_lies_over_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right
    data = encoded(halves(8, 8), "JPEG", exif=exif, quality=100, subsampling=0)
    init = made(data).init_HWC
    assert init is not None
    assert init[0, 4, 0] > 200 > init[7, 4, 0]
    clear = made(png(mode="RGBA", colour=(255, 0, 0, 0))).init_HWC
    assert clear is not None
    assert (clear == 255).all()
    assert InputReader(Path.cwd()).read(encoded(halves(8, 4), "JPEG", exif=exif), "row 0").height == 8


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 128), ("LA", (128, 255)), ("P", 128), ("1", 1), ("I;16", 128 * 257), ("CMYK", (0, 0, 0, 127))]
)
def test_all_kinds_of_pixels_become_rgb(mode: str, colour: object) -> None:
    init = made(encoded(Image.new(mode, (8, 8), colour), "TIFF" if mode == "CMYK" else "PNG")).init_HWC  # type: ignore[arg-type]
    assert init is not None
    assert init.shape == (8, 8, 3)
    if mode in ("L", "LA", "I;16", "CMYK"):
        assert (init == 128).all()


def test_a_mask_is_white_where_the_image_is_painted_anew_and_must_fit_its_image() -> None:
    files = {
        "i": encoded(halves(8, 8)),
        "m": encoded(Image.fromarray(np.where(np.arange(8) < 3, 255, 0).astype(np.uint8)[None].repeat(8, 0))),
    }
    draw = make_draw(width=8, height=8, mode="inpainting", init_sha256="i", mask_sha256="m")
    mask = conditions(draw, files.__getitem__).mask_HW
    assert mask is not None
    assert mask.dtype == bool
    assert mask[0].tolist() == [True] * 3 + [False] * 5
    files["m"] = png(9, 8)
    with pytest.raises(BadInput, match="the mask has 9 x 8 pixels, its image 8 x 8"):
        conditions(draw, files.__getitem__)


def test_margins_make_a_canvas_whose_border_is_to_be_painted() -> None:
    found = made(encoded(halves(8, 8)), 16, 8, input_transform="margins 6 0 2 0")
    assert found.init_HWC is not None
    assert found.mask_HW is not None
    assert found.mask_HW[3].tolist() == [True] * 6 + [False] * 8 + [True] * 2
    assert np.array_equal(found.init_HWC[:, 6:14], np.asarray(halves(8, 8)))
    assert (found.init_HWC[:, :6] == [255, 0, 0]).all()


def test_canny_finds_the_edge_of_two_halves() -> None:
    draw = make_draw(width=16, height=16, mode="control", control_sha256="c", input_transform="canny 100 200")
    edges = conditions(draw, {"c": encoded(halves(16, 16))}.__getitem__).control_HWC
    assert edges is not None
    assert set(np.unique(edges)) == {0, 255}
    assert edges[8, 6:10, 0].any()
    assert not edges[:, :5].any()


def test_a_torn_file_is_a_bad_input() -> None:
    with pytest.raises(BadInput, match="cannot be decoded"):
        made(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))[:2000])
