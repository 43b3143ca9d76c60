"""Templates: which prompts they make, in which order, and what each keeps of its values."""

import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from jobs.prepare import Prepared
from pipeline.plan import expand
from pipeline.prompts import read_prompts
from schemas.config_load import parse
from schemas.errors import ConfigError, PromptError
from schemas.records import Prompt
from tests.fakes import CARD, fake_config, sized


def prompts(folder: Path = Path(), **fields: Any) -> list[Prompt]:
    return list(read_prompts(parse({"prompts": fields, "model": "m"}, "test").prompts, base_dir=folder))


def test_all_combinations_in_order_with_every_value_as_a_tag():
    made = prompts(template="a {size} {red|blue} dot", variables={"size": ["big", "small"]})
    assert [p.text for p in made] == ["a big red dot", "a big blue dot", "a small red dot", "a small blue dot"]
    assert made[1].tags == {"size": "big", "variant_1": "blue"}
    assert [p.id for p in made] == ["000000", "000001", "000002", "000003"]


def test_two_of_three_joined_and_one_or_two():
    assert [p.text for p in prompts(template="{2$$ and $$a|b|c}")] == ["a and b", "a and c", "b and c"]
    assert [p.text for p in prompts(template="{1-2$$a|b}!")] == ["a!", "b!", "a, b!"]


def test_a_variable_that_stands_twice_has_one_value_and_doubled_braces_are_braces():
    assert [p.text for p in prompts(template="{x}{{{x}}}", variables={"x": [1, 2.5]})] == ["1{1}", "2.5{2.5}"]


def test_wildcard_files_give_their_lines(tmp_path: Path):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/ground.txt").write_text("# comment\ngrass\n\n2::snow, deep\n")
    made = prompts(tmp_path, template="on __ground__")
    assert [p.text for p in made] == ["on grass", "on snow, deep"]
    assert made[1].tags == {"ground": "snow, deep"}


def test_a_label_comes_from_a_slot():
    made = prompts(template="a {dog}", variables={"dog": [{"text": "pug", "label": "n02110958"}, "beagle"]}, label="dog")
    assert [(p.label, p.tags["dog"]) for p in made] == [("n02110958", "pug"), ("beagle", "beagle")]


def test_weights_decide_how_often_and_a_larger_sample_begins_with_a_smaller_one():
    fields = {"template": "{3::red|blue} {n}", "variables": {"n": list(range(50))}}
    many = prompts(sample=4000, **fields)
    assert Counter(p.tags["variant_1"] for p in many)["red"] == pytest.approx(3000, abs=120)
    assert many[:100] == prompts(sample=100, **fields)
    assert many[:100] != prompts(sample=100, sample_seed=1, **fields)


def test_each_label_has_its_quota():
    made = prompts(template="{5::cat|dog} {n}", variables={"n": ["1", "2"]}, label="variant_1", per_label=7)
    assert Counter(p.label for p in made) == {"cat": 7, "dog": 7}


def test_several_templates_follow_each_other():
    assert [p.text for p in prompts(template=["a {x}", "the {x}"], variables={"x": ["b", "c"]})] == ["a b", "a c", "the b", "the c"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"template": "a {hue}", "variables": {}}, "'hue' is not defined"),
        ({"template": "a __hue__"}, "no wildcard file"),
        ({"template": "a {x", "variables": {"x": ["b"]}}, "character 3: '{' has no partner"),
        ({"template": "{{a|{b}}"}, "is not defined"),
        ({"template": "{3$$a|b}"}, "cannot be taken"),
        ({"template": "a", "variables": {"x": ["b"]}}, "no template uses 'x'"),
        ({"template": "a {b|c}", "label": "x"}, "no slot 'x'"),
        (
            {"template": " ".join(f"{{v{n}}}" for n in range(6)), "variables": {f"v{n}": list(range(10)) for n in range(6)}},
            "1,000,000 prompts",
        ),
        ({"template": "{a|b} {variant_1}", "variables": {"variant_1": ["x"]}}, "is taken"),
        ({"template": "__label__"}, "no wildcard file"),
    ],
)
def test_a_template_that_is_not_right_is_refused(tmp_path: Path, fields: dict[str, Any], told: str):
    with pytest.raises(PromptError, match=r"^prompts\.") as caught:
        prompts(tmp_path, **fields)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ten_thousand_variables_are_told_or_made_at_once():
    names = [f"v{n}" for n in range(10_000)]
    text = "".join(f"{{{name}}}" for name in names)
    started = time.monotonic()
    with pytest.raises(PromptError, match=r"some 10\^3010 prompts"):
        prompts(template=text, variables={name: ["a", "b"] for name in names})
    assert len(prompts(template=text, variables={name: ["a", "b"] for name in names}, sample=2)[1].tags) == 10_000
    assert time.monotonic() - started < 20


