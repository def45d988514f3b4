"""realsr-r1 train-tokenizer: a processor folder from a dataset, resumed where it was, and clear
words for bad input.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from realsr_r1 import train_tokenizer
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from realsr_r1.train_tokenizer import STATE_FILE, learning_rate_share, main, restart_dead_codes

from .small import exit_code, photo, write_dataset

SMALL = ["--max_steps", "10", "--save_steps", "5", "--restart_every", "5", "--batch_size", "2",
         "--num_embeddings", "32", "--latent_channels", "32", "--channel_multiplier", "1", "1", "1",
         "--text_vocab_size", "400", "--max_units", "4"]


def flags(dataset: Path, output: Path, *more: str) -> list[str]:
    return ["--dataset_name", str(dataset), "--output_dir", str(output), *SMALL, *more]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "tokenizers"
    assert exit_code(main, flags(dataset, output)) == 0
    return output


def test_the_folder_is_a_complete_processor(trained):
    processor = ChainProcessor.from_pretrained(trained)
    assert (processor.image_tokenizer.codebook_size, processor.image_tokenizer.downsample) == (32, 4)
    assert (processor.settings.target_px, processor.settings.grid_unit_px) == (48, 16)
    assert sorted(processor.layout.size_ids) == [1, 2, 3, 4]
    text, images = processor.decode(processor.encode_prompt(photo("coffee")))
    assert text.startswith(processor.chain.question) and len(images) == 1
    assert not (trained / STATE_FILE).exists()


def test_a_finished_run_is_not_run_again(dataset, trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert exit_code(main, flags(dataset, trained)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


# Codes are moved onto latents after step 4 as well as where it goes on from, after step 5.
RESTARTS = ("--restart_every", "4", "--num_embeddings", "256", "--max_steps", "10")


def test_an_interrupted_run_goes_on_to_the_same_weights_and_only_as_it_was_begun(dataset, tmp_path,
                                                                                 monkeypatch, capsys):
    uninterrupted, tmp_path = tmp_path / "whole", tmp_path / "run"
    main(flags(dataset, uninterrupted, *RESTARTS))
    whole = train_tokenizer.batches

    def interrupted(config, split, first):
        for step, pixels in enumerate(whole(config, split, first), start=first):
            if step == 7:
                raise KeyboardInterrupt
            yield pixels

    monkeypatch.setattr(train_tokenizer, "batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(flags(dataset, tmp_path, *RESTARTS))
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    monkeypatch.setattr(train_tokenizer, "batches", whole)
    other = write_dataset(tmp_path.with_name("other"), train=3)
    for argv, named in ((flags(dataset, tmp_path, *RESTARTS, "--learning_rate", "0.5"), "--learning_rate"),
                        (flags(dataset, tmp_path, *RESTARTS, "--max_steps", "3"), "--max_steps"),
                        (flags(other, tmp_path, *RESTARTS), "--dataset_name")):
        assert exit_code(main, argv) == 2
        assert f"was saved with another {named};" in capsys.readouterr().err
    main(flags(dataset, tmp_path, *RESTARTS))
    assert "resuming at step 5 of 10" in capsys.readouterr().out
    resumed, expected = (ChainProcessor.from_pretrained(folder).image_tokenizer.state_dict()
                         for folder in (tmp_path, uninterrupted))
    torch.testing.assert_close(resumed, expected, atol=0, rtol=0)


@pytest.mark.parametrize("column", ["hq", "image", "degradation", "tag", "problem"])
def test_a_dataset_without_a_needed_column_is_refused_before_training(column, tmp_path, capsys):
    dataset = write_dataset(tmp_path / "dataset", without=(column,), train=1, test=1)
    assert exit_code(main, flags(dataset, tmp_path / "out")) == 2
    assert f"no column '{column}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, named", [
    (["--grid_unit_px", "18"], "--grid_unit_px 18"), (["--target_px", "8"], "--target_px 8"),
    (["--base_channels", "40"], "--base_channels 40"), (["--config", "nowhere.yaml"], "nowhere.yaml"),
    (["--max_step", "3"], "--max_step"), (["--max_steps", "few"], "--max_steps")])
def test_bad_settings_are_named(more, named, tmp_path, capsys):
    assert exit_code(main, flags(tmp_path / "nowhere", tmp_path / "out", *more)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_dataset_is_named(tmp_path, capsys):
    assert exit_code(main, flags(tmp_path / "nowhere", tmp_path / "out")) == 2
    assert f"no such dataset folder: {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_codes_nobody_used_move_onto_latents_and_the_others_stay():
    torch.manual_seed(0)
    model = ImageTokenizer(ImageTokenizerConfig(num_embeddings=8, embed_dim=4, base_channels=32,
                                                channel_multiplier=[1],
                                                num_res_blocks=1, latent_channels=32))
    codes = model.quantize.embedding.weight
    before, used = codes.detach().clone(), torch.tensor([True, False] * 4)
    latents = torch.randn(1, 4, 3, 3)
    restart_dead_codes(model, used, latents, seed=3)
    assert torch.equal(codes[used], before[used])
    unit = torch.nn.functional.normalize(latents.flatten(2)[0].T, dim=-1)
    matches = torch.isclose(codes[~used][:, None], unit, atol=1e-6).all(-1)
    assert (matches.sum(-1) == 1).all() and (matches.sum(0) <= 1).all()


def test_the_learning_rate_warms_up_and_falls_to_5_percent():
    shares = [learning_rate_share(step, 1000) for step in range(1000)]
    assert shares[0] == 0.01 and max(shares) == shares[100] == 1.0
    assert all(after <= before for before, after in zip(shares[100:], shares[101:], strict=False))
    assert shares[-1] == pytest.approx(0.05, abs=1e-4)
