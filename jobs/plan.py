"""``promptmill plan``: what a job would make, without a GPU and without writing anything."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jobs.expand import count_requests, with_answers
from jobs.prepare import Prepared
from pipeline.models.guidance import second_pass_scale
from pipeline.plan import batches, cut
from pipeline.store import open_store
from schemas.records import Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """Counts of a plan; sizes in pixels. ``repeated_prompts`` counts prompts whose text an earlier one has.
    Batches are not known, None, while ``sampling.batch_size`` is auto. ``max_draws`` is what ``prompts.until_accepted`` may lead to,
    ``requests`` are those that ``prompts.expand`` still takes, None without it. ``unread_negatives`` counts draws whose negative prompt
    has no say, because there is no guidance away from it.
    """

    num_prompts: int
    num_draws: int
    max_draws: int | None
    num_shards: int
    num_batches: int | None
    padded_draws: int | None
    repeated_prompts: int
    width: int
    height: int
    model: str
    revision: str
    examples: tuple[str, ...]
    requests: int | None = None
    unread_negatives: int = 0

    @property
    def wasted(self) -> float:
        """Share of the sampler's work that goes into the places which short batches leave empty; 0 while batches are not known."""
        return self.padded_draws / (self.num_draws + self.padded_draws) if self.padded_draws else 0.0


def summarize(prepared: Prepared) -> PlanSummary:
    """Expand the whole job, streamed; no language model is asked. Raises PromptError on a bad source."""
    expand = prepared.config.prompts.expand
    if expand:
        prepared = with_answers(prepared, open_store(prepared.out))
    texts = array("q")  # 8 bytes a prompt
    prompts = draws = shards = calls = unread = 0
    examples: list[str] = []
    batch_size = prepared.config.sampling.batch_size

    def draws_of_prompts() -> Iterator[list[Draw]]:
        nonlocal prompts
        for prompt in prepared.open_prompts():
            prompts += 1
            texts.append(hash(prompt.text))
            if len(examples) < 3:
                examples.append(prompt.text)
            yield list(prepared.expand(prompt))

    first = None
    for shard in cut(draws_of_prompts(), prepared.config.output.shard_size, 1 if batch_size == "auto" else batch_size):
        first = first or shard.draws[0]
        shards += 1
        unread += sum(bool(draw.negative_prompt) and second_pass_scale(prepared.model.guidance, draw) <= 1 for draw in shard.draws)
        draws += len(shard.draws)
        calls += len(batches(shard.draws, batch_size)) if batch_size != "auto" else 0
    assert first is not None  # an empty source is refused by open_prompts
    return PlanSummary(
        num_prompts=prompts,
        num_draws=draws,
        max_draws=prompts * most if (most := prepared.config.prompts.max_draws_per_prompt) else None,
        num_shards=shards,
        num_batches=calls if batch_size != "auto" else None,
        padded_draws=calls * batch_size - draws if batch_size != "auto" else None,
        repeated_prompts=prompts - len(np.unique(np.frombuffer(texts, dtype=np.int64))),
        width=first.width,
        height=first.height,
        model=prepared.model.name,
        revision=prepared.model.revision,
        examples=tuple(examples),
        requests=count_requests(prepared) if expand else None,
        unread_negatives=unread,
    )