def test_a_large_product_is_streamed():
    config = parse(
        {"prompts": {"template": "{a}{b}", "variables": {k: list(range(100_000)) for k in "ab"}, "max_prompts": 10**10}, "model": "m"}, "t"
    )
    assert len(list(islice(read_prompts(config.prompts, base_dir=Path()), 1000))) == 1000


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({"sweep": {"seed": [1]}}, "cannot be swept"),
        ({"sweep": {"steps": []}}, "no values"),
        ({"sweep": {"steps": [0]}}, "greater than or equal to 1"),
        ({"sweep": {"steps": [4, 4]}}, "stands twice"),
        ({"sweep": {"steps": [1, 2], "guidance_scale": [1]}, "sweep_mode": "zip"}, "different lengths"),
        ({"sweep": {"steps": [*range(1, 1001)], "guidance_scale": [1, 2]}}, "2,000 settings of every prompt, more than max_settings"),
        ({"sweep": {name: [*range(8, 8000, 8)] for name in ("width", "height", "steps")}}, "997,002,999 settings"),
    ],
)
def test_a_sweep_that_is_not_right_is_refused(sweep: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        fake_config(sampling=sweep)


def test_a_sweep_draws_every_setting_from_the_same_noise():
    config = fake_config(sampling={"sweep": {"guidance_scale": [1.5, 2], "steps": [3, 4]}})
    draws = list(expand(Prompt(id="a", text="b"), config, sized(config, 16), model=CARD.name, revision=CARD.revision))
    assert [(d.guidance_scale, d.steps) for d in draws[::2]] == [(1.5, 3), (1.5, 4), (2.0, 3), (2.0, 4)]
    assert all(isinstance(d.guidance_scale, float) for d in draws)
    assert [d.draw_index for d in draws] == list(range(8))
    assert len({d.sample_id for d in draws}) == 8
    assert [d.seed for d in draws] == [draws[0].seed, draws[1].seed] * 4


def test_a_zipped_sweep_takes_first_with_first():
    config = fake_config(sampling={"sweep": {"guidance_scale": [1.5, 2], "steps": [3, 4]}, "sweep_mode": "zip"})
    assert [(s.guidance_scale, s.steps) for s in config.sampling.settings()] == [(1.5, 3), (2.0, 4)]
    assert config.images_per_prompt == 4


def test_what_a_prompt_sets_for_itself_cannot_be_swept_too(tmp_path: Path):
    (tmp_path / "p.csv").write_text("prompt,steps\na star,3\n")
    config = fake_config(prompts={"texts": None, "file": "p.csv"}, sampling={"sweep": {"steps": [1, 2]}})
    prepared = Prepared(name="job", config=config, base_dir=tmp_path, model=CARD, scorers=())
    with pytest.raises(PromptError, match=r"prompt 000000: sets steps, and sampling\.sweep has steps too; take one of them out"):
        list(prepared.open_prompts())


def test_each_setting_of_a_sweep_has_what_the_prompt_sets(tmp_path: Path):
    (tmp_path / "p.csv").write_text("prompt,guidance_scale,width\na star,3,32\n")
    config = fake_config(prompts={"texts": None, "file": "p.csv"}, sampling={"sweep": {"steps": [1, 2]}})
    prepared = Prepared(name="job", config=config, base_dir=tmp_path, model=CARD, scorers=())
    (prompt,) = prepared.open_prompts()
    assert [(s.steps, s.guidance_scale, s.width, s.height) for s in prepared.settings(prompt)] == [(1, 3, 32, 16), (2, 3, 32, 16)]
