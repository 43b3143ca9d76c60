"""``promptmill push``: an export as a dataset of the Hugging Face hub.

What is on the hub is the whole state of a push: files that are there with equal bytes are left alone. So the same command goes on
after whatever broke it off, and pushing once more changes nothing. Data goes first, some files to a commit, the card last: a dataset
without a card is one whose push has not ended. The token comes from HF_TOKEN or from the file of ``hf auth login``, and
is never printed. Uploads, their retries and deduplication are those of the library huggingface_hub.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of the HTTP client
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

from jobs.portions import portions
from schemas.errors import ExportError

CARD = "README.md"
HUBS_OWN = {".gitattributes"}  # written by the hub when a dataset is made
FILES_PER_COMMIT, BYTES_PER_COMMIT = 100, 5_000_000_000  # as https://huggingface.co/docs/hub/storage-limits recommends
MOST_FILES_PER_COMMIT = 1000
COMMITS_PER_PUSH = 100  # of many small files; the hub takes 128 an hour (https://github.com/huggingface/huggingface_hub/issues/2587)
MOST_FILES_OF_A_FOLDER = 10_000  # https://huggingface.co/docs/hub/storage-limits
LONG_SECONDS = 30  # a wait that is told
TRIES = 5  # in a row without a commit between them
PASSING = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")
AGAIN = "run the same command again, it goes on"
LOGIN = "run 'hf auth login', or set HF_TOKEN to a token that may write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is on the hub now; ``sent`` files of ``files`` are new there, ``removed`` ones are no longer there."""

    url: str
    private: bool
    files: int
    num_bytes: int
    sent: int
    removed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _There:
    """A dataset of the hub at one commit."""

    commit: str
    private: bool
    files: Mapping[str, RepoFile]


def push(
    folder: str | Path,
    name: str,
    *,
    public: bool = False,
    replace: bool = False,
    revision: str | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    on_count: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Pushed:
    """Make the dataset ``name`` of the hub, ``OWNER/NAME`` or a name of your own, equal to the export in ``folder``.

    A new dataset is private unless ``public``. One that holds anything else is refused unless ``replace``; the hub then keeps what
    was there in its history. ``revision`` is a branch, made from main if there is none of that name. ``on_count(what, done, total)`` is
    told the progress. Raises ExportError, and has then sent whole files only.
    """
    files = _files(Path(folder))
    api = _api()
    with _told(name):
        again = _Again(on_message)
        again(lambda: _check_card(Path(folder, CARD)))
        repo = again(lambda: api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True))
        if revision:
            again(lambda: api.create_branch(repo.repo_id, branch=revision, repo_type="dataset", exist_ok=True))
        sender = _Sender(api, repo.repo_id, files, revision)

        def send() -> _There:
            there = sender.look()
            _refuse(repo.repo_id, there, public=public, other=[] if replace else sender.other(there))
            return sender.send(there, on_commit=again.reset, on_count=on_count)

        there = again(send)
    return Pushed(
        url=f"{repo}/tree/{quote(revision, safe='')}" if revision else str(repo),
        private=there.private,
        files=len(files),
        num_bytes=sum(path.stat().st_size for path in files.values()),
        sent=sender.sent,
        removed=sender.removed,
    )


