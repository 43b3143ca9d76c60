"""``promptmill show``: a contact sheet of a run's images, each over its prompt, score and verdict."""

import io
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from jobs.query import query
from jobs.run_dir import RunDir
from schemas.errors import QueryError

CELL_PX = 160
GAP_PX = 12
FONT_PX = 12
TEXT_LINES = 4
BACKGROUND, INK, COLOURS = "#f4f3f0", "#222222", {"accepted": "#1a7f37", "rejected": "#b35900", "failed": "#c62828"}


def contact_sheet(run: str | Path, png: Path, *, where: str, limit: int) -> int:
    """Write a PNG of up to ``limit`` images that satisfy the SQL condition; the number of images on it.

    Raises QueryError if the condition is wrong or nothing satisfies it.
    """
    rows = _rows(run, where, limit)
    if not rows:
        raise QueryError(f"{run}: no image satisfies {where!r}; try --where true")
    columns = min(len(rows), 8)
    cell_height = CELL_PX + (TEXT_LINES + 1) * (FONT_PX + 3) + GAP_PX
    sheet = Image.new("RGB", (columns * (CELL_PX + GAP_PX) + GAP_PX, -(-len(rows) // columns) * cell_height + GAP_PX), BACKGROUND)
    for index, row in enumerate(rows):
        left, top = GAP_PX + index % columns * (CELL_PX + GAP_PX), GAP_PX + index // columns * cell_height
        _paint(sheet, row, left, top)
    png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(png)
    return len(rows)


def _rows(run: str | Path, where: str, limit: int) -> list[dict[str, Any]]:
    scorers = list(RunDir.open(run).job.scorers)
    score = f"{scorers[0]}_score" if scorers else "null"
    sql = (
        f"select i.image.bytes as bytes, m.prompt, m.status, m.reason, {score} as score"  # noqa: S608 - the run is read-only to it
        f" from (select * from metadata where {where}\n) m join images i using (sample_id)"
        f" order by m.shard_id, m.prompt_id, m.draw_index limit {limit}"
    )
    return query([run], sql).to_pylist()


def _paint(sheet: Image.Image, row: dict[str, Any], left: int, top: int) -> None:
    image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
    enlarge = image.width < CELL_PX
    image = image.resize(_fit(image.size), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (CELL_PX - image.width) // 2, top + (CELL_PX - image.height) // 2))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    verdict = row["status"] if row["reason"] is None else row["reason"].replace("_", " ")
    score = "" if row["score"] is None else f"{row['score']:.3f}  "
    pen.text((left, top + CELL_PX + 3), score + verdict, fill=COLOURS[row["status"]], font=font)
    lines = textwrap.wrap(row["prompt"], width=CELL_PX // 6)[:TEXT_LINES]
    for number, line in enumerate(lines, 1):
        pen.text((left, top + CELL_PX + 3 + number * (FONT_PX + 3)), line, fill=INK, font=font)


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL_PX / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
