"""Each switch of ``model.compute`` takes effect or is refused; with each an image still depends on its draw and on no neighbour."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import switches
from pipeline.models.diffusers_model import DiffusersModel
from schemas.config import ComputeConfig
from schemas.errors import ModelError
from tests.pipeline.models import tiny_families
from tests.pipeline.models.conftest import load, make_draw
from tests.pipeline.models.tiny import diffusers

Folder = Callable[[str], Path]
Loaded = Callable[[str], DiffusersModel]
STEPS = 6
torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="an extra that slows the import of diffusers by a second")
SEEN = {"vae_tiling", "quantize", "step_cache"}  # change more than the last bits
ON_CPU = [  # what can be tried without a GPU: family, switches
    ("sd", {"channels_last": True}),
    ("sd", {"vae_slicing": True}),
    ("sd", {"vae_tiling": True}),
    pytest.param("sd", {"quantize": "int8_weights"}, marks=torchao),
    pytest.param("sd", {"quantize": "int8"}, marks=torchao),
    pytest.param("sd", {"quantize": "float8_weights"}, marks=torchao),
    ("sd", {"step_cache": {"kind": "pyramid_attention"}}),
    ("sd3", {"step_cache": {"kind": "pyramid_attention", "interval": 3}}),
    ("flux", {"attention": "native_math"}),
    ("flux", {"step_cache": {"kind": "first_block", "threshold": 0.3}}),
    ("flux", {"step_cache": {"kind": "taylor", "interval": 2}}),
    pytest.param("sd", {"compile": "regional"}, marks=pytest.mark.slow),
]


def switched(folder: Path, compute: dict[str, Any]) -> DiffusersModel:
    model = load(folder, compute=ComputeConfig.model_validate(compute))
    assert isinstance(model, DiffusersModel)
    return model


def draw(index: int, **changes: object) -> Any:
    return make_draw(index, **{"steps": STEPS, "width": 64, "height": 64} | changes)


def images(model: DiffusersModel, *indices: int) -> np.ndarray:
    return model.generate([draw(index) for index in indices]).images_NHWC.astype(int)


@pytest.fixture(autouse=True)
def attention_of_torch() -> Iterator[None]:
    """diffusers keeps the chosen kernel for the whole process."""
    yield
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


@pytest.mark.parametrize(
    ("family", "compute"), ON_CPU, ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.items()))
)
def test_with_each_switch_an_image_depends_on_no_neighbour_and_no_earlier_batch(
    model_folder: Folder, loaded: Loaded, family: str, compute: dict
) -> None:
    model = switched(model_folder(family), compute)
    first, second, again = images(model, 0, 1), images(model, 1, 7), images(model, 0, 1)
    assert np.array_equal(first[1], second[0])
    assert np.array_equal(first, again)
    worst = np.abs(first - images(loaded(family), 0, 1)).max()
    assert worst > 0 if SEEN & set(compute) else worst <= 2


def test_channels_last_lays_out_network_and_autoencoder(model_folder: Folder) -> None:
    pipe = switched(model_folder("sd"), {"channels_last": True})._pipe
    for part in (pipe.unet, pipe.vae):
        weights = [one.weight for one in part.modules() if isinstance(one, torch.nn.Conv2d) and one.weight.shape[1] > 1]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_slicing_decodes_one_image_at_a_time_and_tiling_a_part_of_one(model_folder: Folder) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}
    for name, compute in {"plain": {}, "slicing": {"vae_slicing": True}, "tiling": {"vae_tiling": True}}.items():
        model = switched(model_folder("sd"), compute)
        model._pipe.vae.decoder.register_forward_pre_hook(
            lambda part, args, name=name: seen.setdefault(name, []).append(tuple(args[0].shape))
        )
        images(model, 0, 1)
    assert seen["plain"] == [(2, 4, 32, 32)]
    assert seen["slicing"] == [(1, 4, 32, 32)] * 2
    assert all(shape[0] == 2 and max(shape[2:]) < 32 for shape in seen["tiling"])


@torchao
@pytest.mark.parametrize(("kind", "dtype"), [("int8_weights", torch.int8), ("int8", torch.int8), ("float8_weights", torch.float8_e4m3fn)])
def test_quantizing_stores_the_linear_layers_in_a_byte_a_weight(model_folder: Folder, kind: str, dtype: torch.dtype) -> None:
    core = switched(model_folder("sd"), {"quantize": kind})._pipe.unet
    linear: list[Any] = [part.weight for part in core.modules() if isinstance(part, torch.nn.Linear)]
    assert linear
    assert all(weight.qdata.dtype == dtype for weight in linear)


@pytest.mark.parametrize(
    ("family", "compute", "part"),
    [
        ("sd", {"kind": "pyramid_attention"}, "attn1"),
        ("sd3", {"kind": "pyramid_attention"}, "attn"),
        ("flux", {"kind": "taylor"}, "attn"),
        ("flux", {"kind": "first_block", "threshold": 0.9}, "attn"),
    ],
)
def test_a_step_cache_leaves_work_out(model_folder: Folder, loaded: Loaded, family: str, compute: dict, part: str) -> None:
    calls: dict[bool, int] = {}
    for cached in (False, True):
        model = switched(model_folder(family), {"step_cache": compute}) if cached else loaded(family)
        core = switches.network(model._pipe)
        last = [one for name, one in core.named_modules() if name.split(".")[-1] == part][-1]
        seen: list[object] = []
        last.to_q.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        images(model, 0)
        calls[cached] = len(seen)
    assert 0 < calls[True] < calls[False]


def test_a_chosen_attention_is_set_in_every_block(model_folder: Folder) -> None:
    core = switched(model_folder("flux"), {"attention": "native_math"})._pipe.transformer
    chosen = [part.processor._attention_backend.value for part in core.modules() if hasattr(part, "processor")]
    assert chosen
    assert set(chosen) == {"_native_math"}


@pytest.mark.parametrize(("how", "method"), [("model", "enable_model_cpu_offload"), ("sequential", "enable_sequential_cpu_offload")])
def test_on_a_gpu_offloading_is_left_to_diffusers(model_folder: Folder, monkeypatch: pytest.MonkeyPatch, how: str, method: str) -> None:
    called: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(diffusers.DiffusionPipeline, method, lambda pipe: called.append(pipe))
    pipe = switched(model_folder("sd"), {"offload": how})._pipe
    assert called == [pipe]
    assert pipe.device.type == "cpu"  # where offloading has to begin


@pytest.mark.slow
def test_a_compiled_network_is_kept_on_disk_for_later_runs(model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        model = switched(model_folder("sd"), {"compile": "whole"})
        model.generate([make_draw(0, steps=2)])
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"]))
    assert found[0][0] > 0 == found[0][1]
    assert found[1][0] == 0 < found[1][1]


REFUSED = [
    ("sd", {"offload": "model"}, "model.compute.offload: there is no GPU on this machine to take weights from; take it out"),
    ("sd", {"attention": "native"}, "model.compute.attention: the attention of UNet2DConditionModel cannot be chosen"),
    ("flux", {"attention": "sage"}, "model.compute.attention: sage cannot be used here (Sage Attention backend 'sage' is not usable"),
    ("sd", {"step_cache": {"kind": "first_block"}}, "step_cache: first_block does not fit StableDiffusionPipeline; use pyramid_attention"),
    (
        "flux",
        {"step_cache": {"kind": "pyramid_attention"}},
        "step_cache: pyramid_attention does not fit FluxPipeline; use first_block or taylor",
    ),
    (
        "sd3",
        {"compile": "regional"},
        "compile: SD3Transformer2DModel has no blocks that diffusers knows to repeat; use whole, or take it out",
    ),
    ("ddpm", {"vae_slicing": True}, "vae_slicing: DDPMPipeline decodes without an autoencoder that can do it; take it out"),
]


@pytest.mark.parametrize(("family", "compute", "expected"), REFUSED)
def test_what_has_no_effect_is_refused_in_one_line(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, compute: dict, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tiny_families.BUILDERS[family](tmp_path) if family in tiny_families.BUILDERS else model_folder(family)
    with pytest.raises(ModelError) as caught:
        switched(folder, compute)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_torchao_quantizing_is_refused(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModelError, match=r"needs torchao; run: pip install 'promptmill\[quantize\]'"):
        switched(model_folder("sd"), {"quantize": "int8"})


def test_without_a_compiler_compiling_is_refused(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ModelError, match=r"model.compute.compile: there is no C\+\+ compiler on this machine; install g\+\+, or take it out"
    ):
        switched(model_folder("sd"), {"compile": "whole"})
