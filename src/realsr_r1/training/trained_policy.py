"""Finds and loads the policy that a run has left: whole weights, ZeRO shards, or an adapter and its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError
from realsr_r1.core.import_named import load_module
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.pickles import require_harmless
from realsr_r1.core.schema import Json, Text, TypedDict

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS, ADAPTER = "model.safetensors", "adapter_config.json"


class AdapterFile(TypedDict, total=False, extra_items=Json):
    """peft's adapter_config.json, as far as an export reads it."""

    base_model_name_or_path: Text | None


def find_weights(folder: Path) -> Path:
    """Return the folder with weights: `folder` itself, or its newest complete checkpoint."""
    if has_weights(folder) or (folder / ADAPTER).is_file() or any(folder.glob("global_step*")):
        return folder
    from realsr_r1.training.checkpoints import complete_checkpoints

    found = complete_checkpoints(folder)
    if not found:
        raise UserError(f"{folder} (--checkpoint) holds neither {WEIGHTS} nor a complete checkpoint")
    return find_weights(found[max(found)])


def has_weights(folder: Path) -> bool:
    """Whether a folder holds all weights of a policy, in one file or in shards."""
    from realsr_r1.models.checking import WEIGHTS_INDEX

    return any((folder / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX))


def base_of(source: Path) -> list[Path]:
    """Return the folder of the policy that an adapter was trained on.

    The list is empty where `source` holds no adapter.
    """
    if not (source / ADAPTER).is_file():
        return []
    base = read_json(source / ADAPTER, AdapterFile).get("base_model_name_or_path")
    if not base or not Path(base).is_dir():
        raise UserError(f"{source / ADAPTER} says that the adapter belongs to the model {base!r}, and there "
                        "is no such folder; put it back or correct base_model_name_or_path")
    return [Path(base)]


def check_architecture(folder: Path) -> None:
    """Raise `UserError` for a policy of another kind or a damaged file.

    This happens before anything large is read.
    """
    from realsr_r1.models.checking import tensor_headers
    from realsr_r1.models.loading import policy_config

    policy_config(folder)
    if has_weights(folder):
        tensor_headers(folder)


def load_trained(source: Path, dtype: str | None = None) -> tuple[PreTrainedModel, dict[str, torch.dtype]]:
    """Load the policy of a checkpoint folder, and return it with the types to write its tensors in.

    `dtype`: by default that of the weights. Whole weights are read as they are, ZeRO shards are put
    together, and an adapter is merged into its base in float32. There are types only where the
    weights have several: the policy then has the widest type, and its tensors are written in their
    own.
    """
    load_module("realsr_r1.models")
    import torch

    from realsr_r1.models import load_policy, new_policy
    from realsr_r1.models.checking import file_headers, stored_dtypes, tensor_headers
    from realsr_r1.models.loading import policy_config

    weights, *_ = [*base_of(source), source]
    if not has_weights(weights):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        for file in sorted(source.glob("global_step*/*.pt")):
            require_harmless(file, "export another checkpoint, or weights that the run itself has written")
        policy = new_policy(policy_config(source))
        policy.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(str(source)))
        return policy.to(getattr(torch, dtype) if dtype else torch.float32), {}
    dtypes = stored_dtypes(weights, tensor_headers(weights))
    if weights == source:
        policy = load_policy(source)
    else:
        from peft import PeftModel

        file_headers(source / "adapter_model.safetensors")  # raises an error that names a damaged file
        base = load_policy(weights, dtype=torch.float32)
        try:
            policy = PeftModel.from_pretrained(base, source).merge_and_unload()
        except Exception as error:  # a value of another type in its config can fail anywhere in peft
            raise UserError(f"{source} holds no LoRA adapter that fits {weights} ({error}); copy it again"
                            ) from error
    if dtype:
        return policy.to(getattr(torch, dtype)), {}
    return (policy, dtypes) if len(set(dtypes.values())) > 1 else (policy.to(*set(dtypes.values())), {})
