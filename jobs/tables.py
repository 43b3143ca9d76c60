"""Results as rich tables, for the command line."""

import os
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.plan import PlanSummary
from pipeline.store import is_url

TO_TRY = (
    "select status, reason, count(*) as images from metadata group by all order by images desc",
    "select prompt, seed, status from metadata order by sample_id limit 10",
)
TELL_WASTE = 0.05  # share of the sampler's work

if TYPE_CHECKING:  # these modules import torch or start-up heavy parts
    from jobs.audit import Audit
    from jobs.bench import BenchResult
    from jobs.calibrate import Calibration
    from jobs.evaluate import Evaluation
    from jobs.filter import Change
    from jobs.run import RunReport


def plan_table(plan: PlanSummary) -> RenderableType:
    """What a job would make."""
    table = _facts()
    table.add_row("model", f"{plan.model} @ {plan.revision}")
    table.add_row("images", f"{plan.num_draws:,} of {plan.num_prompts:,} prompts, {plan.width} x {plan.height} px")
    if plan.requests is not None:
        table.add_row("requests", f"{plan.requests:,} to the language model of prompts.expand, before the first image")
    if plan.max_draws:
        table.add_row("", f"then more where too few are accepted, at most {plan.max_draws:,} in all")
    batches = "batches of a size that the run chooses"
    if plan.num_batches is not None:
        batches = f"{plan.num_batches:,} batches ({plan.padded_draws:,} places filled up)"
    table.add_row("shards", f"{plan.num_shards:,}, in {batches}")
    if plan.num_shards > 1 and plan.wasted >= TELL_WASTE:
        table.add_row("", f"{plan.wasted:.0%} of the sampling fills up short batches; a larger output.shard_size leaves fewer of them")
    if plan.repeated_prompts and not plan.requests:
        table.add_row("repeated prompts", f"{plan.repeated_prompts:,} have the text of an earlier one; each still gets noise of its own")
    if plan.unread_negatives:
        table.add_row("negative prompts", f"{plan.unread_negatives:,} images have one that has no say: their guidance_scale is 1 or less")
    for number, text in enumerate(plan.examples):
        table.add_row("for example" if number == 0 else "", text if len(text) <= 100 else text[:99] + "…")
    return table


def run_table(report: "RunReport") -> RenderableType:
    """How a run ended, and what to do next."""
    made = report.accepted + report.rejected + report.failed
    table = _facts()
    table.add_row("images", f"{made:,} of {report.planned:,}")
    for name, style in (("accepted", "green"), ("rejected", "yellow"), ("failed", "red")):
        count = getattr(report, name)
        table.add_row(name, Text(f"{count:,}  ({count / max(1, made):.1%})", style=style if count else "dim"))
    if report.made_now:
        table.add_row(
            "speed",
            f"{report.images_per_second:.2f} images/s with {report.workers} workers, after {report.startup_seconds:.1f} s of start-up",
        )
        table.add_row("start-up", _startup(report))
        table.add_row("device time", _shares(report))
        table.add_row("memory", f"{report.peak_rss_bytes / 1e6:,.0f} MB in the largest worker")
    near = report.root if is_url(report.root) else os.path.relpath(report.root)
    root = report.root if near.startswith("..") else near
    table.add_row("dataset", root)
    if report.stopped or not made:
        return table
    next_steps = [f'query {root} "{sql}"' for sql in TO_TRY] + [f"show {root} sheet.png"]
    return Group(table, Text("\nnext:"), *(Text(f"  promptmill {step}") for step in next_steps))


