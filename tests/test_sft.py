"""realsr-r1 sft: makes a model folder from chains, resumes, and says clearly what input is bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.text import SECTIONS, parse_chain
from realsr_r1.models import load_policy
from realsr_r1.sft import TOKENS_FOLDER, main

from .small import LABELS, exit_code, photo, records, write_dataset

SMALL = ["--max_steps", "10", "--save_steps", "5", "--logging_steps", "1", "--per_device_train_batch_size",
         "2",
         "--max_length", "900", "--hidden_size", "32", "--intermediate_size", "64", "--num_hidden_layers",
         "1",
         "--num_attention_heads", "2", "--learning_rate", "1e-2", "--report_to", "none", "--disable_tqdm",
         "true",
         "--z_loss", "1e-5", "--train_sampling_strategy", "group_by_length"]  # 4 steps an epoch

WATCHED = ["--eval_strategy", "steps", "--eval_steps", "4", "--sample_steps", "4", "--dropout", "0.05",
           "--report_to", "tensorboard"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def tokenizers(tiny_model, tmp_path_factory) -> Path:
    """The embedded model's tokenizers and settings, without its policy: a new one is made."""
    folder = tmp_path_factory.mktemp("tokenizers") / "folder"
    shutil.copytree(tiny_model, folder, ignore=lambda path, names: {"model.safetensors",
                                                                    "config.json"} & set(names)
                    if Path(path) == tiny_model else set())
    return folder


def flags(dataset: Path, model: Path, output: Path, *more: str) -> list[str]:
    folders = ["--dataset_name", str(dataset), "--model_name_or_path", str(model), "--output_dir",
               str(output)]
    return [*folders, *SMALL, *more]


