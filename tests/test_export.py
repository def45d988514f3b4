"""`realsr-r1 export`: published files become a model folder, and weights come out unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from realsr_r1 import export
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Json
from realsr_r1.models import load_image_tokenizer, load_policy
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .conftest import ROOT
from .published import (
    HEADS,
    export_flags,
    lumina_folder,
    text_tokenizer,
    transformers_chameleon,
    write_adapter,
)
from .small import photo

IDS = torch.arange(36).view(2, 18)
LUMINA = ROOT / "configs" / "chain" / "lumina.yaml"


def exported(tmp_path: Path, checkpoint: Path, *flags: str, name: str = "exported") -> Path:
    """Run `export` into a new folder."""
    export.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / name), *flags])
    return tmp_path / name


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a policy's folder, whatever the files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_tensors(folder: Path, published: Path) -> None:
    found, expected = tensors(folder), {name: tensor for name, tensor in tensors(published).items()
                                        if "vqmodel" not in name}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def ours(published_files, tmp_path_factory) -> Path:
    """The published files as a model folder."""
    return exported(tmp_path_factory.mktemp("ours"), published_files / "lumina",
                    *export_flags(published_files))


# Published files -> a model folder

def test_published_files_become_a_folder_that_holds_everything(published_files, ours):
    assert_same_tensors(ours, published_files / "lumina")
    processor, policy = ChainProcessor.from_pretrained(ours), load_policy(ours)
    settings = yaml.safe_load(LUMINA.read_text())
    assert {key: getattr(processor.settings, key)
            for key in settings} == {**settings, "experts": tuple(settings["experts"])}
    assert torch.equal(logits(policy), logits(load_policy(published_files / "lumina")))
    pixels = torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    published = load_image_tokenizer(published_files / "vqgan.ckpt")
    assert torch.equal(processor.image_tokenizer.encode(pixels), published.encode(pixels))
    generation = policy.generation_config
    assert (generation.bos_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 1, 8710)


def test_that_folder_restores_a_photo(ours):
    processor = ChainProcessor.from_pretrained(ours)
    engine = RolloutEngine(load_policy(ours, dtype=torch.float32), processor, RolloutConfig(
        num_generations=1, grammar="chain", image_sizes=[[1, 1]] * 3, max_text_tokens=3, max_new_tokens=400,
        guidance_scale=1.0))
    prompt = processor.prompt_from_span(processor.encode_images([photo("coffee", 32)])[0])
    text, images = processor.decode(engine.generate([prompt]).completion_ids[0])
    assert len(images) == 3 and images[-1].size == (32, 32) and text.endswith("</final_image>")


def test_a_tokenizer_inside_the_published_folder_is_found(published_files, tmp_path):
    shutil.copytree(published_files / "lumina", tmp_path / "lumina")
    shutil.copy(published_files / "tokenizer" / "tokenizer.json", tmp_path / "lumina")
    (tmp_path / "lumina" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
    folder = exported(tmp_path, tmp_path / "lumina", *export_flags(published_files, without="--tokenizer"))
    assert (ChainProcessor.from_pretrained(folder).encode_text("the cat")
            == text_tokenizer(8192)("the cat").input_ids)


@pytest.mark.parametrize("name", ["lumina", "pure", "pure_one_step"])
def test_the_chain_settings_of_published_families_are_settings(name):
    file = ROOT / "configs" / "chain" / f"{name}.yaml"
    settings = ChainSettings.from_dict(read_yaml(file, Json), str(file))
    assert (settings.target_px, settings.grid_unit_px,
            settings.fit) == (512, 32, "crop" if name == "lumina" else "stretch")
    assert settings.experts == ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")
    sampling = RolloutConfig(**settings.sampling)
    assert (sampling.temperature, sampling.guidance_scale, sampling.text_top_k,
            sampling.image_top_k_max) == (0.9, 0.8, 1, 2000)
    assert settings.chain.question.startswith("Perceive") == (name == "pure_one_step")


# What goes in comes out

@pytest.mark.parametrize("changes", [
    dict(), dict(dtype="bfloat16"), dict(dtype="bfloat16", max_shard_size="20KB"),
    dict(swin_norm=True, model_parallel_size=2),
    dict(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}),
    dict(num_key_value_heads=2, model_parallel_size=2),
    dict(apply_lora=False, temperature=0.7, architectures=["ChameleonXLLMXForConditionalGeneration"],
         mask_image_logits=True)],
    ids=str)
def test_an_untouched_published_policy_comes_out_bit_for_bit_with_every_key(changes, tmp_path):
    published = lumina_folder(tmp_path / "published", **changes)
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert_same_tensors(folder, published)
    assert config_of(folder) == config_of(published)
    assert_same_tensors(exported(tmp_path, folder, "--layout", "lumina", name="again"), published)


def test_types_stay_tensor_by_tensor(tmp_path):
    published = lumina_folder(tmp_path / "published", "bfloat16")
    mixed = {name: tensor.float() if "norm" in name else tensor
             for name, tensor in tensors(published).items()}
    save_file(mixed, published / "model.safetensors", {"format": "pt"})
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert_same_tensors(folder, published)
    assert config_of(folder) == config_of(published)


def test_the_published_config_comes_back_after_a_stay_in_a_folder_of_ours(published_files, ours, tmp_path):
    folder = exported(tmp_path, ours, "--layout", "lumina")
    assert_same_tensors(folder, published_files / "lumina")
    assert config_of(folder) == config_of(published_files / "lumina")
    assert (folder / "tokenizer.json").is_file() and not (folder / "image_tokenizer").exists()


@pytest.mark.parametrize("changes", [{}, dict(num_key_value_heads=2)], ids=str)
def test_a_policy_of_transformers_goes_back_to_its_class(changes, tmp_path):
    model = transformers_chameleon(tmp_path / "published", **changes)
    folder = exported(tmp_path, tmp_path / "published", "--layout", "lumina")
    assert_same_tensors(folder, tmp_path / "published")
    # Lumina-mGPT's code takes the rows of the norms from the config
    published = config_of(tmp_path / "published")
    assert config_of(folder) == {**published, "mask_image_logits": False, "model_parallel_size": HEADS}
    again = ChameleonForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again.model(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert torch.equal(logits(load_policy(folder)), logits(load_policy(tmp_path / "published")))


def test_a_policy_that_began_as_ours_gets_the_published_spelling(tiny_model, tmp_path):
    folder = exported(tmp_path, tiny_model, "--layout", "lumina")
    config, own = config_of(folder), config_of(tiny_model)
    assert (config["model_type"], config["rope_theta"], config["rope_scaling"]) == ("chameleon", 10000.0,
                                                                                    None)
    assert config["torch_dtype"] == own["dtype"] and config["mask_image_logits"] is False
    assert config["vocabulary_map"] == ChainProcessor.from_pretrained(tiny_model).tokenizer.get_vocab()
    assert_same_tensors(folder, tiny_model)
    assert torch.equal(logits(load_policy(folder)), logits(load_policy(tiny_model)))


def train_a_step(policy: Any) -> None:
    """One step of AdamW on the loss of a few ids."""
    optimizer = torch.optim.AdamW(policy.train().parameters(), lr=1e-2)
    policy(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("rows", [1, 2])
def test_after_a_step_the_export_has_the_published_shapes_and_the_trained_logits(rows, tmp_path):
    published = lumina_folder(tmp_path / "published", model_parallel_size=rows)
    policy = load_policy(published)
    before = logits(policy)
    train_a_step(policy)
    policy.save_pretrained(tmp_path / "checkpoint")
    folder = exported(tmp_path, tmp_path / "checkpoint", "--layout", "lumina")
    old, new = tensors(published), tensors(folder)
    assert {name: tensor.shape for name, tensor in new.items()} == {name: tensor.shape
                                                                    for name, tensor in old.items()}
    assert all(not torch.equal(new[name], old[name]) for name in old if "_norm.weight" in name)
    assert config_of(folder) == config_of(published)
    torch.testing.assert_close(logits(load_policy(folder)), logits(policy), atol=1e-6, rtol=0)
    assert (logits(policy) - before).abs().max() > 1e-2


def test_a_type_that_is_asked_for_is_written_and_said(tmp_path):
    published = lumina_folder(tmp_path / "published")
    folder = exported(tmp_path, published, "--layout", "lumina", "--dtype", "bfloat16")
    assert {tensor.dtype for tensor in tensors(folder).values()} == {torch.bfloat16}
    assert config_of(folder) == {**config_of(published), "torch_dtype": "bfloat16"}


def test_large_policies_are_written_in_shards(tmp_path, monkeypatch):
    from realsr_r1.models.lumina.policy import LuminaPolicy

    published = lumina_folder(tmp_path / "published")
    save = LuminaPolicy.save_pretrained
    monkeypatch.setattr(LuminaPolicy, "save_pretrained",
                        lambda policy, folder, **rest: save(policy, folder, **{
        **rest, "max_shard_size": "20KB"}))
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same_tensors(folder, published)
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers refuses files that don't say so


# LoRA

@pytest.mark.parametrize("layout", ["ours", "lumina"])
def test_an_adapter_is_merged_into_its_base(layout, tiny_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    model = write_adapter(tmp_path / "adapter", base)
    folder = exported(tmp_path, tmp_path / "adapter", "--layout", layout, "--dtype", "float32")
    torch.testing.assert_close(logits(load_policy(folder)), logits(model), atol=1e-4, rtol=0)
    assert (logits(load_policy(folder)) - logits(load_policy(base, dtype=torch.float32))).abs().max() > 1e-2
    if layout == "ours":
        assert (ChainProcessor.from_pretrained(folder).settings
                == ChainProcessor.from_pretrained(base).settings)


def test_an_adapter_is_merged_in_float32_and_written_as_its_base_is(tmp_path):
    base = lumina_folder(tmp_path / "base", "bfloat16")
    model = write_adapter(tmp_path / "adapter", base)
    merged = model.merge_and_unload().state_dict()
    folder = exported(tmp_path, tmp_path / "adapter", "--layout", "lumina")
    for name, tensor in tensors(folder).items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, merged[name].to(torch.bfloat16))
    assert config_of(folder) == config_of(base)
