"""Images that condition a draw: read from a prompt source, kept in the run folder, made fit for the sampler.

They come from users, so nothing about them is trusted: paths must lie in allowed folders, only raster formats
are opened, size is checked in the header before a pixel is decoded. A run keeps a copy of each under its
sha256, so that the run folder alone suffices to make an image again.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.store import is_url, open_objects
from schemas.errors import PromptError
from schemas.records import Draw, InputImage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 2**26  # 67 megapixels


class BadInput(ValueError):
    """An input image that cannot be decoded or used; the draw fails, its neighbours go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What conditions one draw besides its text, None where the mode has no such input.

    ``init_HWC`` and ``control_HWC``: uint8 (H, W, 3). ``mask_HW``: bool (H, W), True where the image is painted anew.
    ``reference_HWC``: uint8, of the size that the picture has, which is not that of the draw.
    """

    init_HWC: np.ndarray | None = None
    mask_HW: np.ndarray | None = None
    control_HWC: np.ndarray | None = None
    reference_HWC: np.ndarray | None = None


class InputReader:
    """Reads the images that a prompt source names or holds. Paths are relative to ``folder``.

    ``allowed`` are further folders, and URLs of folders in an object store.
    """

    def __init__(self, folder: Path, allowed: Sequence[str | Path] = ()) -> None:
        self._folder = folder
        self._allowed = [Path(path).resolve() for path in (folder, *allowed) if not is_url(path)]
        self._stores = {root: open_objects(root) for root in (str(path).rstrip("/") for path in allowed if is_url(path))}

    def read(self, value: object, where: str) -> InputImage:
        """The image of a path, of bytes, or of a struct with ``bytes`` or ``path``. Raises PromptError."""
        value = bytes_or_path(value)
        if isinstance(value, str):
            where, value = f"{where} {value}", self._read_file(value, where)
        if not isinstance(value, bytes):
            raise PromptError(f"{where}: is {type(value).__name__}; give a path, or bytes in a Parquet column")
        _refuse_large(len(value), f"{where}:")
        width, height = _size(value, where)
        return InputImage(sha256=hashlib.sha256(value).hexdigest(), data=value, width=width, height=height)

    def _read_file(self, name: str, where: str) -> bytes:
        if is_url(name):
            return self._read_object(name, where)
        path = (self._folder / name).resolve()
        if not any(path.is_relative_to(folder) for folder in self._allowed):
            raise PromptError(f"{where}: {name} lies outside {self._allowed[0]}; add its folder to prompts.image_folders")
        if not path.is_file():
            raise PromptError(f"{where}: there is no file {path}; paths are relative to the prompt file's folder")
        _refuse_large(path.stat().st_size, f"{where}: {name}")
        return path.read_bytes()

    def _read_object(self, url: str, where: str) -> bytes:
        root = next((root for root in self._stores if url.startswith(f"{root}/")), None)
        if root is None or ".." in url.split("/"):
            raise PromptError(
                f"{where}: {url} is a URL in no folder of prompts.image_folders; name its folder there, as in s3://bucket/pictures,"
                " or download it"
            )
        try:
            data, num_bytes = self._stores[root].start(url.removeprefix(f"{root}/"), MAX_BYTES)
        except FileNotFoundError:
            raise PromptError(f"{where}: there is no object {url}") from None
        _refuse_large(num_bytes, f"{where}: {url}")
        return data


def bytes_or_path(value: object) -> object:
    """What a cell holds of an image; of a struct its ``bytes``, or without them its ``path``."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