def change_table(change: "Change") -> Table:
    """Draws by status and reason, before and after a judgement."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("status", "reason", "before", "after"):
        table.add_column(heading, justify="right" if heading in ("before", "after") else "left")
    for status, reason in sorted(change.before | change.after, key=lambda key: (key[0], -change.after.get(key, 0), key[1] or "")):
        before, after = (counts.get((status, reason), 0) for counts in (change.before, change.after))
        table.add_row(status, reason or "", f"{before:,}", f"{after:,}")
    return table


def audit_tables(found: "Audit") -> RenderableType:
    """Kept shares by value, diversity, distributions of scores, thresholds."""
    kept = Table(box=box.SIMPLE_HEAD)
    embedded = found.groups[0].vendi is not None
    further = ("distance", "among kept", "Vendi score", "of kept") if embedded else ()
    for heading in ("", "value", "images", "kept", "share", "differing bits", "among kept", *further):
        kept.add_column(heading, justify="left" if heading in ("", "value") else "right")
    last = None
    for row in found.groups:
        figures = [f"{share:.3f}" if share is not None else "" for share in (row.differing_bits, row.differing_bits_kept)]
        if embedded:
            figures += [f"{distance:.3f}" if distance is not None else "" for distance in (row.distance, row.distance_kept)]
            figures += [f"{score:.1f}" if score is not None else "" for score in (row.vendi, row.vendi_kept)]
        shown = [Text(row.by if row.by != last else ""), Text(_harmless(row.value))]
        kept.add_row(*shown, f"{row.images:,}", f"{row.kept:,}", f"{row.share:.1%}", *figures)
        last = row.by
    scores = Table(box=box.SIMPLE_HEAD)
    for heading in ("score", "of", "images", "lowest", "5 %", "25 %", "median", "75 %", "95 %", "highest"):
        scores.add_column(heading, justify="left" if heading in ("score", "of") else "right")
    for each in found.scores:
        scores.add_row(each.score, each.of, f"{each.images:,}", *(f"{value:.3f}" for value in each.quantiles))
    return Group(kept, scores)


def calibration_table(found: "Calibration", precision: float) -> RenderableType:
    """Precision and recall against the threshold, and the threshold to take."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in (f"{found.score} min", "images kept", "precision", "recall"):
        table.add_column(heading, justify="right")
    for point in found.shown():
        table.add_row(f"{point.threshold:.4f}", f"{point.kept:,}", f"{point.precision:.1%}", f"{point.recall:.1%}")
    best = found.threshold_for(precision)
    if best is None:
        return Group(table, Text(f" no threshold reaches a precision of {precision:.1%}\n", style="bold"))
    text = f" min: {best.threshold:.9g} has a precision of {best.precision:.1%} at a recall of {best.recall:.1%}"
    return Group(table, Text(f"{text}, over {found.images:,} labelled images\n", style="bold"))


def evaluation_table(found: "Evaluation") -> RenderableType:
    """A column per set of images."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("learned from")
    for row in found.rows:
        table.add_column(row.name, justify="right")
    table.add_row("images", *(f"{row.images:,}" for row in found.rows))
    spreads = ("" if row.spread is None else f" ± {row.spread:.1%}" for row in found.rows)
    table.add_row("accuracy", *(f"{row.accuracy:.1%}{spread}" for row, spread in zip(found.rows, spreads, strict=True)))
    for name in ("precision", "recall"):
        table.add_row(name, *(f"{getattr(row, name):.1%}" for row in found.rows))
    table.add_row("density", *(f"{row.density:.2f}" for row in found.rows))
    table.add_row("coverage", *(f"{row.coverage:.1%}" for row in found.rows))
    table.add_row("Fréchet distance", *(f"{row.frechet_distance:.4f}" for row in found.rows))
    table.add_row("kernel distance", *(f"{row.kernel_distance:.4f}" for row in found.rows))
    table.add_row("Vendi score", *(f"{row.vendi:.1f}" for row in found.rows))
    told = f" {len(found.classes)} classes, tested on {found.tested_on:,} real images, features of {found.encoder}"
    left = f"; left out: {', '.join(map(_harmless, found.left_out))}" if found.left_out else ""
    return Group(table, Text(f"{told}{left}\n"))


def _harmless(text: str) -> str:
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text[:60])


def bench_table(result: "BenchResult") -> RenderableType:
    """The bare loop against the pipeline, and the seconds per stage."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.draws} images a round, {result.rounds} rounds, interleaved, on {result.machine}",
        title_justify="left",
    )
    for heading in ("way", "images/s (median)", "lowest - highest", "start-up s"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way in result.ways:
        table.add_row(way.name, f"{way.median:.2f}", f"{way.lowest:.2f} - {way.highest:.2f}", f"{way.startup_seconds:.1f}")
    stages = Table(box=box.SIMPLE_HEAD)
    for heading in ("stage of the pipeline", "ms per image", "share of the workers' time"):
        stages.add_column(heading, justify="left" if heading.startswith("stage") else "right")
    for stage, seconds, share in result.stages:
        stages.add_row(stage, f"{seconds * 1000:.1f}", f"{share:.1%}")
    return Group(table, Text(f" pipeline / bare loop: {result.ratio:.2f}\n", style="bold"), stages)


def _shares(report: "RunReport") -> str:
    """Share of the workers' time that sampling and scoring took."""
    total = report.steady_seconds * max(1, report.workers)
    stages = (("text", "sample", "decode"), ("score",))
    sampling, scoring = (sum(report.stages.get(stage, 0.0) for stage in each) / total for each in stages)
    return f"{min(1.0, sampling + scoring):.0%} busy: sampling {sampling:.0%}, scoring {scoring:.0%}"


def _startup(report: "RunReport") -> str:
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in report.startup.items())
    return parts + (f"; first images after {report.first_images_seconds:.1f} s" if report.first_images_seconds is not None else "")


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
