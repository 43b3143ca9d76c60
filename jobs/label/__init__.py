"""``promptmill label``: a small labelled sample of a run, made in the browser, for the thresholds of ``promptmill audit``.

Reads the run and writes one CSV, outside of it. Needs neither torch nor Ray.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jobs.label.labels import Labels
from jobs.label.sample import draw_sample
from jobs.label.site import LabelSite
from jobs.run_dir import RunDir
from jobs.serve.server import Server


def label(
    path: str | Path,
    csv: Path,
    port: int,
    *,
    score: str | None = None,
    count: int = 100,
    seed: int = 0,
    where: str = "true",
    on_ready: Callable[[str, int, int], None],
) -> None:
    """Answer requests until Ctrl-C. ``on_ready`` is given the address, the images of the sample, and how many have a label already.

    Raises UserError.
    """
    with suppress(KeyboardInterrupt):
        run = RunDir.open(path)
        sample = draw_sample(run, score=score, count=count, seed=seed, where=where)
        with Labels(csv) as labels, Server(LabelSite(run, sample, labels, csv), port) as server:
            on_ready(server.url, len(sample.rows), sum(row["sample_id"] in labels.good for row in sample.rows))
            server.serve_forever()