def conditions(draw: Draw, get: Callable[[str], bytes]) -> Conditions:
    """The input images of a draw at the sampler's size; ``get`` gives the bytes of a sha256.

    EXIF orientation is applied and transparency laid over white. An image is scaled and cropped about its centre
    to fill the size; a reference is left as it is.
    ``draw.input_transform`` adds ``margins LEFT TOP RIGHT BOTTOM`` (pixels of a canvas to paint),
    ``canny LOW HIGH`` (edges of the control image) or ``downscale N`` (the init is 1/N of the size). Raises BadInput.
    """
    verb, *numbers = (draw.input_transform or "as-is").split()
    size = (draw.width, draw.height)
    if verb == "downscale":
        size = (draw.width // int(numbers[0]), draw.height // int(numbers[0]))
    init = _decoded(get(draw.init_sha256)) if draw.init_sha256 else None
    control = _decoded(get(draw.control_sha256)) if draw.control_sha256 else None
    if verb == "margins" and init is not None:
        return _on_canvas(init, size, *map(int, numbers))
    mask = _decoded(get(draw.mask_sha256)) if draw.mask_sha256 else None
    if init is not None and mask is not None and init.size != mask.size:
        raise BadInput(f"the mask has {mask.width} x {mask.height} pixels, its image {init.width} x {init.height}; make them equal")
    control_HWC = _pixels(control, size)
    if verb == "canny" and control_HWC is not None:
        control_HWC = canny(control_HWC, *map(int, numbers))
    reference = np.asarray(_decoded(get(draw.reference_sha256))) if draw.reference_sha256 else None
    return Conditions(init_HWC=_pixels(init, size), mask_HW=_mask(mask, size), control_HWC=control_HWC, reference_HWC=reference)


def with_kept_pixels(images_NHWC: np.ndarray, conditions: Sequence[Conditions]) -> np.ndarray:
    """The images with the init image's own pixels where its mask keeps them: decoding changes those of kept latents too."""
    kept = [
        image if one.mask_HW is None or one.init_HWC is None else np.where(one.mask_HW[..., None], image, one.init_HWC)
        for image, one in zip(images_NHWC, conditions, strict=bool(conditions))
    ]
    return np.stack(kept) if kept else images_NHWC


def canny(image_HWC: np.ndarray, low: int, high: int) -> np.ndarray:
    """White edges on black, uint8 (H, W, 3), as the public canny ControlNets were trained on (Canny 1986, by OpenCV).

    ``low`` and ``high`` are the hysteresis thresholds on the gradient, 0 to 255.
    """
    import cv2

    return np.repeat(cv2.Canny(np.ascontiguousarray(image_HWC), low, high)[:, :, None], 3, axis=2)


def _refuse_large(num_bytes: int, what: str) -> None:
    if num_bytes > MAX_BYTES:
        raise PromptError(f"{what} has {num_bytes:,} bytes, more than {MAX_BYTES:,}; scale it down")


def _size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels as the picture is meant to be seen, from the header alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                width, height = picture.size
                turned = picture.format != "PNG" and picture.getexif().get(0x0112, 1) >= 5  # of a PNG it would decode all
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise PromptError(f"{where}: is no image that can be read; use one of: {', '.join(FORMATS)}") from None
    if width * height > MAX_PIXELS:
        raise PromptError(f"{where}: has {width} x {height} pixels, more than {MAX_PIXELS:,} in all; scale it down")
    return (height, width) if turned else (width, height)


def _decoded(data: bytes) -> Image.Image:
    """The picture upright and in RGB, transparency over white."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            upright = ImageOps.exif_transpose(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"the input image cannot be decoded ({error})") from error
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    if upright.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(upright) // 257).astype(np.uint8)).convert("RGB")
    return upright.convert("RGB")


def _pixels(picture: Image.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    if picture is None:
        return None
    return np.asarray(picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS))


def _mask(picture: Image.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    """White is painted anew, black is kept; cropped as the init image is."""
    if picture is None:
        return None
    grey = picture.convert("L")
    return np.asarray(grey if grey.size == size else ImageOps.fit(grey, size, Image.Resampling.BILINEAR)) >= 128


def _on_canvas(init: Image.Image, size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Conditions:
    """The init image inside its margins, which repeat its border pixels and are to be painted."""
    inner = _pixels(init, (size[0] - left - right, size[1] - top - bottom))
    mask = np.ones((size[1], size[0]), dtype=bool)
    mask[top : size[1] - bottom, left : size[0] - right] = False
    assert inner is not None
    return Conditions(init_HWC=np.pad(inner, ((top, bottom), (left, right), (0, 0)), mode="edge"), mask_HW=mask)
