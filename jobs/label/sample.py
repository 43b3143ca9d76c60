"""Which images to label: an even sample over the order of a score, the same each time, in an order that tells nothing of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.judged import added_scorers
from jobs.query import query
from jobs.run_dir import RunDir
from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of ``metadata`` to label, in order, and the scorer that they are spread over."""

    score: str
    rows: Sequence[dict[str, Any]]


def draw_sample(run: RunDir, *, score: str | None = None, count: int, seed: int, where: str = "true") -> Sample:
    """``count`` images, or all if there are fewer: one from each of so many strata of equally many images, cut by their score.

    Every stretch of scores, that around a threshold too, has as many labels as its share of the images, so precision and recall over
    the sample are those of the run, without weights. Raises ConfigError without images that have the score, QueryError for a wrong
    condition.
    """
    scorers = [*run.job.scorers, *added_scorers(run.store)]
    name = score or (scorers[0] if scorers else "")
    if name not in scorers:
        raise ConfigError(f"--score {name}: there is no such scorer; scorers are: {', '.join(scorers) or 'none'}")
    chance = f"md5('{int(seed)} ' || sample_id)"
    sql = (
        f"with image as (select sample_id, shard_id, prompt, negative_prompt, label, width, height, {name}_score as score from metadata"  # noqa: S608
        f" where status != 'failed' and {name}_score is not null and not isnan({name}_score) and ({where}\n)),"
        f" cut as (select *, ntile({int(count)}) over (order by score, sample_id) as stratum from image)"
        f" select * exclude (score, stratum) from cut"
        f" qualify row_number() over (partition by stratum order by {chance}) = 1 order by md5({chance})"
    )
    rows = query([run.store.root], sql).to_pylist()
    if not rows:
        raise ConfigError(f"{run.store.root}: no image has a {name}_score{'' if where == 'true' else f' and satisfies {where!r}'}")
    return Sample(score=name, rows=rows)
