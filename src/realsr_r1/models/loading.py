"""Reads policies and image tokenizers from disk: our own folders and the published layouts.

A policy keeps the layout it was stored in, so heads that shared a norm still share it. Tensors are
compared with what the model expects before any is loaded (`models.checking`). Knows files and
tensors; no tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import ADAPTER_CONFIG_NAME, is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar

from realsr_r1.core.cpu import suit_cpu
from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, Text, TypedDict
from realsr_r1.models.checking import (
    WEIGHTS,
    WEIGHTS_INDEX,
    TensorHeader,
    check_finite,
    check_tensors,
    file_headers,
    other_weights,
    stored_dtypes,
    tensor_headers,
    tensor_shapes,
    weight_files,
)
from realsr_r1.models.families import FAMILIES, known_types
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig, empty_tokenizer
from realsr_r1.models.protocol import Family, PolicyConfig
from realsr_r1.models.published import published_image_tokenizer
from realsr_r1.models.streaming import empty_policy, fill, fill_partitioned, read_generation_config

__all__ = ["WEIGHTS", "WEIGHTS_INDEX", "load_image_tokenizer", "load_policy", "policy_config",
           "tensor_shapes", "usable_attention"]

logger = logging.getLogger(__name__)
disable_progress_bar()  # a bar for each file that is loaded or saved would say nothing


class ConfigFile(TypedDict, extra_items=Json):
    """A model's config.json. What the other keys must be, its config class says."""

    model_type: Text


def load_policy(path: str | Path, dtype: torch.dtype | str | None = None,
                attn_implementation: str | None = None,
                quantization_config: Any | None = None) -> PreTrainedModel:
    """Load a policy from one of our folders, or from a folder in its family's published layout.

    Lumina-mGPT's and transformers' layouts are published ones. `dtype`: of the parameters
    (a torch dtype or its name); by default the file's own, the widest where it holds several.
    `attn_implementation`: as in transformers; `flash_attention_2` becomes `sdpa`, with one warning,
    where it can't run. `quantization_config`: a `BitsAndBytesConfig`, to hold the layers in 4 or 8
    bits (QLoRA). Under an active DeepSpeed ZeRO-3 config the parameters are partitioned while they
    are read, in DeepSpeed's type. One line, at level info and on rank 0 only, says what was loaded.
    Raises `UserError` for a missing folder, another architecture, and the first tensor that is
    missing, unexpected or of a wrong shape.
    """
    path = Path(path)
    attention = usable_attention(attn_implementation) if attn_implementation else None
    family, policy, headers, left_out = _checked_policy(path, attention)
    config = policy.config
    suit_cpu(sum(header.numel for header in headers.values()))
    stored = set(stored_dtypes(path, headers).values())
    if dtype in (None, "auto"):
        dtype = stored.pop() if len(stored) == 1 else torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if quantization_config is not None:
        policy = family.policy.from_pretrained(path, config=config, dtype=dtype,
                                               quantization_config=quantization_config)
        _keep_backward(policy)
    elif is_deepspeed_zero3_enabled():
        fill_partitioned(policy, path)
    else:
        fill(policy, path, dtype)
    policy.name_or_path = str(path)  # peft writes it into an adapter's config, where export finds the base
    if not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        logger.info(_summary(path, policy, headers, left_out, policy.dtype))
    return policy


def check_policy(path: Path) -> str:
    """Check all of a policy's folder without loading it, and say what it holds, as `load_policy` does.

    Reads each tensor once. Raises `UserError` for what `load_policy` raises it for, and for a value
    that isn't finite.
    """
    _, policy, headers, left_out = _checked_policy(path, None)
    dtypes = sorted(set(stored_dtypes(path, headers).values()), key=str)
    for file in weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            check_finite(((name, tensors.get_tensor(name)) for name in tensors.keys()), str(file))
    return _summary(path, policy, headers, left_out, *dtypes)


def _checked_policy(path: Path, attention: str | None) -> tuple[Family, PreTrainedModel,
                                                                dict[str, TensorHeader], int]:
    """Return a folder's family, its policy without weights, the headers of its tensors, and how many
    more tensors are left out. Raises `UserError` where they don't belong together.
    """
    family, policy = _empty_policy(path, attention)
    found = tensor_headers(path)
    headers = {name: header for name, header in found.items() if not name.startswith(family.left_out)}
    check_tensors(path, {name: header.shape for name, header in headers.items()},
                  {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()},
                  optional=("lm_head.weight",) if policy.config.tie_word_embeddings else ())
    read_generation_config(path)
    return family, policy, headers, len(found) - len(headers)


