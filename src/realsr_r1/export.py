"""Turn a training run or checkpoint into a self-contained model folder: `realsr-r1 export --checkpoint DIR --output DIR`.

Takes a finished run, a run that was stopped (its newest complete checkpoint), or one checkpoint folder: with whole
weights, with ZeRO shards only, or with a LoRA adapter (merged).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.errors import UserError, run
from realsr_r1.files import atomic_folder, existing_folder, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from realsr_r1.processing import ChainProcessor

WEIGHTS, ADAPTER = "model.safetensors", "adapter_config.json"
RECORD = "export.json"  # in the written folder: what it was made from
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> None:
    """Find the checkpoint, load its policy and processor, write the folder."""
    parser = argparse.ArgumentParser(prog="realsr-r1 export", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="run folder, checkpoint folder or model folder")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--layout", choices=["ours", "lumina"], default="ours",
                        help="ours: everything restore needs; lumina: the policy as Lumina-mGPT publishes it (default: ours)")
    parser.add_argument("--sampling", nargs="+", metavar="FIELD=VALUE", default=[],
                        help="sampling settings that restore uses by default, e.g. temperature=0.5 image_top_k_max=100")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights (default: as they are)")
    args = parser.parse_args(argv)
    source = find_weights(existing_folder(args.checkpoint, "--checkpoint"))
    output = Path(args.output)
    made_from = fingerprint(source, args)
    if output.exists() and any(output.iterdir()):
        if (output / RECORD).is_file() and read_json(output / RECORD).get("made_from") == made_from:
            print(f"{output} is up to date, nothing to do")
            return
        raise UserError(f"{output} (--output) exists and is not empty; name another folder or remove it")
    import torch

    from realsr_r1.processing import ChainProcessor

    processor = ChainProcessor.from_pretrained(source)
    sampling = {**processor.settings.sampling, **sampling_settings(args.sampling)}
    processor.settings = dataclasses.replace(processor.settings, sampling=sampling)
    policy = load_trained(source)
    if args.dtype:
        policy = policy.to(getattr(torch, args.dtype))
        processor.image_tokenizer.to(getattr(torch, args.dtype))
    with atomic_folder(output) as folder:
        (save_ours if args.layout == "ours" else save_lumina)(policy, processor, folder)
        write_json(folder / RECORD, {"made_from": made_from})
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {policy.num_parameters():,} parameters, {size / 2**20:.1f} MiB, layout {args.layout}")


def fingerprint(source: Path, args: argparse.Namespace) -> str:
    """Of the weights in `source` and the flags that change what is written; the same command gives the same."""
    files = sorted(path for pattern in ("*.safetensors", "global_step*/*") for path in source.glob(pattern))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([stats, args.layout, args.dtype, args.sampling]).encode()).hexdigest()


def sampling_settings(assignments: list[str]) -> dict[str, Any]:
    """`field=value` words -> fields of `RolloutConfig`. Raises `UserError` for an unknown field or a bad value."""
    import yaml

    from realsr_r1.rollout import RolloutConfig

    kinds = {field.name: {"int": int, "float": float}.get(field.type, yaml.safe_load)
             for field in dataclasses.fields(RolloutConfig)}
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in kinds:
            raise UserError(f"--sampling {assignment}: use FIELD=VALUE with a field of {', '.join(sorted(kinds))}")
        try:
            values[name] = kinds[name](value)
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"--sampling {assignment}: {value!r} is no value of {name} ({error})") from error
    RolloutConfig(**values)  # checks the values
    return values


def find_weights(folder: Path) -> Path:
    """The folder that holds weights: `folder` itself, or the newest complete checkpoint inside it."""
    from realsr_r1.models.loading import WEIGHTS_INDEX

    if any((folder / name).exists() for name in (WEIGHTS, WEIGHTS_INDEX, ADAPTER)) or any(folder.glob("global_step*")):
        return folder
    from realsr_r1.training.checkpoints import complete_checkpoints

    found = complete_checkpoints(folder)
    if not found:
        raise UserError(f"{folder} (--checkpoint) holds neither {WEIGHTS} nor a complete checkpoint")
    return find_weights(found[max(found)])


def load_trained(source: Path) -> PreTrainedModel:
    """The policy of a checkpoint folder: whole weights, a merged adapter, or weights put together from ZeRO shards."""
    from realsr_r1.models import load_policy
    from realsr_r1.models.loading import WEIGHTS_INDEX

    if (source / ADAPTER).is_file():
        from peft import PeftModel

        base = read_json(source / ADAPTER)["base_model_name_or_path"]
        return PeftModel.from_pretrained(load_policy(base), source).merge_and_unload()
    if (source / WEIGHTS).is_file() or (source / WEIGHTS_INDEX).is_file():
        return load_policy(source)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from realsr_r1.models.loading import policy_config
    from realsr_r1.models.policy import LuminaPolicy

    policy = LuminaPolicy(policy_config(source))
    policy.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(str(source)))
    return policy


def save_ours(policy: PreTrainedModel, processor: ChainProcessor, folder: Path) -> None:
    """A self-contained model folder: policy, tokenizers, chain settings."""
    policy.generation_config.eos_token_id = processor.layout.end_of_turn
    policy.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_lumina(policy: PreTrainedModel, processor: ChainProcessor, folder: Path) -> None:
    """The policy and its text tokenizer in Lumina-mGPT's layout: a Chameleon config with the vocabulary in it."""
    policy.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    config: dict[str, Any] = read_json(folder / "config.json")
    config.update(model_type="chameleon", architectures=["ChameleonForConditionalGeneration"], mask_image_logits=False,
                  vocabulary_map=processor.tokenizer.get_vocab())
    write_json(folder / "config.json", config)


if __name__ == "__main__":
    run(main)
