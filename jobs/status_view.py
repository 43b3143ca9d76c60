"""A run's status as a picture for the terminal."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # status.py imports this module
    from jobs.status import Status

STATES = {"running": ("●", "bold cyan"), "stopped": ("■", "bold yellow"), "finished": ("✔", "bold green")}
STYLES = {"accepted": "green", "rejected": "yellow", "failed": "red"}
MISHAPS = {  # by event: what there was of it
    "worker_lost": ("worker", "lost"),
    "worker_hung": ("worker", "hung"),
    "worker_refused": ("worker", "without the model's files"),
    "batch_halved": ("worker", "short of memory"),
    "shard_retry": ("shard", "tried again"),
    "shard_damaged": ("shard", "found damaged"),
    "shard_abandoned": ("shard", "given up"),
}
BAR_WIDTH = 24
MOST_WORKERS = 16
GAP = 6


def render(found: "Status") -> RenderableType:
    """What ``promptmill status`` shows."""
    parts: list[RenderableType] = [_head(found), _progress(found), Text(_speed(found)), Text(), _verdicts(found)]
    sides = [table for table in (_stages(found), _workers(found)) if table]
    if sides:
        parts += [Text(), _Beside(sides)]
    if found.slowest:
        parts += [Text(), _slowest(found)]
    parts += [Text(line, style=style) for line, style in _mishaps(found)]
    return Group(*parts)


def duration(seconds: float) -> str:
    """3 h 05 min, 4 min 10 s, 12 s."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def _head(found: "Status") -> Text:
    mark, style = STATES[found.state]
    root = os.path.relpath(found.root)
    text = Text.assemble((found.root if root.startswith("..") else root, "bold"), "  ", (f"{mark} {found.state}", style))
    return text.append(f"   job {found.fingerprint}{', judged by promptmill filter' if found.judged else ''}", style="dim")


def _progress(found: "Status") -> RenderableType:
    row = Table.grid(padding=(0, 2, 0, 0))
    share = found.draws_done / found.draws_planned if found.draws_planned else 1.0
    style = "green" if found.state == "finished" else "cyan"
    bar = ProgressBar(total=max(1, found.draws_planned), completed=found.draws_done, width=40, complete_style=style, finished_style=style)
    images = f"{found.draws_done:,} of {found.draws_planned:,} images"
    row.add_row(
        bar, Text(f"{share:.1%}", style="bold"), images, Text(f"{found.shards_done:,} of {found.shards_planned:,} shards", style="dim")
    )
    return row


def _speed(found: "Status") -> str:
    parts = []
    if found.images_per_second is not None:
        parts.append(f"{found.images_per_second:.2f} images/s overall")
    if found.state == "running" and found.recent_images_per_second is not None:
        parts.append(f"{found.recent_images_per_second:.2f} images/s of late")
    if found.eta_seconds is not None:
        parts.append(f"about {duration(found.eta_seconds)} left")
    if found.state == "stopped":
        parts.append("the same run command goes on from here")
    if found.num_bytes:
        parts.append(f"{size(found.num_bytes)} written")
    return "  ·  ".join(parts)


def size(num_bytes: int) -> str:
    """12.3 MB; decimal units."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _verdicts(found: "Status") -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=24, no_wrap=True)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    done = max(1, found.draws_done)
    for name, style in STYLES.items():
        count = getattr(found, name)
        bar = Bar(done, 0, count, width=BAR_WIDTH, color=style)
        table.add_row(Text(name, style=f"bold {style}" if count else "dim"), f"{count:,}", f"{count / done:.1%}", bar if count else "")
        for reason in found.reasons:
            if reason.status == name and reason.reason is not None:
                words = Text("  " + reason.reason.replace("_", " "), style="dim")
                table.add_row(words, Text(f"{reason.draws:,}", style="dim"), Text(f"{reason.draws / done:.1%}", style="dim"))
    return table


def _stages(found: "Status") -> Table | None:
    """Waiting is left out: a shard waits while another one of its worker uses the device."""
    seconds = {stage: value for stage, value in found.stage_seconds.items() if stage != "wait" and value > 0}
    total = sum(seconds.values())
    if not total:
        return None
    table = _side("seconds of work", 4)
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:,.1f} s", f"{value / total:.0%}", Bar(total, 0, value, width=BAR_WIDTH // 2, color="blue"))
    return table


def _workers(found: "Status") -> Table | None:
    if not found.workers:
        return None
    table = _side("workers of the latest start", 3)
    for worker in found.workers[:MOST_WORKERS]:
        rate = "-" if worker.images_per_second is None else f"{worker.images_per_second:.2f} images/s"
        name = Text(worker.name + ("  lost" if worker.lost else ""), style="red" if worker.lost else "")
        table.add_row(name, f"{worker.draws:,} images", rate)
    if len(found.workers) > MOST_WORKERS:
        table.add_row(Text(f"and {len(found.workers) - MOST_WORKERS:,} more", style="dim"))
    return table


class _Beside:
    """Tables side by side where they fit, else one below the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [Measurement.get(console, options, table).maximum for table in self._tables]
        if sum(widths) + GAP * (len(widths) - 1) <= options.max_width:
            row = Table.grid(padding=(0, GAP, 0, 0))
            row.add_row(*self._tables)
            yield row
            return
        for number, table in enumerate(self._tables):
            if number:
                yield Text()
            yield table


def _side(title: str, columns: int) -> Table:
    table = Table(box=None, show_header=False, title=title, title_justify="left", title_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for number in range(columns):
        table.add_column(justify="right" if number in (1, 2) else "left", no_wrap=True)
    return table


def _slowest(found: "Status") -> Table:
    table = _side("slowest shards", 4)
    for shard in found.slowest:
        table.add_row(f"{shard.shard_id:05d}", f"{shard.seconds:,.1f} s", f"{shard.times_median:.1f} x the median", shard.worker)
    return table


def _mishaps(found: "Status") -> Sequence[tuple[str, str]]:
    told = [_plural(count, *words) for kind, words in MISHAPS.items() if (count := found.mishaps.get(kind, 0))]
    starts = _plural(found.starts, "start", "")
    lines = [(f"\n{', '.join(told)}, in {starts}; all are in events.jsonl, the latest are", "yellow")] if told else []
    lines += [(f"  {one.at}  {one.kind.replace('_', ' ')}  {one.about}: {one.why}", "dim") for one in found.latest_mishaps]
    return [*lines, *([(f"\n{found.note}", "red")] if found.note else [])]


def _plural(count: int, noun: str, fate: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'} {fate}".rstrip()
