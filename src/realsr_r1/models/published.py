"""Image tokenizers as LlamaGen and Chameleon publish them: one file with a state dict.

This module reads the file, finds its family by the tensor names, and its shape by the tensors (or
by the `.yaml` beside it). It makes no model (`realsr_r1.models.loading` does).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Json

# What the tensors of a file don't tell: LlamaGen (arXiv 2406.06525) l2-normalises codes, and
# Chameleon (arXiv 2405.09818) doesn't.
FAMILIES: dict[str, dict[str, Any]] = {
    "llamagen-vq8": {"l2_normalised_codes": True},
    "llamagen-vq16": {"l2_normalised_codes": True},
    "chameleon": {"l2_normalised_codes": False},
}
STATE_KEYS = ("model", "state_dict")  # LlamaGen's and Chameleon's pickles keep the state dict there
# These tensors are for training only: LlamaGen's count of used codes, Chameleon's discriminator and
# perceptual loss.
TRAINING_TENSORS = re.compile(r"quantize\.codebook_used$|loss\.")
# Keys of Chameleon's `model.params.ddconfig` -> keys of `ImageTokenizerConfig`; then the same for
# `model.params`.
DDCONFIG_KEYS = {"ch": "base_channels", "ch_mult": "channel_multiplier", "num_res_blocks": "num_res_blocks",
                 "z_channels": "latent_channels", "in_channels": "in_channels", "out_ch": "out_channels"}
PARAMS_KEYS = {"n_embed": "num_embeddings", "embed_dim": "embed_dim"}

# (our name, LlamaGen's name), applied one after the other. LlamaGen numbers the three middle
# blocks, and numbers levels in the order in which they run.
_LLAMAGEN_NAMES = (
    (r"(en|de)coder\.(?:down|up)\.(\d+)\.block\.", r"\1coder.conv_blocks.\2.res."),
    (r"(en|de)coder\.(?:down|up)\.(\d+)\.", r"\1coder.conv_blocks.\2."),
    (r"(en|de)coder\.mid\.block_1\.", r"\1coder.mid.0."),
    (r"(en|de)coder\.mid\.attn_1\.", r"\1coder.mid.1."),
    (r"(en|de)coder\.mid\.block_2\.", r"\1coder.mid.2."),
)


def published_image_tokenizer(path: Path, family: str | None, overrides: Mapping[str, Any]
                              ) -> tuple[dict[str, torch.Tensor], Callable[[str], str], dict[str, Any], str]:
    """Read a published file.

    Returns its tensors, a function from our tensor names to its names, keys of
    `ImageTokenizerConfig`, and a text for messages that says where these come from. `family`,
    `overrides` and errors are as in `load_image_tokenizer`.
    """
    state = {name: tensor for name, tensor in read_state_dict(path).items()
             if not TRAINING_TENSORS.match(name)}
    if family is not None and family not in FAMILIES:
        raise UserError(f"family {family!r} is unknown; known are {', '.join(FAMILIES)}")
    told = family_of(state, path)
    if family is not None and (family == "chameleon") != (told == "chameleon"):
        raise UserError(f"{path} has the tensor names of {told}, not of family {family!r}")
    file = path.with_suffix(".yaml")
    is_described = told == "chameleon" and file.is_file()
    values = {**shape_of(state, told), **(yaml_shape(file) if is_described else {}), **overrides}
    levels = values.get("channel_multiplier")
    count = len(levels) if isinstance(levels, list | tuple) else 0
    names = partial(published_name, family=told, levels=count)
    sources = [str(file)] * is_described + [f"{key}={value}" for key, value in overrides.items()]
    why = f" (by {', '.join(sources)})" if sources else ""
    return state, names, {**FAMILIES[family or told], **values}, why


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a `.safetensors` file or of a pickle (`.pt`, `.pth`, `.ckpt`).

    The state dict is the whole file, or lies under one of `STATE_KEYS`. Raises `UserError` that
    names a file that can't be read, or a pickle that holds more than data (it is not run).
    """
    try:
        is_pickle = path.suffix != ".safetensors"
        state: Any = torch.load(path, map_location="cpu", weights_only=True) if is_pickle else load_file(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is no pickle of plain tensors ({_reason(error)}); get it "
                        "from its publisher, or as .safetensors") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} can't be read ({_reason(error)}); copy it again") from error
    for key in STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(
            isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict (neither bare nor under {' or '.join(STATE_KEYS)})")
    return state


def _reason(error: Exception) -> str:
    # torch's message names what else the pickle asks for.
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"it asks for {named[1]}"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def family_of(state: Mapping[str, torch.Tensor], path: Path) -> str:
    """Return the family of a state dict, found by its tensor names.

    Raises `UserError` when it is none of `FAMILIES`.
    """
    if any(name.startswith("encoder.conv_blocks.") for name in state):
        is_deeper = any(name.startswith("encoder.conv_blocks.4.") for name in state)
        return "llamagen-vq16" if is_deeper else "llamagen-vq8"
    if any(name.startswith("encoder.down.") for name in state):
        return "chameleon"
    raise UserError(f"{path} holds no image tokenizer of a known family ({', '.join(FAMILIES)})")


def published_name(name: str, family: str, levels: int) -> str:
    """Return the publisher's name of a tensor of `ImageTokenizer`.

    `levels`: the number of levels of the tokenizer.
    """
    if family == "chameleon":  # it numbers the decoder's levels by size, we by the order they run in
        return re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{levels - 1 - int(match[1])}.",
                      name)
    for ours, theirs in _LLAMAGEN_NAMES:
        name = re.sub(f"^{ours}", theirs, name)
    return name


