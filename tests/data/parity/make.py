"""Makes this folder: small checkpoints in the published layouts, with what our loaders made of them.

    PYTHONPATH=src .venv/bin/python -m tests.data.parity.make

They are random, and narrower than the parity data that the publishers' own code was run on, which
is too large for a repository. Make them only with code that reproduces that data
(`REALSR_PARITY=DIR`, `tests/models/test_parity.py`).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from realsr_r1.models import load_image_tokenizer, load_policy
from tests.published import image_tokenizer, lumina_folder, published_state

HERE = Path(__file__).parent
FAMILIES = {"llamagen_vq8_small": "llamagen-vq8", "chameleon_small": "chameleon"}


@torch.no_grad()
def main() -> None:
    """Write all files."""
    for name, family in FAMILIES.items():
        state = {key: tensor.half() for key, tensor in
                 published_state(image_tokenizer(family, num_embeddings=1024), family).items()
                 if "codebook_used" not in key}
        save_file(state, HERE / f"{name}.weights.safetensors")
        tokenizer = load_image_tokenizer(HERE / f"{name}.weights.safetensors")
        pixels = (torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1).half().float()
        ids = tokenizer.encode(pixels)
        save_file({"32x48.pixels": pixels.half(), "32x48.token_ids": ids.int(),
                   "32x48.decoded": tokenizer.decode(ids).half().contiguous()}, HERE / f"{name}.io.safetensors")
    folder = lumina_folder(HERE / "lumina_policy_small", "float16", hidden_size=32)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()), indent=1))
    policy = load_policy(folder, dtype="float32").eval()
    ids = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    save_file({"input_ids": ids, "attention_mask": mask, "position_ids": places,
               "logits_full": policy(input_ids=ids).logits[:, -8:].contiguous(),
               "logits_left_padded": policy(input_ids=ids, attention_mask=mask,
                                            position_ids=places).logits[:, -8:].contiguous()},
              folder / "expected.safetensors")


if __name__ == "__main__":
    main()
