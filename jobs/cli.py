"""The command line: each command parses, calls one function, prints. Data goes to stdout, progress to stderr.

Heavy packages are imported inside the commands, so that ``--help`` and ``query`` start at once.
"""

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from schemas.errors import PromptmillError

CONFIG = click.argument("config", type=click.Path(path_type=Path))


def _folder(text: str) -> str | Path:
    return text if "://" in text else Path(text)


RUN = click.argument("run", type=_folder)
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one field, e.g. sampling.steps=20. Repeatable.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="promptmill")
def cli() -> None:
    """Prompts to image datasets: Ray actors running latent diffusion, CLIP scores, Parquet."""


@cli.command()
@CONFIG
@SET
def plan(config: Path, overrides: Sequence[str]) -> None:
    """Expand a job and show what it would make. Writes nothing, needs no GPU."""
    from jobs.plan import summarize
    from jobs.prepare import prepare
    from jobs.tables import plan_table

    _stdout().print(plan_table(summarize(prepare(config, overrides))))


@cli.command()
@CONFIG
@click.option(
    "--out", type=_folder, metavar="RUN", help="Run folder: a path, or s3://bucket/folder.  [default: output.dir, else runs/NAME]"
)
@click.option("--executor", type=click.Choice(["ray", "local"]), help="Override executor.kind.")
@click.option("--retry-failed", is_flag=True, help="Make the failed draws of the run again, and nothing that was made.")
@click.option("--grace", type=float, metavar="SECONDS", help="Override executor.grace_seconds: the time to finish after SIGTERM or Ctrl-C.")
@click.option("--profile", is_flag=True, help="Write Chrome traces of each worker into RUN/profile: its stages, and one batch by operator.")
@SET
def run(
    config: Path,
    out: str | Path | None,
    executor: str | None,
    retry_failed: bool,
    grace: float | None,
    profile: bool,
    overrides: Sequence[str],
) -> None:
    """Start a job, or go on where it stopped: the same command resumes.

    Exit status: 0 all made, 1 some draws failed, 2 a mistake in the input, 130 stopped by Ctrl-C.
    """
    from jobs import run as run_verb
    from jobs.prepare import prepare
    from jobs.progress import display
    from jobs.tables import run_table

    if executor:
        overrides = [*overrides, f"executor.kind={executor}"]
    if grace is not None:
        overrides = [*overrides, f"executor.grace_seconds={grace}"]
    prepared = prepare(config, overrides)
    with display(_stderr()) as shown:
        told = {"on_tally": shown.tally, "on_message": shown.message}
        report = run_verb.run(prepared, out=out, retry_failed=retry_failed, profile=profile, **told)
    _stdout().print(run_table(report))
    if report.stopped:
        click.echo(f"stopped; to go on: {shlex.join(['promptmill', *sys.argv[1:]])}", err=True)
    sys.exit(report.exit_code)


ADDRESS = click.option(
    "--address", envvar="RAY_API_SERVER_ADDRESS", default="http://127.0.0.1:8265", show_default=True, help="The cluster's dashboard."
)
JOB = click.argument("job")


@cli.command()
@CONFIG
@ADDRESS
@click.option("--out", metavar="RUN", help="Run folder that every machine sees: s3://bucket/folder, or an absolute path.")
@click.option("--wait", "waits", is_flag=True, help="Show what the job prints and wait for its end; exit with its status.")
@SET
def submit(config: Path, address: str, out: str | None, waits: bool, overrides: Sequence[str]) -> None:
    """Run a job on a Ray cluster, through its job API. Submitted again, it goes on where it stopped.

    The configuration, its prompt file and its own scorers travel with the job. See also: promptmill jobs.
    """
    from jobs import submit as submit_verb

    job = submit_verb.submit(config, address, out=out, overrides=overrides)
    click.echo(job.id)
    if waits:
        job = submit_verb.follow(job.id, address, lambda text: click.echo(text, err=True, nl=False))
        click.echo(f"{job.id}: {job.state}", err=True)
        sys.exit(job.exit_code if job.exit_code is not None else int(job.state != "succeeded"))
    hint = f"promptmill jobs logs {job.id} -f --address {address}"
    click.echo(f"the dataset goes to {job.run}; to follow it: {hint}", err=True)


