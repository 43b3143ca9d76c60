"""A server that draws: what it is asked, how often, when it is asked again, and what is never said. Against a real HTTP server."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from pipeline.inputs import Conditions
from pipeline.models import endpoint_client, load_model
from pipeline.models.base import Generated, ImageModel
from pipeline.models.endpoint import EndpointModel
from pipeline.models.resolve import check_sampling, resolve_model
from schemas.config import EndpointConfig, ModelConfig, SamplingConfig
from schemas.errors import ModelError
from schemas.modes import Mode
from tests.fakes import make_draw
from tests.image_server import KEY, ImageServer, serving

FAST = {"timeout_seconds": 0.5, "max_tries": 3}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setenv("IMAGES_KEY", KEY)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with serving() as running:
        yield running


def model_of(server: ImageServer, mode: Mode = "text-to-image", **settings: Any) -> EndpointModel:
    config = ModelConfig(id="gpt-image-1", endpoint=EndpointConfig.model_validate({"url": server.url} | FAST | settings))
    model: ImageModel = load_model(resolve_model(config, base_dir=Path.cwd(), mode=mode), config)
    assert isinstance(model, EndpointModel)
    return model


def made_by(model: EndpointModel, *prompts: str) -> Generated:
    return model.generate([make_draw(number, prompt=prompt) for number, prompt in enumerate(prompts)])


def test_it_asks_for_what_the_dialect_has_fields_for(server: ImageServer) -> None:
    made_by(model_of(server, request={"quality": "high"}), "a cat")
    assert server.asked == [
        {"model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "16x16", "response_format": "b64_json", "quality": "high"}
    ]
    model_of(server, dialect="diffusion", response_format=None).generate([make_draw(7, negative_prompt="blur", true_cfg_scale=3.0)])
    assert server.asked[1] == {
        "model": "gpt-image-1",
        "prompt": "picture 7",
        "n": 1,
        "size": "16x16",
        "seed": 7,
        "num_inference_steps": 1,
        "guidance_scale": 5.0,
        "true_cfg_scale": 3.0,
        "negative_prompt": "blur",
    }


def test_images_come_back_in_order_and_a_draw_that_fills_the_batch_is_asked_for_once(server: ImageServer) -> None:
    model = model_of(server)
    made = model.generate([make_draw(0), make_draw(1, prompt="longer prompt"), make_draw(1, prompt="longer prompt")])
    alone = model.generate([make_draw(1, prompt="longer prompt")])
    assert made.images_NHWC.shape == (3, 16, 16, 3)
    assert np.array_equal(made.images_NHWC[1], alone.images_NHWC[0])
    assert np.array_equal(made.images_NHWC[1], made.images_NHWC[2])
    assert not np.array_equal(made.images_NHWC[0], made.images_NHWC[1])
    assert len(server.asked) == 3


def test_no_more_requests_are_open_than_allowed() -> None:
    with serving(seconds=0.1) as server:
        made_by(model_of(server, concurrency=3, timeout_seconds=5.0), *(f"picture {n}" for n in range(9)))
        assert server.most_at_once == 3


def test_requests_are_spaced_out(server: ImageServer) -> None:
    made_by(model_of(server, requests_per_minute=600.0, concurrency=4), "a", "b", "c", "d")
    assert server.times[-1] - server.times[0] >= 0.28


@pytest.mark.parametrize(("word", "tries"), [("BUSY", 2), ("BROKEN", 3), ("SLOW", 2), ("GARBLED", 2), ("HANGUP", 2)])
def test_what_may_pass_is_tried_again(server: ImageServer, word: str, tries: int) -> None:
    model = model_of(server)
    made = made_by(model, f"a cat {word}")
    assert made.errors == {}
    assert server.tries[f"a cat {word}"] == tries
    assert model.take_usage() == {"requests": tries, "images": 1, "cost": 0.0}


def test_a_server_that_asks_to_wait_is_left_alone_by_all(server: ImageServer) -> None:
    model = model_of(server, concurrency=1)
    made_by(model, "a cat BUSY", "a dog")
    assert server.times[1] - server.times[0] >= 0.3


@pytest.mark.parametrize("wait", ["300000", "inf", "Fri, 31 Dec 2099 23:59:59 GMT"])
def test_no_server_can_make_us_wait_for_days(server: ImageServer, wait: str) -> None:
    server.retry_after = wait
    started = time.monotonic()
    assert made_by(model_of(server), "a cat BUSY").errors[0].startswith("no_answer: 429 slow down")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), ("-3", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("soon", None), (None, None)]
)
def test_retry_after_is_a_number_or_a_date(text: str | None, seconds: float | None) -> None:
    assert endpoint_client._retry_after(httpx2.Response(429, headers={"Retry-After": text} if text else {})) == seconds


@pytest.mark.parametrize(
    ("word", "error", "tries"),
    [
        ("REFUSED", "refused: 400 Your request was rejected by the safety system", 1),
        ("BAD", "bad_request: 400 no", 1),
        ("SMALL", "wrong_size: asked for 16 x 16 px, got 8 x 16", 1),
        ("NOPICTURE", "bad_image: the server sent no PNG, JPEG or WebP", 1),
        ("DOWN", "no_answer: 503 come back later", 3),
        ("EMPTY", "no_answer: the answer holds no image; tried 3 times", 3),
        ("DRIP", "no_answer: the answer was not complete after 0.5 s", 3),
        ("URL http://elsewhere.invalid/x.png", "bad_image: the server says that the image lies at an address", 1),
    ],
)
def test_a_draw_that_fails_says_why_and_leaves_its_neighbours_alone(server: ImageServer, word: str, error: str, tries: int) -> None:
    made = made_by(model_of(server), "a dog", f"a cat {word}", "a bird")
    assert list(made.errors) == [1]
    assert made.errors[1].startswith(error)
    assert "\n" not in made.errors[1]
    assert server.tries[f"a cat {word}"] == tries


def test_an_image_behind_an_address_of_the_server_is_fetched_with_the_key() -> None:
    with serving(key=KEY) as server:
        made = made_by(model_of(server, api_key_variable="IMAGES_KEY", response_format="url"), "a cat URL /v1/images/1/content")
        assert made.errors == {}
        assert server.keys_seen == [("/v1/images/1/content", f"Bearer {KEY}")]


def test_the_key_goes_to_no_other_server() -> None:
    with serving(key=KEY) as server, serving() as other:
        made = made_by(model_of(server, api_key_variable="IMAGES_KEY"), f"a cat URL {other.url}/1.png")
        assert made.errors[0].startswith("bad_image")
        assert other.keys_seen == []


def test_a_wrong_key_ends_the_run_and_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES_KEY", "sk-wrong")
    with serving(key=KEY) as server, pytest.raises(ModelError, match=r"does not let us in \(401\); check the key in IMAGES_KEY") as caught:
        made_by(model_of(server, api_key_variable="IMAGES_KEY"), "a cat")
    assert "sk-wrong" not in str(caught.value)


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_table() -> None:
    with serving(key=KEY) as server:
        made = made_by(model_of(server, api_key_variable="IMAGES_KEY"), "a cat DOWN")
    assert "[key]" in made.errors[0]
    assert KEY not in made.errors[0]


@pytest.mark.parametrize("value", [None, "", "  ", "sk-\n-x", "schlüssel"])
def test_a_key_that_is_not_there_is_named_by_its_variable(server: ImageServer, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("IMAGES_KEY") if value is None else monkeypatch.setenv("IMAGES_KEY", value)
    with pytest.raises(ModelError, match="the environment variable IMAGES_KEY holds no key here"):
        model_of(server, api_key_variable="IMAGES_KEY")
    assert server.asked == []


def test_no_money_and_no_such_path_end_the_run(server: ImageServer) -> None:
    with pytest.raises(ModelError, match="no money left"):
        made_by(model_of(server), "a cat BROKE")
    with pytest.raises(ModelError, match="does not know this model or path"):
        made_by(model_of(server, url=f"{server.url}/other"), "a cat")


def test_a_server_that_answers_nothing_ends_the_run_instead_of_failing_every_draw(server: ImageServer) -> None:
    with pytest.raises(ModelError, match=r"does not answer \(503"):
        made_by(model_of(server, max_tries=1), *(f"DOWN {n}" for n in range(endpoint_client.LOST_IN_A_ROW)))


def test_cost_counts_images_that_came(server: ImageServer) -> None:
    model = model_of(server, price_per_image=0.04)
    made_by(model, "a", "b", "c REFUSED", "d BROKEN")
    assert model.take_usage() == {"requests": 6, "images": 3, "cost": pytest.approx(0.12)}
    assert model.take_usage() == {"requests": 0, "images": 0, "cost": 0.0}


@pytest.mark.parametrize("dialect", ["openai", "diffusion"])
@pytest.mark.parametrize(
    ("setting", "sent"),
    [
        ({"steps": 50}, True),
        ({"guidance_scale": 4.0}, True),
        ({"true_cfg_scale": 3.0}, True),
        ({"negative_prompt": "blur"}, True),
        ({"strength": 0.4}, True),
        ({"guidance_rescale": 0.7}, False),
        ({"guidance_interval": [0.2, 0.8]}, False),
    ],
)
def test_a_setting_that_the_dialect_has_no_field_for_is_refused_before_anything_is_asked(
    server: ImageServer, dialect: str, setting: dict[str, Any], sent: bool
) -> None:
    endpoint = EndpointConfig.model_validate({"url": server.url, "dialect": dialect})
    card = resolve_model(ModelConfig(id="m", endpoint=endpoint), base_dir=Path.cwd(), mode="image-to-image")
    (name,) = setting
    sampling = SamplingConfig(mode="image-to-image", **setting)
    if sent and dialect == "diffusion":
        check_sampling(card, sampling)
        return
    with pytest.raises(ModelError) as refused:
        check_sampling(card, sampling, "prompt 3: ")
    remedy = ", or set model.endpoint.dialect to diffusion if the server takes it" if sent else ""
    assert str(refused.value) == f"prompt 3: sampling.{name}: is not sent to the endpoint of m; take it out{remedy}"


def test_the_revision_changes_with_what_is_asked_and_with_nothing_else(server: ImageServer) -> None:
    def revision(**settings: Any) -> str:
        return model_of(server, **settings).revision

    assert revision() == revision(concurrency=9, max_tries=1, price_per_image=1.0, requests_per_minute=5.0)
    assert len({revision(), revision(request={"quality": "low"}), revision(dialect="diffusion")}) == 3


def test_a_sampler_is_the_servers_own_choice(server: ImageServer) -> None:
    config = ModelConfig(id="m", endpoint=EndpointConfig(url=server.url))  # pyright: ignore[reportCallIssue]
    card = resolve_model(config, base_dir=Path.cwd())
    check_sampling(card, SamplingConfig(width=1792, height=1024))
    with pytest.raises(ModelError, match="the endpoint of m chooses its own sampler; use default"):
        check_sampling(card, SamplingConfig(scheduler="ddim"))


def conditions(*, masked: bool) -> Conditions:
    """An init image of noise, and a mask that keeps its upper half."""
    init = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Conditions(init_HWC=init, mask_HW=np.repeat(np.arange(16) >= 8, 16).reshape(16, 16) if masked else None)


def test_an_image_to_edit_goes_as_a_form_with_a_file(server: ImageServer) -> None:
    given = conditions(masked=False)
    model = model_of(server, mode="image-to-image", request={"quality": "high", "background": True})
    assert given.init_HWC is not None
    made = model.generate([make_draw(0, mode="image-to-image", strength=0.6)], [given])
    assert made.errors == {}
    [asked] = server.asked
    assert {name: value for name, value in asked.items() if name != "image"} == {
        "model": "gpt-image-1",
        "prompt": "picture 0",
        "n": "1",
        "size": "16x16",
        "response_format": "b64_json",
        "quality": "high",
        "background": "true",
    }
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(asked["image"]))), given.init_HWC)
    model_of(server, mode="image-to-image", dialect="diffusion").generate([make_draw(0, mode="image-to-image", strength=0.4)], [given])
    assert (server.asked[1]["strength"], server.asked[1]["seed"]) == ("0.4", "0")


@pytest.mark.parametrize("mode", ["inpainting", "outpainting"])
def test_a_mask_is_transparent_where_the_image_is_painted_and_the_rest_is_kept(server: ImageServer, mode: Mode) -> None:
    given = conditions(masked=True)
    made = model_of(server, mode=mode).generate([make_draw(0, mode=mode, strength=1.0)], [given])
    alpha = np.asarray(Image.open(io.BytesIO(server.asked[0]["mask"])))[..., 3]
    assert given.mask_HW is not None
    assert given.init_HWC is not None
    assert np.array_equal(alpha == 0, given.mask_HW)
    assert np.array_equal(made.images_NHWC[0, :8], given.init_HWC[:8])
    assert not np.array_equal(made.images_NHWC[0, 8:], given.init_HWC[8:])


def test_two_draws_are_asked_for_with_their_own_images(server: ImageServer) -> None:
    draws = [make_draw(n, mode="image-to-image", strength=0.6, init_sha256=str(n)) for n in range(2)]
    given = [Conditions(init_HWC=np.full((16, 16, 3), n, np.uint8)) for n in range(2)]
    model_of(server, mode="image-to-image").generate(draws, given)
    seen = {asked["prompt"]: int(np.asarray(Image.open(io.BytesIO(asked["image"]))).max()) for asked in server.asked}
    assert seen == {"picture 0": 0, "picture 1": 1}


def test_an_edit_that_may_pass_is_sent_whole_again(server: ImageServer) -> None:
    made = model_of(server, mode="image-to-image").generate(
        [make_draw(0, prompt="BROKEN", mode="image-to-image", strength=0.6)], [conditions(masked=False)]
    )
    assert made.errors == {}
    assert [len(asked["image"]) for asked in server.asked] == [len(server.asked[0]["image"])] * 3


def test_modes_that_no_endpoint_does_are_refused(server: ImageServer) -> None:
    with pytest.raises(ModelError, match="an endpoint does not do super-resolution; it can do: text-to-image, image-to-image, inpainting"):
        model_of(server, mode="super-resolution")
