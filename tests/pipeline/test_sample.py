"""A bad draw is isolated from its batch; every image is made at the planned batch size."""

import numpy as np
import pytest

from pipeline.sample import ATTEMPTS, OutOfMemory, sample_batch, score_batch
from tests.fakes import Brightness, FakeModel, make_draw, scorer_card

NO_INPUTS = {}.__getitem__
SCORER = Brightness(scorer_card())


def test_short_batches_are_filled_to_the_planned_size() -> None:
    model = FakeModel()
    found = sample_batch(model, [make_draw(1), make_draw(2)], 4, NO_INPUTS)
    assert model.calls == [4]
    assert [one.batch_shape for one in found] == ["4x16x16"] * 2
    assert found[0].image_HWC is not None
    assert found[0].image_HWC.shape == (16, 16, 3)


def test_a_draw_that_raises_fails_alone() -> None:
    model = FakeModel()
    draws = [make_draw(0), make_draw(1, prompt="RAISE"), make_draw(2)]
    found = sample_batch(model, draws, 4, NO_INPUTS)
    assert [one.error for one in found] == [None, "sampler_error: RuntimeError: the model does not like this prompt", None]
    assert [one.attempts for one in found] == [1, ATTEMPTS, 1]
    assert model.calls == [4] * (1 + 1 + 1 + ATTEMPTS + 1)  # all, the first, the other two, the second, the third


def test_neighbours_of_a_bad_draw_keep_their_images() -> None:
    clean = sample_batch(FakeModel(), [make_draw(0), make_draw(2)], 4, NO_INPUTS)
    mixed = sample_batch(FakeModel(), [make_draw(0), make_draw(1, prompt="RAISE"), make_draw(2)], 4, NO_INPUTS)
    for one, other in zip(clean, (mixed[0], mixed[2]), strict=True):
        np.testing.assert_array_equal(one.image_HWC, other.image_HWC)


def test_an_image_that_is_not_finite_is_a_failure_not_an_image() -> None:
    found = sample_batch(FakeModel(), [make_draw(prompt="NAN here"), make_draw(1)], 2, NO_INPUTS)
    assert found[0].image_HWC is None
    assert (found[0].error or "").startswith("not_finite:")
    assert found[1].error is None


def test_scores_go_to_images_and_a_broken_score_fails_one_image() -> None:
    class Picky(Brightness):
        def score(self, images_NHWC, prompts):
            if any("1" in prompt for prompt in prompts):
                raise ValueError("no ones")
            return super().score(images_NHWC, prompts)

    sampled = sample_batch(FakeModel(), [make_draw(0), make_draw(1), make_draw(2, prompt="NAN")], 4, NO_INPUTS)
    score_batch([Picky(scorer_card())], sampled, 4)
    assert 0 < sampled[0].scores["bright"] < 1
    assert sampled[1].error == "scorer_error: bright: ValueError: no ones"
    assert sampled[1].image_HWC is None
    assert sampled[2].scores == {}


def test_a_scorer_may_say_that_it_cannot_tell() -> None:
    sampled = sample_batch(FakeModel(), [make_draw(prompt="UNSURE")], 1, NO_INPUTS)
    score_batch([SCORER], sampled, 1)
    assert np.isnan(sampled[0].scores["bright"])
    assert sampled[0].scores_truncated == {"bright": None}


def test_memory_that_is_too_small_is_no_draw_s_fault() -> None:
    class Hungry(Brightness):
        def score(self, images_NHWC, prompts):
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")

    with pytest.raises(OutOfMemory, match=r"3\.00 GiB"):
        sample_batch(FakeModel(largest_batch=2), [make_draw(0), make_draw(1), make_draw(2)], 3, NO_INPUTS)
    with pytest.raises(OutOfMemory, match="3 GiB"):
        score_batch([Hungry(scorer_card())], sample_batch(FakeModel(), [make_draw(0)], 2, NO_INPUTS), 2)
