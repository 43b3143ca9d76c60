"""``prompts.until_accepted``: more draws of the prompts that have too few accepted images, round after round.

A round is planned when the one before it is whole, from the verdicts of the run's own rules. These are a function of the
configuration, so the dataset is, too: a run that was killed plans the same rounds as one that was not.
"""

import io
from collections.abc import Callable

import pyarrow.parquet as pq

from jobs.prepare import Prepared
from jobs.run_dir import RunDir
from pipeline.plan import add_round
from schemas import layout
from schemas.records import PlanIndex


def next_round(run_dir: RunDir, index: PlanIndex, prepared: Prepared, on_message: Callable[[str], None]) -> PlanIndex | None:
    """The plan with one more round in it, None if every prompt has enough accepted images or has had all of its draws."""
    wanted, most = prepared.config.prompts.until_accepted, prepared.config.prompts.max_draws_per_prompt
    if wanted is None or most is None:
        return None
    made, accepted = _counts(run_dir, index)
    lacking = {prompt_id: draws for prompt_id, draws in made.items() if accepted.get(prompt_id, 0) < wanted}
    open_ones = {prompt_id: draws for prompt_id, draws in lacking.items() if draws < most}
    if not open_ones:
        if lacking:
            on_message(f"{len(lacking)} of {len(made)} prompts have fewer than {wanted} accepted images after all of their {most} draws")
        return None
    each, size = prepared.config.prompts.draws_per_prompt, prepared.config.output.shard_size
    longer = add_round(
        run_dir.store,
        index,
        prepared.open_prompts,
        lambda prompt: prepared.expand(prompt, range(start, min(start + each, most))) if (start := open_ones.get(prompt.id)) else iter(()),
        size,
    )
    on_message(
        f"round {longer.rounds}: {longer.num_draws - index.num_draws} draws of {len(open_ones)} prompts"
        f" that have fewer than {wanted} accepted images"
    )
    return longer


def _counts(run_dir: RunDir, index: PlanIndex) -> tuple[dict[str, int], dict[str, int]]:
    """Draws made, and images accepted, of each prompt."""
    made: dict[str, int] = {}
    accepted: dict[str, int] = {}
    for shard_id in range(index.num_shards):
        table = pq.read_table(io.BytesIO(run_dir.store.get(layout.metadata_file(shard_id))), columns=["prompt_id", "status"])
        for prompt_id, status in zip(table["prompt_id"].to_pylist(), table["status"].to_pylist(), strict=True):
            made[prompt_id] = made.get(prompt_id, 0) + 1
            if status == "accepted":
                accepted[prompt_id] = accepted.get(prompt_id, 0) + 1
    return made, accepted