def _keep_backward(policy: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU with AVX512-BF16.

    It does that at the first forward without gradients, for ever, and the new form has no backward.
    A rollout would spoil every gradient after it.
    """
    for module in policy.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _summary(path: Path, policy: PreTrainedModel, headers: Mapping[str, TensorHeader], left_out: int,
             *dtypes: torch.dtype) -> str:
    shape, parameters = policy.config.shape, sum(header.numel for header in headers.values())
    rows, dtype = shape.query_norm_rows, " and ".join(str(one).removeprefix("torch.") for one in dtypes)
    return (f"{path}: a policy of {parameters:,} parameters, {shape.layers} layers, vocabulary "
            f"{shape.vocabulary:,}, {rows} q-norm row{'s' * (rows > 1)} for {shape.heads} heads, {dtype}"
            + (f"; the {left_out} tensors of its image encoder are left out" if left_out else ""))


def usable_attention(name: str) -> str:
    """Return `name`, or `sdpa` with one warning where FlashAttention 2 is wanted but can't run."""
    if name == "flash_attention_2" and not (torch.cuda.is_available() and is_flash_attn_2_available()):
        import warnings

        warnings.warn("flash_attention_2 needs a CUDA GPU and the flash-attn package; using sdpa instead",
                      stacklevel=3)
        return "sdpa"
    return name


def is_new(path: Path) -> bool:
    """Whether a folder holds nothing of a policy: no weights in any form, no config and no adapter.

    Only for such a folder is a policy made from random weights.
    """
    return not any((path / name).exists() for name in ("config.json", ADAPTER_CONFIG_NAME)) \
        and other_weights(path) is None


def policy_config(path: Path) -> PolicyConfig:
    """Return the config of the policy in a folder, ours or published.

    Raises `UserError` for another architecture.
    """
    return _empty_policy(path)[1].config


def _empty_policy(path: Path, attn_implementation: str | None = None) -> tuple[Family, PreTrainedModel]:
    if not path.is_dir():
        raise UserError(f"no such model folder: {path}")
    file = path / "config.json"
    has_weights = any((path / name).exists() for name in (WEIGHTS, WEIGHTS_INDEX))
    if (path / ADAPTER_CONFIG_NAME).is_file():
        if has_weights:
            raise UserError(f"{path} holds a policy's weights and a LoRA adapter, and which counts isn't "
                            f"said; move {WEIGHTS} or {ADAPTER_CONFIG_NAME} away")
        raise UserError(f"{path} holds a LoRA adapter without its policy; merge them with realsr-r1 export "
                        f"--checkpoint {path} --output DIR, and use that folder")
    if not file.is_file() and (other := other_weights(path)):
        raise UserError(f"{path} has weights ({other}) and no config.json, which says what they are; copy "
                        "the whole folder again")
    raw = read_json(file, ConfigFile)
    family = FAMILIES.get(raw["model_type"])
    if family is None:
        raise UserError(f"{file} describes a model of type {raw['model_type']!r}; known are {known_types()}")
    # A config may have no weights beside it, as in configs/models. Our own configs are complete
    # without tensors.
    shapes = tensor_shapes(path) if raw["model_type"] in family.published and has_weights else {}
    try:
        config = family.config.from_folder(raw, shapes)
        config.shape.check()
        if attn_implementation:
            config._attn_implementation = attn_implementation
        return family, empty_policy(family.policy, config)
    except Exception as error:  # a value of a wrong type or size can fail anywhere in transformers
        raise UserError(f"{file} describes no policy that can be built: {_one_line(error)}") from error


def load_image_tokenizer(path: str | Path, family: str | None = None, dtype: torch.dtype | str | None = None,
                         **overrides: Any) -> ImageTokenizer:
    """Load an image tokenizer onto the CPU: a folder that we saved, or a published file.

    A file is a pickle (`.pt`, `.pth`, `.ckpt`; read as data only) or `.safetensors`. `family`: one
    of `published.FAMILIES`, by default found by its tensor names. Its shape comes from a `.yaml` of
    the same name beside it, else from its tensors. `dtype`: of the parameters
    (a torch dtype or its name), by default float32. `overrides`: keys of `ImageTokenizerConfig`
    that win over all of these. Raises `UserError` that names the file or tensor at fault.
    """
    path = Path(path)
    for key in overrides:
        if not hasattr(ImageTokenizerConfig, key):
            raise UserError(f"an image tokenizer's config has no key {key!r}")
    if path.is_dir():
        if family is not None:
            raise UserError(f"{path} is a folder, which says what it is; family={family!r} is for published "
                            "files")
        values = read_json(path / "config.json", ConfigFile)
        if values["model_type"] != ImageTokenizerConfig.model_type:
            raise UserError(f"{path} holds a model of type {values['model_type']!r}, not an image tokenizer")
        if not (path / WEIGHTS).is_file():
            raise UserError(f"{path} has no {WEIGHTS}")
        file_headers(path / WEIGHTS)  # raises an error that names a damaged file
        state, stored_name, why = load_file(path / WEIGHTS), str, ""
    elif path.is_file():
        state, stored_name, values, why = published_image_tokenizer(path, family, overrides)
    else:
        raise UserError(f"no such image tokenizer: {path}")
    empty = empty_tokenizer({**values, **overrides}, str(path), why)
    expected = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    check_tensors(path, {name: tuple(tensor.shape) for name, tensor in state.items()},
                  {stored_name(name): shape for name, shape in expected.items()}, why=why)
    # Don't use from_pretrained here: under ZeRO-3 it would partition this model too, which must
    # stay whole on every rank.
    model = ImageTokenizer(empty.config)
    model.load_state_dict({name: state[stored_name(name)].float() for name in expected})
    target = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    return model.to(target).eval().requires_grad_(False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
