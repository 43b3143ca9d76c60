"""An image model of which one batch is recorded, operator by operator: torch's profiler, as a Chrome trace."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from pipeline.inputs import Conditions
from pipeline.models.base import Generated, ImageModel, Timed
from schemas.records import Draw

RECORDED_CALL = 2  # the first one allocates, compiles, warms up
MOST_EVENTS = 50_000  # the longest are kept; about 1 MB when compressed


class ProfiledModel:
    """Passes calls on. ``save`` gets the trace, JSON, once."""

    def __init__(self, model: ImageModel, save: Callable[[bytes], None]) -> None:
        self.name, self.revision = model.name, model.revision
        self._model = model
        self._save = save
        self._calls = 0

    def take_seconds(self) -> Mapping[str, float]:
        """The model's own, if it tells them."""
        return self._model.take_seconds() if isinstance(self._model, Timed) else {}

    def generate(self, draws: Sequence[Draw], conditions: Sequence[Conditions] = ()) -> Generated:
        """What the model makes."""
        self._calls += 1
        if self._calls != RECORDED_CALL:
            return self._model.generate(draws, conditions)
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler:
            made = self._model.generate(draws, conditions)
        self._save(_bounded(profiler))
        return made


def _bounded(profiler: torch.profiler.profile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_bytes())
    events = trace["traceEvents"]
    timed = sorted((event for event in events if "dur" in event), key=lambda event: -event["dur"])
    names = [event for event in events if event.get("ph") == "M"]
    return json.dumps(trace | {"traceEvents": names + timed[:MOST_EVENTS]}).encode()
