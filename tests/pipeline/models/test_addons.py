"""LoRA weights, embeddings and another autoencoder: what they change, what they leave alone, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from pipeline.models import load_model
from pipeline.models.base import ImageModel
from pipeline.models.here import on_this_machine
from pipeline.models.resolve import ModelCard, resolve_model
from schemas.config import ModelConfig
from schemas.errors import ModelError
from tests.pipeline.models import tiny
from tests.pipeline.models.conftest import make_draw

Folders = Callable[[str], Path]
Loaded = Callable[[str], ImageModel]


def load(folder: Path, **settings: Any) -> tuple[ModelCard, ImageModel]:
    config = ModelConfig.model_validate({"id": str(folder), **settings})
    card = resolve_model(config, base_dir=Path.cwd())
    return card, load_model(card, config)


def image(model: ImageModel, prompt: str = "a red square") -> np.ndarray:
    return model.generate([make_draw(0, prompt=prompt), make_draw(1)]).images_NHWC


@pytest.mark.parametrize(("family", "part"), [("sd", "unet"), ("sdxl", "unet"), ("flux", "transformer")])
def test_a_lora_of_scale_0_changes_no_bit_and_of_scale_1_the_image(
    model_folder: Folders, loaded: Loaded, tmp_path: Path, family: str, part: str
) -> None:
    folder = model_folder(family)
    path = tiny.lora(tmp_path / "style.safetensors", folder, 1, part=part)
    plain = image(loaded(family))
    assert np.array_equal(plain, image(load(folder, loras=[{"id": path, "scale": 0.0}])[1]))
    assert not np.array_equal(plain, image(load(folder, loras=[path])[1]))


def test_loras_add_up_in_whatever_order_they_stand(model_folder: Folders, tmp_path: Path) -> None:
    folder = model_folder("sd")
    one, two = (tiny.lora(tmp_path / f"{name}.safetensors", folder, seed) for name, seed in (("one", 1), ("two", 2)))
    (card, both), (other_card, turned) = (load(folder, loras=loras) for loras in ([one, two], [two, one]))
    assert card == other_card
    assert [one.label for one in card.addons.loras] == ["one@1.0", "two@1.0"]
    assert np.array_equal(image(both), image(turned))
    weak = load(folder, loras=[one, {"id": two, "scale": 0.5}])[1]
    assert not np.array_equal(image(both), image(weak))

    unet = both._pipe.unet  # type: ignore[attr-defined]
    layer = unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    weights = [load_file(path) for path in (one, two)]
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    changes = [each[name.format("B")] @ each[name.format("A")] for each in weights]
    x = torch.randn(3, 32)
    assert torch.allclose(layer(x), x @ (layer.base_layer.weight + changes[0] + changes[1]).T, atol=1e-4)


def test_a_lora_of_the_text_encoder_counts(model_folder: Folders, loaded: Loaded, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "words.safetensors", model_folder("sd"), 1, part="text_encoder", layers=r"\.[qv]_proj\.weight")
    assert not np.array_equal(image(loaded("sd")), image(load(model_folder("sd"), loras=[path])[1]))


def test_an_image_with_a_lora_depends_on_no_neighbour(model_folder: Folders, tmp_path: Path) -> None:
    model = load(model_folder("sd"), loras=[tiny.lora(tmp_path / "style.safetensors", model_folder("sd"), 1)])[1]
    first, second = model.generate([make_draw(0), make_draw(1)]), model.generate([make_draw(1), make_draw(7)])
    assert np.array_equal(first.images_NHWC[1], second.images_NHWC[0])


def test_the_word_of_an_embedding_means_what_its_vectors_say(model_folder: Folders, loaded: Loaded, tmp_path: Path) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(3)) * 3
    save_file({"<cat>": vectors}, tmp_path / "cat.safetensors")
    card, model = load(model_folder("sd"), embeddings=[str(tmp_path / "cat.safetensors")])
    plain = loaded("sd")
    assert card.addons.embeddings[0].token == "<cat>"
    assert np.array_equal(image(model), image(plain))
    assert not np.array_equal(image(model, "a <cat>"), image(plain, "a <cat>"))
    assert not np.array_equal(image(model, "a <cat>"), image(model, "a"))
    assert list(model.generate([make_draw(0, prompt="a <cat>")]).prompt_tokens) == [5]  # start, a, two vectors, end
    other = load(model_folder("sd"), embeddings=[{"id": str(tmp_path / "cat.safetensors"), "token": "feline-x"}])[1]
    assert np.array_equal(image(other, "a feline-x"), image(model, "a <cat>"))


def test_an_embedding_for_two_text_encoders(model_folder: Folders, loaded: Loaded, tmp_path: Path) -> None:
    save_file({"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 32)}, tmp_path / "sks.safetensors")
    model = load(model_folder("sdxl"), embeddings=[str(tmp_path / "sks.safetensors")])[1]
    plain = loaded("sdxl")
    assert np.array_equal(image(model), image(plain))
    assert not np.array_equal(image(model, "a sks"), image(plain, "a sks"))


def test_another_vae_changes_the_image(model_folder: Folders, loaded: Loaded, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tiny.vae().save_pretrained(tmp_path / "vae")
    card, model = load(model_folder("sd"), vae=str(tmp_path / "vae"))
    plain = loaded("sd")
    assert card.revision.startswith(f"{plain.revision}+sha256:")
    assert not np.array_equal(image(plain), image(model))
    own = load(model_folder("sd"), vae=str(model_folder("sd") / "vae"))[1]
    assert np.array_equal(image(plain), image(own))


@pytest.fixture(scope="module")
def misfits(model_folder: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder, my-model, and beside it all kinds of files that do not fit it."""
    root = tmp_path_factory.mktemp("misfits")
    (root / "my-model").symlink_to(model_folder("sd"))
    good = tiny.lora(root / "good.safetensors", model_folder("sd"), 1)
    tiny.lora(root / "sdxl.safetensors", model_folder("sdxl"), 1)
    tiny.lora(root / "flux.safetensors", model_folder("flux"), 1, part="transformer")
    stray = "text_encoder_2.layers.0.q_proj.lora_{}.weight"
    save_file(load_file(good) | {stray.format("A"): torch.ones(2, 32), stray.format("B"): torch.ones(32, 2)}, root / "half.safetensors")
    save_file({"<cat>": torch.ones(32)}, root / "cat.safetensors")
    save_file({"<dog>": torch.ones(48)}, root / "wide.safetensors")
    (root / "torn.safetensors").write_bytes(Path(good).read_bytes()[:-10])
    (root / "pickled.bin").write_bytes(b"x")
    for name in ("two/a.safetensors", "two/b.safetensors", "pickles/pytorch_lora_weights.bin"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    blocks: dict[str, Any] = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    tiny.vae(channels=16).save_pretrained(root / "vae16")
    tiny.vae(block_out_channels=[32, 32, 32], **blocks).save_pretrained(root / "vae8")
    return root


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loras": ["none.safetensors"]}, r"model.loras none.safetensors: there is no such file or folder \(looked for /"),
        ({"loras": ["pickled.bin"]}, r"model.loras pickled.bin: pickled.bin is a pickle, which runs any code"),
        ({"loras": ["pickles"]}, r"model.loras pickles: pytorch_lora_weights.bin is a pickle"),
        ({"loras": ["torn.safetensors"]}, r"torn.safetensors is damaged"),
        ({"loras": ["cat.safetensors"]}, r"cat.safetensors holds no LoRA weights"),
        ({"loras": ["two"]}, r"model.loras two: set file to one of the safetensors files in the folder; there are: a.safetensors, b.saf"),
        ({"loras": [{"id": "two", "file": "../cat.safetensors"}]}, r"file ../cat.safetensors lies elsewhere"),
        ({"loras": ["good.safetensors", "good.safetensors"]}, r"model.loras: two are called good; each needs its own"),
        ({"loras": ["sdxl.safetensors"]}, r"model.loras sdxl: does not fit StableDiffusionPipeline \(.*; give one that was made for"),
        ({"loras": ["flux.safetensors"]}, r"model.loras flux: does not fit StableDiffusionPipeline \(.*; give one that was made for"),
        ({"loras": ["half.safetensors"]}, r"model.loras half: does not fit StableDiffusionPipeline \(32 of its 34 tensors have a place"),
        ({"embeddings": ["wide.safetensors"]}, r"its vectors have 48 numbers, those of the text_encoder 32"),
        ({"embeddings": ["cat.safetensors", "cat.safetensors"]}, r"model.embeddings: two have the token <cat>; each needs its own"),
        ({"embeddings": [{"id": "cat.safetensors", "token": "red"}]}, r"model.embeddings cat: does not fit .*Token red already in"),
        ({"embeddings": [{"id": "cat.safetensors", "token": "two words"}]}, r"its token 'two words' is not one word; set token"),
        ({"embeddings": ["good.safetensors"]}, r"good.safetensors holds \d+ tensors; an embedding is one, or clip_l and clip_g"),
        ({"vae": "vae16"}, r"model.vae vae16: its latent_channels is 16, that of [^ ]*'s own is 4; give one that was made for this"),
        ({"vae": "vae8"}, r"model.vae vae8: its scale is 3, that of [^ ]*'s own is 2"),
        ({"vae": "nowhere"}, r"model.vae nowhere: there is no such file or folder"),
    ],
)
def test_what_does_not_fit_is_one_line(misfits: Path, settings: dict, reason: str) -> None:
    config = ModelConfig.model_validate({"id": "my-model", **settings})
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(resolve_model(config, base_dir=misfits), config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("addon", ["style.safetensors", "cat.safetensors", "vae/diffusion_pytorch_model.safetensors"])
def test_a_machine_with_other_files_loads_nothing(own_copy: Path, tmp_path: Path, addon: str) -> None:
    tiny.lora(tmp_path / "style.safetensors", own_copy, 1)
    save_file({"<cat>": torch.ones(32)}, tmp_path / "cat.safetensors")
    tiny.vae().save_pretrained(tmp_path / "vae")
    settings = {"loras": ["style.safetensors"], "embeddings": ["cat.safetensors"], "vae": "vae"}
    config = ModelConfig.model_validate({"id": "my-model", **settings})
    card = resolve_model(config, base_dir=tmp_path)
    assert on_this_machine(card, config) == card
    data = bytearray((tmp_path / addon).read_bytes())
    data[-5] ^= 1
    (tmp_path / addon).write_bytes(data)
    with pytest.raises(ModelError, match=r"on this machine, the plan was made with [^ ]+; copy the same file there$"):
        load_model(card, config)


def test_weights_of_the_hub_are_pinned_and_found_in_the_cache_of_another_machine(
    own_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, repo = "c" * 40, tmp_path / "hub/models--acme--styles"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    (repo / "snapshots" / commit / "sub").mkdir(parents=True)
    tiny.lora(repo / "snapshots" / commit / "sub/ink.safetensors", own_copy, 1)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    lora = {"id": "acme/styles", "file": "sub/ink.safetensors", "scale": 0.5}
    config = ModelConfig.model_validate({"id": str(own_copy), "loras": [lora]})
    card = resolve_model(config, base_dir=tmp_path)
    [found] = card.addons.loras
    assert (found.label, found.repo, found.commit) == ("acme/styles/sub/ink.safetensors@0.5", "acme/styles", commit)
    (tmp_path / "hub").rename(tmp_path / "other")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    here = on_this_machine(card, config)
    assert Path(here.addons.loras[0].path) == tmp_path / "other/models--acme--styles/snapshots" / commit / "sub/ink.safetensors"
    config = ModelConfig.model_validate({"id": str(own_copy), "loras": ["acme/styles"]})
    with pytest.raises(ModelError, match=r"model.loras acme/styles: the repository has no pytorch_lora_weights.safetensors; set file"):
        resolve_model(config, base_dir=tmp_path)
