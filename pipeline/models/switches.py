"""``model.compute`` put into effect on a loaded pipeline. What cannot take effect is refused in one line, never passed over in silence."""

import importlib
import importlib.util
import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig

from schemas.config import ComputeConfig, StepCacheConfig
from schemas.errors import ModelError

_UNDERSCORED = ("native_", "flash_3")  # diffusers writes the names of these kernels with a _ before
_RECOMPILES = 64  # shapes of blocks and images that one function is compiled for; a U-Net's blocks alone have several


def put_on_device(pipe: Any, compute: ComputeConfig) -> Any:
    """Move a pipeline to the GPU if there is one, and turn its switches on. Raises ModelError for one that has no effect on it."""
    core = network(pipe)
    gpu = torch.cuda.is_available()
    if compute.offload and not gpu:
        raise _refused("offload", "there is no GPU on this machine to take weights from")
    if not compute.offload:
        pipe.to("cuda" if gpu else "cpu")
    if compute.quantize:
        _quantize(core, compute.quantize)
    if compute.channels_last:
        _lay_out(pipe)
    if compute.attention:
        _choose_attention(core, compute.attention)
    if compute.step_cache:
        _cache_steps(pipe, core, compute.step_cache)
    if compute.compile:
        _compile(core, compute.compile, gpu=gpu)
    for wanted, key, method in (
        (compute.vae_slicing, "vae_slicing", "enable_slicing"),
        (compute.vae_tiling, "vae_tiling", "enable_tiling"),
    ):
        if wanted:
            _of_the_vae(pipe, key, method)
    if compute.offload:
        offload(pipe, compute.offload)
    return pipe


def network(pipe: Any) -> Any:
    """The network that is called at each step."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def forget_steps(core: Any) -> None:
    """Let go of what a step cache keeps, also after a batch that broke off half-way."""
    HookRegistry.check_if_exists_or_initialize(core).reset_stateful_hooks(recurse=True)


def offload(pipe: Any, how: str) -> None:
    """Keep weights in main memory between their uses; ``model``: a part at a time, ``sequential``: a layer at a time."""
    pipe.enable_model_cpu_offload() if how == "model" else pipe.enable_sequential_cpu_offload()


def _quantize(core: Any, kind: str) -> None:
    try:
        with _quiet("torch.utils._pytree"):
            torchao: Any = importlib.import_module("torchao.quantization")
    except ImportError:
        raise ModelError("model.compute.quantize: needs torchao; run: pip install 'promptmill[quantize]'") from None
    kinds = {
        "int8_weights": torchao.Int8WeightOnlyConfig,
        "int8": torchao.Int8DynamicActivationInt8WeightConfig,
        "float8_weights": torchao.Float8WeightOnlyConfig,
    }
    if not any(isinstance(part, torch.nn.Linear) for part in core.modules()):
        raise _refused("quantize", f"{type(core).__name__} has no linear layers")
    torchao.quantize_(core, kinds[kind]())


def _lay_out(pipe: Any) -> None:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module) and _convolves(part)]
    if not parts:
        raise _refused("channels_last", f"{type(pipe).__name__} has no convolutions")
    for part in parts:
        part.to(memory_format=torch.channels_last)


def _convolves(part: torch.nn.Module) -> bool:
    return sum(isinstance(one, torch.nn.Conv2d) for one in part.modules()) > 1  # one alone cuts an image into patches


def _choose_attention(core: Any, name: str) -> None:
    if not any(hasattr(getattr(part, "processor", None), "_attention_backend") for part in core.modules()):
        raise _refused("attention", f"the attention of {type(core).__name__} cannot be chosen, it is torch's own")
    try:
        with _quiet("diffusers.models.modeling_utils"):
            core.set_attention_backend(f"_{name}" if name.startswith(_UNDERSCORED) else name)
    except (RuntimeError, ImportError, ValueError) as error:
        raise _refused("attention", f"{name} cannot be used here ({str(error).splitlines()[0]})") from None


def _cache_steps(pipe: Any, core: Any, cache: StepCacheConfig) -> None:
    """Which kind fits: pipelines that make the passes of guidance one after the other tell their caches which one it is
    (``cache_context``); the others make them in one batch, and pyramid attention, which does not ask, fits only these.
    """
    tells_passes = "cache_context(" in inspect.getsource(type(pipe).__call__)
    if (cache.kind != "pyramid_attention") != tells_passes:
        fit = "first_block or taylor" if tells_passes else "pyramid_attention"
        raise _refused("step_cache", f"{cache.kind} does not fit {type(pipe).__name__}; use {fit}")
    if cache.kind == "first_block":
        core.enable_cache(FirstBlockCacheConfig(threshold=cache.threshold))
    elif cache.kind == "taylor":
        core.enable_cache(TaylorSeerCacheConfig(cache_interval=cache.interval, taylor_factors_dtype=core.dtype))
    else:
        settings = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=cache.interval,
            cross_attention_block_skip_range=cache.interval,
            current_timestep_callback=_timestep_of(core),
        )
        apply_pyramid_attention_broadcast(core, settings)


def _timestep_of(core: Any) -> Callable[[], int]:
    """The timestep, 0 to 1000, that the network is called with: not every pipeline tells it."""
    seen = [0]

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = kwargs.get("timestep", args[1] if len(args) > 1 else 0)
        seen[0] = int(value.flatten()[0] if isinstance(value, torch.Tensor) else value)

    core.register_forward_pre_hook(note, with_kwargs=True)
    return lambda: seen[0]


def _compile(core: Any, how: str, *, gpu: bool) -> None:
    """Every shape is compiled for itself, none is left to be run as it is: which would be, is a matter of order."""
    _refuse_without_compiler(gpu=gpu)
    dynamo, inductor = _settings("torch._dynamo.config"), _settings("torch._inductor.config")
    dynamo.recompile_limit = _RECOMPILES
    dynamo.fail_on_recompile_limit_hit = True
    inductor.deterministic = True  # else kernels are chosen by a clock
    warnings.filterwarnings("ignore", module=r"torch\._dynamo")  # of functions that it looks through and a user cannot change
    if how == "whole":
        core.compile(dynamic=False)
        return
    try:
        core.compile_repeated_blocks(dynamic=False)
    except (ValueError, AttributeError):
        raise _refused("compile", f"{type(core).__name__} has no blocks that diffusers knows to repeat", "use whole") from None


def _refuse_without_compiler(*, gpu: bool) -> None:
    if gpu and importlib.util.find_spec("triton") is None:
        raise _refused("compile", "triton is missing", "pip install triton")
    names = _settings("torch._inductor.config").cpp.cxx
    if not gpu and not any(shutil.which(name) for name in names if name):
        raise _refused("compile", "there is no C++ compiler on this machine", "install g++")


def _settings(module: str) -> Any:
    return importlib.import_module(module)


def _of_the_vae(pipe: Any, key: str, method: str) -> None:
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    if not hasattr(vae, method):
        raise _refused(key, f"{type(pipe).__name__} decodes without an autoencoder that can do it")
    try:
        getattr(vae, method)()
    except NotImplementedError:
        raise _refused(key, f"{type(vae).__name__} cannot do it") from None


def _refused(key: str, why: str, remedy: str = "") -> ModelError:
    return ModelError(f"model.compute.{key}: {why}; {remedy + ', or ' if remedy else ''}take it out")


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without the notices of a library that its interface may change."""
    level, log = logging.getLogger(logger).level, logging.getLogger(logger)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
