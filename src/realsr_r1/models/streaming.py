"""Fills a policy with the weights of a folder, one tensor at a time.

The policy is whole, or partitioned over ranks (DeepSpeed ZeRO-3). transformers does the same in
four times the time, and under ZeRO-3 with up to twice the checkpoint's bytes on a rank; here a rank
holds its own share and one tensor. Knows files and tensors, which were compared with the policy
before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations import deepspeed_config
from transformers.utils import GENERATION_CONFIG_NAME

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, Text
from realsr_r1.models.checking import weight_files
from realsr_r1.models.protocol import PolicyConfig


def empty_policy(policy_class: type[PreTrainedModel], config: PolicyConfig) -> PreTrainedModel:
    """Return a policy to be filled: its parameters are on the meta device.

    Its buffers (rotary frequencies) are real.
    """
    with no_init_weights(), init_empty_weights(include_buffers=False):
        return policy_class(config)


def fill(policy: PreTrainedModel, path: Path, dtype: torch.dtype) -> None:
    """Give an empty policy the weights in folder `path`, as `dtype`.

    Where that is the type in the files, the tensors are only memory-mapped.
    """
    with _readers(path) as reader_of:
        for name, placeholder in list(policy.named_parameters()):
            if name in reader_of:  # otherwise it is tied to another tensor
                _put(policy, name, reader_of[name].get_tensor(name).to(dtype), placeholder.requires_grad)
    _finish(policy, path, dtype)


def fill_partitioned(policy: PreTrainedModel, path: Path) -> None:
    """Do the same as `fill` under ZeRO-3, partitioned over all ranks; every rank must call this.

    Rank 0 reads, and DeepSpeed broadcasts and partitions. The parameters' type is DeepSpeed's own:
    bfloat16 or float16 where its config enables that, else float32.
    """
    from deepspeed.accelerator import get_accelerator

    device = torch.device(get_accelerator().current_device_name())
    dtype = _partition(nn.Module())
    whole = torch.empty(0, dtype=dtype, device=device)  # for a moment it holds one whole tensor on each rank
    with _readers(path) as reader_of:
        # The largest tensor comes first, while little else is in memory, and one buffer serves for
        # many tensors. With a new buffer for each there would be gaps into which partitions don't
        # fit (measured: 1.5 times the memory).
        for name, placeholder in sorted(policy.named_parameters(),
                                        key=lambda item: (-item[1].numel(), item[0])):
            if name not in reader_of:
                continue
            if not placeholder.numel() <= whole.numel() <= 2 * placeholder.numel():
                # Free the old buffer before making the new one.
                whole = torch.empty(0, dtype=dtype, device=device)
                whole = torch.empty(placeholder.numel(), dtype=dtype, device=device)
            tensor = whole[:placeholder.numel()].view(placeholder.shape)
            if torch.distributed.get_rank() == 0:
                tensor.copy_(reader_of[name].get_tensor(name))
            parameter = _put(policy, name, tensor, placeholder.requires_grad)
            del tensor
            _partition(nn.ParameterList([parameter]))
    for module in policy.modules():
        for name, buffer in module.named_buffers(recurse=False):
            # DeepSpeed doesn't move buffers.
            module.register_buffer(name, buffer.to(device), persistent=False)
    _finish(policy, path, dtype)


def _partition(module: nn.Module) -> torch.dtype:
    """Let DeepSpeed partition a module's parameters; returns the type that it gives them."""
    import deepspeed
    from deepspeed.utils import groups

    config = deepspeed_config()
    # With hpZ the ranks of a machine are a group, which DeepSpeed makes at the first call and would
    # make again at the next: it refuses that unless it is given the first.
    has_hpz = config["zero_optimization"].get("zero_hpz_partition_size", 1) > 1
    group = groups._get_zero_param_intra_parallel_group() if has_hpz else None
    return deepspeed.zero.Init(module=module, config_dict_or_path=config,
                               zero_param_parallel_group=group).dtype


@contextmanager
def _readers(path: Path) -> Iterator[dict[str, Any]]:
    """Yield tensor name -> the open safetensors file that holds it."""
    with ExitStack() as opened:
        readers = [opened.enter_context(safe_open(file, framework="pt")) for file in weight_files(path)]
        yield {name: reader for reader in readers for name in reader.keys()}


def read_generation_config(path: Path) -> GenerationConfig | None:
    """Read a folder's generation_config.json; None where it has none.

    Raises `UserError` that names the file where transformers could not use or save it: a run would
    find that out when it writes its first checkpoint.
    """
    file = path / GENERATION_CONFIG_NAME
    if not file.is_file():
        return None
    settings, warner = read_json(file, dict[Text, Json]), logging.getLogger(GenerationConfig.__module__)
    was_disabled, warner.disabled = warner.disabled, True  # what it would warn of is the error below
    try:
        config = GenerationConfig.from_dict(settings)
        config.validate(strict=True)
    except (TypeError, ValueError, AttributeError) as error:  # transformers compares values of any type
        raise UserError(f"{file} can't be used ({error}); correct it, or remove it") from error
    finally:
        warner.disabled = was_disabled
    return config


def _put(policy: PreTrainedModel, name: str, tensor: torch.Tensor, requires_grad: bool) -> nn.Parameter:
    module_name, _, own_name = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=requires_grad)
    setattr(policy.get_submodule(module_name), own_name, parameter)
    return parameter


def _finish(policy: PreTrainedModel, path: Path, dtype: torch.dtype) -> None:
    policy.tie_weights()
    policy.name_or_path = policy.config.name_or_path = str(path)
    policy.config.dtype = dtype
    policy.generation_config = read_generation_config(path) or policy.generation_config
    policy.eval()
