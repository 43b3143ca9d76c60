"""Fakes behind the pipeline's own protocols, for faults and for speed. Real models are used where pixels matter.

Words in a prompt make the fake model misbehave: ``RAISE`` (the batch raises), ``NAN`` (not finite),
``BLANK`` (one flat colour), ``EXIT`` (the process dies, once per marker file), ``SLOW`` (a twentieth of a second),
``SEGFAULT`` (the process dies), ``HANG`` (for ever), ``UNLESS path`` (raises until that file is there), ``UNTIL path``
(slow until then), ``WAIT path`` (waits until then; its process's id goes to ``path.begun``).
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.prepare import Prepared
from pipeline.inputs import Conditions
from pipeline.models.base import Generated, ImageModel
from pipeline.models.resolve import ModelCard
from pipeline.scorers.resolve import ScorerCard, resolve_scorer
from pipeline.store import LocalStore
from schemas.config import JobConfig, ModelConfig, SamplingConfig
from schemas.config_load import parse
from schemas.errors import ModelError, RunFolderError
from schemas.records import Draw, Outcome

LOADER = "tests.fakes:load_fake"
SLOW_SECONDS = 0.05  # for a prompt that says SLOW
CARD = ModelCard(
    name="fake",
    revision="sha256:0123456789abcdef",
    folder="/nowhere",
    pipeline_class="FakePipeline",
    width=16,
    height=16,
    size_multiple=8,
    max_size=None,
    scheduler="DDIMScheduler",
    prediction_type="epsilon",
)


class FakeModel:
    """Images that are a pure function of the draw: noise of its seed, tinted by its guidance."""

    name = CARD.name
    revision = CARD.revision

    def __init__(self, largest_batch: int = 1000) -> None:
        self.calls: list[int] = []
        self.largest_batch = largest_batch

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        self.calls.append(len(draws))
        if len(draws) > self.largest_batch:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(draws)}.00 GiB")
        for draw in draws:
            _misbehave(draw.prompt)
        images = np.stack([_image(draw) for draw in draws])
        words = [len(draw.prompt.split()) for draw in draws]
        return Generated(
            images_NHWC=images,
            finite=np.array(["NAN" not in draw.prompt for draw in draws]),
            prompt_tokens=words,
            prompt_truncated=[count > 75 for count in words],
            safety_flagged=[None] * len(draws),
        )


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


class Brightness:
    """A scorer in ten lines: the mean pixel, 0 to 1."""

    def __init__(self, card: ScorerCard) -> None:
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        means = images_NHWC.reshape(len(images_NHWC), -1).mean(axis=1) / 255
        return np.array([np.nan if "UNSURE" in p else m for m, p in zip(means, prompts, strict=True)], dtype=np.float32)


def load_fake(card: ModelCard, config: ModelConfig) -> FakeModel:
    """Stands in for ``pipeline.models.load_model``."""
    return FakeModel()


def load_small(card: ModelCard, config: ModelConfig) -> FakeModel:
    """A model on a device that holds two images at a time."""
    return FakeModel(largest_batch=2)


DEATHS = ("sample", "score", "encode", "before images", "between the files", "before the marker", "after the marker")


def load_mortal(card: ModelCard, config: ModelConfig) -> FakeModel:
    """A model whose process is killed with -9 at each step of DEATHS, once each in a run."""
    from pipeline import shard

    def die(step: str | None) -> None:
        with contextlib.suppress(FileExistsError):
            if step:
                Path(os.environ["PROMPTMILL_TEST_NODE"], f"at {step}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    def before(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: (die(step), function(*arguments))[1]

    def put(self: LocalStore, name: str, data: bytes) -> None:
        folder = name.split("/")[0]
        die({"images": "before images", "metadata": "between the files", "done": "before the marker"}.get(folder))
        publish(self, name, data)
        die("after the marker" if folder == "done" else None)

    publish, LocalStore.put = LocalStore.put, put
    shard.score_batch, shard.encode = before("score", shard.score_batch), before("encode", shard.encode)
    model = FakeModel()
    model.generate = before("sample", model.generate)
    return model


class GatedStore(LocalStore):
    """A folder whose ``images`` are published once the file PROMPTMILL_TEST_GATE is there; those that wait are files beside it.

    Shard 3 is refused if the gate says so.
    """

    def put(self, name: str, data: bytes) -> None:
        gate = Path(os.environ["PROMPTMILL_TEST_GATE"])
        if name.startswith("images/"):
            gate.with_suffix(f".{Path(name).stem}").touch()
            _wait_for(gate)
            if name == "images/00003.parquet" and gate.read_text() == "refuse":
                raise RunFolderError(f"{name}: refused")
        super().put(name, data)


def load_before_a_gate(card: ModelCard, config: ModelConfig) -> FakeModel:
    """A model whose images go to a GatedStore."""
    from pipeline import worker

    worker.open_store = GatedStore
    return FakeModel()


def load_where_it_may(card: ModelCard, config: ModelConfig) -> FakeModel:
    """A model whose files are missing on nodes that were started with PROMPTMILL_TEST_BARE."""
    if os.environ.get("PROMPTMILL_TEST_BARE"):
        raise ModelError(f"model {card.name}: there is no folder {card.folder} on this machine; copy it there")
    return FakeModel()


def load_real_before_a_gate(card: ModelCard, config: ModelConfig) -> ImageModel:
    """The real model, if this machine has it; not before the file PROMPTMILL_TEST_GATE is there."""
    from pipeline.models import load_model

    model = load_model(card, config)
    _wait_for(Path(os.environ["PROMPTMILL_TEST_GATE"]))
    return model


def fake_config(**sections: Any) -> JobConfig:
    """A small valid configuration over the fake model and scorer."""
    raw = {
        "prompts": {"texts": [f"picture {n}" for n in range(10)], "draws_per_prompt": 2},
        "model": "fake",
        "sampling": {"batch_size": 4, "steps": 1},
        "scorers": {"bright": {"type": "tests.fakes:Brightness"}},
        "output": {"shard_size": 8},
        "executor": {"kind": "local"},
    }
    for name, value in sections.items():
        old = raw.get(name)
        raw[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return parse(raw, "test")


def sized(config: JobConfig, size_px: int) -> list[SamplingConfig]:
    """The settings of a job at one size."""
    return [sampling.model_copy(update={"width": size_px, "height": size_px}) for sampling in config.sampling.settings()]


def fake_job(base_dir: Path, **sections: Any) -> Prepared:
    """A prepared job over the fake model; give ``sections`` to change the configuration."""
    config = fake_config(**sections)
    cards = tuple(resolve_scorer(name, scorer, base_dir=base_dir) for name, scorer in config.scorers.items())
    return Prepared(name="job", config=config, base_dir=base_dir, model=CARD, scorers=cards)


def scorer_card(name: str = "bright") -> ScorerCard:
    """The card of the fake scorer."""
    return ScorerCard(name=name, type="tests.fakes:Brightness", version="1", target="tests.fakes:Brightness", model=None, folder=None)


def make_draw(number: int = 0, **changes: Any) -> Draw:
    """A draw of the fake model."""
    fields: dict[str, Any] = {
        "prompt_id": f"{number:06d}",
        "draw_index": 0,
        "prompt": f"picture {number}",
        "negative_prompt": "",
        "label": None,
        "tags": {},
        "mode": "text-to-image",
        "model": CARD.name,
        "model_revision": CARD.revision,
        "loras": (),
        "scheduler": "default",
        "steps": 1,
        "guidance_scale": 5.0,
        "strength": None,
        "width": 16,
        "height": 16,
        "seed": number,
        "dtype": "float32",
        "init_sha256": None,
        "mask_sha256": None,
        "control_sha256": None,
    }
    return Draw(**fields | changes)


def make_outcome(draw: Draw | None = None, **changes: Any) -> Outcome:
    """An outcome with an image, unless ``image=None`` is given."""
    fields: dict[str, Any] = {
        "draw": draw or make_draw(),
        "image": b"bytes",
        "image_sha256": "00",
        "phash": "0" * 16,
        "is_blank": False,
        "safety_flagged": None,
        "scores": {"bright": 0.5},
        "scores_truncated": {"bright": None},
        "prompt_tokens": 2,
        "prompt_truncated": False,
        "batch_shape": "4x16x16",
    }
    return Outcome(**fields | changes)


def _wait_for(file: Path) -> None:
    until = time.monotonic() + 600
    while not file.exists():
        assert time.monotonic() < until, f"{file} does not come"
        time.sleep(0.02)


def _image(draw: Draw) -> np.ndarray:
    if "BLANK" in draw.prompt:
        return np.zeros((draw.height, draw.width, 3), np.uint8)
    return np.random.default_rng(draw.seed).integers(0, 256, (draw.height, draw.width, 3), dtype=np.uint8)


def _misbehave(prompt: str) -> None:
    if "SLOW" in prompt:
        time.sleep(SLOW_SECONDS)
    if "UNTIL" in prompt and not Path(prompt.split("UNTIL ", 1)[1]).exists():
        time.sleep(SLOW_SECONDS)
    if "SEGFAULT" in prompt:
        ctypes.string_at(0)
    if "HANG" in prompt:
        time.sleep(3600)
    if "WAIT" in prompt:
        file = Path(prompt.split("WAIT ", 1)[1])
        file.with_suffix(".begun").write_text(str(os.getpid()))
        _wait_for(file)
    if "UNLESS" in prompt and not Path(prompt.split("UNLESS ", 1)[1]).exists():
        raise RuntimeError("the file is not there")
    if "RAISE" in prompt:
        raise RuntimeError("the model does not like this prompt")
    if "EXIT" in prompt:
        marker = Path(prompt.split("EXIT ", 1)[1])
        if not marker.exists():
            marker.touch()
            os._exit(1)


CALLERS: set[int] = set()  # threads that loaded or called a model of load_observed


def load_observed(card: ModelCard, config: ModelConfig) -> FakeModel:
    """A model that notes the threads which it is called from."""
    model = FakeModel()
    generate = model.generate

    def observed(draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        CALLERS.add(threading.get_ident())
        return generate(draws, conditions)

    model.generate = observed
    CALLERS.add(threading.get_ident())
    return model