class _Sender:
    """Compares files with those of the hub, and sends what differs."""

    def __init__(self, api: HfApi, repo_id: str, files: Mapping[str, Path], revision: str | None) -> None:
        self._api, self._repo_id, self._files, self._revision = api, repo_id, files, revision
        self._digests: dict[tuple[str, bool], str] = {}
        self.sent = self.removed = 0

    def look(self) -> _There:
        """The dataset as it is now."""
        info = self._api.dataset_info(self._repo_id, revision=self._revision)
        tree = self._api.list_repo_tree(self._repo_id, recursive=True, revision=info.sha, repo_type="dataset")
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile) and entry.path not in HUBS_OWN}
        return _There(commit=info.sha or "", private=bool(info.private), files=files)

    def other(self, there: _There) -> list[str]:
        """Files of the hub that are none of the export, or not as they are in it."""
        return [path for path, found in there.files.items() if path not in self._files or not self._same(path, found)]

    def send(self, there: _There, *, on_commit: Callable[[], None], on_count: Callable[[str, int, int], None]) -> _There:
        """Commit by commit; the last one has the card, and takes away what is not of the export."""
        todo = [path for path in self._files if path not in there.files or not self._same(path, there.files[path])]
        gone = [path for path in there.files if path not in self._files]
        batches = list(self._batches([path for path in todo if path != CARD]))
        if CARD in todo or gone:
            batches.append([path for path in todo if path == CARD])
        commit, done = there.commit, len(self._files) - len(todo)
        for number, batch in enumerate(batches):
            on_count("files", done, len(self._files))
            deletions = gone if number == len(batches) - 1 else []
            operations = [
                *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=self._files[path]) for path in batch),
                *(CommitOperationDelete(path_in_repo=path) for path in deletions),
            ]
            message = f"promptmill push: {'the card' if CARD in batch or not batch else f'{len(batch)} files'}"
            made = self._api.create_commit(
                self._repo_id,
                operations,
                commit_message=message,
                repo_type="dataset",
                revision=self._revision,
                parent_commit=commit or None,
            )
            commit, done = made.oid, done + len(batch)
            self.sent, self.removed = self.sent + len(batch), self.removed + len(deletions)
            on_commit()
        on_count("files", done, len(self._files))
        return there

    def _batches(self, paths: Sequence[str]) -> Iterator[list[str]]:
        most = min(max(FILES_PER_COMMIT, -(-len(paths) // COMMITS_PER_PUSH)), MOST_FILES_PER_COMMIT)
        return portions(paths, lambda path: self._files[path].stat().st_size, largest=BYTES_PER_COMMIT, most=most)

    def _same(self, path: str, found: RepoFile) -> bool:
        """Whether the hub has these bytes: it knows large files by their sha256, others by git's sha1 of a blob."""
        size = self._files[path].stat().st_size
        if size != (found.lfs.size if found.lfs else found.size):
            return False
        key = (path, found.lfs is not None)
        if key not in self._digests:
            blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            with self._files[path].open("rb") as file:
                self._digests[key] = hashlib.file_digest(file, hashlib.sha256 if found.lfs else lambda: blob).hexdigest()
        return self._digests[key] == (found.lfs.sha256 if found.lfs else found.blob_id)


class _Again:
    """Calls that fail for a passing reason are made again, after 1, 2, 4 and 8 seconds, or when the hub says that it takes more."""

    def __init__(self, on_message: Callable[[str], None]) -> None:
        self._on_message, self._failed = on_message, 0

    def reset(self) -> None:
        """Something went well."""
        self._failed = 0

    def __call__(self, call: Callable[[], T]) -> T:
        self.reset()
        while True:
            try:
                return call()
            except (HTTPError, RuntimeError) as error:
                self._failed += 1
                if self._failed == TRIES or not _passes(error):
                    raise
                seconds = _asked_to_wait(error) or 2 ** (self._failed - 1)
                self._on_message(f"the hub: {_what(error)}; trying again" + (f" in {seconds:,} s" if seconds > LONG_SECONDS else ""))
                time.sleep(seconds)


def _files(folder: Path) -> dict[str, Path]:
    """Files of an export by their path on the hub. Raises ExportError if it is none, or holds what no export writes."""
    try:
        front = yaml.safe_load((folder / CARD).read_text(encoding="utf-8").split("---\n")[1])
        if "promptmill" not in front["tags"]:
            raise ValueError
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        raise ExportError(f"{folder}: is no export; make one with 'promptmill export RUN {folder} --format hf'") from None
    files: dict[str, Path] = {}
    counts: dict[Path, int] = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_symlink() or path.name.startswith("."):
            raise ExportError(f"{path}: no export writes such a file; move it away, so that nothing goes to the hub that should not")
        if path.is_file():
            files[place.as_posix()] = path
            counts[path.parent] = counts.get(path.parent, 0) + 1
    for parent, count in counts.items():
        if count > MOST_FILES_OF_A_FOLDER:
            most = f"{MOST_FILES_OF_A_FOLDER:,}"
            raise ExportError(f"{parent}: has {count:,} files, the hub takes {most} to a folder; export with --format hf or webdataset")
    return files


def _check_card(path: Path) -> None:
    """Before anything is sent, since the card goes last."""
    try:
        RepoCard.load(path).validate("dataset")
    except ValueError as error:
        raise ExportError(
            f"{path}: the hub refuses its front matter: {_line(str(error))}; export again, with a --license it knows"
        ) from None


def _api() -> HfApi:
    if constants.HF_HUB_OFFLINE:
        raise ExportError("HF_HUB_OFFLINE is set, so the hub cannot be asked; unset it")
    if get_token() is None:
        raise ExportError(f"there is no token for the hub; {LOGIN}")
    disable_progress_bars()
    return HfApi(library_name="promptmill")


def _refuse(name: str, there: _There, *, public: bool, other: Sequence[str]) -> None:
    if not there.private and not public:
        raise ExportError(f"{name}: is there already and public; give --public if all may see these images, or choose another name")
    if other:
        more = f" and {len(other) - 1:,} more" if len(other) > 1 else ""
        hint = "choose another name, or --replace; the hub's history keeps what was there"
        raise ExportError(f"{name}: is there already, with other files than this export ({other[0]}{more}); {hint}")


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What the library raises as one line."""
    try:
        yield
    except HFValidationError as error:
        raise ExportError(f"{name}: is no name of a dataset: {_line(str(error))}") from None
    except (HTTPError, RuntimeError) as error:
        if not isinstance(_cause(error), HTTPError):
            raise
        raise ExportError(f"{name}: {_what(error)}; {_remedy(_status(error))}") from None
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be read: {error.strerror}; {AGAIN}") from None


def _remedy(status: int | None) -> str:
    if status == 401:
        return LOGIN
    if status == 403:
        return "use a token that may write there, or choose a name of your own"
    return "somebody else changes it; run the same command again" if status in (409, 412) else AGAIN


def _what(error: BaseException) -> str:
    status = _status(error)
    if status is None:
        return f"the hub at {constants.ENDPOINT} cannot be reached ({_line(str(error)) or type(error).__name__})"
    known = {401: "the hub does not accept the token", 403: "the hub forbids it", 412: "was changed meanwhile", 429: "too many requests"}
    said = getattr(_cause(error), "server_message", None)
    return known.get(status, f"the hub answered {status}") + (f" ({_line(said)})" if said else "")


def _passes(error: BaseException) -> bool:
    return isinstance(_cause(error), HTTPError) and (_status(error) or 503) in PASSING


def _asked_to_wait(error: BaseException) -> int | None:
    """Seconds until the hub takes requests again, if it says so."""
    headers = getattr(getattr(_cause(error), "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    return limit.reset_in_seconds + 1 if limit and _status(error) == 429 else None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(_cause(error), "response", None), "status_code", None)


def _cause(error: BaseException) -> BaseException:
    """What was behind an upload that failed in a thread."""
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
