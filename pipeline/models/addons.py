"""What a job lays over a model: LoRA weights, textual-inversion embeddings, another autoencoder. No torch, no diffusers.

Found, checked through and pinned as the model itself is: safetensors only, and their contents are part of its revision.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.digests import file_sha256
from pipeline.models.folder import weight_files
from pipeline.weights import (
    HUB_ID,
    PICKLES,
    check_safetensors,
    fingerprint,
    hub_snapshot,
    is_whole,
    pickle_refused,
    read_json,
    safetensors_names,
)
from schemas.config import EmbeddingConfig, IpAdapterConfig, LoraConfig, ModelConfig, in_folder
from schemas.errors import ModelError

SDXL_EMBEDDINGS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Tensors of an embedding for two text encoders, and whose they are."""
_VAE_FILES = ("config.json", "diffusion_pytorch_model*.safetensors*")
_NAMELESS = "emb_params"  # of a file that leaves the token to its own name


@dataclass(frozen=True, slots=True, kw_only=True)
class Addon:
    """One of them: plain values, recorded in ``job.yaml`` with the model's.

    ``path`` is a safetensors file, of an autoencoder its folder. ``sha256`` is a digest of its contents. ``scale`` is that
    of a LoRA, ``token`` that of an embedding. ``repo`` and ``commit`` say where on the hub it comes from.
    """

    name: str
    path: str
    sha256: str
    repo: str | None = None
    commit: str | None = None
    scale: float | None = None
    token: str | None = None

    @property
    def label(self) -> str:
        """How a draw records a LoRA."""
        return f"{self.name}@{self.scale}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addons:
    """All of a job. Loras are sorted by name: floating-point sums depend on their order, an image must not."""

    loras: tuple[Addon, ...] = ()
    embeddings: tuple[Addon, ...] = ()
    vae: Addon | None = None
    ip_adapter: Addon | None = None

    @property
    def digest(self) -> str | None:
        """``sha256:<16 hexadecimal digits>`` over all that changes an image, besides the scales; None without any."""
        lines = [f"lora {one.name} {one.sha256}" for one in self.loras]
        lines += [f"embedding {one.token} {one.sha256}" for one in self.embeddings]
        lines += [f"vae {self.vae.sha256}"] if self.vae else []
        lines += [f"ip_adapter {self.ip_adapter.sha256}"] if self.ip_adapter else []
        return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}" if lines else None


def resolve_addons(config: ModelConfig, *, base_dir: Path, vae: dict[str, Any] | None, model: str) -> Addons:
    """Find and check all addons of a job. ``vae`` is the configuration of the model's own autoencoder. Raises ModelError."""
    loras = sorted((_lora(one, base_dir) for one in config.loras), key=lambda one: one.name)
    embeddings = sorted((_embedding(one, base_dir) for one in config.embeddings), key=lambda one: one.token or "")
    _refuse_twice("model.loras", "are called", [one.name for one in loras])
    _refuse_twice("model.embeddings", "have the token", [one.token or "" for one in embeddings])
    return Addons(
        loras=tuple(loras),
        embeddings=tuple(embeddings),
        vae=_vae(config, base_dir, vae, model) if config.vae else None,
        ip_adapter=_ip_adapter(config.ip_adapter, base_dir) if config.ip_adapter else None,
    )


def addons_here(addons: Addons, config: ModelConfig) -> Addons:
    """The same with the paths of this machine, which may be another one than that which planned; what comes from the hub is
    downloaded if it is not here. Raises ModelError if contents are missing or others.
    """
    return Addons(
        loras=tuple(_here(one, f"model.loras {one.name}") for one in addons.loras),
        embeddings=tuple(_here(one, f"model.embeddings {one.name}") for one in addons.embeddings),
        vae=addons.vae and _vae_here(addons.vae, config),
        ip_adapter=addons.ip_adapter and config.ip_adapter and _ip_adapter_here(addons.ip_adapter, config.ip_adapter),
    )


def _vae_here(vae: Addon, config: ModelConfig) -> Addon:
    where = f"model.vae {vae.name}"
    return _here(vae, where, _VAE_FILES, lambda path: _vae_sha256(path, config, where))