@cli.group()
def jobs() -> None:
    """Jobs that were submitted to a Ray cluster: list, status, logs, cancel."""


@jobs.command("list")
@ADDRESS
def jobs_list(address: str) -> None:
    """The jobs of a cluster that promptmill submitted."""
    from jobs.submit import list_jobs

    for job in list_jobs(address):
        click.echo(f"{job.id}\t{job.state}\t{job.started}\t{job.run}")


@jobs.command("status")
@JOB
@ADDRESS
def jobs_status(job: str, address: str) -> None:
    """State of a job, and where its dataset is; 'promptmill status RUN' tells more of that."""
    from jobs.submit import get_job

    found = get_job(job, address)
    click.echo(f"{found.id}\t{found.state}\t{found.started}\t{found.run}")
    if found.message:
        click.echo(found.message, err=True)


@jobs.command("logs")
@JOB
@ADDRESS
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the job ends.")
def jobs_logs(job: str, address: str, follows: bool) -> None:
    """What a job printed."""
    from jobs import submit as submit_verb

    if follows:
        submit_verb.follow(job, address, lambda text: click.echo(text, nl=False))
    else:
        click.echo(submit_verb.logs(job, address), nl=False)


@jobs.command("cancel")
@JOB
@ADDRESS
def jobs_cancel(job: str, address: str) -> None:
    """Stop a job: it finishes and keeps its current batches. Submitting it again goes on."""
    from jobs.submit import cancel

    found = cancel(job, address)
    click.echo(f"{job}: stopping; its current batches are finished and kept in {found.run}", err=True)


@cli.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: str | Path, as_json: bool) -> None:
    """Progress, rate, failures of a run: while it goes on or after."""
    from jobs.run_dir import RunDir
    from jobs.status import status as read_status
    from jobs.status import to_json
    from jobs.status_view import render

    found = read_status(RunDir.open(run))
    if as_json:
        click.echo(to_json(found))
    else:
        _stdout().print(render(found))


@cli.command()
@click.argument("runs_and_sql", nargs=-1, required=True, metavar="RUN... [SQL]")
@click.option("--sql-file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE", help="Read the SQL there; - is the input.")
@click.option("--memory", default="2GB", show_default=True, help="Limit of DuckDB's memory.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after this long.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "ndjson", "csv", "parquet"]),
    default="table",
    show_default=True,
    help="Output format.",
)
def query(runs_and_sql: Sequence[str], sql_file: Path | None, form: str, memory: str, timeout: float | None) -> None:
    """Ask runs with SQL (DuckDB), over the views metadata, images, embeddings and failed. Reads only.

    With several runs each view begins with a column run.

    Example: promptmill query runs/demo "select status, count(*) from metadata group by 1"
    """
    from jobs.query import open_query, read_sql
    from jobs.results import print_result

    if sql_file is None and len(runs_and_sql) < 2:
        raise click.UsageError("Missing the SQL: give it after the run, or --sql-file.")
    *runs, sql = runs_and_sql if sql_file is None else (*runs_and_sql, read_sql(sql_file))
    with open_query([_folder(run) for run in runs], sql, memory=memory, timeout_seconds=timeout) as result:
        print_result(result, form)


@cli.command("filter")
@RUN
@click.option("--dry-run", is_flag=True, help="Only show what the rules would do.")
@SET
def filter_(run: str | Path, dry_run: bool, overrides: Sequence[str]) -> None:
    """Judge a run again by other rules, from its stored scores. Without --set its own rules hold again.

    Example: promptmill filter runs/demo --set 'filter.rules=[{score: clip, min: 0.5}, {keep: 2, within: prompt, score: clip}]'
    """
    from jobs.filter import filter_run
    from jobs.tables import change_table

    _stdout().print(change_table(filter_run(run, overrides, dry_run=dry_run, on_message=lambda text: click.echo(text, err=True))))


