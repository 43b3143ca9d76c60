"""The vocabulary: what flows from stage to stage. Frozen values, no behaviour beyond their own identity."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

from schemas.modes import Role
from schemas.prompt_weights import words
from schemas.seeds import sample_id


@dataclass(frozen=True, slots=True, kw_only=True)
class InputImage:
    """An image that conditions others: its file's bytes and their sha256; its upright size in pixels."""

    sha256: str
    data: bytes = field(repr=False)
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the prompt source.

    ``id`` is unique in a job and decides, with the job's seed, the noise. ``tags`` are the source's further
    columns, carried to the table unread. ``sampling`` are fields of SamplingConfig that the row sets for itself,
    ``images`` its input images by role.
    """

    id: str
    text: str
    negative: str | None = None
    label: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, int | float] = field(default_factory=dict)
    images: Mapping[Role, InputImage] = field(default_factory=dict)

    def facts(self) -> dict[str, object]:
        """All that it says, in JSON values; images by their sha256."""
        found: dict[str, object] = {
            "id": self.id,
            "text": self.text,
            "negative": self.negative,
            "label": self.label,
            "tags": dict(self.tags),
        }
        images = {role: image.sha256 for role, image in self.images.items()}
        return found | ({"sampling": dict(self.sampling)} if self.sampling else {}) | ({"images": images} if images else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One image to make: everything that decides its pixels, and what is carried along.

    Sizes are in pixels. ``strength``, ``loras`` and all about input images are null for plain text-to-image;
    ``input_transform`` says what is made of them (see ``pipeline.inputs.conditions``).
    """

    prompt_id: str
    draw_index: int
    prompt: str
    negative_prompt: str
    label: str | None
    tags: Mapping[str, str]
    mode: str
    model: str
    model_revision: str
    loras: tuple[str, ...]
    scheduler: str
    steps: int
    guidance_scale: float
    strength: float | None
    width: int
    height: int
    seed: int
    dtype: str
    init_sha256: str | None
    mask_sha256: str | None
    control_sha256: str | None
    control_scale: float | None = None
    input_transform: str | None = None
    guidance_rescale: float | None = None
    prompt_weighting: bool | None = None
    guidance_interval: tuple[float, float] | None = None
    reference_sha256: str | None = None
    true_cfg_scale: float | None = None
    reference_scale: float | None = None

    def identity(self) -> dict[str, object]:
        """All fields that decide the image; label and tags do not. A draw without what came later keeps its id."""
        return {name: value for name in _IDENTITY if (value := getattr(self, name)) or name not in _LATER}

    @property
    def words(self) -> str:
        """The prompt without the brackets of weights: what a scorer or a caption is to say."""
        return words(self.prompt) if self.prompt_weighting else self.prompt

    @property
    def sample_id(self) -> str:
        """Primary, resume and duplicate key of the draw."""
        return sample_id(self.identity())

    @property
    def call_key(self) -> tuple[object, ...]:
        """Draws that share it can go through the sampler in one batch."""
        how = (self.mode, self.loras, self.scheduler, self.steps, self.width, self.height, self.prompt_weighting)
        guidance = (self.guidance_scale, self.true_cfg_scale, self.guidance_rescale, self.guidance_interval)
        return (*how, *guidance, self.strength, self.control_scale, self.reference_scale, self.input_transform)


_LATER = ("guidance_rescale", "prompt_weighting", "guidance_interval", "reference_sha256", "true_cfg_scale", "reference_scale")
_IDENTITY = tuple(field.name for field in fields(Draw) if field.name not in ("label", "tags"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Unit of scheduling, retry and commit: its draws, in table order."""

    shard_id: int
    draws: tuple[Draw, ...]


class Status(StrEnum):
    """What became of a draw. A failure is never a rejection."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What sampling, scoring and encoding made of one draw; not yet judged.

    ``image`` are the encoded bytes, None for a failed draw, whose ``error`` then starts with a short code
    and a colon (``nan_latents: ...``). A score is NaN where the scorer cannot tell.
    """

    draw: Draw
    image: bytes | None
    image_sha256: str | None
    phash: str | None
    is_blank: bool
    safety_flagged: bool | None
    scores: Mapping[str, float]
    scores_truncated: Mapping[str, bool | None]
    prompt_tokens: int | None
    prompt_truncated: bool | None
    batch_shape: str
    error: str | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judgement of one outcome. ``reason`` names the rule or the error code, None when accepted."""

    status: Status
    reason: str | None
    rank_in_prompt: int | None = None
    is_best: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """All that comes back from a worker: counts and seconds, never images.

    ``drained`` tells that the worker was asked to stop and left the shard part done, to be resumed.
    ``seconds`` are wall-clock seconds per stage, ``usage`` what an endpoint counted. ``batch_size`` is the largest
    batch that fits the worker's device, None while the planned one does. ``peak_rss_bytes`` is the most main memory that the
    worker's process has had so far.
    """

    shard_id: int
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    num_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    drained: bool = False
    usage: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    peak_rss_bytes: int = 0

    @property
    def draws(self) -> int:
        """Draws that the shard accounts for."""
        return self.accepted + self.rejected + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanIndex:
    """``plan/plan.json``: counts of the plan, a digest of its prompts, and one of each shard's draws.

    ``rounds`` is 1 unless further draws were added, for prompts with too few accepted images.
    """

    num_prompts: int
    num_draws: int
    prompts_sha256: str
    shards: tuple[str, ...]
    rounds: int = 1

    @property
    def num_shards(self) -> int:
        """Shards of the plan."""
        return len(self.shards)

    def holds(self, marker: "Marker") -> bool:
        """Whether a committed shard is one of this plan, with the same draws."""
        return marker.shard_id < self.num_shards and self.shards[marker.shard_id] == marker.draws_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """``done/00017.json``: the commit marker of a shard, and the only place for what varies between runs.

    ``draws_sha256`` ties it to the plan; ``finished_at`` is UTC, ISO 8601. ``usage`` is what an endpoint counted
    (requests, images, cost); it covers all that this worker did for the shard, not what an earlier one did. ``reasons``
    counts draws by status and reason (``rejected clip_below``), those that were accepted left out.
    """

    shard_id: int
    draws: int
    accepted: int
    rejected: int
    failed: int
    num_bytes: int
    metadata_sha256: str
    images_sha256: str
    draws_sha256: str
    seconds: Mapping[str, float]
    worker: str
    finished_at: str
    usage: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
