"""Turns published files or a training run into a self-contained model folder.

`realsr-r1 export --checkpoint DIR --output DIR` takes a finished run, a stopped run
(its newest complete checkpoint), one checkpoint folder (with whole weights, with ZeRO shards only,
or with a LoRA adapter, which is merged), or a published folder with the files that belong to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1 import __version__
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import CARD_FILE, atomic_folder, check_new_folder, existing_folder, write_json
from realsr_r1.core.flags import Parser
from realsr_r1.core.hub import check_hub, push_folder
from realsr_r1.core.json_yaml import parsed_yaml, read_yaml
from realsr_r1.core.run_files import (
    DIFFERENCES_FILE,
    EXPORT_FILE,
    differences_of,
    export_record,
    model_files,
    was_trained,
)
from realsr_r1.core.schema import Json, Text
from realsr_r1.training.trained_policy import base_of, check_architecture, find_weights, load_trained

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.reporting.model_card import ModelCard

TOKENIZER = "tokenizer.json"
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None = None) -> None:
    """Find the checkpoint and what belongs to it, load them, and write the folder."""
    parser = Parser(prog="realsr-r1 export", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True,
                        help="run folder, checkpoint folder, model folder or published folder")
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--layout", choices=["ours", "lumina"], default="ours",
                        help="ours: everything restore needs; lumina: the policy as Lumina-mGPT publishes it "
                             "(default: ours)")
    parser.add_argument("--image_tokenizer", help="a published image tokenizer (vqgan.ckpt, vq_ds8_c2i.pt, "
                                                  "...) or a folder of ours (default: the checkpoint's own)")
    parser.add_argument("--tokenizer", help="text tokenizer: a tokenizer.json or a folder with one (default: "
                                            "the checkpoint's own)")
    parser.add_argument("--chain_settings", help="YAML or JSON file, e.g. one of configs/chain (default: the "
                                                 "checkpoint's own)")
    parser.add_argument("--sampling", nargs="+", metavar="FIELD=VALUE", default=[],
                        help="sampling settings that restore uses by default, e.g. temperature=0.5 "
                             "image_top_k_max=100")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the written weights (default: as they are)")
    parser.add_argument("--metrics",
                        help=f"metrics.json of realsr-r1 evaluate, for the folder's model card ({CARD_FILE})")
    parser.add_argument("--licences",
                        help="YAML file with lines `part: licence`, for the card: of the photos, above all "
                             "(`photos of NAME`)")
    parser.add_argument("--push_to_hub", metavar="NAME",
                        help="send the folder's files to this model repository of the Hugging Face Hub; a "
                             "new one is private, and other files in it stay and are named (default: nothing "
                             "is sent)")
    args = parser.parse_args(argv)
    if args.push_to_hub:
        check_hub(args.push_to_hub)
    source = find_weights(existing_folder(args.checkpoint, "--checkpoint"))
    card = make_card(source, args)
    output = Path(args.output)
    check_new_folder(output, "--output")
    if output.name in ("", ".."):  # the working folder itself may be replaced
        output = output.resolve()
    made_from = fingerprint(source, args)
    if output.exists() and any(output.iterdir()):
        if export_record(output).get("made_from") == made_from:
            if "trained" not in export_record(output):  # an older version said less
                write_record(output, source, made_from, card)
            if args.metrics or args.licences or not (output / CARD_FILE).is_file():
                card.write(output, output.name)
                print(f"{output} is up to date, its card is written anew")
            else:
                print(f"{output} is up to date, nothing to do")
            push(output, args)
            return
        raise UserError(f"{output} (--output) exists and is not empty; name another folder or remove it")
    folders = [source, *base_of(source)]
    check_architecture(folders[-1])
    from realsr_r1.models.checking import check_finite

    processor = make_processor(folders, args) if args.layout == "ours" else None
    tokenizer = processor.tokenizer if processor else find_text_tokenizer(folders, args.tokenizer)
    policy, dtypes = load_trained(source, args.dtype)
    check_finite(policy.state_dict().items(), str(source))
    if processor:
        check_finite(processor.image_tokenizer.state_dict().items(), "the image tokenizer")
        check_vocabulary(policy, processor)
        if args.dtype:
            processor.image_tokenizer.to(policy.dtype)
    with atomic_folder(output) as folder:
        if processor:
            save_ours(policy, dtypes, processor, folder)
        else:
            save_lumina(policy, dtypes, tokenizer, folder)
        write_record(folder, source, made_from, card)
        card.write(folder, output.name)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {policy.num_parameters():,} parameters, {size / 2**20:.1f} MiB, layout {args.layout}")
    push(output, args)


def write_record(folder: Path, source: Path, made_from: str, card: ModelCard) -> None:
    """Write what the folder was made from, and how its run differed from a profile where that is known."""
    write_json(folder / EXPORT_FILE, {"made_from": made_from, "trained": was_trained(source),
                                      "bases": card.bases})
    differing = differences_of(source)
    if differing is not None:
        write_json(folder / DIFFERENCES_FILE, differing)


def make_card(source: Path, args: argparse.Namespace) -> ModelCard:
    """Return the card of what is exported. Raises `UserError` for files of another form."""
    from realsr_r1.reporting.model_card import ModelCard
    from realsr_r1.reporting.tables import read_metrics

    return ModelCard.of(
        source, f"realsr-r1 {__version__}", read_metrics(Path(args.metrics)) if args.metrics else None,
        read_yaml(args.licences, dict[Text, Text], "--licences") if args.licences else None)


def push(output: Path, args: argparse.Namespace) -> None:
    """Send the folder to the Hub, if that is asked for."""
    if args.push_to_hub:
        address, others = push_folder(output, args.push_to_hub)
        print(f"{output} is at {address}")
        if others:
            print(f"{address} has files besides, which stay: {', '.join(others)}; delete there what an older "
                  "push has left")


def fingerprint(source: Path, args: argparse.Namespace) -> str:
    """Return a short name for what is exported and the flags that change what is written.

    The same command gives the same name, as long as no file of `source` and its base has changed.
    """
    files = [file for folder in (source, *base_of(source)) for file in model_files(folder)]
    parts = [Path(part) for part in (args.image_tokenizer, args.tokenizer, args.chain_settings) if part]
    files += [file for part in parts for file in (sorted(part.rglob("*")) if part.is_dir() else [part])
              if file.is_file()]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([stats, args.layout, args.dtype, args.sampling]).encode()).hexdigest()


def sampling_settings(assignments: list[str]) -> dict[str, Any]:
    """Turn `field=value` words into fields of `RolloutConfig`.

    Raises `UserError` for an unknown field or a bad value.
    """
    from realsr_r1.rollout import RolloutConfig

    kinds = {field.name: {"int": int, "float": float}.get(field.type,
                                                          lambda text: parsed_yaml(text, "it", Json))
             for field in dataclasses.fields(RolloutConfig)}
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in kinds:
            raise UserError(f"--sampling {assignment}: use FIELD=VALUE with a field of "
                            f"{', '.join(sorted(kinds))}")
        try:
            values[name] = kinds[name](value)
        except (ValueError, UserError) as error:
            raise UserError(f"--sampling {assignment}: {value!r} is no value of {name} ({error})") from error
    RolloutConfig(**values)  # checks the values
    return values


# --- Input: the parts that belong to a policy ---

def make_processor(folders: list[Path], args: argparse.Namespace) -> ChainProcessor:
    """Return the processor of the checkpoint or of its base.

    Parts that flags name take the place of its own.
    """
    from realsr_r1.chain.processor import IMAGE_TOKENIZER_FOLDER, ChainProcessor
    from realsr_r1.chain.settings import SETTINGS_FILE, ChainSettings
    from realsr_r1.models import load_image_tokenizer
    from realsr_r1.rollout import RolloutConfig

    def part(flag: str, name: str, hint: str) -> Path:
        given = getattr(args, flag)
        found = [Path(given)] if given else [folder / name for folder in folders if (folder / name).exists()]
        if not found:
            raise UserError(f"{folders[0]} has no {name}: name one with --{flag} ({hint})")
        if not found[0].exists():
            raise UserError(f"no such file or folder: {given} (given by --{flag})")
        return found[0]

    file = part("chain_settings", SETTINGS_FILE, "configs/chain has one for each published family")
    tokenizer = find_text_tokenizer(folders, args.tokenizer)
    if tokenizer is None:
        raise UserError(f"{folders[0]} has no text tokenizer ({TOKENIZER}): name the file or its folder with "
                        "--tokenizer")
    image_tokenizer = load_image_tokenizer(part("image_tokenizer", IMAGE_TOKENIZER_FOLDER,
                                                "vqgan.ckpt for Lumina-mGPT, vq_ds8_c2i.pt for PURE"))
    settings = ChainSettings.read(file)
    sampling = {**settings.sampling, **sampling_settings(args.sampling)}
    RolloutConfig.from_settings(sampling, str(file))  # raises an error for bad settings
    return ChainProcessor(tokenizer, image_tokenizer, dataclasses.replace(settings, sampling=sampling))


def find_text_tokenizer(folders: list[Path], given: str | None) -> PreTrainedTokenizerBase | None:
    """Return the text tokenizer that `--tokenizer` names, else that of the first folder with one.

    Only its file counts, because published folders name tokenizer classes that transformers would
    rebuild in its own way. Raises `UserError` for a bad file.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from realsr_r1.chain.tokens import BOS, EOS, PAD, UNK

    files = [Path(given)] if given else [folder / TOKENIZER for folder in folders
                                         if (folder / TOKENIZER).is_file()]
    if not files:
        return None
    file = files[0] / TOKENIZER if files[0].is_dir() else files[0]
    if not file.is_file():
        raise UserError(f"no such file: {file}{' (given by --tokenizer)' if given else ''}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{file} can't be read as a text tokenizer ({error})") from error
    roles = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    # Only names that the tokenizer has; others would be added to it.
    known = {role: name for role, name in roles.items() if tokenizer.token_to_id(name) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **known)