def _ip_adapter_here(adapter: Addon, config: IpAdapterConfig) -> Addon:
    return _here(adapter, f"model.ip_adapter {adapter.name}", _ip_files(config), lambda path: _ip_sha256(path, config))


def _here(one: Addon, where: str, files: Sequence[str] = (), digest: Callable[[Path], str] = file_sha256) -> Addon:
    """``files`` are those of a folder, as patterns; without them it is a file."""
    path = Path(one.path)
    if one.repo and not (is_whole(path, lambda: digest(path)) if files else path.is_file()):
        inside = PurePosixPath(*path.parts[path.parts.index(one.commit or "") + 1 :])
        path = hub_snapshot(one.repo, revision=one.commit, allow=files or (str(inside),), where=where) / inside
    if not path.exists():
        raise ModelError(f"{where}: there is no {path} on this machine; copy it there, or use one of the hub")
    found = digest(path)
    if found != one.sha256:
        raise ModelError(f"{where}: {path} is {found} on this machine, the plan was made with {one.sha256}; copy the same file there")
    return replace(one, path=str(path))


def _lora(config: LoraConfig, base_dir: Path) -> Addon:
    where = f"model.loras {config.id}"
    found = _file(config, base_dir, where)
    path = Path(found.path)
    if not any("lora" in tensor or "lokr" in tensor for tensor in safetensors_names(path, where=where)):
        raise ModelError(f"{where}: {path.name} holds no LoRA weights; give a LoRA of this model")
    return replace(found, scale=config.scale)


def _embedding(config: EmbeddingConfig, base_dir: Path) -> Addon:
    where = f"model.embeddings {config.id}"
    found = _file(config, base_dir, where)
    path = Path(found.path)
    tensors = safetensors_names(path, where=where)
    if len(tensors) != 1 and set(tensors) != set(SDXL_EMBEDDINGS):
        raise ModelError(
            f"{where}: {path.name} holds {len(tensors)} tensors; an embedding is one,"
            f" or {' and '.join(SDXL_EMBEDDINGS)} for a model with two text encoders"
        )
    own = path.stem if len(tensors) > 1 or tensors[0] == _NAMELESS else tensors[0]
    token = config.token or own
    if not token.strip() or token.split() != [token]:
        raise ModelError(f"{where}: its token {token!r} is not one word; set token")
    return replace(found, token=token)


def _vae(config: ModelConfig, base_dir: Path, own: dict[str, Any] | None, model: str) -> Addon:
    assert config.vae is not None
    where = f"model.vae {config.vae.id}"
    if own is None:
        raise ModelError(f"{where}: {model} has no autoencoder to put it in the place of; take it out")
    folder, repo = in_folder(base_dir, config.vae.id), None
    if not folder.is_dir():
        repo = _hub_id(config.vae.id, folder, where)
        folder = hub_snapshot(repo, revision=config.vae.revision, allow=_VAE_FILES, where=where)
    found = read_json(folder / "config.json", where=where)
    for key, wanted in {"_class_name": own.get("_class_name"), "latent_channels": own.get("latent_channels"), "scale": _scale(own)}.items():
        value = _scale(found) if key == "scale" else found.get(key)
        if value != wanted:
            raise ModelError(
                f"{where}: its {key.strip('_')} is {value}, that of {model}'s own is {wanted}; give one that was made for this model"
            )
    commit = folder.name if repo else None
    return Addon(name=config.vae.id, path=str(folder.resolve()), sha256=_vae_sha256(folder, config, where), repo=repo, commit=commit)


def _vae_sha256(folder: Path, config: ModelConfig, where: str) -> str:
    return fingerprint(folder, ["config.json", *weight_files(folder, variant=config.variant, where=where)])


