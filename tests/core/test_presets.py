"""What comes with the package is found by name, and by its path in the repository, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from realsr_r1.cli import dispatch
from realsr_r1.core.presets import PLACES, PRESETS, find_preset, with_presets

NAMES = [("--config", "tiny_grpo"), ("--config", "configs/recipes/pure_7b_sft.yaml"), ("--recipe", "tiny_grpo"),
         ("--chain_settings", "tiny"), ("--degradation", "real_esrgan"), ("--annotation", "default"),
         ("--suite", "realsr"), ("--suite", "configs/suites/ost_val.yaml"),
         ("--deepspeed", "zero3"), ("--deepspeed", "local_scripts/zero2.json"), ("--model", "tiny"),
         ("--model", "assets/tiny"), ("--model_name_or_path", "pure_7b"), ("--checkpoint", "tiny")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("flag, name", NAMES)
def test_names_and_paths_of_the_repository_are_found_from_anywhere(flag, name):
    for argv in ([flag, name], [f"{flag}={name}"]):
        first, path = with_presets(argv)
        assert first == flag and Path(path).is_absolute() and Path(path).exists()


def test_every_flag_with_named_files_is_covered_here():
    assert {flag for flag, _ in NAMES} == set(PLACES)


def test_the_callers_own_file_counts_first_and_what_is_not_there_stays(tmp_path):
    (tmp_path / "tiny").mkdir()
    assert find_preset("--model", "tiny") == "tiny"
    assert find_preset("--model", "no_such_model") == "no_such_model"
    assert find_preset("--config", "tiny") == "tiny"  # a chain's name isn't a recipe's


@pytest.mark.parametrize("recipe", [["--config", "pure_one_step_grpo"], ["--config=pure_one_step_grpo"]])
def test_a_plan_is_made_outside_the_checkout(recipe, capsys):
    assert not dispatch(["plan", *recipe, "--model_name_or_path", "pure_7b", "--gpu", "h100-80gb", "--gpus",
                         "6"])
    assert "GiB" in capsys.readouterr().out


def test_a_wheel_holds_what_the_links_point_to():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "presets/**/*" in project["tool"]["setuptools"]["package-data"]["realsr_r1"]
    assert all(path.resolve().exists() for path in PRESETS.iterdir())
