"""The published launch line with the profile, on a list of its own form, and the report about it.

One process, without DeepSpeed, and with short completions; test_seed_command_line.py has the rest.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from realsr_r1 import create_json, grpo, report
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.core.run_files import DIFFERENCES_FILE

from ..small import exit_code
from .policies import steered_policy

QUESTION = ("Perceive it. <|image|> Write <degradation> ... </degradation> and so on to <final_image> ... "
            "</final_image>")


@pytest.fixture(scope="module")
def run(dataset, processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    records = [{"image_path": str(dataset / record["image_path"]), "problem": QUESTION,
                "tag": [", ".join(record["tag"]) + "\n"]}
               for record in json.loads((dataset / "train.json").read_text())[:2]]
    (folder / "list.json").write_text(json.dumps(records))
    assert not create_json.main(["--json", str(folder / "list.json"), "--images", str(dataset), "--output",
                                 str(folder / "dataset")])
    # It writes images and no chain. Each of their two sizes is one grid unit, or none, about as often.
    layout = processor.layout
    model = steered_policy(folder / "model", processor, {layout.image_start: 9.0, layout.size_ids[1]: 8.9})
    flags = ["--output_dir", str(folder / "run"), "--model_name_or_path", str(model), "--dataset_name",
             str(folder / "dataset"), "--max_prompt_length", "5000", "--max_completion_length", "60",
             "--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1", "--logging_steps",
             "1", "--bf16", "--report_to", "none", "--gradient_checkpointing", "true",
             "--attn_implementation", "flash_attention_2", "--max_pixels", "401408", "--num_train_epochs",
             "1", "--run_name", "profile", "--save_steps", "1", "--learning_rate=2e-06", "--save_only_model",
             "true", "--num_generations", "5"]
    more = ["--config", "published_grpo", "--compare_with", "published", "--experts", "piqe", "--dtype",
            "float32"]
    assert exit_code(grpo.main, [*more, *flags]) == 0
    return folder / "run"


def test_images_of_completions_that_are_no_chains_are_scored(run):
    lines = [json.loads(line) for line in (run / "log_history.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["rewards/format_reward/mean"] == 0.0 < line["rewards/generation_reward/mean"]
        assert "rewards/degradation_reward/mean" not in line
    assert steps[0]["completions/mean_length"] == 60  # the last image is cut by the budget


def test_its_folder_asks_what_the_list_asks_and_keeps_the_profiles_chain_settings(run):
    settings = ChainProcessor.from_pretrained(run).settings
    assert (settings.chain.question, settings.fit, settings.pixels) == (QUESTION, "random_crop", "cut")


def test_what_differs_is_in_its_folder_and_its_report(run):
    rows = json.loads((run / DIFFERENCES_FILE).read_text())["rows"]
    assert {row["setting"] for row in rows} == {"experts", "max_completion_length", "num_train_epochs",
                                                "dtype", "target_px", "grid_unit_px"}
    assert report.main(["--run", str(run)]) == 0
    page = (run / "report" / "report.html").read_text()
    assert '<section id="differences">' in page and '<a href="#differences">' in page
    assert "longest completion, in tokens</td><td>60</td><td>7000</td>" in page
