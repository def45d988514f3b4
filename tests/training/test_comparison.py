"""--compare_with says what a run does otherwise than a profile, and nothing on the profile itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.errors import UserError
from realsr_r1.core.settings import parse
from realsr_r1.training.comparison import CHAIN, SETTINGS, compared, differences, keep, said
from realsr_r1.training.config import ChainGRPOConfig, ColdStartConfig

ROOT = Path(__file__).resolve().parents[2]
CHAINS = ROOT / "configs" / "chain"
# What a recipe says that changes no step of a run: saving, logging, memory, and what is compared by
# its content.
NOT_COMPARED = {"chain_settings", "per_device_train_batch_size", "gradient_accumulation_steps",
                "per_device_eval_batch_size", "gradient_checkpointing", "dtype", "attn_implementation",
                "sample_steps", "logging_steps", "save_steps", "save_total_limit", "save_only_model",
                "report_to"}


def found(recipe: str, chain: str, tmp_path: Path, *flags: str) -> dict[str, tuple[str, str]]:
    """Setting -> how it is said of a recipe and of the profile."""
    stage, settings = ("sft", ColdStartConfig) if recipe.endswith("sft") else ("grpo", ChainGRPOConfig)
    args, model_args = parse((settings, ModelConfig), [
        "--config", str(ROOT / "configs" / "recipes" / f"{recipe}.yaml"), "--output_dir", str(tmp_path),
        "--dataset_name", "data", *flags], "test")
    rows = differences(args, model_args, ChainSettings.read(CHAINS / f"{chain}.yaml"), "published", stage)
    return {row["setting"]: (row["ours"], row["theirs"]) for row in rows}


def test_nothing_of_the_profile_differs_from_it(tmp_path):
    assert found("published_grpo", "published", tmp_path) == {}
    assert found("published_sft", "published", tmp_path) == {}


def test_pures_grpo_differs_in_each_thing_that_is_ours(tmp_path):
    rows = found("pure_7b_grpo", "pure", tmp_path)
    assert set(rows) == {"reward_funcs", "format_rule", "tag_rule", "image_rule", "grammar", "text_top_k",
                         "train_forced_tokens", "fit", "pixels"}
    assert rows["reward_funcs"] == ("format, degradation, understanding, generation",
                                    "format, understanding, generation")
    assert "whole word" in rows["tag_rule"][0] and "letters" in rows["tag_rule"][1]
    assert rows["text_top_k"] == ("10", "1")
    assert rows["pixels"] == ("are rounded to 8 bits", "are cut to 8 bits")
    assert found("pure_7b_grpo", "lumina", tmp_path)["fit"] == ("at its centre", "at a place drawn at random")


def test_pures_cold_start_differs_in_its_own_settings(tmp_path):
    rows = found("pure_7b_sft", "pure", tmp_path)
    assert rows["learning_rate"] == ("0.0004", "2e-05") and rows["z_loss"] == ("0", "1e-05")
    assert rows["samples_a_step"] == ("8", "2") and rows["warmup_steps"] == ("0.25", "0.005")
    assert set(rows) == {"learning_rate", "z_loss", "samples_a_step", "warmup_steps", "lr_scheduler_type",
                         "zero_image_head", "train_sampling_strategy", "fit", "pixels"}


@pytest.mark.parametrize("flags, setting", [
    (["--beta", "0.04"], "beta"), (["--use_peft", "true"], "use_peft"), (["--num_iterations", "2"],
                                                                          "num_iterations"),
    (["--per_device_train_batch_size", "2"], "samples_a_step"), (["--experts", "piqe"], "experts"),
    (["--gradient_accumulation_steps", "3", "--loss_batch_size", "1"], "samples_a_step"),
    (["--reward_weights", "1", "1", "0.5"], "reward_weights"), (["--max_steps", "7"], "max_steps")])
def test_a_flag_that_changes_the_profile_is_named_and_how_batches_are_split_is_not(flags, setting, tmp_path):
    assert list(found("published_grpo", "published", tmp_path, *flags)) == [setting]
    assert found("published_grpo", "published", tmp_path, "--loss_batch_size", "1") == {}


@pytest.mark.parametrize("recipe", ["published_grpo", "published_sft"])
def test_every_setting_of_the_profile_is_compared(recipe):
    values = yaml.safe_load((ROOT / "configs" / "recipes" / f"{recipe}.yaml").read_text())
    assert set(values) - set(SETTINGS) <= NOT_COMPARED
    chain = yaml.safe_load((CHAINS / "published.yaml").read_text())
    assert set(chain) - set(CHAIN) == {"experts", "sampling"}  # of the run's own settings, and of restore


def test_the_table_is_printed_and_kept_and_an_old_one_is_taken_away(tmp_path, capsys):
    args, model_args = parse((ChainGRPOConfig, ModelConfig), [
        "--config", str(ROOT / "configs" / "recipes" / "pure_7b_grpo.yaml"), "--output_dir", str(tmp_path),
        "--dataset_name", "data", "--compare_with", "published"], "test")
    table = compared(args, model_args, ChainSettings(), "grpo")
    lines = capsys.readouterr().out.splitlines()
    assert lines == said(table) and lines[0] == "9 settings differ from published:"
    assert "  likeliest tokens that text is drawn from: 10 (published: 1)" in lines
    keep(table, tmp_path)
    assert json.loads((tmp_path / "differences.json").read_text()) == table
    keep(None, tmp_path)
    assert not (tmp_path / "differences.json").exists()
    assert said({"profile": "published", "rows": []}) == ["no setting differs from published"]


def test_what_the_cold_start_did_otherwise_is_told_of_the_run_that_goes_on_from_it(tmp_path):
    (tmp_path / "sft").mkdir()
    for profile, told in (("published", ["in the run before: weight of the z-loss"]), ("tiny", [])):
        keep({"profile": profile, "rows": [{"setting": "z_loss", "what": "weight of the z-loss", "ours": "0",
                                            "theirs": "1e-05"}]}, tmp_path / "sft")
        args, model_args = parse((ChainGRPOConfig, ModelConfig), [
            "--config", str(ROOT / "configs" / "recipes" / "published_grpo.yaml"), "--output_dir",
            str(tmp_path / "run"), "--dataset_name", "data", "--compare_with", "published",
            "--model_name_or_path", str(tmp_path / "sft")], "test")
        table = compared(args, model_args, ChainSettings.read(CHAINS / "published.yaml"), "grpo")
        assert [row["what"] for row in table["rows"]] == told


def test_a_profile_that_isnt_there_is_refused_with_those_that_are(tmp_path):
    args, model_args = parse((ChainGRPOConfig, ModelConfig), [
        "--output_dir", str(tmp_path), "--dataset_name", "data", "--compare_with", "papers"], "test")
    with pytest.raises(UserError, match="--compare_with papers: .* no recipe papers_grpo.yaml.*published"):
        compared(args, model_args, ChainSettings(), "grpo")
