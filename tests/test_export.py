"""`realsr-r1 export`: published files become a model folder, weights come out as they went in, and bad files are one line."""

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
from realsr_r1.errors import run
from realsr_r1.models import load_image_tokenizer, load_policy
from realsr_r1.processing import ChainProcessor, ChainSettings
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .conftest import ROOT
from .published import (
    HEADS,
    LUMINA_VOCABULARY,
    image_tokenizer,
    lumina_folder,
    published_state,
    text_tokenizer,
    transformers_chameleon,
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
    found, expected = tensors(folder), {name: tensor for name, tensor in tensors(published).items() if "vqmodel" not in name}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Published files: `lumina` (policy of the real vocabulary), `tokenizer`, `vqgan.ckpt` with its yaml."""
    folder = tmp_path_factory.mktemp("files")
    lumina_folder(folder / "lumina", "bfloat16", vocab_size=LUMINA_VOCABULARY, num_hidden_layers=1, model_parallel_size=2,
                  max_position_embeddings=2048)
    text_tokenizer(8192).save_pretrained(folder / "tokenizer")
    model = image_tokenizer("chameleon")
    torch.save({"state_dict": published_state(model, "chameleon")}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": {"embed_dim": 8, "n_embed": 8192, "ddconfig": dict(
        ch=32, ch_mult=[1] * 5, num_res_blocks=1, z_channels=32, resolution=64, attn_resolutions=[], in_channels=3, out_ch=3)}}}))
    return folder


def flags_of(files: Path, without: str = "") -> list[str]:
    flags = {"--image_tokenizer": files / "vqgan.ckpt", "--tokenizer": files / "tokenizer", "--chain_settings": LUMINA}
    return [str(word) for flag, value in flags.items() if flag != without for word in (flag, value)]


@pytest.fixture(scope="module")
def ours(files, tmp_path_factory) -> Path:
    """The published files as a model folder."""
    return exported(tmp_path_factory.mktemp("ours"), files / "lumina", *flags_of(files))


# Published files -> a model folder

def test_published_files_become_a_folder_that_holds_everything(files, ours):
    assert_same_tensors(ours, files / "lumina")
    processor, policy = ChainProcessor.from_pretrained(ours), load_policy(ours)
    settings = yaml.safe_load(LUMINA.read_text())
    assert {key: getattr(processor.settings, key) for key in settings} == {**settings, "experts": tuple(settings["experts"])}
    assert torch.equal(logits(policy), logits(load_policy(files / "lumina")))
    pixels = torch.rand(1, 3, 64, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(processor.image_tokenizer.encode(pixels), load_image_tokenizer(files / "vqgan.ckpt").encode(pixels))
    generation = policy.generation_config
    assert (generation.bos_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 1, 8710)


def test_that_folder_restores_a_photo(ours):
    processor = ChainProcessor.from_pretrained(ours)
    engine = RolloutEngine(load_policy(ours, dtype=torch.float32), processor, RolloutConfig(
        num_generations=1, grammar="chain", image_sizes=[[1, 1]] * 3, max_text_tokens=3, max_new_tokens=400, guidance_scale=1.0))
    prompt = processor.prompt_from_span(processor.encode_images([photo("coffee", 32)])[0])
    text, images = processor.decode(engine.generate([prompt]).completion_ids[0])
    assert len(images) == 3 and images[-1].size == (32, 32) and text.endswith("</final_image>")


def test_a_tokenizer_inside_the_published_folder_is_found(files, tmp_path):
    shutil.copytree(files / "lumina", tmp_path / "lumina")
    shutil.copy(files / "tokenizer" / "tokenizer.json", tmp_path / "lumina")
    (tmp_path / "lumina" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
    folder = exported(tmp_path, tmp_path / "lumina", *flags_of(files, without="--tokenizer"))
    assert ChainProcessor.from_pretrained(folder).encode_text("the cat") == text_tokenizer(8192)("the cat").input_ids


@pytest.mark.parametrize("name", ["lumina", "pure", "pure_one_step"])
def test_the_chain_settings_of_published_families_are_settings(name):
    file = ROOT / "configs" / "chain" / f"{name}.yaml"
    settings = ChainSettings.from_dict(export.read_settings(file), str(file))
    assert (settings.target_px, settings.grid_unit_px, settings.fit) == (512, 32, "crop" if name == "lumina" else "stretch")
    assert settings.experts == ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")
    sampling = RolloutConfig(**settings.sampling)
    assert (sampling.temperature, sampling.guidance_scale, sampling.text_top_k, sampling.image_top_k_max) == (0.9, 0.8, 1, 2000)
    assert settings.problem.startswith("Perceive") == (name == "pure_one_step")


# What goes in comes out

@pytest.mark.parametrize("changes", [
    dict(), dict(dtype="bfloat16"), dict(dtype="bfloat16", max_shard_size="20KB"), dict(swin_norm=True, model_parallel_size=2),
    dict(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}), dict(num_key_value_heads=2, model_parallel_size=2),
    dict(apply_lora=False, temperature=0.7, architectures=["ChameleonXLLMXForConditionalGeneration"], mask_image_logits=True)],
    ids=str)
def test_an_untouched_published_policy_comes_out_bit_for_bit_with_every_key(changes, tmp_path):
    published = lumina_folder(tmp_path / "published", **changes)
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert_same_tensors(folder, published)
    assert config_of(folder) == config_of(published)
    assert_same_tensors(exported(tmp_path, folder, "--layout", "lumina", name="again"), published)


def test_types_stay_tensor_by_tensor(tmp_path):
    published = lumina_folder(tmp_path / "published", "bfloat16")
    mixed = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors(published).items()}
    save_file(mixed, published / "model.safetensors", {"format": "pt"})
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert_same_tensors(folder, published)
    assert config_of(folder) == config_of(published)


def test_the_published_config_comes_back_after_a_stay_in_a_folder_of_ours(files, ours, tmp_path):
    folder = exported(tmp_path, ours, "--layout", "lumina")
    assert_same_tensors(folder, files / "lumina")
    assert config_of(folder) == config_of(files / "lumina")
    assert (folder / "tokenizer.json").is_file() and not (folder / "image_tokenizer").exists()


@pytest.mark.parametrize("changes", [{}, dict(num_key_value_heads=2)], ids=str)
def test_a_policy_of_transformers_goes_back_to_its_class(changes, tmp_path):
    model = transformers_chameleon(tmp_path / "published", **changes)
    folder = exported(tmp_path, tmp_path / "published", "--layout", "lumina")
    assert_same_tensors(folder, tmp_path / "published")
    published = config_of(tmp_path / "published")  # Lumina-mGPT's code takes the rows of the norms from the config
    assert config_of(folder) == {**published, "mask_image_logits": False, "model_parallel_size": HEADS}
    again = ChameleonForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again.model(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert torch.equal(logits(load_policy(folder)), logits(load_policy(tmp_path / "published")))


def test_a_policy_that_began_as_ours_gets_the_published_spelling(tiny_model, tmp_path):
    folder = exported(tmp_path, tiny_model, "--layout", "lumina")
    config, own = config_of(folder), config_of(tiny_model)
    assert (config["model_type"], config["rope_theta"], config["rope_scaling"]) == ("chameleon", 10000.0, None)
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
    assert {name: tensor.shape for name, tensor in new.items()} == {name: tensor.shape for name, tensor in old.items()}
    assert all(not torch.equal(new[name], old[name]) for name in old if "_norm.weight" in name)
    assert config_of(folder) == config_of(published)
    torch.testing.assert_close(logits(load_policy(folder)), logits(policy), atol=1e-6, rtol=0)
    assert (logits(policy) - before).abs().max() > 1e-2


def test_a_type_that_is_asked_for_is_written_and_said(tmp_path):
    published = lumina_folder(tmp_path / "published")
    folder = exported(tmp_path, published, "--layout", "lumina", "--dtype", "bfloat16")
    assert {tensor.dtype for tensor in tensors(folder).values()} == {torch.bfloat16}
    assert config_of(folder) == {**config_of(published), "torch_dtype": "bfloat16"}


# LoRA

def adapter(folder: Path, base: Path) -> Any:
    """A LoRA adapter of random numbers on the policy in `base`, saved to `folder`; returns the model it belongs to."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = get_peft_model(load_policy(base, dtype=torch.float32), LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("layout", ["ours", "lumina"])
def test_an_adapter_is_merged_into_its_base(layout, tiny_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    model = adapter(tmp_path / "adapter", base)
    folder = exported(tmp_path, tmp_path / "adapter", "--layout", layout, "--dtype", "float32")
    torch.testing.assert_close(logits(load_policy(folder)), logits(model), atol=1e-4, rtol=0)
    assert (logits(load_policy(folder)) - logits(load_policy(base, dtype=torch.float32))).abs().max() > 1e-2
    if layout == "ours":
        assert ChainProcessor.from_pretrained(folder).settings == ChainProcessor.from_pretrained(base).settings


def test_an_adapter_is_merged_in_float32_and_written_as_its_base_is(tmp_path):
    base = lumina_folder(tmp_path / "base", "bfloat16")
    model = adapter(tmp_path / "adapter", base)
    merged = model.merge_and_unload().state_dict()
    folder = exported(tmp_path, tmp_path / "adapter", "--layout", "lumina")
    for name, tensor in tensors(folder).items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, merged[name].to(torch.bfloat16))
    assert config_of(folder) == config_of(base)


# Bad input

def complaint(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, check that it ends with one line and exit code 2, and return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run(export.main, argv)
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("realsr-r1: error: ")
    return lines[0]


@pytest.fixture
def bad(files, tmp_path, capsys):
    """Export with one of the published files spoilt; returns the complaint."""
    copy = tmp_path / "files"
    shutil.copytree(files, copy)

    def spoil_and_export(spoil, without: str = "") -> str:
        spoil(copy)
        argv = ["--checkpoint", str(copy / "lumina"), "--output", str(tmp_path / "output")]
        line = complaint([*argv, *flags_of(copy, without)], capsys)
        assert not (tmp_path / "output").exists()
        return line

    return spoil_and_export


def test_truncated_weights_are_refused(bad):
    def spoil(files: Path) -> None:
        path = files / "lumina" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    assert "lumina/model.safetensors can't be read as safetensors" in bad(spoil)


def test_a_pickle_that_runs_code_is_refused_unrun(bad, tmp_path):
    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / "was-here"), "w")

    line = bad(lambda files: torch.save({"state_dict": Harmful()}, files / "vqgan.ckpt"))
    assert "vqgan.ckpt is refused" in line
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("name", ["<s>", "<racm3:break>"])  # all names: test_published_vocabularies
def test_a_tokenizer_without_a_special_name_is_refused(bad, name):
    line = bad(lambda files: text_tokenizer(8192, without=name).save_pretrained(files / "tokenizer"))
    assert f"the text tokenizer has no token named {name}" in line


