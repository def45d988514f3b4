"""Image tokenizers as LlamaGen and Chameleon publish them: one file with a state dict, in their own tensor names.

Knows those files, their shapes and names; makes no model (that is for `realsr_r1.models.loading`).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from realsr_r1.errors import UserError

# Shapes of the published models, as keys of `ImageTokenizerConfig`: LlamaGen's VQ-8 and VQ-16 (arXiv 2406.06525),
# Chameleon's VQGAN (vqgan.yaml).
_LLAMAGEN = {"num_embeddings": 16384, "embed_dim": 8, "base_channels": 128, "num_res_blocks": 2, "latent_channels": 256}
FAMILIES: dict[str, dict[str, Any]] = {
    "llamagen-vq8": {**_LLAMAGEN, "channel_multiplier": [1, 2, 2, 4]},
    "llamagen-vq16": {**_LLAMAGEN, "channel_multiplier": [1, 1, 2, 2, 4]},
    "chameleon": {"num_embeddings": 8192, "embed_dim": 256, "base_channels": 128, "num_res_blocks": 2,
                  "latent_channels": 256, "channel_multiplier": [1, 1, 2, 2, 4], "l2_normalised_codes": False,
                  "deepest_level_attention": False},
}
STATE_KEYS = ("model", "state_dict")  # where LlamaGen's and Chameleon's pickles keep the state dict
# Tensors that belong to training: LlamaGen's count of used codes, Chameleon's discriminator and perceptual loss.
TRAINING_TENSORS = re.compile(r"quantize\.codebook_used$|loss\.")

# (their name, ours), applied in turn. LlamaGen numbers the three middle blocks, and levels in the order they run in.
_LLAMAGEN_NAMES = (
    (r"encoder\.conv_blocks\.(\d+)\.(attn|downsample)\.", r"encoder.down.\1.\2."),
    (r"encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block."),
    (r"decoder\.conv_blocks\.(\d+)\.(attn|upsample)\.", r"decoder.up.\1.\2."),
    (r"decoder\.conv_blocks\.(\d+)\.res\.", r"decoder.up.\1.block."),
    (r"(encoder|decoder)\.mid\.0\.", r"\1.mid.block_1."),
    (r"(encoder|decoder)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"(encoder|decoder)\.mid\.2\.", r"\1.mid.block_2."),
)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, or of a pickle (`.pt`, `.pth`, `.ckpt`), bare or under one of `STATE_KEYS`.

    Raises `UserError` that names a file that can't be read, and a pickle that holds more than data (it is not run).
    """
    try:
        is_pickle = path.suffix != ".safetensors"
        state: Any = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is no pickle of plain tensors ({_reason(error)}); get it from its "
                        "publisher, or as .safetensors") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} can't be read ({_reason(error)}); copy it again") from error
    for key in STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict (neither bare nor under {' or '.join(STATE_KEYS)})")
    return state


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def family_of(names: Iterable[str], path: Path) -> str:
    """The family a state dict is of, by its tensor names. Raises `UserError` when it is none of `FAMILIES`."""
    names = set(names)
    if any(name.startswith("encoder.conv_blocks.") for name in names):
        return "llamagen-vq16" if any(name.startswith("encoder.conv_blocks.4.") for name in names) else "llamagen-vq8"
    if any(name.startswith("encoder.down.") for name in names):
        return "chameleon"
    raise UserError(f"{path} holds no image tokenizer of a known family ({', '.join(FAMILIES)})")


def with_our_names(state: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """Rename a published state dict's tensors to `ImageTokenizer`'s, and leave out those of training only."""
    levels = len(FAMILIES[family]["channel_multiplier"])
    renamed = {}
    for name, tensor in state.items():
        if TRAINING_TENSORS.match(name):
            continue
        if family == "chameleon":  # numbers the decoder's levels by size, ours by the order they run in
            name = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.", name)
        else:
            for theirs, ours in _LLAMAGEN_NAMES:
                name = re.sub(f"^{theirs}", ours, name)
        renamed[name] = tensor
    return renamed
