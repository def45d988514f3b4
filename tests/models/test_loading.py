"""Loading policies and image tokenizers: our folders and Lumina's layout, and errors that name the
tensor at fault.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_image_tokenizer, load_policy
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

IDS = torch.arange(24).reshape(2, 12)
WEIGHT = "model.layers.1.self_attn.k_norm.weight"


@pytest.fixture(scope="module")
def policy() -> LuminaPolicy:
    torch.manual_seed(0)
    return LuminaPolicy(LuminaConfig(vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=4,
                                     max_position_embeddings=64)).eval()


@pytest.fixture
def lumina_folder(policy, tmp_path) -> Path:
    """The policy as Lumina-mGPT publishes one: a Chameleon config with keys of its own, and no
    image tokenizer.
    """
    folder = tmp_path / "lumina"
    policy.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters")
    config.update(model_type="chameleon", architectures=["ChameleonForConditionalGeneration"],
                  vocabulary_map={"<image>": 7}, mask_image_logits=False, dropout=0.05, z_loss_weight=1e-5,
                  rope_theta=10000.0, rope_scaling=None, torch_dtype="float32", transformers_version="4.44.2")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def tensors(lumina_folder) -> dict[str, torch.Tensor]:
    return load_file(lumina_folder / "model.safetensors")


def logits(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(input_ids=IDS).logits


@pytest.mark.parametrize("attn_implementation", [None, "sdpa", "eager"])
def test_luminas_layout_loads(policy, lumina_folder, attn_implementation):
    loaded = load_policy(lumina_folder, attn_implementation=attn_implementation)
    assert loaded.config._attn_implementation == (attn_implementation or "sdpa")
    torch.testing.assert_close(logits(loaded.eval()), logits(policy), atol=1e-5, rtol=0)


def test_our_folder_loads_bit_for_bit(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = load_policy(str(tmp_path))
    assert type(loaded) is LuminaPolicy and loaded.config.model_type == "realsr_r1_lumina"
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in policy.state_dict().items())


def test_shards_load(policy, tmp_path):
    policy.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load_policy(tmp_path).eval()), logits(policy))
    lost = sorted(tmp_path.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(UserError, match=lost.name):
        load_policy(tmp_path)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_parameters_have_the_asked_type_or_that_of_the_file(policy, tmp_path, dtype):
    folder = tmp_path / "half"
    LuminaPolicy(policy.config).to(torch.bfloat16).save_pretrained(folder)
    assert load_policy(folder, dtype=dtype).dtype == (dtype or torch.bfloat16)


def test_flash_attention_falls_back_with_one_warning(lumina_folder):
    if torch.cuda.is_available():
        pytest.skip("FlashAttention may run here")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_policy(lumina_folder, attn_implementation="flash_attention_2")
    assert [str(warning.message) for warning in caught if "flash" in str(warning.message).lower()] == [
        "flash_attention_2 needs a CUDA GPU and the flash-attn package; using sdpa instead"]
    assert loaded.config._attn_implementation == "sdpa"


def test_a_missing_tensor_is_named(lumina_folder, tensors):
    del tensors[WEIGHT]
    save_file(tensors, lumina_folder / "model.safetensors")
    with pytest.raises(UserError, match=f"tensor {WEIGHT} is missing"):
        load_policy(lumina_folder)


def test_an_unexpected_tensor_is_named(lumina_folder, tensors):
    save_file({**tensors, "model.layers.2.mlp.up_proj.weight": torch.zeros(1)},
              lumina_folder / "model.safetensors")
    with pytest.raises(UserError, match=r"unexpected tensor model\.layers\.2\.mlp\.up_proj\.weight \(1 in "
                                        r"all\)"):
        load_policy(lumina_folder)


def test_a_tensor_of_a_wrong_shape_is_named(lumina_folder, tensors):
    save_file({**tensors, WEIGHT: torch.ones(4, 8)}, lumina_folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"tensor {WEIGHT} has shape \[4, 8\], expected \[1, 8\]"):
        load_policy(lumina_folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(lumina_folder, keep):
    path = lumina_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{path} can't be read as safetensors"):
        load_policy(lumina_folder)


def test_another_architecture_is_named(lumina_folder):
    path = lumina_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))
    with pytest.raises(UserError, match="describes a model of type 'llama'; known are realsr_r1_lumina and "
                                        "chameleon"):
        load_policy(lumina_folder)


def test_a_folder_that_is_no_model_is_named(lumina_folder, tmp_path):
    with pytest.raises(UserError, match=f"no such model folder: {tmp_path / 'nowhere'}"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"no such file: {tmp_path / 'config.json'}"):
        load_policy(tmp_path)
    (lumina_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_policy(lumina_folder)


@pytest.fixture
def image_tokenizer_folder(tmp_path) -> Path:
    config = ImageTokenizerConfig(num_embeddings=16, base_channels=32, channel_multiplier=[1, 1],
                                  num_res_blocks=1, latent_channels=32)
    ImageTokenizer(config).to(torch.float16).save_pretrained(tmp_path)
    return tmp_path


def test_our_image_tokenizer_loads_in_float32_and_frozen(image_tokenizer_folder):
    loaded = load_image_tokenizer(image_tokenizer_folder)
    assert loaded.dtype == torch.float32 and (loaded.downsample, loaded.codebook_size) == (2, 16)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_damaged_image_tokenizer_is_named(image_tokenizer_folder, lumina_folder):
    with pytest.raises(UserError, match="holds a model of type 'chameleon', not an image tokenizer"):
        load_image_tokenizer(lumina_folder)
    with pytest.raises(UserError, match=r"tensor .* has shape"):
        load_image_tokenizer(image_tokenizer_folder, num_embeddings=17)
    path = image_tokenizer_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=f"{path} can't be read as safetensors"):
        load_image_tokenizer(image_tokenizer_folder)
