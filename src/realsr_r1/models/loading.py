"""Reading policies and image tokenizers from disk: our own folders and the layouts they are published in.

A file's header is compared with what the model expects before anything is loaded, in every mode (transformers says
nothing of wrong keys under ZeRO-3). Knows files and tensors; no tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar

from realsr_r1.errors import UserError
from realsr_r1.files import read_json
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from realsr_r1.models.policy import LuminaConfig, LuminaPolicy
from realsr_r1.models.published import FAMILIES, family_of, read_state_dict, with_our_names

Shapes = dict[str, tuple[int, ...]]  # tensor name -> shape

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Keys of a published Chameleon/Lumina config.json that are not the decoder's: its own VQ model and its vocabulary.
FOREIGN_CONFIG_KEYS = ("model_type", "architectures", "vq_config", "vocabulary_map", "torch_dtype", "dtype",
                       "transformers_version")

disable_progress_bar()  # of loading and saving: one bar a file says nothing


def load_policy(path: str | Path, dtype: torch.dtype | str | None = None,
                attn_implementation: str | None = None) -> PreTrainedModel:
    """Load a policy from one of our folders, or from a folder in Lumina-mGPT's published layout.

    `dtype`: of the parameters (a torch dtype or its name); the file's own by default. `attn_implementation`: as in transformers;
    `flash_attention_2` becomes `sdpa`, with one warning, where it can't run. Under an active DeepSpeed ZeRO-3 config
    the parameters are partitioned as transformers does it. Raises `UserError` that names a missing folder, another
    architecture, and the first tensor that is missing, unexpected or of a wrong shape.
    """
    path = Path(path)
    config = policy_config(path)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in LuminaPolicy(config).state_dict().items()}
    _check_tensors(path, tensor_shapes(path), expected)
    kwargs: dict[str, Any] = {}
    if attn_implementation:
        kwargs["attn_implementation"] = usable_attention(attn_implementation)
    return LuminaPolicy.from_pretrained(path, config=config, dtype=dtype or "auto", **kwargs)


def usable_attention(name: str) -> str:
    """`name`, or `sdpa` with one warning where FlashAttention 2 is asked for and can't run."""
    if name == "flash_attention_2" and not (torch.cuda.is_available() and is_flash_attn_2_available()):
        import warnings

        warnings.warn("flash_attention_2 needs a CUDA GPU and the flash-attn package; using sdpa instead", stacklevel=3)
        return "sdpa"
    return name


def load_image_tokenizer(path: str | Path, family: str | None = None, **overrides: Any) -> ImageTokenizer:
    """Load an image tokenizer, in float32 on the CPU: a folder that we saved, or a published file.

    A file is a pickle (`.pt`, `.pth`, `.ckpt`; read as data only) or `.safetensors`. `family`: what it is, one of
    `published.FAMILIES`; by default told by its tensor names. `overrides`: keys of `ImageTokenizerConfig` that differ
    from the family's (or the folder's), e.g. `base_channels=32`. Raises `UserError` naming the file or tensor at fault.
    """
    path = Path(path)
    if path.is_dir():
        if family is not None:
            raise UserError(f"{path} is a folder, which says what it is; family={family!r} is for published files")
        config = read_json(path / "config.json")
        if config.get("model_type") != ImageTokenizerConfig.model_type:
            raise UserError(f"{path} holds a model of type {config.get('model_type')!r}, not an image tokenizer")
        tensor_shapes(path)  # names a damaged file
        state = load_file(path / WEIGHTS)
    elif path.is_file():
        state = read_state_dict(path)
        family = family or family_of(state, path)
        if family not in FAMILIES:
            raise UserError(f"family {family!r} is unknown; known are {', '.join(FAMILIES)}")
        config, state = FAMILIES[family], with_our_names(state, family)
    else:
        raise UserError(f"no such image tokenizer: {path}")
    for key in overrides:
        if not hasattr(ImageTokenizerConfig, key):
            raise UserError(f"an image tokenizer's config has no key {key!r}")
    config = ImageTokenizerConfig.from_dict({**config, **overrides})
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in ImageTokenizer(config).state_dict().items()}
    _check_tensors(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, expected)
    # Not from_pretrained: under ZeRO-3 that would partition this model too, and it stays whole on every rank.
    model = ImageTokenizer(config)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval().requires_grad_(False)


def policy_config(path: Path) -> LuminaConfig:
    """The decoder's config of a folder, ours or published. Raises `UserError` for another architecture."""
    if not path.is_dir():
        raise UserError(f"no such model folder: {path}")
    raw = read_json(path / "config.json")
    if raw.get("model_type") not in (LuminaConfig.model_type, "chameleon"):
        raise UserError(f"{path / 'config.json'} describes a model of type {raw.get('model_type')!r}; "
                        f"known are {LuminaConfig.model_type} and chameleon (Lumina-mGPT)")
    return LuminaConfig(**{key: value for key, value in raw.items() if key not in FOREIGN_CONFIG_KEYS})


def tensor_shapes(path: Path) -> Shapes:
    """Name -> shape of every tensor in a folder's safetensors files, read from their headers."""
    if (path / WEIGHTS).is_file():
        files = [path / WEIGHTS]
    elif (path / WEIGHTS_INDEX).is_file():
        index = read_json(path / WEIGHTS_INDEX)
        files = [path / name for name in sorted(set(index["weight_map"].values()))]
    else:
        raise UserError(f"{path} has no {WEIGHTS} (nor {WEIGHTS_INDEX})")
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()})
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} can't be read as safetensors ({error}); copy it again") from error
    return shapes


def _check_tensors(path: Path, found: Shapes, expected: Shapes) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{path}: tensor {name} is missing")
        if found[name] != shape:
            raise UserError(f"{path}: tensor {name} has shape {list(found[name])}, expected {list(shape)}")
    unexpected = sorted(set(found) - set(expected))
    if unexpected:
        raise UserError(f"{path}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all)")
