"""A CLIP score is the plain cosine, and nobody's but the image's and its prompt's."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.scorers import load_scorer
from pipeline.scorers.base import Scorer, TextScorer
from pipeline.scorers.resolve import resolve_scorer
from schemas.config import ScorerConfig
from schemas.errors import ModelError
from tests.pipeline.scorers import tiny_clip

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8)
PROMPTS = ["a red square", "a blue circle", "", "a red square", "two dogs", "snow"]


def load(folder: Path) -> Scorer:
    return load_scorer(resolve_scorer("clip", ScorerConfig(model=str(folder)), base_dir=Path.cwd()))  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Scorer:
    return load(clip_folder)


def test_the_score_is_the_cosine_of_a_hand_written_forward_pass(clip: Scorer, clip_folder: Path) -> None:
    model = open_clip.CLIP(**tiny_clip.CONFIG["model_cfg"]).eval()
    model.load_state_dict(load_file(clip_folder / "open_clip_model.safetensors"))
    mean, std = (np.array(tiny_clip.CONFIG["preprocess_cfg"][key]) for key in ("mean", "std"))
    tokenizer = open_clip.SimpleTokenizer(context_length=tiny_clip.CONTEXT)
    expected = []
    for image, prompt in zip(IMAGES, PROMPTS, strict=True):
        small = Image.fromarray(image).resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
        pixels = (np.asarray(small) / 255 - mean) / std
        with torch.inference_mode():
            seen = model.encode_image(torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32))[0].double()
            read = model.encode_text(tokenizer([prompt]))[0].double()
        expected.append(float(seen @ read / (seen.norm() * read.norm())))
    scores = clip.score(IMAGES, PROMPTS)
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_a_score_depends_on_no_neighbour_and_no_slot(clip: Scorer) -> None:
    first = clip.score(IMAGES[:3], PROMPTS[:3])
    second = clip.score(IMAGES[[5, 4, 1]], ["snow", "two dogs", PROMPTS[1]])
    assert first[1] == second[2]


def test_a_score_depends_on_image_and_prompt(clip: Scorer) -> None:
    scores = clip.score(IMAGES[[0, 0, 1, 0]], ["a red square", "a blue circle", "a red square", "a red square"])
    assert len(set(scores[:3].tolist())) == 3
    assert scores[0] == scores[3]


def test_texts_kept_are_bounded_and_change_nothing(clip: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = clip.score(IMAGES, PROMPTS)
    monkeypatch.setattr("pipeline.scorers.clip._CAPACITY", 2)
    assert np.array_equal(clip.score(IMAGES, [f"text {i}" for i in range(6)]), clip.score(IMAGES, [f"text {i}" for i in range(6)]))
    assert np.array_equal(clip.score(IMAGES, PROMPTS), before)


def test_truncation_is_told_to_the_token(clip: Scorer) -> None:
    assert isinstance(clip, TextScorer)
    fits, too_long = "dog " * (tiny_clip.CONTEXT - 2), "dog " * (tiny_clip.CONTEXT - 1)
    assert clip.truncates(["a dog", fits, too_long, "x" * 10_000, ""]) == [False, False, True, True, False]
    one, other = clip.score(IMAGES[[0, 0]], [fits + "cat", fits + "bird"])
    assert one == other  # what is said to be cut is cut


def test_weights_that_are_not_finite_give_no_score(own_clip: Path) -> None:
    file = own_clip / "open_clip_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"visual.proj": weights["visual.proj"] * float("nan")}, file)
    assert np.isnan(load(own_clip).score(IMAGES, PROMPTS)).all()


def test_weights_of_another_shape_are_one_line(own_clip: Path) -> None:
    file = own_clip / "open_clip_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name != "visual.proj"}, file)
    with pytest.raises(ModelError, match=r"scorers\.clip: .* cannot be loaded") as caught:
        load(own_clip)
    assert "\n" not in str(caught.value)


def test_loading_says_nothing(clip_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(clip_folder)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_model_as_siglip_s_are_is_read_with_its_own_tokenizer(tmp_path: Path) -> None:
    folder = tiny_clip.make_siglip(tmp_path / "siglip")
    scorer = load_scorer(resolve_scorer("clip", ScorerConfig(model=str(folder)), base_dir=tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    model = open_clip.CustomTextCLIP(**tiny_clip.SIGLIP).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    squashed = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = torch.tensor([[tiny_clip.WORDS.index(word) for word in line.split()] + [1] * 5 for line in ("a red circle", "a blue square")])
    with torch.inference_mode():
        cosines = torch.nn.functional.cosine_similarity(model.encode_image(pixels), model.encode_text(tokens))
    np.testing.assert_allclose(scorer.score(images, ["A red circle!", "a blue, square"]), cosines.numpy(), atol=1e-4)
    assert isinstance(scorer, TextScorer)
    assert scorer.truncates(["a " * 8 + "!", "a " * 9]) == [False, True]
