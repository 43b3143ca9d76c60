"""A run folder: how it is started, taken up again, refused, and read. Needs neither torch nor Ray."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from pipeline.plan_files import PlanReader, read_index
from pipeline.store import Store, open_store
from schemas import layout
from schemas.errors import RunFolderError
from schemas.records import Marker, PlanIndex, Shard, Status
from schemas.tables import SCHEMA_VERSION

if TYPE_CHECKING:  # pydantic, which a query does without
    from schemas.config import JobConfig

READERS = 64  # of commit markers, at a time: an object store takes its time for each
MARKERS_AT_ONCE = 4096  # in memory


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """``job.yaml``: the configuration with every default, what it was resolved to, and with which versions.

    ``settings`` is the configuration as it stands in the file at ``where``; it is validated when it is first asked for.
    """

    settings: dict[str, Any]
    base_dir: str
    model: dict[str, Any]
    scorers: dict[str, dict[str, Any]]
    versions: dict[str, str]
    schema: str = SCHEMA_VERSION
    where: str = layout.JOB

    @cached_property
    def config(self) -> "JobConfig":
        """The configuration. Raises ConfigError if this version cannot read it."""
        from schemas.config_load import parse

        return parse(self.settings, self.where)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything but the prompts that changes the dataset's bytes."""
        canonical = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def identity(self) -> dict[str, Any]:
        """What the fingerprint covers, as flat ``section.key`` names: not the prompts, the output folder, the executor."""
        config = self.config.model_dump(mode="json")
        draws = ("draws_per_prompt", "until_accepted", "max_draws_per_prompt")
        expand = config["prompts"]["expand"]
        config["prompts"] = {name: config["prompts"][name] for name in draws if config["prompts"][name] is not None}
        if expand:
            asked = ("model", "instruction", "count", "keep_original", "request")
            config["prompts"]["expand"] = {name: expand[name] for name in asked}
        config["model"] |= {"id": self.model["name"], "revision": self.model["revision"]}
        config["model"]["loras"] = [f"{one['name']}@{one['scale']}" for one in self.model.get("addons", {}).get("loras", ())]
        # what of these changes pixels is in the revision
        for name in ("endpoint", "controlnet", "embeddings", "vae", "ip_adapter", "second_stage"):
            config["model"].pop(name)
        config["model"]["compute"].pop("offload")  # moves weights, changes nothing
        config["scorers"] = {name: card["version"] for name, card in self.scorers.items()}
        config["sampling"].pop("max_settings")  # a guard
        config["output"].pop("dir")
        config.pop("executor")
        return {"schema": self.schema, **_flat(config)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a run still has to make, what is done of it, and what was wrong with shards that are made again."""

    todo: list[int] = field(default_factory=list)
    shards_done: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def draws_done(self) -> int:
        """In the shards that are done."""
        return self.accepted + self.rejected + self.failed


class RunDir:
    """One run folder. Reading trusts only shards with a commit marker."""

    def __init__(self, store: Store, job: JobRecord) -> None:
        self.store = store
        self.job = job
        self._plan = PlanReader(store)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A run that was started before. Raises RunFolderError."""
        store = open_store(path)
        store.reach()
        job = _read_job(store)
        if job is None:
            raise RunFolderError(f"{path}: is not a run folder (it has no {layout.JOB}); give the folder that 'promptmill run' wrote")
        return cls(store, job)

    @classmethod
    def claim(cls, path: str | Path, job: JobRecord) -> Self:
        """The folder for a job, new or taken up again; nothing is written yet.

        Raises RunFolderError if the folder holds another job, or something that is no run.
        """
        store = open_store(path)
        store.reach()
        old = _read_job(store)
        if old is not None:
            _refuse_other_job(store, old, job)
        else:
            _refuse_foreign_folder(store)
        return cls(store, job)

    @staticmethod
    def batch_size(path: str | Path) -> int | None:
        """What ``sampling.batch_size: auto`` became when the run was first started; None if it was not."""
        store = open_store(path)
        store.reach()
        job = _read_job(store)
        return job.config.batch_size if job else None

    def begin(self) -> bool:
        """Write ``job.yaml`` unless it is there; True if it was, so the run is taken up again."""
        if self.store.exists(layout.JOB):
            return True
        record = {
            "fingerprint": self.job.fingerprint,
            "schema": self.job.schema,
            "versions": self.job.versions,
            "model": self.job.model,
            "scorers": self.job.scorers,
            "base_dir": self.job.base_dir,
            "config": self.job.settings,
        }
        self.store.put(layout.JOB, yaml.safe_dump(record, sort_keys=False, allow_unicode=True).encode())
        return False

    @property
    def plan(self) -> PlanIndex:
        """The plan's index. Raises RunFolderError if the run was never planned."""
        index = read_index(self.store)
        if index is None:
            answers = self.store.read_log(layout.EXPANSIONS).count(b"\n")
            asked = f" ({answers:,} answers of prompts.expand are there)" if answers else ""
            raise RunFolderError(f"{self.store.root}: was started but not planned{asked}; run the same command again, unless it is at work")
        return index

    def read_shard(self, shard_id: int) -> Shard:
        """One shard of the plan, which must be written by then."""
        return self._plan.shard(shard_id)

    def markers(self) -> list[Marker]:
        """Commit markers by shard, those that cannot be read left out (their shards count as not done)."""
        return sorted((marker for _, marker in self.each_marker() if marker), key=lambda marker: marker.shard_id)

    def each_marker(self) -> Iterator[tuple[str, Marker | None]]:
        """Commit markers one by one, with their names, None for one that cannot be read; a few are in memory at a time."""
        names = self.store.list(layout.DONE)
        with ThreadPoolExecutor(READERS, thread_name_prefix="markers") as pool:
            for start in range(0, len(names), MARKERS_AT_ONCE):
                part = names[start : start + MARKERS_AT_ONCE]
                yield from zip(part, pool.map(self.marker, part), strict=True)

    def marker(self, name: str) -> Marker | None:
        """The commit marker in a file, None if it is not one."""
        try:
            raw = json.loads(self.store.get(name))
            marker = Marker(**{each.name: raw[each.name] for each in fields(Marker) if each.name in raw})
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            return None
        return marker if layout.shard_of(name) == marker.shard_id else None

    def settle(self, index: PlanIndex) -> Settled:
        """Find out what is done.

        A shard is done if its marker belongs to the plan and both of its files are there in the committed size.
        What is not done loses its marker, and what a crash left behind is removed.
        """
        sizes = self.store.sizes(layout.METADATA) | self.store.sizes(layout.IMAGES)
        finished: set[int] = set()
        draws: Counter[str] = Counter()
        problems: list[str] = []
        for name, marker in self.each_marker():
            problem = _problem(marker, index, sizes)
            if marker is not None and problem is None:
                finished.add(marker.shard_id)
                draws.update({status: getattr(marker, status) for status in Status})
            else:
                problems.append(f"{name}: {problem}")
                self.store.delete(name)
        self.store.remove_leftovers()
        for name in self.store.list(layout.PARTIAL):
            if layout.shard_of(name) in finished:
                self.store.delete(name)
        for name in self.store.list(layout.FAILED):
            if layout.shard_of(name) not in finished:
                self.store.delete(name)
        todo = [shard_id for shard_id in range(index.num_shards) if shard_id not in finished]
        return Settled(todo=todo, shards_done=len(finished), problems=problems, **{status: draws[status] for status in Status})

    def clear_partial(self) -> None:
        """Remove what a lost worker put aside of shards, all of which are done now."""
        for name in self.store.list(layout.PARTIAL):
            self.store.delete(name)

    def log(self, event: str, **facts: object) -> None:
        """Add one line to the run's event log."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        self.store.append(layout.EVENTS, json.dumps(line, ensure_ascii=False))


def make_job(config: "JobConfig", base_dir: Path, model: Any, scorers: list[Any], versions: dict[str, str]) -> JobRecord:
    """The record of a job from its resolved model and scorer cards (dataclasses)."""
    cards = {card.name: asdict(card) for card in scorers}
    return JobRecord(settings=config.model_dump(mode="json"), base_dir=str(base_dir), model=asdict(model), scorers=cards, versions=versions)


def _problem(marker: Marker | None, index: PlanIndex, sizes: dict[str, int]) -> str | None:
    """Why a shard must be made again; None if it is whole."""
    if marker is None:
        return "is no commit marker"
    if not index.holds(marker):
        return "belongs to another plan"
    files = (layout.metadata_file(marker.shard_id), layout.images_file(marker.shard_id))
    missing = [name for name in files if name not in sizes]
    if missing:
        return f"{missing[0]} is missing"
    num_bytes = sum(sizes[name] for name in files)
    return None if num_bytes == marker.num_bytes else f"its files have {num_bytes:,} bytes, committed were {marker.num_bytes:,}"


def _read_job(store: Store) -> JobRecord | None:
    where = f"{store.root}/{layout.JOB}"
    try:
        raw = yaml.safe_load(store.get(layout.JOB))
        return JobRecord(
            settings=raw["config"],
            base_dir=raw["base_dir"],
            model=raw["model"],
            scorers=raw["scorers"],
            versions=raw["versions"],
            schema=raw.get("schema", "of an earlier version"),
            where=where,
        )
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise RunFolderError(f"{where}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise RunFolderError(f"{where}: is damaged; restore it, or choose another --out") from None


def _refuse_other_job(store: Store, old: JobRecord, new: JobRecord) -> None:
    if old.fingerprint == new.fingerprint:
        return
    before, after = old.identity(), new.identity()
    changed = [
        f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in sorted(before | after) if before.get(key) != after.get(key)
    ]
    raise RunFolderError(
        f"{store.root}: holds job {old.fingerprint}, this is job {new.fingerprint}: {'; '.join(changed[:3])}"
        f"{f' and {len(changed) - 3} more' if len(changed) > 3 else ''}; set it back, or choose another --out"
    )


def damaged(run: RunDir, name: str, what: str | Exception) -> RunFolderError:
    """What is wrong with a file, or the error that reading it gave; and what to do."""
    found = what if isinstance(what, str) else f"cannot be read ({str(what).splitlines()[0]})"
    return RunFolderError(f"{run.store.root}/{name}: {found}; 'promptmill verify {run.store.root}' tells what to do")


def _refuse_foreign_folder(store: Store) -> None:
    if set(store.top_level()) - {layout.LEASE}:
        raise RunFolderError(f"{store.root}: is not empty and holds no promptmill run; choose an empty or a new folder")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
