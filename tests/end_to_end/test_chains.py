"""Chains of one's own, by a YAML file alone: from photos to a report, through two real processes;
and PURE's one step.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from realsr_r1 import create_json, export, report, restore
from realsr_r1.chain import ChainSpec, parse_chain
from realsr_r1.chain.settings import SETTINGS_FILE, ChainSettings
from realsr_r1.models import load_policy

from ..published import (
    PURE_VOCABULARY,
    image_tokenizer,
    lumina_folder,
    published_state,
    text_tokenizer,
)
from .processes import ROOT, free_port, start

CONFIGS = ROOT / "configs" / "chain"
OWN = ("two_stage", "four_stage", "pure_one_step")  # taught to a policy by a cold start
PURE = "published PURE"                              # as its publisher left it
SHORT = ["--max_text_tokens", "3", "--max_new_tokens", "500", "--guidance_scale", "1"]


@dataclass
class Chain:
    """A chain, and what was made with it:

    `dataset`, cold start (`taught`; of PURE its export), GRPO `run`, `model`, `restored`.
    """

    spec: ChainSpec
    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    def log(self) -> list[dict]:
        lines = [json.loads(line) for line in (self.run / "log_history.jsonl").read_text().splitlines()]
        return [line for line in lines if "loss" in line]


def write_descriptions(folder: Path, photos: Path) -> Path:
    folder.mkdir()
    for photo in photos.glob("*.png"):
        (folder / f"{photo.stem}.json").write_text(json.dumps(
            {level: f"The {photo.stem}, seen {level}." for level in ("rough", "middle", "final")}))
    return folder


def export_pure(folder: Path) -> Path:
    """PURE's layout, small and random, exported with its one-step chain at 64 px."""
    policy = lumina_folder(folder / "PURE", vocab_size=PURE_VOCABULARY, num_hidden_layers=1,
                           max_position_embeddings=1024)
    text_tokenizer(16384).save_pretrained(folder / "tokenizer")
    tokenizer = image_tokenizer("llamagen-vq8")
    torch.save({"model": published_state(tokenizer, "llamagen-vq8")}, folder / "vq_ds8_c2i.pt")
    settings = yaml.safe_load((CONFIGS / "pure_one_step.yaml").read_text())
    (folder / "chain.yaml").write_text(yaml.safe_dump({**settings, "target_px": 64,
                                                       "experts": ["piqe", "ssim"]}))
    export.main(["--checkpoint", str(policy), "--tokenizer", str(folder / "tokenizer"), "--image_tokenizer",
                 str(folder / "vq_ds8_c2i.pt"), "--chain_settings", str(folder / "chain.yaml"), "--output",
                 str(folder / "taught")])
    return folder / "taught"


def grpo_flags(model: Path, dataset: Path, output: Path) -> list[str]:
    return ["--config", "configs/recipes/tiny_grpo.yaml", "--deepspeed", "local_scripts/zero3.json",
            "--output_dir", str(output),
            "--model_name_or_path", str(model), "--dataset_name", str(dataset), "--max_steps", "2",
            "--learning_rate", "1e-3",
            "--warmup_steps", "0", "--per_device_train_batch_size", "1", "--num_generations", "3",
            "--loss_batch_size", "3",
            "--grammar", "chain", "--max_text_tokens", "3", "--max_completion_length", "500",
            "--sample_steps", "1",
            "--experts", "piqe", "ssim"]


@pytest.fixture(scope="module")
def chains(photos_dir, small_model, tmp_path_factory) -> dict[str, Chain]:
    """Each chain from photos to restored photos and a report; cold starts and GRPO in one launch of
    two processes.
    """
    root = tmp_path_factory.mktemp("chains")
    found = {name: Chain(ChainSpec.from_yaml(CONFIGS / f"{name}.yaml"), root / name) for name in OWN}
    found[PURE] = Chain(found["pure_one_step"].spec, root / "pure")
    descriptions = write_descriptions(root / "descriptions", photos_dir)
    jobs = []
    for name, chain in found.items():
        file = CONFIGS / f"{name}.yaml"
        flags = ["--chain_settings", str(file)] if name != PURE else []  # any dataset will do for PURE
        assert not create_json.main([
            "--images", str(photos_dir), "--tags", str(photos_dir), "--descriptions", str(descriptions),
            "--crop_px", "48",
            "--test_photos", "rocket", "--num_proc", "1", "--output", str(chain.dataset), *flags])
        if name == PURE:
            export_pure(chain.folder)
            flags = ["--reward_funcs", "generation", "understanding", "--chain_settings",
                     str(chain.folder / "chain.yaml")]
        else:
            jobs.append({"stage": "sft", "seen": str(chain.folder / "seen"), "argv": [
                "--config", "configs/recipes/tiny_sft.yaml", "--deepspeed", "local_scripts/zero3.json",
                "--output_dir", str(chain.taught), "--dataset_name", str(chain.dataset),
                "--model_name_or_path", str(small_model), "--max_steps", "1", "--bf16", "false",
                "--per_device_train_batch_size", "2", "--sample_steps", "0", "--logging_steps", "1", *flags]})
            rewards = ["format", "understanding", "generation", *(["degradation"] if "stage" in name else [])]
            flags = ["--reward_funcs", *rewards]
        jobs.append({"stage": "grpo", "seen": str(chain.folder / "seen"),
                     "argv": [*grpo_flags(chain.taught, chain.dataset, chain.run), *flags]})
    (root / "jobs.json").write_text(json.dumps(jobs))
    run = start([sys.executable, "scripts/tools/torchrun.py", "--nproc_per_node=2", "--master_addr=127.0.0.1",
                 f"--master_port={free_port()}", str(Path(__file__).parent / "several_runs.py"),
                 str(root / "jobs.json")],
                root / "log.txt", {"PYTHONPATH": f"{ROOT / 'src'}"})
    assert run.finish() == 0, run.output()[-6000:]
    with Image.open(photos_dir / "rocket.png") as photo:
        (root / "lq").mkdir()
        photo.resize((48, 48)).save(root / "lq" / "rocket.png")
    for chain in found.values():
        export.main(["--checkpoint", str(chain.run), "--output", str(chain.model)])
        assert not restore.main(["--model", str(chain.model), "--input", str(root / "lq"), "--output",
                                 str(chain.restored), *SHORT])
        assert not report.main(["--run", str(chain.run), "--restored", str(chain.restored)])
    return found


