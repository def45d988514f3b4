"""Outputs of the published implementations are reproduced, for every checkpoint in the folders of
parity data.

Small ones are in `tests/data/parity`. Larger ones, which the publishers' own code was run on, lie
beside the repository (`../shared/parity`, or the folder that REALSR_PARITY names) and are no part
of it; checkpoints that are added there are tested too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from realsr_r1.models import load_image_tokenizer, load_policy

OTHERS = Path(os.environ.get("REALSR_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))
FOLDERS = (Path(__file__).resolve().parents[1] / "data" / "parity", OTHERS)
IMAGE_TOKENIZERS = [folder / path.name.removesuffix(".weights.safetensors") for folder in FOLDERS
                    for path in sorted(folder.glob("*.weights.safetensors"))]
POLICIES = [path.parent for folder in FOLDERS for path in sorted(folder.glob("*/expected.safetensors"))]
MAX_OTHER_IDS, MAX_PIXEL_ERROR, MAX_LOGIT_ERROR = 0.01, 5e-3, 1e-3  # of the parity data's README
of_tokenizers = pytest.mark.parametrize("path", IMAGE_TOKENIZERS, ids=lambda path: path.name)
of_policies = pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)


def weights(path: Path) -> Path:
    return path.with_name(f"{path.name}.weights.safetensors")


def test_the_small_set_covers_every_published_layout():
    assert {path.name for path in (*IMAGE_TOKENIZERS, *POLICIES)} >= {
        "llamagen_vq8_small", "chameleon_small", "lumina_policy_small"}


def recorded(path: Path) -> list[dict[str, torch.Tensor]]:
    """Inputs and outputs of an image tokenizer, one entry an image size."""
    tensors = load_file(path.with_name(f"{path.name}.io.safetensors"))
    by_size: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind = next(kind for kind in ("pixels", "token_ids", "decoded") if kind in key)
        by_size.setdefault(key.replace(kind, ""), {})[kind] = tensor
    assert by_size and all(len(parts) == 3 for parts in by_size.values())
    return list(by_size.values())


def assert_reproduces(tokenizer, path: Path) -> None:
    for parts in recorded(path):
        ids = tokenizer.encode(parts["pixels"])
        assert ids.shape == parts["token_ids"].shape
        assert (ids != parts["token_ids"]).float().mean() <= MAX_OTHER_IDS
        assert (tokenizer.decode(parts["token_ids"]) - parts["decoded"]).abs().max() <= MAX_PIXEL_ERROR


@of_tokenizers
def test_an_image_tokenizer_gives_the_published_ids_and_pixels(path):
    assert_reproduces(load_image_tokenizer(weights(path)), path)


@of_tokenizers
def test_in_bfloat16_most_ids_and_the_picture_stay(path):
    tokenizer = load_image_tokenizer(weights(path), dtype=torch.bfloat16)
    for parts in recorded(path):
        assert (tokenizer.encode(parts["pixels"]) == parts["token_ids"]).float().mean() > 0.5
        decoded = tokenizer.decode(parts["token_ids"])
        assert decoded.dtype == torch.bfloat16
        error = (decoded.float() - parts["decoded"]).square().mean().sqrt()
        # The small networks are narrow and random, and round more.
        assert error < (0.05 if path.parent == OTHERS else 0.07) * parts["decoded"].std()


@of_policies
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_policy_gives_the_published_logits_left_padded_too(path, attn_implementation):
    policy = load_policy(path, dtype=torch.float32, attn_implementation=attn_implementation).eval()
    expected = load_file(path / "expected.safetensors")
    with torch.no_grad():
        plain = policy(input_ids=expected["input_ids"]).logits
        padded = policy(input_ids=expected["input_ids"], attention_mask=expected["attention_mask"],
                        position_ids=expected["position_ids"]).logits
    for logits, key in ((plain, "logits_full"), (padded, "logits_left_padded")):
        positions = expected[key].shape[1]
        assert (logits[:, -positions:] - expected[key]).abs().max() <= MAX_LOGIT_ERROR


@of_policies
def test_a_published_policy_is_saved_as_it_was_tensor_by_tensor(path, tmp_path):
    stored = load_file(path / "model.safetensors")
    load_policy(path).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(saved[key].dtype == tensor.dtype and torch.equal(saved[key], tensor)
               for key, tensor in stored.items())


@pytest.mark.parametrize("path", [path for path in IMAGE_TOKENIZERS if "llamagen" in path.name],
                         ids=lambda path: path.name)
def test_a_pickle_of_the_published_form_gives_the_same(path, tmp_path):
    torch.save({"model": load_file(weights(path))}, tmp_path / "released.pt")
    assert_reproduces(load_image_tokenizer(tmp_path / "released.pt"), path)


@of_tokenizers
def test_a_folder_of_ours_gives_the_same(path, tmp_path):
    load_image_tokenizer(weights(path)).save_pretrained(tmp_path)
    assert_reproduces(load_image_tokenizer(tmp_path), path)
