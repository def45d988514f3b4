"""Reads the headers of a folder's safetensors files and compares them with what a model expects.

transformers reports no wrong keys under ZeRO-3, so loading compares headers first, in every mode.
Loads no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, MinLen, Place, Text, TypedDict

Shapes = Mapping[str, tuple[int, ...]]  # tensor name -> shape

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Files in which folders hold weights, or parts of them; only the two above are read as a policy's.
KINDS_OF_WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf",
                    "*.msgpack", "*.h5", "global_step*")
# Of these names, what training and the tokenizers' training keep beside weights.
NO_WEIGHTS = ("training_args.bin", "training_state.pt", "optimizer.pt", "optimizer.bin", "scheduler.pt",
              "scaler.pt", "rng_state*.pth")
# The types that a policy or an image tokenizer can be stored in, by safetensors' names.
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class IndexFile(TypedDict, extra_items=Json):
    """The index of weights in several files: tensor name -> file."""

    weight_map: Annotated[dict[Text, Place], MinLen(1)]


class TensorHeader(NamedTuple):
    """What a file's header says about one tensor; `dtype` is safetensors' name, e.g. `BF16`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def other_weights(path: Path) -> str | None:
    """Return the name of a file in the folder `path` that holds weights or a part of them, if any."""
    found = sorted(file.name for kind in KINDS_OF_WEIGHTS for file in path.glob(kind)
                   if not any(file.match(name) for name in NO_WEIGHTS))
    return found[0] if found else None


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder: one, or the shards that its index names.

    Raises `UserError` where there are none.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / WEIGHTS_INDEX).is_file():
        other = other_weights(path)
        instead = f"; {other}, which it has, is not read: copy the rest, or save them as safetensors"
        raise UserError(f"{path} has no {WEIGHTS} (nor {WEIGHTS_INDEX}){instead if other else ''}")
    index = read_json(path / WEIGHTS_INDEX, IndexFile, "copy it again")
    return [path / name for name in sorted(set(index["weight_map"].values()))]


def file_headers(file: Path) -> dict[str, TensorHeader]:
    """Return name -> header of every tensor in one file.

    Raises `UserError` that names a file which is missing or damaged.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            return {name: TensorHeader(tuple(part.get_shape()), part.get_dtype())
                    for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors ({error}); copy it again") from error


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Return name -> header of every tensor in a folder's safetensors files."""
    return {name: header for file in weight_files(path) for name, header in file_headers(file).items()}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor in a folder's safetensors files."""
    return {name: header.shape for name, header in tensor_headers(path).items()}


def stored_dtypes(path: Path, headers: Mapping[str, TensorHeader]) -> dict[str, torch.dtype]:
    """Return name -> type of every tensor.

    Raises `UserError` that names a tensor which has no plain floating-point type.
    """
    for name, header in headers.items():
        if header.dtype not in STORED_DTYPES:
            raise UserError(f"{path}: tensor {name} is stored as {header.dtype}; a policy is one of "
                            f"{', '.join(STORED_DTYPES)}")
    return {name: STORED_DTYPES[header.dtype] for name, header in headers.items()}


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Raise `UserError` that names the first tensor with a value that isn't finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{where}: tensor {name} holds values that are no finite numbers, so nothing can "
                            "be made with it (a run that diverged?); take an earlier checkpoint")


def check_tensors(path: Path, found: Shapes, expected: Shapes, optional: Collection[str] = (),
                  why: str = "") -> None:
    """Raise `UserError` for the first tensor that is missing, of a wrong shape, or unexpected.

    `optional`: names that may be missing. `why`: where the expected shapes come from, for the
    message.
    """
    for name, shape in expected.items():
        if name not in found:
            if name not in optional:
                raise UserError(f"{path}: tensor {name} is missing{why}")
        elif tuple(found[name]) != tuple(shape):
            raise UserError(f"{path}: tensor {name} has shape {list(found[name])}, expected "
                            f"{list(shape)}{why}")
    unexpected = sorted(set(found) - set(expected))
    if unexpected:
        raise UserError(f"{path}: unexpected tensor {unexpected[0]} ({len(unexpected)} in all){why}")
