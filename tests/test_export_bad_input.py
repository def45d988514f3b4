"""`realsr-r1 export` refuses bad files with one line that names the file, and leaves nothing
behind.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from realsr_r1 import export
from realsr_r1.core.errors import run

from .published import (
    export_flags,
    image_tokenizer,
    lumina_folder,
    published_state,
    text_tokenizer,
    write_adapter,
)


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
def bad(published_files, tmp_path, capsys):
    """Export with one of the published files spoilt; returns the complaint."""
    copy = tmp_path / "files"
    shutil.copytree(published_files, copy)

    def spoil_and_export(spoil, without: str = "") -> str:
        spoil(copy)
        argv = ["--checkpoint", str(copy / "lumina"), "--output", str(tmp_path / "output")]
        line = complaint([*argv, *export_flags(copy, without)], capsys)
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
                                               (8193, "image tokenizer has 8,193 codes and the text "
                                                      "tokenizer names 8,192")])
def test_a_codebook_that_does_not_fit_is_refused(bad, codes, complaint_):
    def spoil(files: Path) -> None:
        state = published_state(image_tokenizer("chameleon", num_embeddings=codes), "chameleon")
        torch.save({"state_dict": state}, files / "vqgan.ckpt")
        (files / "vqgan.yaml").unlink()

    assert complaint_ in bad(spoil)


def test_another_architecture_is_refused(bad):
    def spoil(files: Path) -> None:
        path = files / "lumina" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))

    assert "describes a model of type 'llama'" in bad(spoil)


def test_a_policy_that_is_smaller_than_its_vocabulary_is_refused(bad):
    def spoil(files: Path) -> None:
        shutil.rmtree(files / "lumina")
        lumina_folder(files / "lumina", vocab_size=9000)

    assert "a vocabulary of 9,000 and its text tokenizer one of 65,536" in bad(spoil)


@pytest.mark.parametrize("flag, message", [
    ("--tokenizer", "has no text tokenizer (tokenizer.json): name the file or its folder with --tokenizer"),
    ("--image_tokenizer", "has no image_tokenizer: name one with --image_tokenizer (vqgan.ckpt for "
                          "Lumina-mGPT"),
    ("--chain_settings", "has no chain_settings.json: name one with --chain_settings (configs/chain")])
def test_what_a_published_folder_lacks_is_named_with_its_flag(bad, flag, message):
    assert message in bad(lambda files: None, without=flag)


@pytest.mark.parametrize("flag", ["--tokenizer", "--image_tokenizer", "--chain_settings", "--checkpoint"])
def test_a_file_that_is_not_there_is_named(published_files, tmp_path, capsys, flag):
    argv = ["--checkpoint", str(published_files / "lumina"), "--output", str(tmp_path / "out"),
            *export_flags(published_files)]
    line = complaint([*argv, flag, str(tmp_path / "none")], capsys)
    assert str(tmp_path / "none") in line and flag in line


@pytest.mark.parametrize("text, message", [
    ("target_px: [1", "not valid YAML"), ("fit: squeeze", "fit is 'squeeze'"), ("", "key: value"),
    ("sampling: {heat: 1}", "unknown key 'heat'"),
    ("sampling: {temperature: 0}", "temperature is 0")])
def test_bad_chain_settings_are_named(published_files, tmp_path, capsys, text, message):
    (tmp_path / "chain.yaml").write_text(text)
    argv = ["--checkpoint", str(published_files / "lumina"), "--output", str(tmp_path / "out"),
            *export_flags(published_files)]
    line = complaint([*argv, "--chain_settings", str(tmp_path / "chain.yaml")], capsys)
    assert f"{tmp_path / 'chain.yaml'}" in line and message in line


def test_an_adapter_whose_base_is_gone_or_that_is_cut_is_refused(tmp_path, capsys):
    base = lumina_folder(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base)
    argv = ["--checkpoint", str(tmp_path / "adapter"), "--output", str(tmp_path / "out"), "--layout",
            "lumina"]
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "adapter_model.safetensors can't be read" in complaint(argv, capsys)
    base.rename(tmp_path / "moved")
    assert f"adapter_config.json says that the adapter belongs to the model '{base}'" in complaint(argv,
                                                                                                   capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_diverged_run_are_refused_with_the_tensor(tiny_model, tmp_path, capsys, value):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][5, 7] = value
    file.unlink()
    save_file(tensors, file)
    line = complaint(["--checkpoint", str(folder), "--output", str(tmp_path / "output")], capsys)
    assert "model.layers.2.mlp.up_proj.weight holds values that are no finite numbers" in line
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("file", "key", "value", "said"), [
    ("config.json", "num_hidden_layers", 10**6, "1000000 layers"),
    ("config.json", "vocab_size", 10**12, "vocabulary"), ("config.json", "model_type", [], "model_type is"),
    ("chain_settings.json", "target_px", 10**5, "target_px is 100000; it must be at most 4096"),
    ("chain_settings.json", "sampling", {"temperature": "hot"}, "sampling: temperature is 'hot'"),
    ("chain_settings.json", "problem", "\ud800", "problem is"),
    ("image_tokenizer/config.json", "channel_multiplier", [1] * 99, "channel_multiplier"),
    ("image_tokenizer/config.json", "num_res_blocks", 10**6, "num_res_blocks"),
    ("generation_config.json", None, None, "is not valid JSON"),
    ("generation_config.json", "pad_token_id", "$a$", "generation_config.json can't be used"),
    ("generation_config.json", "output_hidden_states", True, "generation_config.json can't be used")])
def test_sizes_that_no_model_has_are_refused_at_once(file, key, value, said, tiny_model, tmp_path, capsys):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}) if key else "")
    assert said in complaint(["--checkpoint", str(folder), "--output", str(tmp_path / "output")], capsys)
