"""Published image tokenizers: LlamaGen's and Chameleon's files load, and what can't be one is refused, never run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from realsr_r1.errors import UserError
from realsr_r1.models import load_image_tokenizer
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from realsr_r1.models.published import FAMILIES

SMALL = dict(base_channels=32, num_embeddings=64, latent_channels=32, num_res_blocks=1)


def make(family: str) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(ImageTokenizerConfig(**{**FAMILIES[family], **SMALL})).eval()


def published_state(model: ImageTokenizer, family: str) -> dict[str, torch.Tensor]:
    """The model's weights under the publisher's names, with the tensors that only training uses."""
    state = {}
    levels = len(FAMILIES[family]["channel_multiplier"])
    for name, tensor in model.state_dict().items():
        if family == "chameleon":
            name = re.sub(r"decoder\.up\.(\d)", lambda level: f"decoder.up.{levels - 1 - int(level[1])}", name)
        else:
            name = re.sub(r"(down|up)\.(\d)\.block\.", r"\1.\2.res.", name)
            name = re.sub(r"coder\.(down|up)\.", "coder.conv_blocks.", name)
            for number, block in enumerate(("block_1", "attn_1", "block_2")):
                name = name.replace(f"mid.{block}.", f"mid.{number}.")
        state[name] = tensor.contiguous()
    state |= {"loss.discriminator.main.0.weight": torch.zeros(2)} if family == "chameleon" else {
        "quantize.codebook_used": torch.zeros(65536)}
    return state


# A few names as the published files have them, so that the renaming above can't be wrong in the same way as the code.
NAMES = {"llamagen-vq8": ["encoder.conv_blocks.3.attn.0.k.bias", "encoder.conv_blocks.2.downsample.conv.weight",
                          "decoder.conv_blocks.0.attn.1.proj_out.weight", "decoder.conv_blocks.2.upsample.conv.bias",
                          "decoder.conv_blocks.3.res.0.nin_shortcut.weight", "encoder.mid.1.q.weight"],
         "chameleon": ["encoder.down.4.block.0.nin_shortcut.weight", "decoder.up.4.upsample.conv.weight",
                       "decoder.up.3.block.0.nin_shortcut.bias", "decoder.mid.attn_1.q.weight"]}


@pytest.fixture(scope="module")
def vq8(tmp_path_factory) -> tuple[ImageTokenizer, dict[str, torch.Tensor], Path]:
    """A small LlamaGen VQ-8: model, published state dict, and its file as it is released."""
    model = make("llamagen-vq8")
    state = published_state(model, "llamagen-vq8")
    path = tmp_path_factory.mktemp("vq8") / "vq_ds8_c2i.pt"
    torch.save({"model": state}, path)
    return model, state, path


def assert_same(loaded: ImageTokenizer, model: ImageTokenizer) -> None:
    noise = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 2 * model.downsample, 3 * model.downsample, generator=noise) * 2 - 1
    ids = model.encode(pixels)
    assert (loaded.downsample, loaded.codebook_size) == (model.downsample, model.codebook_size)
    assert torch.equal(loaded.encode(pixels), ids)
    assert torch.equal(loaded.decode(ids), model.decode(ids))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_families_down_sample_as_published():
    levels = {family: 2 ** (len(shape["channel_multiplier"]) - 1) for family, shape in FAMILIES.items()}
    assert levels == {"llamagen-vq8": 8, "llamagen-vq16": 16, "chameleon": 16}
    assert {family: shape["num_embeddings"] for family, shape in FAMILIES.items()} == {
        "llamagen-vq8": 16384, "llamagen-vq16": 16384, "chameleon": 8192}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_pickle_loads_and_its_family_is_told_by_its_names(family, tmp_path):
    model = make(family)
    state = published_state(model, family)
    assert set(NAMES.get(family, [])) <= set(state)
    key = "state_dict" if family == "chameleon" else "model"
    torch.save({key: state, "steps": 7}, tmp_path / "released.ckpt")
    assert_same(load_image_tokenizer(tmp_path / "released.ckpt", **SMALL), model)


def test_a_bare_state_dict_and_safetensors_load_too(vq8, tmp_path):
    model, state, _ = vq8
    torch.save(state, tmp_path / "bare.pt")
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    assert_same(load_image_tokenizer(tmp_path / "bare.pt", **SMALL), model)
    half = load_image_tokenizer(str(tmp_path / "half.safetensors"), family="llamagen-vq8", **SMALL)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.state_dict(), model.state_dict(), atol=1e-2, rtol=1e-2)


def test_a_loaded_tokenizer_can_be_saved_as_one_of_our_folders(vq8, tmp_path):
    loaded = load_image_tokenizer(vq8[2], **SMALL)
    loaded.save_pretrained(tmp_path)
    assert_same(load_image_tokenizer(tmp_path), vq8[0])


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "was-here"), "w")

    torch.save({"model": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(UserError, match=f"{tmp_path / 'harmful.pt'} is refused"):
        load_image_tokenizer(tmp_path / "harmful.pt")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / name)):
        load_image_tokenizer(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named(vq8, suffix, tmp_path):
    path = tmp_path / f"cut{suffix}"
    torch.save(vq8[1], path) if suffix == ".pt" else save_file(vq8[1], path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=str(path)):
        load_image_tokenizer(path, **SMALL)


@pytest.mark.parametrize("state, reason", [
    ({"epoch": 3}, "holds no state dict"), ([1, 2], "holds no state dict"), ({"model": {}}, "holds no state dict"),
    ({"layers.0.weight": torch.zeros(2)}, "no image tokenizer of a known family")])
def test_a_pickle_of_something_else_is_refused(state, reason, tmp_path):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match=reason):
        load_image_tokenizer(tmp_path / "other.pt")


def test_missing_unexpected_and_misshaped_tensors_are_named(vq8, tmp_path):
    _, state, path = vq8
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight has shape \[32, 3, 3, 3\], expected \[128, 3"):
        load_image_tokenizer(path)  # not the released width, and no override says so
    torch.save({name: tensor for name, tensor in state.items() if name != "quant_conv.bias"}, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"tensor quant_conv\.bias is missing"):
        load_image_tokenizer(tmp_path / "less.pt", **SMALL)
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(UserError, match="unexpected tensor extra"):
        load_image_tokenizer(tmp_path / "more.pt", **SMALL)


def test_wrong_arguments_are_refused(vq8, tmp_path):
    with pytest.raises(UserError, match="no such image tokenizer"):
        load_image_tokenizer(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="family 'vq8' is unknown; known are llamagen-vq8, llamagen-vq16, chameleon"):
        load_image_tokenizer(vq8[2], family="vq8")
    with pytest.raises(UserError, match="no key 'base_channel'"):
        load_image_tokenizer(vq8[2], base_channel=32)
    with pytest.raises(UserError, match="family='chameleon' is for published files"):
        load_image_tokenizer(tmp_path, family="chameleon")
