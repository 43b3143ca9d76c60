"""A scorer that is unknown, unsafe or broken is refused in one line; a class of one's own takes ten."""

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from pipeline.scorers import load_scorer, resolve
from pipeline.scorers.resolve import ScorerCard, resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError

OWN = """
class Brightness:
    def __init__(self, card):
        self.name, self.version = card.name, card.version

    def score(self, images_NHWC, prompts):
        return images_NHWC.mean(axis=(1, 2, 3), dtype="float32") / 255
"""


def card(base_dir: Path, **settings: str) -> ScorerCard:
    return resolve_scorer("quality", ScorerConfig(**settings), base_dir=base_dir)  # type: ignore[arg-type]


def refusal(base_dir: Path, **settings: str) -> str:
    with pytest.raises(ModelError) as caught:
        card(base_dir, **settings)
    assert str(caught.value).startswith("scorers.quality")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_version_names_model_and_weights(own_clip: Path) -> None:
    before = card(own_clip.parent, model="my-clip")
    assert before.version.startswith("my-clip/sha256:")
    assert (before.name, before.type, before.folder) == ("quality", "clip", str(own_clip))
    config = own_clip / "open_clip_config.json"
    config.write_text(config.read_text() + "\n")
    assert card(own_clip.parent, model="my-clip").version != before.version


def test_demo_weights_are_found_by_the_package_and_checked(own_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "DEMO", own_clip)
    assert card(tmp_path, model="demo").version.startswith("demo/sha256:")
    (own_clip.parent / "sha256.json").write_text(json.dumps({"my-clip/open_clip_model.safetensors": "0" * 64}))
    assert "my-clip/open_clip_model.safetensors differs from its pinned sha256" in refusal(tmp_path, model="demo")


def test_pickles_are_refused_with_the_reason(own_clip: Path) -> None:
    (own_clip / "open_clip_model.safetensors").rename(own_clip / "open_clip_pytorch_model.bin")
    assert "open_clip_pytorch_model.bin is a pickle, which runs any code" in refusal(own_clip.parent, model="my-clip")


def test_a_pickle_that_open_clip_would_prefer_is_refused(own_clip: Path) -> None:
    (own_clip / "open_clip_model.safetensors").rename(own_clip / "model.safetensors")
    assert card(own_clip.parent, model="my-clip").version
    (own_clip / "open_clip_pytorch_model.bin").write_bytes(b"")
    assert "several weight files (model.safetensors, open_clip_pytorch_model.bin)" in refusal(own_clip.parent, model="my-clip")


def test_a_missing_or_damaged_file_is_named(own_clip: Path) -> None:
    weights = own_clip / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "open_clip_model.safetensors is damaged" in refusal(own_clip.parent, model="my-clip")
    weights.unlink()
    assert "no weights: open_clip_model.safetensors is missing" in refusal(own_clip.parent, model="my-clip")
    (own_clip / "open_clip_config.json").write_text("{}")
    assert "open_clip_config.json has no 'model_cfg'" in refusal(own_clip.parent, model="my-clip")
    (own_clip / "open_clip_config.json").unlink()
    assert "open_clip_config.json is missing" in refusal(own_clip.parent, model="my-clip")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B32/laion2b_s34b_b79k", "open_clip publishes no model 'ViT-B32'; did you mean 'ViT-B-32'?"),
        ("ViT-B-32/laion2b_s34b", "no weights 'laion2b_s34b' of ViT-B-32; did you mean 'laion2b_s34b_b79k'?"),
        ("ViT-B-32", "open_clip publishes no weights '' of ViT-B-32"),
        ("./nothing", "there is no such folder"),
        ("ViT-B-32/datacomp_unpublished", "there are: openai, laion400m_e31"),
        ("ViT-B-32/laion2b_s34b_b79k", "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_an_unknown_or_absent_model_is_told_with_what_there_is(tmp_path: Path, model: str, message: str) -> None:
    assert message in refusal(tmp_path, model=model)


def test_weights_published_as_a_pickle_only_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-32"], "by_url", {"url": "somewhere/model.pt", "hf_hub": ""})
    assert "published as a pickle only, which runs any code" in refusal(tmp_path, model="ViT-B-32/by_url")


def test_published_weights_come_from_the_cache_as_safetensors(own_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "hub/models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("c" * 40)
    (repo / "snapshots").mkdir()
    own_clip.rename(repo / "snapshots" / ("c" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = card(tmp_path, model="ViT-B-32/laion2b_s34b_b79k")
    assert found.version == "ViT-B-32/laion2b_s34b_b79k@" + "c" * 40
    assert load_scorer(found).score(np.zeros((1, 32, 32, 3), np.uint8), ["x"]).shape == (1,)


def test_a_scorer_of_one_s_own_lies_next_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "light.py").write_text(OWN)
    found = card(tmp_path, type="light:Brightness")
    scorer = load_scorer(found)
    assert (scorer.name, scorer.version) == ("quality", found.version)
    assert scorer.score(np.full((2, 4, 4, 3), 255, np.uint8), ["", ""]).tolist() == [1.0, 1.0]
    (tmp_path / "light.py").write_text(OWN + "# changed\n")
    assert card(tmp_path, type="light:Brightness").version != found.version


def test_a_scorer_of_an_installed_package_needs_no_file(tmp_path: Path) -> None:
    found = card(tmp_path, type="collections:Counter")
    assert found.version.startswith("collections:Counter/sha256:")
    assert found.folder is None


def test_an_unknown_type_module_or_class_is_one_line(tmp_path: Path) -> None:
    assert "unknown type 'clpi'; did you mean 'clip'?" in refusal(tmp_path, type="clpi")
    assert "the module 'nowhere.at_all' is neither installed nor at" in refusal(tmp_path, type="nowhere.at_all:Thing")
    assert "'model' is missing; give 'demo'" in refusal(tmp_path, type="clip")
    (tmp_path / "light.py").write_text(OWN)
    with pytest.raises(ModelError, match="light has no class 'Darkness'"):
        load_scorer(card(tmp_path, type="light:Darkness"))


def test_a_scorer_of_one_s_own_may_hold_dataclasses_and_its_mistakes_are_one_line(tmp_path: Path) -> None:
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Options:\n    gain: float = 1.0\n\n"
    )
    (tmp_path / "light.py").write_text(head + OWN)
    assert load_scorer(card(tmp_path, type="light:Brightness")).name == "quality"
    for mistake in ("import not_installed_anywhere\n", "class Brightness(:\n"):
        (tmp_path / "light.py").write_text(mistake)
        with pytest.raises(ModelError, match=r"light\.py: cannot be imported \((ModuleNotFound|Syntax)Error") as caught:
            load_scorer(card(tmp_path, type="light:Brightness"))
        assert "\n" not in str(caught.value)