def check_vocabulary(policy: PreTrainedModel, processor: ChainProcessor) -> None:
    """Raise `UserError` where the policy has no logit for a token of the tokenizer."""
    if processor.layout.vocab_size > policy.config.vocab_size:
        raise UserError(f"the policy has a vocabulary of {policy.config.vocab_size:,} and its text tokenizer "
                        f"one of {processor.layout.vocab_size:,}; they don't belong together")


# --- Output ---

def save_weights(policy: PreTrainedModel, dtypes: Mapping[str, torch.dtype], folder: Path) -> None:
    """Write config, generation config and weights, in shards where they are large.

    `dtypes`: see `load_trained`.
    """
    state = {name: tensor.to(dtypes.get(name, tensor.dtype))
             for name, tensor in policy.state_dict().items()} if dtypes else None
    policy.save_pretrained(folder, state_dict=state)


def save_ours(policy: PreTrainedModel, dtypes: Mapping[str, torch.dtype], processor: ChainProcessor,
              folder: Path) -> None:
    """Write a self-contained model folder: policy, tokenizers, chain settings."""
    layout = processor.layout  # a published config may name the padding's id, 1, as the beginning
    policy.generation_config.update(bos_token_id=layout.bos, pad_token_id=layout.pad,
                                    eos_token_id=layout.end_of_turn)
    save_weights(policy, dtypes, folder)
    processor.save_pretrained(folder)


def save_lumina(policy: PreTrainedModel, dtypes: Mapping[str, torch.dtype],
                tokenizer: PreTrainedTokenizerBase | None,
                folder: Path) -> None:
    """Write the policy, and its text tokenizer if there is one, in Lumina-mGPT's layout."""
    save_weights(policy, dtypes, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else None
    write_json(folder / "config.json", policy.config.as_published(None if dtypes else policy.dtype,
                                                                  vocabulary))


if __name__ == "__main__":
    run(main)