@pytest.mark.parametrize("codes, complaint_", [(8191, "more image codes than the image tokenizer's 8191"),
                                               (8193, "image tokenizer has 8,193 codes and the text tokenizer names 8,192")])
def test_a_codebook_that_does_not_fit_is_refused(bad, codes, complaint_):
    def spoil(files: Path) -> None:
        state = published_state(image_tokenizer("chameleon", num_embeddings=codes), "chameleon")
        torch.save({"state_dict": state}, files / "vqgan.ckpt")
        (files / "vqgan.yaml").unlink()

    assert complaint_ in bad(spoil)


def test_another_architecture_is_refused(bad):
    def spoil(files: Path) -> None:
        config = config_of(files / "lumina")
        (files / "lumina" / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))

    assert "describes a model of type 'llama'" in bad(spoil)


def test_a_policy_that_is_smaller_than_its_vocabulary_is_refused(bad):
    def spoil(files: Path) -> None:
        shutil.rmtree(files / "lumina")
        lumina_folder(files / "lumina", vocab_size=9000)

    assert "a vocabulary of 9,000 and its text tokenizer one of 65,536" in bad(spoil)


@pytest.mark.parametrize("flag, message", [
    ("--tokenizer", "has no text tokenizer (tokenizer.json): name the file or its folder with --tokenizer"),
    ("--image_tokenizer", "has no image_tokenizer: name one with --image_tokenizer (vqgan.ckpt for Lumina-mGPT"),
    ("--chain_settings", "has no chain_settings.json: name one with --chain_settings (configs/chain")])
