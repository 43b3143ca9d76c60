"""What a job lays over a model: LoRA weights, textual-inversion embeddings, another autoencoder. No torch, no diffusers.

Found, checked through and pinned as the model itself is: safetensors only, and their contents are part of its revision.
"""

import hashlib
from collections.abc import Sequence
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
from schemas.config import EmbeddingConfig, LoraConfig, ModelConfig
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

    @property
    def digest(self) -> str | None:
        """``sha256:<16 hexadecimal digits>`` over all that changes an image, besides the scales; None without any."""
        lines = [f"lora {one.name} {one.sha256}" for one in self.loras]
        lines += [f"embedding {one.token} {one.sha256}" for one in self.embeddings]
        lines += [f"vae {self.vae.sha256}"] if self.vae else []
        return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}" if lines else None


def resolve_addons(config: ModelConfig, *, base_dir: Path, vae: dict[str, Any] | None, model: str) -> Addons:
    """Find and check all addons of a job. ``vae`` is the configuration of the model's own autoencoder. Raises ModelError."""
    loras = sorted((_lora(one, base_dir) for one in config.loras), key=lambda one: one.name)
    embeddings = sorted((_embedding(one, base_dir) for one in config.embeddings), key=lambda one: one.token or "")
    _refuse_twice("model.loras", "are called", [one.name for one in loras])
    _refuse_twice("model.embeddings", "have the token", [one.token or "" for one in embeddings])
    return Addons(loras=tuple(loras), embeddings=tuple(embeddings), vae=_vae(config, base_dir, vae, model) if config.vae else None)


def addons_here(addons: Addons, config: ModelConfig) -> Addons:
    """The same with the paths of this machine, which may be another one than that which planned; what comes from the hub is
    downloaded if it is not here. Raises ModelError if contents are missing or others.
    """
    return Addons(
        loras=tuple(_here(one, f"model.loras {one.name}") for one in addons.loras),
        embeddings=tuple(_here(one, f"model.embeddings {one.name}") for one in addons.embeddings),
        vae=_here(addons.vae, f"model.vae {addons.vae.name}", vae_of=config) if addons.vae else None,
    )


def _here(one: Addon, where: str, *, vae_of: ModelConfig | None = None) -> Addon:
    path = Path(one.path)
    if one.repo and not (is_whole(path, lambda: _vae_sha256(path, vae_of, where)) if vae_of else path.is_file()):
        inside = PurePosixPath(*path.parts[path.parts.index(one.commit or "") + 1 :])
        path = hub_snapshot(one.repo, revision=one.commit, allow=_VAE_FILES if vae_of else (str(inside),), where=where) / inside
    if not path.exists():
        raise ModelError(f"{where}: there is no {path} on this machine; copy it there, or use one of the hub")
    found = _vae_sha256(path, vae_of, where) if vae_of else file_sha256(path)
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
    folder, repo = base_dir / Path(config.vae.id).expanduser(), None
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


def _scale(vae: dict[str, Any]) -> int:
    """Halvings of the picture, whatever they are called."""
    return len(vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or vae.get("temperal_downsample") or ())


def _file(config: LoraConfig | EmbeddingConfig, base_dir: Path, where: str) -> Addon:
    """The weight file, known by the hub's name or by the file's own."""
    if PurePosixPath(config.file).is_absolute() or ".." in PurePosixPath(config.file).parts:
        raise ModelError(f"{where}: file {config.file} lies elsewhere; give a name in the folder or repository")
    local, repo, commit = (base_dir / Path(config.id).expanduser()).resolve(), None, None
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


def _hub_id(text: str, looked_for: Path, where: str) -> str:
    if not HUB_ID.fullmatch(text):
        raise ModelError(f"{where}: there is no such file or folder (looked for {looked_for}); give one, or a hub name such as org/name")
    return text


def _refuse_twice(where: str, what: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ModelError(f"{where}: two {what} {twice}; each needs its own")
