"""Weight files: what may be loaded, what identifies it, where it comes from. No torch.

Only safetensors are ever opened. A pickle (.bin, .ckpt, .pt, .pth) runs any code that its maker put into it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.digests import file_sha256, git_sha1
from schemas.errors import ModelError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PINNED = "sha256.json"
READERS = 4  # of large files, at a time
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_json(path: Path, *, where: str) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError, naming the file, if it is missing or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{where}: the file {path.name} is missing; copy or download the folder again") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{where}: {path.name} cannot be read as JSON ({_first_line(error)}); copy or download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {path.name} holds no JSON object; copy or download it again")
    return value


def check_safetensors(path: Path, *, where: str) -> None:
    """Raise ModelError if the file is no whole safetensors file.

    Reads the header only: its length, its JSON, and that the tensors end where the file ends
    (https://github.com/huggingface/safetensors#format). Flipped bits are found by ``check_pinned`` alone.
    """
    if not path.is_file():
        raise ModelError(f"{where}: the weight file {path.name} is missing; copy or download it again")
    problem = _safetensors_problem(path)
    if problem:
        raise ModelError(f"{where}: {path.name} is damaged ({problem}); copy or download it again")


def safetensors_names(path: Path, *, where: str) -> list[str]:
    """Names of the tensors in a file. Raises ModelError if it is no whole safetensors file."""
    check_safetensors(path, where=where)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sorted(name for name in header if name != "__metadata__")


def _safetensors_problem(path: Path) -> str | None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or header_bytes > min(num_bytes - 8, _MAX_HEADER_BYTES):
            return f"{num_bytes} bytes are too few for its header, or it is no safetensors file"
        try:
            header = json.loads(file.read(header_bytes))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "its header cannot be read"
    expected = 8 + header_bytes + max(ends, default=0)
    return None if expected == num_bytes else f"{num_bytes} bytes long, should be {expected}"


def fingerprint(folder: Path, files: Iterable[str]) -> str:
    """``sha256:<16 hexadecimal digits>`` over names and contents of the files, given relative to the folder."""
    names = sorted(files)
    total = hashlib.sha256()
    with ThreadPoolExecutor(READERS, thread_name_prefix="sha256") as pool:
        for name, digest in zip(names, pool.map(file_sha256, [folder / name for name in names]), strict=True):
            total.update(f"{name}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()[:16]}"


def check_blobs(folder: Path, files: Iterable[str], *, where: str) -> None:
    """Compare the files of a hub snapshot with what the hub's cache calls them. Raises ModelError at one that was changed.

    Snapshots are links to files that are named by the sha256 of their bytes if they are large, by git's sha1 if not
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Copies without links cannot be checked.
    """
    digests = {64: file_sha256, 40: git_sha1}

    def is_whole(name: str) -> bool:
        blob = (folder / name).resolve()
        named = (folder / name).is_symlink() and not set(blob.name) - set("0123456789abcdef")
        return not named or len(blob.name) not in digests or digests[len(blob.name)](blob) == blob.name

    names = sorted(files)
    with ThreadPoolExecutor(READERS, thread_name_prefix="sha256") as pool:
        for name, whole in zip(names, pool.map(is_whole, names), strict=True):
            if not whole:
                blob = (folder / name).resolve()
                raise ModelError(f"{where}: {name} is damaged: its name is of other bytes; delete {blob} and download it again")


def check_pinned(folder: Path, files: Iterable[str], *, pins: Path, where: str) -> None:
    """Compare files with the sha256s that ``pins`` lists by path relative to itself, if there is such a list."""
    if not pins.is_file():
        return
    wanted = read_json(pins, where=where)
    for name in files:
        key = (folder / name).relative_to(pins.parent).as_posix()
        if key in wanted and wanted[key] != file_sha256(folder / name):
            raise ModelError(f"{where}: {key} differs from its pinned sha256; it is damaged: restore it (git checkout) or install again")


def only_pickles(names: Sequence[str]) -> str | None:
    """The first pickled weight file among the names, if there are any and no safetensors file."""
    if any(name.endswith(".safetensors") for name in names):
        return None
    return next((name for name in sorted(names) if name.endswith(PICKLES)), None)


def pickle_refused(where: str, name: str) -> ModelError:
    """The error for a folder whose weights are pickled only."""
    return ModelError(
        f"{where}: {name} is a pickle, which runs any code that it contains when it is loaded, and there is no safetensors file;"
        f" use a safetensors version of the model, or convert it where you trust it:"
        f" safetensors.torch.save_file(torch.load(FILE, weights_only=True), FILE.safetensors)"
    )


def hub_snapshot(repo: str, *, revision: str | None, allow: Sequence[str], where: str) -> Path:
    """Folder of a hub repository's files that match ``allow``, downloaded if need be; named after its commit.

    With HF_HUB_OFFLINE=1, or without a network, the local cache serves. Raises ModelError with the remedy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of the HTTP client that it uses

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(allow)))
    except (OSError, ValueError, HTTPError) as error:
        raise ModelError(f"{where}: {_refusal(error, repo, revision)}") from None


def is_whole(folder: Path, check: Callable[[], object]) -> bool:
    """Whether a folder of the hub's cache passes its check; one does not while it is downloaded, or if that was killed."""
    try:
        return folder.is_dir() and bool(check())
    except ModelError:
        return False


def _refusal(error: Exception, repo: str, revision: str | None) -> str:
    """Why there is no snapshot, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated; accept its terms at {hub}/{repo}, and set HF_TOKEN to a token of that account"
    unauthorized = error.response if isinstance(error, HfHubHTTPError) and error.response.status_code == 401 else None
    if unauthorized is not None and "Invalid credentials" in unauthorized.headers.get("X-Error-Message", ""):
        return f"{hub} does not accept the token; renew it (hf auth login), or unset HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError) or unauthorized is not None:
        return f"there is no {repo} at {hub}, or it is private; check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision} at {hub}; give a commit, tag or branch of it, or leave 'revision' out for the newest"
    cause = type(error.__cause__ or error).__name__
    why = f"{cause}; HF_HUB_OFFLINE is set" if _offline() else f"{hub}: {cause}"
    at = f" --revision {revision}" if revision else ""
    return (
        f"{repo} is not in the local cache and cannot be downloaded ({why}); check name and revision, then download it where there"
        f" is a network, hf download {repo}{at}, or give a local folder"
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
