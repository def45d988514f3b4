"""Published image tokenizers: LlamaGen's and Chameleon's files load, and what can't be one is
refused, never run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_image_tokenizer
from realsr_r1.models.image_tokenizer import ImageTokenizer
from realsr_r1.models.published import FAMILIES

from ..published import image_tokenizer, published_state

# A few names as the published files have them, so that the renaming above can't be wrong in the
# same way as the code.
NAMES = {"llamagen-vq8": ["encoder.conv_blocks.3.attn.0.k.bias",
                          "encoder.conv_blocks.2.downsample.conv.weight",
                          "decoder.conv_blocks.0.attn.1.proj_out.weight",
                          "decoder.conv_blocks.2.upsample.conv.bias",
                          "decoder.conv_blocks.3.res.0.nin_shortcut.weight", "encoder.mid.1.q.weight"],
         "chameleon": ["encoder.down.4.block.0.nin_shortcut.weight", "decoder.up.4.upsample.conv.weight",
                       "decoder.up.3.block.0.nin_shortcut.bias", "decoder.mid.attn_1.q.weight"]}


@pytest.fixture(scope="module")
def vq8(tmp_path_factory) -> tuple[ImageTokenizer, dict[str, torch.Tensor], Path]:
    """A small LlamaGen VQ-8: model, published state dict, and its file as it is released."""
    model = image_tokenizer("llamagen-vq8", num_embeddings=64)
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


DOWNSAMPLE = {"llamagen-vq8": 8, "llamagen-vq16": 16, "chameleon": 16}
PUBLISHED_LEVELS = {"llamagen-vq8": [1, 2, 2, 4], "llamagen-vq16": [1, 1, 2, 2, 4],
                    "chameleon": [1, 1, 2, 2, 4]}
VARIANTS = [*((family, dict(channel_multiplier=levels)) for family, levels in PUBLISHED_LEVELS.items()),
            ("llamagen-vq8", dict(base_channels=64, num_res_blocks=2, channel_multiplier=[1, 2, 2, 4],
                                  embed_dim=4)),
            ("llamagen-vq8", dict(channel_multiplier=[1, 2], num_embeddings=10, latent_channels=16)),
            ("llamagen-vq16", dict(channel_multiplier=[1, 1, 2, 2, 3, 4], num_embeddings=32)),
            ("chameleon", dict(base_channels=64, num_res_blocks=3, channel_multiplier=[1, 2, 3],
                               embed_dim=16, num_embeddings=33)),
            ("chameleon", dict(channel_multiplier=[1, 1, 2], attention_levels=[1, 2], num_embeddings=32)),
            ("chameleon", dict(channel_multiplier=[1], middle_attention=False, num_embeddings=32))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_file_is_of_the_published_codebook_and_down_sampling(family, tmp_path):
    torch.save({"model": published_state(image_tokenizer(family), family)}, tmp_path / "released.pt")
    loaded = load_image_tokenizer(tmp_path / "released.pt")
    assert loaded.downsample == DOWNSAMPLE[family]
    assert loaded.codebook_size == (8192 if family == "chameleon" else 16384)


@pytest.mark.parametrize("family, changes", VARIANTS)
def test_a_file_tells_its_family_and_its_shape(family, changes, tmp_path):
    model = image_tokenizer(family, **changes)
    state = published_state(model, family)
    assert changes != dict(channel_multiplier=PUBLISHED_LEVELS[family]) or set(NAMES.get(family, [])) <= set(
        state)
    key = "state_dict" if family == "chameleon" else "model"
    torch.save({key: state, "steps": 7}, tmp_path / "released.ckpt")
    assert_same(load_image_tokenizer(tmp_path / "released.ckpt"), model)
    assert_same(load_image_tokenizer(tmp_path / "released.ckpt", family=family), model)


def test_a_bare_state_dict_and_safetensors_load_too(vq8, tmp_path):
    model, state, _ = vq8
    torch.save(state, tmp_path / "bare.pt")
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    assert_same(load_image_tokenizer(tmp_path / "bare.pt"), model)
    half = load_image_tokenizer(str(tmp_path / "half.safetensors"), family="llamagen-vq8", num_embeddings=64)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.state_dict(), model.state_dict(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_parameters_have_the_asked_type_and_pictures_too(vq8, dtype):
    model, _, path = vq8
    loaded = load_image_tokenizer(path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    pixels = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ids = loaded.encode(pixels)
    assert ids.shape == (3, 2, 3) and loaded.decode(ids).dtype == torch.bfloat16
    error = (loaded.decode(ids).float() - model.decode(ids)).square().mean().sqrt()
    assert error < 0.05 * model.decode(ids).std()


def test_what_the_tensors_do_not_tell_can_be_overridden(vq8):
    assert load_image_tokenizer(vq8[2]).config.l2_normalised_codes
    loaded = load_image_tokenizer(vq8[2], l2_normalised_codes=False)
    codes = loaded.quantize.lookup(torch.arange(6).reshape(1, 2, 3))
    torch.testing.assert_close(codes[0, :, 1, 2], vq8[0].quantize.embedding.weight[5])


def vqgan_yaml(model: ImageTokenizer, **ddconfig: Any) -> str:
    """The `vqgan.yaml` that belongs to `model`."""
    config = model.config
    levels = [32 >> level for level in config.attention_levels]
    values = dict(double_z=False, z_channels=config.latent_channels, resolution=32, in_channels=3, out_ch=3,
                  dropout=0.0, ch=config.base_channels, ch_mult=list(config.channel_multiplier),
                  num_res_blocks=config.num_res_blocks, attn_resolutions=levels)
    return yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": {
        "embed_dim": config.embed_dim, "n_embed": config.num_embeddings, "ddconfig": {**values,
                                                                                      **ddconfig}}}})


@pytest.fixture
def vqgan(tmp_path) -> tuple[ImageTokenizer, Path]:
    """A small Chameleon VQGAN with attention in one level, as `vqgan.ckpt`."""
    model = image_tokenizer("chameleon", channel_multiplier=[1, 2, 2], attention_levels=[1],
                            num_embeddings=32)
    torch.save({"state_dict": published_state(model, "chameleon")}, tmp_path / "vqgan.ckpt")
    return model, tmp_path / "vqgan.ckpt"


def test_the_yaml_beside_a_chameleon_file_gives_its_shape(vqgan):
    model, path = vqgan
    path.with_suffix(".yaml").write_text(vqgan_yaml(model))
    assert_same(load_image_tokenizer(path), model)


@pytest.mark.parametrize("wrong, tensor", [
    (dict(ch=64), r"encoder\.conv_in\.weight has shape \[32, 3, 3, 3\], expected \[64, 3, 3, 3\]"),
    (dict(num_res_blocks=2), r"tensor encoder\.down\.0\.block\.1\.\S+ is missing"),
    (dict(attn_resolutions=[16, 8]), r"tensor encoder\.down\.2\.attn\.0\.\S+ is missing"),
    (dict(attn_resolutions=[]), r"unexpected tensor decoder\.up\.1\.attn")])
def test_a_yaml_that_does_not_fit_is_named_with_the_tensor(vqgan, wrong, tensor):
    model, path = vqgan
    path.with_suffix(".yaml").write_text(vqgan_yaml(model, **wrong))
    with pytest.raises(UserError, match=rf"{tensor}.*\(by {path.with_suffix('.yaml')}\)"):
        load_image_tokenizer(path)


@pytest.mark.parametrize("text", ["model: [1", "model: {params: {}}", "", "model: {params: {ddconfig: 3}}"])
def test_a_yaml_of_another_form_is_named(vqgan, text):
    path = vqgan[1].with_suffix(".yaml")
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)):
        load_image_tokenizer(vqgan[1])


def test_a_loaded_tokenizer_can_be_saved_as_one_of_our_folders(vq8, tmp_path):
    loaded = load_image_tokenizer(vq8[2])
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


def test_what_else_a_pickle_holds_is_named(vq8, tmp_path):
    torch.save({"model": vq8[1], "args": argparse.Namespace(lr=1)}, tmp_path / "training.pt")
    with pytest.raises(UserError, match=r"is refused: .*argparse\.Namespace"):
        load_image_tokenizer(tmp_path / "training.pt")


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
        load_image_tokenizer(path)


@pytest.mark.parametrize("state, reason", [
    ({"epoch": 3}, "holds no state dict"), ([1, 2], "holds no state dict"),
    ({"model": {}}, "holds no state dict"), ({"layers.0.weight": torch.zeros(2)},
                                             "no image tokenizer of a known family")])
def test_a_pickle_of_something_else_is_refused(state, reason, tmp_path):
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match=reason):
        load_image_tokenizer(tmp_path / "other.pt")


def test_missing_unexpected_and_misshaped_tensors_are_named_as_in_the_file(vq8, tmp_path):
    _, state, path = vq8
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight has shape \[32, 3, 3, 3\], expected "
                                        r"\[128.*base_channels=128"):
        load_image_tokenizer(path, base_channels=128)
    for name in ("quant_conv.bias", "encoder.conv_in.weight", "encoder.conv_blocks.1.res.0.norm2.bias",
                 "decoder.mid.1.q.weight", "quantize.embedding.weight",
                 "decoder.conv_blocks.0.upsample.conv.weight"):
        torch.save({key: tensor for key, tensor in state.items() if key != name}, tmp_path / "less.pt")
        with pytest.raises(UserError, match=rf"tensor {name} is missing"):
            load_image_tokenizer(tmp_path / "less.pt")
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(UserError, match="unexpected tensor extra"):
        load_image_tokenizer(tmp_path / "more.pt")
    torch.save({**state, "decoder.conv_out.weight": torch.zeros(3, 32, 1, 1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"decoder\.conv_out\.weight has shape \[3, 32, 1, 1\], expected \[3, "
                                        r"32, 3, 3\]"):
        load_image_tokenizer(tmp_path / "other.pt")


def test_shapes_that_make_no_model_are_refused(vq8):
    with pytest.raises(UserError, match="these shapes make no image tokenizer.*base_channels=33"):
        load_image_tokenizer(vq8[2], base_channels=33)  # groups of 32 channels are normalised


def test_wrong_arguments_are_refused(vq8, tmp_path):
    with pytest.raises(UserError, match="no such image tokenizer"):
        load_image_tokenizer(tmp_path / "nowhere.pt")
    with pytest.raises(UserError, match="family 'vq8' is unknown; known are llamagen-vq8, llamagen-vq16, "
                                        "chameleon"):
        load_image_tokenizer(vq8[2], family="vq8")
    with pytest.raises(UserError, match="has the tensor names of llamagen-vq8, not of family 'chameleon'"):
        load_image_tokenizer(vq8[2], family="chameleon")
    with pytest.raises(UserError, match="no key 'base_channel'"):
        load_image_tokenizer(vq8[2], base_channel=32)
    with pytest.raises(UserError, match="family='chameleon' is for published files"):
        load_image_tokenizer(tmp_path, family="chameleon")
