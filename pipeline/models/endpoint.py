"""A server that speaks OpenAI's images API as an ``ImageModel``: it draws, this machine only asks, scores and writes.

Each draw is a request of its own. What a server sends is not reproducible, so such images cannot be made again;
everything else holds: one row per draw, whatever happens to the server or to the run.

Fields: https://platform.openai.com/docs/api-reference/images,
https://docs.vllm.ai/projects/vllm-omni/en/latest/serving/image_edit_api/,
https://docs.vllm.ai/projects/vllm-omni/en/stable/serving/image_generation_api/.
"""

import base64
import binascii
import io
import json
import threading
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.inputs import Conditions, with_kept_pixels
from pipeline.models.base import Generated
from pipeline.models.endpoint_client import Again, EndpointClient, NoAnswer
from pipeline.models.resolve import ModelCard
from schemas.config import ModelConfig
from schemas.records import Draw

PATHS = {
    "text-to-image": "images/generations",
    "image-to-image": "images/edits",
    "inpainting": "images/edits",
    "outpainting": "images/edits",
}
"""Path of a mode below the URL."""


class EndpointModel:
    """Asks for images, ``concurrency`` at a time. ``generate`` may cost money."""

    def __init__(self, card: ModelCard, config: ModelConfig) -> None:
        """Raises ModelError if the key's variable is not set here. Sends nothing."""
        assert config.endpoint is not None
        self.name, self.revision = card.name, card.revision
        self._config = config.endpoint
        self._client = EndpointClient(card.name, config.endpoint)
        self._pool = ThreadPoolExecutor(config.endpoint.concurrency, thread_name_prefix="endpoint")
        self._usage: Counter[str] = Counter()
        self._lock = threading.Lock()

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        """Images of the draws, in order; a draw that fills up the batch is not asked for twice.

        Raises ModelError where no draw can succeed: a wrong key, an unknown model, no money, no answer.
        """
        pairs = zip(draws, conditions or [Conditions()] * len(draws), strict=True)
        futures = {name: self._pool.submit(self._one, *pair) for name, pair in {pair[0].sample_id: pair for pair in pairs}.items()}
        try:
            made = {name: future.result() for name, future in futures.items()}
        finally:
            for future in futures.values():
                future.cancel()
        found = [made[draw.sample_id] for draw in draws]
        blank = np.zeros((draws[0].height, draws[0].width, 3), np.uint8)
        return Generated(
            images_NHWC=with_kept_pixels(np.stack([blank if isinstance(one, str) else one for one in found]), conditions),
            finite=np.ones(len(draws), dtype=bool),
            prompt_tokens=[None] * len(draws),
            prompt_truncated=[None] * len(draws),
            safety_flagged=[None] * len(draws),
            errors={index: one for index, one in enumerate(found) if isinstance(one, str)},
        )

    def take_usage(self) -> Mapping[str, float]:
        """Requests sent, images received and their cost since the last call."""
        with self._lock:
            usage, self._usage = self._usage, Counter()
        usage["requests"] += self._client.take_requests()
        return {"requests": usage["requests"], "images": usage["images"], "cost": usage["images"] * self._config.price_per_image}

    def _one(self, draw: Draw, given: Conditions) -> np.ndarray | str:
        """uint8 (H, W, 3), or why there is none."""
        try:
            found = self._client.post(PATHS[draw.mode], self._fields(draw), _files(given), self._read)
            data = found if isinstance(found, bytes) else self._client.get(found)
            with self._lock:
                self._usage["images"] += 1
            return _pixels(data, draw.width, draw.height)
        except NoAnswer as error:
            return str(error)

    def _read(self, answer: bytes) -> bytes | httpx2.URL:
        """The encoded image, or where it lies."""
        try:
            first = json.loads(answer)["data"][0]
            if first.get("b64_json"):
                return base64.b64decode(first["b64_json"], validate=True)
            return self._client.address(first["url"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, binascii.Error, httpx2.InvalidURL):
            raise Again("the answer holds no image") from None

    def _fields(self, draw: Draw) -> dict[str, Any]:
        """What the server is told; what it has no field for was refused when the job was read."""
        fields: dict[str, Any] = {"model": self.name, "prompt": draw.prompt, "n": 1, "size": f"{draw.width}x{draw.height}"}
        if self._config.response_format:
            fields["response_format"] = self._config.response_format
        if self._config.dialect == "diffusion":
            fields |= {"seed": draw.seed, "num_inference_steps": draw.steps, "guidance_scale": draw.guidance_scale}
            fields |= {"true_cfg_scale": draw.true_cfg_scale} if draw.true_cfg_scale is not None else {}
            fields |= {"negative_prompt": draw.negative_prompt} if draw.negative_prompt else {}
            fields |= {"strength": draw.strength} if draw.strength is not None else {}
        return fields | dict(self._config.request)


def _files(given: Conditions) -> dict[str, bytes]:
    """Input images as PNG. The mask is transparent where the image is painted anew (OpenAI's API reference, create image edit)."""
    if given.init_HWC is None:
        return {}
    files = {"image": Image.fromarray(given.init_HWC)}
    if given.mask_HW is not None:
        alpha = np.where(given.mask_HW, 0, 255).astype(np.uint8)
        files["mask"] = Image.fromarray(np.dstack([given.init_HWC, alpha]))
    return {name: _png(picture) for name, picture in files.items()}


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()


def _pixels(data: bytes, width: int, height: int) -> np.ndarray:
    """The picture, transparent parts on white. Its size is compared before pixels are decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
                if picture.size != (width, height):
                    found = f"{picture.width} x {picture.height}"
                    raise NoAnswer(
                        "wrong_size", f"asked for {width} x {height} px, got {found}; set sampling.width and height to what it makes"
                    )
                rgba = picture.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise NoAnswer("bad_image", f"the server sent no PNG, JPEG or WebP that can be read ({type(error).__name__})") from None
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
