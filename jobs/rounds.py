"""``prompts.until_accepted``: more draws of the prompts that have too few accepted images, round after round.

A round is planned when the one before it is whole, from the verdicts of the run's own rules. These are a function of the
configuration, so the dataset is, too: a run that was killed plans the same rounds as one that was not.
"""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.prepare import Prepared
from jobs.run_dir import RunDir
from pipeline.plan import add_round
from schemas import layout
from schemas.records import Draw, PlanIndex, Prompt


def next_round(run_dir: RunDir, index: PlanIndex, prepared: Prepared, on_message: Callable[[str], None]) -> PlanIndex | None:
    """The plan with one more round in it, None if every prompt has enough accepted images or has had all of its draws."""
    wanted, most = prepared.config.prompts.until_accepted, prepared.config.prompts.max_draws_per_prompt
    if wanted is None or most is None:
        return None
    made, accepted = _counts(run_dir, index)
    lacking = {prompt_id: draws for prompt_id, draws in made.items() if accepted[prompt_id] < wanted}
    more = {
        prompt_id: range(draws, draws + further(draws, accepted[prompt_id], wanted=wanted, most=most))
        for prompt_id, draws in lacking.items()
        if draws < most
    }
    if not more:
        if lacking:
            on_message(f"{len(lacking)} of {len(made)} prompts have fewer than {wanted} accepted images after all of their {most} draws")
        return None

    def expand(prompt: Prompt) -> Iterator[Draw]:
        return prepared.expand(prompt, more[prompt.id]) if prompt.id in more else iter(())

    config = prepared.config
    longer = add_round(run_dir.store, index, prepared.open_prompts, expand, config.output.shard_size, config.batch_size)
    on_message(
        f"round {longer.rounds}: {longer.num_draws - index.num_draws} draws of {len(more)} prompts"
        f" that have fewer than {wanted} accepted images"
    )
    return longer


def further(made: int, accepted: int, *, wanted: int, most: int) -> int:
    """Draws that a prompt gets in the next round: as many as its share of accepted images suggests that it needs (Laplace's rule
    of succession), but no more than it had so far, nor than ``most`` in all.
    """
    needed = math.ceil((wanted - accepted) * (made + 2) / (accepted + 1))
    return min(needed, made, most - made)


def _counts(run_dir: RunDir, index: PlanIndex) -> tuple[Counter[str], Counter[str]]:
    """Draws made, and images accepted, of each prompt."""
    made: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for shard_id in range(index.num_shards):
        table = pq.read_table(io.BytesIO(run_dir.store.get(layout.metadata_file(shard_id))), columns=["prompt_id", "status"])
        made.update(table["prompt_id"].to_pylist())
        accepted.update(table.filter(pc.field("status") == "accepted")["prompt_id"].to_pylist())
    return made, accepted
