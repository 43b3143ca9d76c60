"""Writes the pages of docs/ that are generated from code: ``make docs``. A test compares them with what stands there."""

from inspect import getdoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.models.models_page import models_page
from pipeline.models.samplers import samplers_page
from schemas import tables
from schemas.config import (
    ComputeConfig,
    ControlnetConfig,
    EmbeddingConfig,
    EndpointConfig,
    ExpandConfig,
    IpAdapterConfig,
    JobConfig,
    LoraConfig,
    SecondStageConfig,
    Section,
    StepCacheConfig,
    VaeConfig,
)

DOCS = Path(__file__).parent.parent / "docs"


def pages() -> dict[str, str]:
    """Text of each generated page by file name."""
    return {"columns.md": columns_page(), "config.md": config_page(), "models.md": models_page(), "samplers.md": samplers_page()}


def columns_page() -> str:
    """Every column of the tables, with its meaning."""
    parts = [
        "# Columns",
        "Generated from `schemas/tables.py`. The same texts stand in each Parquet field's `description`.",
        "## `metadata/`: one row per draw, failed ones too",
        _column_table(tables.metadata_columns(["clip"])),
        "`clip` stands for the key of a scorer in the configuration: each scorer has these three columns.",
        "## `images/`: one row per image",
        _table(
            ("column", "type", "meaning"),
            [(f"`{f.name}`", f"`{f.type}`", (f.metadata or {})[b"description"].decode()) for f in tables.images_schema()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """Every key of a configuration, with its default."""
    parts = ["# Configuration", "Generated from `schemas/config.py`. Unknown keys are refused."]
    for name, field in JobConfig.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            parts += [f"## `{name}`", f"{field.description} (default `{field.default}`)"]
            continue
        parts += [f"## `{name}`", getdoc(section) or "", _fields_table(section)]
    for name, section in {
        "`prompts.expand`": ExpandConfig,
        "`model.compute`": ComputeConfig,
        "`model.compute.step_cache`": StepCacheConfig,
        "`model.endpoint`": EndpointConfig,
        "An entry of `model.loras`": LoraConfig,
        "An entry of `model.embeddings`": EmbeddingConfig,
        "`model.vae`": VaeConfig,
        "`model.controlnet`": ControlnetConfig,
        "`model.ip_adapter`": IpAdapterConfig,
        "`model.second_stage`": SecondStageConfig,
    }.items():
        parts += [f"### {name}", getdoc(section) or "", _fields_table(section)]
    rule = JobConfig.model_fields["filter"].annotation.model_fields["rules"].annotation.__args__[0]  # type: ignore[union-attr]
    parts += ["### An entry of `filter.rules`", getdoc(rule) or "", _fields_table(rule)]
    return "\n\n".join(parts) + "\n"


def _column_table(columns: list[tuple[str, Any, bool, str]]) -> str:
    rows = [(f"`{name}`", f"`{kind}`", "yes" if nullable else "", meaning) for name, kind, nullable, meaning in columns]
    return _table(("column", "type", "null", "meaning"), rows)


def _fields_table(section: type[BaseModel]) -> str:
    rows = []
    for name, field in section.model_fields.items():
        value = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else "all off" if isinstance(value, BaseModel) else f"`{value}`"
        rows.append((f"`{name}`", default, field.description or ""))
    return _table(("key", "default", "meaning"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _section(arg))), None)


if __name__ == "__main__":
    for page, text in pages().items():
        (DOCS / page).write_text(text)
