"""Names of everything in a run folder. The only place that spells them.

::

    RUN/job.yaml                  the configuration with all defaults, versions, fingerprint
    RUN/plan/plan.json            counts and digests of the plan; written after the plan's files
    RUN/plan/000000.parquet       the draws, one row group per shard
    RUN/inputs/0f3a…              input images, each under the sha256 of its bytes
    RUN/metadata/00017.parquet    one row per draw, no image bytes
    RUN/images/00017.parquet      sample_id, image, text, sha256 of accepted and rejected draws
    RUN/failed/00017.json         dead letters of a shard that has failed draws
    RUN/done/00017.json           commit marker, written last; readers trust only shards that have one
    RUN/partial/00017.parquet     batches of a shard that was stopped half-way; gone once it is done
    RUN/partial/00017.json        draws of a shard that a worker's process died over; gone once it is done
    RUN/judged/judged.json        other rules that judge the run now, and the tables that hold their verdicts
    RUN/judged/1f2e…-000.parquet  the metadata table with these verdicts
    RUN/scores/00017.NAME.parquet scores that 'promptmill rescore' added to a shard
    RUN/profile/HOST-1.json.gz    with --profile: stages of a worker, a Chrome trace; HOST-1.ops.json.gz: one batch by operator
    RUN/embeddings/00017-1f2e….parquet  CLIP features of a shard's images, from 'promptmill embed'
    RUN/embeddings/embeddings.json  the model that they are of; readers trust only files that fit it
    RUN/real/1f2e….parquet        CLIP features of the real images that 'promptmill evaluate' compared the run with
    RUN/expansions.jsonl          answers of the language model that 'prompts.expand' asks; in an object store a folder of pieces
    RUN/events.jsonl              what happened when; in an object store a folder of pieces, in order
    RUN/lease.json                the driver that is at work; gone when it has ended
"""

JOB = "job.yaml"
PLAN = "plan"
PLAN_INDEX = "plan/plan.json"
INPUTS = "inputs"
METADATA = "metadata"
IMAGES = "images"
DONE = "done"
FAILED = "failed"
PARTIAL = "partial"
EVENTS = "events.jsonl"
EXPANSIONS = "expansions.jsonl"
LEASE = "lease.json"
JUDGED = "judged"
SCORES = "scores"
PROFILE = "profile"
JUDGED_INDEX = "judged/judged.json"
EMBEDDINGS = "embeddings"
EMBEDDINGS_INDEX = "embeddings/embeddings.json"
REAL = "real"

SHARDS_PER_PLAN_FILE = 1000


def plan_file(shard_id: int) -> str:
    """Plan file that holds a shard; its row group there is ``shard_id % SHARDS_PER_PLAN_FILE``."""
    return f"{PLAN}/{shard_id // SHARDS_PER_PLAN_FILE:06d}.parquet"


def input_file(sha256: str) -> str:
    """Input image of this digest."""
    return f"{INPUTS}/{sha256}"


def metadata_file(shard_id: int) -> str:
    """Metadata table of one shard."""
    return f"{METADATA}/{shard_id:05d}.parquet"


def images_file(shard_id: int) -> str:
    """Image table of one shard."""
    return f"{IMAGES}/{shard_id:05d}.parquet"


def failed_file(shard_id: int) -> str:
    """Dead letters of one shard."""
    return f"{FAILED}/{shard_id:05d}.json"


def done_file(shard_id: int) -> str:
    """Commit marker of one shard."""
    return f"{DONE}/{shard_id:05d}.json"


def partial_file(shard_id: int) -> str:
    """Finished batches of a shard that was asked to stop."""
    return f"{PARTIAL}/{shard_id:05d}.parquet"


def judged_file(judged_id: str, number: int) -> str:
    """Part of the metadata table as judged by other rules."""
    return f"{JUDGED}/{judged_id}-{number:03d}.parquet"


def scores_file(shard_id: int, scorer: str) -> str:
    """Scores of one shard that were added after the run."""
    return f"{SCORES}/{shard_id:05d}.{scorer}.parquet"


def profile_file(worker: str, *, ops: bool = False) -> str:
    """Chrome trace of a worker: its stages, or one batch by operator."""
    return f"{PROFILE}/{worker.replace(':', '-')}{'.ops' if ops else ''}.json.gz"


def embeddings_file(shard_id: int, key: str) -> str:
    """CLIP features of one shard's images; ``key`` stands for these images and the model."""
    return f"{EMBEDDINGS}/{shard_id:05d}-{key}.parquet"


def real_file(key: str) -> str:
    """CLIP features of real images; ``key`` stands for these images and the model."""
    return f"{REAL}/{key}.parquet"


def suspects_file(shard_id: int) -> str:
    """Draws of one shard that a worker's process died over; gone once it is done."""
    return f"{PARTIAL}/{shard_id:05d}.json"


def shard_of(name: str) -> int | None:
    """Shard id in a file name such as ``done/00017.json``; None if the name is of another kind."""
    stem = name.rsplit("/", 1)[-1].split(".", 1)[0]
    return int(stem) if stem.isdigit() else None