@pytest.fixture(scope="module")
def trained(dataset, tokenizers, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "cold_start"
    assert exit_code(main, flags(dataset, tokenizers, output, *WATCHED)) == 0
    return output


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of the log, in order."""
    return [json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    """Step -> logged loss."""
    return {line["step"]: line["loss"] for line in logged(folder) if "loss" in line}


def test_the_evaluation_loss_is_logged_by_section(trained):
    lines = [line for line in logged(trained) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 10]  # and at the end
    for line in lines:
        by_section = [line[f"eval_loss/{name}"] for name in (*SECTIONS, "tags")]
        assert min(by_section) < line["eval_loss"] < max(by_section)
    assert lines[1]["eval_loss/final_image"] < lines[0]["eval_loss/final_image"]


def test_sample_chains_are_decoded_to_images(trained):
    for step in (4, 8):
        folder = trained / "samples" / f"step-{step:06d}"
        for number in (0, 1):
            assert parse_chain((folder / f"completion-{number}.txt").read_text()).is_well_formed
            sizes = [Image.open(folder / f"completion-{number}-{name}.png").size
                     for name in ("rough", "middle", "final")]
            assert sizes == [(16, 16), (32, 32), (48, 48)]
        assert Image.open(folder / "lq.png").size == Image.open(folder / "hq.png").size == (48, 48)
        prompt = json.loads((folder / "prompt.json").read_text())
        assert "Name the degradation" in prompt["problem"] and prompt["degradation"] == list(LABELS[0])


def test_sample_chains_are_in_the_trackers_log(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(next(trained.rglob("events.out.tfevents.*")).parent),
                           {"images": 0, "tensors": 0}).Reload()
    assert log.Tags()["images"] == [f"samples/{number}-{name}" for number in (0, 1)
                                    for name in ("rough", "middle", "final")]
    shown = [(event.step, event.width, event.height) for event in log.Images("samples/1-final")]
    assert shown == [(4, 48, 48), (8, 48, 48)]
    text = log.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == (trained / "samples" / "step-000004" / "completion-0.txt").read_text().rstrip("\n")


def test_the_folder_is_a_complete_model_of_the_recipes_shape(trained):
    processor, policy = ChainProcessor.from_pretrained(trained), load_policy(trained)
    assert (policy.config.hidden_size, policy.config.num_hidden_layers) == (32, 1)
    assert policy.config.vocab_size == processor.layout.vocab_size
    assert policy.config.eos_token_id == processor.layout.end_of_turn
    with torch.no_grad():
        assert policy(input_ids=torch.tensor(
            [processor.encode_prompt(photo("coffee"))])).logits.isfinite().all()


def test_the_loss_of_every_step_is_logged_and_falls(trained):
    logged = losses(trained)
    assert sorted(logged) == list(range(1, 11))
    assert logged[10] < logged[1] - 0.2


def test_a_finished_run_is_not_run_again(dataset, tokenizers, trained, capsys):
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert exit_code(main, flags(dataset, tokenizers, trained)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on_to_the_same_weights(dataset, tokenizers, trained, tmp_path):
    output = tmp_path / "run"
    for name in ("checkpoint-5", TOKENS_FOLDER):
        shutil.copytree(trained / name, output / name)
    half_written = output / "checkpoint-7"
    shutil.copytree(trained / "checkpoint-10", half_written, ignore=shutil.ignore_patterns("complete"))
    shutil.copy(trained / "log_history.jsonl", output)
    # from the middle of the second epoch
    assert exit_code(main, flags(dataset, tokenizers, output, *WATCHED)) == 0
    resumed, uninterrupted = (load_file(folder / "model.safetensors") for folder in (output, trained))
    torch.testing.assert_close(resumed, uninterrupted, atol=1e-6, rtol=0)
    assert not half_written.exists()
    assert losses(output) == pytest.approx(losses(trained), abs=1e-4)


@pytest.mark.parametrize("changed, named", [
    (["--seed", "3"], "seed 42, and this command has 3"),
    (["--per_device_train_batch_size", "4"], "samples_per_step 2, and this command has 4"),
    (["--optim", "adafactor"], "optim adamw_torch_fused, and this command has adafactor"),
    (["--hidden_size", "64"], "hidden_size 32, and this command has 64")])
def test_a_run_goes_on_with_its_own_settings_only(dataset, tokenizers, trained, tmp_path, capsys, changed,
                                                  named):
    output = tmp_path / "run"
    for name in ("checkpoint-5", TOKENS_FOLDER):
        shutil.copytree(trained / name, output / name)
    shutil.copy(trained / "settings.json", output)
    assert exit_code(main, flags(dataset, tokenizers, output, *WATCHED, *changed)) == 2
    line = capsys.readouterr().err
    assert f"the run in {output} was started with {named}" in line
    assert (output / "checkpoint-5" / "complete").is_file()


def test_a_model_folder_is_trained_on(dataset, trained, tmp_path):
    argv = flags(dataset, trained, tmp_path / "more", "--max_steps", "1", "--max_samples", "2",
                 "--save_strategy", "no",
                 "--hidden_size", "64")
    assert exit_code(main, argv) == 0
    assert load_policy(tmp_path / "more").config.hidden_size == 32
    before, after = (load_file(trained / "model.safetensors"),
                     load_file(tmp_path / "more" / "model.safetensors"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert losses(tmp_path / "more")[1] < losses(trained)[1] - 0.2


def test_a_conversation_file_is_trained_on(tokenizers, trained, tmp_path):
    photo("coffee").save(tmp_path / "coffee.png")
    talk = {"conversations": [{"from": "human", "value": "What is in <|image|>?"},
                              {"from": "gpt", "value": "A cup."}],
            "image": ["coffee.png"]}
    (tmp_path / "talk.json").write_text(json.dumps([talk, talk]))
    argv = flags(tmp_path / "talk.json", trained, tmp_path / "out", "--max_steps", "1", "--sample_steps", "1")
    assert exit_code(main, argv) == 0
    assert (tmp_path / "out" / "samples" / "step-000001" / "completion-1.txt").is_file()
    line = next(line for line in logged(tmp_path / "out") if "loss" in line)
    assert {name for name in line if name.startswith("loss/")} == {"loss/text", "loss/tags"}


@pytest.mark.parametrize("column", ["hq", "degradation", "tag"])
def test_a_dataset_without_a_needed_column_is_refused(column, tokenizers, tmp_path, capsys):
    dataset = write_dataset(tmp_path / "dataset", without=(column,), train=1, test=1)
    assert exit_code(main, flags(dataset, tokenizers, tmp_path / "out")) == 2
    assert f"no column '{column}'" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_bad_input_is_named(dataset, tokenizers, tmp_path, capsys):
    nowhere, output = tmp_path / "nowhere", tmp_path / "out"
    for argv, named in (
            (flags(nowhere, tokenizers, output), f"no such dataset folder: {nowhere}"),
            (flags(dataset, nowhere, output), f"no such model folder: {nowhere}"),
            (flags(dataset, tokenizers, output, "--max_length", "100"),
             "8 of 8 chains of train have more tokens than"),
            (flags(dataset, tokenizers, output, "--max_length", "524"),
             "1 of 8 chains of train have more tokens than --max_length "
             "524, the longest: record 4 ("),
            *((flags(dataset, tokenizers, output, "--learning_rate", rate), "--learning_rate")
              for rate in ("nan", "inf", "-1.0")),
            (flags(dataset, tokenizers, output, "--z_loss", "nan"), "--z_loss is nan"),
            (flags(dataset, tokenizers, "/proc/run"), "/proc/run (given by --output_dir) can't be written"),
            (flags(dataset, tokenizers, tokenizers / "tokenizer.json" / "run"),
             "tokenizer.json is not a folder (given by"),
            (flags(dataset, tokenizers, tmp_path / ("n" * 300)), "File name too long"),
            (flags(dataset, tokenizers, output, "--max_samples", "many"), "--max_samples"),
            (["--output_dir", str(output)], "--dataset_name"),
            (["--output_dir", str(output), "--dataset_name", str(dataset)],
             "--model_name_or_path must name a model folder"),
            (flags(dataset, tokenizers, output, "--load_in_4bit"), "need --use_peft true"),
            (flags(dataset, tokenizers, output, "--dropout", "1"), "--dropout 1.0 from 0 to below 1"),
            (flags(dataset, tokenizers, output, "--peak_tflops", "0"), "--peak_tflops 0.0"),
            (flags(dataset, tokenizers, output, "--max_samples", "0"), "--max_samples 0 must be at least 1"),
            (flags(dataset, tokenizers, output, "--gradient_accumulation_steps", "0"),
             "--gradient_accumulation_steps 0"),
            (flags(dataset, tokenizers, output, "--hidden_size", "30"),
             "--hidden_size 30 must be a multiple"),
            (flags(dataset, tokenizers, output, "--use_peft", "--lora_r", "0"),
             "--lora_r 0 must be at least 1"),
            (flags(dataset, tokenizers, output, "--seed", "-1"), "--seed -1"),
            (flags(dataset, tokenizers, output, "--label_smoothing_factor", "0.1"),
             "--label_smoothing_factor"),
            (flags(dataset, tokenizers, output, "--report_to", "wandbb"),
             "--report_to wandbb: the known ones are"),
            (flags(dataset, tokenizers, output, "--train_sampling_strategy", "batch_rebalance"),
             "batch_rebalance")):
        assert exit_code(main, argv) == 2, named
        assert named in capsys.readouterr().err
    assert not (output / "model.safetensors").exists()


def test_an_evaluation_split_that_is_not_there_is_named(tokenizers, tmp_path, capsys):
    import datasets

    whole = datasets.load_from_disk(str(write_dataset(tmp_path / "whole", train=2, test=1)))
    datasets.DatasetDict({"train": whole["train"]}).save_to_disk(str(tmp_path / "train_only"))
    argv = flags(tmp_path / "train_only", tokenizers, tmp_path / "out", "--eval_strategy", "steps",
                 "--eval_steps", "5")
    assert exit_code(main, argv) == 2
    assert "has no split 'test_crops'; it has train" in capsys.readouterr().err


def test_the_model_folder_keeps_the_question_that_was_trained(trained, tokenizers):
    asked, before = (ChainProcessor.from_pretrained(folder).chain.question
                     for folder in (trained, tokenizers))
    assert asked == records(1)["problem"][0] != before


def test_chain_settings_ask_their_question_whatever_the_records_ask(dataset, trained, tmp_path, capsys):
    (tmp_path / "chain.yaml").write_text("problem: Make it sharp.\n")
    output = tmp_path / "run"
    assert exit_code(main, flags(dataset, trained, output, "--max_steps", "1", "--sample_steps", "1",
                                 "--chain_settings", str(tmp_path / "chain.yaml"))) == 0
    assert ChainProcessor.from_pretrained(output).chain.question == "Make it sharp."
    sample = json.loads((output / "samples" / "step-000001" / "prompt.json").read_text())
    assert sample["problem"].startswith("Make it sharp.")
    assert "asks" not in capsys.readouterr().out


def test_another_question_than_the_folders_is_said_in_one_line(dataset, tokenizers, tmp_path, capsys):
    argv = flags(dataset, tokenizers, tmp_path / "run", "--max_steps", "1")
    assert exit_code(main, argv) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "asks" in line]
    assert len(said) == 1 and repr(records(1)["problem"][0]) in said[0]