def shape_of(state: Mapping[str, torch.Tensor], family: str) -> dict[str, Any]:
    """Return what a published state dict tells about its shape, as keys of `ImageTokenizerConfig`.

    Those it doesn't tell are left out.
    """
    is_chameleon = family == "chameleon"
    level_prefix, block = ("encoder.down.", "block") if is_chameleon else ("encoder.conv_blocks.", "res")
    middle_attention = "encoder.mid.attn_1." if is_chameleon else "encoder.mid.1."

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in state)

    def count(prefix: str) -> int:
        return 1 + max((int(name[len(prefix):].partition(".")[0]) for name in state
                        if name.startswith(prefix)), default=-1)

    def size(name: str, dim: int) -> int:
        return state[name].shape[dim] if name in state and state[name].ndim > dim else 0

    levels, base = count(level_prefix), size("encoder.conv_in.weight", 0)
    widths = [size(f"{level_prefix}{level}.{block}.0.conv1.weight", 0) for level in range(levels)]
    values = {"base_channels": base, "num_res_blocks": count(f"{level_prefix}0.{block}."),
              "num_embeddings": size("quantize.embedding.weight", 0),
              "embed_dim": size("quantize.embedding.weight", 1),
              "latent_channels": size("quant_conv.weight", 1)}
    if base and all(width and width % base == 0 for width in widths):
        values["channel_multiplier"] = [width // base for width in widths]
    return {**{key: value for key, value in values.items() if value},
            "attention_levels": [level for level in range(levels) if has(f"{level_prefix}{level}.attn.")],
            "middle_attention": has(middle_attention)}


def yaml_shape(file: Path) -> dict[str, Any]:
    """Return the shape in Chameleon's `vqgan.yaml`, as keys of `ImageTokenizerConfig`.

    Raises `UserError` that names a file of another form.
    """
    value = read_yaml(file, Json)
    try:
        params = value["model"]["params"]
        ddconfig = dict(params["ddconfig"])
        values = {ours: ddconfig[theirs] for theirs, ours in DDCONFIG_KEYS.items() if theirs in ddconfig}
        values |= {ours: params[theirs] for theirs, ours in PARAMS_KEYS.items() if theirs in params}
        if "attn_resolutions" in ddconfig:
            sizes = [ddconfig["resolution"] // 2**level for level in range(len(ddconfig["ch_mult"]))]
            values["attention_levels"] = [level for level, px in enumerate(sizes)
                                          if px in (ddconfig["attn_resolutions"] or ())]
        if "attn_type" in ddconfig:
            values["middle_attention"] = ddconfig["attn_type"] == "vanilla"
            levels = values.get("attention_levels", [])
            values["attention_levels"] = levels if values["middle_attention"] else []
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} has not the form of Chameleon's vqgan.yaml, model: params: ddconfig: ... "
                        f"({error!r}); correct it, or move it away to go by the tensors") from error
    return values
