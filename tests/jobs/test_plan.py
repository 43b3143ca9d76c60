"""``promptmill plan`` counts what a job would make."""

from pathlib import Path

from jobs.plan import summarize
from tests.fakes import fake_job


def test_prompts_draws_shards_and_repeated_texts_are_counted(tmp_path: Path) -> None:
    texts = [f"picture {n % 7}" for n in range(10)]
    found = summarize(fake_job(tmp_path, prompts={"texts": texts, "draws_per_prompt": 2}))
    assert (found.num_prompts, found.num_draws, found.num_shards, found.repeated_prompts) == (10, 20, 3, 3)
    assert (found.num_batches, found.padded_draws, found.examples) == (5, 0, ("picture 0", "picture 1", "picture 2"))
    assert list(tmp_path.iterdir()) == []
