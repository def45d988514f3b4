"""What `realsr-r1 sft` starts from: a policy, the tokenizers of a new one, or a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy
from realsr_r1.sft import SHAPE, check_start


def start(folder: Path, use_peft: bool = False) -> None:
    args = SimpleNamespace(process_index=0, zero_image_head=False, **dict.fromkeys(SHAPE, 64))
    check_start(args, SimpleNamespace(model_name_or_path=str(folder), use_peft=use_peft))


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def adapter(folder: Path) -> None:
    """As peft leaves it beside our tokenizers."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    (folder / "adapter_model.safetensors").touch()


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}))


def unlinked(*names: str, then: str | None = None, data: bytes = b"x"):
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        if then:
            (folder / then).parent.mkdir(exist_ok=True)
            (folder / then).write_bytes(data)
    return damage


BROKEN = {
    "no config": (unlinked("config.json"), "no config.json"),
    "no weights": (unlinked("model.safetensors"), "has no model.safetensors"),
    "an adapter": (adapter, "holds a LoRA adapter without its policy"),
    "an adapter's weights alone": (unlinked("config.json", "model.safetensors", then="adapter_model.safetensors"),
                                   "no config.json"),
    "an adapter in a model": (unlinked(then="adapter_config.json", data=b"{}"), "which counts isn't said"),
    "a pickle": (unlinked("model.safetensors", then="pytorch_model.bin"), "pytorch_model.bin, which it has"),
    "a pickle without config": (unlinked("config.json", "model.safetensors", then="consolidated.00.pth"),
                                "no config.json"),
    "quantised for llama.cpp": (unlinked("config.json", "model.safetensors", then="policy.gguf"), "policy.gguf"),
    "a DeepSpeed checkpoint": (unlinked("config.json", "model.safetensors",
                                        then="global_step2/zero_pp_rank_0_mp_rank_00_model_states.pt"),
                               "global_step2"),
    "a missing shard": (sharded, "model-00002-of-00002.safetensors"),
    "a pointer of git lfs": (unlinked(then="model.safetensors", data=b"version https://git-lfs.github.com/spec/v1\n"),
                             "can't be read as safetensors"),
    "a broken config": (unlinked(then="config.json", data=b"{"), "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_with_weights_or_parts_of_them_never_gives_a_random_policy(case, folder):
    damage, words = BROKEN[case]
    damage(folder)
    with pytest.raises(UserError) as refused:
        start(folder)
    assert words in str(refused.value) and str(folder) in str(refused.value)


def test_every_command_refuses_an_adapters_folder_in_the_same_line(folder):
    adapter(folder)
    lines = set()
    for read in (start, load_policy):
        with pytest.raises(UserError) as refused:
            read(folder)
        lines.add(str(refused.value))
    assert len(lines) == 1


@pytest.mark.parametrize("beside", [[], ["training_state.pt", "training_args.bin"]])
def test_only_tokenizers_give_a_new_policy_and_the_first_line_says_so(folder, beside, capsys):
    unlinked("config.json", "model.safetensors")(folder)
    for name in beside:
        (folder / name).touch()
    start(folder)
    assert "holds no weights: this run trains a new policy from random ones" in capsys.readouterr().out
    with pytest.raises(UserError, match="--use_peft trains adapters"):
        start(folder, use_peft=True)


def test_a_whole_model_folder_starts_without_a_word(folder, capsys):
    start(folder)
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match="no such model folder"):
        start(folder / "absent")
