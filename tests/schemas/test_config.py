"""Every mistake in a configuration becomes one line that says where, what, and what to do."""

from pathlib import Path

import pytest

from schemas.config_load import load, parse
from schemas.errors import ConfigError

GOOD = {"prompts": ["a cat"], "model": "demo"}


def test_shorthands_stand_for_sections() -> None:
    config = parse({"prompts": "p.txt", "model": "x/y", "scorers": "ViT-B-32/laion2b_s34b_b79k"}, "c.yaml")
    assert config.prompts.file == "p.txt"
    assert config.model.id == "x/y"
    assert config.scorers["clip"].model == "ViT-B-32/laion2b_s34b_b79k"
    assert config.scorers["clip"].type == "clip"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sampling": {"step": 3}}, "c.yaml [sampling]: unknown key 'step'; did you mean 'steps'?"),
        ({"scorer": "x"}, "c.yaml: unknown key 'scorer'; did you mean 'scorers'?"),
        ({"scorers": {"clip": {"modle": "x"}}}, "c.yaml [scorers.clip]: unknown key 'modle'; did you mean 'model'?"),
        ({"sampling": {"steps": "ten"}}, "c.yaml [sampling.steps]: must be a valid integer; found 'ten'"),
        ({"sampling": {"width": 0}}, "c.yaml [sampling.width]: must be greater than or equal to 1; found 0"),
        ({"sampling": {"height": -64}}, "c.yaml [sampling.height]: must be greater than or equal to 1; found -64"),
        ({"sampling": {"guidance_scale": float("nan")}}, "c.yaml [sampling.guidance_scale]: must be"),
        ({"model": {"id": "x", "dtype": "fp16"}}, "c.yaml [model.dtype]: must be 'float32', 'bfloat16' or 'float16'; found 'fp16'"),
        ({"prompts": {"draws_per_prompt": 2}}, "c.yaml [prompts]: give exactly one of 'file', 'texts' and 'template'"),
        ({"filter": {"rules": [{"score": "clip", "min": 0.3}]}}, "c.yaml: filter: there is no scorer 'clip'; scorers are: none"),
        ({"filter": {"best_of_prompt": 1}}, "c.yaml: filter.best_of_prompt: ranking needs a scorer"),
        ({"scorers": {"CLIP score": "x"}}, "c.yaml: scorers: 'CLIP score' becomes part of a column name"),
    ],
)
def test_a_mistake_names_place_finding_and_remedy(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(GOOD | change, "c.yaml")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_best_of_prompt_needs_whole_prompts_in_a_shard() -> None:
    raw = {"prompts": {"texts": ["a"], "draws_per_prompt": 100}, "model": "demo", "scorers": "demo", "filter": {"best_of_prompt": 1}}
    with pytest.raises(ConfigError, match=r"raise output.shard_size from 64 to at least that"):
        parse(raw, "c.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"prompts: [a]\nmodel: demo\nmodel: other\n", r":3:1: not valid YAML: key 'model' stands twice"),
        (b"a: &x [1]\nb: *x\n", r"aliases \(\*name\) are not allowed"),
        (b"prompts: [a\n", r"not valid YAML"),
        (b"", r"holds nothing; a configuration is a mapping"),
        (b"- a\n", r"holds list; a configuration is a mapping"),
        (b"prompts: [\xff]\n", r"byte 10 is not UTF-8"),
        (b"x: !!python/object/apply:os.system ['true']\n", r"not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=expected):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "none.yaml")


def test_overrides_reach_into_sections_and_unfold_shorthands(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("prompts: [a]\nmodel: demo\nscorers: demo\n")
    config = load(path, ["sampling.steps=7", "model.dtype=bfloat16", "prompts.draws_per_prompt=3", "scorers.clip.model=other", "seed=9"])
    assert (config.sampling.steps, config.model.id, config.model.dtype, config.seed) == (7, "demo", "bfloat16", 9)
    assert (config.prompts.texts, config.prompts.draws_per_prompt) == (["a"], 3)
    assert config.scorers["clip"].model == "other"


@pytest.mark.parametrize("override", ["sampling.steps", "=3", "sampling..steps=3", "seed.x=3"])
def test_an_override_that_is_no_assignment_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("prompts: [a]\nmodel: demo\nseed: 1\n")
    with pytest.raises(ConfigError, match="--set"):
        load(path, [override])
