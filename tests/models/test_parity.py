"""Outputs of the published implementations are reproduced, for every checkpoint in the folder of
parity data.

The data lies beside the repository (`../shared/parity`, or the folder that REALSR_PARITY names) and
is no part of it; its README has the layouts and the tolerances. Checkpoints that are added there
are tested too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from realsr_r1.models import load_image_tokenizer, load_policy

PARITY = Path(os.environ.get("REALSR_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))
IMAGE_TOKENIZERS = sorted(path.name.removesuffix(".weights.safetensors")
                          for path in PARITY.glob("*.weights.safetensors"))
POLICIES = sorted(path.parent.name for path in PARITY.glob("*/expected.safetensors"))
MAX_OTHER_IDS, MAX_PIXEL_ERROR, MAX_LOGIT_ERROR = 0.01, 5e-3, 1e-3  # of parity/README.md

pytestmark = pytest.mark.skipif(not IMAGE_TOKENIZERS and not POLICIES, reason=f"no parity data in {PARITY}")


def recorded(name: str) -> list[dict[str, torch.Tensor]]:
    """Inputs and outputs of an image tokenizer, one entry an image size."""
    tensors = load_file(PARITY / f"{name}.io.safetensors")
    by_size: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind = next(kind for kind in ("pixels", "token_ids", "decoded") if kind in key)
        by_size.setdefault(key.replace(kind, ""), {})[kind] = tensor
    assert by_size and all(len(parts) == 3 for parts in by_size.values())
    return list(by_size.values())


def assert_reproduces(tokenizer, name: str) -> None:
    for parts in recorded(name):
        ids = tokenizer.encode(parts["pixels"])
        assert ids.shape == parts["token_ids"].shape
        assert (ids != parts["token_ids"]).float().mean() <= MAX_OTHER_IDS
        assert (tokenizer.decode(parts["token_ids"]) - parts["decoded"]).abs().max() <= MAX_PIXEL_ERROR


@pytest.mark.parametrize("name", IMAGE_TOKENIZERS)
def test_an_image_tokenizer_gives_the_published_ids_and_pixels(name):
    assert_reproduces(load_image_tokenizer(PARITY / f"{name}.weights.safetensors"), name)


@pytest.mark.parametrize("name", IMAGE_TOKENIZERS)
def test_in_bfloat16_most_ids_and_the_picture_stay(name):
    tokenizer = load_image_tokenizer(PARITY / f"{name}.weights.safetensors", dtype=torch.bfloat16)
    for parts in recorded(name):
        assert (tokenizer.encode(parts["pixels"]) == parts["token_ids"]).float().mean() > 0.5
        decoded = tokenizer.decode(parts["token_ids"])
        assert decoded.dtype == torch.bfloat16
        error = (decoded.float() - parts["decoded"]).square().mean().sqrt()
        assert error < 0.05 * parts["decoded"].std()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_policy_gives_the_published_logits_left_padded_too(name, attn_implementation):
    policy = load_policy(PARITY / name, dtype=torch.float32, attn_implementation=attn_implementation).eval()
    expected = load_file(PARITY / name / "expected.safetensors")
    with torch.no_grad():
        plain = policy(input_ids=expected["input_ids"]).logits
        padded = policy(input_ids=expected["input_ids"], attention_mask=expected["attention_mask"],
                        position_ids=expected["position_ids"]).logits
    for logits, key in ((plain, "logits_full"), (padded, "logits_left_padded")):
        positions = expected[key].shape[1]
        assert (logits[:, -positions:] - expected[key]).abs().max() <= MAX_LOGIT_ERROR


@pytest.mark.parametrize("name", POLICIES)
def test_a_published_policy_is_saved_as_it_was_tensor_by_tensor(name, tmp_path):
    stored = load_file(PARITY / name / "model.safetensors")
    load_policy(PARITY / name).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(saved[key].dtype == tensor.dtype and torch.equal(saved[key], tensor)
               for key, tensor in stored.items())


@pytest.mark.parametrize("name", [name for name in IMAGE_TOKENIZERS if "llamagen" in name])
def test_a_pickle_of_the_published_form_gives_the_same(name, tmp_path):
    torch.save({"model": load_file(PARITY / f"{name}.weights.safetensors")}, tmp_path / "released.pt")
    assert_reproduces(load_image_tokenizer(tmp_path / "released.pt"), name)


@pytest.mark.parametrize("name", IMAGE_TOKENIZERS)
def test_a_folder_of_ours_gives_the_same(name, tmp_path):
    load_image_tokenizer(PARITY / f"{name}.weights.safetensors").save_pretrained(tmp_path)
    assert_reproduces(load_image_tokenizer(tmp_path), name)


