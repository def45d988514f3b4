"""Makes what the commands read, small and whole: photos, a dataset, tokens, a model, a run, results."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "assets" / "tiny"
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg")
PX = 48


def make(folder: Path) -> Path:
    """Make the workplace in `folder`, or take the one that is there."""
    if (folder / "whole").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _photos(folder)
    _settings(folder)
    _dataset(folder)
    _model(folder / "model")
    _run(folder / "run")
    _results(folder)
    from realsr_r1 import pretokenise

    pretokenise.main(["--dataset_name", str(folder / "dataset"), "--model_name_or_path",
                      str(folder / "model"), "--num_proc", "1", "--output_dir", str(folder / "tokens")])
    (folder / "whole").touch()
    return folder


def copy(workplace: Path, target: Path, names: set[str]) -> None:
    """Copy the parts of a workplace that a case names; files are links until a damage replaces them."""
    import os

    for name in names:
        source = workplace / name
        if source.is_dir():
            shutil.copytree(source, target / name, copy_function=os.link)
        else:
            target.mkdir(parents=True, exist_ok=True)
            os.link(source, target / name)


def _photos(folder: Path) -> None:
    import skimage
    from PIL import Image

    for name in ("photos", "gt", "lq", "restored", "tags", "descriptions"):
        (folder / name).mkdir()
    for name in NAMES:
        stem = Path(name).stem
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            photo = image.convert("RGB").resize((2 * PX, 2 * PX))
        photo.save(folder / "photos" / f"{stem}.png")
        photo.resize((PX, PX)).save(folder / "gt" / f"{stem}.png")
        for other in ("lq", "restored"):
            photo.resize((PX // 2, PX // 2)).resize((PX, PX)).save(folder / other / f"{stem}.png")
        (folder / "tags" / f"{stem}.txt").write_text("cat, cup, tower\n")
        (folder / "descriptions" / f"{stem}.json").write_text(json.dumps(
            {"rough": "A thing.", "middle": "A thing, seen closer.", "final": "A sharp thing."}))


def _settings(folder: Path) -> None:
    """Settings files, as JSON, which YAML is, too."""
    import yaml

    configs = ROOT / "configs"
    # What is accepted after all computes, and is to compute little.
    small = {"grpo": {"bf16": False, "num_generations": 2, "loss_batch_size": 1, "max_completion_length": 64,
                      "eval_strategy": "no", "per_device_train_batch_size": 1,
                      "reward_funcs": ["format", "degradation", "understanding"]},
             "sft": {"bf16": False, "per_device_train_batch_size": 1, "peak_tflops": 1.0},
             "tokenizer": {"bf16": False, "batch_size": 1, "num_embeddings": 64, "base_channels": 32}}
    for name, source in (("chain", configs / "chain" / "four_stage.yaml"),
                         ("degradation", configs / "degradation" / "tiny.yaml"),
                         ("annotation", configs / "annotation" / "default.yaml"),
                         ("grpo", configs / "recipes" / "tiny_grpo.yaml"),
                         ("sft", configs / "recipes" / "tiny_sft.yaml"),
                         ("tokenizer", configs / "recipes" / "tiny_tokenizer.yaml")):
        settings = {**yaml.safe_load(source.read_text()), **small.get(name, {})}
        settings.pop("experts", None)  # which no reward here asks
        (folder / f"{name}.yml").write_text(json.dumps(settings))
    (folder / "synonyms.yml").write_text(json.dumps({"cat": ["kitten"], "cup": ["mug"]}))
    (folder / "suite.yml").write_text(json.dumps({
        "name": "Three", "where": "here", "lq": "lq", "hq": "gt", "scale": 1, "metrics": ["psnr"],
        "names": [Path(name).stem for name in NAMES], "published": "RealSR",
        "differs": {"all": "other photos"}}))
    (folder / "licences.yml").write_text(json.dumps({"photographs": "CC0-1.0"}))
    (folder / "machine.yml").write_text(json.dumps({"memory_gib": 80, "tflops": 100, "bandwidth_gb": 2000}))
    shutil.copy(ROOT / "local_scripts" / "zero3.json", folder / "zero.json")


def _dataset(folder: Path) -> None:
    from realsr_r1 import create_json

    create_json.main(["--images", str(folder / "photos"), "--tags", str(folder / "tags"), "--descriptions",
                      str(folder / "descriptions"), "--degradation", str(folder / "degradation.yml"),
                      "--crop_px", "32", "--crops_per_photo", "2", "--test_crops_per_photo", "1",
                      "--num_proc", "1", "--output", str(folder / "dataset")])
    shutil.copytree(folder / "dataset", folder / "list")
    (folder / "conversations.json").write_text(json.dumps([{"conversations": [
        {"from": "human", "value": "What is it? <|image|>"}, {"from": "gpt", "value": "A cat."}],
        "image": [f"photos/{Path(name).stem}.png"]} for name in NAMES]))


def _model(folder: Path) -> None:
    """A policy of one layer with random weights, on the tokenizers of assets/tiny."""
    import torch

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models import new_config, new_policy

    processor = ChainProcessor.from_pretrained(TINY)
    processor.settings = dataclasses.replace(processor.settings, target_px=32,
                                             sampling={"max_text_tokens": 4})
    layout = processor.layout
    torch.manual_seed(0)
    policy = new_policy(new_config(
        vocab_size=layout.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=layout.pad,
        bos_token_id=layout.bos, eos_token_id=layout.end_of_turn))
    policy.save_pretrained(folder)
    processor.save_pretrained(folder)


def _run(folder: Path) -> None:
    """A run's folder as grpo writes it: settings, log, state, a stop, samples."""
    from PIL import Image

    from realsr_r1.chain.spec import ChainSpec
    from realsr_r1.training import manifest
    from realsr_r1.training.samples import write_samples

    chain, image = ChainSpec.published(), Image.new("RGB", (16, 16), "teal")
    records = [{"step": step, "reward": 0.1 * step, "loss": 0.0, "rewards/format_reward/mean": 0.5,
                "entropy": 1.0, "repeated_rows": 0.1} for step in range(1, 9)]
    folder.mkdir()
    (folder / "log_history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    checkpoint = folder / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 8, "log_history": records}))
    (checkpoint / "scheduler.pt").touch()
    manifest.mark(checkpoint, manifest.hashed(checkpoint, manifest.files_of(checkpoint)))
    (folder / "settings.json").write_text(json.dumps({"run_name": "a run", "learning_rate": 1e-5, "seed": 0,
                                                      "reward_funcs": ["format"], "max_steps": 8}))
    (folder / "stopped.json").write_text(json.dumps({
        "step": 8, "condition": "reward>0.7", "values": [0.8], "reason": "stopped at step 8",
        "best_checkpoint": None, "best_by": None}))
    write_samples(folder, 8, {"source": "a.png", "tag": ["cat"], "degradation": ["light blur"] * 5,
                              "problem": chain.question, "lq": image, "hq": image, "crop": [0, 0, 16, 16]},
                  ["<degradation>light blur</degradation>"], [[image, image, image]],
                  {"format": [1.0], "total": [1.0]}, chain)


def _results(folder: Path) -> None:
    from realsr_r1 import evaluate, score

    evaluate.main(["--restored", str(folder / "restored"), "--gt", str(folder / "gt"), "--lq",
                   str(folder / "lq"), "--output", str(folder / "evaluation")])
    for name, others in (("before", []), ("after", ["--compare", str(folder / "before.json")])):
        score.main(["--model", str(folder / "model"), "--dataset_name", str(folder / "dataset"), "--samples",
                    "1", "--recipe", str(folder / "grpo.yml"), "--label", name, "--output",
                    str(folder / f"{name}.json"), *others])
