"""The dataset card: what a reader asks of a dataset, as README.md with the front matter that the Hugging Face hub reads.

Holds neither times nor paths of machines: the same export gives the same card. Text of prompts and labels is
shown as text; no markup of theirs comes through.
"""

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from jobs.judged import read_judged
from jobs.run_dir import RunDir
from jobs.selection import Selection

MOST_LINES = 50
_BINS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_PATTERNS = {
    "imagefolder": "{split}/**",
    "webdataset": "{split}-*.tar",
    "hf": "data/{split}-*.parquet",
    "parquet": "data/{split}-*.parquet",
    "coco": "{split}/**",
}
LIMITS = """\
- Every image was made by a generative model: it may show what the prompt does not say, or not what it says.
- Scores come from models too, and share their blind spots; the images that a filter keeps are those that such a model likes.
- What the generator learned from, with its gaps and its biases, is what the images look like.
- The sha256 of each image, as the run wrote it, is in its row."""
MARKED = "\n- The image files say that they are generated, and by which model and prompt: XMP with IPTC's DigitalSourceType."
SIGNED = "\n- Each has a C2PA manifest that says so too, with the parameters of the draw, signed by {signer}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was written: images by split, and by label and split; a few prompts."""

    form: str
    selection: Selection
    split: str
    split_by: str
    label: str
    splits: Mapping[str, int]
    labels: Counter[tuple[str | None, str]]
    examples: tuple[str, ...]
    provenance: bool = False
    signer: str | None = None


def card(run: RunDir, contents: Contents, license_id: str) -> str:
    """The whole README.md."""
    total = sum(contents.splits.values())
    sections = [
        f"---\n{yaml.safe_dump(_front(contents, total, license_id), sort_keys=False, allow_unicode=False)}---",
        "# Synthetic images",
        f"{total:,} images that were drawn from text prompts by `{_code(run.job.model['name'])}`, made and filtered with promptmill.",
        "## How to read it",
        _usage(contents.form, next(iter(contents.splits))),
        "## Contents",
        _labels(contents),
        "## Prompts",
        "Some of them, as JSON strings:",
        "\n".join(f"    {visible(json.dumps(prompt, ensure_ascii=False))}" for prompt in contents.examples) or "None.",
        "## How it was made",
        _table(("", ""), _facts(run, contents)),
        "Settings in full:",
        "\n".join(f"    {line}" for line in _settings(run).splitlines()),
        "## Known limits",
        LIMITS + MARKED * contents.provenance + (SIGNED.format(signer=cell(contents.signer)) if contents.signer else ""),
        "## Licences",
        f"Dataset: `{_code(license_id)}`. The run does not record the licence of the model; it is on the page of "
        f"`{_code(run.job.model['name'])}`, and may bind the images.",
    ]
    return "\n\n".join(sections) + "\n"


def visible(text: str) -> str:
    """With control and format characters, such as those that turn the direction of writing, as escapes."""
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def cell(text: object) -> str:
    """Text in a cell of a table, whatever it is."""
    return re.sub(r"[\\`*_{}\[\]()#!|~$:]", lambda found: f"&#{ord(found[0])};", html.escape(visible(str(text)), quote=False))


def _code(text: str) -> str:
    return visible(text).replace("`", "'")


def _front(contents: Contents, total: int, license_id: str) -> dict[str, object]:
    pattern = _PATTERNS[contents.form]
    files = [{"split": name, "path": pattern.format(split=name)} for name, count in contents.splits.items() if count]
    return {
        "pretty_name": "Synthetic images",
        "license": license_id,
        "task_categories": ["text-to-image", "image-classification"],
        "size_categories": [next((name for limit, name in _BINS if total < limit), "n>10M")],
        "tags": ["synthetic", "promptmill"],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _usage(form: str, split: str) -> str:
    return {
        "imagefolder": f"    datasets.load_dataset(FOLDER)\n    torchvision.datasets.ImageFolder('FOLDER/{split}')",
        "webdataset": f"    webdataset.WebDataset('FOLDER/{split}-000000.tar').decode('pil')",
        "hf": "    datasets.load_dataset(FOLDER)",
        "parquet": f"    pandas.read_parquet('FOLDER/data')\n    duckdb.sql(\"from 'FOLDER/data/{split}-*.parquet'\")",
        "coco": f"    torchvision.datasets.CocoCaptions('FOLDER/{split}', 'FOLDER/annotations/captions_{split}.json')",
    }[form]


def _labels(contents: Contents) -> str:
    names = list(contents.splits)
    rows: list[list[object]] = [["all", *contents.splits.values()]]
    labels = sorted({label for label, _ in contents.labels}, key=lambda label: (label is None, label or ""))
    if labels != [None]:
        rows += [["(none)" if label is None else label, *(contents.labels[label, name] for name in names)] for label in labels[:MOST_LINES]]
    more = f"\n\n{len(labels) - MOST_LINES:,} more labels are not listed." if len(labels) > MOST_LINES else ""
    return _table((contents.label, *names), rows) + more


def _facts(run: RunDir, contents: Contents) -> list[list[object]]:
    job, judged = run.job, read_judged(run.store)
    expand = job.config.prompts.expand
    made_of: list[list[object]] = [
        ["model", f"{job.model['name']} @ {job.model['revision']}"],
        *([f"scorer {name}", card["version"]] for name, card in job.scorers.items()),
        *([f"scorer {name}, added later", version] for name, version in (judged.scorers if judged else {}).items()),
        *([["prompts", f"rewritten by {expand.model}, {expand.count} of each, told: {expand.instruction}"]] if expand else []),
        ["status of the images", contents.selection.only],
        ["SQL condition", contents.selection.where],
        ["splits", f"{contents.split} by hash of {contents.split_by}"],
        ["rules", json.dumps(judged.filter if judged else job.config.filter.model_dump(mode="json", exclude_none=True))],
        ["job fingerprint", job.fingerprint],
        ["sha256 of the prompts", run.plan.prompts_sha256],
        ["versions", ", ".join(f"{name} {version}" for name, version in job.versions.items())],
    ]
    return made_of


def _settings(run: RunDir) -> str:
    config = run.job.config.model_dump(mode="json", exclude_none=True)
    kept = {"sampling": config["sampling"], "seed": config["seed"], "draws_per_prompt": config["prompts"]["draws_per_prompt"]}
    return visible_lines(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def visible_lines(text: str) -> str:
    """As ``visible``, line by line."""
    return "\n".join(visible(line) for line in text.splitlines())


def _table(head: tuple[str, ...], rows: list[list[object]]) -> str:
    lines = [[cell(name) for name in head], ["---"] * len(head)]
    lines += [[f"{value:,}" if isinstance(value, int) else cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
