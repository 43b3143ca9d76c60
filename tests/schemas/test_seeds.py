"""Seeds and ids are pinned: if one of these values changes, every dataset in the world changes."""

from dataclasses import replace

from schemas.seeds import noise_seed, sample_id
from tests.fakes import make_draw


def test_seeds_are_pinned() -> None:
    assert [noise_seed(0, "000000", index) for index in range(3)] == SEEDS
    assert noise_seed(2**63 - 1, "ein Prompt — 😀", 10**6) == LARGE


def test_draws_of_a_prompt_never_share_a_seed() -> None:
    seeds = {noise_seed(7, "p", index) for index in range(200_000)}
    assert len(seeds) == 200_000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_seed_depends_on_job_prompt_and_draw_alone() -> None:
    assert len({noise_seed(job, prompt, draw) for job in (0, 1) for prompt in ("a", "b") for draw in (0, 1)}) == 8


def test_sample_ids_are_pinned() -> None:
    assert make_draw().sample_id == SAMPLE_ID
    assert sample_id({"b": 1, "a": "ü"}) == sample_id({"a": "ü", "b": 1})


def test_what_decides_the_image_decides_the_id_and_nothing_else_does() -> None:
    draw = make_draw()
    for change in ({"seed": 1}, {"steps": 2}, {"prompt": "x"}, {"guidance_scale": 5.5}, {"model_revision": "y"}, {"dtype": "bfloat16"}):
        assert replace(draw, **change).sample_id != draw.sample_id
    for change in ({"guidance_rescale": 0.7}, {"true_cfg_scale": 3.0}):
        assert replace(draw, **change).sample_id != draw.sample_id
    assert replace(draw, label="cat", tags={"a": "b"}).sample_id == draw.sample_id


SEEDS = [456769971, 3111205732, 1470674197]
LARGE = 1833068731
SAMPLE_ID = "6169a5af0afae9ce00a6"
