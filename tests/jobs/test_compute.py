"""Which switches of ``model.compute`` make another job, and which make other images."""

from pathlib import Path

import pytest

from jobs.prepare import Prepared
from schemas.config import JobConfig
from schemas.errors import ConfigError
from schemas.records import Draw
from tests.fakes import fake_job


def job(folder: Path, **compute: object) -> Prepared:
    return fake_job(folder, model={"id": "fake", "compute": compute})


def first_draw(prepared: Prepared) -> Draw:
    return next(prepared.expand(next(prepared.open_prompts())))


@pytest.mark.parametrize(
    ("compute", "seen"),
    [
        ({"quantize": "int8"}, "+int8"),
        ({"vae_tiling": True}, "+vae_tiling"),
        ({"step_cache": "first_block"}, "+first_block=0.08"),
        ({"step_cache": {"kind": "taylor", "interval": 3}, "quantize": "int8_weights"}, "+int8_weights+taylor=3"),
    ],
)
def test_what_changes_the_picture_makes_other_samples_of_another_revision(tmp_path: Path, compute: dict, seen: str) -> None:
    plain, changed = first_draw(job(tmp_path)), first_draw(job(tmp_path, **compute))
    assert changed.model_revision == plain.model_revision + seen
    assert changed.sample_id != plain.sample_id
    assert changed.seed == plain.seed


@pytest.mark.parametrize("compute", [{"channels_last": True}, {"compile": "regional"}, {"attention": "native"}, {"vae_slicing": True}])
def test_what_changes_the_last_bits_makes_another_job_of_the_same_samples(tmp_path: Path, compute: dict) -> None:
    plain, changed = job(tmp_path), job(tmp_path, **compute)
    assert first_draw(changed).sample_id == first_draw(plain).sample_id
    assert changed.job().fingerprint != plain.job().fingerprint


def test_where_weights_wait_is_no_part_of_a_job(tmp_path: Path) -> None:
    assert job(tmp_path, offload="model").job().fingerprint == job(tmp_path).job().fingerprint


def test_every_switch_is_part_of_a_job_or_named_here(tmp_path: Path) -> None:
    keys = {key.split(".")[2] for key in job(tmp_path).job().identity() if key.startswith("model.compute.")}
    section = JobConfig.model_fields["model"].annotation.model_fields["compute"].annotation  # type: ignore[union-attr]
    assert set(section.model_fields) - keys == {"offload"}


def test_a_server_computes_as_it_likes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="an endpoint's server computes as it likes; take 'compute' out"):
        fake_job(tmp_path, model={"id": "x", "endpoint": {"url": "http://127.0.0.1:1/v1"}, "compute": {"channels_last": True}})
