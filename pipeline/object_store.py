"""A run folder in an object store: ``s3://bucket/folder`` or ``gs://bucket/folder``, through ``obstore``.

Publishing an object is one PUT: it is there whole or not at all, so a client that dies in the middle leaves
nothing behind. Credentials, region and endpoint come from the environment (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``; ``GOOGLE_APPLICATION_CREDENTIALS``)
or from the machine's role, and are written nowhere.
"""

import functools
import os
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.fsspec import FsspecStore
from obstore.store import from_url

from pipeline.object_log import ObjectLog
from schemas.errors import RunFolderError

SCHEMES = ("s3", "gs")
LARGEST_BYTES = 5 * 1024**3  # of one PUT, by S3's rules
REQUEST_SECONDS = 120  # a hung request is given up after this and tried again
PATIENCE_SECONDS = 180  # how long a request is tried again, with growing pauses, before the run stops

P = ParamSpec("P")
T = TypeVar("T")


def _told(method: Callable[P, T]) -> Callable[P, T]:
    """What the store answers, as one line that says what to do."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                raise
            raise RunFolderError(f"{args[0].root}: {_reason(error)}") from None  # type: ignore[attr-defined]

    return wrapper


class ObjectStore:
    """Objects under one prefix of a bucket."""

    def __init__(self, root: str) -> None:
        self.root = _checked(root)
        self.client: Any = from_url(self.root, **_settings(self.root, PATIENCE_SECONDS))
        self._logs: dict[str, ObjectLog] = {}

    @_told
    def put(self, name: str, data: bytes) -> None:
        if len(data) > LARGEST_BYTES:
            raise RunFolderError(f"{self.root}/{name}: {len(data):,} bytes are more than one object may have; lower output.shard_size")
        obstore.put(self.client, name, data, use_multipart=False)

    @_told
    def get(self, name: str) -> bytes:
        return obstore.get(self.client, name).bytes().to_bytes()

    @_told
    def start(self, name: str, num_bytes: int) -> tuple[bytes, int]:
        """(its first so many bytes, bytes that it has in all). Raises FileNotFoundError."""
        found = obstore.get(self.client, name, options={"range": (0, num_bytes)})
        return found.bytes().to_bytes(), int(found.meta["size"])

    @_told
    def exists(self, name: str) -> bool:
        try:
            obstore.head(self.client, name)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise
            return False
        return True

    @_told
    def top_level(self) -> list[str]:
        found = obstore.list_with_delimiter(self.client)
        return sorted([*found["common_prefixes"], *(meta["path"] for meta in found["objects"])])

    def list(self, folder: str) -> list[str]:
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        return {name: meta["size"] for name, meta in self._metas(folder).items()}

    def stamps(self, folder: str) -> dict[str, str]:
        return {name: f"{meta['last_modified']} {meta['e_tag']} {meta['size']}" for name, meta in self._metas(folder).items()}

    @_told
    def _metas(self, folder: str) -> dict[str, Any]:
        found = (meta for page in obstore.list(self.client, folder, chunk_size=1000) for meta in page)
        return {meta["path"]: meta for meta in found if "/" not in meta["path"][len(folder) + 1 :]}

    @_told
    def delete(self, name: str) -> None:
        try:
            obstore.delete(self.client, name)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise

    @_told
    def swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        """A conditional PUT. If the answer to one is lost, what is there tells whether it was ours."""
        try:
            obstore.put(self.client, name, new, mode=self._condition(name, old), use_multipart=False)
        except _Differs:
            return False
        except (AlreadyExistsError, PreconditionError):
            return self._holds(name, new)
        except BaseError:
            if self._holds(name, new):
                return True
            raise
        return True

    def append(self, name: str, line: str) -> None:
        self._logs.setdefault(name, ObjectLog(name, self)).append(line)

    def read_log(self, name: str) -> bytes:
        self.flush()
        return b"".join(self.get(segment) for segment in self.list(name))

    def flush(self) -> None:
        for log in self._logs.values():
            log.flush()

    def remove_leftovers(self) -> None:
        """There are none: an object is published by one request."""

    @_told
    def reach(self) -> None:
        obstore.list_with_delimiter(from_url(self.root, **_settings(self.root, patience_seconds=5)))

    def dataset(self, names: Sequence[str], schema: pa.Schema) -> ds.Dataset:
        """The rows of Parquet files, for readers that take only what they need of them."""
        scheme, _, prefix = self.root.partition("://")
        settings: Any = {"protocol": scheme, **_settings(self.root, PATIENCE_SECONDS)}
        files = pafs.PyFileSystem(pafs.FSSpecHandler(FsspecStore(**settings)))
        return ds.dataset([f"{prefix}/{name}" for name in names], schema=schema, format="parquet", filesystem=files)

    def _condition(self, name: str, old: bytes | None) -> Any:
        if old is None:
            return "create"
        try:
            found = obstore.get(self.client, name)
        except FileNotFoundError:
            raise _Differs from None
        if found.bytes().to_bytes() != old:
            raise _Differs
        return {key: value for key in ("e_tag", "version") if (value := found.meta[key]) is not None}

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.get(name) == data
        except FileNotFoundError:
            return False


class _Differs(Exception):
    """What is there is not what was expected."""


def _checked(root: str) -> str:
    parts = urlsplit(root)
    if parts.scheme not in SCHEMES:
        raise RunFolderError(f"{root}: a folder is a local path, or a URL that begins with s3:// or gs://")
    if "@" in parts.netloc:
        raise RunFolderError(
            f"{parts.scheme}://{parts.hostname}{parts.path}: credentials do not belong into a URL; give them in the environment"
        )
    if not parts.netloc or not parts.path.strip("/") or parts.query or parts.fragment:
        raise RunFolderError(f"{root}: must name a bucket and a folder in it, as in {parts.scheme}://bucket/runs/one")
    return f"{parts.scheme}://{parts.netloc}/{parts.path.strip('/')}"


def _settings(root: str, patience_seconds: float) -> dict[str, Any]:
    """A request is given up after ``REQUEST_SECONDS``, an operation after ``patience_seconds``."""
    endpoint = _endpoint()
    return {
        "config": {"endpoint": endpoint} if endpoint and root.startswith("s3:") else {},
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(10, patience_seconds)),
            "timeout": timedelta(seconds=min(REQUEST_SECONDS, patience_seconds)),
        },
        "retry_config": {
            "max_retries": 12 if patience_seconds > 5 else 2,
            "retry_timeout": timedelta(seconds=patience_seconds),
            "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=20), "base": 2},
        },
    }


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _reason(error: Exception) -> str:
    text = str(error)
    if "NoSuchBucket" in text:
        return "there is no such bucket; make it first, or mend the URL"
    if isinstance(error, PermissionDeniedError) or "403 Forbidden" in text:
        return f"access is denied{_code(text)}; the credentials in the environment must allow listing, reading, writing and deleting there"
    if isinstance(error, UnauthenticatedError) or "401 Unauthorized" in text:
        return f"the credentials are not accepted{_code(text)}; look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "169.254.169.254" in text or "metadata" in text.lower():
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    said = _status(text) or _cause(text) or text.splitlines()[0][:200]
    place = _endpoint() or "the object store"
    return f"{place} does not do as asked ({said}); look at AWS_ENDPOINT_URL and the network; nothing is lost: run the same command again"


def _status(text: str) -> str:
    status = re.search(r"status code: (\d+ [A-Za-z ]+)", text)
    return status.group(1) + _code(text) if status else ""


def _cause(text: str) -> str:
    """The innermost cause of a request that got no answer."""
    if "TimedOut" in text or "timed out" in text:
        return "no answer in time"
    causes = re.findall(r'message: "([^"]+)"', text)
    return causes[-1] if causes else ""


def _code(text: str) -> str:
    code = re.search(r"<Code>(\w+)</Code>", text)
    return f" ({code.group(1)})" if code else ""