def _ip_adapter(config: IpAdapterConfig, base_dir: Path) -> Addon:
    where = f"model.ip_adapter {config.id}"
    folder, repo = in_folder(base_dir, config.id), None
    _refuse_elsewhere("file", config.file, where)
    _refuse_elsewhere("image_encoder", config.image_encoder, where)
    if not folder.is_dir():
        repo = _hub_id(config.id, folder, where)
        folder = hub_snapshot(repo, revision=config.revision, allow=_ip_files(config), where=where)
    weights = folder / config.file
    if weights.suffix in PICKLES:
        raise pickle_refused(where, weights.name)
    _refuse_missing_parts(folder, config)
    check_safetensors(weights, where=where)
    names = set(safetensors_names(weights, where=where))
    if not all(any(name.startswith(part) for name in names) for part in ("image_proj.", "ip_adapter.")):
        raise ModelError(f"{where}: {config.file} holds no IP-Adapter; give one such as models/ip-adapter_sd15.safetensors")
    two_layers = {"image_proj.proj.2.weight", "image_proj.proj.3.weight"} & names == {"image_proj.proj.2.weight"}
    if two_layers or "image_proj.perceiver_resampler.proj_in.weight" in names:
        raise ModelError(f"{where}: {config.file} reads the features of a face (FaceID), not images; give another adapter")
    commit = folder.name if repo else None
    return Addon(name=config.id, path=str(folder.resolve()), sha256=_ip_sha256(folder, config), repo=repo, commit=commit)


def _refuse_missing_parts(folder: Path, config: IpAdapterConfig) -> None:
    for name, key in ((config.file, "file"), (f"{config.image_encoder}/config.json", "image_encoder")):
        if not (folder / name).is_file():
            raise ModelError(f"model.ip_adapter {config.id}: there is no {name}; set {key}")


def _ip_files(config: IpAdapterConfig) -> Sequence[str]:
    return (config.file, f"{config.image_encoder}/config.json", f"{config.image_encoder}/model*.safetensors*")


def _ip_sha256(folder: Path, config: IpAdapterConfig) -> str:
    _refuse_missing_parts(folder, config)
    encoder = weight_files(folder / config.image_encoder, variant=None, where=f"model.ip_adapter {config.id}: {config.image_encoder}")
    return fingerprint(folder, [config.file, *(f"{config.image_encoder}/{name}" for name in ("config.json", *encoder))])


def _scale(vae: dict[str, Any]) -> int:
    """Halvings of the picture, whatever they are called."""
    return len(vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or vae.get("temperal_downsample") or ())


def _file(config: LoraConfig | EmbeddingConfig, base_dir: Path, where: str) -> Addon:
    """The weight file, known by the hub's name or by the file's own."""
    _refuse_elsewhere("file", config.file, where)
    local, repo, commit = in_folder(base_dir, config.id).resolve(), None, None
    if local.is_dir():
        path, name = _in_folder(local, config, where), local.name
    elif local.is_file():
        path, name = local, local.stem
    else:
        repo = _hub_id(config.id, local, where)
        folder = hub_snapshot(repo, revision=config.revision, allow=(config.file,), where=where)
        path, commit = folder / config.file, folder.name
        if not path.is_file():
            raise ModelError(f"{where}: the repository has no {config.file}; set file to the name of its safetensors file")
        name = repo if "file" not in config.model_fields_set else f"{repo}/{config.file}"
    if path.suffix in PICKLES:
        raise pickle_refused(where, path.name)
    check_safetensors(path, where=where)
    return Addon(name=name, path=str(path), sha256=file_sha256(path), repo=repo, commit=commit)


def _in_folder(folder: Path, config: LoraConfig | EmbeddingConfig, where: str) -> Path:
    """The named file, or the only one."""
    found = sorted(folder.glob("*.safetensors"))
    if (folder / config.file).is_file() or "file" in config.model_fields_set:
        return folder / config.file
    pickled = [path.name for path in folder.iterdir() if path.suffix in PICKLES]
    if not found and pickled:
        raise pickle_refused(where, pickled[0])
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise ModelError(f"{where}: set file to one of the safetensors files in the folder; there are: {names}")
    return found[0]


def _refuse_elsewhere(key: str, name: str, where: str) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ModelError(f"{where}: {key} {name} lies elsewhere; give a name in the folder or repository")


def _hub_id(text: str, looked_for: Path, where: str) -> str:
    if not HUB_ID.fullmatch(text):
        raise ModelError(f"{where}: there is no such file or folder (looked for {looked_for}); give one, or a hub name such as org/name")
    return text


def _refuse_twice(where: str, what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"{where}: two {what} {twice}; each needs its own")
