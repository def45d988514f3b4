"""--compare_with says what a run does otherwise than a profile, and nothing on the profile itself."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from trl import ModelConfig

from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.errors import UserError
from realsr_r1.core.settings import parse
from realsr_r1.training.comparison import CHAIN, SETTINGS, compared, differences, keep, said
from realsr_r1.training.config import ChainGRPOConfig, ColdStartConfig
from realsr_r1.training.not_compared import NOT_COMPARED

ROOT = Path(__file__).resolve().parents[2]
CHAINS = ROOT / "configs" / "chain"


def found(recipe: str, chain: str, tmp_path: Path, *flags: str) -> dict[str, tuple[str, str]]:
    """Setting -> how it is said of a recipe and of the profile. `chain`: see configs/chain, or a path."""
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


def test_every_setting_is_compared_or_on_the_list_with_a_reason():
    settings = {item.name for each in (ChainGRPOConfig, ColdStartConfig, ModelConfig, ChainSettings)
                for item in fields(each)}
    assert set(NOT_COMPARED) <= settings and all(NOT_COMPARED.values())
    made = {"samples_a_step", "steps_a_rollout", "sections"}  # of several settings
    assert {*SETTINGS, *CHAIN} - settings == made and not {*SETTINGS, *CHAIN} & NOT_COMPARED.keys()


@pytest.mark.parametrize("recipe, flags, rows", [
    ("grpo", ["--adam_epsilon", "1e-6"], {"adam_epsilon": ("1e-06", "1e-08")}),
    ("grpo", ["--delta", "4", "--epsilon", "0.1"], {"delta": ("4", "none"), "epsilon": ("0.1", "0.2")}),
    ("grpo", ["--shuffle_dataset", "false"], {"shuffle_dataset": ("false", "true")}),
    ("grpo", ["--seed", "3", "--max_samples", "9"], {"seed": ("3", "42"), "max_samples": ("9", "none")}),
    ("grpo", ["--dtype", "float32"], {"dtype": ("float32", "bfloat16")}),
    ("grpo", ["--stop_if", "format<0.5"], {"stop_if": ("format<0.5", "none")}),
    ("grpo", ["--batch_unit", "completions", "--per_device_train_batch_size", "5", "--steps_per_generation",
              "2"], {"steps_a_rollout": ("2", "1")}),
    ("grpo", ["--save_steps", "9", "--run_name", "a", "--eval_strategy", "steps", "--deepspeed", "zero3",
              "--attn_implementation", "eager", "--dataloader_num_workers", "2"], {}),
    ("sft", ["--neftune_noise_alpha", "5"], {"neftune_noise_alpha": ("5", "none")}),
    ("sft", ["--lr_scheduler_kwargs", '{"num_cycles": 2}'], {
        "lr_scheduler_kwargs": ("{'num_cycles': 2}", "none")}),
])
def test_a_setting_without_words_is_said_by_its_flag(recipe, flags, rows, tmp_path):
    assert found(f"published_{recipe}", "published", tmp_path, *flags) == rows


def test_the_chains_sizes_and_shares_are_compared(tmp_path):
    settings = ChainSettings.read(CHAINS / "published.yaml")
    image = settings.chain.sections[2]
    chain = replace(settings.chain, sections=(*settings.chain.sections[:2], replace(image, share=0.5),
                                              *settings.chain.sections[3:]))
    (tmp_path / "chain.yaml").write_text(json.dumps(replace(settings, target_px=48, chain=chain).to_dict()))
    rows = found("published_grpo", str(tmp_path / "chain"), tmp_path)
    assert set(rows) == {"target_px", "sections"} and rows["target_px"] == ("48", "512")
    assert "rough_image (0.5)" in rows["sections"][0] and "rough_image (0.25)" in rows["sections"][1]


def test_where_a_file_of_synonyms_lies_is_not_told(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    rows = found("published_grpo", "published", tmp_path, "--tag_synonyms", str(tmp_path / "mine.json"))
    assert rows == {"tag_synonyms": ("mine.json", "none")}


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
        checkpoint = tmp_path / "sft" / "checkpoint-4"
        checkpoint.mkdir(exist_ok=True)
        for name in (checkpoint / "trainer_state.json", tmp_path / "sft" / "settings.json"):
            name.write_text("{}")
        model_args.model_name_or_path = str(checkpoint)
        table = compared(args, model_args, ChainSettings.read(CHAINS / "published.yaml"), "grpo")
        assert [row["what"] for row in table["rows"]] == told


def test_a_profile_that_isnt_there_is_refused_with_those_that_are(tmp_path):
    args, model_args = parse((ChainGRPOConfig, ModelConfig), [
        "--output_dir", str(tmp_path), "--dataset_name", "data", "--compare_with", "papers"], "test")
    with pytest.raises(UserError, match="--compare_with papers: .* no recipe papers_grpo.yaml.*published"):
        compared(args, model_args, ChainSettings(), "grpo")
