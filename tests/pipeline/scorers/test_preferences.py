"""Scores of people's preferences, and of a model that answers questions, are those of a plain forward pass of the library."""

import json
import pickle
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from jobs import open_run
from jobs.cli import cli
from jobs.query import query
from jobs.run import run as run_verb
from pipeline.scorers import hpsv2, load_scorer
from pipeline.scorers.base import TextScorer
from pipeline.scorers.here import on_this_machine
from pipeline.scorers.resolve import ScorerCard, resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError
from tests.fakes import LOADER, fake_job
from tests.pipeline.scorers import tiny_clip, tiny_transformers
from tests.runs import finished_run

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
PROMPTS = ["a red circle", "a blue circle", "a red circle"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Read only, by type; vqascore has two kinds of models."""
    root = tmp_path_factory.mktemp("transformers")
    makers = {"pickscore": tiny_transformers.make_clip, "llava": tiny_transformers.make_llava, "blip2": tiny_transformers.make_blip2}
    return {name: make(root / name) for name, make in makers.items()}


def card(kind: str, model: Path | str, base_dir: Path | None = None) -> ScorerCard:
    return resolve_scorer("liked", ScorerConfig(type=kind, model=str(model)), base_dir=base_dir or Path.cwd())


def refusal(kind: str, model: Path | str, base_dir: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_scorer(card(kind, model, base_dir))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain_pickscore(folder: Path, image: Image.Image, prompt: str) -> float:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.inference_mode():
        return float(model(**processor(text=[prompt], images=image, return_tensors="pt")).logits_per_image)


def test_pickscore_is_the_logit_of_the_whole_model_and_nobody_else_s(folders: dict[str, Path]) -> None:
    scorer = load_scorer(card("pickscore", folders["pickscore"]))
    scores = scorer.score(IMAGES, PROMPTS)
    expected = [
        plain_pickscore(folders["pickscore"], Image.fromarray(image), prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=True)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_array_equal(scorer.score(IMAGES[[2, 0]], [PROMPTS[2], PROMPTS[0]]), scores[[2, 0]])
    assert isinstance(scorer, TextScorer)
    assert scorer.truncates(["a red circle", "circle " * 14, "circle " * 15]) == [False, False, True]
    one, other = scorer.score(IMAGES[[0, 0]], ["circle " * 14 + "red", "circle " * 14 + "blue"])
    assert one == other  # what is said to be cut is cut


def test_a_run_has_pickscore_as_a_column(folders: dict[str, Path], tmp_path: Path) -> None:
    job = fake_job(tmp_path, prompts=PROMPTS[:2], scorers={"liked": {"type": "pickscore", "model": str(folders["pickscore"])}})
    run_verb(job, out=tmp_path / "run", model_loader=LOADER)
    rows = query([str(tmp_path / "run")], "select sample_id, liked_score, liked_version, liked_truncated from metadata").to_pylist()
    assert {(row["liked_version"], row["liked_truncated"]) for row in rows} == {(card("pickscore", folders["pickscore"]).version, False)}
    told = {row["sample_id"]: row["liked_score"] for row in rows}
    for picture, row in open_run(tmp_path / "run").images():
        assert told[row["sample_id"]] == pytest.approx(
            plain_pickscore(folders["pickscore"], picture.convert("RGB"), row["prompt"]), rel=1e-4
        )


@pytest.mark.parametrize("kind", ["llava", "blip2"])
def test_vqascore_is_the_probability_of_yes_as_the_next_token(folders: dict[str, Path], kind: str) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(folders[kind]).eval(), AutoProcessor.from_pretrained(folders[kind])
    asked = 'Does this figure show "{}"? Please answer yes or no.'
    asked = "USER : <image> " + asked + " ASSISTANT :" if kind == "llava" else asked
    start = {} if kind == "llava" else {"decoder_input_ids": torch.tensor([[0]])}
    expected = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        inputs = processor(images=Image.fromarray(image), text=asked.format(prompt), return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs, **start).logits[0, -1].double()
        expected.append(float(logits.softmax(dim=-1)[processor.tokenizer.convert_tokens_to_ids("Yes")]))
    scorer = load_scorer(card("vqascore", folders[kind]))
    scores = scorer.score(IMAGES, PROMPTS)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert len(set(scores.tolist())) == 3
    np.testing.assert_array_equal(scorer.score(IMAGES[[2, 0]], [PROMPTS[2], PROMPTS[0]]), scores[[2, 0]])


@pytest.fixture
def tiny_hpsv2(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Weights of a small architecture that stands in the place of ViT-H-14, whose own take 4 GB."""
    (tmp_path / "tiny-hpsv2.json").write_text(json.dumps(tiny_clip.CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "tiny-hpsv2.json")
    monkeypatch.setattr(hpsv2, "ARCHITECTURE", "tiny-hpsv2")
    return load_file(clip_folder / "open_clip_model.safetensors")


def test_hpsv2_is_the_cosine_of_images_that_are_fitted_into_the_square(tiny_hpsv2: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": tiny_hpsv2}, tmp_path / "HPS_tiny.pt")
    save_file(tiny_hpsv2, tmp_path / "HPS_tiny.safetensors")
    model = open_clip.CLIP(**tiny_clip.CONFIG["model_cfg"]).eval()
    model.load_state_dict(tiny_hpsv2)
    tokens = open_clip.SimpleTokenizer(context_length=tiny_clip.CONTEXT)(PROMPTS)
    mean, std = (torch.tensor(one)[:, None, None] for one in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    fitted = [ImageOps.pad(Image.fromarray(image), (32, 32), Image.Resampling.BICUBIC) for image in IMAGES]
    pixels = torch.stack([(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 - mean) / std for image in fitted])
    with torch.inference_mode():
        expected = torch.cosine_similarity(model.encode_image(pixels), model.encode_text(tokens))
    cards = [card("hpsv2", name, tmp_path) for name in ("HPS_tiny.pt", "HPS_tiny.safetensors")]
    for one in cards:
        np.testing.assert_allclose(load_scorer(one).score(IMAGES, PROMPTS), expected.numpy(), atol=2e-5)
        assert on_this_machine(one, ScorerConfig(type="hpsv2", model=one.model)) == one
    assert cards[0].version.startswith("hpsv2/1/HPS_tiny/sha256:")
    (tmp_path / "HPS_tiny.pt").write_bytes(b"other")
    with pytest.raises(ModelError, match="is another file than the one that the plan was made with"):
        on_this_machine(cards[0], ScorerConfig(type="hpsv2", model="HPS_tiny.pt"))


@pytest.mark.parametrize("kind", ["vqascore", "hpsv2"])
def test_rescore_adds_them_to_a_run(folders: dict[str, Path], tiny_hpsv2: dict[str, torch.Tensor], tmp_path: Path, kind: str) -> None:
    run = finished_run(tmp_path / "run", prompts=2)
    save_file(tiny_hpsv2, tmp_path / "HPS_tiny.safetensors")
    model = folders["llava"] if kind == "vqascore" else tmp_path / "HPS_tiny.safetensors"
    result = CliRunner().invoke(cli, ["rescore", run.store.root, "--scorer", f"liked={{type: {kind}, model: {model}}}"])
    assert result.exit_code == 0, result.output
    rows = {row["sample_id"]: row for row in query([run.store.root], "select * from metadata").to_pylist()}
    scorer = load_scorer(card(kind, model))
    for picture, row in open_run(run.store.root).images():
        alone = scorer.score(np.asarray(picture.convert("RGB"))[None], [row["prompt"]])[0]
        assert rows[row["sample_id"]]["liked_score"] == pytest.approx(alone, rel=1e-5)
        assert rows[row["sample_id"]]["liked_version"] == scorer.version


class Malicious:
    def __reduce__(self):
        return (print, ("code of the checkpoint was run",))


def test_hpsv2_runs_no_code_of_a_checkpoint_and_wants_all_weights(
    tiny_hpsv2: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "hf download xswu/HPSv2 HPS_v2.1_compressed.pt" in refusal("hpsv2", tmp_path / "none.pt")
    torch.save({"state_dict": tiny_hpsv2 | {"logit_scale": Malicious()}}, tmp_path / "bad.pt")
    assert "bad.pt holds no weights of tiny-hpsv2" in refusal("hpsv2", tmp_path / "bad.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    assert "plain.pt holds no weights of tiny-hpsv2" in refusal("hpsv2", tmp_path / "plain.pt")
    assert capsys.readouterr() == ("", "")
    save_file({name: value for name, value in tiny_hpsv2.items() if name != "visual.proj"}, tmp_path / "torn.safetensors")
    assert "holds no weights of tiny-hpsv2" in refusal("hpsv2", tmp_path / "torn.safetensors")


def test_what_transformers_would_fill_with_random_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, name in (("pickscore", "pickscore"), ("vqascore", "llava")):
        torn = tmp_path / name
        torn.mkdir()
        for file in folders[name].iterdir():
            (torn / file.name).write_bytes(file.read_bytes())
        weights = load_file(torn / "model.safetensors")
        lost = sorted(weights)[3]
        save_file({key: value for key, value in weights.items() if key != lost}, torn / "model.safetensors", metadata={"format": "pt"})
        assert "cannot be loaded (no weights for " in refusal(kind, torn)
        (torn / "model.safetensors").rename(torn / "pytorch_model.bin")
        assert "pytorch_model.bin is a pickle, which runs any code" in refusal(kind, torn)
        (torn / "pytorch_model.bin").unlink()
        assert "no weights: " in refusal(kind, torn)


def test_a_model_of_another_kind_or_without_the_word_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "cannot be loaded" in refusal("pickscore", folders["llava"])
    assert "cannot be loaded" in refusal("vqascore", folders["pickscore"])
    silent = tiny_transformers.make_llava(tmp_path / "silent", words=[word for word in tiny_transformers.WORDS if word != "Yes"])
    assert "has no single token for 'Yes'" in refusal("vqascore", silent)
    mute = tiny_transformers.make_llava(tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    assert "cannot be asked without a chat template, which it has not (" in refusal("vqascore", mute)


@pytest.mark.parametrize(("kind", "example"), [("pickscore", "yuvalkirstain/PickScore_v1"), ("vqascore", "Qwen/Qwen2.5-VL-3B-Instruct")])
def test_an_absent_model_is_told_with_what_to_do(tmp_path: Path, kind: str, example: str) -> None:
    assert f"'model' is missing; give a local folder, or a hub name such as {example}" in refusal(kind, "")
    assert f"there is no such folder (looked for {tmp_path}/no where)" in refusal(kind, "no where", tmp_path)
    told = refusal(kind, example)
    assert told.startswith(f"scorers.liked: {example} is not in the local cache and cannot be downloaded (")
    assert f"hf download {example}, or give a local folder" in told


def test_models_of_the_hub_come_from_the_cache_and_are_named_by_commit(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub/models--yuvalkirstain--PickScore_v1/snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for file in folders["pickscore"].iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("c" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = ScorerConfig(type="pickscore", model="yuvalkirstain/PickScore_v1")
    found = card("pickscore", "yuvalkirstain/PickScore_v1")
    assert found.version == "pickscore/1/yuvalkirstain/PickScore_v1@" + "c" * 40
    assert on_this_machine(found, config) == found
    np.testing.assert_array_equal(
        load_scorer(found).score(IMAGES, PROMPTS), load_scorer(card("pickscore", folders["pickscore"])).score(IMAGES, PROMPTS)
    )


def test_other_weights_on_another_machine_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in folders["llava"].iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    found, config = card("vqascore", own), ScorerConfig(type="vqascore", model=str(own))
    assert on_this_machine(found, config) == found
    (own / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ModelError, match="copy the same files there"):
        on_this_machine(found, config)
