"""Arrow schemas of the plan, the metadata table and the image table, each column with its meaning.

One schema per run: it depends on the names of the scorers and on nothing else. Images are kept apart from
metadata so that no query ever reads pixels.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from schemas.records import Draw, Outcome, Verdict

SCHEMA_VERSION = "4"

_TEXT, _INT, _BOOL = pa.string(), pa.int32(), pa.bool_()
_TAGS = pa.map_(pa.string(), pa.string())
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

_DRAW: list[tuple[str, pa.DataType, bool, str]] = [  # name, type, nullable, meaning
    ("sample_id", _TEXT, False, "primary key: hash of everything that decides the image"),
    ("shard_id", _INT, False, "shard that the draw belongs to; names its files"),
    ("prompt_id", _TEXT, False, "id of the prompt: the source's id column, else its row number"),
    ("draw_index", _INT, False, "number of the draw among those of its prompt, from 0"),
    ("prompt", _TEXT, False, "text that conditions the image"),
    ("negative_prompt", _TEXT, False, "text that guidance moves away from; may be empty"),
    ("label", _TEXT, True, "label of the prompt source, if it has one"),
    ("tags", _TAGS, False, "all further columns of the prompt source"),
    (
        "mode",
        _TEXT,
        False,
        "what conditions the image: text-to-image, image-to-image, inpainting, outpainting, control, image-prompt, super-resolution",
    ),
    ("model", _TEXT, False, "model id; the folder's name for a local model"),
    (
        "model_revision",
        _TEXT,
        False,
        "commit of a hub model, or sha256 over the files of a local folder; + what of model.compute changes images",
    ),
    ("loras", pa.list_(pa.field("element", pa.string())), False, "LoRA weights as name@scale; empty without"),
    ("scheduler", _TEXT, False, "sampler"),
    ("steps", _INT, False, "denoising steps; an endpoint of the openai dialect takes its own, and its own guidance"),
    (
        "guidance_scale",
        pa.float64(),
        False,
        "classifier-free guidance scale, or the same as an input of a distilled network; of no effect where a model draws from noise alone",
    ),
    ("true_cfg_scale", pa.float64(), True, "classifier-free guidance scale beside such an input; null: no second pass"),
    ("guidance_rescale", pa.float64(), True, "share by which the guided prediction is scaled back to the contrast of the unguided one"),
    (
        "guidance_interval",
        pa.list_(pa.field("element", pa.float64())),
        True,
        "guidance from the first to before the second share of the steps; null: in all of them",
    ),
    ("prompt_weighting", _BOOL, True, "brackets of the prompt are weights, as in (red:1.3); null: they are characters"),
    ("strength", pa.float64(), True, "share of the noise schedule that is run over the init image, 0 to 1"),
    ("width", _INT, False, "pixels"),
    ("height", _INT, False, "pixels"),
    ("seed", pa.int64(), False, "seed of the starting noise, 0 to 2**32-1, for torch.Generator('cpu')"),
    ("dtype", _TEXT, False, "compute type"),
    ("init_sha256", _TEXT, True, "sha256 of the init image's file, which lies in inputs/"),
    ("mask_sha256", _TEXT, True, "sha256 of the mask's file"),
    ("control_sha256", _TEXT, True, "sha256 of the control image's file"),
    ("reference_sha256", _TEXT, True, "sha256 of the file of the image that is a prompt"),
    ("control_scale", pa.float64(), True, "weight of the ControlNet, T2I-Adapter or IP-Adapter"),
    ("reference_scale", pa.float64(), True, "weight of the IP-Adapter where it goes with another mode than image-prompt"),
    ("input_transform", _TEXT, True, "made of the input image: margins LEFT TOP RIGHT BOTTOM, canny LOW HIGH, downscale N; null: nothing"),
]

_OUTCOME: list[tuple[str, pa.DataType, bool, str]] = [
    ("batch_shape", _TEXT, False, "NxHxW of the sampler's batch; equal bytes are promised at equal shape"),
    ("prompt_tokens", _INT, True, "tokens of the prompt in the generator's text encoder, before truncation"),
    ("prompt_truncated", _BOOL, True, "the text encoder did not see the end of the prompt"),
    ("format", _TEXT, True, "image format: webp, png or jpeg; null for a failed draw"),
    ("num_bytes", _INT, True, "size of the encoded image"),
    ("image_sha256", _TEXT, True, "sha256 of the encoded image"),
    ("phash", _TEXT, True, "64-bit perceptual hash, hexadecimal (imagehash.phash)"),
    ("is_blank", _BOOL, False, "all pixels have one colour"),
    ("safety_flagged", _BOOL, True, "the model's own safety checker flagged it; null without a checker"),
]

_VERDICT: list[tuple[str, pa.DataType, bool, str]] = [
    ("status", _TEXT, False, "accepted, rejected or failed"),
    ("reason", _TEXT, True, "rule that rejected, or error code of a failure; null when accepted"),
    ("error", _TEXT, True, "full error of a failed draw"),
    ("attempts", _INT, False, "tries of the draw by itself; 1 if it came out in its batch, or only its batch-mates failed"),
    (
        "rank_in_prompt",
        _INT,
        True,
        "1 is the best score among the prompt's images; null for failed draws, without scorers, or for prompts split over shards",
    ),
    ("is_best", _BOOL, True, "rank_in_prompt is 1"),
]


def _score_columns(scorer: str) -> list[tuple[str, pa.DataType, bool, str]]:
    return [
        (f"{scorer}_score", pa.float32(), True, "score; NaN where the scorer cannot tell, null for a failed draw. CLIP: plain cosine"),
        (f"{scorer}_version", _TEXT, False, "identity of the scorer: its model and the sha256 or tag of its weights"),
        (f"{scorer}_truncated", _BOOL, True, "the scorer did not see the end of the prompt; null if it reads no text"),
    ]


def metadata_columns(scorers: Iterable[str]) -> list[tuple[str, pa.DataType, bool, str]]:
    """All columns of the metadata table in order: (name, type, nullable, meaning)."""
    scores = [column for scorer in scorers for column in _score_columns(scorer)]
    return _DRAW + _OUTCOME + scores + _VERDICT


def _schema(columns: Iterable[tuple[str, pa.DataType, bool, str]], metadata: Mapping[str, str]) -> pa.Schema:
    fields = [pa.field(name, kind, nullable, {"description": meaning}) for name, kind, nullable, meaning in columns]
    return pa.schema(fields, {"promptmill_schema": SCHEMA_VERSION, **metadata})


def plan_schema() -> pa.Schema:
    """Schema of ``plan/``: everything that is known of a draw before it is made."""
    return _schema(_DRAW, {})


def metadata_schema(scorers: Iterable[str]) -> pa.Schema:
    """Schema of ``metadata/`` for the given scorer names."""
    return _schema(metadata_columns(scorers), {})


def images_schema() -> pa.Schema:
    """Schema of ``images/``. The ``huggingface`` key lets ``datasets`` decode the image column."""
    columns = [
        ("sample_id", _TEXT, False, "key into the metadata table"),
        ("image", _IMAGE, True, "encoded bytes and a file name; never null, but `datasets` decodes only a nullable column"),
        ("text", _TEXT, False, "the prompt, without weights, as the caption that training scripts read"),
        ("sha256", _TEXT, False, "sha256 of the encoded image"),
    ]
    features = {
        "sample_id": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "text": {"dtype": "string", "_type": "Value"},
        "sha256": {"dtype": "string", "_type": "Value"},
    }
    return _schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})


def embeddings_schema(number: pa.DataType | None = None) -> pa.Schema:
    """CLIP features of length 1; half floats in files, floats for readers that do not know these."""
    kind = pa.list_(number or pa.float16())
    return pa.schema([pa.field("sample_id", pa.string(), nullable=False), pa.field("embedding", kind, nullable=False)])


def draw_row(draw: Draw, shard_id: int) -> dict[str, Any]:
    """Row of the plan."""
    row = {name: getattr(draw, name) for name, *_ in _DRAW if name != "shard_id"}
    return row | {"shard_id": shard_id, "tags": sorted(draw.tags.items()), "loras": list(draw.loras)}


def draw_from_row(row: Mapping[str, Any]) -> Draw:
    """Inverse of ``draw_row``; accepts rows of the metadata table too, and rows of an older version, which lack later columns."""
    names = [name for name, *_ in _DRAW if name not in ("sample_id", "shard_id")]
    interval = row.get("guidance_interval")
    exact = {"tags": dict(row["tags"]), "loras": tuple(row["loras"]), "guidance_interval": interval and tuple(interval)}
    return Draw(**{name: row[name] for name in names if name in row} | exact)


def metadata_row(outcome: Outcome, verdict: Verdict, shard_id: int, versions: Mapping[str, str], image_format: str) -> dict[str, Any]:
    """Row of the metadata table. ``versions`` holds the identity of each scorer by name."""
    made = outcome.image is not None
    row = draw_row(outcome.draw, shard_id)
    row |= {name: getattr(outcome, name) for name, *_ in _OUTCOME if name not in ("format", "num_bytes")}
    row |= {"format": image_format if made else None, "num_bytes": len(outcome.image) if outcome.image is not None else None}
    for scorer, version in versions.items():
        row |= {
            f"{scorer}_score": outcome.scores.get(scorer),
            f"{scorer}_version": version,
            f"{scorer}_truncated": outcome.scores_truncated.get(scorer),
        }
    row |= {"status": verdict.status.value, "reason": verdict.reason, "error": outcome.error, "attempts": outcome.attempts}
    return row | {"rank_in_prompt": verdict.rank_in_prompt, "is_best": verdict.is_best}


def outcome_from_row(row: Mapping[str, Any], image: bytes | None, scorers: Iterable[str]) -> Outcome:
    """Inverse of ``metadata_row``, given the draw's encoded image."""
    names = [name for name, *_ in _OUTCOME if name not in ("format", "num_bytes")]
    return Outcome(
        draw=draw_from_row(row),
        image=image,
        scores={scorer: row[f"{scorer}_score"] for scorer in scorers if image is not None},
        scores_truncated={scorer: row[f"{scorer}_truncated"] for scorer in scorers if image is not None},
        error=row["error"],
        attempts=row["attempts"],
        **{name: row[name] for name in names},
    )


def image_row(outcome: Outcome, image_format: str) -> dict[str, Any]:
    """Row of the image table; the outcome must have an image."""
    path = f"{outcome.draw.sample_id}.{image_format}"
    return {
        "sample_id": outcome.draw.sample_id,
        "image": {"bytes": outcome.image, "path": path},
        "text": outcome.draw.words,
        "sha256": outcome.image_sha256,
    }