@pytest.mark.parametrize("name", (*OWN, PURE))
def test_every_model_folder_on_the_way_holds_the_chain_and_its_question(chains, name):
    chain = chains[name]
    for folder in (chain.taught, chain.run, chain.model):
        settings = ChainSettings.read(folder / SETTINGS_FILE)
        assert settings.chain == chain.spec, folder


@pytest.mark.parametrize("name", OWN)
def test_a_dataset_asks_the_chains_question_and_has_its_descriptions(chains, name):
    chain = chains[name]
    records = json.loads((chain.dataset / "train.json").read_text())
    assert {record["problem"] for record in records} == {chain.spec.question}
    for record in records:
        assert record["descriptions"] == [f"The {Path(record['source']).stem}, seen {level}."
                                          for level in chain.spec.levels]


@pytest.mark.parametrize("name", OWN)
def test_the_cold_start_learns_each_section_by_its_name(chains, name):
    lines = [json.loads(line)
             for line in (chains[name].taught / "log_history.jsonl").read_text().splitlines()]
    losses = {key.removeprefix("loss/") for line in lines for key in line if key.startswith("loss/")}
    assert losses == {*chains[name].spec.names(), "tags"}


@pytest.mark.parametrize("name", (*OWN, PURE))
def test_grpo_makes_its_steps_on_whole_chains_whose_rewards_differ(chains, name):
    lines = chains[name].log()
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line.get("rewards/format_reward/mean", 1.0) == 1.0
        assert line["rewards/generation_reward/std"] > 0 and line["reward_std"] > 0


@pytest.mark.parametrize("name", (*OWN, PURE))
def test_samples_and_restored_photos_have_the_chains_images(chains, name):
    chain, spec = chains[name], chains[name].spec
    sample = chain.run / "samples" / "step-000001"
    assert {path.name for path in sample.glob("completion-0*")} == {
        "completion-0.txt", *(f"completion-0-{label}.png" for label in spec.labels)}
    written = chain.restored / "chains" / "rocket"
    assert parse_chain((written / "chain.txt").read_text(), spec).is_well_formed
    sizes = [Image.open(written / f"{label}.png").width for label in spec.labels]
    assert sizes == sorted(sizes) and (chain.restored / "rocket.png").is_file()
    assert json.loads((sample / "prompt.json").read_text())["problem"] == spec.question


@pytest.mark.parametrize("name", (*OWN, PURE))
def test_the_report_shows_the_images_and_texts_that_the_chain_has(chains, name):
    chain = chains[name]
    page = (chain.run / "report" / "report.html").read_text()
    strips = page.split('<article class="strip">')[1:]
    assert len(strips) >= 2
    for strip in strips:
        assert re.findall(r"<figcaption>(.*?)</figcaption>", strip) == ["LQ", *chain.spec.labels, "HQ"]
        texts = [section.label for section in chain.spec.sections if not section.is_image]
        assert [label for label in re.findall(r"<dt>(.*?)</dt>", strip) if label != "tags"] == texts
        assert "chain not well formed" not in strip


def test_pure_comes_out_in_its_published_layout(chains, tmp_path):
    pure = chains[PURE]
    export.main(["--checkpoint", str(pure.run), "--output", str(tmp_path / "lumina"), "--layout", "lumina"])
    assert json.loads((tmp_path / "lumina" / "config.json").read_text())["model_type"] == "chameleon"
    before, after = (load_policy(folder).state_dict()
                     for folder in (pure.folder / "PURE", tmp_path / "lumina"))
    assert {name: tensor.shape for name, tensor in before.items()} == {name: tensor.shape
                                                                       for name, tensor in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_pure_is_asked_its_own_question_whatever_the_dataset_asks(chains):
    pure = chains[PURE]
    assert (json.loads((pure.dataset / "train.json").read_text())[0]["problem"]
            == ChainSpec.published().question)
    assert pure.spec.question.startswith("Perceive the degradation level")