def test_what_a_published_folder_lacks_is_named_with_its_flag(bad, flag, message):
    assert message in bad(lambda files: None, without=flag)


@pytest.mark.parametrize("flag", ["--tokenizer", "--image_tokenizer", "--chain_settings", "--checkpoint"])
def test_a_file_that_is_not_there_is_named(files, tmp_path, capsys, flag):
    argv = ["--checkpoint", str(files / "lumina"), "--output", str(tmp_path / "out"), *flags_of(files)]
    line = complaint([*argv, flag, str(tmp_path / "none")], capsys)
    assert str(tmp_path / "none") in line and flag in line


@pytest.mark.parametrize("text, message", [
    ("target_px: [1", "not valid YAML"), ("fit: squeeze", "fit is 'squeeze'"), ("", "key: value"),
    ("sampling: {heat: 1}", "unknown sampling setting 'heat'"), ("sampling: {temperature: 0}", "temperature is 0")])
def test_bad_chain_settings_are_named(files, tmp_path, capsys, text, message):
    (tmp_path / "chain.yaml").write_text(text)
    line = complaint(["--checkpoint", str(files / "lumina"), "--output", str(tmp_path / "out"), *flags_of(files),
                      "--chain_settings", str(tmp_path / "chain.yaml")], capsys)
    assert f"{tmp_path / 'chain.yaml'}" in line and message in line


def test_an_adapter_whose_base_is_gone_or_that_is_cut_is_refused(tmp_path, capsys):
    base = lumina_folder(tmp_path / "base")
    adapter(tmp_path / "adapter", base)
    argv = ["--checkpoint", str(tmp_path / "adapter"), "--output", str(tmp_path / "out"), "--layout", "lumina"]
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "adapter_model.safetensors can't be read" in complaint(argv, capsys)
    base.rename(tmp_path / "moved")
    assert f"adapter_config.json says that the adapter belongs to the model '{base}'" in complaint(argv, capsys)


def test_large_policies_are_written_in_shards(tmp_path, monkeypatch):
    from realsr_r1.models.policy import LuminaPolicy

    published = lumina_folder(tmp_path / "published")
    save = LuminaPolicy.save_pretrained
    monkeypatch.setattr(LuminaPolicy, "save_pretrained", lambda policy, folder, **rest: save(policy, folder, **{
        **rest, "max_shard_size": "20KB"}))
    folder = exported(tmp_path, published, "--layout", "lumina")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert_same_tensors(folder, published)
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}  # older transformers refuses files that don't say so