@cli.command()
@RUN
@click.option("--scorer", required=True, metavar="NAME=MODEL", help="Scorer to add: NAME=MODEL of CLIP, or 'NAME={type: sharpness}'.")
def rescore(run: str | Path, scorer: str) -> None:
    """Add a score to a run that is made, from its images. The same command goes on where it stopped."""
    from jobs.progress import display
    from jobs.rescore import rescore as add

    with display(_stderr()) as shown:
        done = add(run, scorer, on_message=shown.message)
    click.echo(f"{done.name}_score: {done.images:,} images of {done.shards:,} shards; {done.before:,} shards had it already")


@cli.command()
@RUN
@click.option("--clip", metavar="MODEL", help="CLIP model, such as ViT-B-32/laion2b_s34b_b79k.  [default: the run's]")
def embed(run: str | Path, clip: str | None) -> None:
    """Keep the CLIP features of a run's images, for rules on likeness, diversity and queries. The same command goes on where it stopped."""
    from jobs.embed import embed as keep
    from jobs.progress import display

    with display(_stderr()) as shown:
        done = keep(run, clip=clip, on_message=shown.message)
    click.echo(f"{done.images:,} images of {done.shards:,} shards; {done.before:,} shards had their features already")


@cli.command()
@RUN
@click.option("--labels", type=click.Path(path_type=Path), metavar="CSV", help="Calibrate a threshold on columns sample_id,good.")
@click.option("--score", metavar="NAME", help="Scorer to calibrate.  [default: the run's first]")
@click.option("--precision", default=0.95, show_default=True, type=click.FloatRange(0, 1), help="Wanted share of good ones among the kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(run: str | Path, labels: Path | None, score: str | None, precision: float, as_json: bool) -> None:
    """What the filter did to the data: kept share by class, tag and setting, diversity, scores; or a threshold from labels."""
    from jobs.audit import audit as examine
    from jobs.audit import to_json
    from jobs.calibrate import calibrate
    from jobs.tables import audit_tables, calibration_table

    found = calibrate(run, labels, score=score) if labels else examine(run)
    if as_json:
        click.echo(to_json(found))
    else:
        _stdout().print(calibration_table(found, precision) if labels else audit_tables(found))  # type: ignore[arg-type]


@cli.command()
@RUN
@click.option("--regenerate", default=0, show_default=True, metavar="N", help="Make N images again and compare their bytes.")
@click.option("--sample", "samples", multiple=True, metavar="ID", help="Make only this image again and compare its bytes. Repeatable.")
def verify(run: str | Path, regenerate: int, samples: Sequence[str]) -> None:
    """Check a run: checksums, row counts, agreement of the tables with the plan and with each other."""
    from jobs.progress import display
    from jobs.run_dir import RunDir
    from jobs.verify import verify as check
    from jobs.verify import verify_samples

    if samples and regenerate:
        raise click.UsageError("--sample and --regenerate: give one of them.")
    run_dir = RunDir.open(run)
    with display(_stderr()) as shown:
        if samples:
            report = verify_samples(run_dir, samples, _remaker(run_dir))
        else:
            report = check(run_dir, regenerate=regenerate, remake=_remaker(run_dir) if regenerate else None, on_count=shown.count)
    for problem in report.problems:
        click.echo(str(problem), err=True)
    click.echo(report.summary())
    sys.exit(0 if report.ok else 1)


@cli.command()
@RUN
@click.argument("png", type=click.Path(path_type=Path))
@click.option("--where", default="status = 'accepted'", show_default=True, help="SQL condition on the metadata.")
@click.option("--limit", default=64, show_default=True, type=click.IntRange(1, 1000), help="Images on the sheet.")
def show(run: str | Path, png: Path, where: str, limit: int) -> None:
    """Write a contact sheet of a run's images, each with its prompt and score; a terminal that draws pictures shows it."""
    from jobs.show import contact_sheet
    from jobs.terminal_picture import terminal_picture

    count = contact_sheet(run, png, where=where, limit=limit)
    if sys.stdout.isatty() and (picture := terminal_picture(png.read_bytes(), os.environ)):
        click.echo(picture)
    click.echo(f"{png}: {count} images")


@cli.command()
@RUN
@click.argument("target", type=_folder)
@click.option(
    "--format", "form", type=click.Choice(["imagefolder", "webdataset", "hf", "parquet", "coco"]), required=True, help="What to write."
)
@click.option("--where", default="true", metavar="SQL", help='Condition on the metadata, such as "clip_score > 0.3".')
@click.option("--only", type=click.Choice(["accepted", "rejected", "all"]), default="accepted", show_default=True, help="Which images.")
@click.option("--split", default="train=1", show_default=True, help="Names and shares: train=.9,val=.1.")
@click.option("--split-by", default="prompt", show_default=True, metavar="COLUMN", help="Images that share its value are in one split.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column, or tags.NAME, that makes the classes.")
@click.option("--shard-mb", default=500, show_default=True, type=click.IntRange(1), help="Size of tar and Parquet files.")
@click.option("--license", "license_id", default="unknown", show_default=True, help="Licence of the dataset, for its card.")
@click.option("--provenance", is_flag=True, help="Write into each image file that it is generated, by which model and prompt.")
@click.option(
    "--c2pa",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    metavar="CERTIFICATE KEY",
    help="With --provenance: sign that, as C2PA says, with your certificate (PEM, its chain after it) and key (PEM).",
)
def export(run: str | Path, target: str | Path, form: str, shard_mb: int, **options: Any) -> None:
    """Write a run's images and metadata as a training dataset, with a card. TARGET is a new folder.

    The same command goes on where it stopped.

    Example: promptmill export runs/demo demo-set --format hf --split train=.9,val=.1 --label tags.kind
    """
    from jobs.export import export as write
    from jobs.progress import display

    if options["c2pa"] and not options["provenance"]:
        raise click.UsageError("--c2pa signs what --provenance says: give both.")
    with display(_stderr()) as shown:
        told = {"on_message": shown.message, "on_count": shown.count}
        done = write(run, target, form=form, shard_bytes=shard_mb * 1_000_000, **options, **told)
    splits = ", ".join(f"{name} {count:,}" for name, count in done.splits.items())
    click.echo(f"{done.target}: {sum(done.splits.values()):,} images ({splits}) of {done.classes:,} classes, {done.num_bytes:,} bytes")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--public", is_flag=True, help="Everybody may see it. A new dataset is private otherwise.")
@click.option("--replace", is_flag=True, help="Take away what a dataset of that name holds; its history on the hub keeps it.")
@click.option("--revision", metavar="BRANCH", help="A branch instead of main; made from main if it is not there.")
def push(folder: Path, name: str, **options: Any) -> None:
    """Send an exported FOLDER to the Hugging Face hub as the dataset NAME. The same command goes on where it stopped.

    The token is HF_TOKEN, or that of 'hf auth login'.

    Example: promptmill push demo-set me/demo-set
    """
    from jobs.progress import display
    from jobs.push import push as send

    with display(_stderr()) as shown:
        done = send(folder, name, **options, on_message=shown.message, on_count=shown.count)
    changed = f"{done.sent:,} sent" + (f", {done.removed:,} removed" if done.removed else "")
    seen = "private" if done.private else "public"
    click.echo(f"{done.url}: {done.files:,} files, {done.num_bytes:,} bytes, {changed}; {seen}")


@cli.command()
@RUN
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page.")
def report(run: str | Path, out: Path) -> None:
    """Write one HTML page on a run: counts, scores, best and worst images, what was kept, failures, settings."""
    from jobs.report import report as write

    click.echo(f"{out}: {write(run, out):,} bytes")


@cli.command()
@RUN
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port on 127.0.0.1; 0 is any that is free.")
@click.option("--memory", default="4GB", show_default=True, help="Limit of the table of metadata and its queries.")
def serve(run: str | Path, port: int, memory: str) -> None:
    """Show a run in the browser, live while it goes on: counts, scores, and its images by SQL conditions. Ctrl-C ends it."""
    from jobs.serve import serve as answer

    answer(
        run,
        port,
        memory=memory,
        on_message=lambda text: click.echo(text, err=True),
        on_ready=lambda url: click.echo(f"{url} shows {run}; Ctrl-C ends it"),
    )


@cli.command()
@RUN
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("labels.csv"), show_default=True, help="CSV of the labels.")
@click.option("--score", metavar="NAME", help="Scorer that the sample is spread over.  [default: the run's first]")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Images of the sample.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Another seed is another sample.")
@click.option("--where", default="true", metavar="SQL", help="Condition on the run's images.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="Port on 127.0.0.1; 0 is any that is free.")
def label(run: str | Path, out: Path, **options: Any) -> None:
    """Label a sample of a run right or wrong in the browser, for 'promptmill audit --labels'. Ctrl-C ends it, the same command goes on."""
    from jobs.label import label as answer

    def ready(url: str, images: int, before: int) -> None:
        click.echo(f"{url} asks about {images:,} images, {before:,} have a label in {out}; Ctrl-C ends it")

    answer(run, out, on_ready=ready, **options)


@cli.command()
@RUN
@click.option("--against", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Real images, a folder per class.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column, or tags.NAME, that names the classes.")
@click.option("--where", default="true", metavar="SQL", help="Condition on the run's images.")
@click.option("--clip", metavar="MODEL", help="CLIP model whose features are compared.  [default: the run's]")
@click.option("--limit", type=click.IntRange(10), help="Images of each set to learn from.  [default: as many as the smallest has]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(run: str | Path, against: Path, as_json: bool, **options: Any) -> None:
    """What a classifier learns from a run's images, tested on real ones; and how close the two are."""
    from jobs.evaluate import evaluate as compare
    from jobs.evaluate import to_json
    from jobs.tables import evaluation_table

    found = compare(run, against, **options)
    if as_json:
        click.echo(to_json(found))
    else:
        _stdout().print(evaluation_table(found))


@cli.command()
@CONFIG
@click.option("--draws", default=128, show_default=True, type=click.IntRange(8), help="Images per round.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the median counts.")
@SET
def bench(config: Path, draws: int, rounds: int, overrides: Sequence[str]) -> None:
    """Images per second here: a bare diffusers loop against the whole pipeline, interleaved, and where the time goes."""
    from jobs.bench import bench as measure
    from jobs.prepare import prepare
    from jobs.progress import display
    from jobs.tables import bench_table

    with display(_stderr()) as shown:
        result = measure(prepare(config, overrides), draws=draws, rounds=rounds, on_message=shown.message)
    _stdout().print(bench_table(result))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the kinds of models, what each can do, and samplers, and which of them this installation can run."""
    import json

    from jobs.models import listing, models_table

    if as_json:
        click.echo(json.dumps(listing(), indent=1))
    else:
        _stdout().print(models_table())


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
def doctor(folder: Path) -> None:
    """Check this installation: devices, packages, weights, and write access to FOLDER."""
    from jobs.doctor import doctor as examine

    checks = examine(folder)
    for check in checks:
        click.echo(str(check))
    sys.exit(0 if all(check.ok for check in checks) else 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: a user's mistake becomes one line and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        cli.main(args=None if argv is None else list(argv), prog_name="promptmill", standalone_mode=True)
    except PromptmillError as error:
        click.echo(f"promptmill: {error}", err=True)
        sys.exit(2)


def _remaker(run_dir: Any) -> Any:
    """Makes draws again with the run's own model; loaded only when asked for."""
    from jobs.remake import remaker

    return remaker(run_dir)


def _stdout() -> Any:
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(soft_wrap=piped, width=200 if piped else None)  # what reads a pipe has no edge


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)


if __name__ == "__main__":
    main()
